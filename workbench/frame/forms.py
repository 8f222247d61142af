"""Forms made from the config classes: a field is a widget, its `help` the help, its default the default, and what it refuses stands beside it.

A form's state is a draft: what it starts from (a preset, or an earlier run's config) and what was changed, as texts. It is kept in the cache and its
id in the URL, so a reload, the back button and a copied link show the same form. The config, its errors and the equal command follow from it.

    filled = forms.form("fit")          draws it
    forms.prepare_box(filled)           the box "and prepare the pages"
    filled.config, filled.errors        errors by field path; only without any can it be launched
    forms.fill(kind, config, parent)    for callbacks: a form that starts from a run's config
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import streamlit as st

from core.cli.config_file import as_toml
from core.cli.equal_command import equal_command
from core.cli.options import as_text, reader
from core.config import Config, from_dict
from core.errors import ConfigError, SparseRMError
from core.jobs.follow_up import PREPARES, follow_up_names, seconds_after
from core.jobs.kinds import kind_of
from core.runs.progress import duration
from workbench.frame import run_panel, state

DRAFT, ALL = "runs_draft", "runs_all"
PREPARE_LABEL = "and prepare the pages"
GROUPS = {
    "data": "Preference pairs",
    "backbone": "Language model",
    "sae": "Sparse autoencoder",
    "selection": "Selection",
    "head": "Head",
    "fit": "Controls",
    "candidates": "Candidates",
    "dpo": "Training",
    "evaluation": "Evaluation",
    "": "This run",
}
LABELS = {
    "k": "K, latents a side",
    "ks": "Values of K",
    "lr": "Learning rate",
    "sae_id": "SAE id",
    "pairs": "Preference pairs",
    "saes": "SAEs",
    "path": "SAE folder",
    "gamma": "Margin gamma",
    "sae-train k": "K, active latents a token",
    "mc": "Multiple choice: mc_task.json",
    "mc_format": "Multiple choice: format",
    "mc_limit": "Multiple choice: questions",
    "align prompts": "Prompts: file",
    "prompts_limit": "Prompts a round",
    "align candidates.mode": "Candidates by",
    "align candidates.n": "Samples a prompt",
    "lora_r": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout",
}
PLACEHOLDERS = {
    "pairs": "the embedded demo pairs",
    "columns": "prompt=question, chosen=good, rejected=bad",
    "path": "embedded, or the newest trained",
    "saes": "one a layer",
    "layers": "9, 16",
    "out": "the cache",
    "mc": "not measured",
    "prompts": "those the split left free",
}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A form's state. `changes`: field path -> text. `base` is an earlier run's config, or None where `preset` names the start.

    `prepare_pages`: whether the pages of a fit's reward model are prepared after it.
    """

    kind: str
    preset: str = ""
    base: Mapping[str, Any] | None = None
    changes: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    prepare_pages: bool = True

    def start(self) -> Config:
        """The config before any change. Raises ConfigError for a base of another version."""
        if self.base is not None:
            config: Config = from_dict(kind_of(self.kind).config, self.base)
            return config
        return kind_of(self.kind).base(self.preset or first_preset(self.kind))

    def start_preset(self) -> str:
        """The preset that it starts from; empty where it starts from an earlier run's config."""
        if self.base is None:
            return self.preset or first_preset(self.kind)
        start = self.start()
        return next((name for name, preset in kind_of(self.kind).presets.items() if self.parent is None and preset == start), "")

    def built(self) -> tuple[Config, dict[str, str]]:
        """The config with every change that it takes, and what is wrong with the others."""
        config, errors = self.start(), {}
        for path, text in self.changes.items():
            try:
                config = changed(config, path.split("."), text)
            except ConfigError as error:
                errors[path] = f"{error.problem.rpartition('.')[2]}; expected {error.expected}" if error.expected else error.problem
        return config, errors


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What a form holds now: only without errors can it be launched."""

    draft: Draft
    config: Config
    errors: Mapping[str, str]

    @property
    def command(self) -> str:
        """The `sparserm` command that does the same."""
        return equal_command(self.draft.kind, self.config, self.draft.start_preset(), prepare_pages=self.prepare_pages)

    @property
    def prepare_pages(self) -> bool:
        """Whether runs that prepare pages follow the run."""
        return self.draft.prepare_pages and self.draft.kind in PREPARES


def download_config(kind: str, config: Config) -> None:
    """Offers the form's configuration as the file that the command's `--config` reads."""
    help_ = f"sparserm {' '.join(kind_of(kind).command)} --config FILE"
    content = as_toml(config.to_dict())
    st.download_button("As a file", content, f"{kind}.toml", "application/toml", key=f"form file {kind}", help=help_, on_click="ignore")


def first_preset(kind: str) -> str:
    """The preset that a form starts from; empty where the kind has none."""
    return kind_of(kind).default_preset


def changed(config: Config, path: list[str], text: str) -> Config:
    """`config` with the field at `path` read from a text. Raises ConfigError for a text that it does not take, or a field that there is not."""
    known = {spec.name for spec in fields(config)}  # type: ignore[arg-type]
    if path[0] not in known:
        raise ConfigError(f"{type(config).__name__} has no field {path[0]}")
    if len(path) > 1:
        return replace(config, **{path[0]: changed(getattr(config, path[0]), path[1:], text)})  # type: ignore[type-var]
    read = reader(typing.get_type_hints(type(config))[path[0]])
    try:
        value = read(text.strip()) if text.strip() or read is not int else None
    except (ValueError, TypeError):
        kind = {"float": "number", "int": "whole number"}.get(read.__name__, read.__name__)
        raise ConfigError("this can't be read", expected=f"a {kind}") from None
    return replace(config, **{path[0]: value})  # type: ignore[type-var]


# --- drafts ----------------------------------------------------------------------------------------------------------


def draft_of(kind: str) -> Draft:
    """The draft that the URL names, if it is of this kind; else a fresh one."""
    values = state.kept("draft", state.get(DRAFT))
    try:
        draft = Draft(**values) if isinstance(values, dict) else None
        if draft is not None and draft.kind == kind:
            draft.start()
            return draft
    except (SparseRMError, TypeError, KeyError):  # another version's
        pass
    return Draft(kind=kind)


def _choose(draft: Draft, **ids: str | None) -> None:
    state.choose(**{DRAFT: None if draft == Draft(kind=draft.kind) else state.keep("draft", vars(draft))}, **ids)


def fill(kind: str, config: Config, parent: str | None = None, **ids: str | None) -> None:
    """A form that starts from this config, for callbacks; pages are prepared where those of `parent`, a run's id, were. `ids` are chosen with it."""
    run = run_panel.find_id(parent or "")
    _choose(Draft(kind=kind, base=config.to_dict(), parent=parent, prepare_pages=run is None or run.prepares_pages), **ids)


def take_value(draft: Draft, path: str, before: str, value: Any) -> None:
    """A widget's new value, for its callback."""
    text = "" if value is None else str(value)
    changes = {name: change for name, change in draft.changes.items() if name != path}
    _choose(replace(draft, changes=changes if text == before else {**changes, path: text}))


# --- drawing ---------------------------------------------------------------------------------------------------------


def form(kind: str) -> Filled:
    """Draws the form of this kind of run and returns what it holds."""
    draft = draft_of(kind)
    if kind_of(kind).presets and draft.base is None:
        _preset(draft)
    config, errors = draft.built()
    main = _main(kind, draft.start())
    field_grid([(path, *field_at(draft.start(), path)) for path in main], draft, errors)
    groups = {name: [row for row in rows if row[0] not in main] for name, rows in field_groups(draft.start()).items()}
    wrong = sum(path not in main for path in errors)
    # Not an expander: what it hides is in the page and would keep showing old values.
    if all_settings_switch(f"All settings{f', {wrong} to mend' if wrong else ''}") or wrong:
        for name, rows in groups.items():
            if rows:
                st.markdown(f"###### {name}")
                field_grid(rows, draft, errors)
    return Filled(draft=draft, config=config, errors=errors)


def _main(kind: str, config: Any) -> tuple[str, ...]:
    """What is set first: the SAE by its release where it has one."""
    sae = getattr(config, "sae", None)
    named = ("sae.release", "sae.sae_id") if sae is not None and sae.release else ("sae.path",)
    return tuple(part for path in kind_of(kind).first_fields for part in (named if path == "sae.path" else (path,)))


def all_settings_switch(label: str) -> bool:
    shown = bool(state.get(ALL))
    st.toggle(label, **state.url_widget("form all", shown, lambda on: state.choose(**{ALL: "1" if on else None})))
    return shown


def _preset(draft: Draft) -> None:
    first = first_preset(draft.kind)

    def take(chosen: str) -> None:
        _choose(Draft(kind=draft.kind, preset="" if chosen == first else chosen, prepare_pages=draft.prepare_pages))

    widget = state.url_widget(f"form {draft.kind} preset", draft.preset or first, take)
    st.segmented_control("Start from", list(kind_of(draft.kind).presets), required=True, help="Changes below are laid over this preset.", **widget)


def prepare_box(filled: Filled) -> None:
    """The box "and prepare the pages" of a form, where the kind of run makes a reward model."""
    if filled.draft.kind in PREPARES:
        widget = state.url_widget(
            f"form {filled.draft.kind} prepare", filled.draft.prepare_pages, lambda on: _choose(replace(filled.draft, prepare_pages=on))
        )
        st.checkbox(PREPARE_LABEL, help=prepare_help(filled.config), **widget)


def prepare_help(config: Config) -> str:
    """What "and prepare the pages" adds to a fit of this config."""
    names = ", ".join(follow_up_names(config))
    return f"{names}: made after the fit in the background, one after another, in about {duration(seconds_after(config))}"


Row = tuple[str, Config, Any]  # path, the config that the field is of, its dataclass field


def field_at(config: Config, path: str) -> tuple[Config, Any]:
    *outer, name = path.split(".")
    for part in outer:
        config = getattr(config, part)
    return config, next(spec for spec in fields(config) if spec.name == name)  # type: ignore[arg-type]


def field_groups(config: Config, path: str = "") -> dict[str, list[Row]]:
    """The fields under the titles of the configs they stand in."""
    groups: dict[str, list[Row]] = {}
    for spec in fields(config):  # type: ignore[arg-type]
        here = f"{path}.{spec.name}" if path else spec.name
        value = getattr(config, spec.name)
        if is_dataclass(value):
            groups |= field_groups(value, here)  # type: ignore[arg-type]
        else:
            groups.setdefault(GROUPS.get(path.rpartition(".")[2], "Settings"), []).append((here, config, spec))
    return groups


def field_grid(rows: list[Row], draft: Draft, errors: Mapping[str, str]) -> None:
    width = 3
    for start in range(0, len(rows), width):
        for column, row in zip(st.columns(width), rows[start : start + width], strict=False):
            with column:
                field_widget(row, draft, errors.get(row[0], ""))


def field_widget(row: Row, draft: Draft, error: str) -> None:
    path, config, spec = row
    before, name = as_text(getattr(config, spec.name)), f"form {draft.kind} {path}"
    text = draft.changes.get(path, before)
    label = LABELS.get(f"{draft.kind} {path}") or LABELS.get(spec.name) or spec.name.replace("_", " ").capitalize()
    take = partial(take_value, draft, path, before)
    hint, choices, help_ = typing.get_type_hints(type(config))[spec.name], spec.metadata["choices"], spec.metadata["help"]
    if choices and text in map(str, choices):
        st.selectbox(label, list(map(str, choices)), format_func=lambda choice: choice or "none", help=help_, **state.url_widget(name, text, take))
    elif hint is int and _whole(text):
        st.number_input(label, step=1, help=help_, **state.url_widget(name, int(text), take))
    else:
        st.text_input(label, placeholder=PLACEHOLDERS.get(spec.name), help=help_, **state.url_widget(name, text, take))
    if error:
        st.badge(f"{label}: {error}"[:160], icon=":material/error:", color="red")


def _whole(text: str) -> bool:
    return text.lstrip("-").isdigit()

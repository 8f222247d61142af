"""The form that starts an alignment, made from AlignConfig: the preset, what most people set, everything else behind a switch, the equal command.

Its draft is one of workbench.frame.forms, whose start is always a config: a preset's, or that of an earlier alignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import streamlit as st

from core.align.filtering import NONE, RANDOM, SPARSERM
from core.align.presets import ALIGN_PRESETS, DEMO, TINY
from core.by_name import load
from core.config import AlignConfig, Config
from core.errors import ConfigError
from core.jobs.kinds import KINDS
from core.runs.progress import duration, size
from core.text_safety import visible
from workbench.align import values as align
from workbench.frame import forms, models, run_panel, state
from workbench.frame.estimate_view import show_estimate
from workbench.frame.forms import Draft, Filled, Row
from workbench.frame.layout import label_text

ORDER = (DEMO, TINY, *(name for name in ALIGN_PRESETS if name not in (DEMO, TINY)))
PRESET_SENTENCES = {
    DEMO: "SmolLM2-135M in minutes on two cores: enough to see every part work, too little to judge the method by.",
    TINY: "A random toy model, made here: under a minute, no download, no sense.",
    "smollm2-135m": "SmolLM2-135M over all prompts that the split left free: hours on two cores.",
}
PAPER = "The paper's cell, for a GPU."
MAIN = KINDS[align.KIND].first_fields
ARMS = (SPARSERM, NONE, RANDOM, "dense", "activations", "random-rows", "random-isotropic")


def draft_of() -> Draft:
    """The draft that the URL names, else a fresh one of the demo."""
    draft = forms.draft_of(align.KIND)
    return draft if draft.base is not None else replace(draft, base=ALIGN_PRESETS[DEMO].to_dict())


def fill(config: AlignConfig, parent: str | None = None, **ids: str | None) -> None:
    """A form that starts from this config, for callbacks."""
    forms.fill(align.KIND, config, parent, **ids)


# --- drawing ---------------------------------------------------------------------------------------------------------


def form() -> Filled:
    """Draws the form and returns what it holds."""
    draft = draft_of()
    _preset(draft)
    config, errors = draft.built()
    assert isinstance(config, AlignConfig)
    _first(draft, config, errors)
    wrong = sum(path not in MAIN for path in errors)
    if forms.all_settings_switch(f"All settings{f', {wrong} to mend' if wrong else ''}") or wrong:
        for title, rows in _groups(draft.start(), with_fit=not config.model).items():
            st.markdown(f"###### {title}")
            forms.field_grid(rows, draft, errors)
    return Filled(draft=draft, config=config, errors=errors)


def _preset(draft: Draft) -> None:
    name = draft.start_preset()
    # A click on the chosen preset goes back to it.
    widget = state.url_widget("align preset", name or None, lambda chosen: fill(ALIGN_PRESETS[chosen or name]))
    st.segmented_control("Start from", ORDER, help="Changes below are laid over this preset.", **widget)
    if name:
        preset = ALIGN_PRESETS[name]
        prompts = f"{preset.prompts_limit:,} prompts" if preset.prompts_limit else "All free prompts"
        st.caption(f"{prompts}, {preset.rounds} rounds. {PRESET_SENTENCES.get(name, PAPER)}")
    elif draft.parent:
        st.caption(f"Made from {label_text(align.short(draft.parent))}. Choose a preset to start anew.")


def _first(draft: Draft, config: AlignConfig, errors: Mapping[str, str]) -> None:
    """The reward model, the arm, and what else most people set."""
    columns = st.columns(3)
    with columns[0]:
        _model(draft, config)
    with columns[1]:
        _arm(draft, config, errors.get("arm", ""))
    rows = [(path, *forms.field_at(draft.start(), path)) for path in MAIN if path != "arm"]
    with columns[2]:
        forms.field_widget(rows[0], draft, errors.get(rows[0][0], ""))
    forms.field_grid(rows[1:], draft, errors)


def _model(draft: Draft, config: AlignConfig) -> None:
    known = {str(model.path): model.title for model in models.models()}
    options = ["", *known, *([config.model] if config.model and config.model not in known else [])]
    widget = state.url_widget("align reward model", config.model, lambda chosen: _take(draft, "model", chosen))
    st.selectbox(
        "Reward model",
        options,
        format_func=lambda path: visible(known.get(path, path), 80) or "The preset's: found, else fitted first",
        help="Measures every round and, in the arm sparserm, filters. Policy and reward model share the language model.",
        **widget,
    )


def _arm(draft: Draft, config: AlignConfig, error: str) -> None:
    options = [*ARMS, *([config.arm] if config.arm not in ARMS else [])]
    widget = state.url_widget("align arm", config.arm, lambda chosen: _take(draft, "arm", chosen or SPARSERM))
    help_ = "Which pairs DPO learns from. `none` keeps all, `random` drops as many as SparseRM would. A reward model's folder can be typed, too."
    st.selectbox("Arm", options, format_func=lambda arm: visible(align.arm_words(arm), 80), help=help_, accept_new_options=True, **widget)
    if error:
        st.badge(f"Arm: {label_text(error, 120)}", icon=":material/error:", color="red")


def _take(draft: Draft, path: str, value: str) -> None:
    forms.take_value(draft, path, str(getattr(draft.start(), path)), value)


def _groups(start: Config, *, with_fit: bool) -> dict[str, list[Row]]:
    """The fields that do not stand above, under their titles; those of the reward model that is fitted come last."""
    groups = {title: [row for row in rows if row[0] not in (*MAIN, "model")] for title, rows in forms.field_groups(start).items()}
    of_fit = {title: rows for title, rows in groups.items() if rows and rows[0][0].startswith("fit.")}
    of_alignment = {title: rows for title, rows in groups.items() if rows and title not in of_fit}
    return of_alignment | ({f"Reward model: {title.lower()}": rows for title, rows in of_fit.items()} if with_fit else {})


# --- starting --------------------------------------------------------------------------------------------------------


def launcher(*, first: bool, shows: str = "align_open", asked: tuple[str, ...] = ("align_new", "align_round", "align_show")) -> None:
    """The form, the equal command, the estimate and the button. `first`: there is nothing to close it for. `shows` is the id in the URL under which
    the page shows what was started; the ids in `asked` are forgotten with the form.
    """
    filled = form()
    st.code(filled.command, language="bash", wrap_lines=True)
    problem = _impossible(filled.config)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Start", type="primary", icon=":material/play_arrow:", key="start alignment", disabled=bool(filled.errors or problem),
            on_click=_start, args=(filled.config, filled.draft.parent, shows, asked), help="Mend what is marked first." if filled.errors else None,
        )  # fmt: skip
        if problem:
            st.text(visible(problem, 300))
        elif not filled.errors:
            show_estimate(align.KIND, filled.config, filled.command, _estimate)
            forms.download_config(align.KIND, filled.config)
        if not first:
            st.space("stretch")
            st.button("Close", type="tertiary", key="close form", on_click=state.clear, args=(*asked, forms.DRAFT, forms.ALL))


def _impossible(config: Config) -> str:
    """Which settings exclude one another, in the words of the run's own check; empty where none do."""
    try:
        load("core.jobs.align:checked")(config)
    except ConfigError as error:
        return "; ".join(part for part in (error.problem, error.remedy) if part)
    return ""


def _start(config: Config, parent: str | None, shows: str, asked: tuple[str, ...]) -> None:
    run_id = run_panel.start(align.KIND, config, parent if parent and run_panel.find_id(parent) else None)
    if run_id:
        state.choose(**dict.fromkeys((*asked, forms.DRAFT, forms.ALL)), **{shows: run_id})


def _estimate(known: Mapping[str, Any], free: str) -> str:
    took, disk, memory = duration(known["seconds"]), size(known["disk"]), size(known["memory"])
    return f"Takes about {took}, {disk} on disk and {memory} of memory; {free} free."

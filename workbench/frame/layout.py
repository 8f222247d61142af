"""What every page has: its head, the chips of what is chosen, and the three states in which it has nothing to show.

    model = layout.need_model()     the chosen reward model, else the newest; without any, the page offers the demo and ends
    layout.empty("No pages yet.", "What to do next, in a sentence.")     an empty state; draw the button below it
    layout.failed(error)            problem, expected, found, remedy; app.py calls it for a SparseRMError that a page raises

A text of data or models must never go into a label or into Markdown: st.text, st.code, a select box and the cells of a
table show it as it is. Where a label must contain one, `label_text` removes all signs with a meaning in Markdown.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.config import Config
from core.errors import SparseRMError
from core.jobs.follow_up import models_beside
from core.text_safety import visible
from workbench.frame import left_out, models, run_panel, state
from workbench.frame.first_open import first_open
from workbench.frame.models import OWN, FittedModel
from workbench.frame.page_list import PageSpec, pages
from workbench.frame.pair_filter import chosen_pairs


def label_text(text: object, longest: int = 60) -> str:
    """A text from data or models for a label: letters, digits and a few signs without a meaning in Markdown."""
    plain = " ".join(re.sub(r"[^\w ,.()%+-]|_", " ", visible(text)).split())
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def settle_model() -> None:
    """Settles the reward model of this session: the URL's, else the one it showed last, else the newest that a person asked for."""
    known = [model.id for model in models.models()]
    if known:
        state.settle("model", known, known[0] if state.get("model") else _newest_asked(known))


def _newest_asked(known: list[str]) -> str:
    """The newest reward model, unless it stands beside another one by itself, as a control does."""
    beside = {folder.name[: models.ID_LENGTH] for folder in models_beside()}
    return next((model for model in known if model not in beside), known[0])


def menu(root: st.Page | None) -> None:
    """The sidebar's links to all pages. Each takes the choices along, which Streamlit's own menu would drop.

    `root` is the page at the root of the address if it is open now: its link is marked then.
    """
    with st.container(key="menu", gap="xxsmall"):
        section = ""
        for spec in pages():
            if spec.section != section:
                section = spec.section
                st.caption(section)
            if root is not None and spec is pages()[0]:
                st.page_link(root, query_params=state.params())
            else:
                state.link(spec.title, spec.name)


def head(spec: PageSpec) -> DeltaGenerator:
    """Title, question and chips. Returns the place for `link_to_view`, which is called after the page has been drawn."""
    title, chosen = st.columns([2, 3], vertical_alignment="center", gap="small")
    with title:
        st.markdown(f"### {spec.title}")
        st.caption(spec.question)
    with chosen, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="bottom", gap="small", key="chips"):
        return _chips()


def _chips() -> DeltaGenerator:
    known = models.models()
    model = models.find(state.get("model"))
    chips = {
        "pair": _pair_words(model),
        "latent": f"Latent {label_text(state.get('latent'), 12)}",
        "filter": _filter_words(),
    }
    for name, words in chips.items():
        if state.get(name):
            st.button(words, key=f"chip {name}", icon=":material/close:", help=f"Clear this {name}", on_click=state.clear, args=(name,))
    if known:
        with st.container(width=370):
            _pick_model(known, model)
    if not known and not state.params():
        return st.empty()
    with st.popover("", icon=":material/link:", help="Link to this view"):
        st.caption("This link opens the same view in any browser on this machine.")
        return st.empty()


def link_to_view(slot: DeltaGenerator) -> None:
    """Writes the link of this view into the place that `head` returned, with the defaults that the page shows."""
    view = state.whole_view()
    if view:
        slot.code(f"{(st.context.url or '').partition('?')[0]}?{urlencode(view)}", language=None, wrap_lines=True)


def _pick_model(known: list[FittedModel], model: FittedModel | None) -> None:
    """A select box of the reward models. A change clears the choices that don't belong to the new model."""
    titles = {model.id: model.title for model in known}

    def take(picked: str) -> None:
        swapped = {"compare_with": model.id} if model and picked == state.get("compare_with") else {}
        state.choose(model=picked, **swapped)

    widget = state.url_widget("pick model", model.id if model else None, take)
    show: Any = {"format_func": lambda name: titles.get(name, name), "label_visibility": "collapsed"}
    st.selectbox("Reward model", list(titles), placeholder="Choose a reward model", **show, **widget)


def _pair_words(model: FittedModel | None) -> str:
    """The pair's number, since its id is a text from the data."""
    if state.get("pair").startswith(OWN):
        return "Your own texts"
    try:
        row = model.pair_number(state.get("pair")) if model else None
    except SparseRMError:
        row = None
    return "Pair not of this model" if row is None else f"Pair {row + 1:,}"


def _filter_words() -> str:
    chosen = chosen_pairs()
    return "Unknown filter" if chosen is None else f"{len(chosen):,} pairs, {label_text(chosen.source)}"


def need_model() -> FittedModel:
    """The chosen reward model, else the newest. Ends the page if the cache has none, or lacks the one that the URL
    names.
    """
    wanted, known = state.get("model"), models.models()
    model = next((model for model in known if model.id == wanted), None)
    if model is None and known and wanted:
        empty("This link names a reward model that is not in this cache.", "It may have been removed, or made on another machine.")
        st.button("Show the newest instead", type="primary", on_click=state.clear, args=("model",))
        st.stop()
    if not known:
        first_open()
        st.markdown("##### What the pages answer, once there is a reward model")
        cards("overview")
        st.stop()
    model = model or known[0]
    show_left_out(model)
    return model


def show_left_out(model: FittedModel) -> None:
    """Shows what the model's figures leave out, if they leave out anything."""
    headline = left_out.headline(model)
    if headline:
        with st.expander(headline, icon=":material/filter_alt:"):
            for line in left_out.lines(model):
                st.text(visible(line, 400))


def cards(*without: str) -> None:
    """The other pages as links, with the question that each answers."""
    shown = [spec for spec in pages() if spec.name not in without]
    for start in range(0, len(shown), 3):
        for column, spec in zip(st.columns(3), shown[start : start + 3], strict=False):
            with column, st.container(border=True, height="stretch", gap="xxsmall"):
                state.link(spec.title, spec.name)
                st.caption(spec.question)


def empty(title: str, next_step: str = "") -> None:
    """An empty state: what is missing, and what to do. Both are Markdown, so never texts of data or models."""
    with st.container(border=True, key=f"empty {title}"):
        st.markdown(f"#### {title}")
        if next_step:
            st.markdown(next_step)


def absent(kind: str, config: Config, title: str, coming: str) -> None:
    """The empty state of what a run makes: `title`, or `coming` while such a run is queued or works. Draw the way to it below
    (run_panel.start_button_or_progress).
    """
    if run_panel.being_made(kind, config):
        empty(coming, "This page fills by itself as soon as that is done. The other pages can be used meanwhile.")
    else:
        empty(title)


def failed(error: SparseRMError | Any) -> None:
    """An error with its remedy. `error` is a SparseRMError, or the mapping in a run's status."""
    parts = error if isinstance(error, dict) else {name: getattr(error, name, "") for name in ("problem", "expected", "found", "remedy")}
    with st.container(border=True, key=f"failed {hash(str(parts.get('problem')))}"):
        st.error("This did not work.", icon=":material/error:")
        st.text(visible(parts.get("problem", "")))
        for name, words in (("expected", "Expected"), ("found", "Found"), ("remedy", "What to do")):
            if parts.get(name):
                st.caption(words)
                st.text(visible(parts[name]))

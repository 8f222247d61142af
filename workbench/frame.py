"""What every page has: its head, the chips of what is chosen, and the three states in which it has nothing of its own to show.

    model = frame.need_model()      the chosen reward model, else the newest. Where there is none, says so, offers to build the demo (or shows
                                    how far it is) and ends the page.
    frame.empty("No pages yet.", "What to do next, in a sentence.")     a designed empty state; draw the button below it
    frame.failed(error)             problem, expected, found, what to do. app.py does this for every SparseRMError that a page raises.

Texts of data or models never go into a label or Markdown: st.text, st.code, a select box and a table's cells show them as they are. Where a label
must hold one, `label_text` takes out all that Markdown knows.
"""

from __future__ import annotations

import re
from typing import Any

import streamlit as st

from core.errors import SparseRMError
from workbench import models, run_panel, state
from workbench.models import FittedModel
from workbench.places import Place


def label_text(text: object, longest: int = 60) -> str:
    """A text from data or models, fit for a label: letters, digits and a few signs that mean nothing in Markdown."""
    plain = " ".join(re.sub(r"[^\w ,.()%+-]|_", " ", str(text)).split())
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def head(place: Place) -> None:
    """Title, question, and what is chosen."""
    title, chosen = st.columns([3, 4], vertical_alignment="bottom", gap="medium")
    with title:
        st.markdown(f"### {place.title}")
        st.caption(place.question)
    with chosen, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="bottom", gap="small", key="chips"):
        _chips()


def _chips() -> None:
    known = models.models()
    model = models.find(state.get("model")) or next(iter(known), None)
    chips = {
        "pair": f"Pair {_pair_number(model)}",
        "latent": f"Latent {label_text(state.get('latent'), 12)}",
        "filter": _filter_words(),
    }
    for name, words in chips.items():
        if state.get(name):
            st.button(words, key=f"chip {name}", icon=":material/close:", help=f"Clear this {name}", on_click=state.clear, args=(name,))
    if known:
        with st.container(width=330):
            titles = {model.id: model.title for model in known}
            state.pick("Reward model", list(titles), "model", show=lambda name: titles.get(name, name), label_visibility="collapsed")
    if known or state.params():
        with st.popover("", icon=":material/link:", help="Link to this view"):
            st.caption("This link opens the same view in any browser on this machine.")
            st.code(_url(), language=None, wrap_lines=True)


def _pair_number(model: FittedModel | None) -> str:
    """The pair's place, since its id is a text from the data."""
    try:
        row = model.pair_row(state.get("pair")) if model else None
    except SparseRMError:
        row = None
    return "not of this model" if row is None else f"{row + 1:,}"


def _filter_words() -> str:
    chosen = state.chosen_pairs()
    return "Unknown filter" if chosen is None else f"{len(chosen):,} pairs, {label_text(chosen.said)}"


def _url() -> str:
    from urllib.parse import urlencode

    base = (st.context.url or "").partition("?")[0]
    asked = urlencode(state.params())
    return f"{base}?{asked}" if asked else base


def need_model(name: str = "model") -> FittedModel:
    """The reward model chosen under this name, else the newest; ends the page where there is none, or where a link names one that is not here."""
    wanted, known = state.get(name), models.models()
    found = next((model for model in known if model.id == wanted), None)
    if found is None and known and wanted:
        empty("This link names a reward model that is not in this cache.", "It may have been removed, or made on another machine.")
        st.button("Show the newest instead", type="primary", on_click=state.clear, args=(name,))
        st.stop()
    if not known:
        run_panel.demo()
        st.stop()
    return found or known[0]


def empty(title: str, next_step: str = "") -> None:
    """An empty state: what is missing, and what to do. Both are our words."""
    with st.container(border=True, key=f"empty {title}"):
        st.markdown(f"#### {title}")
        if next_step:
            st.markdown(next_step)


def failed(error: SparseRMError | Any) -> None:
    """An error with its way out. `error` is a SparseRMError, or the mapping that a run's status holds."""
    said = error if isinstance(error, dict) else {name: getattr(error, name, "") for name in ("problem", "expected", "found", "remedy")}
    with st.container(border=True, key=f"failed {hash(str(said.get('problem')))}"):
        st.error("This did not work.", icon=":material/error:")
        st.text(said.get("problem", ""))
        for name, words in (("expected", "Expected"), ("found", "Found"), ("remedy", "What to do")):
            if said.get(name):
                st.caption(words)
                st.text(said[name])

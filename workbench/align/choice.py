"""Which alignment and which round of it are shown: chosen alike on the pages Align and Shift, and kept in the URL."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.align.records import RoundRecord
from core.cli.equal_command import equal_command
from core.text_safety import visible
from workbench.align import form as align_form
from workbench.align import values as align
from workbench.align.values import Entry
from workbench.frame import state


def choose(known: list[Entry], *, new: bool = True) -> Entry | None:
    """A select box of the alignments, and with `new` the buttons that open the form. Returns the chosen alignment.

    None where the URL names an alignment that is not in the cache.
    """
    titles = {entry.id: entry.title for entry in known}
    chosen = align.find(state.settle("align_open", list(titles), known[0].id), known)
    state.redraw_if_chosen()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        with st.container(width=560):
            widget = state.url_widget("pick alignment", chosen.id if chosen else None, lambda picked: state.choose(align_open=picked))
            show: Any = {"format_func": lambda name: visible(titles.get(name, name), 120), "label_visibility": "collapsed"}
            st.selectbox("Alignment", list(titles), placeholder="Choose an alignment", **show, **widget)
        if new:
            st.button("New alignment", icon=":material/add:", key="new alignment", on_click=_open_form, args=(None,))
            if chosen is not None:
                st.button("Change and rerun", icon=":material/tune:", type="tertiary", key="change alignment", on_click=_open_form, args=(chosen,))
                with st.popover("As a command", type="tertiary", icon=":material/terminal:"):
                    st.code(equal_command(align.KIND, chosen.config), language="bash", wrap_lines=True)
    return chosen


def _open_form(entry: Entry | None) -> None:
    if entry is None:
        state.choose(align_new="1", runs_draft=None)
    else:
        align_form.fill(entry.config, parent=entry.run.id if entry.run else entry.id, align_new="1")


def choose_round(rounds: list[RoundRecord], name: str = "align_round") -> RoundRecord:
    """A row of these rounds; the newest is chosen where the URL names none of them. Returns the chosen round."""
    titles = {str(round.round): f"Round {round.round}" if round.round else "Base model" for round in rounds}
    chosen = state.segments("Round", titles, name, default=str(rounds[-1].round))
    state.shows(**{name: chosen})
    return next(round for round in rounds if str(round.round) == chosen)

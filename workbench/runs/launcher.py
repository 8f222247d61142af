"""The form of the Runs page: it starts a fit, a sweep, the training of an SAE, or an alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.runs.progress import duration, size
from core.runs.registry import all_runs
from workbench.align import form as align_form
from workbench.align import values as align
from workbench.frame import forms, run_panel, run_words, state
from workbench.frame.estimate_view import show_estimate
from workbench.frame.layout import label_text

OPEN, OTHER, KIND, NEW = "runs_open", "runs_other", "runs_kind", "runs_new"
STARTED_HERE = ("fit", "sweep", "sae-train", align.KIND)  # what has a form; the others are started on the pages that need them


def launcher() -> None:
    """The button that opens the form; then the form, the equal command, the estimate, and the button that starts."""
    run_panel.say_complaint()
    if not state.get(NEW) and all_runs():
        st.button("Start a run", type="primary", icon=":material/add:", on_click=lambda: state.choose(**{NEW: "1"}))
        return
    with st.container(border=True, key="launcher"):
        _form()


def _form() -> None:
    kind = state.get(KIND) if state.get(KIND) in STARTED_HERE else STARTED_HERE[0]
    widget = state.url_widget("runs kind", kind, lambda chosen: state.choose(**{KIND: chosen, forms.DRAFT: None}))
    st.segmented_control("Kind of run", STARTED_HERE, required=True, format_func=run_words.kind_words, label_visibility="collapsed", **widget)
    if kind == align.KIND:  # the Align page's own form
        align_form.launcher(first=not all_runs(), shows=OPEN, asked=(OTHER, NEW, KIND))
        return
    filled = forms.form(kind)
    if filled.draft.parent:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"Made from run {label_text(filled.draft.parent.rpartition('_')[2])}.")
            st.button("Start from a preset instead", type="tertiary", on_click=state.clear, args=(forms.DRAFT,))
    forms.prepare_box(filled)
    st.code(filled.command, language="bash", wrap_lines=True)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Start", type="primary", icon=":material/play_arrow:", key="start run", disabled=bool(filled.errors),
            on_click=_start, args=(kind, filled), help="Mend what is marked first." if filled.errors else None,
        )  # fmt: skip
        if not filled.errors:
            show_estimate(kind, filled.config, filled.command, _estimated)
            forms.download_config(kind, filled.config)
        if all_runs():
            st.space("stretch")
            st.button("Close", type="tertiary", on_click=state.clear, args=(NEW, KIND, forms.DRAFT, forms.ALL))


def _start(kind: str, filled: forms.Filled) -> None:
    run_id = run_panel.start(kind, filled.config, filled.draft.parent, prepare_pages=filled.prepare_pages)
    if run_id:
        state.choose(**{OPEN: run_id, OTHER: None, NEW: None, forms.DRAFT: None, KIND: None})


def _estimated(known: Mapping[str, Any], free: str) -> str:
    if not known["seconds"] and not known["disk"]:
        return f"The hidden states are in the cache: only heads are trained. {free} free."
    took, disk, memory = duration(known["seconds"]), size(known["disk"]), size(known["memory"])
    return f"Reading takes about {took}, {disk} on disk and {memory} of memory; {free} free. Training heads comes on top."

"""What Overview shows before there is a reward model: the buttons that build the demo, and how far it is."""

from __future__ import annotations

import streamlit as st

from core.backbone.presets import PRESETS
from core.cli.equal_command import equal_command
from core.runs.registry import all_runs
from workbench.frame import forms, run_panel, state

DEMO, TOY = "smollm2-135m", "tiny"
PREPARES = "overview_prepares"  # in the URL: whether the pages are prepared after the fit


def first_open() -> None:
    """The first open: a button builds the demo; then how far it is, or why it failed."""
    run_panel.say_complaint()
    fits = [run for run in all_runs() if run.kind == "fit"]
    if fits and fits[-1].live():
        st.markdown("#### Your first reward model is being built")
        st.markdown("Stay or come back later: this page shows it as soon as it is ready.")
        run_panel.show(fits[-1])
        return
    if fits:
        run_panel.show(fits[-1])
    with st.container(border=True, key="first open"):
        st.markdown("#### See why a response scored low")
        st.markdown(
            "A reward model from a sparse autoencoder says which features of a text move its score. Build the demo to look at one: "
            "our own preference pairs about truthfulness, safety and helpfulness, read by a small language model on this machine."
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            demo = PRESETS[DEMO]
            st.button("Build the demo", type="primary", icon=":material/play_arrow:", on_click=_begin, args=(DEMO,))
            st.checkbox(forms.PREPARE_LABEL, help=forms.prepare_help(demo), **state.url_widget("first open prepare", _prepares(), _take_prepares))
            st.button(
                "Build a toy instead",
                key="toy",
                on_click=_begin,
                args=(TOY,),
                help="A model of two layers with random weights, made on this machine in seconds and without a download. "
                "Its scores mean nothing; it shows what the pages look like.",
            )
            with st.popover("As a command", type="tertiary", icon=":material/terminal:"):
                st.code(equal_command("fit", demo, DEMO, prepare_pages=_prepares()), language="bash")
        st.caption(
            "The demo takes some minutes on two cores. Its language model, SmolLM2-135M, comes once from PyPI (110 MB); "
            "nothing you type leaves this machine."
        )
    with st.container(horizontal=True):
        state.link("Bring your own pairs", "preferences")
        state.link("All settings", "runs")


def _begin(preset: str) -> None:
    run_panel.start("fit", PRESETS[preset], prepare_pages=_prepares())


def _prepares() -> bool:
    return state.get(PREPARES) != "no"


def _take_prepares(on: bool) -> None:
    state.choose(**{PREPARES: None if on else "no"})

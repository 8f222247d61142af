"""The process of the live model on a page: a button that starts it, its progress while it loads, and the error with a
button to try again where it failed.
"""

from __future__ import annotations

import streamlit as st

from workbench.frame import layout
from workbench.frame.model_client import Live, live_model
from workbench.frame.models import FittedModel

EVERY = 0.5  # seconds between two looks at a process that is starting


def ready(model: FittedModel, what: str, *, key: str, wanted: bool = False) -> bool:
    """Whether the model's process is ready. Where it is not, draws `what` it is needed for with the button that starts it,
    or (`wanted`: the person has asked for it already) starts it and draws its progress. The page runs again by itself
    when it is ready.
    """
    live = live_model(str(model.path), model.root)
    state = live.ensure() if wanted else live.state()
    if state.ready:
        return True
    if state.failed:
        layout.failed(state.error or {"problem": "the model's process failed"})
        st.button("Try again", key=f"{key} again", icon=":material/refresh:", on_click=_start, args=(live, True))
    elif state.name == "off":
        st.caption(what)
        st.button("Start the live model", key=f"{key} start", icon=":material/bolt:", type="primary", on_click=_start, args=(live, False))
    else:
        _starting(live)
    return False


def _start(live: Live, again: bool) -> None:
    live.ensure(again=again)


@st.fragment(run_every=EVERY)
def _starting(live: Live) -> None:
    state = live.ensure()
    if state.ready or state.failed:
        st.rerun()
    left = "" if state.left is None else f", about {state.left:.0f} s more"
    st.progress(min(1.0, max(0.02, state.fraction)), f"{layout.label_text(state.text or 'Starting the model')}{left}")

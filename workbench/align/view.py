"""The Align page: choose an alignment or start one, watch it, and read its rounds, dropped pairs, evaluation and
answers.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from workbench.align import audit as align_audit
from workbench.align import compare as align_compare
from workbench.align import drops as align_drops
from workbench.align import evaluation as align_evaluation
from workbench.align import form as align_form
from workbench.align import live as align_live
from workbench.align import rounds as align_rounds
from workbench.align import samples as align_samples
from workbench.align import values as align
from workbench.align.choice import choose
from workbench.align.values import OpenAlignment
from workbench.frame import run_panel, state
from workbench.frame.layout import empty

ABOUT = (
    "Round after round the policy answers prompts twice, the reward model drops the pairs whose intended winner scores lower, and DPO learns from "
    "the others. Every drop is explained by latents, and every round is measured on what it never saw."
)


SECTIONS: dict[str, tuple[str, Callable[[OpenAlignment], None]]] = {
    "rounds": ("Rounds", align_rounds.draw),
    "drops": ("Dropped pairs", align_drops.draw),
    "audit": ("Audit", align_audit.draw),
    "evaluation": ("Evaluation", align_evaluation.draw),
    "samples": ("Before and after", align_samples.draw),
    "compare": ("Compare arms", align_compare.draw),
}


def draw() -> None:
    """The whole page."""
    known = align.entries()
    run_panel.say_complaint()
    if not known:
        _first()
        return
    entry = choose(known)
    if state.get("align_new"):
        with st.container(border=True, key="launcher"):
            align_form.launcher(first=False)
    if entry is None:
        empty("This link names an alignment that is not in this cache.", "It may have been removed, or made on another machine.")
        st.button("Show the newest instead", type="primary", on_click=state.clear, args=("align_open",))
        return
    align_live.show(entry)
    _read(OpenAlignment(entry=entry, known=known, rounds=entry.rounds))


def _first() -> None:
    with st.container(border=True, key="first alignment"):
        st.markdown("#### Align a policy, and see why each pair was dropped")
        st.markdown(ABOUT)
        align_form.launcher(first=True)


def _read(opened: OpenAlignment) -> None:
    """The headline of an alignment and the chosen section."""
    if not opened.rounds:
        if not opened.entry.live:
            st.caption("No step of this alignment is done yet.")
        else:
            st.caption("The first figures are shown here when the base model has been evaluated, which needs a reward model first.")
        return
    align_evaluation.headline(opened)
    titles = {name: title for name, (title, _) in SECTIONS.items()}
    SECTIONS[state.segments("Show", titles, "align_show")][1](opened)

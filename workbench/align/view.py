"""The Align page: choose an alignment or start one, watch it, and read its rounds, drops, evaluation and samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from core.align.records import FILTER, RoundRecord
from workbench.align import audit as align_audit
from workbench.align import compare as align_compare
from workbench.align import drops as align_drops
from workbench.align import evaluation as align_evaluation
from workbench.align import form as align_form
from workbench.align import live as align_live
from workbench.align import rounds as align_rounds
from workbench.align import values as align
from workbench.align.choice import choose
from workbench.align.values import Entry
from workbench.frame import run_panel, state
from workbench.frame.layout import empty

ABOUT = (
    "Round after round the policy answers prompts twice, the reward model drops the pairs whose intended winner scores lower, and DPO learns from "
    "the others. Every drop is explained by latents, and every round is measured on what it never saw."
)


@dataclass(frozen=True, kw_only=True)
class View:
    """What a section is drawn for: the alignment, the others in the cache, and the rounds that have begun."""

    entry: Entry
    known: list[Entry]
    rounds: list[RoundRecord]

    @property
    def filtered(self) -> list[RoundRecord]:
        """The rounds whose pairs were filtered."""
        return [one for one in self.rounds if FILTER in one.steps]


SECTIONS: dict[str, tuple[str, Callable[[View], None]]] = {
    "rounds": ("Rounds", align_rounds.draw),
    "drops": ("Dropped pairs", align_drops.draw),
    "audit": ("Audit", align_audit.draw),
    "evaluation": ("Evaluation", align_evaluation.draw),
    "samples": ("Before and after", align_evaluation.samples),
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
    _read(View(entry=entry, known=known, rounds=entry.rounds))


def _first() -> None:
    with st.container(border=True, key="first alignment"):
        st.markdown("#### Align a policy, and see why each pair was dropped")
        st.markdown(ABOUT)
        align_form.launcher(first=True)


def _read(view: View) -> None:
    """What there is to be read of an alignment."""
    if not view.rounds:
        if not view.entry.live:
            st.caption("No step of this alignment stands yet.")
        else:
            st.caption("The first figures stand here as soon as the base model has been evaluated; that needs a reward model first.")
        return
    align_evaluation.headline(view)
    names = {name: said for name, (said, _) in SECTIONS.items()}
    SECTIONS[state.segments("Show", names, "align_show")][1](view)

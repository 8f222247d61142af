"""The drop audit: a person judges a sample of the dropped pairs without seeing which answer was to win, and the running agreement with the filter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.align import audit
from core.align.audit import Agreement, Case, Judgement
from core.cli import tables as console
from core.errors import SparseRMError
from core.text_safety import visible
from workbench.align import values as align
from workbench.align.choice import choose_round
from workbench.align.drops import against, answers, labels_of, sentence, texts_of
from workbench.align.values import Generated
from workbench.frame import state
from workbench.frame.chart_base import percent
from workbench.frame.downloads import download_rows

if TYPE_CHECKING:
    from workbench.align.view import View

SAMPLE = 20  # pairs of a round that are judged
BETTER = {"first": "First is better", "second": "Second is better", audit.NEITHER: "Neither is better", audit.UNSURE: "Unsure"}
HELP = "Share of the judged pairs whose intended winner is not the better answer, so that dropping them was right; 95 % Wilson interval."
VERDICTS = {
    audit.OTHER: "You agree with the filter: the other answer is better.",
    audit.NEITHER: "You agree with the filter: with no better answer there is nothing to learn.",
    audit.INTENDED: "You disagree with the filter: the answer that it dropped is better.",
    audit.UNSURE: "Unsure: kept apart, and not counted.",
}
LINES = {audit.OTHER: "agree", audit.NEITHER: "agree", audit.INTENDED: "disagree", audit.UNSURE: "unsure"}


def draw(view: View) -> None:
    record = view.entry.record
    if not view.filtered or record is None:
        st.caption("There is nothing to judge before the first filter.")
        return
    round = choose_round(view.filtered)
    pairs = {one.candidate.candidate_id: one for one in align.pairs_of(round)}
    decisions = [one.decision for one in pairs.values() if one.decision is not None]
    cases = audit.cases(round.round, (one.candidate for one in pairs.values()), decisions, n=SAMPLE, seed=view.entry.config.seed)
    found = audit.judgements(record.folder)
    _agreement(found, round.round)
    if not cases:
        st.caption("No pair of this round was dropped by its margin, so there is no decision of a reward model to judge.")
        return
    said = {one.candidate_id: one for one in found if one.round == round.round}
    case = _chosen(cases, said)
    if case is None:
        st.markdown(f"**All {len(cases)} pairs of this sample are judged.**")
    else:
        _case(view, case, cases, said, pairs[case.candidate_id])
    _judged(view, found)


def _chosen(cases: Sequence[Case], said: dict[str, Judgement]) -> Case | None:
    """The pair that the link names, else the first that nobody judged."""
    wanted = state.get("align_case")
    return next((case for case in cases if case.candidate_id == wanted), None) or next(
        (case for case in cases if case.candidate_id not in said), None
    )


def _agreement(found: Sequence[Judgement], round: int) -> None:
    here = audit.agreement([one for one in found if one.round == round])
    everywhere = audit.agreement(found)
    with st.container(horizontal=True, gap="small", key="align agreement"):
        _figure(f"Agreement, round {round}", here)
        _figure("Agreement, all rounds", everywhere)


def _figure(label: str, one: Agreement) -> None:
    value = "–" if one.accuracy is None else percent(one.accuracy)
    beside = f"{percent(one.low)} to {percent(one.high)}, n = {one.n:,} judged" if one.n else "nothing judged yet"
    unsure = f", {one.unsure:,} unsure" if one.unsure else ""
    st.metric(label, value, beside + unsure, delta_color="off", delta_arrow="off", border=True, help=HELP)


def _case(view: View, case: Case, cases: Sequence[Case], said: dict[str, Judgement], pair: Generated) -> None:
    """One pair, its answers in a drawn order; what the filter saw is shown only once it has been judged."""
    judged = said.get(case.candidate_id)
    with st.container(border=True, key="audit case"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"###### Dropped pair {cases.index(case) + 1} of {len(cases)}: which answer is better?")
            st.space("stretch")
            st.caption(f"{sum(one.candidate_id in said for one in cases)} of {len(cases)} judged", width="content")
        texts_of(case.prompt)
        sides = [("First", case.first), ("Second", case.second)]
        if judged is None:
            answers([(name, "gray", text, None) for name, text in sides])
        else:
            rewards = pair.rewards or (None, None)
            reward = dict(zip((case.first_is_intended, not case.first_is_intended), sides, strict=True))
            answers(
                [(f"{reward[True][0]}, intended winner", "blue", reward[True][1], rewards[0]),
                 (f"{reward[False][0]}, other answer", "orange", reward[False][1], rewards[1])],
            )  # fmt: skip
        _buttons(view, case, judged)
        if judged is not None:
            _reveal(view, case, cases, judged, pair, said)


def _buttons(view: View, case: Case, judged: Judgement | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        for better, words in BETTER.items():
            mine = judged is not None and case.verdict(better) == judged.verdict
            st.button(
                words, key=f"judge {better} {case.candidate_id}", type="primary" if mine else "secondary", on_click=_judge, args=(view, case, better)
            )
        st.caption("Shown in an order drawn by seed, so that you don't know which one was to win.", width="content")


def _judge(view: View, case: Case, better: str) -> None:
    """For a button: keeps the verdict, and stays with the pair, whose secret is out now."""
    record = view.entry.record
    assert record is not None
    try:
        audit.judge(record.folder, case, better)
    except SparseRMError as error:
        st.session_state["audit problem"] = error.problem
    state.choose(align_case=case.candidate_id)


def _reveal(view: View, case: Case, cases: Sequence[Case], judged: Judgement, pair: Generated, said: dict[str, Judgement]) -> None:
    problem = st.session_state.pop("audit problem", "")
    if problem:
        st.text(visible(problem))
    with st.container(horizontal=True, vertical_alignment="center"):
        agrees = LINES[judged.verdict]
        looks: Any = {"agree": ("check", "green"), "disagree": ("close", "red"), "unsure": ("question_mark", "gray")}[agrees]
        st.badge(agrees.capitalize(), icon=f":material/{looks[0]}:", color=looks[1])
        st.markdown(VERDICTS[judged.verdict])
        st.space("stretch")
        left = next((one for one in cases if one.candidate_id not in said), None)
        if left is not None:
            go: Any = {"on_click": state.choose, "kwargs": {"align_case": left.candidate_id}}
            st.button("Next pair", type="primary", icon=":material/arrow_forward:", key="next case", **go)
    model = align.judge_model(view.entry)
    labels = labels_of(model)
    st.text(visible(sentence(pair, labels)))
    against(pair, model, labels, key=f"audit {case.round}")


def _judged(view: View, found: Sequence[Judgement]) -> None:
    """Everything that was said, to be taken away."""
    if not found:
        return
    rows = [
        {
            "Round": one.round,
            "Pair": one.candidate_id,
            "With the filter": LINES[one.verdict],
            "Better": {"intended": "intended winner", "other": "other answer"}.get(one.verdict, one.verdict),
            "When": console.date(one.time_judged or time.time()),
        }
        for one in reversed(found)
    ]
    with st.expander(f"{len(rows):,} judgements"):
        st.dataframe(rows, hide_index=True, height=min(38 + 35 * len(rows), 260))
        with st.container(horizontal=True):
            download_rows(rows, name=view.entry.id, what="audit", key="audit files")

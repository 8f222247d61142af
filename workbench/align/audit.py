"""The section of the audit: a person judges a sample of dropped pairs without seeing which answer was to win, and the
page shows how often the person agrees with the filter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import streamlit as st

from core.align import audit
from core.align.audit import Agreement, Case, Judgement
from core.errors import SparseRMError
from core.runs.progress import date
from core.text_safety import visible
from workbench.align import values as align
from workbench.align.choice import choose_round
from workbench.align.pair_view import labels_of, opposing_latents, sentence, show_answers, show_prompt
from workbench.align.pairs import GeneratedPair, pairs_of
from workbench.align.values import OpenAlignment
from workbench.frame import state
from workbench.frame.chart_base import percent
from workbench.frame.downloads import download_rows

SAMPLE = 20  # pairs of a round that are judged
BETTER = {"first": "First is better", "second": "Second is better", audit.NEITHER: "Neither is better", audit.UNSURE: "Unsure"}
HELP = "Share of the judged pairs whose intended winner is not the better answer, so that dropping them was right; 95 % Wilson interval."
VERDICTS = {
    audit.OTHER: "You agree with the filter: the other answer is better.",
    audit.NEITHER: "You agree with the filter: with no better answer there is nothing to learn.",
    audit.INTENDED: "You disagree with the filter: the answer that it dropped is better.",
    audit.UNSURE: "Unsure: kept apart, and not counted.",
}
STANCES = {audit.OTHER: "agree", audit.NEITHER: "agree", audit.INTENDED: "disagree", audit.UNSURE: "unsure"}


def draw(opened: OpenAlignment) -> None:
    """The whole section."""
    record = opened.entry.record
    if not opened.filtered or record is None:
        st.caption("There is nothing to judge before the first filter.")
        return
    round = choose_round(opened.filtered)
    pairs = {pair.candidate.candidate_id: pair for pair in pairs_of(round)}
    decisions = [pair.decision for pair in pairs.values() if pair.decision is not None]
    cases = audit.cases(round.round, (pair.candidate for pair in pairs.values()), decisions, n=SAMPLE, seed=opened.entry.config.seed)
    judgements = audit.judgements(record.folder)
    _agreement(judgements, round.round)
    if not cases:
        st.caption("No pair of this round was dropped by its margin, so there is no decision of a reward model to judge.")
        return
    judged = {judgement.candidate_id: judgement for judgement in judgements if judgement.round == round.round}
    case = _chosen(cases, judged)
    if case is None:
        st.markdown(f"**All {len(cases)} pairs of this sample are judged.**")
    else:
        _case(opened, case, cases, judged, pairs[case.candidate_id])
    _list(opened, judgements)


def _chosen(cases: Sequence[Case], judged: dict[str, Judgement]) -> Case | None:
    """The case that the URL names, else the first that has not been judged."""
    wanted = state.get("align_case")
    named = next((case for case in cases if case.candidate_id == wanted), None)
    return named or _unjudged(cases, judged)


def _unjudged(cases: Sequence[Case], judged: dict[str, Judgement]) -> Case | None:
    return next((case for case in cases if case.candidate_id not in judged), None)


def _agreement(judgements: Sequence[Judgement], round: int) -> None:
    here = audit.agreement([judgement for judgement in judgements if judgement.round == round])
    everywhere = audit.agreement(judgements)
    with st.container(horizontal=True, gap="small", key="align agreement"):
        _figure(f"Agreement, round {round}", here)
        _figure("Agreement, all rounds", everywhere)


def _figure(label: str, agreement: Agreement) -> None:
    value = "–" if agreement.accuracy is None else percent(agreement.accuracy)
    interval = f"{percent(agreement.low)} to {percent(agreement.high)}, n = {agreement.n:,} judged"
    beside = interval if agreement.n else "nothing judged yet"
    unsure = f", {agreement.unsure:,} unsure" if agreement.unsure else ""
    st.metric(label, value, beside + unsure, delta_color="off", delta_arrow="off", border=True, help=HELP)


def _case(opened: OpenAlignment, case: Case, cases: Sequence[Case], judged: dict[str, Judgement], pair: GeneratedPair) -> None:
    """A pair with its answers in a random order. Rewards and reason are shown after the person has judged it."""
    judgement = judged.get(case.candidate_id)
    with st.container(border=True, key="audit case"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"###### Dropped pair {cases.index(case) + 1} of {len(cases)}: which answer is better?")
            st.space("stretch")
            st.caption(f"{sum(other.candidate_id in judged for other in cases)} of {len(cases)} judged", width="content")
        show_prompt(case.prompt)
        sides = [("First", case.first), ("Second", case.second)]
        if judgement is None:
            show_answers([(name, "gray", text, None) for name, text in sides])
        else:
            rewards = pair.rewards or (None, None)
            reward = dict(zip((case.first_is_intended, not case.first_is_intended), sides, strict=True))
            show_answers(
                [(f"{reward[True][0]}, intended winner", "blue", reward[True][1], rewards[0]),
                 (f"{reward[False][0]}, other answer", "orange", reward[False][1], rewards[1])],
            )  # fmt: skip
        _buttons(opened, case, judgement)
        if judgement is not None:
            _reveal(opened, case, cases, judged, pair)


def _buttons(opened: OpenAlignment, case: Case, judgement: Judgement | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        for better, words in BETTER.items():
            chosen = judgement is not None and case.verdict(better) == judgement.verdict
            click: Any = {"on_click": _judge, "args": (opened, case, better)}
            st.button(words, key=f"judge {better} {case.candidate_id}", type="primary" if chosen else "secondary", **click)
        st.caption("Shown in an order drawn by seed, so that you don't know which one was to win.", width="content")


def _judge(opened: OpenAlignment, case: Case, better: str) -> None:
    """A button's callback: saves the verdict and stays with the pair, whose rewards are shown then."""
    record = opened.entry.record
    assert record is not None
    try:
        audit.judge(record.folder, case, better)
    except SparseRMError as error:
        st.session_state["audit problem"] = error.problem
    state.choose(align_case=case.candidate_id)


def _reveal(opened: OpenAlignment, case: Case, cases: Sequence[Case], judged: dict[str, Judgement], pair: GeneratedPair) -> None:
    """After the judgement: agreement with the filter, the way to the next case, and the latents behind the drop."""
    verdict = judged[case.candidate_id].verdict
    problem = st.session_state.pop("audit problem", "")
    if problem:
        st.text(visible(problem))
    with st.container(horizontal=True, vertical_alignment="center"):
        stance = STANCES[verdict]
        looks: Any = {"agree": ("check", "green"), "disagree": ("close", "red"), "unsure": ("question_mark", "gray")}[stance]
        st.badge(stance.capitalize(), icon=f":material/{looks[0]}:", color=looks[1])
        st.markdown(VERDICTS[verdict])
        st.space("stretch")
        following = _unjudged(cases, judged)
        if following is not None:
            go: Any = {"on_click": state.choose, "kwargs": {"align_case": following.candidate_id}}
            st.button("Next pair", type="primary", icon=":material/arrow_forward:", key="next case", **go)
    model = align.judge_model(opened.entry)
    labels = labels_of(model)
    st.text(visible(sentence(pair, labels)))
    opposing_latents(pair, model, labels, key=f"audit {case.round}")


def _list(opened: OpenAlignment, judgements: Sequence[Judgement]) -> None:
    """All judgements of this alignment as a table and as files."""
    if not judgements:
        return
    rows = [
        {
            "Round": judgement.round,
            "Pair": judgement.candidate_id,
            "With the filter": STANCES[judgement.verdict],
            "Better": {"intended": "intended winner", "other": "other answer"}.get(judgement.verdict, judgement.verdict),
            "When": date(judgement.time_judged or time.time()),
        }
        for judgement in reversed(judgements)
    ]
    with st.expander(f"{len(rows):,} judgements"):
        st.dataframe(rows, hide_index=True, height=min(38 + 35 * len(rows), 260))
        with st.container(horizontal=True):
            download_rows(rows, name=opened.entry.id, what="audit", key="audit files")

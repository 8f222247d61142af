"""The section of rounds: how many pairs were generated and kept, their margins and rewards, and the training of a
round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from core.align.filtering import MARGIN, NONE
from core.align.records import RoundRecord
from core.statistics.estimates import Estimate
from workbench.align import live as align_live
from workbench.align.charts import margin_histogram, reward_histogram, round_bars, training_curve
from workbench.align.choice import choose_round
from workbench.align.pairs import REASON_WORDS, GeneratedPair, flow, mean_of, pairs_of, row_of, share_kept
from workbench.align.values import OpenAlignment
from workbench.frame.chart_base import interval, percent
from workbench.frame.downloads import download_rows, show_chart


def draw(opened: OpenAlignment) -> None:
    """The whole section."""
    begun = [round for round in opened.rounds if round.round and round.counts]
    if not begun:
        st.caption("The base model is evaluated first. Pairs of round 1 stand here as soon as they are written.")
        return
    show_chart(round_bars([_flow(round) for round in begun], REASON_WORDS), key=f"align rounds {opened.entry.id}", name=opened.entry.id)
    round = choose_round(begun)
    if round.finished or not opened.entry.live:  # the live panel above shows it otherwise
        align_live.strip(opened.entry, round)
    _counts(round)
    pairs = pairs_of(round)
    scored = [pair for pair in pairs if pair.margin is not None and pair.decision is not None]
    if scored:
        _distributions(opened, round, scored)
    elif not round.counts or "kept" not in round.counts:
        st.caption("Rewards and margins of this round come with its filter.")
    if round.dpo:
        _training(opened, round)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("All generated pairs of this round, with rewards and reasons", width="content")
        download_rows([row_of(pair) for pair in pairs], name=opened.entry.id, what=f"round-{round.round}-pairs", key="align pairs")


def _flow(round: RoundRecord) -> dict[str, Any]:
    kept = share_kept(round.counts or {})
    if kept is None:
        return {**flow(round), "share": "not filtered yet"}
    return {**flow(round), "share": f"kept {percent(kept.accuracy)} ({percent(kept.low)} to {percent(kept.high)}, n = {kept.n:,} parsed)"}


def _counts(round: RoundRecord) -> None:
    counts, kept = flow(round), share_kept(round.counts or {})
    with st.container(horizontal=True, gap="small", key="align counts"):
        _figure("Generated", f"{counts['generated']:,}", "pairs")
        _figure("Parsed", f"{counts['parsed']:,}", f"{percent(counts['parsed'] / max(counts['generated'], 1))} of the generated")
        if kept is not None:
            share = interval(100 * kept.accuracy, 100 * kept.low, 100 * kept.high, ".0f") if kept.n else "–"
            _figure("Kept", f"{counts['kept']:,}", f"{share} % of the parsed")
            _figure("Dropped", f"{counts['dropped']:,}", f"{counts['reasons'].get(MARGIN, 0):,} by their margin")


def _figure(label: str, value: str, beside: str) -> None:
    st.metric(label, value, beside, delta_color="off", delta_arrow="off", border=True)


def _distributions(opened: OpenAlignment, round: RoundRecord, scored: Sequence[GeneratedPair]) -> None:
    """Margins and rewards of every pair that could be scored, side by side."""
    margins = [pair.margin for pair in scored]
    left, right = st.columns(2, gap="medium")
    with left:
        mean = estimate_text(mean_of(margins, scored), "pairs")
        kept = [bool(pair.decision and pair.decision.kept) for pair in scored]
        chart = margin_histogram([value or 0.0 for value in margins], kept, opened.entry.config.min_margin, mean)
        show_chart(chart, key=f"align margins {opened.entry.id} {round.round}", name=opened.entry.id)
    with right:
        sides = [[pair.rewards[side] if pair.rewards else float("nan") for pair in scored] for side in (0, 1)]
        first, second = (estimate_text(mean_of(values, scored), "") for values in sides)
        chart = reward_histogram(sides[0], sides[1], (first, second))
        show_chart(chart, key=f"align rewards {opened.entry.id} {round.round}", name=opened.entry.id)
    if opened.entry.config.arm == NONE:
        st.caption("This arm keeps every pair: margins and rewards are measured, and not used.")


def estimate_text(mean: Estimate | None, of: str) -> str:
    """`mean 0.31 (0.12 to 0.50), n = 46 pairs`"""
    if mean is None:
        return "mean unknown: fewer than two prompts"
    return f"mean {interval(mean.value, mean.low, mean.high, '.3g')}, n = {mean.n:,} {of}".rstrip()


def _training(opened: OpenAlignment, round: RoundRecord) -> None:
    dpo = round.dpo or {}
    left, right = st.columns([3, 2], gap="medium")
    with left:
        show_chart(training_curve(dpo), key=f"align training {opened.entry.id} {round.round}", name=opened.entry.id)
    with right:
        st.markdown("###### Training")
        st.markdown(
            f"{dpo['n_pairs']:,} pairs, {dpo['n_validation']:,} set apart to choose the epoch; {dpo['steps']:,} steps, {dpo['tokens']:,} tokens; "
            f"{dpo['trainable']:,} trainable parameters. The adapter of epoch {dpo['best_epoch']} was kept; reference: the {dpo['reference']} model."
        )
        st.caption("Adapter before and after, sha256 over its tensors")
        st.code(f"{dpo['adapter_before'][:10]}  →  {dpo['adapter_after'][:10]}", language=None)
        if dpo["refused"]:
            st.caption(f"{len(dpo['refused']):,} pairs were refused by the training itself.")

"""Round by round: how many pairs came and stayed, by what margins and rewards, and how the training went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.align.filtering import MARGIN, NONE
from core.align.records import RoundRecord
from core.statistics.estimates import Estimate
from workbench.align import live as align_live
from workbench.align import values as align
from workbench.align.charts import margin_histogram, reward_histogram, round_bars, training_curve
from workbench.align.choice import choose_round
from workbench.align.values import Generated
from workbench.frame.chart_base import interval, percent
from workbench.frame.downloads import download_rows, show_chart

if TYPE_CHECKING:
    from workbench.align.view import View


def draw(view: View) -> None:
    begun = [one for one in view.rounds if one.round and one.counts]
    if not begun:
        st.caption("The base model is evaluated first. Pairs of round 1 stand here as soon as they are written.")
        return
    show_chart(round_bars([_flow(one) for one in begun], align.REASON_WORDS), key=f"align rounds {view.entry.id}", name=view.entry.id)
    round = choose_round(begun)
    if round.finished or not view.entry.live:  # else the live panel above has it
        align_live.strip(view.entry, round)
    _counts(round)
    pairs = align.pairs_of(round)
    scored = [one for one in pairs if one.margin is not None and one.decision is not None]
    if scored:
        _distributions(view, round, scored)
    elif not round.counts or "kept" not in round.counts:
        st.caption("Rewards and margins of this round come with its filter.")
    if round.dpo:
        _training(view, round)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("All generated pairs of this round, with rewards and reasons", width="content")
        download_rows([row_of(one) for one in pairs], name=view.entry.id, what=f"round-{round.round}-pairs", key="align pairs")


def _flow(round: RoundRecord) -> dict[str, Any]:
    found, kept = align.flow(round), align.share_kept(round.counts or {})
    said = (
        "not filtered yet" if kept is None else f"kept {percent(kept.accuracy)} ({percent(kept.low)} to {percent(kept.high)}, n = {kept.n:,} parsed)"
    )
    return {**found, "said": said}


def _counts(round: RoundRecord) -> None:
    found, kept = align.flow(round), align.share_kept(round.counts or {})
    with st.container(horizontal=True, gap="small", key="align counts"):
        _figure("Generated", f"{found['generated']:,}", "pairs")
        _figure("Parsed", f"{found['parsed']:,}", f"{percent(found['parsed'] / max(found['generated'], 1))} of the generated")
        if kept is not None:
            share = interval(100 * kept.accuracy, 100 * kept.low, 100 * kept.high, ".0f") if kept.n else "–"
            _figure("Kept", f"{found['kept']:,}", f"{share} % of the parsed")
            _figure("Dropped", f"{found['dropped']:,}", f"{found['reasons'].get(MARGIN, 0):,} by their margin")


def _figure(label: str, value: str, beside: str) -> None:
    st.metric(label, value, beside, delta_color="off", delta_arrow="off", border=True)


def _distributions(view: View, round: RoundRecord, scored: Sequence[Generated]) -> None:
    """Margins and rewards of every pair that could be scored, side by side."""
    margins = [one.margin for one in scored]
    left, right = st.columns(2, gap="medium")
    with left:
        mean = align.mean_of(margins, scored)
        kept = [bool(one.decision and one.decision.kept) for one in scored]
        shown = margin_histogram([value or 0.0 for value in margins], kept, view.entry.config.min_margin, estimated("mean", mean, "pairs"))
        show_chart(shown, key=f"align margins {view.entry.id} {round.round}", name=view.entry.id)
    with right:
        sides = [[one.rewards[side] if one.rewards else float("nan") for one in scored] for side in (0, 1)]
        first, second = (estimated("mean", align.mean_of(values, scored), "") for values in sides)
        shown = reward_histogram(sides[0], sides[1], (first, second))
        show_chart(shown, key=f"align rewards {view.entry.id} {round.round}", name=view.entry.id)
    if view.entry.config.arm == NONE:
        st.caption("This arm keeps every pair: margins and rewards are measured, and not used.")


def estimated(word: str, one: Estimate | None, what: str) -> str:
    """`mean 0.31 (0.12 to 0.50), n = 46 pairs`"""
    return (
        f"{word} unknown: fewer than two prompts"
        if one is None
        else f"{word} {interval(one.value, one.low, one.high, '.3g')}, n = {one.n:,} {what}".rstrip()
    )


def _training(view: View, round: RoundRecord) -> None:
    dpo = round.dpo or {}
    left, right = st.columns([3, 2], gap="medium")
    with left:
        show_chart(training_curve(dpo), key=f"align training {view.entry.id} {round.round}", name=view.entry.id)
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


def row_of(one: Generated) -> dict[str, Any]:
    """A pair as a row of a file."""
    rewards = one.rewards or (None, None)
    return {
        "candidate": one.candidate.candidate_id,
        "fate": one.fate,
        "why": one.why,
        "margin": one.margin,
        "reward intended": rewards[0],
        "reward other": rewards[1],
        "prompt": list(one.candidate.prompt),
        "intended": one.candidate.chosen,
        "other": one.candidate.rejected,
        "latents": [] if one.decision is None else [dict(latent) for latent in one.decision.latents],
        "raw": list(one.candidate.raw) if not one.candidate.parsed else [],
    }

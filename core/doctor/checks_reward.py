"""Checks of what the head has learnt: shortcuts, exact and faithful explanations, stability, and the prompt's share of
the reward.

They need cached values only, neither the language model nor the SAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.doctor.report import FAIL, PASS, WARN, Check, interval_text, judge, listed
from core.explain.attribution import contributions
from core.explain.cues import LengthCue
from core.explain.faithfulness import Faithfulness
from core.explain.stability import BOUND, PromptShare, Stability
from core.reward.evaluation import MEASURED_ON
from core.reward.fit_responses import FitResponses
from core.reward.head_words import mean_of
from core.reward.parts import RewardParts

# [C] The reward follows length if the whole interval of their correlation within prompts lies beyond this.
LENGTH = 0.3
RESIDUAL = 1e-9
AGREEMENT = 0.5
SHARE_WARN, SHARE_FAIL = 0.5, 0.8


def wording_shortcut(table: Mapping[str, Any]) -> Check:
    """Compares SparseRM with a bag of words. `table` is a fit's evaluation."""
    return _shortcut(table, "wording-only", "wording shortcut", "a bag of the responses' words and word pairs", "")


def length_shortcut(table: Mapping[str, Any], cue: LengthCue | None) -> Check:
    """Compares SparseRM with the number of tokens, and correlates its reward with it."""
    correlation, follows_length = "", False
    if cue is not None:
        within = cue.reward_within
        follows_length = within.low > LENGTH or within.high < -LENGTH
        correlation = f"reward and length within prompts: correlation {within.value:+.2f}{interval_text(within.low, within.high, '+.2f')}, "
        correlation += f"n = {cue.n:,} held-out responses"
    check = _shortcut(table, "length-only", "length shortcut", "the number of tokens", correlation)
    if follows_length and check.status == PASS:
        remedy = "look at pairs whose lengths and labels disagree; balance lengths in the data if length should not count"
        return Check(**{**check.__dict__, "status": WARN, "remedy": remedy})
    return check


def _shortcut(table: Mapping[str, Any], control: str, name: str, what: str, beside: str) -> Check:
    entry = table["controls"].get(control) or {}
    lead = entry.get("sparserm_minus_this")
    bound = "SparseRM's lead is above 0 with its whole interval; below 0 with its whole interval fails"
    bound += f"; a correlation with length beyond {LENGTH} warns" if control == "length-only" else ""
    reason = f"what {what} predicts needs no language model: a reward model that adds nothing to it may have learnt just that"
    if not lead or not lead["n"]:
        remedy = "give the data a test split (--ratios), and fit again"
        return Check(name=name, status=WARN, figure=listed(["no test pairs to compare on", beside]), bound=bound, reason=reason, remedy=remedy)
    status = judge((lead["low"] <= 0, WARN), (lead["high"] < 0, FAIL))
    # The lead is a difference of means, so the means are shown, not the accuracy of the shipped head.
    sparserm, alone_entry = table["sparserm"]["mean"], entry["mean"]
    alone = f"accuracy alone {alone_entry['accuracy']:.3f}{interval_text(alone_entry['low'], alone_entry['high'])}"
    ahead = f"SparseRM's lead ({mean_of(len(table['sparserm']['heads']))}) {lead['difference']:+.3f}"
    ahead += f"{interval_text(lead['low'], lead['high'], '+.3f')}, n = {lead['n']:,} {MEASURED_ON}"
    remedy = f"compare with pairs that {what} can't tell apart; a lead that is not sure needs more test pairs, or another layer or SAE"
    return Check(
        name=name,
        status=status,
        figure=listed([f"{alone}, {ahead}", beside]),
        bound=bound,
        reason=reason,
        remedy="" if status == PASS else remedy,
        value=lead["difference"],
        low=lead["low"],
        high=lead["high"],
        n=lead["n"],
        details={
            "control": {key: alone_entry[key] for key in ("accuracy", "low", "high", "n")},
            "sparserm": {**{key: sparserm[key] for key in ("accuracy", "low", "high", "n")}, "heads": mean_of(len(table["sparserm"]["heads"]))},
            "measured_on": MEASURED_ON,
        },
    )


def attribution_residual(parts: RewardParts, known: FitResponses, rows: Int[np.ndarray, " n"]) -> Check:
    """Whether contributions add up: of these responses to the reward less the baseline's, of held-out pairs to the
    margin.
    """
    mean = parts.projection_mean[None].astype(np.float64)
    singles = _missed(parts, np.repeat(mean, len(rows), axis=0), known.projections[rows])
    pairs = known.held_out_pairs
    margins = _missed(parts, known.projections[known.rejected_rows[pairs]], known.projections[known.chosen_rows[pairs]])
    worst = float(max(singles.max(initial=0.0), margins.max(initial=0.0)))
    return Check(
        name="attribution residual",
        status=judge((not worst < RESIDUAL, FAIL)),
        figure=f"contributions miss the reward by at most {worst:.1e} (rewards {np.ptp(parts.reward_quantiles):.3g} apart), n = {len(rows):,} "
        f"of {len(known.held_out):,} held-out responses and {len(pairs):,} pairs",
        bound=f"below {RESIDUAL:.0e}",
        reason="the attribution is exact: what is left over is rounding, and a larger rest means that bars and sentence are not of this reward",
        remedy="" if worst < RESIDUAL else "fit again: weights so large that float64 loses digits mean that the head's training went astray",
        value=worst,
        n=len(rows) + len(pairs),
    )


def _missed(parts: RewardParts, start: Float[np.ndarray, "n k"], end: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    explained = contributions(parts.head, start, end).sum(axis=1)
    return np.abs(parts.head.reward(end) - parts.head.reward(start) - explained)


def faithful_explanations(measured: Faithfulness) -> Check:
    """Whether removing the latents that an explanation names moves the margin more than removing others."""
    bound = f"both areas above 0 with their whole interval, else it fails; rank agreement at least {AGREEMENT}, else it warns"
    reason = "an order of latents no better than a random one explains nothing, however exactly its contributions add up"
    remedy = "read explanations as a description of the head only; fewer directions (smaller --k) are less collinear and easier to explain"
    if measured.deletion is None or measured.insertion is None or measured.agreement is None:
        figure = f"none of {measured.n_left_out:,} pairs looked at (of {measured.n_held_out:,} held out) has three active latents to remove"
        return Check(name="faithfulness", status=WARN, figure=figure, bound=bound, reason=reason, remedy="more pairs, a larger --k, or a denser SAE")
    areas = (measured.deletion.area, measured.insertion.area)
    weakest = min(areas, key=lambda area: area.low)
    agreement = measured.agreement
    status = judge((agreement.mean < AGREEMENT, WARN), (weakest.low <= 0, FAIL))
    area_texts = [
        f"{name} {area.mean:+.3f}{interval_text(area.low, area.high, '+.3f')}" for name, area in zip(("deletion", "insertion"), areas, strict=True)
    ]
    ranks = f"rank agreement {agreement.mean:.2f}{interval_text(agreement.low, agreement.high, '.2f')}"
    return Check(
        name="faithfulness",
        status=status,
        figure=f"area above random order: {', '.join(area_texts)}; {ranks}; "
        f"n = {measured.n_pairs:,} of {measured.n_held_out:,} held-out pairs{_few(measured)}",
        bound=bound,
        reason=reason,
        remedy="" if status == PASS else remedy,
        value=weakest.mean,
        low=weakest.low,
        high=weakest.high,
        n=measured.n_pairs,
        details=measured.to_json(),
    )


def _few(measured: Faithfulness) -> str:
    return f" ({measured.n_left_out:,} of those looked at have fewer than three active latents)" if measured.n_left_out else ""


def top_k_stability(measured: Stability) -> Check:
    """The verdict of METHOD.md section 4 on the stability of the selected latents."""
    status = {"stable": PASS, "unstable": FAIL}.get(measured.verdict, WARN)
    figures = {"top-K overlap over resamples": measured.overlap, "rank correlation of the heads": measured.rank_correlation}
    known = [figure for figure in figures.values() if figure is not None]
    figure_texts = ", ".join(f"{name} {'not known' if figure is None else f'{figure:.2f}'}" for name, figure in figures.items())
    return Check(
        name="stability of the top K",
        status=status,
        figure=f"{measured.verdict}: {figure_texts}, n = {measured.n:,} of {measured.n_held_out:,} held-out responses",
        bound=f"both at least {BOUND}",
        reason="measured at K = 32 on TruthfulQA: 0.94 and 0.85, with swapped labels 0.47-0.60 and 0.55-0.76: below, other prompts or seeds would "
        "have named other latents",
        remedy="" if status == PASS else "more pairs, a smaller --k, or read only what all heads agree on",
        value=min(known, default=None),
        n=measured.n,
        details=measured.to_json(),
    )


def prompt_variance(measured: PromptShare | None) -> Check:
    """The share of the reward's variance that lies between prompts."""
    bound = f"above {SHARE_WARN} warns, above {SHARE_FAIL} fails"
    reason = "a within-pair loss leaves each prompt's offset free: where that dominates, a low score says more about the prompt than the response"
    if measured is None:
        figure = "can't be told with one known response a prompt"
        return Check(
            name="prompt share", status=WARN, figure=figure, bound=bound, reason=reason, remedy="more responses a prompt; compare within prompts only"
        )
    status = judge((measured.share > SHARE_WARN, WARN), (measured.share > SHARE_FAIL, FAIL))
    return Check(
        name="prompt share",
        status=status,
        figure=f"{measured.share:.0%}{interval_text(measured.low, measured.high, '.0%')} of the reward's variance lies between prompts, "
        f"n = {measured.n:,} responses",
        bound=bound,
        reason=reason,
        remedy="" if status == PASS else "compare rewards within a prompt only: margins, not single scores; explanations: read the response part",
        value=measured.share,
        low=measured.low,
        high=measured.high,
        n=measured.n,
        details=measured.to_json(),
    )

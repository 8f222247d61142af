"""Whether an explanation is stable (METHOD.md section 4), and how much of the reward the prompt decides.

Projections are collinear, so credit can move between latents with the seed, and another draw of the training prompts
can select other latents. The verdict is "unstable" where either the top-K overlap over bootstrap resamples of the
prompts or the mean rank correlation of the five heads' contributions is below 0.8. The correlation is averaged over
held-out responses, each explained from the mean training projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.explain.attribution import contributions_by_head, rank_correlations
from core.reward.fit_responses import FitResponses
from core.reward.parts import RewardParts
from core.statistics.bootstrap import ENDS, prompt_sums, resample_weights
from core.statistics.estimates import mean_over_prompts
from core.types import JsonFields

BOUND = 0.8
MOST = 500  # held-out responses that the heads are compared on


@dataclass(frozen=True, kw_only=True)
class Stability(JsonFields):
    """The verdict on a reward model's explanations. A figure that is not known (no selection table, one head) is None;
    the verdict is then never `stable`. `overlap`: mean share of the selected latents that a resample selects again.
    `rank_correlation`: mean over `n` of the `n_held_out` held-out responses, from `low` to `high` at 95 % over prompts;
    both None with responses to fewer than two."""

    overlap: float | None
    rank_correlation: float | None
    n: int
    low: float | None = None
    high: float | None = None
    n_held_out: int = 0

    @property
    def verdict(self) -> str:
        """`stable`, `unstable`, or `unknown` where a figure is missing and the other one is good."""
        figures = (self.overlap, self.rank_correlation)
        if any(figure is not None and figure < BOUND for figure in figures):
            return "unstable"
        return "unknown" if None in figures else "stable"

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "bound": BOUND, "verdict": self.verdict}


def stability(parts: RewardParts, known: FitResponses | None) -> Stability:
    """The verdict on this reward model."""
    shares = [row["stability"] for row in parts.selection if row.get("stability") is not None]
    overlap = float(np.mean(shares)) if shares else None
    if known is None or not len(known.held_out) or len(parts.heads) < 2:
        return Stability(overlap=overlap, rank_correlation=None, n=0)
    rows = spread(known.held_out, MOST)
    v = known.projections[rows]
    correlations = rank_correlations(contributions_by_head(parts.heads, np.broadcast_to(parts.projection_mean, v.shape), v))
    finite, interval = correlations[np.isfinite(correlations)], mean_over_prompts(correlations, known.groups[rows])
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    mean = float(finite.mean()) if len(finite) else None
    return Stability(overlap=overlap, rank_correlation=mean, n=len(finite), low=low, high=high, n_held_out=len(known.held_out))


def spread(rows: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    """At most so many of these rows, evenly spread: the same ones each time."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


@dataclass(frozen=True, kw_only=True)
class PromptShare(JsonFields):
    """Share of the reward's variance between prompts, with its 95 % interval, from `n` responses, `n_prompts`."""

    share: float
    low: float
    high: float
    n: int
    n_prompts: int


def prompt_share(rewards: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> PromptShare | None:
    """The intraclass correlation of rewards by prompt (one-way, unbiased variance components, from 0 to 1); None
    without two prompts or repeats. Not the plain ratio of sums of squares: with two responses a prompt that is near 1/2
    where prompts do not matter at all."""
    _, numbers = np.unique(groups, return_inverse=True)
    centred = rewards - rewards.mean() if len(rewards) else rewards
    sums = prompt_sums(np.column_stack([np.ones(len(rewards)), centred, centred**2]), numbers)
    if len(sums) < 2 or len(sums) == len(rewards):
        return None
    whole = float(_intraclass(sums, np.ones((1, len(sums))))[0])
    drawn = np.concatenate([_intraclass(sums, weights.astype(np.float64)) for weights in resample_weights(len(sums))])
    low, high = np.nanquantile(drawn, ENDS)
    return PromptShare(share=whole, low=float(min(low, whole)), high=float(max(high, whole)), n=len(rewards), n_prompts=len(sums))


def _intraclass(sums: Float[np.ndarray, "prompts 3"], weights: Float[np.ndarray, "m prompts"]) -> Float[np.ndarray, " m"]:
    """Variance between / (between + within) for each weighting of prompts, from counts, sums and squares by prompt."""
    count, total, square = sums.T
    n, prompts = weights @ count, weights.sum(axis=1)
    between_sum = weights @ (total**2 / count) - (weights @ total) ** 2 / n
    within_sum = weights @ (square - total**2 / count)
    typical = (n - (weights @ count**2) / n) / (prompts - 1)  # responses a prompt, for unequal numbers
    within = within_sum / (n - prompts)
    between = np.maximum((between_sum / (prompts - 1) - within) / typical, 0.0)
    return between / np.maximum(between + within, 1e-300)

"""Do explanations predict what the reward model does? Measured once a fit and shown beside them (METHOD.md section 4).

1. Curves (core.explain.curves) of the margins of held-out pairs; the latents active in either response are removed from
   both. Summed over pairs, as a share of the whole way, |margin - margin with all removed|. A faithful order lies above
   the random one; `area` is the mean height between them.
2. Rank agreement: Spearman correlation, within a pair, of contributions with what removing each of these latents alone
   takes from the margin.
3. Completeness: the largest residual of any held-out attribution.
4. Spurious cues: core.explain.cues.

All figures with 95 % bootstrap intervals over prompts. From the projections and activations kept beside a reward model:
no language model, no SAE.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from core.explain.attribution import contributions
from core.explain.cues import LengthCue, length_cue
from core.explain.curves import FEWEST, SHARES, removal_curves, value_without
from core.explain.stability import spread
from core.reward.fit_responses import FitResponses
from core.reward.parts import RewardParts
from core.statistics.bootstrap import percentile_interval, prompt_sums, resampled_means, resampled_sums
from core.types import JsonFields, Progress, json_value, no_progress

PAIRS = 300  # held-out pairs measured
DRAWS = 5  # random orders of each pair's latents


@dataclass(frozen=True, kw_only=True)
class Interval(JsonFields):
    """A mean with its 95 % bootstrap interval over prompts."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Curve(JsonFields):
    """Share of the margin's way after each tenth of the latents, by order; `area`: mean of `ordered` over `random`."""

    ordered: tuple[Interval, ...]
    random: tuple[Interval, ...]
    area: Interval


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """What was measured, on `n_pairs` held-out pairs of `n_prompts` prompts that have three active latents or more;
    `n_left_out` have fewer. Both are among at most PAIRS that were looked at, evenly spread over all `n_held_out`
    held-out pairs. Curves and agreement are None where no pair has enough."""

    deletion: Curve | None
    insertion: Curve | None
    agreement: Interval | None
    residual: float
    cues: LengthCue | None
    n_pairs: int
    n_prompts: int
    n_left_out: int
    n_held_out: int

    def to_json(self) -> dict[str, Any]:
        """JSON values; `share` is where on the curves the points lie."""
        names = ("deletion", "insertion", "agreement", "cues", "residual", "n_pairs", "n_prompts", "n_left_out", "n_held_out")
        return {**{name: json_value(getattr(self, name)) for name in names}, "share": list(SHARES)}


def faithfulness(parts: RewardParts, known: FitResponses, progress: Progress = no_progress) -> Faithfulness:
    """Measures the explanations of a reward model with latents and directions on the held-out pairs kept beside it."""
    measured = _HeldOutPairs(parts, known)
    asked = spread(known.held_out_pairs, PAIRS)
    enough = asked[measured.removable(asked).sum(axis=1) >= FEWEST]
    groups = np.unique(known.prompt_ids[known.chosen_rows[enough]], return_inverse=True)[1]
    moved, agreed = [], []
    for number, pair in enumerate(enough):
        progress("faithfulness", number, len(enough))
        moved.append(measured.curves(int(pair)))
        agreed.append(measured.agreement(int(pair)))
    progress("faithfulness", len(enough), len(enough))
    way = np.stack(moved) if moved else None  # [pairs, deletion or insertion, ordered or random, points]
    shares = np.array(agreed)
    return Faithfulness(
        deletion=None if way is None else _curve(way[:, 0], groups),
        insertion=None if way is None else _curve(way[:, 1], groups),
        agreement=_interval(shares.mean(), *percentile_interval(resampled_means(shares, groups))) if agreed else None,
        residual=measured.residual(asked),
        cues=length_cue(parts, known),
        n_pairs=len(enough),
        n_prompts=len(np.unique(groups)),
        n_left_out=len(asked) - len(enough),
        n_held_out=len(known.held_out_pairs),
    )


class _HeldOutPairs:
    """Both responses of the held-out pairs, and margins after removals: what all measurements share."""

    def __init__(self, parts: RewardParts, known: FitResponses) -> None:
        assert parts.directions is not None  # by kind
        directions = parts.directions.astype(np.float64)
        self.head, self.known, self.overlaps = parts.head, known, directions @ directions.T

    def removable(self, pairs: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "n k"]:
        """Latents active in either response."""
        f = self.known.activations
        return (f[self.known.chosen_rows[pairs]] > 0) | (f[self.known.rejected_rows[pairs]] > 0)

    def margins(self, pair: int, removed: Bool[np.ndarray, "m k"]) -> Float[np.ndarray, " m"]:
        """The margin after each of these sets is removed from both responses."""
        v, f = self.known.projections, self.known.activations
        rows = (self.known.chosen_rows[pair], self.known.rejected_rows[pair])
        chosen, rejected = (value_without(self.head, v[row], f[row], self.overlaps)(removed) for row in rows)
        return chosen - rejected

    def contributions(self, pairs: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
        """Of each latent to each margin."""
        ends = (self.known.projections[rows[pairs]] for rows in (self.known.rejected_rows, self.known.chosen_rows))
        return contributions(self.head, *ends)

    def curves(self, pair: int) -> Float[np.ndarray, "2 2 points"]:
        """How far the margin has moved along deletion and insertion, ordered and (mean over draws) random."""
        alone = np.array([pair])
        latents = np.flatnonzero(self.removable(alone)[0])
        return removal_curves(partial(self.margins, pair), latents, self.contributions(alone)[0], draws=DRAWS, seed=pair)

    def agreement(self, pair: int) -> float:
        """Spearman correlation of contributions with each removal's effect on the margin; 0 where one is constant."""
        latents = np.flatnonzero(self.removable(np.array([pair]))[0])
        alone = np.eye(self.overlaps.shape[0], dtype=bool)[latents]
        whole = self.margins(pair, np.zeros((1, alone.shape[1]), dtype=bool))[0]
        pairs = np.stack([self.contributions(np.array([pair]))[0, latents], whole - self.margins(pair, alone)])
        ranks = rankdata(pairs, axis=1) - (len(latents) + 1) / 2
        norm = float(np.prod(np.linalg.norm(ranks, axis=1)))
        return float(ranks[0] @ ranks[1]) / norm if norm else 0.0

    def residual(self, pairs: Int[np.ndarray, " n"]) -> float:
        """The largest |margin - sum of contributions|."""
        rewards = [self.head.reward(self.known.projections[rows[pairs]]) for rows in (self.known.chosen_rows, self.known.rejected_rows)]
        missed = np.abs(rewards[0] - rewards[1] - self.contributions(pairs).sum(axis=1))
        return float(missed.max()) if len(missed) else 0.0


def _curve(way: Float[np.ndarray, "pairs 2 points"], groups: Int[np.ndarray, " pairs"]) -> Curve:
    """Sums over pairs, as a share of the whole way; pairs with a longer way weigh more, as they should."""
    n_points = way.shape[2]
    sums = prompt_sums(way.reshape(len(way), -1), groups)
    whole, drawn = (_shares(total, n_points) for total in (sums.sum(axis=0, keepdims=True), resampled_sums(sums)))
    low, high = percentile_interval(drawn)

    def line(which: int) -> tuple[Interval, ...]:
        return tuple(_interval(whole[0, which, i], low[which, i], high[which, i]) for i in range(n_points))

    area = (drawn[:, 0] - drawn[:, 1]).mean(axis=1)
    between = _interval((whole[0, 0] - whole[0, 1]).mean(), *percentile_interval(area))
    return Curve(ordered=line(0), random=line(1), area=between)


def _shares(total: Float[np.ndarray, "m points2"], n_points: int) -> Float[np.ndarray, "m 2 points"]:
    lines = total.reshape(len(total), 2, n_points)
    return lines / np.maximum(lines[:, :1, -1:], 1e-300)


def _interval(mean: float, low: float, high: float) -> Interval:
    return Interval(mean=float(mean), low=float(min(low, mean)), high=float(max(high, mean)))

"""Spurious cues: does the reward, or a projection, correlate with response length? (METHOD.md section 4, audit)

Spearman correlation with the number of the response's own tokens, over held-out responses: overall, and within prompts
(both centred by the means of their prompt, since the prompt's offset of a reward is free). Intervals: bootstrap over
prompts of the correlation of the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.reward.fit_responses import FitResponses
from core.reward.parts import RewardParts
from core.statistics.bootstrap import percentile_interval, prompt_sums, resampled_sums
from core.types import JsonFields


@dataclass(frozen=True, kw_only=True)
class Correlation(JsonFields):
    """A correlation with its 95 % interval; all three are 0 where one of the two is constant."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LengthCue:
    """Correlations with length over `n` held-out responses: of the reward (overall, within prompts) and projections."""

    reward: Correlation
    reward_within: Correlation
    projections: tuple[Correlation, ...]
    latent_ids: tuple[int, ...]
    n: int
    n_prompts: int

    def to_json(self) -> dict[str, Any]:
        latents = [{"latent_id": j, **correlation.to_json()} for j, correlation in zip(self.latent_ids, self.projections, strict=True)]
        return {
            "reward": self.reward.to_json(),
            "reward_within": self.reward_within.to_json(),
            "projections": latents,
            "n": self.n,
            "n_prompts": self.n_prompts,
        }


def length_cue(parts: RewardParts, known: FitResponses) -> LengthCue | None:
    """The audit of a reward model; None where fewer than three held-out responses are kept."""
    rows = known.held_out
    if len(rows) < 3:
        return None
    v, length, groups = known.projections[rows], known.n_tokens[rows].astype(np.float64), known.groups[rows]
    rewards = parts.head.reward(v)
    overall = correlations(np.column_stack([rewards, v]), length, groups)
    within = correlations(centred(rewards[:, None], groups), centred(length[:, None], groups)[:, 0], groups)
    ids = () if parts.latent_ids is None else tuple(int(j) for j in parts.latent_ids)
    return LengthCue(
        reward=overall[0], reward_within=within[0], projections=overall[1:], latent_ids=ids, n=len(rows), n_prompts=len(np.unique(groups))
    )


def correlations(values: Float[np.ndarray, "n m"], length: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> tuple[Correlation, ...]:
    """Spearman correlation of each column with length. Ranks are taken once; the bootstrap draws prompts."""
    from scipy.stats import rankdata  # takes half a second to import, which pages that switch nothing off save

    ranks = rankdata(np.column_stack([length, values]), axis=0)
    ranks = (ranks - ranks.mean(axis=0)) / len(ranks)
    x, y = ranks[:, :1], ranks[:, 1:]
    sums = prompt_sums(np.column_stack([np.ones(len(x)), x, x * x, y, y * y, x * y]), np.unique(groups, return_inverse=True)[1])
    whole = _pearson(sums.sum(axis=0, keepdims=True))[0]
    low, high = percentile_interval(_pearson(resampled_sums(sums)))
    return tuple(
        Correlation(value=float(value), low=float(min(a, value)), high=float(max(b, value))) for value, a, b in zip(whole, low, high, strict=True)
    )


def centred(values: Float[np.ndarray, "n m"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n m"]:
    """Each value less the mean of its prompt."""
    numbers = np.unique(groups, return_inverse=True)[1]
    return values - (prompt_sums(values, numbers) / np.bincount(numbers)[:, None])[numbers]


def _pearson(sums: Float[np.ndarray, "m columns"]) -> Float[np.ndarray, "m y"]:
    """Correlations from sums of 1, x, x^2, and y, y^2, xy of each column."""
    n, x, xx = sums[:, 0:1], sums[:, 1:2], sums[:, 2:3]
    y, yy, xy = np.split(sums[:, 3:], 3, axis=1)
    spread = np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0)
    # Rounding leaves a constant column a spread of about 1e-16 of the other's.
    return np.where(spread > 1e-20, (n * xy - x * y) / np.sqrt(np.maximum(spread, 1e-300)), 0.0)

"""Which latents made a reward: integrated gradients of the head, exact and in closed form (METHOD.md section 4).

The path runs straight from a baseline projection b to v. With a0 = W1 b + b1 and a1 = W1 v + b1, hidden unit h is
active on the fraction alpha_h = (relu(a1) - relu(a0)) / (a1 - a0) of it ([a0 > 0] where a1 = a0), so

    contribution_i = (v_i - b_i) * sum_h w2_h W1_hi alpha_h,      and the contributions sum to s(v) - s(b).

For one response b is the mean training projection; for a pair the path runs from v_l to v_w and the sum is the margin.
Only numpy: all is vectorised over responses and over the heads of all seeds, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from core.reward.head import ROWS_AT_ONCE, Head

# Latents whose directions are more alike than this are shown together (METHOD.md section 4).
COLLINEAR = 0.7


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A reward's difference `reward - baseline_reward`, taken apart by latent.

    `projection` is v, `baseline` is b, `activation` f_j (None where no SAE is at hand). `contribution` is the shipped
    head's; `by_head` are those of all seeds' heads, `deviation` their standard deviation over heads, `rank_correlation`
    the mean of their pairwise Spearman correlations (None with one head); `agreed` is True where all heads give the
    same sign. `residual` is what the contributions miss of the difference.
    """

    latent_ids: Int[np.ndarray, " k"]
    projection: Float[np.ndarray, " k"]
    baseline: Float[np.ndarray, " k"]
    activation: Float[np.ndarray, " k"] | None
    contribution: Float[np.ndarray, " k"]
    by_head: Float[np.ndarray, "heads k"]
    reward: float
    baseline_reward: float

    @property
    def deviation(self) -> Float[np.ndarray, " k"]:
        return self.by_head.std(axis=0, ddof=1) if len(self.by_head) > 1 else np.zeros(len(self.contribution))

    @property
    def agreed(self) -> Bool[np.ndarray, " k"]:
        return same_sign(np.concatenate([self.contribution[None], self.by_head]))

    @property
    def rank_correlation(self) -> float | None:
        correlation = float(rank_correlations(self.by_head[:, None])[0])
        return correlation if np.isfinite(correlation) else None

    @property
    def residual(self) -> float:
        return self.reward - self.baseline_reward - float(self.contribution.sum())

    @property
    def figures(self) -> dict[str, Any]:
        """What belongs to all latents together, as JSON values."""
        return {name: getattr(self, name) for name in ("reward", "baseline_reward", "residual", "rank_correlation")}

    @property
    def latents(self) -> list[dict[str, Any]]:
        """A row of JSON values a latent, in the order of the directions."""
        columns = {name: getattr(self, name) for name in ("projection", "baseline", "contribution", "deviation", "agreed")}
        if self.activation is not None:
            columns["activation"] = self.activation
        return [{"latent_id": int(j), **{name: values[i].item() for name, values in columns.items()}} for i, j in enumerate(self.latent_ids)]

    def to_json(self) -> dict[str, Any]:
        return {**self.figures, "latents": self.latents}


def contributions(head: Head, start: Float[np.ndarray, "n k"], end: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Integrated gradients of the head from each row of `start` straight to that of `end`; rows sum to changes of s."""
    first, bias = head.weight_1.astype(np.float64), head.bias_1.astype(np.float64)
    second = head.weight_2.astype(np.float64)[0]
    credit = np.empty(end.shape, dtype=np.float64)
    for at in range(0, len(end), ROWS_AT_ONCE):
        rows = slice(at, at + ROWS_AT_ONCE)
        before, after = start[rows].astype(np.float64), end[rows].astype(np.float64)
        alpha = active_fraction(before @ first.T + bias, after @ first.T + bias)
        credit[rows] = (after - before) * ((alpha * second) @ first)
    return credit


def active_fraction(before: Float[np.ndarray, "*rows hidden"], after: Float[np.ndarray, "*rows hidden"]) -> Float[np.ndarray, "*rows hidden"]:
    """alpha_h: the share of a straight path on which a unit is active, from its pre-activations at both ends; exact."""
    moved = after != before
    rise = np.maximum(after, 0.0) - np.maximum(before, 0.0)
    return np.where(moved, rise / np.where(moved, after - before, 1.0), before > 0)


def contributions_by_head(heads: Sequence[Head], start: Float[np.ndarray, "n k"], end: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "heads n k"]:
    """The same path through each seed's head."""
    return np.stack([contributions(head, start, end) for head in heads])


def rank_correlations(by_head: Float[np.ndarray, "heads n k"]) -> Float[np.ndarray, " n"]:
    """Of each response the mean Spearman correlation of contributions over pairs of heads; NaN where none exists."""
    from scipy.stats import rankdata  # takes 0.7 s to import, which pages that only read contributions save

    heads = len(by_head)
    ranks = rankdata(by_head, axis=2)
    ranks -= ranks.mean(axis=2, keepdims=True)
    norm = np.linalg.norm(ranks, axis=2, keepdims=True)
    if heads < 2:
        return np.full(by_head.shape[1], np.nan)
    with np.errstate(invalid="ignore"):
        together = (ranks / norm).sum(axis=0)
    return ((together**2).sum(axis=1) - heads) / (heads * (heads - 1))


def same_sign(values: Float[np.ndarray, "heads *k"]) -> Bool[np.ndarray, "*k"]:
    """Where all heads give a value of one sign, none of them 0."""
    return np.asarray((values > 0).all(axis=0) | (values < 0).all(axis=0))


def at_mean(head: Head, v: Float[np.ndarray, " k"], mean: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """How the reward changes where each projection alone is set to its training mean (intervention one)."""
    changed = np.tile(v.astype(np.float64), (len(v), 1))
    np.fill_diagonal(changed, mean)
    return head.reward(changed) - head.reward(v[None])[0]


def collinear_groups(directions: Float[np.ndarray, "k d_model"]) -> tuple[tuple[int, ...], ...]:
    """Columns whose directions have |cosine| > 0.7, as connected components (our choice): each sorted, singles
    included, in order of first column. Components, since METHOD.md groups *any* two such latents: under complete
    linkage two of them could land in different groups, and their shared credit would not be seen. The price is that
    the ends of a chain may be less alike."""
    unit = directions.astype(np.float64) / np.maximum(np.linalg.norm(directions.astype(np.float64), axis=1, keepdims=True), 1e-30)
    near = np.abs(unit @ unit.T) > COLLINEAR
    group = np.arange(len(unit))
    for _ in range(len(unit)):
        lowest = np.where(near | np.eye(len(unit), dtype=bool), group[None, :], len(unit)).min(axis=1)
        if (lowest == group).all():
            break
        group = lowest
    return tuple(tuple(int(i) for i in np.flatnonzero(group == name)) for name in np.unique(group))

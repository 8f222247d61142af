"""A response among those of the fit: the most similar training responses, and its percentile among held-out ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core.reward.fit_responses import FitResponses
from core.reward.parts import RewardParts
from core.types import JsonFields, Message

NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class Neighbour(JsonFields):
    """A training response (texts None if not saved), its distance in standardised projections, reward, and sides."""

    row: int
    distance: float
    reward: float
    sides: tuple[str, ...]
    prompt: tuple[Message, ...] | None
    response: str | None


def neighbours(
    known: FitResponses, parts: RewardParts, v: Float[np.ndarray, " k"], *, response_id: int | None = None, n: int = NEIGHBOURS
) -> tuple[Neighbour, ...]:
    """The training responses nearest to v by Euclidean distance of (v - mean) / std (our choice), without this id."""
    rows = known.train if response_id is None else known.train[known.response_ids[known.train] != response_id]
    if not len(rows):
        return ()
    std = parts.projection_std.astype(np.float64)
    distance = np.linalg.norm((known.projections[rows] - v) / std, axis=1)
    nearest = np.argsort(distance, kind="stable")[:n]
    rewards = parts.head.reward(known.projections[rows[nearest]])
    return tuple(_neighbour(known, int(rows[i]), float(distance[i]), float(reward)) for i, reward in zip(nearest, rewards, strict=True))


def _neighbour(known: FitResponses, row: int, distance: float, reward: float) -> Neighbour:
    prompt, response = known.texts(row) or (None, None)
    return Neighbour(row=row, distance=distance, reward=reward, sides=known.sides(row), prompt=prompt, response=response)


def percentile(quantiles: Float[np.ndarray, " 101"], reward: float) -> float:
    """Percentile (0 to 100) of a reward among held-out responses, by their 101 percentiles; in the middle of a tie."""
    below, above = np.searchsorted(quantiles, reward, side="left"), np.searchsorted(quantiles, reward, side="right")
    if above > below:
        return float(below + above - 1) / 2
    return float(np.interp(reward, quantiles, np.arange(len(quantiles))))

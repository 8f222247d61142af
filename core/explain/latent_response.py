"""What one projection does to the reward, by the head alone: the curve along its range, and one number for a table (METHOD.md section 4).

All other projections stay at their training mean. So both say what the head does with this direction by itself; projections are collinear, and in a
response they move together. Only numpy is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core.reward.known import KnownResponses
from core.reward.parts import RewardParts

POINTS = 41
ENDS = (1, 99)  # percentiles of the training responses between which a projection moves


@dataclass(frozen=True, kw_only=True)
class ResponseCurve:
    """The reward as one projection moves: of the shipped head, and of every head. `mean` is the projection's training mean; `n` training responses
    say how far it moves.
    """

    projection: Float[np.ndarray, " m"]
    shipped: Float[np.ndarray, " m"]
    heads: Float[np.ndarray, "heads m"]
    mean: float
    n: int


def response_curve(parts: RewardParts, known: KnownResponses, column: int) -> ResponseCurve:
    """The curve of the direction in this column, from the 1st to the 99th percentile of its projection over training responses."""
    low, high = np.percentile(known.projections[known.train, column], ENDS)
    grid = np.linspace(low, high, POINTS)
    inputs = np.tile(parts.projection_mean.astype(np.float64), (POINTS, 1))
    inputs[:, column] = grid
    rewards = np.stack([head.reward(inputs) for head in parts.heads])
    mean = float(parts.projection_mean[column])
    return ResponseCurve(projection=grid, shipped=parts.head.reward(inputs), heads=rewards, mean=mean, n=len(known.train))


def head_weights(parts: RewardParts) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """For each direction half the rise of the reward from one deviation below its training mean to one above: of the shipped head, and its deviation
    over all heads (0 for a single one).
    """
    mean, step = parts.projection_mean.astype(np.float64), np.diag(parts.projection_std.astype(np.float64))
    rises = [(head.reward(mean + step) - head.reward(mean - step)) / 2 for head in (parts.head, *parts.heads)]
    return rises[0], np.std(rises[1:], axis=0, ddof=1) if len(parts.heads) > 1 else np.zeros(parts.k)

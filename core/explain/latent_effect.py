"""What one projection does to the reward by the head alone: a curve, and a figure for tables (METHOD.md section 4).

Along the curve all other projections stay at their training mean, so it shows the head's use of this direction by
itself, while in a response collinear projections move together. The number is taken over real responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core.explain.attribution import contributions
from core.explain.stability import spread
from core.reward.fit_responses import FitResponses
from core.reward.parts import RewardParts

POINTS = 41
MOST = 512  # responses that a weight is measured on
ENDS = (1, 99)  # percentiles of the training responses between which a projection moves


@dataclass(frozen=True, kw_only=True)
class ResponseCurve:
    """Rewards (of the shipped head, of every head) as one projection moves over its range in `n` training responses."""

    projection: Float[np.ndarray, " m"]
    shipped: Float[np.ndarray, " m"]
    heads: Float[np.ndarray, "heads m"]
    mean: float
    n: int


def response_curve(parts: RewardParts, known: FitResponses, column: int) -> ResponseCurve:
    """The curve of this column's direction, between the 1st and 99th percentile of its projection over training."""
    low, high = np.percentile(known.projections[known.train, column], ENDS)
    grid = np.linspace(low, high, POINTS)
    inputs = np.tile(parts.projection_mean.astype(np.float64), (POINTS, 1))
    inputs[:, column] = grid
    rewards = np.stack([head.reward(inputs) for head in parts.heads])
    mean = float(parts.projection_mean[column])
    return ResponseCurve(projection=grid, shipped=parts.head.reward(inputs), heads=rewards, mean=mean, n=len(known.train))


def head_weights(parts: RewardParts, known: FitResponses) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], int]:
    """For each direction the mean size of its contribution over held-out responses, from the mean projection on: by the
    shipped head, and the deviation over all heads (0 for a single one); and how many responses. A size, not a slope:
    along a projection rewards can fall and rise again.
    """
    rows = spread(known.held_out, MOST)
    v = known.projections[rows].astype(np.float64)
    start = np.broadcast_to(parts.projection_mean.astype(np.float64), v.shape)
    shipped, *each = (np.abs(contributions(head, start, v)).mean(axis=0) for head in (parts.head, *parts.heads))
    return shipped, np.std(each, axis=0, ddof=1) if len(each) > 1 else np.zeros(parts.k), len(rows)

"""Deletion and insertion: latents leave the residual stream in order of |contribution| and in random orders.

Deletion: how far has the reward (or margin) moved once a share of the active latents is removed? Insertion: all of them
are removed; how far does it move back as they return, in the same order? A faithful order moves it earlier than a
random one (METHOD.md section 4, faithfulness).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from core.explain.removal import removed_projections
from core.reward.head import Head

STEPS = 10  # points of a curve after its start
FEWEST = 3  # active latents that a curve needs: with fewer, orders hardly differ
DRAWS = 20  # random orders for one explanation
SHARES = tuple(i / STEPS for i in range(STEPS + 1))
Value = Callable[[Bool[np.ndarray, "m k"]], Float[np.ndarray, " m"]]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """How far, in units of the reward, one reward or margin has moved after each share of its `n_latents` active
    latents: in the explanation's order first, then the mean of random orders."""

    deletion: Float[np.ndarray, "2 points"]
    insertion: Float[np.ndarray, "2 points"]
    n_latents: int

    def to_json(self) -> dict[str, Any]:
        lines = {name: dict(zip(("ordered", "random"), getattr(self, name).tolist(), strict=True)) for name in ("deletion", "insertion")}
        return {"share": list(SHARES), **lines, "n_latents": self.n_latents}


def own_curves(value: Value, active: Bool[np.ndarray, " k"], contribution: Float[np.ndarray, " k"]) -> Curves | None:
    """The curves of one explanation; None below three active latents. `value`: reward or margin after removals."""
    if active.sum() < FEWEST:
        return None
    deletion, insertion = removal_curves(value, np.flatnonzero(active), contribution, draws=DRAWS, seed=0)
    return Curves(deletion=deletion, insertion=insertion, n_latents=int(active.sum()))


def value_without(head: Head, v: Float[np.ndarray, " k"], f: Float[np.ndarray, " k"], overlaps: Float[np.ndarray, "k k"]) -> Value:
    """The reward of a response after sets of latents are removed from it."""

    def value(removed: Bool[np.ndarray, "m k"]) -> Float[np.ndarray, " m"]:
        wide_v, wide_f = (np.broadcast_to(values.astype(np.float64), removed.shape) for values in (v, f))
        return head.reward(removed_projections(wide_v, wide_f, overlaps, removed))

    return value


def removal_curves(
    value: Value, latents: Int[np.ndarray, " m"], contribution: Float[np.ndarray, " k"], *, draws: int, seed: int
) -> Float[np.ndarray, "2 2 points"]:
    """[deletion or insertion, ordered or mean random, share of the latents]: how far the value moved from the start."""
    rng = np.random.default_rng([0, seed])
    orders = [latents[np.argsort(-np.abs(contribution[latents]), kind="stable")], *(rng.permutation(latents) for _ in range(draws))]
    removed = np.stack([_nested(order, len(contribution)) for order in orders])  # [orders, latents + 1, k]
    curves = []
    for path in (removed, removed[:, -1:] & ~removed):  # insertion: what has not returned yet
        values = value(path.reshape(-1, path.shape[2])).reshape(path.shape[:2])
        way = np.abs(values - values[:, :1])
        at = [np.interp(SHARES, np.linspace(0, 1, way.shape[1]), line) for line in way]
        curves.append([at[0], np.mean(at[1:], axis=0)])
    return np.array(curves)


def _nested(order: Int[np.ndarray, " m"], k: int) -> Bool[np.ndarray, "m_plus_1 k"]:
    """The sets of the first 0, 1, ... m latents of an order."""
    rank = np.full(k, len(order))
    rank[order] = np.arange(len(order))
    return rank[None, :] < np.arange(len(order) + 1)[:, None]

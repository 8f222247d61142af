"""Latents taken out of the residual stream, worked out on projections alone (METHOD.md section 4, interventions).

z' = z - (decode(f_j e_j) - decode(0)) = z - f_j d_j, so the projections v = D z become v' = v - f_j D d_j: every one of
them moves, not only latent j's. Several latents add up. With D D^T at hand neither z nor the SAE is needed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from core.reward.head import Head


def removed_projections(
    v: Float[np.ndarray, "*rows k"], f: Float[np.ndarray, "*rows k"], overlaps: Float[np.ndarray, "k k"], removed: Bool[np.ndarray, "*rows k"]
) -> Float[np.ndarray, "*rows k"]:
    """v' of each row after the latents marked in `removed` leave its residual stream; `overlaps` is D D^T."""
    return v - np.where(removed, f, 0.0) @ overlaps


def removal_effects(
    head: Head, v: Float[np.ndarray, "n k"], f: Float[np.ndarray, "n k"], overlaps: Float[np.ndarray, "k k"]
) -> Float[np.ndarray, "n k"]:
    """How each reward changes where each latent alone is removed; NaN where it is inactive: nothing to remove."""
    n, k = v.shape
    effects = np.full((n, k), np.nan)
    rows, latents = np.nonzero(f > 0)
    removed = np.zeros((len(rows), k), dtype=bool)
    removed[np.arange(len(rows)), latents] = True
    effects[rows, latents] = head.reward(removed_projections(v[rows], f[rows], overlaps, removed)) - head.reward(v)[rows]
    return effects

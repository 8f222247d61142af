"""The top K latents of each side, from given separations (METHOD.md section 3, step 1); needs numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """Latents that each bootstrap resample of the prompts selects, best first (-1: none left), for every K kept."""

    chosen: Int[np.ndarray, "resamples keep"]
    rejected: Int[np.ndarray, "resamples keep"]


def select(separation: Shaped[np.ndarray, " d_sae"], k: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Latents and sides (+1, -1) of the top K: I_w by falling nabla, then I_l by falling Delta = -nabla.

    `separation` is nabla, or any positive multiple. A latent needs a strictly positive separation on its side, so n can
    be below 2K; ties go to the lower index.
    """
    ids, sides = [], []
    for side in (1, -1):
        falling = np.argsort(-side * separation, kind="stable")[:k]
        taken = falling[side * separation[falling] > 0]
        ids.append(taken)
        sides.append(np.full(len(taken), side))
    return np.concatenate(ids).astype(np.int64), np.concatenate(sides).astype(np.int64)


def stability(resamples: Resamples, latent_ids: Int[np.ndarray, " n"], side: Int[np.ndarray, " n"], k: int) -> Float[np.ndarray, " n"]:
    """Share of resamples whose top K of its side hold each latent. ValueError: they were not kept up to K."""
    if k > resamples.chosen.shape[1]:
        raise ValueError(f"resamples were kept up to K = {resamples.chosen.shape[1]}, and K = {k} is asked for")
    shares = np.zeros(len(latent_ids))
    for sign, ranked in ((1, resamples.chosen), (-1, resamples.rejected)):
        again, counts = np.unique(ranked[:, :k], return_counts=True)
        seen = dict(zip(again.tolist(), counts.tolist(), strict=True))
        mine = side == sign
        shares[mine] = [seen.get(int(latent), 0) / len(ranked) for latent in latent_ids[mine]]
    return shares

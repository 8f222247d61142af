"""Step 2 of SparseRM: what a head sees of each response (METHOD.md section 3, steps 2 and controls).

v = [<z, d_j> for j in I_w | <z, d_j> for j in I_l], and for the controls the same on random directions, or the
activations f_j. Each distinct response once, states read in slices, so a memory map stays on disk; the result is
float32 [n_responses, k] (100,000 pairs at K = 128: 205 MB).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from core.reward.hidden_states import HiddenStates
from core.reward.selection import Encoder, kth_values, states_on_device
from core.statistics.significance import TOO_RARE
from core.types import LatentFrequencies, SelectedDirections

ROWS_AT_ONCE = 4096


def project(states: Float[np.ndarray, "n_responses d_model"], directions: Float[np.ndarray, "k d_model"]) -> Float[np.ndarray, "n_responses k"]:
    """<z, d_j> of every response and direction, float32."""
    projections = np.empty((len(states), len(directions)), dtype=np.float32)
    columns = np.ascontiguousarray(directions.T, dtype=np.float32)
    for start in range(0, len(states), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        projections[part] = states[part].astype(np.float32) @ columns
    return projections


@torch.no_grad()
def activations(
    states: Float[np.ndarray, "n_responses d_model"], latent_ids: Int[np.ndarray, " k"], sae: Encoder
) -> Float[np.ndarray, "n_responses k"]:
    """f_j of every response for these latents, float32; only these are encoded."""
    rows = np.arange(len(states))
    kth = kth_values(states, rows, sae)
    values = np.empty((len(states), len(latent_ids)), dtype=np.float32)
    for start in range(0, len(states), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        z, own_kth = states_on_device(states, rows[part], sae), None if kth is None else kth[part].to(sae.device)
        values[part] = sae.encode_latents(z, latent_ids, own_kth).cpu().numpy()
    return values


def response_activations(hidden: HiddenStates, latent_ids: Int[np.ndarray, " k"], sae: Encoder) -> Float[np.ndarray, "n_responses k"]:
    """f_j of every response at the token that is read; its mean over the own tokens where the whole response is read."""
    if hidden.activity is not None:
        return hidden.activity.columns(latent_ids, len(hidden.states))
    return activations(hidden.states, latent_ids, sae)


def top_columns(selected: SelectedDirections, k: int) -> Int[np.ndarray, " n"]:
    """Positions of the first k latents of each side: the selection for a smaller K inside that for a larger one."""
    return np.concatenate([np.flatnonzero(selected.side > 0)[:k], np.flatnonzero(selected.side < 0)[:k]])


def isotropic_directions(n: int, d_model: int, seed: int) -> Float[np.ndarray, "n d_model"]:
    """Random unit directions (the head standardises, so the norm changes nothing); fewer are a prefix of more."""
    drawn = np.random.default_rng(seed).standard_normal((n, d_model))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def random_live_latents(frequencies: LatentFrequencies, n: int, seed: int) -> Int[np.ndarray, " m"]:
    """Live latents drawn at random without repetition, selected ones among them; all of them where fewer than n live.
    Fewer are a prefix of more. On data so small that no latent is live (active in `min_active` responses), those that
    are active at all stand in."""
    live = np.flatnonzero(np.isfinite(frequencies.q_value))
    pool = live if len(live) else np.flatnonzero(frequencies.n_active)
    return np.random.default_rng(seed).permutation(pool)[:n]


def detection_auroc(projections: Float[np.ndarray, "n k"], active: Bool[np.ndarray, "n k"]) -> Float[np.ndarray, " k"]:
    """AUROC of each projection for active against inactive responses; NaN below 10 active ones, or without others."""
    n_on = active.sum(axis=0)
    n_off = len(active) - n_on
    ranks = rankdata(projections, axis=0)
    area = ((ranks * active).sum(axis=0) - n_on * (n_on + 1) / 2) / np.maximum(n_on * n_off, 1)
    return np.where((n_on >= TOO_RARE) & (n_off > 0), area, np.nan)

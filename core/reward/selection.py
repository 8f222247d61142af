"""Step 1 of SparseRM: the latents that separate chosen from rejected (METHOD.md 3, "Statistics of the frequency view").

Everything is read from the training split; validation pairs only show how much of a separation was luck.

1. Encode each distinct response once per chunk of latents and keep only "active or not"; where the whole response is
   read, activity was reduced while it was read (core.reward.hidden_states.LatentActivity) and nothing is encoded.
2. Count: mu_w, mu_l, each prompt's summed activity difference and vote, and the sums in bootstrap resamples of prompts.
3. Test: exact sign test over prompts, Benjamini-Hochberg over live latents.
4. Rank and select: I_w by the largest, I_l by the smallest values; strictly positive or negative, ties to the lower
   index. `frequency` ranks by nabla, the paper's rule; `effect` by the mean over prompts of the difference of mean
   activation, divided by its standard error, among latents active in at least EFFECT_SHARE of the training responses.

Memory, for n pairs, G prompts and R resamples: 4 R (G + d_sae) bytes all along (100,000 prompts, 131,072 latents, 200
resamples: 185 MB); a byte per distinct response and latent of a chunk, whose width keeps that under CHUNK_BYTES (512
MB) but is at least 1,024 latents (200,000 responses: 205 MB); 16 n bytes per latent counted at once, as many as fit in
COUNT_BYTES (256 MB). Hidden states are read in batches of BATCH_BYTES, so a memory map stays on disk. Measured with
100,000 pairs, d_model 4,096 and 8,192 latents: 1.14 GB beside the SAE; 131,072 latents add 0.1 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from core.config import SelectionConfig
from core.errors import DataError
from core.reward.hidden_states import HiddenStates
from core.reward.ranking import Resamples, select, stability
from core.statistics.bootstrap import percentile_interval, prompt_sums, resample_weights
from core.statistics.significance import benjamini_hochberg, sign_test
from core.types import JsonFields, LatentFrequencies, PreferencePairs, Progress, SelectedDirections, no_progress

CHUNK_BYTES = 2**29
COUNT_BYTES = 2**28
BATCH_BYTES = 2**26
# SAEs compute whole blocks of so many latents: a narrower chunk would cost the same.
BLOCK = 1024
# While a latent is counted, a pair costs both activities (2), difference (1), sorted copy (1), sums int32, float32 (8).
BYTES_PER_PAIR = 16
EFFECT_BYTES_PER_PAIR = 64  # beside it activations (8), their differences, sums and squares in float64
DISCOVERY = 0.05
EFFECT_SHARE = 0.02  # `effect` ranks latents that are active in at least this share of the training responses

Sides = tuple[np.ndarray, np.ndarray]


@runtime_checkable
class Encoder(Protocol):
    """What selection and projection need of a sparse autoencoder; `core.sae.autoencoder.SparseAutoencoder` has it."""

    @property
    def d_sae(self) -> int: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def device(self) -> Any: ...

    def kth_value(self, z: Tensor) -> Tensor | None: ...

    def encode_chunk(self, z: Tensor, latents: slice, kth: Tensor | None = None) -> Tensor: ...

    def encode_latents(self, z: Tensor, latent_ids: np.ndarray, kth: Tensor | None = None) -> Tensor: ...

    def directions(self, latent_ids: np.ndarray) -> np.ndarray: ...


def latent_frequencies(
    hidden: HiddenStates, pairs: PreferencePairs, sae: Encoder, config: SelectionConfig, keep: int, progress: Progress = no_progress
) -> tuple[LatentFrequencies, Resamples]:
    """Frequencies, votes, p- and q-values, held-out separations and bootstrap results of every latent.

    `pairs[i]` is the pair of `hidden.chosen_rows[i]`, with its split. `keep`: the largest K anyone will ask for.
    Raises DataError without training pairs.
    """
    train, held_out = pairs.rows_of("train"), pairs.rows_of("validation")
    if not len(train):
        raise DataError("there are no training pairs to select directions on", remedy="change the split ratios")
    used = np.concatenate([train, held_out])
    rows = np.unique(np.concatenate([hidden.chosen_rows[used], hidden.rejected_rows[used]]))
    sides = [(np.searchsorted(rows, hidden.chosen_rows[part]), np.searchsorted(rows, hidden.rejected_rows[part])) for part in (train, held_out)]
    dtype = np.dtype(np.float32 if config.selection == "effect" else np.bool_)
    tally = _Tally(sae.d_sae, pairs.take(train).prompt_groups(), config)
    for latents, active in _activity_chunks(hidden, rows, sae, dtype, progress):
        tally.count(latents, active, *sides)
    return tally.frequencies(keep, len(held_out)), tally.resamples(keep)


def _activity_chunks(
    hidden: HiddenStates, rows: np.ndarray, sae: Encoder, dtype: np.dtype[Any], progress: Progress
) -> Iterator[tuple[slice, Shaped[np.ndarray, "n_rows c"]]]:
    """For each chunk of latents, which are active (f_j > 0) in each response, or with a float `dtype` f_j itself (its mean
    where the whole response is read); TopK's k-th values come first."""
    states, kth = hidden.states, None if hidden.activity else kth_values(hidden.states, rows, sae)
    width = max(BLOCK, CHUNK_BYTES // dtype.itemsize // len(rows) // BLOCK * BLOCK)
    n_rows = max(1, BATCH_BYTES // (4 * max(states.shape[1], min(width, sae.d_sae))))
    for first in range(0, sae.d_sae, width):
        latents = slice(first, min(first + width, sae.d_sae))
        if hidden.activity is not None:
            yield latents, hidden.activity.block(latents, rows, len(states), dtype)
            progress("selection", latents.stop, sae.d_sae)
            continue
        active = np.empty((len(rows), latents.stop - first), dtype=dtype)
        for start in range(0, len(rows), n_rows):
            part = slice(start, start + n_rows)
            f = sae.encode_chunk(states_on_device(states, rows[part], sae), latents, None if kth is None else kth[part].to(sae.device))
            active[part] = (f if dtype.kind == "f" else f > 0).cpu().numpy()
            progress("selection", first + active.shape[1] * min(1.0, (start + n_rows) / len(rows)), sae.d_sae)
        yield latents, active


def kth_values(states: np.ndarray, rows: np.ndarray, sae: Encoder) -> Tensor | None:
    """Each response's k-th largest pre-activation over all latents, on the CPU; None where the SAE needs none."""
    n_rows = max(1, BATCH_BYTES // (4 * max(states.shape[1], sae.d_sae)))
    parts = []
    for start in range(0, len(rows), n_rows):
        kth = sae.kth_value(states_on_device(states, rows[start : start + n_rows], sae))
        if kth is None:
            return None
        parts.append(kth.cpu())
    return torch.cat(parts) if parts else None


def states_on_device(states: np.ndarray, rows: np.ndarray, sae: Encoder) -> Tensor:
    """These rows as float32 on the SAE's device: float16 states are never multiplied as float16."""
    return torch.from_numpy(states[rows].astype(np.float32)).to(sae.device)


class _Tally:
    """Counts per latent, filled chunk by chunk. Sums are whole numbers, so chunks and their order change nothing."""

    def __init__(self, d_sae: int, groups: Int[np.ndarray, " n_pairs"], config: SelectionConfig) -> None:
        self.groups, self.config = groups, config
        per_prompt = np.bincount(groups)
        self.weights = np.concatenate(list(resample_weights(len(per_prompt), config.resamples, config.seed)))
        self.drawn_pairs = self.weights @ per_prompt.astype(np.float32)
        self.chosen, self.rejected, self.n_active, self.votes_for, self.votes_against = (np.zeros(d_sae, dtype=np.int64) for _ in range(5))
        self.held_out = np.zeros(d_sae, dtype=np.int64)
        self.resampled = np.zeros((config.resamples, d_sae), dtype=np.float32)
        self.n_responses = 0
        effect = config.selection == "effect"
        self.effect = np.zeros(d_sae) if effect else None
        self.resampled_effect = np.zeros((config.resamples, d_sae), dtype=np.float32) if effect else None

    def count(self, latents: slice, active: Shaped[np.ndarray, "n_rows c"], train: Sides, held_out: Sides) -> None:
        """Adds a chunk of activations, or of which are active. `train` and `held_out`: rows of `active` of each pair's
        chosen and rejected response."""
        step = max(1, COUNT_BYTES // ((BYTES_PER_PAIR if self.effect is None else EFFECT_BYTES_PER_PAIR) * len(self.groups)))
        seen = np.unique(np.concatenate(train))
        self.n_responses = len(seen)
        for start in range(0, active.shape[1], step):
            part = active[:, start : start + step]
            these = slice(latents.start + start, latents.start + start + part.shape[1])
            self._count(these, part > 0, seen, train, held_out)
            if self.effect is not None:
                self._measure(these, part, train)

    def _count(self, latents: slice, active: np.ndarray, seen: np.ndarray, train: Sides, held_out: Sides) -> None:
        self.chosen[latents], self.rejected[latents] = (active[side].sum(axis=0) for side in train)
        self.n_active[latents] = active[seen].sum(axis=0)
        self.held_out[latents] = active[held_out[0]].sum(axis=0) - active[held_out[1]].sum(axis=0)
        by_prompt = prompt_sums(active[train[0]].astype(np.int8) - active[train[1]], self.groups)
        self.votes_for[latents], self.votes_against[latents] = (by_prompt > 0).sum(axis=0), (by_prompt < 0).sum(axis=0)
        # Whole numbers below 2^24 in float32: exact in any order of summation.
        self.resampled[:, latents] = self.weights @ by_prompt.astype(np.float32)

    def _measure(self, latents: slice, activity: Float[np.ndarray, "n_rows c"], train: Sides) -> None:
        """The paired effect: of each prompt the mean over its pairs of f_w - f_l, over prompts mean / standard error."""
        assert self.effect is not None and self.resampled_effect is not None
        by_prompt = prompt_sums(activity[train[0]].astype(np.float64) - activity[train[1]], self.groups) / np.bincount(self.groups)[:, None]
        self.effect[latents] = _standardised(np.ones((1, len(by_prompt))), by_prompt)[0]
        self.resampled_effect[:, latents] = _standardised(self.weights.astype(np.float64), by_prompt)

    def _eligible(self) -> np.ndarray:
        return self.n_active >= max(EFFECT_SHARE * self.n_responses, 1)

    def frequencies(self, keep: int, n_held_out: int) -> LatentFrequencies:
        n_pairs = len(self.groups)
        p_value = sign_test(self.votes_for, self.votes_against)
        effect = None if self.effect is None else np.where(self._eligible(), self.effect, 0.0)
        low, high = self._intervals(select(self.chosen - self.rejected if effect is None else effect, keep)[0])
        return LatentFrequencies(
            chosen=self.chosen / n_pairs,
            rejected=self.rejected / n_pairs,
            n_active=self.n_active,
            prompts_for=self.votes_for,
            prompts_against=self.votes_against,
            p_value=p_value,
            q_value=benjamini_hochberg(p_value, self.n_active >= self.config.min_active),
            held_out=self.held_out / n_held_out if n_held_out else np.full(len(p_value), np.nan),
            low=low,
            high=high,
            n_pairs=n_pairs,
            n_prompts=self.weights.shape[1],
            n_pairs_held_out=n_held_out,
            effect=effect,
        )

    def _intervals(self, ids: Int[np.ndarray, " n"]) -> Float[np.ndarray, "2 d_sae"]:
        """Percentile intervals of nabla for these latents; a resample's number of pairs depends on its prompts."""
        ends = np.full((2, self.resampled.shape[1]), np.nan)
        ends[:, ids] = percentile_interval(self.resampled[:, ids] / self.drawn_pairs[:, None].astype(np.float64))
        return ends

    def resamples(self, keep: int) -> Resamples:
        ranked = np.full((2, len(self.resampled), keep), -1, dtype=np.int32)
        ranked_by = self.resampled if self.resampled_effect is None else np.where(self._eligible(), self.resampled_effect, 0)
        for number, values in enumerate(ranked_by):
            ids, side = select(values, keep)
            for place, sign in enumerate((1, -1)):
                ranked[place, number, : (side == sign).sum()] = ids[side == sign]
        return Resamples(chosen=ranked[0], rejected=ranked[1])


def _standardised(weights: Float[np.ndarray, "r g"], by_prompt: Float[np.ndarray, "g c"]) -> Float[np.ndarray, "r c"]:
    """Mean over prompts divided by its standard error, for each resample's weights; 0 where nothing varies."""
    n = weights.sum(axis=1, keepdims=True)
    mean = weights @ by_prompt / n
    variance = np.maximum(weights @ by_prompt**2 / n - mean**2, 0) * n / np.maximum(n - 1, 1)
    error = np.sqrt(variance / n)
    return np.divide(mean, error, out=np.zeros_like(mean), where=error > 1e-12)


def selected_directions(frequencies: LatentFrequencies, resamples: Resamples, sae: Encoder, k: int) -> SelectedDirections:
    """The top K of each side, with decoder rows and stability. DataError: no latent separates the sides."""
    ids, side = select(frequencies.ranking, k)
    if not len(ids):
        raise DataError(
            "no latent is more often active on one side than on the other: there is nothing to select",
            found=f"{frequencies.n_pairs} training pairs, {int((frequencies.n_active > 0).sum())} latents ever active",
            remedy="use more pairs, another layer, or an SAE trained on this backbone and layer",
        )
    return SelectedDirections(
        latent_ids=ids,
        side=side,
        separation=frequencies.separation[ids],
        stability=stability(resamples, ids, side, k),
        directions=np.asarray(sae.directions(ids), dtype=np.float32),
        sae=dict(sae.identity),
    )


@dataclass(frozen=True, kw_only=True)
class SelectionSummary(JsonFields):
    """The selection in a few figures.

    `overlap`: mean share of the selected latents that a bootstrap resample of the prompts selects again (top-K
    overlap). `separation` against `separation_held_out`: mean over the selected latents, each on its own side, on
    training and on validation pairs; the fall is the winner's curse. `n_live` latents were tested, `n_discoveries` of
    them have q < 0.05.
    """

    k: int
    k_chosen: int
    k_rejected: int
    n_live: int
    n_discoveries: int
    overlap: float
    separation: float
    separation_held_out: float | None
    n_pairs: int
    n_prompts: int

    @property
    def note(self) -> str:
        """Says that a side has fewer than K latents; empty where both are full."""
        short = [f"{n} on the {side} side" for side, n in (("chosen", self.k_chosen), ("rejected", self.k_rejected)) if n < self.k]
        return f"fewer than K = {self.k} latents separate the sides: {' and '.join(short)}" if short else ""

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "note": self.note}


def selection_summary(frequencies: LatentFrequencies, selected: SelectedDirections, k: int) -> SelectionSummary:
    """What a selection of K amounts to."""
    held_out = frequencies.held_out[selected.latent_ids]
    return SelectionSummary(
        k=k,
        k_chosen=selected.k_chosen,
        k_rejected=selected.k_rejected,
        n_live=int(np.isfinite(frequencies.q_value).sum()),
        n_discoveries=int((frequencies.q_value < DISCOVERY).sum()),
        overlap=float(selected.stability.mean()),
        separation=float((selected.side * selected.separation).mean()),
        separation_held_out=float((selected.side * held_out).mean()) if frequencies.n_pairs_held_out else None,
        n_pairs=frequencies.n_pairs,
        n_prompts=frequencies.n_prompts,
    )

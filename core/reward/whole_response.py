"""What is read of whole responses in one batch: the mean of z over their own tokens, and their latents' activity.

Activity of all latents is computed for each token once (branches of a trunk share tokens) and reduced at once to each
response: mean, peak and the token of the peak, of the latents that are active somewhere in it (METHOD.md section 2).
Memory: 40 bytes for each active latent of each token of a batch (2,048 tokens with 90 active latents: 7 MB), and 16 bytes
for each latent of each response of a batch (131,072 latents and 60 responses: 126 MB).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from core.reward.packing import PackedBatch
from core.sae.autoencoder import SparseAutoencoder, row_chunks


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Entries of one batch, by response and latent, for the latents that are active at one of its own tokens: `members`
    are places in the batch; the other arrays as in `core.reward.hidden_states.LatentActivity`."""

    members: Int[np.ndarray, " n_entries"]
    latents: Int[np.ndarray, " n_entries"]
    mean: Float[np.ndarray, " n_entries"]
    peak: Float[np.ndarray, " n_entries"]
    peak_token: Int[np.ndarray, " n_entries"]


@dataclass(frozen=True, kw_only=True)
class WholeResponses:
    """One layer of one batch. `tokens` are the states of the own tokens of the kept members, in their order; `latents`
    the mean activity of the latents that were asked for by number; both None where nothing was asked for."""

    mean: Float[np.ndarray, "m d_model"]
    activity: Activity | None
    tokens: Float[np.ndarray, "n d_model"] | None
    latents: Float[np.ndarray, "m k"] | None


class WholeResponseReader:
    """Reduces the states of a batch to whole responses.

    `saes`: for each layer the SAE whose activity is wanted (a layer without one gives none). `latent_ids`: only these
    latents, dense, instead of all. `kept`: for each sequence whether the states of its own tokens are wanted.
    """

    def __init__(
        self,
        saes: Mapping[int, SparseAutoencoder] | None = None,
        latent_ids: Int[np.ndarray, " k"] | None = None,
        kept: Bool[np.ndarray, " n"] | None = None,
    ) -> None:
        self.saes, self.latent_ids, self.kept = saes or {}, latent_ids, kept

    @torch.no_grad()
    def read(self, states: torch.Tensor, batch: PackedBatch, layer: int) -> WholeResponses:
        """The whole responses of a batch, from the states [b, t, d_model] of one layer."""
        places, token_of_own = np.unique(batch.own, return_inverse=True)
        tokens = states.reshape(-1, states.shape[-1])[torch.from_numpy(places).to(states.device)].float()
        index, sae = torch.from_numpy(token_of_own).to(states.device), self.saes.get(layer)
        kept_members = None if self.kept is None else [i for i, member in enumerate(batch.members.tolist()) if self.kept[member]]
        own_of_kept = [token_of_own[batch.own_starts[i] : batch.own_starts[i + 1]] for i in kept_members or ()]
        chosen_latents = sae is not None and self.latent_ids is not None
        return WholeResponses(
            mean=_means(tokens, index, batch.own_starts),
            activity=None if sae is None or chosen_latents else _activity(sae, tokens, token_of_own, batch.own_starts),
            tokens=None if kept_members is None else tokens.cpu().numpy()[np.concatenate([np.zeros(0, dtype=np.int64), *own_of_kept])],
            latents=_means(sae.encode_latents(tokens, self.latent_ids), index, batch.own_starts) if sae and self.latent_ids is not None else None,
        )


def _means(values: torch.Tensor, index: torch.Tensor, starts: Int[np.ndarray, " m_plus_1"]) -> Float[np.ndarray, "m d"]:
    """The mean of each response's own rows: response by response, so that none depends on its neighbours."""
    own = [values[index[begin:end].to(values.device)].mean(dim=0) for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    means: np.ndarray = torch.stack(own).cpu().numpy()
    return means


def _activity(sae: SparseAutoencoder, tokens: torch.Tensor, token_of_own: np.ndarray, starts: Int[np.ndarray, " m_plus_1"]) -> Activity:
    """Entries of every response and active latent. `token_of_own`: the row of `tokens` of each own token."""
    token_parts, latent_parts, value_parts = [], [], []
    at = 0
    for rows in row_chunks(sae, tokens):
        token, latent, value = (part.cpu().numpy() for part in sae.active(rows))
        order = np.argsort(token, kind="stable")
        token_parts.append(token[order] + at)
        latent_parts.append(latent[order])
        value_parts.append(value[order])
        at += len(rows)
    entries = np.concatenate(token_parts), np.concatenate(latent_parts), np.concatenate(value_parts)
    return _by_response(*entries, token_of_own, starts, len(tokens), sae.d_sae)


def _by_response(
    tokens: np.ndarray, latents: np.ndarray, values: np.ndarray, token_of_own: np.ndarray, starts: np.ndarray, n_tokens: int, d_sae: int
) -> Activity:
    """Active (token, latent, value) triples, by token, reduced to (response, latent)."""
    per_token = np.bincount(tokens, minlength=n_tokens)
    first = np.cumsum(per_token) - per_token
    counts = per_token[token_of_own]  # active latents at each own token
    entry = np.repeat(first[token_of_own] - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
    n_own = np.diff(starts)
    member_of_own, number_of_own = np.repeat(np.arange(len(n_own)), n_own), np.arange(len(token_of_own)) - np.repeat(starts[:-1], n_own)
    key, value, token = np.repeat(member_of_own, counts) * d_sae + latents[entry], values[entry], np.repeat(number_of_own, counts)
    sums = np.bincount(key, weights=value, minlength=len(n_own) * d_sae)
    peak, first_token = np.zeros(len(sums), dtype=np.float32), np.full(len(sums), len(token_of_own), dtype=np.int32)
    np.maximum.at(peak, key, value)
    at_peak = value == peak[key]
    np.minimum.at(first_token, key[at_peak], token[at_peak].astype(np.int32))
    active = np.flatnonzero(sums)
    members = active // d_sae
    return Activity(
        members=members,
        latents=(active % d_sae).astype(np.int32),
        mean=(sums[active] / n_own[members]).astype(np.float32),
        peak=peak[active],
        peak_token=first_token[active],
    )

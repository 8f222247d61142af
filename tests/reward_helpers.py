"""Small synthetic inputs for the tests of core.reward: pairs, hidden states and an SAE with known results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.reward.hidden_states import HiddenStates
from core.types import HeadInputs, PreferencePair, PreferencePairs


@dataclass
class FakeSAE:
    """relu((z - offset) W - threshold), or with `k` the k largest of z W: the interface of `SparseAutoencoder`, in a
    few lines.
    """

    rows: np.ndarray
    threshold: float = 0.0
    offset: float = 0.0
    k: int = 0
    seen: list[tuple[int, slice]] = field(default_factory=list)

    @property
    def d_sae(self) -> int:
        return len(self.rows)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"source": "fake", "d_sae": len(self.rows)}

    @property
    def device(self) -> str:
        return "cpu"

    def kth_value(self, z: Tensor) -> Tensor | None:
        """Halfway between the k-th value and the next, like the real one, since a product's last bit can depend on the
        batch.
        """
        return ((z - self.offset) @ torch.from_numpy(self.rows.T)).topk(self.k + 1, dim=1).values[:, -2:].mean(dim=1) if self.k else None

    def encode_chunk(self, z: Tensor, latents: slice, kth: Tensor | None = None) -> Tensor:
        assert z.dtype == torch.float32
        self.seen.append((len(z), latents))
        return self._encode(z, latents, kth)

    def encode_latents(self, z: Tensor, latent_ids: np.ndarray, kth: Tensor | None = None) -> Tensor:
        return self._encode(z, latent_ids, kth)

    def _encode(self, z: Tensor, latents: slice | np.ndarray, kth: Tensor | None) -> Tensor:
        pre = (z - self.offset) @ torch.from_numpy(self.rows[latents].T)
        if self.k:
            assert kth is not None and len(kth) == len(z)
            return torch.where(pre >= kth[:, None], pre, 0.0).relu()
        return torch.relu(pre - self.threshold)

    def directions(self, latent_ids: np.ndarray) -> np.ndarray:
        return self.rows[latent_ids]


@dataclass
class World:
    """The inputs of a fit."""

    hidden: HiddenStates
    pairs: PreferencePairs
    sae: FakeSAE


def split_names(n_prompts: int, ratios: Sequence[float], rng: np.random.Generator) -> list[str]:
    """A split name for each prompt."""
    ends = np.round(np.cumsum(ratios) * n_prompts).astype(int)
    names = np.array(["train"] * ends[0] + ["validation"] * (ends[1] - ends[0]) + ["test"] * (n_prompts - ends[1]))
    return [str(name) for name in rng.permutation(names)]


def make_pairs(per_prompt: Sequence[int], splits: Sequence[str], meta: Mapping[str, Any] | None = None) -> PreferencePairs:
    """`per_prompt[g]` pairs of prompt g, in order, with distinct texts."""
    pairs, names = [], []
    for prompt, n in enumerate(per_prompt):
        for number in range(n):
            message = ({"role": "user", "content": f"Question {prompt}"},)
            name = f"p{prompt}-{number}"
            pairs.append(PreferencePair(pair_id=name, prompt=message, chosen=f"good {name}", rejected=f"bad {name}", meta=dict(meta or {})))
            names.append(splits[prompt])
    return PreferencePairs(pairs=tuple(pairs), split=tuple(names))


def make_hidden(states: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, n_tokens: np.ndarray | None = None) -> HiddenStates:
    return HiddenStates(
        states=states,
        chosen_rows=chosen,
        rejected_rows=rejected,
        pair_rows=np.arange(len(chosen)),
        n_tokens=np.ones(len(states), dtype=np.int64) if n_tokens is None else n_tokens,
        layer=1,
        position="response_end",
    )


def swap_labels(hidden: HiddenStates, pairs: PreferencePairs, seed: int) -> HiddenStates:
    """Chosen and rejected exchanged for a random half of the prompts, in all splits."""
    groups = pairs.prompt_groups()
    swapped = np.random.default_rng(seed).integers(2, size=groups.max() + 1).astype(bool)[groups]
    chosen = np.where(swapped, hidden.rejected_rows, hidden.chosen_rows)
    return replace(hidden, chosen_rows=chosen, rejected_rows=np.where(swapped, hidden.chosen_rows, hidden.rejected_rows))


def noise_world(n_prompts: int = 105, per_prompt: int = 3, d_model: int = 32, d_sae: int = 200, seed: int = 0) -> World:
    """Random preferences; pairs of a prompt resemble each other, since each side of each prompt has a style."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(d_sae, d_model)).astype(np.float32)
    n = n_prompts * per_prompt
    prompt, style = rng.normal(size=(n_prompts, 1, 1, d_model)), rng.normal(size=(n_prompts, 1, 2, d_model))
    states = prompt + style + rng.normal(size=(n_prompts, per_prompt, 2, d_model))
    pairs = make_pairs([per_prompt] * n_prompts, split_names(n_prompts, (0.4, 0.2, 0.4), rng))
    hidden = make_hidden(states.reshape(-1, d_model).astype(np.float32), np.arange(0, 2 * n, 2), np.arange(1, 2 * n, 2))
    return World(hidden, pairs, FakeSAE(rows, threshold=8.0))


def learnable_inputs(n_pairs: int, k: int, seed: int = 0) -> HeadInputs:
    """Inputs with different offsets and scales, preferred by a linear function with noise; two pairs share a response."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2 * n_pairs, k)) * rng.uniform(0.5, 20, k) + rng.normal(size=k) * 10
    quality = ((values - values.mean(0)) / values.std(0)) @ rng.normal(size=k) + rng.normal(size=2 * n_pairs)
    a, b = np.arange(n_pairs), np.arange(n_pairs) + n_pairs
    b[1] = b[0]
    first = quality[a] > quality[b]
    return HeadInputs(values=values.astype(np.float32), chosen_rows=np.where(first, a, b), rejected_rows=np.where(first, b, a))

"""`RewardParts`, the values of a reward model, and the table of its latents (files: `core.reward.parts_files`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from core.config import BackboneConfig, SAEConfig
from core.reward.head import Head
from core.types import LatentFrequencies, SelectedDirections, json_value

KINDS = ("sparserm", "random-isotropic", "random-rows", "dense", "activations")
WITH_DIRECTIONS = ("sparserm", "random-isotropic", "random-rows")
WITH_LATENTS = ("sparserm", "random-rows", "activations")


@dataclass(frozen=True, kw_only=True)
class RewardParts:
    """All that a reward model is: reward = head(directions @ z), with whatever names what z must be.

    `backbone` is the identity of the language model, `backbone_config` how it was read (layer and position among it).
    `sae` and `sae_config` name the SAE (None where none was used). `method` says how the model was fitted, `evaluation`
    how well it did (split name -> accuracy, low, high, n): JSON. `directions` is None for the kinds that project on
    nothing (`dense`: the head sees z; `activations`: f of `latent_ids`). `head` is the shipped one, `heads[i]` the head
    of `seeds[i]`. `projection_mean` and `projection_std` are of the head's inputs over training responses,
    `reward_quantiles` the 0th to 100th percentile of the reward over held-out responses, `margin_scale` the a of
    P(chosen wins) = sigmoid(a * margin). `selection` is one row a latent, see `selection_table`.
    """

    kind: str
    backbone: Mapping[str, Any]
    backbone_config: BackboneConfig
    head: Head
    heads: tuple[Head, ...]
    seeds: tuple[int, ...]
    projection_mean: Float[np.ndarray, " k"]
    projection_std: Float[np.ndarray, " k"]
    reward_quantiles: Float[np.ndarray, " 101"]
    margin_scale: float
    directions: Float[np.ndarray, "k d_model"] | None = None
    latent_ids: Int[np.ndarray, " k"] | None = None
    sae: Mapping[str, Any] | None = None
    sae_config: SAEConfig | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    selection: tuple[Mapping[str, Any], ...] = ()

    @property
    def layer(self) -> int:
        return self.backbone_config.layer

    @property
    def position(self) -> str:
        return self.backbone_config.position

    @property
    def d_model(self) -> int:
        return int(self.backbone["d_model"])

    @property
    def k(self) -> int:
        """Number of the head's inputs."""
        return int(self.head.weight_1.shape[1])


def selection_table(selected: SelectedDirections, frequencies: LatentFrequencies, **columns: Shaped[np.ndarray, " k"]) -> tuple[dict[str, Any], ...]:
    """One row a selected latent, in the directions' order, NaN as None; `columns`: further figures, k values each."""
    ids = selected.latent_ids
    table: dict[str, np.ndarray] = {
        "latent_id": ids,
        "side": np.where(selected.side > 0, "chosen", "rejected"),
        "separation": selected.separation,
        "low": frequencies.low[ids],
        "high": frequencies.high[ids],
        "held_out": frequencies.held_out[ids],
        "frequency_chosen": frequencies.chosen[ids],
        "frequency_rejected": frequencies.rejected[ids],
        "n_active": frequencies.n_active[ids],
        "prompts_for": frequencies.prompts_for[ids],
        "prompts_against": frequencies.prompts_against[ids],
        "p_value": frequencies.p_value[ids],
        "q_value": frequencies.q_value[ids],
        "stability": selected.stability,
        **columns,
    }
    return tuple({name: json_value(column[row]) for name, column in table.items()} for row in range(len(ids)))

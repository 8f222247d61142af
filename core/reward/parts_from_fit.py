"""From fitted families of heads to the contents of reward model folders: SparseRM and every control that has a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.config import FitConfig
from core.reward.fitting import Family, SparseFit
from core.reward.pair_counts import split_figures
from core.reward.parts import WITH_LATENTS, RewardParts, selection_table
from core.sae.autoencoder import SparseAutoencoder
from core.types import LatentFrequencies, SelectedDirections

FOUR = ("accuracy", "low", "high", "n")


@dataclass(frozen=True, kw_only=True)
class PartsMaker:
    """What all folders of one fit share: config, identities, frequencies, and how the fit was made (`method`, JSON, with `pair_counts`)."""

    config: FitConfig
    backbone: Mapping[str, Any]
    sae: SparseAutoencoder
    frequencies: LatentFrequencies
    method: Mapping[str, Any]

    def sparserm(self, sparse: SparseFit, entry: Mapping[str, Any]) -> RewardParts:
        """SparseRM's folder; `entry` is its line of the table (`Entry.to_json`)."""
        return self._parts(sparse.sparserm, entry, selection_table(sparse.selected, self.frequencies, detection_auroc=sparse.detection))

    def control(self, family: Family, entry: Mapping[str, Any]) -> RewardParts:
        """A control's folder. Where it has latents their figures stand in its table; nothing is known of their stability."""
        if family.latent_ids is None:
            return self._parts(family, entry, ())
        separation = self.frequencies.separation[family.latent_ids]
        latents = SelectedDirections(
            latent_ids=family.latent_ids,
            side=np.where(separation < 0, -1, 1),
            separation=separation,
            stability=np.full(len(separation), np.nan),
            directions=self.sae.directions(family.latent_ids),
            sae=dict(self.sae.identity),
        )
        return self._parts(family, entry, selection_table(latents, self.frequencies))

    def _parts(self, family: Family, entry: Mapping[str, Any], table: tuple[Mapping[str, Any], ...]) -> RewardParts:
        shipped, has_sae = family.heads[family.shipped], family.kind in WITH_LATENTS
        # Each draw of random directions has a head of its own; the other draws' directions are not kept, so their heads would mean nothing.
        kept = (shipped,) if family.kind.startswith("random") else family.heads
        figures = {"validation": entry["validation"], "test": {name: entry[name] for name in FOUR}}
        counts = self.method["pair_counts"]
        evaluation = {split: {**accuracy, **split_figures(counts, split)} for split, accuracy in figures.items()}
        return RewardParts(
            kind=family.kind,
            backbone=self.backbone,
            backbone_config=self.config.backbone,
            sae=dict(self.sae.identity) if has_sae else None,
            sae_config=self.config.sae if has_sae else None,
            method={**self.method, "shipped_seed": shipped.seed, "loss": shipped.loss},
            evaluation={split: accuracy for split, accuracy in evaluation.items() if accuracy["n"]},
            selection=table,
            head=shipped.head,
            heads=tuple(trained.head for trained in kept),
            seeds=tuple(trained.seed for trained in kept),
            directions=family.directions,
            latent_ids=family.latent_ids,
            projection_mean=family.projection_mean,
            projection_std=family.projection_std,
            reward_quantiles=family.reward_quantiles,
            margin_scale=family.margin_scale,
        )

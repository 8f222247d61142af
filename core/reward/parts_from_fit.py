"""From fitted families of heads to the contents of reward model folders: SparseRM and every control that has a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.config import FitConfig
from core.reward.fitting import HeadEnsemble, SparseFit
from core.reward.pair_counts import split_figures
from core.reward.parts import WITH_LATENTS, RewardParts, selection_table
from core.sae.autoencoder import SparseAutoencoder
from core.types import LatentFrequencies, SelectedDirections

FOUR = ("accuracy", "low", "high", "n")


@dataclass(frozen=True, kw_only=True)
class PartsFromFit:
    """What all folders of one fit share: config, identities, frequencies, and how the fit was made (`method`, JSON)."""

    config: FitConfig
    backbone: Mapping[str, Any]
    sae: SparseAutoencoder
    frequencies: LatentFrequencies
    method: Mapping[str, Any]

    def sparserm(self, sparse: SparseFit, entry: Mapping[str, Any]) -> RewardParts:
        """SparseRM's folder; `entry` is its line of the table (`Entry.to_json`)."""
        return self._parts(sparse.sparserm, entry, selection_table(sparse.selected, self.frequencies, detection_auroc=sparse.detection))

    def control(self, ensemble: HeadEnsemble, entry: Mapping[str, Any]) -> RewardParts:
        """A control's folder. Its table holds its latents' figures, if any; their stability was not measured."""
        if ensemble.latent_ids is None:
            return self._parts(ensemble, entry, ())
        separation = self.frequencies.separation[ensemble.latent_ids]
        latents = SelectedDirections(
            latent_ids=ensemble.latent_ids,
            side=np.where(separation < 0, -1, 1),
            separation=separation,
            stability=np.full(len(separation), np.nan),
            directions=self.sae.directions(ensemble.latent_ids),
            sae=dict(self.sae.identity),
        )
        return self._parts(ensemble, entry, selection_table(latents, self.frequencies))

    def _parts(self, ensemble: HeadEnsemble, entry: Mapping[str, Any], table: tuple[Mapping[str, Any], ...]) -> RewardParts:
        shipped, has_sae = ensemble.heads[ensemble.shipped], ensemble.kind in WITH_LATENTS
        # Each draw of random directions has its own head. Only the shipped draw's directions are kept, so only its head
        # is.
        kept = (shipped,) if ensemble.kind.startswith("random") else ensemble.heads
        figures = {"validation": entry["validation"], "test": {name: entry[name] for name in FOUR}}
        counts = self.method["pair_counts"]
        evaluation = {split: {**accuracy, **split_figures(counts, split)} for split, accuracy in figures.items()}
        return RewardParts(
            kind=ensemble.kind,
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
            directions=ensemble.directions,
            latent_ids=ensemble.latent_ids,
            projection_mean=ensemble.projection_mean,
            projection_std=ensemble.projection_std,
            reward_quantiles=ensemble.reward_quantiles,
            margin_scale=ensemble.margin_scale,
        )

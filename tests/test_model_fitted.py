"""What a fit saves scores as the fit's own table says: SparseRM and every control that has a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.backbone.model import Backbone, load_backbone
from core.backbone.presets import preset
from core.data.pairs import load_pairs
from core.data.splits import split_pairs
from core.fit.pipeline import FitOutcome, fit
from core.reward.evaluation import accuracy_of
from core.reward.model import SparseRM
from core.runs.store import Store
from core.types import PreferencePairs

KINDS = ("sparserm", "random-isotropic", "random-rows", "dense", "activations")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitOutcome, PreferencePairs, Backbone]:
    config = preset("tiny")
    head, selection = replace(config.head, seeds=2, epochs=30), replace(config.selection, resamples=10)
    config = replace(config, head=head, selection=selection, random_draws=2, curve=(8,))
    pairs = split_pairs(load_pairs(config.data)[0], config.data)
    return fit(config, Store(tmp_path_factory.mktemp("cache"))), pairs.take(pairs.rows_of("test")), load_backbone(config.backbone, depth=2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_scores_as_the_table_says(fitted: Any, kind: str) -> None:
    outcome, test, backbone = fitted
    folder = outcome.artefact if kind == "sparserm" else outcome.artefact / "controls" / kind
    entry: Mapping[str, Any] = outcome.evaluation["sparserm"] if kind == "sparserm" else outcome.evaluation["controls"][kind]
    reward_model = SparseRM.load(folder, backbone=backbone)
    shipped = reward_model.parts.method["shipped_seed"]
    assert reward_model.parts.kind == kind
    seeds = (shipped,) if kind.startswith("random") else tuple(range(len(entry["heads"])))
    assert reward_model.parts.seeds == seeds and shipped == entry["shipped"]
    chosen, rejected = reward_model.score_pairs(test)
    # The fit projects in float32, the reward model in float64: a pair nearer to a tie than that may fall either way. Exact ties stay ties.
    margins = chosen - rejected
    near = int(((margins != 0) & (np.abs(margins) < 1e-5)).sum())
    assert near <= 1 and abs(entry["accuracy"] - accuracy_of(margins[None], test.prompt_groups()).accuracy) <= near / len(test) + 1e-12
    figures = {name: entry[name] for name in ("accuracy", "low", "high", "n")}
    assert reward_model.parts.evaluation["test"] == {**figures, "n_refused": 0, "n_shortened": 0}
    held_out = np.quantile(np.unique(np.concatenate([chosen, rejected])), [0, 1])
    np.testing.assert_allclose(reward_model.parts.reward_quantiles[[0, -1]], held_out, atol=1e-4)


def test_the_table_of_latents_names_both_sides(fitted: Any) -> None:
    parts = SparseRM.load(fitted[0].artefact, backbone=fitted[2]).parts
    sides = [row["side"] for row in parts.selection]
    assert sides == sorted(sides) and set(sides) == {"chosen", "rejected"}
    for row, latent in zip(parts.selection, parts.latent_ids, strict=True):
        assert row["latent_id"] == latent and (row["separation"] > 0) == (row["side"] == "chosen") and row["low"] <= row["separation"] <= row["high"]

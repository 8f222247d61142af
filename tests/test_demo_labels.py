"""Labels of the embedded SAE: each latent that the demo's fit selects has one, in Neuronpedia's format, with what was measured of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from core.backbone.model import load_backbone
from core.backbone.presets import preset
from core.config import SAEConfig
from core.data.pairs import load_pairs
from core.data.splits import split_pairs
from core.fit.defaults import DEMO, DEMO_PAIRS, DEMO_SAE
from core.latents.label_book import SHIPPED_FILE, LabelBook
from core.latents.labels import EMBEDDING, SHIPPED, TOKENS
from core.reward.extraction import extract
from core.reward.hidden_states import load_hidden_states
from core.reward.selection import EFFECT_SHARE
from core.sae.autoencoder import load_sae

ROWS: list[dict[str, Any]] = [json.loads(line) for line in SHIPPED_FILE.read_text(encoding="utf-8").splitlines()]
PRESET = preset("smollm2-135m")
BLIND, N_BLIND, TEXTS = TOKENS, 30, 20


def scores(method: str) -> dict[int, dict[str, Any]]:
    return {int(row["index"]): score for row in ROWS for score in row["scores"] if score["explanationScoreTypeName"] == method}


@pytest.mark.slow  # minutes where the processor has no bfloat16
def test_every_latent_that_the_demo_selects_has_a_label(tmp_path: Path) -> None:
    """Selected again from the training split's own activity, by the t statistic of scipy."""
    config = replace(PRESET.data, pairs=str(DEMO_PAIRS))
    pairs = split_pairs(load_pairs(config)[0], config)
    train = pairs.take(pairs.rows_of("train"))
    backbone, sae = PRESET.backbone, load_sae(SAEConfig(path=str(DEMO_SAE)))
    loaded = load_backbone(backbone, depth=backbone.layer + 1)
    rules: dict[str, Any] = {"layers": [backbone.layer], "positions": ["response_mean"], "saes": {backbone.layer: sae}}
    extract(train, loaded, folder=tmp_path, scratch=tmp_path / "scratch", **rules)
    hidden = load_hidden_states(tmp_path, backbone.layer, "response_mean")
    assert hidden.activity is not None
    f = hidden.activity.columns(np.arange(sae.d_sae), len(hidden.states))
    common = (f > 0).mean(axis=0) >= EFFECT_SHARE
    effect = np.where(common, np.nan_to_num(ttest_1samp(f[hidden.chosen_rows] - f[hidden.rejected_rows], 0.0).statistic), 0.0)
    selected = {int(j) for side in (effect, -effect) for j in np.argsort(-side, kind="stable")[: PRESET.selection.k]}
    named = {int(row["index"]) for row in ROWS}
    assert len(selected) == 2 * PRESET.selection.k
    assert len(selected & named) >= len(selected) - 2, "rounding may move one latent a side across the cut"


def test_the_book_gives_each_latent_its_shipped_label(tmp_path: Path) -> None:
    book = LabelBook(load_sae(SAEConfig(path=str(DEMO_SAE))).identity, root=tmp_path)
    assert not book.refused
    assert {latent: label.text for latent, label in book.labels().items()} == {int(row["index"]): row["description"] for row in ROWS}
    assert {label.source for label in book.labels().values()} == {SHIPPED}


def test_form() -> None:
    """One label a latent, in words: short, on one line, with its method, model and date."""
    assert max(Counter(row["index"] for row in ROWS).values()) == 1 and len(ROWS) >= 2 * PRESET.selection.k
    for row in ROWS:
        assert isinstance(row["index"], str) and 3 <= len(row["description"]) <= 120 and "\n" not in row["description"]
        assert row["typeName"] and row["explanationModelName"] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["createdAt"])
    texts = Counter(row["description"].lower() for row in ROWS if "no clear pattern" not in row["description"])
    assert max(texts.values()) <= 3  # labels tell latents apart


def test_scores() -> None:
    """The embedding scorer on nearly all, a blind reading of thirty: values with intervals, and the card's summary of them."""
    embedding, blind = scores(EMBEDDING), scores(BLIND)
    assert len(embedding) >= 0.9 * len(ROWS) and len(blind) == N_BLIND
    for score in (*embedding.values(), *blind.values()):
        assert score["low"] <= score["value"] <= score["high"] and score["n"] >= 10
    assert all(score["n"] == TEXTS and (score["value"] * TEXTS) % 1 == pytest.approx(0) for score in blind.values())
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    assert f"median {np.median([score['value'] for score in embedding.values()]):.2f}" in card
    if blind:
        assert f"right on {np.mean([score['value'] for score in blind.values()]):.2f}" in card

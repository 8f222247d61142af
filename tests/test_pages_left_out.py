"""Pairs that a fit could not read are said on every page of its reward model; a damaged or older folder, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pages_helpers import open_page, words
from streamlit.testing.v1 import AppTest

from core.backbone.presets import preset
from core.fit.pipeline import fit
from core.runs.store import Store, cache_root
from workbench.frame import left_out, models
from workbench.frame.models import FittedModel

LIMIT = 50  # tokens: 40 of the toy's 100 pairs are longer
PAGES = ("overview", "preferences", "latents", "latent", "spaces", "doctor", "response", "compare")


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[Path]:
    """A cache of its own with one fit that could not read all pairs."""
    root = cache_root() / "left-out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSERM_CACHE", str(root))
        config = preset("tiny")
        small = {"head": replace(config.head, seeds=2, epochs=5), "selection": replace(config.selection, resamples=20), "random_draws": 1}
        fit(replace(config, backbone=replace(config.backbone, max_length=LIMIT), curve=(4,), **small), Store(root))
        yield root


@pytest.fixture
def model() -> FittedModel:
    return models.models()[0]


def headline_of(at: AppTest) -> list[str]:
    return [one.label for one in at.expander if one.label.startswith("Not in these figures")]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_how_many_pairs_are_not_in_its_figures(model: FittedModel, page: str) -> None:
    counts = model.evaluation["pair_counts"]
    lost, test = counts["n_pairs_refused"], counts["splits"]["test"]
    assert lost and counts["n_pairs"] == 100
    at = open_page(page)
    assert not at.exception
    expected = f"Not in these figures: {lost} of 100 pairs could not be read ({test['n_refused']} of {test['n_pairs']} test pairs)"
    assert headline_of(at) == [expected]
    assert f"more than {LIMIT} tokens: {lost} pairs" in words(at)


def test_overview_states_what_is_missing_or_that_nothing_is(model: FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any("can't read" in line for line in left_out.counted(model))
    whole = json.loads(json.dumps(model.evaluation))
    for name in ("n_pairs_refused", "n_refused", "n_shortened", "n_rows_refused"):
        whole["pair_counts"][name] = 0
    monkeypatch.setattr(FittedModel, "evaluation", property(lambda _self: whole))
    assert left_out.counted(model) == ["All 100 pairs were read; nothing was left out."]
    monkeypatch.setattr(FittedModel, "about", property(lambda _self: {"pair_counts": whole["pair_counts"]}))
    assert left_out.headline(model) == ""


def test_a_model_of_an_older_version_states_the_missing_counts(model: FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    older = {name: value for name, value in model.evaluation.items() if name != "pair_counts"}
    config = {name: value for name, value in model.config.items() if name not in ("files", "config_sha256")}
    monkeypatch.setattr(FittedModel, "evaluation", property(lambda _self: older))
    monkeypatch.setattr(FittedModel, "config", property(lambda _self: config))
    assert left_out.lines(model) == [left_out.NOT_COUNTED, left_out.NO_RECORD]
    at = open_page("overview")
    assert not at.exception and left_out.NOT_COUNTED in words(at) and left_out.NO_RECORD in words(at)


@pytest.mark.parametrize("page", PAGES)
def test_a_damaged_file_is_named_on_every_page(model: FittedModel, page: str) -> None:
    path = model.path / "heads.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        at = open_page(page)
        assert not at.exception
        assert "heads.safetensors is damaged: it is not as it was saved" in words(at) and "fit it again" in words(at)
    finally:
        path.write_bytes(whole)

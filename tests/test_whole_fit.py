"""A fit that reads whole responses, beside one that reads as the paper does: one pass, equal scores, tokens, evidence."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.backbone.presets import preset
from core.config import FitConfig, LatentsConfig
from core.fit.pipeline import FitOutcome, fit
from core.latents.find_pages import find_any_pages, find_pages
from core.reward import shards
from core.reward.model import SparseRM
from core.runs.store import Store
from workbench.frame.models import FittedModel, models
from workbench.overview.charts import accuracy_bars
from workbench.overview.values import as_the_paper_reads


def config(position: str, selection: str) -> FitConfig:
    tiny = preset("tiny")
    backbone = replace(tiny.backbone, position=position, also_read=("response_end",) if position == "response_mean" else ())
    return replace(tiny, backbone=backbone, selection=replace(tiny.selection, selection=selection))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache").resolve()


@pytest.fixture(scope="module")
def whole(cache: Path) -> FitOutcome:
    return fit(config("response_mean", "effect"), Store(cache))


@pytest.fixture(scope="module")
def paper(cache: Path, whole: FitOutcome) -> FitOutcome:
    return fit(config("response_end", "frequency"), Store(cache))


def model_of(cache: Path, outcome: FitOutcome) -> FittedModel:
    return next(model for model in models(cache) if model.path == outcome.artefact)


def test_one_pass_serves_both_readings(cache: Path, whole: FitOutcome, paper: FitOutcome) -> None:
    assert len([name for name, _ in Store(cache).all("extraction")]) == 1
    assert [outcome.about["position"] for outcome in (whole, paper)] == ["response_mean", "response_end"]
    assert whole.about["selection"] != paper.about["selection"]
    alone = fit(config("response_end", "frequency"), Store(cache / "alone"))
    assert alone.evaluation == paper.evaluation, "a position read beside another one gives the very same states"
    assert alone.artefact.name == paper.artefact.name


@pytest.mark.parametrize("kind", ["", "dense", "activations", "random-rows"])
def test_texts_score_as_the_fit_measured_them(cache: Path, whole: FitOutcome, kind: str) -> None:
    folder = model_of(cache, whole)
    pairs, numbers = folder.pairs, folder.responses.pairs_of_split("test")[:6].tolist()
    scorer = SparseRM.load(folder.path / "controls" / kind if kind else folder.path, device="cpu")
    chosen, rejected = scorer.score_pairs([pairs[i] for i in numbers])
    if kind:
        alone = [scorer.score_pairs([pairs[i]]) for i in numbers]
        np.testing.assert_allclose(chosen - rejected, [float(won[0] - lost[0]) for won, lost in alone], atol=1e-4)
        return
    np.testing.assert_allclose(np.stack([chosen, rejected], axis=1), folder.pair_rewards[numbers], atol=1e-4)


def test_the_kept_tokens_are_those_of_held_out_responses(cache: Path, whole: FitOutcome, paper: FitOutcome) -> None:
    folder = model_of(cache, whole)
    kept, responses = folder.tokens, folder.responses
    assert kept is not None and set(kept.rows.tolist()) == set(responses.held_out.tolist())
    for row in kept.rows.tolist():
        tokens, texts = kept.of(row), responses.texts(row)
        assert tokens is not None and texts is not None and len(tokens) == responses.n_tokens[row]
        np.testing.assert_allclose(tokens.projections.mean(axis=0), responses.projections[row], atol=1e-4)
        assert tokens.activations is not None
        np.testing.assert_allclose(tokens.activations.mean(axis=0), responses.activations[row], atol=1e-3)
        assert "".join(texts[1][a:b] for a, b in tokens.offsets.tolist()) == texts[1].strip()
    assert model_of(cache, paper).tokens is None


def test_every_selected_latent_has_its_page_right_after_the_fit(cache: Path, whole: FitOutcome, paper: FitOutcome) -> None:
    folder = model_of(cache, whole)
    pages = find_any_pages(folder)
    assert pages is not None and find_pages(folder, LatentsConfig()) is None, "no larger corpus has been read"
    assert folder.parts.latent_ids is not None
    assert set(pages) == set(folder.parts.latent_ids.tolist())
    responses = folder.responses
    train = {texts[1].strip() for row in responses.train.tolist() if (texts := responses.texts(row))}
    for latent, page in pages.items():
        row = responses.activations[responses.train][:, folder.parts.latent_ids.tolist().index(latent)]
        assert bool(page["activations"]) == bool((row > 0).any())
        for window in page["activations"]:
            text = "".join(window["tokens"]).strip()
            assert any(text in whole_text for whole_text in train), "contexts are of training responses"
            assert max(window["values"]) == window["values"][window["maxValueTokenIndex"]] > 0
    assert find_any_pages(model_of(cache, paper)) is None or folder.parts.latent_ids.tolist() != model_of(cache, paper).parts.latent_ids


def test_overview_shows_the_papers_reading_beside(cache: Path, whole: FitOutcome, paper: FitOutcome) -> None:
    folder = model_of(cache, whole)
    reading = as_the_paper_reads(folder)
    assert reading is not None and as_the_paper_reads(model_of(cache, paper)) is None
    assert reading.row["accuracy"] == paper.evaluation["sparserm"]["mean"]["accuracy"]
    mine, theirs = (outcome.evaluation["sparserm"]["mean"]["accuracy"] for outcome in (whole, paper))
    assert f"{100 * (mine - theirs):+.1f} points" in reading.sentence
    bars = accuracy_bars(folder.evaluation, [reading.row])
    assert "As the paper reads it" in [row["name"] for row in bars.rows]


def test_a_damaged_model_beside_breaks_nothing(cache: Path, whole: FitOutcome, paper: FitOutcome, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy, ignore=shutil.ignore_patterns("alone"))
    damaged = next(copy.glob(f"artefacts/reward_model/*/{paper.artefact.name}/config.json"))
    damaged.write_text("{}")
    assert as_the_paper_reads(next(model for model in models(copy) if model.path.name == whole.artefact.name)) is None


def test_a_fit_that_keeps_no_tokens_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shards, "TOKEN_BYTES", 0)
    outcome = fit(config("response_mean", "effect"), Store(tmp_path.resolve()))
    assert "kept single tokens of no training response" in caplog.text
    folder = model_of(tmp_path.resolve(), outcome)
    assert find_any_pages(folder) is None and folder.tokens is not None and len(folder.tokens.rows) == 0

"""The controls: simple probes against scikit-learn and cases by hand, shortcut detectors on real data, and all of them in one small fit."""

from __future__ import annotations

import csv
import gzip
import json
import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from real_data import real_data
from reward_helpers import World, make_hidden, noise_world
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from core.config import FitConfig, HeadConfig, SelectionConfig
from core.reward.controls import difference_of_means, fit_logistic, length_only, linear_probe, wording_only
from core.reward.curve import CURVE_KINDS, accuracy_curve
from core.reward.fitting import Controls, SparseFit, evaluate_fit, fit_controls, fit_sparserm, largest_k
from core.reward.head_inputs import activation_task, margins_of, train_tasks
from core.reward.selection import Resamples, latent_frequencies, selected_directions
from core.types import LatentFrequencies, PreferencePair, PreferencePairs, no_progress

CONFIG = FitConfig(selection=SelectionConfig(k=6, resamples=20), head=HeadConfig(epochs=5, hidden=16, seeds=3), random_draws=2, curve=(2, 6, 50, 60))


def world_with_signal() -> World:
    """Chosen responses lie a little to one side in z."""
    world = noise_world(n_prompts=120, per_prompt=2)
    world.hidden.states[world.hidden.chosen_rows, :3] += 0.8
    return world


@cache
def fitted() -> tuple[World, LatentFrequencies, Resamples, SparseFit, Controls]:
    world = world_with_signal()
    frequencies, resamples = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG.selection, largest_k(CONFIG))
    sparse_fit = fit_sparserm(world.hidden, world.pairs, world.sae, frequencies, resamples, CONFIG)
    controls = fit_controls(world.hidden, world.pairs, world.sae, sparse_fit.selected, frequencies, CONFIG)
    return world, frequencies, resamples, sparse_fit, controls


def test_logistic_on_differences_is_sklearns_without_intercept() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(200, 8)) + rng.normal(size=8) * 0.3
    turned = np.where(np.arange(200) % 2, 1.0, -1.0)
    for strength in (0.01, 1.0):
        reference = LogisticRegression(C=strength, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(differences * turned[:, None], turned)
        np.testing.assert_allclose(fit_logistic(differences, strength), reference.coef_[0], atol=2e-4)
        np.testing.assert_allclose(fit_logistic(sparse.csr_matrix(differences), strength), reference.coef_[0], atol=2e-4)
        np.testing.assert_allclose(fit_logistic(differences.astype(np.float32), strength), reference.coef_[0], atol=2e-3)


def test_difference_of_means_by_hand() -> None:
    states = np.array([[1, 0], [0, 0], [3, 1], [0, 1], [5, 5], [1, 0], [9, 9], [0, 0]], dtype=np.float32)
    hidden = make_hidden(states, np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7]))
    probe = difference_of_means(hidden, np.array([0, 1]))
    direction = np.array([2.0, 0.0])
    np.testing.assert_allclose(probe.margins, (states[::2] - states[1::2]) @ direction)
    assert probe.n_parameters == 2


def test_linear_probe_chooses_its_penalty_on_validation() -> None:
    world = world_with_signal()
    train, validation = (world.pairs.rows_of(split) for split in ("train", "validation"))
    probe = linear_probe(world.hidden, train, validation)
    z = (world.hidden.chosen - world.hidden.rejected).astype(float)
    std = np.concatenate([world.hidden.chosen[train], world.hidden.rejected[train]]).std(0)
    turned = np.where(np.arange(len(train)) % 2, 1.0, -1.0)
    best: tuple[int, float, np.ndarray] = (-1, 0.0, std)
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        model = LogisticRegression(C=strength, fit_intercept=False, tol=1e-9, max_iter=10_000).fit((z / std)[train] * turned[:, None], turned)
        margins = (z / std) @ model.coef_[0]
        right = int((margins[validation] > 0).sum())
        best = max(best, (right, -strength, margins), key=lambda one: one[:2])
    assert probe.note == f"C = {-best[1]:g}"
    np.testing.assert_allclose(probe.margins, best[2], atol=1e-2 * best[2].std())
    assert (probe.margins[world.pairs.rows_of("test")] > 0).mean() > 0.6


@pytest.mark.parametrize(("sign", "note"), [(1, "more tokens win"), (-1, "fewer tokens win")])
def test_length_only_takes_its_side_from_train(sign: int, note: str) -> None:
    n_tokens = np.array([5, 3, 5, 3, 4, 4, 3, 5])
    rows = np.arange(0, 8, 2), np.arange(1, 8, 2)
    chosen, rejected = rows if sign > 0 else rows[::-1]
    probe = length_only(make_hidden(np.zeros((8, 2), dtype=np.float32), chosen, rejected, n_tokens), np.array([0, 1]))
    assert probe.note == note
    assert (probe.margins > 0).tolist() == [True, True, False, False], "a tie and the other way round are wrong"
    assert probe.margins[2] == 0


def texts(chosen: list[str], rejected: list[str], splits: list[str]) -> PreferencePairs:
    prompt = ({"role": "user", "content": "?"},)
    pairs = [PreferencePair(pair_id=str(i), prompt=prompt, chosen=w, rejected=lost) for i, (w, lost) in enumerate(zip(chosen, rejected, strict=True))]
    return PreferencePairs(pairs=tuple(pairs), split=tuple(splits))


def test_wording_only_reads_words_and_bigrams_of_training_texts() -> None:
    chosen = ["Sorry, I can't.", "Sorry, no way.", "Sorry about it.", "I won't, sorry.", "zebra", "Sorry."]
    rejected = ["Sure, do it.", "Sure thing.", "Yes, sure.", "Sure.", "yak", "Sure."]
    pairs = texts(chosen, rejected, ["train"] * 3 + ["validation"] + ["test"] * 2)
    probe = wording_only(pairs, pairs.rows_of("train"), pairs.rows_of("validation"))
    assert (probe.margins[[0, 1, 2, 3, 5]] > 0).all()
    assert probe.margins[4] == 0, "words never seen in training count nothing"
    not_good = texts(["not good", "good day"], ["good not", "day good"], ["train", "validation"])
    assert wording_only(not_good, np.array([0]), np.array([1])).margins[0] > 0, "only a bigram tells these apart"
    assert (wording_only(texts(["…", " "], ["—", "  "], ["train", "validation"]), np.array([0]), np.array([1])).margins == 0).sum() >= 1


def truthfulqa_pairs(seed: int) -> PreferencePairs:
    """Correct x incorrect answers, each answer once, at most 4 a question; split 4:1:5 by question."""
    rng, pairs, splits = random.Random(seed), [], []
    with real_data("truthfulqa/TruthfulQA.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rng.shuffle(rows)
    for number, row in enumerate(rows):
        right, wrong = ([a.strip() for a in row[name].split(";") if a.strip()] for name in ("Correct Answers", "Incorrect Answers"))
        rng.shuffle(right)
        rng.shuffle(wrong)
        for w, lost in list(zip(right, wrong, strict=False))[:4]:
            pairs.append((w, lost))
            splits.append("train" if number < 0.4 * len(rows) else "validation" if number < 0.5 * len(rows) else "test")
    return texts([w for w, _ in pairs], [lost for _, lost in pairs], splits)


def harmless_pairs(seed: int) -> PreferencePairs:
    with gzip.open(real_data("hh_rlhf/harmless-base_test.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    last = [[row[side].rsplit("\n\nAssistant:", 1)[-1].strip() for side in ("chosen", "rejected")] for row in rows]
    answers = [pair for pair in last if all(pair) and pair[0] != pair[1]]
    random.Random(seed).shuffle(answers)
    n = len(answers)
    splits = ["train" if i < 0.4 * n else "validation" if i < 0.5 * n else "test" for i in range(n)]
    return texts([w for w, _ in answers], [lost for _, lost in answers], splits)


@pytest.mark.slow
@pytest.mark.parametrize(("load", "least"), [(truthfulqa_pairs, 0.72), (harmless_pairs, 0.55)])
def test_wording_only_finds_the_shortcuts_of_real_data(load: object, least: float) -> None:
    assert callable(load)
    shares = []
    for pairs in (load(seed) for seed in range(3)):
        probe = wording_only(pairs, pairs.rows_of("train"), pairs.rows_of("validation"))
        shares.append((probe.margins[pairs.rows_of("test")] > 0).mean())
    assert np.mean(shares) >= least


def test_a_fit_trains_every_head_of_the_table() -> None:
    world, frequencies, _, fit, controls = fitted()
    assert {loss: len(family.heads) for loss, family in fit.losses.items()} == {"margin": 3, "bradley-terry": 3, "bce": 3}
    assert fit.sparserm is fit.losses["margin"]
    assert {kind: len(family.heads) for kind, family in controls.families.items()} == {
        "random-isotropic": 2, "random-rows": 2, "activations": 3, "dense": 3,
    }  # fmt: skip
    assert [probe.kind for probe in controls.probes] == ["difference-of-means", "linear-probe", "wording-only", "length-only"]
    k = len(fit.selected.latent_ids)
    for kind, family in controls.families.items():
        wide = world.hidden.d_model if kind == "dense" else k
        assert all(head.head.weight_1.shape == (16, wide) for head in family.heads), kind
        assert family.margins.shape == (len(family.heads), len(world.pairs))
    rows = controls.families["random-rows"]
    assert rows.latent_ids is not None and np.isfinite(frequencies.q_value[rows.latent_ids]).all()
    np.testing.assert_array_equal(rows.directions, world.sae.rows[rows.latent_ids])
    assert controls.families["dense"].directions is None is controls.families["dense"].latent_ids
    np.testing.assert_array_equal(controls.families["activations"].latent_ids, fit.selected.latent_ids)


def test_what_ships_is_what_was_measured() -> None:
    """Saved directions and head give the margins again; figures beside them are of the training and of held-out responses."""
    world, _, _, fit, controls = fitted()
    for family in (fit.sparserm, controls.families["random-isotropic"], controls.families["random-rows"]):
        assert family.directions is not None
        v = world.hidden.states.astype(float) @ family.directions.T
        rewards = family.heads[family.shipped].head.reward(v)
        margins = rewards[world.hidden.chosen_rows] - rewards[world.hidden.rejected_rows]
        np.testing.assert_allclose(margins, family.margins[family.shipped], atol=1e-5 * margins.std())
        train, test = world.pairs.rows_of("train"), world.pairs.rows_of("test")
        both = np.concatenate([v[world.hidden.chosen_rows[train]], v[world.hidden.rejected_rows[train]]])
        np.testing.assert_allclose(family.projection_mean, both.mean(0), atol=1e-5)
        np.testing.assert_allclose(family.projection_std, both.std(0), rtol=1e-5)
        held_out = rewards[np.concatenate([world.hidden.chosen_rows[test], world.hidden.rejected_rows[test]])]
        np.testing.assert_allclose(family.reward_quantiles[[0, 50, 100]], np.quantile(held_out, [0, 0.5, 1]), rtol=1e-5)
        assert family.margin_scale > 0


def test_evaluation_has_the_whole_table() -> None:
    world, _, _, fit, controls = fitted()
    evaluation = evaluate_fit(world.pairs, fit, controls)
    assert list(evaluation.controls) == [
        "random-isotropic", "random-rows", "activations", "dense", "difference-of-means", "linear-probe", "wording-only", "length-only",
    ]  # fmt: skip
    assert evaluation.losses["margin"].accuracy == evaluation.sparserm.accuracy
    test = world.pairs.rows_of("test")
    for family in controls.families.values():
        entry = evaluation.controls[family.kind]
        assert entry.accuracy.accuracy == pytest.approx((family.margins[family.shipped, test] > 0).mean())
        assert entry.mean.accuracy == pytest.approx((family.margins[:, test] > 0).mean())
        assert entry.lead is not None
        assert entry.lead.difference == pytest.approx(evaluation.sparserm.mean.accuracy - entry.mean.accuracy)
    assert evaluation.controls["dense"].n_parameters == 16 * 32 + 16 + 16 + 1


def test_curve_points_are_heads_trained_at_that_k() -> None:
    world, frequencies, resamples, _, _ = fitted()
    points = accuracy_curve(world.hidden, world.pairs, world.sae, frequencies, resamples, CONFIG, seeds=2, draws=2)
    assert [(point.k, point.kind) for point in points] == [(k, kind) for k in CONFIG.curve for kind in CURVE_KINDS]
    assert {(point.k, point.n_directions) for point in points} >= {(2, 4), (6, 12)}
    assert all(point.n_heads == 2 and point.deviation is not None for point in points)
    validation = world.pairs.rows_of("validation")
    small = selected_directions(frequencies, resamples, world.sae, 2)
    tasks = activation_task(world.hidden, small, world.sae).seeds(2)
    heads = train_tasks(tasks, world.pairs, CONFIG.head, ["margin"] * 2, no_progress, "curve")
    shares = [(margins_of(head, task.inputs, validation) > 0).mean() for head, task in zip(heads, tasks, strict=True)]
    point = next(point for point in points if (point.k, point.kind) == (2, "activations"))
    assert point.accuracy.accuracy == pytest.approx(np.mean(shares)) and point.accuracy.n == len(validation)
    assert point.to_json()["accuracy"] == point.accuracy.accuracy


def test_curve_reuses_what_the_fit_has_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    world, frequencies, resamples, fit, controls = fitted()
    families = {"sparserm": fit.sparserm} | dict(controls.families)
    known = {kind: family.margins for kind, family in families.items()}
    config = replace(CONFIG, curve=(CONFIG.selection.k,))
    trained = accuracy_curve(world.hidden, world.pairs, world.sae, frequencies, resamples, config)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("core.reward.curve.train_tasks", refuse)
    assert accuracy_curve(world.hidden, world.pairs, world.sae, frequencies, resamples, config, known=known) == trained


def test_curve_trains_equal_selections_once() -> None:
    world, frequencies, _, _, _ = fitted()
    seen: list[float] = []
    config = replace(CONFIG, curve=(100, 150, 200))
    resampled = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG.selection, 200)[1]
    points = accuracy_curve(
        world.hidden, world.pairs, world.sae, frequencies, resampled, config, progress=lambda step, done, total, **_: seen.append(done)
    )
    assert len({point.n_directions for point in points}) == 1, "fewer than 100 latents lie on either side"
    assert sum(done <= 1 for done in seen) == len(seen) - 2, "the second and third K train nothing"
    assert [replace(point, k=0) for point in points[:4]] == [replace(point, k=0) for point in points[4:8]]


def test_without_test_pairs_a_fit_still_stands() -> None:
    world, frequencies, resamples, _, _ = fitted()
    splits = tuple("unused" if split == "test" else split for split in world.pairs.split)
    pairs = PreferencePairs(pairs=world.pairs.pairs, split=splits)
    fit = fit_sparserm(world.hidden, pairs, world.sae, frequencies, resamples, CONFIG)
    controls = fit_controls(world.hidden, pairs, world.sae, fit.selected, frequencies, CONFIG)
    said = evaluate_fit(pairs, fit, controls).to_json()
    assert said["sparserm"]["accuracy"] is None and said["sparserm"]["n"] == 0
    assert said["sparserm"]["validation"]["n"] == len(pairs.rows_of("validation"))
    assert json.dumps(said, allow_nan=False)

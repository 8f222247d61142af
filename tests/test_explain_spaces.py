"""Dense against sparse: figures against scikit-learn and by hand, what must not fool them, and pictures that can be made again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples, silhouette_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from core.cli.model_outcomes import print_spaces
from core.config import SpacesConfig
from core.explain.spaces import (
    compare_spaces,
    figures_of,
    labels_of,
    load_spaces,
    picture,
    sampled,
    save_spaces,
    separation_scores,
    splits_of,
    standardised,
)
from core.reward.fit_responses import FitResponses
from core.statistics.estimates import mean_over_prompts

CONFIG = SpacesConfig(perplexity=5, neighbours=5, random_draws=2)


def make_known(projections: np.ndarray, prompts: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, split: np.ndarray) -> FitResponses:
    n = len(projections)
    return FitResponses(
        projections=projections.astype(np.float32),
        activations=np.zeros_like(projections, dtype=np.float32),
        n_tokens=np.ones(n, dtype=np.int64),
        prompt_ids=prompts.astype(np.int64) * 7,
        response_ids=np.arange(n),
        chosen_rows=chosen.astype(np.int64),
        rejected_rows=rejected.astype(np.int64),
        split=split.astype(np.int64),
    )


def world(n_prompts: int = 40, gap: float = 3.0, d: int = 12, k: int = 4, seed: int = 0) -> tuple[FitResponses, np.ndarray]:
    """Two responses a prompt. In z a prompt's responses lie together; the first coordinates of z, which are v, tell the labels `gap` apart."""
    rng = np.random.default_rng(seed)
    z = np.repeat(rng.normal(size=(n_prompts, 1, d)) * 4, 2, axis=1) + rng.normal(size=(n_prompts, 2, d))
    z[:, :, :k] = rng.normal(size=(n_prompts, 2, k))
    z[:, 0, 0] += gap
    rows = np.arange(2 * n_prompts).reshape(-1, 2)
    z = z.reshape(-1, d).astype(np.float32)
    split = np.repeat([0, 1, 2], [n_prompts // 4, n_prompts // 4, n_prompts - 2 * (n_prompts // 4)])
    return make_known(z[:, :k], np.arange(n_prompts).repeat(2), rows[:, 0], rows[:, 1], split), z


# --- the two figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_prompts", "size"), [(60, 1), (20, 3)])
def test_neighbours_equal_scikit_learns_without_whole_prompts(n_prompts: int, size: int) -> None:
    rng = np.random.default_rng(n_prompts)
    points, label = rng.normal(size=(n_prompts * size, 6)), rng.choice([1, -1], n_prompts * size)
    points[label > 0] += 0.7
    groups = np.arange(n_prompts).repeat(size)
    said = cross_val_predict(KNeighborsClassifier(7), points, label, groups=groups, cv=LeaveOneGroupOut())
    np.testing.assert_array_equal(separation_scores(points, label, groups, 7)[0], said == label)


def test_silhouette_equals_scikit_learns_with_single_responses() -> None:
    rng = np.random.default_rng(0)
    points, label = rng.normal(size=(300, 5)) + 100, rng.choice([1, -1], 300)  # far from 0: distances by products must not lose digits
    points[label > 0] += 0.5
    found = separation_scores(points, label, np.arange(300), 5)[1]
    np.testing.assert_allclose(found, silhouette_samples(points, label), atol=1e-12)
    assert abs(found.mean() - silhouette_score(points, label)) < 1e-12


def test_silhouette_leaves_the_own_prompt_out_by_hand() -> None:
    points, label, groups = np.array([[0.0], [1.0], [4.0], [10.0]]), np.array([1, -1, 1, -1]), np.array([0, 0, 1, 1])
    # Point 0: its label in other prompts at distance 4, the other label at 10 (the -1 at distance 1 shares its prompt).
    expected = [(10 - 4) / 10, (3 - 9) / 9, (3 - 4) / 4, (10 - 9) / 10]
    np.testing.assert_allclose(separation_scores(points, label, groups, 1)[1], expected, atol=1e-12)
    np.testing.assert_array_equal(separation_scores(points, label, groups, 1)[0], [1, 0, 0, 1])


def test_what_lies_together_by_prompt_alone_tells_nothing() -> None:
    """Several responses of one label a prompt, prompts far apart: neighbours of the same prompt would give 1.0."""
    rng = np.random.default_rng(1)
    groups = np.arange(60).repeat(4)
    label = rng.choice([1, -1], 60).repeat(4)
    points = rng.normal(size=(60, 8)).repeat(4, axis=0) * 10 + rng.normal(size=(240, 8))
    assert cross_val_predict(KNeighborsClassifier(3), points, label, cv=60, groups=None).shape == (240,)
    everyone = (KNeighborsClassifier(4).fit(points, label).predict(points) == label).mean()
    found = mean_over_prompts(separation_scores(points, label, groups, 3)[0], groups)
    assert everyone > 0.99
    assert found is not None and found.low < 0.5 < found.high and found.n == 240 and found.n_prompts == 60


def test_ties_and_loneliness() -> None:
    points, label = np.array([[0.0], [1.0], [2.0]]), np.array([1, 1, -1])
    assert separation_scores(points, label, np.zeros(3, dtype=int), 1).shape == (2, 3)
    assert np.isnan(separation_scores(points, label, np.zeros(3, dtype=int), 1)).all(), "without another prompt there is no neighbour"
    right = separation_scores(points, label, np.arange(3), 2)[0]
    np.testing.assert_array_equal(right, [0, 0, 0])  # a tied vote is wrong


# --- intervals and controls ----------------------------------------------------------------------------------------


def test_the_interval_is_a_bootstrap_over_prompts() -> None:
    rng = np.random.default_rng(2)
    groups = np.arange(50).repeat(4)
    values = rng.integers(0, 2, 50).repeat(4).astype(float)  # all of a prompt agree: 50 numbers, not 200
    found = mean_over_prompts(values, groups)
    assert found is not None
    drawn = [values.reshape(50, 4)[rng.integers(50, size=50)].mean() for _ in range(4000)]
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]), atol=0.02)
    assert (found.value, found.n, found.n_prompts) == (values.mean(), 200, 50)
    assert mean_over_prompts(values[:4], groups[:4]) is None
    assert mean_over_prompts(np.array([1.0, np.nan, 0.0]), np.arange(3)).n == 2  # type: ignore[union-attr]


def test_sparse_beats_dense_only_for_labels_in_few_directions() -> None:
    known, z = world(n_prompts=120)
    rng = np.random.default_rng(3)
    random = {"random-isotropic": [rng.normal(size=(4, 12)).astype(np.float32) for _ in range(3)]}
    found = compare_spaces(known, z, random, CONFIG).figures
    sparse, dense, control = (found[name] for name in ("sparse", "dense", "random-isotropic"))
    assert sparse.neighbours is not None and sparse.neighbours.low > 0.75 and sparse.silhouette is not None and sparse.silhouette.low > 0.05
    assert dense.neighbours_lead is not None and dense.neighbours_lead.low > 0 and dense.silhouette_lead is not None and dense.silhouette_lead.low > 0
    assert control.neighbours_lead is not None and control.neighbours_lead.low > 0
    assert sparse.neighbours_lead is None
    assert set(found) == {"sparse", "dense", "dense-standardised", "random-isotropic", "picture-dense", "picture-sparse"}


def test_a_lead_is_the_difference_and_draws_are_averaged() -> None:
    rng = np.random.default_rng(4)
    label, groups = np.tile([1, -1], 30), np.arange(30).repeat(2)
    spaces = {"sparse": [rng.normal(size=(60, 3)) + label[:, None]], "random-rows": [rng.normal(size=(60, 3)) for _ in range(3)]}
    found = figures_of(spaces, label, groups, 3)
    by_draw = [separation_scores(draw, label, groups, 3)[0].mean() for draw in spaces["random-rows"]]
    sparse, rows = found["sparse"].neighbours, found["random-rows"].neighbours
    assert sparse is not None and rows is not None and rows.value == pytest.approx(np.mean(by_draw))
    lead = found["random-rows"].neighbours_lead
    assert lead is not None and lead.value == pytest.approx(sparse.value - rows.value)


def test_only_held_out_responses_of_one_label_count() -> None:
    known, z = world()
    both = replace(known, rejected_rows=np.where(known.chosen_rows == 78, 76, known.rejected_rows))  # 76 is chosen by its own pair
    assert labels_of(both)[76] == 0 and labels_of(both)[78] == 1
    found = compare_spaces(both, z, {}, CONFIG)
    held_out = np.flatnonzero((splits_of(both) == 2) & (labels_of(both) != 0))
    assert found.n_held_out == len(held_out) == found.figures["dense"].neighbours.n  # type: ignore[union-attr]
    expected = separation_scores(z[held_out], labels_of(both)[held_out], both.groups[held_out], 5)[0].mean()
    assert found.figures["dense"].neighbours.value == pytest.approx(expected)  # type: ignore[union-attr]


def test_labels_that_selection_saw_do_not_flatter() -> None:
    """Directions fitted to noise separate the training responses; the figures, over held-out ones, stay at chance."""
    rng = np.random.default_rng(5)
    known, _ = world(n_prompts=60, gap=0.0)
    z = rng.normal(size=(120, 200)).astype(np.float32)
    train, label = known.train, labels_of(known)
    direction = np.linalg.lstsq(z[train], label[train].astype(float), rcond=None)[0]
    fitted = replace(known, projections=(z @ direction[:, None] * np.ones((1, 4))).astype(np.float32))
    on_train = separation_scores(fitted.projections[train], label[train], fitted.groups[train], 5)[0].mean()
    found = compare_spaces(fitted, z, {}, CONFIG).figures["sparse"].neighbours
    assert on_train > 0.95
    assert found is not None and found.low < 0.55


# --- points and pictures -------------------------------------------------------------------------------------------


def test_points_are_drawn_by_whole_prompts() -> None:
    groups = np.repeat(np.arange(100), np.arange(100) % 4 + 1)
    kept = sampled(groups, 60, seed=1)
    assert 40 < len(kept) <= 60 and (np.diff(kept) > 0).all()
    assert all(np.isin(np.flatnonzero(groups == prompt), kept).all() for prompt in groups[kept])
    np.testing.assert_array_equal(kept, sampled(groups, 60, seed=1))
    assert not np.array_equal(kept, sampled(groups, 60, seed=2))
    np.testing.assert_array_equal(sampled(groups, len(groups), seed=1), np.arange(len(groups)))


def test_standardisation_is_that_of_the_training_rows() -> None:
    rng = np.random.default_rng(6)
    values, train = rng.normal(size=(30, 3)) * [1, 5, 0] + 2, np.arange(0, 30, 2)
    found = standardised(values, train)
    np.testing.assert_allclose(found[:, :2], (values[:, :2] - values[train, :2].mean(0)) / values[train, :2].std(0))
    assert (found[:, 2] == 0).all()


def test_pictures_are_the_same_again_and_keep_neighbours() -> None:
    known, z = world()
    first, again, other = (compare_spaces(known, z, {}, replace(CONFIG, seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.dense, again.dense)
    assert first.dense.shape == first.sparse.shape == (80, 2) and np.isfinite(first.dense).all()
    np.testing.assert_array_equal(first.rows, other.rows)
    shuffled = np.random.default_rng(0).permutation(80)
    near = np.linalg.norm(first.dense[::2] - first.dense[1::2], axis=1)  # two responses of a prompt lie together in z
    far = np.linalg.norm(first.dense[shuffled[::2]] - first.dense[shuffled[1::2]], axis=1)
    assert np.median(near) < 0.5 * np.median(far)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8])
def test_few_points_have_a_picture_too(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, 7))
    found = picture(values, SpacesConfig())
    assert found.shape == (n, 2) and np.isfinite(found).all() and found.dtype == np.float32
    if n == 2:
        assert np.linalg.norm(found[0] - found[1]) == pytest.approx(np.linalg.norm(values[0] - values[1]), rel=1e-5)


def test_one_pair_displays_without_figures() -> None:
    z = np.eye(2, 6, dtype=np.float32)
    known = make_known(z[:, :2], np.zeros(2), np.array([0]), np.array([1]), np.array([0]))
    found = compare_spaces(known, z, {"random-isotropic": [np.eye(2, 6, dtype=np.float32)]}, SpacesConfig())
    assert found.dense.shape == (2, 2) and found.n_held_out == 0 and found.chance is None
    assert found.figures["sparse"].neighbours is None and found.made["method"] == "principal components"


def test_spaces_are_saved_and_read_without_anything_heavy(tmp_path: Path) -> None:
    known, z = world()
    found = compare_spaces(known, z, {"random-rows": [np.eye(4, 12, 4, dtype=np.float32)]}, replace(CONFIG, points=50))
    save_spaces(tmp_path, found)
    read = load_spaces(tmp_path)
    assert read.figures == dict(found.figures) and read.made == found.made and read.n_held_out == found.n_held_out
    np.testing.assert_array_equal(read.sparse, found.sparse)
    assert read.made["perplexity"] == 5.0 and read.made["seed"] == 0 and read.made["initialisation"] and read.made["n_left_out"] == 30
    code = (
        f"import sys\nfrom pathlib import Path\nfrom core.explain.spaces import load_spaces\nload_spaces(Path({str(tmp_path)!r}))\n"
        "print(sorted(set(sys.modules) & {'torch', 'sklearn', 'transformers', 'sae_lens'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]"


def test_the_terminal_says_how_many_points_were_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    known, z = world(n_prompts=12)
    found = compare_spaces(known, z, {}, replace(CONFIG, points=len(known) - 5))
    print_spaces(found)
    left = len(known) - len(found.rows)
    assert left >= 5 and f"{left} of {len(known)} known responses were not drawn (--points)" in capsys.readouterr().out
    print_spaces(compare_spaces(known, z, {}, CONFIG))
    assert "not drawn" not in capsys.readouterr().out

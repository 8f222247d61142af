"""Contributions against two independent computations: an exact sum over the sorted kinks of the path, and a numerical integral."""

from __future__ import annotations

import json
from itertools import combinations, pairwise

import numpy as np
import pytest
from explain_helpers import real_head, whole_number_head
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from core.explain.attribution import Attribution, active_fraction, at_mean, collinear_groups, contributions, contributions_by_head, rank_correlations
from core.reward.head import ROWS_AT_ONCE, Head


def gradient(head: Head, v: np.ndarray) -> np.ndarray:
    """ds/dv by a loop over hidden units; at a kink itself the unit counts as off, and so does one that rounding lifts off it."""
    total = np.zeros(len(v))
    for unit in range(len(head.bias_1)):
        first = head.weight_1[unit].astype(np.float64)
        if first @ v + float(head.bias_1[unit]) > 1e-9:
            total += float(head.weight_2[0, unit]) * first
    return total


def kinks(head: Head, start: np.ndarray, end: np.ndarray) -> list[float]:
    """Where on the path, from 0 to 1, hidden units switch, sorted, the ends included."""
    found = {0.0, 1.0}
    for unit in range(len(head.bias_1)):
        first = head.weight_1[unit].astype(np.float64)
        before, slope = first @ start + float(head.bias_1[unit]), first @ (end - start)
        if slope != 0 and 0 < -before / slope < 1:
            found.add(float(-before / slope))
    return sorted(found)


def piecewise(head: Head, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Between two kinks the gradient is constant, so its integral is a sum."""
    steps = pairwise(kinks(head, start, end))
    return sum(((b - a) * (end - start) * gradient(head, start + (a + b) / 2 * (end - start)) for a, b in steps), np.zeros(len(start)))


def integral(head: Head, start: np.ndarray, end: np.ndarray, steps: int = 20_000) -> np.ndarray:
    """The midpoint rule, blind to kinks."""
    at = (np.arange(steps) + 0.5) / steps
    points = start + at[:, None] * (end - start)
    active = points @ head.weight_1.T.astype(np.float64) + head.bias_1 > 0
    slopes = (active * head.weight_2[0].astype(np.float64)) @ head.weight_1.astype(np.float64)
    return (end - start) * slopes.mean(axis=0)


def one(head: Head, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return contributions(head, start[None], end[None])[0]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 4), hidden=st.integers(1, 6))
def test_contributions_are_the_exact_sum_over_the_kinks(seed: int, k: int, hidden: int) -> None:
    rng = np.random.default_rng(seed)
    head = whole_number_head(rng, k, hidden)
    start, end = rng.integers(-2, 3, size=(2, k)).astype(np.float64)
    found = one(head, start, end)
    np.testing.assert_allclose(found, piecewise(head, start, end), atol=1e-12)
    rewards = head.reward(np.stack([start, end]))
    assert abs(found.sum() - (rewards[1] - rewards[0])) < 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_contributions_are_the_integral(seed: int) -> None:
    rng = np.random.default_rng(seed)
    head = real_head(rng, k=6, hidden=20, scale=1.0)
    start, end = rng.normal(size=(2, 6)) * 2
    np.testing.assert_allclose(one(head, start, end), integral(head, start, end), atol=3e-3)


@pytest.mark.parametrize("seed", range(5))
def test_at_full_size_the_kinks_agree_and_nothing_is_missed(seed: int) -> None:
    """K = 128, 512 units, raw projections in the thousands, as large models have them."""
    rng = np.random.default_rng(seed)
    head = real_head(rng, k=256, scale=800.0)
    start, end = (rng.normal(size=256) * 800 + 3000 * rng.normal(size=256) for _ in range(2))
    found = one(head, start, end)
    np.testing.assert_allclose(found, piecewise(head, start, end), rtol=1e-9, atol=1e-9)
    rewards = head.reward(np.stack([start, end]))
    assert abs(rewards[1] - rewards[0] - found.sum()) < 1e-9
    assert np.abs(found).sum() > 1


def unit(weight: float, bias: float, second: float = 1.0) -> Head:
    shapes = {"weight_1": [[weight]], "bias_1": [bias], "weight_2": [[second]], "bias_2": [0.5]}
    return Head(**{name: np.array(value, dtype=np.float32) for name, value in shapes.items()})


@pytest.mark.parametrize(
    ("head", "start", "end", "expected"),
    [
        (unit(1, -5), 0, 4, 0.0),  # dead on the whole path
        (unit(1, 0), 0, 4, 4.0),  # the kink at its start
        (unit(1, -4), 0, 4, 0.0),  # the kink at its end
        (unit(1, -4), 4, 0, 0.0),
        (unit(1, 0), 4, 0, -4.0),
        (unit(1, -1), 0, 4, 3.0),  # a quarter of the path is flat
        (unit(1, 1), 2, 2, 0.0),  # a path of no length
        (unit(0, 1), 0, 4, 0.0),  # a unit that is on and does not move
        (unit(-2, 2, -3.0), 0, 4, 6.0),
    ],
)
def test_single_units_by_hand(head: Head, start: float, end: float, expected: float) -> None:
    assert one(head, np.array([start], dtype=np.float64), np.array([end], dtype=np.float64))[0] == expected


def test_without_a_move_the_active_fraction_is_that_of_the_start() -> None:
    before = np.array([[1.0, 0.0, -1.0, 1e-300]])
    assert active_fraction(before, before).tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_many_responses_at_once_are_those_one_by_one() -> None:
    rng = np.random.default_rng(3)
    head = real_head(rng, k=3, hidden=4, scale=1.0)
    start, end = rng.normal(size=(2, ROWS_AT_ONCE + 3, 3))
    together = contributions(head, start, end)
    for row in (0, 1, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 2):
        np.testing.assert_allclose(together[row], one(head, start[row], end[row]), atol=1e-14)
    by_head = contributions_by_head([head, head], start[:5].astype(np.float32), end[:5].astype(np.float32))
    assert by_head.shape == (2, 5, 3) and by_head.dtype == np.float64


def test_rank_correlation_is_the_mean_over_pairs_of_heads() -> None:
    by_head = np.random.default_rng(0).normal(size=(5, 3, 9))
    by_head[:, :, 4] = by_head[:, :, 5]  # ties
    found = rank_correlations(by_head)
    for row in range(3):
        expected = np.mean([spearmanr(by_head[a, row], by_head[b, row]).statistic for a, b in combinations(range(5), 2)])
        assert found[row] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(rank_correlations(by_head[:1])).all()
    assert np.isnan(rank_correlations(np.zeros((5, 1, 4)))[0])


def attribution(contribution: list[float], by_head: list[list[float]]) -> Attribution:
    k = len(contribution)
    return Attribution(
        latent_ids=np.arange(k),
        projection=np.zeros(k),
        baseline=np.zeros(k),
        activation=None,
        contribution=np.array(contribution, dtype=np.float64),
        by_head=np.array(by_head, dtype=np.float64),
        reward=1.0,
        baseline_reward=0.25,
    )


def test_deviation_agreement_and_residual_by_hand() -> None:
    found = attribution([0.5, -0.25, 0.5], [[1, -1, 1], [3, -2, -1]])
    np.testing.assert_allclose(found.deviation, [2**0.5, 0.5**0.5, 2**0.5])
    assert found.agreed.tolist() == [True, True, False]
    assert found.residual == 0.0
    assert found.rank_correlation == pytest.approx(spearmanr([1, -1, 1], [3, -2, -1]).statistic)
    # The shipped head counts, and so does a head that gives nothing.
    assert attribution([-1.0], [[1], [1]]).agreed.tolist() == [False]
    assert attribution([1.0], [[1], [0]]).agreed.tolist() == [False]


def test_one_head_has_no_deviation_and_no_correlation() -> None:
    found = attribution([1.0, 2.0], [[1, 2]])
    assert found.deviation.tolist() == [0.0, 0.0] and found.rank_correlation is None
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert said["rank_correlation"] is None and said["latents"][1]["contribution"] == 2.0 and "activation" not in said["latents"][0]


def test_setting_a_projection_to_its_mean() -> None:
    rng = np.random.default_rng(1)
    head, v, mean = real_head(rng, k=7, hidden=9, scale=1.0), rng.normal(size=7), rng.normal(size=7).astype(np.float32)
    found = at_mean(head, v, mean)
    for column in range(7):
        changed = v.copy()
        changed[column] = mean[column]
        assert found[column] == pytest.approx(head.reward(changed[None])[0] - head.reward(v[None])[0], abs=1e-12)


def test_collinear_groups_are_connected_components() -> None:
    """a and c are alike only through b; d looks the other way; e and f are far."""
    angle = np.deg2rad([0, 40, 80, 180 + 5, 128])
    directions = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(5)]) * np.array([[1], [3], [0.1], [2], [1]])
    directions = np.vstack([directions, [0, 0, 1]])
    assert collinear_groups(directions.astype(np.float32)) == ((0, 1, 2, 3), (4,), (5,))
    for cosine, expected in ((0.69, ((0,), (1,))), (0.71, ((0, 1),)), (-0.71, ((0, 1),))):
        assert collinear_groups(np.array([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])) == expected
    assert collinear_groups(np.zeros((2, 3), dtype=np.float32)) == ((0,), (1,))


@pytest.mark.parametrize("seed", range(4))
def test_groups_against_a_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(4, 3))[rng.integers(4, size=20)] + 0.45 * rng.normal(size=(20, 3))
    unit_rows = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    left, found = set(range(20)), []
    while left:
        todo, group = [min(left)], set()
        while todo:
            here = todo.pop()
            group.add(here)
            todo += [there for there in range(20) if abs(unit_rows[here] @ unit_rows[there]) > 0.7 and there not in group and there not in todo]
        left -= group
        found.append(tuple(sorted(group)))
    assert collinear_groups(directions) == tuple(found)

"""core/explain/word_table.py: the exact split over words and latents, against numerical integration and a case by hand."""

from __future__ import annotations

import numpy as np
import pytest

from core.explain.attribution import contributions
from core.explain.word_table import effective_weights, pair_tables, response_table, summed, units_of_tokens
from core.reward.head import Head


def random_head(seed: int, k: int = 7, hidden: int = 33) -> Head:
    draw = np.random.default_rng(seed)
    shapes = {"weight_1": (hidden, k), "bias_1": (hidden,), "weight_2": (1, hidden), "bias_2": (1,)}
    return Head(**{name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def gradient(head: Head, v: np.ndarray) -> np.ndarray:
    first = head.weight_1.astype(np.float64)
    on = (first @ v + head.bias_1 > 0).astype(np.float64)
    return (on * head.weight_2[0].astype(np.float64)) @ first


def test_three_tokens_by_hand() -> None:
    """Two units: relu(v1) - 2 relu(v2 - 1). Baseline 0, tokens (3, 0), (0, 6), (3, 0), so v = (2, 2).

    Unit 1 is on along the whole path but at its start: g1 = 1. Unit 2 rises from -1 to 1, so it is on for half of the
    path: g2 = -2 * 1/2 = -1. The table is g_j p_tj / 3: (1, 0), (0, -2), (1, 0), and s(v) - s(0) = 2 - 2 = 0.
    """
    head = Head(
        weight_1=np.eye(2, dtype=np.float32),
        bias_1=np.array([0, -1], dtype=np.float32),
        weight_2=np.array([[1, -2]], dtype=np.float32),
        bias_2=np.zeros(1, dtype=np.float32),
    )
    table = response_table(head, np.array([[3.0, 0], [0, 6], [3, 0]]), np.zeros(2))
    np.testing.assert_array_equal(table, [[1, 0], [0, -2], [1, 0]])


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_the_mean_gradient_of_the_path(seed: int) -> None:
    head, draw = random_head(seed), np.random.default_rng(100 + seed)
    start, end = draw.normal(size=(2, 7))
    steps = (np.arange(200_000) + 0.5) / 200_000
    integrated = np.mean([gradient(head, start + step * (end - start)) for step in steps[::20]], axis=0)
    np.testing.assert_allclose(effective_weights(head, start, end), integrated, atol=5e-3)


def test_thousand_responses_sum_to_the_reward_and_to_the_latents() -> None:
    head, draw = random_head(1), np.random.default_rng(1)
    baseline = draw.normal(size=7)
    for _ in range(1000):
        tokens = draw.normal(size=(draw.integers(1, 60), 7)).astype(np.float32)
        table, v = response_table(head, tokens, baseline), tokens.astype(np.float64).mean(axis=0)
        reward, at_baseline = head.reward(np.stack([v, baseline]))
        assert abs(table.sum() - (reward - at_baseline)) < 1e-9
        np.testing.assert_allclose(table.sum(axis=0), contributions(head, baseline[None], v[None])[0], atol=1e-9)


def test_pair_sums_to_the_margin_from_any_baseline() -> None:
    head, draw = random_head(2), np.random.default_rng(2)
    for _ in range(200):
        chosen, rejected = (draw.normal(size=(draw.integers(1, 40), 7)) for _ in range(2))
        tables = pair_tables(head, chosen, rejected, draw.normal(size=7) * 10)
        winner, loser = head.reward(np.stack([chosen.mean(axis=0), rejected.mean(axis=0)]))
        assert abs(tables[0].sum() + tables[1].sum() - (winner - loser)) < 1e-9


def test_rows_are_added_up_by_word() -> None:
    units = units_of_tokens([0, 3, 4, 9, 12], [0, 4, 10])
    assert units.tolist() == [0, 0, 1, 1, 2]
    table = np.arange(10.0).reshape(5, 2)
    np.testing.assert_array_equal(summed(table, units, 3), [[2, 4], [10, 12], [8, 9]])
    np.testing.assert_array_equal(summed(table[:, 0], units, 3), [2, 10, 8])


def test_a_token_before_the_first_word_belongs_to_it() -> None:
    assert units_of_tokens([0, 2], [1, 5]).tolist() == [0, 0]

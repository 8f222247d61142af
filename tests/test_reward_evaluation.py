"""Accuracies, intervals, differences and the table, against statsmodels, loops and cases by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from reward_helpers import make_pairs
from statsmodels.stats.proportion import proportion_confint

from core.reward.evaluation import ScoredMethod, accuracy_by_subset, accuracy_difference, accuracy_of, evaluate
from core.statistics.bootstrap import RESAMPLES, SEED, resample_weights
from core.statistics.intervals import wilson
from core.types import Accuracy, PreferencePair, PreferencePairs


def test_wilson_is_statsmodels() -> None:
    for right, n in [(0, 7), (7, 7), (3, 10), (500, 1000), (1, 1), (37.4, 50)]:
        np.testing.assert_allclose(wilson(right, n), proportion_confint(right, n, method="wilson"), atol=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(5, 5)[1] == 1.0 and wilson(0, 5)[0] == 0.0


def test_ties_are_wrong() -> None:
    margins = np.array([[1.0, 0.0, -1.0, 1e-300]])
    found = accuracy_of(margins, np.arange(4))
    assert (found.accuracy, found.n) == (0.5, 4)
    np.testing.assert_allclose((found.low, found.high), proportion_confint(2, 4, method="wilson"), atol=1e-12)


def brute_bootstrap(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means over resamples of the prompts, pair by pair; prompts numbered by rising number."""
    names = np.unique(groups)
    means = []
    for row in np.concatenate(list(resample_weights(len(names), RESAMPLES, SEED))):
        drawn = [values[groups == name] for name, times in zip(names, row, strict=True) for _ in range(int(times))]
        means.append(np.concatenate(drawn).mean())
    return np.quantile(means, [0.025, 0.975])


def test_several_pairs_a_prompt_bootstrap_over_prompts() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), rng.integers(1, 5, 12)) * 3
    right = (rng.random(12) < 0.7)[groups // 3] ^ (rng.random(len(groups)) < 0.1)
    margins = np.where(right, 1.0, -1.0)[None]
    found = accuracy_of(margins, groups)
    np.testing.assert_allclose((found.low, found.high), brute_bootstrap(right, groups), atol=1e-6)
    assert found.accuracy == right.mean() and found.n == len(groups)
    alone = accuracy_of(margins, np.arange(len(groups)))
    assert found.high - found.low > 1.3 * (alone.high - alone.low), "pairs of one prompt agree, so they say less"


def test_mean_over_heads_has_an_interval_too() -> None:
    rng = np.random.default_rng(1)
    margins, groups = rng.normal(0.5, 1, size=(3, 40)), np.repeat(np.arange(20), 2)
    found = accuracy_of(margins, groups)
    share = (margins > 0).mean(axis=0)
    assert found.accuracy == pytest.approx(share.mean())
    np.testing.assert_allclose((found.low, found.high), brute_bootstrap(share, groups), atol=1e-6)


def test_nothing_and_everything_right() -> None:
    nothing = accuracy_of(np.zeros((1, 0)), np.zeros(0, dtype=np.int64))
    assert np.isnan(nothing.accuracy) and (nothing.low, nothing.high, nothing.n) == (0.0, 1.0, 0)
    assert nothing.to_json() == {"accuracy": None, "low": 0.0, "high": 1.0, "n": 0}
    groups = np.repeat(np.arange(10), 3)
    every = accuracy_of(np.ones((1, 30)), groups)
    assert (every.accuracy, every.high, every.n) == (1.0, 1.0, 30)
    assert every.low == pytest.approx(proportion_confint(10, 10, method="wilson")[0]), "10 prompts, not 30 pairs, and not [1, 1]"
    half = accuracy_of(np.tile([[1.0, -1.0]], 15), np.repeat(np.arange(15), 2))
    np.testing.assert_allclose((half.low, half.high), proportion_confint(7.5, 15, method="wilson"), atol=1e-12)
    few = accuracy_of(np.array([[1.0, 1.0, -1.0]]), np.array([4, 4, 9]))
    np.testing.assert_allclose((few.low, few.high), proportion_confint(4 / 3, 2, method="wilson"), atol=1e-12)
    none = accuracy_of(-np.ones((1, 30)), groups)
    assert (none.accuracy, none.low) == (0.0, 0.0) and none.high == pytest.approx(1 - every.low)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(30), 2)
    hard = rng.random(60) < 0.5
    first = np.where(hard, -1.0, 1.0)[None]
    second = np.concatenate([first, first])
    second[0, :6] = -1.0
    found = accuracy_difference(first, second, groups)
    assert found is not None
    gain = (first > 0).mean(axis=0) - (second > 0).mean(axis=0)
    assert found.difference == pytest.approx(gain.mean()) and found.n == 60
    np.testing.assert_allclose((found.low, found.high), brute_bootstrap(gain, groups), atol=1e-6)
    assert found.high - found.low < 0.1 < accuracy_of(first, groups).high - accuracy_of(first, groups).low
    assert accuracy_difference(first[:, :0], second[:, :0], groups[:0]) is None


def test_intervals_cover_the_truth() -> None:
    """95 % intervals, 200 data sets whose prompts agree with themselves: the truth 0.7 lies within; of pairs alone it would not."""
    rng, inside, naive = np.random.default_rng(3), 0, 0
    groups = np.repeat(np.arange(60), 4)
    for _ in range(200):
        ease = rng.beta(0.7, 0.3, size=60)[groups]
        margins = np.where(rng.random(240) < ease, 1.0, -1.0)[None]
        by_prompt, by_pair = accuracy_of(margins, groups), accuracy_of(margins, np.arange(240))
        inside += by_prompt.low <= 0.7 <= by_prompt.high
        naive += by_pair.low <= 0.7 <= by_pair.high
    assert 180 <= inside <= 198
    assert naive < 170


def table() -> tuple[PreferencePairs, ScoredMethod, list[ScoredMethod]]:
    rng = np.random.default_rng(4)
    pairs = make_pairs([2] * 40, ["train"] * 10 + ["validation"] * 10 + ["test"] * 20)
    ours = ScoredMethod(kind="sparserm", margins=rng.normal(0.8, 1, size=(5, 80)), shipped=3, n_parameters=100)
    probe = ScoredMethod(kind="length-only", margins=rng.normal(0, 1, size=(1, 80)), shipped=0, n_parameters=1, note="more tokens win")
    return pairs, ours, [probe]


def test_the_table_reads_test_pairs_and_marks_the_shipped_seed() -> None:
    pairs, ours, controls = table()
    found = evaluate(pairs, ours, controls, {"margin": ours})
    test = slice(40, 80)
    right = ours.margins[:, test] > 0
    entry = found.sparserm
    assert entry.accuracy.accuracy == right[3].mean() and entry.accuracy.n == 40
    assert entry.mean.accuracy == pytest.approx(right.mean()) and entry.deviation == pytest.approx(right.mean(axis=1).std(ddof=1))
    assert [head.accuracy for head in entry.heads] == right.mean(axis=1).tolist()
    assert entry.validation.accuracy == (ours.margins[3, 20:40] > 0).mean() and entry.validation.n == 20
    assert entry.lead is None and found.n_prompts == 20
    other = found.controls["length-only"]
    assert other.deviation is None and other.note == "more tokens win"
    assert other.lead is not None and other.lead.difference == pytest.approx(right.mean() - (controls[0].margins[:, test] > 0).mean())
    changed = ScoredMethod(kind="sparserm", margins=ours.margins.copy(), shipped=3, n_parameters=100)
    changed.margins[:, :20] *= -1
    assert evaluate(pairs, changed, controls, {"margin": changed}) == found, "training margins are not looked at"


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from objects(part)
    elif isinstance(value, list):
        for part in value:
            yield from objects(part)


def test_every_accuracy_in_json_has_its_interval_and_n() -> None:
    pairs, ours, controls = table()
    said = json.loads(json.dumps(evaluate(pairs, ours, controls, {"margin": ours}).to_json(), allow_nan=False))
    with_accuracy = [one for one in objects(said) if "accuracy" in one]
    assert len(with_accuracy) > 10
    for one in with_accuracy:
        assert {"accuracy", "low", "high", "n"} <= set(one)
        assert 0 <= one["low"] <= one["accuracy"] <= one["high"] <= 1
    assert said["controls"]["length-only"]["sparserm_minus_this"]["n"] == 40


def test_accuracy_by_subset() -> None:
    def pair(number: int, **meta: Any) -> PreferencePair:
        prompt = ({"role": "user", "content": str(number // 2)},)
        return PreferencePair(pair_id=str(number), prompt=prompt, chosen=f"a{number}", rejected=f"b{number}", meta=meta)

    kinds = ["chat", "chat", "code", "code", "code", ""]
    pairs = PreferencePairs(pairs=tuple(pair(i, subset=kind, Category="other") for i, kind in enumerate(kinds)), split=("test",) * 6)
    margins = np.array([[1.0, -1.0, 1.0, 1.0, -1.0, 1.0], [1.0, 1.0, -1.0, 1.0, -1.0, 1.0]])
    found = accuracy_by_subset(margins, pairs, np.arange(6))
    assert {kind: (accuracy.accuracy, accuracy.n) for kind, accuracy in found.items()} == {"chat": (0.75, 2), "code": (0.5, 3)}
    control = ScoredMethod(kind="length-only", margins=-margins[:1], shipped=0, n_parameters=1)
    entry = evaluate(pairs, ScoredMethod(kind="sparserm", margins=margins, shipped=0, n_parameters=1), [control], {}).controls["length-only"]
    assert {kind: (accuracy.accuracy, accuracy.n) for kind, accuracy in entry.subsets.items()} == {"chat": (0.5, 2), "code": (1 / 3, 3)}
    assert all(isinstance(accuracy, Accuracy) and accuracy.low < accuracy.high for accuracy in found.values())
    named = PreferencePairs(pairs=tuple(pair(i, Category="Law") for i in range(4)), split=("test",) * 4)
    assert list(accuracy_by_subset(np.ones((1, 4)), named, np.arange(4))) == ["Law"]
    assert accuracy_by_subset(np.ones((1, 4)), make_pairs([1] * 4, ["test"] * 4), np.arange(4)) == {}
    rows = PreferencePairs(pairs=tuple(pair(i, category=f"row {i}") for i in range(101)), split=("test",) * 101)
    assert accuracy_by_subset(np.ones((1, 101)), rows, np.arange(101)) == {}

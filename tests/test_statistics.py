"""The bootstrap over prompts: the same draws and the same quantiles for every module that states an interval."""

from __future__ import annotations

import numpy as np

from core.statistics.bootstrap import (
    RESAMPLES,
    SEED,
    interval_around,
    percentile_interval,
    prompt_sums,
    resample_weights,
    resampled_means,
    resampled_sums,
)
from core.statistics.estimates import mean_over_prompts

RNG = np.random.default_rng(5)
VALUES, GROUPS = RNG.normal(size=60), RNG.integers(17, size=60)


def by_hand() -> np.ndarray:
    """Means of resamples, one prompt after the other."""
    prompts = np.unique(GROUPS)
    weights = np.concatenate(list(resample_weights(len(prompts), RESAMPLES, SEED)))
    means = []
    for times in weights:
        drawn = np.concatenate([np.tile(VALUES[prompt == GROUPS], int(n)) for prompt, n in zip(prompts, times, strict=True)])
        means.append(drawn.mean())
    return np.array(means)


def test_resampled_means_are_those_of_the_drawn_values() -> None:
    np.testing.assert_allclose(resampled_means(VALUES, GROUPS), by_hand(), rtol=1e-12)


def test_sums_of_several_columns_are_drawn_together() -> None:
    sums = prompt_sums(np.column_stack([VALUES, VALUES**2]), GROUPS)
    drawn = resampled_sums(sums)
    assert drawn.shape == (RESAMPLES, 2)
    np.testing.assert_allclose(drawn[:, 1], resampled_sums(sums[:, 1:])[:, 0], rtol=1e-12)


def test_the_interval_holds_the_middle_95_percent() -> None:
    drawn = np.arange(1001.0)
    assert percentile_interval(drawn).tolist() == [25.0, 975.0] and percentile_interval(np.stack([drawn, -drawn], 1))[:, 1].tolist() == [-975, -25]
    assert interval_around(500.0, drawn) == (25.0, 975.0)
    assert interval_around(-3.0, drawn) == (-3.0, 975.0) and interval_around(2000.0, drawn) == (25.0, 2000.0)


def test_a_mean_is_its_interval_and_its_numbers() -> None:
    values = np.append(VALUES, np.nan)
    estimate = mean_over_prompts(values, np.append(GROUPS, 99))
    assert estimate is not None and (estimate.n, estimate.n_prompts) == (60, len(np.unique(GROUPS)))
    assert (estimate.low, estimate.high) == interval_around(
        float(VALUES.mean()), resampled_means(VALUES, GROUPS)
    ) and estimate.low < estimate.value < estimate.high
    assert mean_over_prompts(VALUES, np.zeros(60, dtype=np.int64)) is None

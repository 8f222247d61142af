"""The bootstrap over prompts, which gives every mean its 95 % interval.

Chosen and rejected share a prompt and a prompt can have several pairs, so the prompt is the unit that is drawn
(METHOD.md section 3, statistics). A statistic of sums over prompts needs three calls: `prompt_sums` adds up rows by
prompt, `resampled_sums` gives the same sums of every resample, `percentile_interval` the interval of whatever is
computed from them. A mean needs one: `mean_over_prompts` of core/statistics/estimates.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

RESAMPLES, SEED = 2000, 0
ENDS = (0.025, 0.975)  # quantiles of a 95 % interval
WEIGHT_BYTES = 2**26  # bytes of resampling weights held at once
REMEMBERED = 2**22  # up to so many resampling weights (16 MB) are remembered for the next call


def prompt_sums(values: np.ndarray, groups: Int[np.ndarray, " n_pairs"]) -> np.ndarray:
    """Sums of rows that belong to one prompt: [n_pairs, ...] -> [n_prompts, ...], integers as int32, prompts by rising
    number.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    wide = np.float64 if values.dtype.kind == "f" else np.int32
    return np.add.reduceat(values[order], starts, axis=0, dtype=wide) if len(groups) else np.zeros((0, *values.shape[1:]), dtype=wide)


def resampled_sums(sums: Float[np.ndarray, "n_prompts m"], resamples: int = RESAMPLES) -> Float[np.ndarray, "resamples m"]:
    """The sums over all prompts, for each bootstrap resample of the prompts."""
    return np.concatenate([weights @ sums for weights in resample_weights(len(sums), resamples, SEED)])


def resampled_means(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, " resamples"]:
    """The mean of the values of each bootstrap resample of the prompts; prompts with more values weigh more, as in the
    mean itself.
    """
    drawn = resampled_sums(prompt_sums(np.column_stack([values, np.ones(len(values))]), groups))
    return drawn[:, 0] / drawn[:, 1]


def percentile_interval(drawn: Float[np.ndarray, "resamples *m"]) -> Float[np.ndarray, "2 *m"]:
    """The lower and upper end of the 95 % percentile interval of a statistic, given its value in each resample."""
    return np.quantile(drawn, ENDS, axis=0)


def interval_around(value: float, drawn: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The percentile interval of a statistic, widened where needed so that it holds the statistic's own value."""
    low, high = percentile_interval(drawn)
    return float(min(low, value)), float(max(high, value))


def resample_weights(n_prompts: int, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[Float[np.ndarray, "part n_prompts"]]:
    """How often each prompt is drawn in each bootstrap resample, a block of resamples at a time; float32, whole
    numbers.

    The draws depend on the seed and the number of prompts only, never on the block size. Few weights are remembered,
    since drawing them again takes longer than using them.
    """
    few = resamples * n_prompts <= REMEMBERED
    yield from _remembered_weights(n_prompts, resamples, seed) if few else _draw_weights(n_prompts, resamples, seed)


@lru_cache(maxsize=4)
def _remembered_weights(n_prompts: int, resamples: int, seed: int) -> tuple[Float[np.ndarray, "part n_prompts"], ...]:
    blocks = tuple(_draw_weights(n_prompts, resamples, seed))
    for block in blocks:
        block.setflags(write=False)  # every caller gets the same arrays
    return blocks


def _draw_weights(n_prompts: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "part n_prompts"]]:
    rng = np.random.default_rng(seed)
    block = max(1, WEIGHT_BYTES // (8 * n_prompts))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(n_prompts, size=(size, n_prompts)) + np.arange(size)[:, None] * n_prompts
        yield np.bincount(drawn.ravel(), minlength=size * n_prompts).reshape(size, n_prompts).astype(np.float32)

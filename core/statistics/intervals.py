"""Small statistics that selection and evaluation share: intervals, votes of prompts, false discoveries, resampling of prompts.

The unit is always the prompt: chosen and rejected share it and it can have several pairs (METHOD.md section 3, statistics).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile, written out: scipy.special takes 0.15 s to import
# Under so many active responses an AUROC says nothing (METHOD.md section 1).
TOO_RARE = 10
# Bytes of resampling weights held at once.
WEIGHT_BYTES = 2**26
KEPT = 2**22  # numbers of resampling weights, 16 MB, that are kept for the next who asks


def wilson(right: float, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of `right` in `n` independent trials; (0, 1) where there are none."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)))
    # At 0 and at n the ends are 0 and 1 exactly; rounding would miss them by 1e-17.
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)


def sign_test(votes_for: Int[np.ndarray, " n"], votes_against: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Exact two-sided sign test of each pair of counts (abstentions left out); 1 without votes. With one pair a prompt: exact McNemar."""
    from scipy import stats  # half a second to import: pages that only want an interval go without

    fewer = np.minimum(votes_for, votes_against)
    return np.minimum(1.0, 2.0 * stats.binom.cdf(fewer, votes_for + votes_against, 0.5))


def benjamini_hochberg(p_value: Float[np.ndarray, " n"], live: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """q-values over the live entries; NaN for the others."""
    q_value = np.full(len(p_value), np.nan)
    if live.any():
        from scipy import stats

        q_value[live] = stats.false_discovery_control(p_value[live], method="bh")
    return q_value


def prompt_sums(values: np.ndarray, groups: Int[np.ndarray, " n_pairs"]) -> np.ndarray:
    """Sums of rows that belong to one prompt: [n_pairs, ...] -> [n_prompts, ...], integers as int32, prompts by rising number."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    wide = np.float64 if values.dtype.kind == "f" else np.int32
    return np.add.reduceat(values[order], starts, axis=0, dtype=wide) if len(groups) else np.zeros((0, *values.shape[1:]), dtype=wide)


def resample_weights(n_prompts: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "part n_prompts"]]:
    """How often each prompt is drawn in each bootstrap resample, a block of resamples at a time; float32, whole numbers.

    The draws depend on the seed and the number of prompts only, never on the block size. Small ones are kept: drawing costs more than using them.
    """
    small = resamples * n_prompts <= KEPT
    yield from _kept_weights(n_prompts, resamples, seed) if small else _draw_weights(n_prompts, resamples, seed)


@lru_cache(maxsize=4)
def _kept_weights(n_prompts: int, resamples: int, seed: int) -> tuple[Float[np.ndarray, "part n_prompts"], ...]:
    blocks = tuple(_draw_weights(n_prompts, resamples, seed))
    for block in blocks:
        block.setflags(write=False)  # shared by all who ask again
    return blocks


def _draw_weights(n_prompts: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "part n_prompts"]]:
    rng = np.random.default_rng(seed)
    block = max(1, WEIGHT_BYTES // (8 * n_prompts))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(n_prompts, size=(size, n_prompts)) + np.arange(size)[:, None] * n_prompts
        yield np.bincount(drawn.ravel(), minlength=size * n_prompts).reshape(size, n_prompts).astype(np.float32)

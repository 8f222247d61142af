"""A mean with its 95 % interval and its numbers, which travel together: means over responses or pairs, by the bootstrap
over prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from core.statistics.bootstrap import interval_around, prompt_sums, resampled_sums
from core.types import JsonFields


@dataclass(frozen=True, kw_only=True)
class Estimate(JsonFields):
    """A mean over `n` values of `n_prompts` prompts with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    n_prompts: int


def mean_over_prompts(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Estimate | None:
    """Mean of the values, entries that are NaN left out, with the percentile interval of a bootstrap over prompts.

    Prompts with more values weigh more, as in the mean itself. Values of fewer than two prompts have no interval: None.
    """
    finite = np.isfinite(values)
    n = int(finite.sum())
    sums = prompt_sums(np.column_stack([values[finite], np.ones(n)]), groups[finite])
    if len(sums) < 2:
        return None
    mean, drawn = float(sums[:, 0].sum() / sums[:, 1].sum()), resampled_sums(sums)
    low, high = interval_around(mean, drawn[:, 0] / drawn[:, 1])
    return Estimate(value=mean, low=low, high=high, n=n, n_prompts=len(sums))

"""A figure from a sample never travels without its interval and n: means over responses or pairs, with a bootstrap over prompts.

Chosen and rejected share a prompt and a prompt can have several pairs, so the prompt is the unit (METHOD.md section 3, statistics).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from core.statistics.intervals import prompt_sums, resample_weights

RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `n` things of `n_prompts` prompts with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    n_prompts: int

    def to_json(self) -> dict[str, float | int]:
        return dict(self.__dict__)


def mean_over_prompts(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Estimate | None:
    """Mean of the values, entries that are NaN left out, with the percentile interval of a bootstrap over prompts.

    Prompts with more values weigh more, as in the mean itself. None with values of fewer than two prompts: then no interval can be had.
    """
    kept = np.isfinite(values)
    sums = prompt_sums(np.column_stack([values[kept], np.ones(int(kept.sum()))]), groups[kept])
    if len(sums) < 2:
        return None
    mean, n = float(sums[:, 0].sum() / sums[:, 1].sum()), int(kept.sum())
    drawn = np.concatenate([weights @ sums for weights in resample_weights(len(sums), RESAMPLES, SEED)])
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return Estimate(value=mean, low=float(min(low, mean)), high=float(max(high, mean)), n=n, n_prompts=len(sums))

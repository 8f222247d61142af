"""The sign test of prompts' votes, and the correction for many tests at once (METHOD.md section 3, statistics)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

TOO_RARE = 10  # with fewer active responses an AUROC is not given (METHOD.md section 1)


def sign_test(votes_for: Int[np.ndarray, " n"], votes_against: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Exact two-sided sign test of each pair of counts (abstentions left out); 1 without votes.

    With one pair a prompt it is McNemar's exact test.
    """
    from scipy import stats  # takes half a second to import, and a page that only shows intervals does without

    fewer = np.minimum(votes_for, votes_against)
    return np.minimum(1.0, 2.0 * stats.binom.cdf(fewer, votes_for + votes_against, 0.5))


def benjamini_hochberg(p_value: Float[np.ndarray, " n"], live: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """q-values over the live entries; NaN for the others."""
    q_value = np.full(len(p_value), np.nan)
    if live.any():
        from scipy import stats

        q_value[live] = stats.false_discovery_control(p_value[live], method="bh")
    return q_value

"""How an accuracy is named: of which heads it is, and of which pairs.

A fit trains a head a seed and ships the one that is best on validation, so one reward model has two accuracies that are
easily confused: the mean over its heads, and the shipped head's. No number of either stands without these words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mean_of(n_heads: int) -> str:
    """`mean of 5 heads`; what was fitted once has one head (a seed or a draw), and no mean."""
    return f"mean of {n_heads} heads" if n_heads > 1 else "one head"


def shipped_head(seed: int | None) -> str:
    """`shipped head, seed 3`; folders of older versions may not say the seed (None)."""
    return "shipped head" if seed is None else f"shipped head, seed {seed}"


def shipped_seed(method: Mapping[str, Any]) -> int | None:
    """The seed of the head that is shipped, from a reward model's `method`."""
    seed = method.get("shipped_seed")
    return None if seed is None else int(seed)


def counted_pairs(n: int, split: str = "test") -> str:
    """`1,154 test pairs`."""
    return f"{n:,} {split} pairs"

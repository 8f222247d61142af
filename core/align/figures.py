"""A policy's measures (numbers by item) and figures (a measure's mean with interval and paired difference to round 0).

The unit is the prompt. A share (right or wrong) gets Wilson's interval where each prompt has one item, and a bootstrap
over prompts otherwise, like every mean. The same items are measured in every round and compared with themselves, so a
difference has a far narrower interval than its two figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from core.errors import MismatchError, StoreError
from core.reward.evaluation import accuracy_of
from core.statistics.estimates import Estimate, mean_over_prompts
from core.types import JsonFields

MEANING: Mapping[str, str] = {
    "reward": "mean reward of the policy's own answers to held-out prompts",
    "length": "tokens of these answers",
    "finished": "share of these answers that the policy ended itself",
    "accuracy": "share of test pairs with log p(chosen) > log p(rejected), summed over tokens",
    "accuracy_per_token": "the same with the mean over tokens instead of the sum",
    "logprob_margin": "mean log p(chosen) - log p(rejected) of test pairs, in nats",
    "validation_accuracy": "as `accuracy`, on validation pairs: what a round is chosen by",
    "kl_per_token": "KL divergence from the base model at a token of the policy's answers, in nats",
    "kl_per_sequence": "the same summed over an answer, in nats",
    "mc1_unseen": "TruthfulQA MC1, share of questions whose right choice is likeliest: on those that neither reward model nor policy learnt from",
    "mc2_unseen": "TruthfulQA MC2, probability of the right choices among all: on the same questions",
    "mc1_all": "MC1 on all questions, seen ones too",
    "mc2_all": "MC2 on all questions, seen ones too",
}
SHARES = ("finished", "accuracy", "accuracy_per_token", "validation_accuracy", "mc1_unseen", "mc1_all")
ARRAYS = "arrays.safetensors"
# Compare with the base model by themselves, so they have no difference to round 0.
AGAINST_BASE = ("kl_per_token", "kl_per_sequence")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Each item's value (NaN where it could not be measured) and the number of its prompt."""

    values: Float[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class PolicyFigure(JsonFields):
    """The mean of a measure over items of prompts, 95 % interval, and paired `difference` to round 0 (or None)."""

    value: float
    low: float
    high: float
    n: int
    n_prompts: int
    difference: Estimate | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PolicyFigure:
        return cls(**{**content, "difference": content["difference"] and Estimate(**content["difference"])})


def figure_of(name: str, measure: Measure, first: Measure | None) -> PolicyFigure | None:
    """The figure of a measure, with the difference to `first`, round 0's measure, if given.

    None with too few items for an interval. Raises MismatchError if round 0 measured other items.
    """
    finite = np.isfinite(measure.values)
    mean = _share(measure.values[finite], measure.groups[finite]) if name in SHARES else mean_over_prompts(measure.values, measure.groups)
    if mean is None:
        return None
    difference = None if first is None or name in AGAINST_BASE else difference_of(name, measure, first)
    return PolicyFigure(**mean.__dict__, difference=difference)


def _share(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Estimate | None:
    if not len(values):
        return None
    accuracy = accuracy_of(values[None], groups)
    return Estimate(value=accuracy.accuracy, low=accuracy.low, high=accuracy.high, n=accuracy.n, n_prompts=len(np.unique(groups)))


def difference_of(name: str, measure: Measure, other: Measure) -> Estimate | None:
    """The mean difference of a measure to another policy's by item. MismatchError: the items differ."""
    if not np.array_equal(measure.groups, other.groups):
        raise MismatchError(
            f"{name} was measured on different items, so they can't be paired",
            expected=f"{len(other.groups)} items of {len(np.unique(other.groups))} prompts",
            found=f"{len(measure.groups)} items of {len(np.unique(measure.groups))} prompts",
            remedy="evaluate every round with the same pairs and options",
        )
    return mean_over_prompts(measure.values - other.values, measure.groups)


def read_measures(folder: Path) -> dict[str, Measure]:
    """The measures in a folder of `core.align.evaluation.save_evaluation`. Raises StoreError where they are damaged."""
    parts = ("values", "groups")
    try:
        arrays = load_file(folder / ARRAYS)
        names = sorted(name.removesuffix(".values") for name in arrays if name.endswith(".values"))
        return {name: Measure(**{part: arrays[f"{name}.{part}"] for part in parts}) for name in names}
    except (OSError, KeyError, SafetensorError) as error:
        raise StoreError(f"{folder} holds no evaluation", found=f"{type(error).__name__}: {error}", remedy="sparserm cache verify") from error

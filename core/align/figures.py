"""What is measured of a policy as values: numbers by item, and the figure they make, with its interval and its paired difference to round 0.

The unit is the prompt. A share (right or wrong) gets Wilson's interval where each prompt has one item, else, as every mean, a bootstrap over prompts.
The same items are measured in every round, so a difference is that of each item to itself: far narrower than two intervals side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.errors import MismatchError, StoreError
from core.reward.evaluation import accuracy_of
from core.statistics.estimates import Estimate, mean_over_prompts

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
OWN_DIFFERENCE = ("kl_per_token", "kl_per_sequence")  # already stand against the base model


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A value of each item (NaN: can't be had) and the number of its prompt."""

    values: Float[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The mean of a measure with its 95 % interval; `difference` is its own to round 0, paired, None in round 0."""

    value: float
    low: float
    high: float
    n: int
    n_prompts: int
    difference: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "difference": self.difference and self.difference.to_json()}


def figure_of(name: str, measure: Measure, first: Measure | None) -> Figure | None:
    """The figure of a measure, against round 0's where that is given. None with too few items for an interval.

    Raises MismatchError if round 0 measured other items.
    """
    kept = np.isfinite(measure.values)
    found = _share(measure.values[kept], measure.groups[kept]) if name in SHARES else mean_over_prompts(measure.values, measure.groups)
    if found is None:
        return None
    difference = None if first is None or name in OWN_DIFFERENCE else difference_of(name, measure, first)
    return Figure(**found.__dict__, difference=difference)


def _share(values: Float[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Estimate | None:
    if not len(values):
        return None
    said = accuracy_of(values[None], groups)
    return Estimate(value=said.accuracy, low=said.low, high=said.high, n=said.n, n_prompts=len(np.unique(groups)))


def difference_of(name: str, measure: Measure, other: Measure) -> Estimate | None:
    """How far a measure lies above another policy's, each item against itself. Raises MismatchError if the two measured other items."""
    if not np.array_equal(measure.groups, other.groups):
        raise MismatchError(
            f"{name} was measured on other items, so nothing can be paired",
            expected=f"{len(other.groups)} items of {len(np.unique(other.groups))} prompts",
            found=f"{len(measure.groups)} items of {len(np.unique(measure.groups))} prompts",
            remedy="evaluate every round with the same pairs and options",
        )
    return mean_over_prompts(measure.values - other.values, measure.groups)


def read_measures(folder: Path) -> dict[str, Measure]:
    """The measures in a folder that `core.align.evaluation.save_evaluation` wrote. Raises StoreError where they are damaged. Loads no torch."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    parts = ("values", "groups")
    try:
        arrays = load_file(folder / ARRAYS)
        names = sorted(name.removesuffix(".values") for name in arrays if name.endswith(".values"))
        return {name: Measure(**{part: arrays[f"{name}.{part}"] for part in parts}) for name in names}
    except (OSError, KeyError, SafetensorError) as error:
        raise StoreError(f"{folder} holds no evaluation", found=f"{type(error).__name__}: {error}", remedy="sparserm cache verify") from error

"""Warnings of over-optimisation by a stated rule, the drift of latents, and the choice of a round.

Over-optimisation means that reward rises while another figure gets worse. Pages read the rules from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.align.figures import PolicyFigure
from core.statistics.bootstrap import percentile_interval, resampled_sums
from core.statistics.estimates import Estimate
from core.types import JsonFields

RULE = (
    "A round is warned of when its mean reward on held-out prompts has risen against the base model while preference accuracy, the log-probability "
    "margin, MC1 or MC2 has fallen, fewer answers end by themselves, or the answers' mean length has changed by more than a quarter. "
    "Risen, fallen and changed mean that the 95 % interval of the paired difference is clear of zero. One such interval in twenty is so by chance."
)
DRIFT = "mean move against the base model, in training deviations of the projection"
CHOICE = "the best accuracy by log-probability on validation pairs; of equal ones the earliest, the base model before all"

FALLING = ("accuracy", "logprob_margin", "mc1_unseen", "mc2_unseen", "finished")
NAMES = {
    "accuracy": "preference accuracy",
    "logprob_margin": "the log-probability margin of preference pairs",
    "mc1_unseen": "MC1 on unseen questions",
    "mc2_unseen": "MC2 on unseen questions",
    "finished": "the share of answers that end by themselves",
    "length": "the answers' length in tokens",
}
LENGTH_CHANGE = 0.25  # of the base model's mean length
TOP_DRIFTS = 12  # latents whose drift is kept


@dataclass(frozen=True, kw_only=True)
class OveroptimisationWarning(JsonFields):
    """The name of a figure that got worse while reward rose, and a sentence with both differences."""

    figure: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Drift(JsonFields):
    """How far a latent's mean projection moved in answers to the same prompts, with its 95 % interval over prompts."""

    latent_id: int
    value: float
    low: float
    high: float
    n: int
    n_prompts: int


def warnings_of(figures: Mapping[str, PolicyFigure]) -> list[OveroptimisationWarning]:
    """The warnings that `RULE` gives for a round's figures; none in round 0."""
    reward = figures.get("reward")
    if reward is None or reward.difference is None or not reward.difference.low > 0:
        return []
    rise = f"reward rose by {_size(reward.difference)}"
    worse = [name for name in FALLING if _high(figures, name) < 0] + (["length"] if _length_changed(figures) else [])
    return [OveroptimisationWarning(figure=name, text=f"{rise}, while {NAMES[name]} {_change(figures[name])}") for name in worse]


def _high(figures: Mapping[str, PolicyFigure], name: str) -> float:
    """The upper end of a figure's difference; 0 where there is no difference, which counts as no fall."""
    difference = figures[name].difference if name in figures else None
    return difference.high if difference else 0.0


def _length_changed(figures: Mapping[str, PolicyFigure]) -> bool:
    length = figures.get("length")
    if length is None or length.difference is None:
        return False
    change = length.difference
    before = length.value - change.value
    return (change.low > 0 or change.high < 0) and abs(change.value) > LENGTH_CHANGE * before


def _change(figure: PolicyFigure) -> str:
    assert figure.difference is not None
    verb = "fell" if figure.difference.value < 0 else "rose"
    return f"{verb} by {_size(figure.difference)} to {figure.value:.3g}"


def _size(difference: Estimate) -> str:
    """A difference and its interval without sign; the verb before it gives the direction."""
    ends = sorted((abs(difference.low), abs(difference.high)))
    return f"{abs(difference.value):.3g} ({ends[0]:.3g} to {ends[1]:.3g}, n = {difference.n})"


def drift_of(
    before: Float[np.ndarray, "n k"],
    after: Float[np.ndarray, "n k"],
    latent_ids: Int[np.ndarray, " k"],
    deviation: Float[np.ndarray, " k"],
    top: int = TOP_DRIFTS,
) -> list[Drift]:
    """The latents whose mean projection moved most, the largest move first.

    Moves are in units of `deviation`, the standard deviation over the training responses. Row i of both arrays belongs
    to the answer to prompt i. Rows with NaN are left out; with fewer than two rows the list is empty. The intervals are
    not corrected for the number of latents: one latent in twenty is clear of zero by chance, and the largest of many
    moves is overestimated.
    """
    moved = (after - before) / np.where(deviation > 0, deviation, np.inf)
    moved = moved[np.isfinite(moved).all(axis=1)].astype(np.float64)
    n = len(moved)
    if n < 2:
        return []
    low, high = percentile_interval(resampled_sums(moved) / n)
    mean = moved.mean(axis=0)
    order = np.argsort(-np.abs(mean), kind="stable")[:top]
    return [
        Drift(latent_id=int(latent_ids[i]), value=float(mean[i]), low=float(low[i]), high=float(high[i]), n=n, n_prompts=n) for i in map(int, order)
    ]


def choose_round(figures: Sequence[Mapping[str, Any]]) -> int:
    """The round that `CHOICE` takes, from the figures of rounds 0, 1, ...; without validation pairs the last."""
    accuracy = [by_name["validation_accuracy"].value if "validation_accuracy" in by_name else None for by_name in figures]
    if any(value is None for value in accuracy):
        return len(figures) - 1
    return int(np.argmax(np.array(accuracy, dtype=np.float64)))

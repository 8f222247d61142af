"""The over-optimisation rule, the choice of a round and the drift of latents, each in cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from core.align.figures import MEANING, Measure, PolicyFigure, figure_of
from core.align.overoptimisation import FALLING, LENGTH_CHANGE, NAMES, RULE, TOP_DRIFTS, choose_round, drift_of, warnings_of
from core.statistics.estimates import Estimate


def moved(value: float, half: float = 0.01, *, now: float = 1.0) -> PolicyFigure:
    """A figure of value `now` whose difference is `value`, with an interval of `half` on either side."""
    difference = Estimate(value=value, low=value - half, high=value + half, n=40, n_prompts=40)
    return PolicyFigure(value=now, low=now - 0.1, high=now + 0.1, n=40, n_prompts=40, difference=difference)


STILL = {name: moved(0.0) for name in (*FALLING, "length", "reward")}


@pytest.mark.parametrize("name", FALLING)
def test_reward_rises_while_another_falls(name: str) -> None:
    (warning,) = warnings_of({**STILL, "reward": moved(0.3), name: moved(-0.2, now=0.4)})
    assert warning.figure == name
    assert warning.text == f"reward rose by 0.3 (0.29 to 0.31, n = 40), while {NAMES[name]} fell by 0.2 (0.19 to 0.21, n = 40) to 0.4"


def test_all_that_fell_are_named() -> None:
    warnings = warnings_of({name: moved(0.3 if name == "reward" else -0.3) for name in (*FALLING, "reward")})
    assert [warning.figure for warning in warnings] == list(FALLING)


@pytest.mark.parametrize(
    ("reward", "accuracy"),
    [
        (moved(0.3), moved(0.0)),
        (moved(0.0), moved(-0.2)),
        (moved(-0.3), moved(-0.2)),
        (moved(0.3, 0.31), moved(-0.2)),
        (moved(0.3), moved(-0.2, 0.21)),
    ],
    ids=["nothing fell", "reward stood", "reward fell", "reward may not have risen", "accuracy may not have fallen"],
)
def test_no_warning_without_both(reward: PolicyFigure, accuracy: PolicyFigure) -> None:
    assert warnings_of({**STILL, "reward": reward, "accuracy": accuracy}) == []


@pytest.mark.parametrize(("change", "warned"), [(26.0, True), (-26.0, True), (24.0, False), (-24.0, False)])
def test_length_may_change_by_a_quarter(change: float, warned: bool) -> None:
    """The base model's answers have 100 tokens on average, and the rule allows a change of a quarter."""
    assert LENGTH_CHANGE == 0.25 and "a quarter" in RULE
    warnings = warnings_of({**STILL, "reward": moved(0.3), "length": moved(change, 1.0, now=100 + change)})
    assert [warning.figure for warning in warnings] == (["length"] if warned else [])
    if warned:
        assert ("rose by 26" if change > 0 else "fell by 26") in warnings[0].text


def test_a_length_that_may_not_have_changed_does_not_warn() -> None:
    assert warnings_of({**STILL, "reward": moved(0.3), "length": moved(60.0, 61.0, now=160.0)}) == []


def test_round_zero_and_missing_figures_do_not_warn() -> None:
    first = PolicyFigure(value=1.0, low=0.9, high=1.1, n=40, n_prompts=40)
    assert warnings_of({"reward": first, "accuracy": first}) == [] and warnings_of({}) == []
    assert warnings_of({"reward": moved(0.3)}) == [], "MC was not measured"


def test_chance_alone_hardly_warns() -> None:
    """Without a true change few rounds are warned of.

    Reward rises by chance in one case of forty, and then one of five other figures falls in at most one of eight.
    """
    rng, n_warned = np.random.default_rng(0), 0
    for _ in range(200):
        figures = {}
        for name in (*FALLING, "reward", "length"):
            before, after = (Measure(values=10 + rng.normal(size=60), groups=np.arange(60)) for _ in range(2))
            figure = figure_of("reward", after, before)
            assert figure is not None
            figures[name] = figure
        n_warned += bool(warnings_of(figures))
    assert n_warned <= 6


def test_the_names_are_known() -> None:
    assert {*FALLING, "length"} == set(NAMES) <= set(MEANING)


# --- choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "chosen"), [((0.5, 0.7, 0.6), 1), ((0.5, 0.5, 0.5), 0), ((0.5, 0.6, 0.6), 1), ((0.8, 0.6, 0.7), 0), ((0.5,), 0)]
)
def test_the_best_on_validation_and_the_earliest_of_equals(accuracy: tuple[float, ...], chosen: int) -> None:
    assert choose_round([{"validation_accuracy": moved(0, now=value), "accuracy": moved(0, now=-value)} for value in accuracy]) == chosen


def test_without_validation_the_last_round_is_taken() -> None:
    assert choose_round([{"accuracy": moved(0)}, {"accuracy": moved(0)}]) == 1


# --- drift ------------------------------------------------------------------------------------------------------------


def test_drift_by_hand() -> None:
    """Three prompts, two latents: moves of 1, 2, 3 over a deviation of 2, and of -4, -4, -4 over one of 1."""
    before, after = np.array([[0.0, 0.0], [1.0, 5.0], [2.0, 9.0]]), np.array([[1.0, -4.0], [3.0, 1.0], [5.0, 5.0]])
    first, second = drift_of(before, after, np.array([11, 7]), np.array([2.0, 1.0]))
    assert (first.latent_id, first.value, first.low, first.high, first.n) == (7, -4.0, -4.0, -4.0, 3)
    assert (second.latent_id, second.value) == (11, 1.0) and (second.low, second.high) == (0.5, 1.5), (
        "the same prompt is drawn three times in 1 of 27 resamples"
    )


def test_the_interval_is_the_normal_one_at_large_n() -> None:
    moves = np.random.default_rng(0).normal(loc=0.2, size=(500, 3))
    for drift in drift_of(np.zeros((500, 3)), moves, np.arange(3), np.ones(3)):
        latent_moves = moves[:, drift.latent_id]
        assert drift.value == pytest.approx(latent_moves.mean()) and (drift.high - drift.low) / 2 == pytest.approx(
            1.96 * latent_moves.std() / 500**0.5, rel=0.1
        )


def test_unread_answers_and_constant_latents() -> None:
    before, after = np.zeros((3, 2)), np.array([[1.0, 1.0], [np.nan, np.nan], [3.0, 1.0]])
    first, second = drift_of(before, after, np.array([1, 2]), np.array([1.0, 0.0]))
    assert (first.latent_id, first.value, first.n) == (1, 2.0, 2) and (second.latent_id, second.value) == (2, 0.0)
    assert drift_of(before[:2], after[:2], np.array([1, 2]), np.ones(2)) == []


def test_only_the_furthest_are_kept() -> None:
    moves = np.arange(40.0)[None] * np.array([[1.0], [1.0]])
    drifts = drift_of(np.zeros((2, 40)), moves, np.arange(100, 140), np.ones(40))
    assert [drift.latent_id for drift in drifts] == list(range(139, 139 - TOP_DRIFTS, -1))

"""The sentence that says why, word by word: whom it names, in which order, and what it says against itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.explain.latent_names import name_in_sentence
from core.explain.sentence import NOTHING_KEPT, ONE_KNOWN, Evidence, choose, rank_in_words, why_pair, why_response
from core.explain.stability import Stability
from core.latents.labels import Label

STABLE = Stability(overlap=0.94, rank_correlation=0.85, n=100)
GOOD: dict[str, Any] = {"detection_auroc": 0.93, "n_active": 120}


def evidence(value: list[float], **changes: Any) -> Evidence:
    """Latents 10, 11, ...; every head says what the shipped one says, projections are high, each latent is a group of its own."""
    k, values = len(value), np.array(value, dtype=np.float64)
    found = Evidence(
        latent_ids=np.arange(10, 10 + k),
        value=values,
        by_head=np.stack([values] * 3),
        contribution_by_head=np.stack([values] * 3),
        moved=np.ones(k),
        groups=tuple((i,) for i in range(k)),
        table=[GOOD] * k,
        stability=STABLE,
    )
    return replace(found, **changes)


def explained(found: Evidence, **changes: Any) -> str:
    return str(why_response(found, **{"reward": -1.234, "percentile": 7.2, "n_known": 4, **changes}))


def test_a_low_score() -> None:
    found = evidence([-0.41, 0.11, -0.2, 0.05], moved=np.array([-1.0, 1, 1, 1]))
    assert explained(found) == (
        "Scored -1.23, in the lowest 8 % of held-out responses: against 3 other known responses to this prompt, "
        "it lost by being low on latent 10 (-0.41) and high on latent 12 (-0.20), and gained by being high on latent 11 (+0.11)."
    )


def test_a_high_score_says_first_what_weighs_most() -> None:
    found = evidence([0.5, -0.2], moved=np.array([-1.0, 1]))
    assert explained(found, reward=2.0, percentile=99.4, n_known=2) == (
        "Scored 2.00, in the highest 1 % of held-out responses: against 1 other known response to this prompt, "
        "it gained by being low on latent 10 (+0.50), and lost by being high on latent 11 (-0.20)."
    )


def test_at_most_three_and_the_strongest_first() -> None:
    named = choose(evidence([0.1, -0.5, 0.3, 0.2, -0.4]))
    assert [(one.latent_id, one.value) for one in named] == [(11, -0.5), (14, -0.4), (12, 0.3)]
    assert "high on latent 11 (-0.50) and high on latent 14 (-0.40), and gained" in explained(evidence([0.1, -0.5, 0.3, 0.2, -0.4]))
    assert "high on latent 10 (+0.30), high on latent 11 (+0.20) and high on latent 12 (+0.10)" in explained(evidence([0.3, 0.2, 0.1]))


def test_labels_come_in_place_of_numbers() -> None:
    labels = {10: Label(text="polite\n closing", source="person"), 11: Label(text="x" * 200, source="person", score=0.9)}
    text = explained(evidence([0.5, 0.2, 0.1], labels=labels))
    assert 'high on "polite closing" (+0.50), high on "' + "x" * 79 + '…" (+0.20) and high on latent 12 (+0.10)' in text
    assert name_in_sentence(3, Label(text="  ", source="person")) == "latent 3" == name_in_sentence(3, None)


def test_a_latent_whose_sign_differs_between_heads_is_not_named() -> None:
    """Neither where the ranked value differs, nor where the whole contribution does, nor where a head gives nothing."""
    value = np.array([0.5, 0.4, 0.3, 0.2])
    by_head, whole = np.stack([value] * 3), np.stack([value] * 3)
    by_head[1, 0] = -0.01
    whole[2, 1] = -0.01
    by_head[0, 2] = 0.0
    named = choose(evidence(value.tolist(), by_head=by_head, contribution_by_head=whole))
    assert [one.latent_id for one in named] == [13]
    nobody = evidence([0.5], by_head=np.array([[0.5], [0.5], [-0.5]]))
    assert explained(nobody) == (
        "Scored -1.23, in the lowest 8 % of held-out responses: against 3 other known responses to this prompt, "
        "no latent can be named, since the heads of different seeds disagree on what each does."
    )


def test_the_shipped_head_must_agree_too() -> None:
    assert choose(evidence([-0.5], by_head=np.array([[0.5], [0.4]]), contribution_by_head=np.array([[-0.5], [-0.4]]))) == ()


def test_collinear_latents_count_as_one() -> None:
    """0.3 + 0.3 beats 0.5. In the second group the members cancel, in the third the heads agree on each latent but not on their sum."""
    grouped = evidence([0.3, 0.3, 0.5, -0.4, 0.4], groups=((0, 1), (2,), (3, 4)))
    named = choose(grouped)
    assert [(one.latent_id, one.value, one.collinear) for one in named] == [(10, 0.6, (11,)), (12, 0.5, ())]
    assert "high on latent 10, with 1 nearly collinear latent (+0.60) and high on latent 12 (+0.50)" in explained(grouped)
    assert "with 2 nearly collinear latents (+0.60)" in explained(evidence([0.3, 0.2, 0.1], groups=((0, 1, 2),)))
    by_head = np.array([[0.5, -0.3], [0.5, -0.6]])
    assert choose(evidence([0.5, -0.3], groups=((0, 1),), by_head=by_head, contribution_by_head=by_head)) == ()


def test_a_group_is_named_by_its_strongest_sure_member() -> None:
    by_head = np.array([[0.9, 0.3, -0.5], [-0.1, 0.3, -0.1]])
    named = choose(evidence([0.9, 0.3, -0.5], groups=((0, 1, 2),), by_head=by_head, contribution_by_head=by_head))
    assert [(one.latent_id, one.value) for one in named] == [(11, pytest.approx(0.7))]


@pytest.mark.parametrize(
    ("n_known", "said", "against"), [(1, ONE_KNOWN, "the average training response"), (0, NOTHING_KEPT, "the average training response")]
)
def test_with_one_known_response_it_says_what_it_can_not_tell(n_known: int, said: str, against: str) -> None:
    why = why_response(evidence([0.5]), reward=1.0, percentile=50.0, n_known=n_known)
    assert why.weaknesses == (said,)
    assert why.text == f"Scored 1.00, near the middle of held-out responses: against {against}, it gained by being high on latent 10 (+0.50)."
    assert "cannot be told apart" in said


@pytest.mark.parametrize(
    ("percentile", "said"),
    [
        (0.0, "in the lowest 1 %"),
        (7.2, "in the lowest 8 %"),
        (39.9, "in the lowest 40 %"),
        (40.0, "near the middle"),
        (60.0, "near the middle"),
        (60.5, "in the highest 40 %"),
        (100.0, "in the highest 1 %"),
    ],
)
def test_places(percentile: float, said: str) -> None:
    assert rank_in_words(percentile) == f"{said} of held-out responses"


# --- weaknesses ----------------------------------------------------------------------------------------------------


def weaknesses(**changes: Any) -> tuple[str, ...]:
    return why_response(evidence([0.5], **changes), reward=1.0, percentile=50.0, n_known=3).weaknesses


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (GOOD, ()),
        ({"detection_auroc": 0.8, "n_active": 30}, ()),
        (
            {"detection_auroc": 0.714, "n_active": 30},
            ("The projection on latent 10 is a weak sign that the latent is active (detection AUROC 0.71, should be at least 0.8).",),
        ),
        (
            {"detection_auroc": None, "n_active": 6},
            ("Too rare to say whether the projection on latent 10 shows that the latent is active: it is active in 6 training responses.",),
        ),
        (
            {"detection_auroc": None, "n_active": 1},
            ("Too rare to say whether the projection on latent 10 shows that the latent is active: it is active in 1 training response.",),
        ),
        ({"n_active": 30}, ("Whether the projection on latent 10 shows that the latent is active is not known.",)),
    ],
)
def test_detection(row: dict[str, Any], said: tuple[str, ...]) -> None:
    assert weaknesses(table=[row]) == said


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (Label(text="thanks", source="person"), ()),
        (Label(text="thanks", source="person", score=0.9), ()),
        (Label(text="thanks", source="person", score=0.65), ('The label "thanks" scores 0.65 only.',)),
        (Label(text="thanks", source="logit lens"), ('The label "thanks" was written automatically (logit lens).',)),
        (Label(text="thanks", source="gpt", score=0.5), ('The label "thanks" was written automatically (gpt) and scores 0.50 only.',)),
    ],
)
def test_labels_that_may_mislead(label: Label, said: tuple[str, ...]) -> None:
    assert weaknesses(labels={10: label, 99: Label(text="never named", source="gpt")}) == said


def test_a_projection_without_activity() -> None:
    said = ("The SAE does not call latent 10 active where its projection is high.",)
    assert weaknesses(activation=np.array([0.0])) == said
    assert weaknesses(activation=np.array([0.3])) == () == weaknesses(activation=np.array([np.nan]))


def test_an_unstable_model() -> None:
    (said,) = weaknesses(stability=Stability(overlap=0.5, rank_correlation=0.62, n=9))
    assert said == (
        "Explanations of this reward model are unstable: another draw of prompts or another seed may name other latents "
        "(top-K overlap over resamples 0.50, rank correlation of the heads 0.62; both should be at least 0.8)."
    )
    (said,) = weaknesses(stability=Stability(overlap=0.9, rank_correlation=None, n=0))
    assert said.startswith("Whether explanations of this reward model are stable is not known (top-K overlap over resamples 0.90, ")
    assert "rank correlation of the heads not known" in said


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_a_pair_won() -> None:
    why = why_pair(evidence([0.9, -0.3], moved=np.array([1.0, -1])), margin=0.6, probability=0.731)
    assert str(why) == (
        "The chosen response wins by 0.60 (P(chosen wins) = 0.73): it gained by being higher on latent 10 (+0.90), "
        "and lost by being lower on latent 11 (-0.30)."
    )


def test_a_pair_lost() -> None:
    why = why_pair(evidence([-0.9], moved=np.array([1.0])), margin=-0.9, probability=0.2)
    assert str(why) == (
        "The rejected response wins by 0.90, so the pair is mis-ranked (P(chosen wins) = 0.20): "
        "the chosen one lost by being higher on latent 10 (-0.90)."
    )
    assert "cannot be told apart" not in str(why)


def test_a_tie_and_a_pair_nobody_can_explain() -> None:
    assert str(why_pair(evidence([0.0]), margin=0.0, probability=0.5)) == "The two responses tie: the reward model sees no difference between them."
    why = why_pair(evidence([0.4], by_head=np.array([[0.4], [0.4], [-0.1]])), margin=0.4, probability=0.6)
    assert why.text.endswith("no latent can be named, since the heads of different seeds disagree on what each does.")


def test_json() -> None:
    found = why_response(evidence([0.3, 0.3], groups=((0, 1),)), reward=1.0, percentile=50.0, n_known=1).to_json()
    assert found["named"] == [{"latent_id": 10, "name": "latent 10", "level": "high", "value": 0.6, "collinear": [11]}]
    assert found["weaknesses"] == [ONE_KNOWN]

"""The sentence that says why, word by word: whom it names, in which order, and what it says against itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.explain.latent_names import name_in_sentence
from core.explain.sentence import NOTHING_KEPT, ONE_KNOWN, Evidence, Why, choose, no_better_than_chance, rank_in_words, why_pair, why_response
from core.explain.stability import Stability
from core.explain.text_units import tiles, unit_spans
from core.explain.words import PairWords, WordTable
from core.latents.labels import Label, Score

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
    named = choose(evidence([0.1, -0.5, 0.3, 0.2, -0.4]), -1)
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
    named = choose(evidence(value.tolist(), by_head=by_head, contribution_by_head=whole), 1)
    assert [one.latent_id for one in named] == [13]
    nobody = evidence([0.5], by_head=np.array([[0.5], [0.5], [-0.5]]))
    assert explained(nobody) == (
        "Scored -1.23, in the lowest 8 % of held-out responses: against 3 other known responses to this prompt, "
        "no latent can be named, since the heads of different seeds disagree on what each does."
    )


def test_the_shipped_head_must_agree_too() -> None:
    assert choose(evidence([-0.5], by_head=np.array([[0.5], [0.4]]), contribution_by_head=np.array([[-0.5], [-0.4]])), -1) == ()


def test_collinear_latents_count_as_one() -> None:
    """0.3 + 0.3 beats 0.5. In the second group the members cancel, in the third the heads agree on each latent but not on their sum."""
    grouped = evidence([0.3, 0.3, 0.5, -0.4, 0.4], groups=((0, 1), (2,), (3, 4)))
    named = choose(grouped, 1)
    assert [(one.latent_id, one.value, one.collinear) for one in named] == [(10, 0.6, (11,)), (12, 0.5, ())]
    assert "high on latent 10, with 1 nearly collinear latent (+0.60) and high on latent 12 (+0.50)" in explained(grouped)
    assert "with 2 nearly collinear latents (+0.60)" in explained(evidence([0.3, 0.2, 0.1], groups=((0, 1, 2),)))
    by_head = np.array([[0.5, -0.3], [0.5, -0.6]])
    assert choose(evidence([0.5, -0.3], groups=((0, 1),), by_head=by_head, contribution_by_head=by_head), 1) == ()


def test_a_group_is_named_by_its_strongest_sure_member() -> None:
    by_head = np.array([[0.9, 0.3, -0.5], [-0.1, 0.3, -0.1]])
    named = choose(evidence([0.9, 0.3, -0.5], groups=((0, 1, 2),), by_head=by_head, contribution_by_head=by_head), 1)
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


def test_it_never_begins_with_what_pulls_the_other_way() -> None:
    """The largest contribution is +0.5, but all together are -0.1: what lowered the reward stands first, though it is fourth."""
    against = evidence([0.5, 0.45, 0.4, -0.39, -0.36, -0.35, -0.35])
    assert explained(against).split("prompt, ")[1] == (
        "it lost by being high on latent 13 (-0.39), and gained by being high on latent 10 (+0.50) and high on latent 11 (+0.45)."
    )
    margin = str(why_pair(evidence([0.5, -0.6]), margin=0.3, probability=0.6))
    assert "it gained by being higher on latent 10 (+0.50), and lost" in margin
    only = str(why_pair(evidence([-0.6]), margin=0.3, probability=0.6))
    assert "no latent that all heads agree on explains that way; it lost by being higher on latent 10" in only


def test_a_doubtful_latent_is_marked_where_it_stands() -> None:
    labels = {10: Label(text="thanks", source="person", score=0.5), 11: Label(text="sea", source="person", score=0.7)}
    text = explained(evidence([0.5, 0.3, 0.2], labels=labels, active=np.array([False, True, False])))
    assert 'high on "thanks" [not active in this text, its label is no better than chance] (+0.50), high on "sea" (+0.30)' in text
    assert "high on latent 12 [not active in this text] (+0.20)" in text
    unsure = Label(text="x", source="person", score=0.6, scores=(Score(value=0.6, method="embedding", low=0.45, high=0.7),))
    assert no_better_than_chance(unsure) and not no_better_than_chance(None)


# --- quoted words ------------------------------------------------------------------------------------------------------

TEXT = "Good point, and I was careless. The Earth is round. Many people know that by now, as ships show."


def words_of(text: str, by_sentence: list[float], *, start: float = 0.0, prompt: float = 0.0, active: bool = True) -> WordTable:
    """A token a word. The first of three latents has 80 % of what each sentence adds, the second 20 %; the third pulls back."""
    tokens, sentences = np.array(tiles(text, "word")), unit_spans(text, "sentence")
    of = [max(i for i, (begin, _) in enumerate(sentences) if begin <= a or i == 0) for a, _ in tokens.tolist()]
    table = np.stack([np.array([0.9, 0.2, -0.1]) * by_sentence[i] / of.count(i) for i in of])
    part = np.array([prompt, 0, 0])
    return WordTable(
        text=text,
        latent_ids=np.arange(10, 13),
        offsets=tokens,
        table=table,
        by_head=np.stack([table.sum(axis=1)] * 2),
        activations=np.full(table.shape, float(active)),
        agreed=np.ones(3, dtype=bool),
        prompt_part=part,
        start=start,
        end=start + float(table.sum()) + prompt,
    )


def quoted(words: WordTable, **changes: Any) -> Why:
    return why_response(evidence([0.1, 0.1, 0.1], **changes), reward=words.end, percentile=2.5, n_known=4, words=words)


def test_words_stand_first_then_latents_prompt_and_share() -> None:
    why = quoted(words_of(TEXT, [-1.2, -0.1, 0.05], prompt=-0.3), labels={10: Label(text="agreeing at once", source="person")})
    assert why.text == (
        "Scored -1.55, in the lowest 3 % of held-out responses and 1.55 below the average training response: "
        '“Good point, and I was careless.” (-1.20), read by "agreeing at once" (-1.08) and latent 11 (-0.24); '
        "the prompt itself gives -0.30. These words carry 0.77 of it, with the prompt 0.97."
    )
    assert why.share == pytest.approx(1.5 / 1.55)
    (quote,) = why.quotes
    assert (quote.start, quote.stop, quote.side) == (0, 31, "response")
    assert [latent.latent_id for latent in why.named] == [10, 11]


def test_more_is_quoted_until_enough_is_carried() -> None:
    why = quoted(words_of(TEXT, [-0.4, -0.5, -0.3]))
    assert [quote.value for quote in why.quotes] == pytest.approx([-0.5, -0.4])
    assert why.text.endswith("These words carry 0.75 of it, with the prompt 0.75.")
    mixed = quoted(words_of(TEXT, [-1.0, 0.7, -0.1]))
    assert [quote.value for quote in mixed.quotes] == pytest.approx([-1.0])
    assert mixed.text.endswith("These words and the prompt together carry 2.50 of it: the other words pull back by +0.60.")


def test_quotes_never_pull_against_the_reward() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        words = words_of(TEXT, draw.normal(size=3).tolist(), prompt=float(draw.normal()), start=float(draw.normal()))
        why, total = quoted(words), words.end - words.start
        assert all(quote.value * total > 0 for quote in why.quotes) and len(why.quotes) <= 3
        assert all(latent.value * total > 0 for latent in why.named)
        assert why.share is not None and why.share == pytest.approx((sum(quote.value for quote in why.quotes) + words.prompt_share) / total)


def test_long_sentences_are_quoted_in_part_and_a_single_one_too() -> None:
    text = " ".join(f"w{i}" for i in range(60)) + "."
    words = words_of(text, [0.0])
    table = words.table.copy()
    table[20:35, 0], table[:, 1] = 1.0, -0.05
    why = quoted(replace(words, table=table, end=float(table.sum())))
    (quote,) = why.quotes
    assert text[quote.start : quote.stop].split() == [f"w{i}" for i in range(20, 35)]
    assert quote.text == " ".join(f"w{i}" for i in range(20, 32)) + " …"


def test_an_active_latent_goes_before_a_larger_inactive_one() -> None:
    words = words_of(TEXT, [1.0, 0, 0])
    table = words.table * np.array([1, 3, 1.0])  # 0.9 against 0.6
    activations = np.zeros_like(table)
    activations[2, 1] = 2.0
    why = quoted(replace(words, table=table, activations=activations, end=float(table.sum())))
    assert [(latent.latent_id, latent.marks) for latent in why.quotes[0].named] == [(11, ()), (10, ("not active in these words",))]


def test_a_pair_quotes_both_texts() -> None:
    chosen, rejected = words_of("It is round. Ships show it.", [0.4, -0.1]), words_of(TEXT, [0.3, 0.0, 0.0])
    margin = chosen.total + rejected.total
    words = PairWords(chosen=replace(chosen, start=0.3, end=margin), rejected=replace(rejected, start=0.0, end=0.3))
    why = why_pair(evidence([0.1, 0.1, 0.1]), margin=margin, probability=0.7, words=words)
    assert why.text == (
        "The chosen response wins by 0.60 (P(chosen wins) = 0.70): the chosen response's “It is round.” (+0.40), "
        "read by latent 10 (+0.36) and latent 11 (+0.08). These words carry 0.67 of it."
    )
    lost = replace(words, chosen=replace(chosen, start=-0.9, end=-0.6), rejected=replace(rejected, table=-3 * rejected.table, start=0.0, end=-0.9))
    why = why_pair(evidence([0.1, 0.1, 0.1]), margin=-0.6, probability=0.3, words=lost)
    assert "so the pair is mis-ranked (P(chosen wins) = 0.30): the rejected response's “Good point, and I was careless.” (-0.90)" in why.text
    assert why.text.endswith("These words carry 1.50 of it: the other words pull back by +0.30.")


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
    assert found["named"] == [{"latent_id": 10, "name": "latent 10", "level": "high", "value": 0.6, "collinear": [11], "marks": []}]
    assert found["weaknesses"] == [ONE_KNOWN]

"""Bars by word, sentence and line sum exactly, come in stretches that add up, and stand beside deletions and latents' marks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from explain_helpers import hand_made, question
from pages_helpers import response_tokens

from core.explain.bar_pages import placed_bars, stretches
from core.explain.explanation import Explanation, PairExplanation
from core.explain.explanation_builder import ExplanationBuilder
from core.explain.features import ResponseFeatures
from core.explain.latent_marks import label_mark, latent_marks, reliability
from core.explain.text_units import LEVELS
from core.explain.token_values import Deletion
from core.explain.word_rows import Word, agreement_with_deletion, token_spans
from core.explain.word_table import running_rewards
from core.latents.labels import EMBEDDING, SHIPPED, Label, Score

TEXT = "One is plain. Two (is it?) is not!\n\n| a | b |\n東京です。日本です。 שלום עולם 👩🏽‍🚀"
OTHER = "No. Never."


def features(text: str, seed: int = 0) -> ResponseFeatures:
    v = np.random.default_rng(seed).normal(size=5)
    return ResponseFeatures(item=(question("Question 0?"), text), v=v, f=np.maximum(v, 0), tokens=response_tokens(text, v))


def builder() -> ExplanationBuilder:
    """Of a model that reads whole responses."""
    parts, known = hand_made()
    return ExplanationBuilder(replace(parts, backbone_config=replace(parts.backbone_config, position="response_mean")), known)


def total(explanation: Explanation | PairExplanation, level: str) -> float:
    start, *parts, end = [placed.bar for placed in placed_bars(explanation, level)]
    assert (start.kind, end.kind) == ("start", "end")
    return start.value + sum(bar.value for bar in parts) - end.value


@pytest.mark.parametrize("level", LEVELS)
def test_the_bars_of_a_response_and_of_a_pair_sum_exactly(level: str) -> None:
    pair = builder().pair(features(TEXT), features(OTHER, 1), {})
    assert total(pair, level) == pytest.approx(0.0, abs=1e-9)
    assert total(pair.chosen, level) == pytest.approx(0.0, abs=1e-9)
    kinds = [placed.bar.kind for placed in placed_bars(pair.chosen, level)]
    assert kinds[:2] == ["start", "prompt"] and set(kinds[2:-1]) == {"part"}, "the prompt part is a bar of its own, and nothing is left over"
    sides = [placed.side for placed in placed_bars(pair, level)[1:-1]]
    assert sides == sorted(sides, reverse=True) and set(sides) == {"chosen", "rejected"}, "from rejected to chosen"


def test_there_are_no_bars_without_a_split() -> None:
    one = builder().response(ResponseFeatures(item=(question("Question 0?"), TEXT), v=np.ones(5), f=None), {})
    assert placed_bars(one, "sentence") == []


def test_a_bar_holds_its_place_and_quotes_its_text() -> None:
    bars = [placed for placed in placed_bars(builder().response(features(TEXT), {}), "sentence", side="chosen") if placed.side]
    assert all(TEXT[placed.at :].startswith(placed.bar.label[:5]) and placed.side == "chosen" for placed in bars)
    assert all(placed.bar.deviation is not None for placed in bars)


def test_long_splits_come_in_stretches_that_add_up() -> None:
    text = " ".join(f"Sentence number {i} goes on." for i in range(60))
    bars = [placed.bar for placed in placed_bars(builder().response(features(text), {}), "sentence")]
    pages = stretches(bars, 25)
    assert [(page.first, page.last, page.n_parts) for page in pages] == [(1, 25, 61), (26, 50, 61), (51, 61, 61)]
    for page in pages:
        start, *parts, end = page.bars
        assert start.value + sum(bar.value for bar in parts) == pytest.approx(end.value)
    assert [place for page in pages for place in page.places if place is not None] == list(range(len(bars)))
    assert len(stretches([bars[0], bars[-1]])) == 1


def test_the_running_reward_ends_at_the_reward() -> None:
    head, of = builder().parts.head, features(TEXT)
    assert of.tokens is not None
    running = running_rewards(head, of.tokens.projections)
    assert running[-1] == pytest.approx(head.reward(of.v[None])[0]) and len(running) == len(of.tokens)
    assert running[0] == pytest.approx(head.reward(of.tokens.projections[:1])[0])


def test_agreement_with_deletion_is_a_rank_correlation() -> None:
    words = builder().response(features(TEXT), {}).words
    assert words is not None
    units = words.units("sentence")
    effects = [3 * value + 1 for value in units.values]

    def deletions(values: list[float | None]) -> list[Deletion]:
        return [Deletion(start=a, stop=b, text=TEXT[a:b], effect=effect) for (a, b), effect in zip(units.spans, values, strict=True)]

    assert agreement_with_deletion(words, deletions(list(effects))) == pytest.approx(1.0)
    assert agreement_with_deletion(words, deletions([-effect for effect in effects])) == pytest.approx(-1.0)
    assert agreement_with_deletion(words, deletions([None, *effects[1:]])) is None
    assert agreement_with_deletion(words, deletions([1.0] * len(effects))) is None


def test_tokens_become_characters_of_the_response() -> None:
    words = [Word(place=i, text=text, kind="response", value=0.0, running=0.0) for i, text in enumerate(["\nOne", " two", "."])]
    assert token_spans(words, "One two.") == ("One two.", [(0, 3), (3, 7), (7, 8)])
    assert token_spans(words, "Something else") == ("\nOne two.", [(0, 4), (4, 8), (8, 9)]), "the tokenizer changed the text"


def test_an_inactive_or_poorly_labelled_latent_is_marked() -> None:
    def label(value: float, low: float | None = None) -> Label:
        scores = () if low is None else (Score(value=value, method=EMBEDDING, low=low, high=value + 0.1),)
        return Label(text="of the sea", source=SHIPPED, score=value, scores=scores)

    assert latent_marks(label(0.9), 1.0) == () and latent_marks(None, None) == ()
    assert latent_marks(label(0.9), 0.0) == ("not active here",)
    assert label_mark(label(0.5)) == "label no better than chance (0.50)"
    assert label_mark(label(0.62, 0.49)) == "label no better than chance (0.62, 0.49 to 0.72)"
    assert latent_marks(label(0.5), None, figures=False) == ("label no better than chance",)
    assert label_mark(label(0.62, 0.55)) == "weak label (0.62, 0.55 to 0.72; chance is 0.50)"
    assert reliability(label(0.83, 0.76)) == "label score 0.83 (0.76 to 0.93), 0.50 is chance" and reliability(None) == "no label"

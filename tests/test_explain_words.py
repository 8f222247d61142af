"""core/explain/words.py and text_units.py: words, prompt and start sum to the reward, both texts of a pair to the margin; units of any script."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from explain_helpers import hand_made, question, real_head

from core.errors import DataError
from core.explain.explanation_builder import ExplanationBuilder
from core.explain.features import ResponseFeatures
from core.explain.text_units import LEVELS, tiles, unit_spans
from core.explain.words import AT_RESPONSE_END, NOT_KEPT, PairWords, WordTable, pair_words, response_words, with_mean
from core.reward.head import Head
from core.reward.parts import RewardParts
from core.reward.response_tokens import KeptTokens, ResponseTokens

# --- units of a text ---------------------------------------------------------------------------------------------------


def parts_of(text: str, level: str) -> list[str]:
    return [text[start:stop] for start, stop in unit_spans(text, level)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't  stop, now.", ["Don't", "stop,", "now."]),
        ("مرحبا، كيف حالك؟", ["مرحبا،", "كيف", "حالك؟"]),
        ("我喜欢「猫」。", ["我", "喜", "欢", "「猫」。"]),
        ("カタカナ ok", ["カ", "タ", "カ", "ナ", "ok"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("Yes 👩‍👩‍👧 👍🏽!", ["Yes", "👩‍👩‍👧", "👍🏽!"]),
        ("naïve e\u0301te", ["naïve", "e\u0301te"]),
        ("  \n ", ["  \n "]),
        ("", [""]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert parts_of(text, "word") == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith came. He left.", ["Dr. Smith came.", "He left."]),
        ("Use tools, e.g. a saw. Then rest.", ["Use tools, e.g. a saw.", "Then rest."]),
        ("The U.S. Senate voted. J. R. Tolkien wrote.", ["The U.S. Senate voted.", "J. R. Tolkien wrote."]),
        ("No. I can't.", ["No.", "I can't."]),
        ("1. First thing.\n2. Second thing.", ["1. First thing.", "2. Second thing."]),
        ("- one\n- two\n\n- three", ["- one", "- two", "- three"]),
        ("| a | b |\n|---|---|\n| 1. x | 2 |", ["| a | b |", "|---|---|", "| 1. x | 2 |"]),
        ("Run:\n```python\nx = f(1.5)\nprint(x)\n```\nDone.", ["Run:", "```python", "x = f(1.5)", "print(x)", "```", "Done."]),
        ("هل هذا صحيح؟ نعم.", ["هل هذا صحيح؟", "نعم."]),
        ("他来了。他走了！好", ["他来了。", "他走了！", "好"]),
        ("यह है। वह था।", ["यह है।", "वह था।"]),
        ("**Stop.** Go on…  Really? 🎉 Yes", ["**Stop.**", "Go on…", "Really?", "🎉 Yes"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert parts_of(text, "sentence") == sentences


def test_lines_and_long_runs() -> None:
    assert parts_of("a b\n\n  c\r\nd", "line") == ["a b", "c", "d"]
    code = "window.addEventListener('load',function(event){console.log(event.target.value)})"
    pieces = parts_of(code, "word")
    assert "".join(pieces) == code and len(pieces) > 5


@pytest.mark.parametrize("level", LEVELS)
def test_tiles_are_the_whole_text_and_spans_rise(level: str) -> None:
    draw, signs = np.random.default_rng(0), list("ab. \n!?。猫ก👍\u200d\u0301\"'(1.|`")
    for _ in range(300):
        text = "".join(draw.choice(signs, size=draw.integers(1, 40)).tolist())
        spans, whole = unit_spans(text, level), tiles(text, level)
        assert "".join(text[a:b] for a, b in whole) == text
        assert len(spans) == len(whole)
        assert all(a < b <= c for (a, b), (c, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True) if text.strip())
        if text.strip():
            assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split()), "nothing but white space is left out"


# --- sums --------------------------------------------------------------------------------------------------------------


def tokens_of(text: str, draw: np.random.Generator, k: int, *, size: int = 4) -> ResponseTokens:
    """Tokens of up to `size` characters that begin anywhere, with projections in float32."""
    edges = [0]
    while edges[-1] < len(text):
        edges.append(min(len(text), edges[-1] + int(draw.integers(1, size + 1))))
    offsets = np.array([edges[:-1], edges[1:]]).T
    projections = (30 * draw.normal(size=(len(offsets), k))).astype(np.float32)
    return ResponseTokens(offsets=offsets, projections=projections, activations=np.maximum(draw.normal(size=(len(offsets), k)), 0).astype(np.float32))


def words_text(draw: np.random.Generator) -> str:
    return " ".join("x" * int(draw.integers(1, 9)) + draw.choice(["", ".", "\n"]) for _ in range(draw.integers(1, 60)))


def response_case(seed: int, k: int = 16, n_heads: int = 3) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    heads = tuple(real_head(draw, k=k, hidden=64) for _ in range(n_heads))
    return {"head": heads[0], "heads": heads, "latent_ids": np.arange(k), "baseline": draw.normal(size=k) * 10}


def test_words_prompt_and_start_sum_to_a_thousand_rewards() -> None:
    shared, draw = response_case(0), np.random.default_rng(1)
    for _ in range(1000):
        text, k = words_text(draw), 16
        tokens = tokens_of(text, draw, k)
        v = tokens.projections.mean(axis=0)  # float32, as a fit keeps it
        words = response_words(text, tokens, v, **shared, prompt_part=draw.normal(size=k), prompt_by_head=draw.normal(size=(3, k)))
        assert words.end == pytest.approx(shared["head"].reward(v[None].astype(np.float64))[0], abs=1e-12)
        for level in LEVELS:
            assert abs(words.start + words.prompt_share + words.units(level).values.sum() - words.end) < 1e-9
        assert abs(words.residual) < 1e-9


def test_words_of_a_pair_sum_to_the_margin() -> None:
    shared, draw = response_case(2), np.random.default_rng(3)
    for _ in range(200):
        texts = words_text(draw), words_text(draw)
        tokens = tokens_of(texts[0], draw, 16), tokens_of(texts[1], draw, 16)
        v = tokens[0].projections.mean(axis=0), tokens[1].projections.mean(axis=0)
        words = pair_words(texts, tokens, v, **shared)
        winner, loser = shared["head"].reward(np.stack(v).astype(np.float64))
        sums = words.chosen.units("word").values.sum() + words.rejected.units("sentence").values.sum()
        assert abs(sums - (winner - loser)) < 1e-9
        assert abs(words.residual) < 1e-9
        assert words.rejected.start == pytest.approx(loser) and words.chosen.end == pytest.approx(winner)
        assert abs(words.rejected.residual) + abs(words.chosen.residual) < 1e-9


def test_rounding_is_spread_and_another_response_is_an_error() -> None:
    draw = np.random.default_rng(4)
    projections = (draw.normal(size=(200, 8)) * 100).astype(np.float32)
    v = projections.mean(axis=0)
    np.testing.assert_allclose(with_mean(projections, v).mean(axis=0), v.astype(np.float64), atol=1e-12)
    with pytest.raises(DataError, match="not of this response"):
        with_mean(projections, v + 1)


def test_a_planted_word_carries_the_margin() -> None:
    """A synthetic backbone: every token reads noise of 0.02 on each latent but the word "sorry", which reads 3 on latent 1."""
    draw, k = np.random.default_rng(5), 6
    head = Head(
        weight_1=np.eye(k, dtype=np.float32) / 2,
        bias_1=np.ones(k, dtype=np.float32),
        weight_2=np.ones((1, k), dtype=np.float32),
        bias_2=np.zeros(1, dtype=np.float32),
    )
    texts = "I am sorry that the train was late again", "I think that the train was late again"

    def read(text: str) -> ResponseTokens:
        offsets = np.array(tiles(text, "word"))
        projections = 0.02 * draw.normal(size=(len(offsets), k))
        projections[[text[a:b].strip() == "sorry" for a, b in offsets.tolist()], 1] = 3
        return ResponseTokens(offsets=offsets, projections=projections, activations=(projections > 1).astype(np.float32))

    tokens = read(texts[0]), read(texts[1])
    v = tokens[0].projections.mean(axis=0), tokens[1].projections.mean(axis=0)
    words = pair_words(texts, tokens, v, head=head, heads=(head,), latent_ids=np.arange(k), baseline=np.zeros(k))
    units = words.chosen.units("word")
    strongest = int(units.values.argmax())
    assert texts[0][slice(*units.spans[strongest])] == "sorry"
    assert units.values[strongest] / words.margin > 0.9
    assert units.readers(strongest, words.chosen.latent_ids)[0][0] == 1
    assert units.activations is not None and units.activations[strongest, 1] > 0


def test_tokens_belong_where_their_first_sign_stands() -> None:
    text = "One two.\n\nThree"
    offsets = np.array([[0, 3], [3, 5], [5, 8], [8, 10], [10, 12], [12, 15]])  # "One", " t", "wo.", "\n\n", "Th", "ree"
    k = 2
    tokens = ResponseTokens(offsets=offsets, projections=np.arange(12.0).reshape(6, k), activations=np.eye(6, k))
    shared = {**response_case(6, k=k), "latent_ids": np.array([4, 9]), "prompt_part": np.zeros(k), "prompt_by_head": np.zeros((3, k))}
    words = response_words(text, tokens, tokens.projections.mean(axis=0), **shared)
    units = words.units("word")
    np.testing.assert_allclose(units.table, [words.table[0], words.table[1:4].sum(axis=0), words.table[4:].sum(axis=0)])
    np.testing.assert_array_equal(units.activations, [[1, 0], [0, 1], [0, 0]])
    np.testing.assert_allclose(words.units("sentence").table, [words.table[:4].sum(axis=0), words.table[4:].sum(axis=0)])
    assert [units.at(place) for place in (0, 4, 9, 14)] == [0, 1, 1, 2]


def test_json_round_trip() -> None:
    draw = np.random.default_rng(7)
    texts = words_text(draw), words_text(draw)
    tokens = tokens_of(texts[0], draw, 16), replace(tokens_of(texts[1], draw, 16), activations=None)
    pair = pair_words(texts, tokens, (tokens[0].projections.mean(axis=0), tokens[1].projections.mean(axis=0)), **response_case(8))
    again = PairWords.from_json(json.loads(json.dumps(pair.to_json(), allow_nan=False)))
    assert again.margin == pair.margin and again.rejected.activations is None
    for side, table in pair.texts.items():
        other = again.texts[side]
        assert isinstance(other, WordTable)
        np.testing.assert_array_equal(other.table, table.table)
        np.testing.assert_array_equal(other.units("sentence").by_head, table.units("sentence").by_head)


# --- in explanations ---------------------------------------------------------------------------------------------------


def whole(parts: RewardParts) -> RewardParts:
    return replace(parts, backbone_config=replace(parts.backbone_config, position="response_mean"))


def kept_case() -> ExplanationBuilder:
    """A reward model made by hand whose responses have tokens; those of one row are not kept."""
    parts, known = hand_made()
    draw, offsets, projections, starts = np.random.default_rng(9), [], [], [0]
    rows = np.arange(1, len(known))
    for row in rows:
        edges = np.array([0, 3, 7, 9])  # "Answer 1."
        offsets.append(np.stack([edges[:-1], edges[1:]], axis=1))
        noise = draw.normal(size=(3, 5))
        projections.append(known.projections[row] + noise - noise.mean(axis=0))
        starts.append(starts[-1] + 3)
    table = np.concatenate(projections).astype(np.float32)
    tokens = KeptTokens(rows=rows, starts=np.array(starts), offsets=np.concatenate(offsets), projections=table, activations=np.maximum(table, 0))
    return ExplanationBuilder(whole(parts), known, None, tokens)


def test_an_explanation_carries_its_words() -> None:
    pair = kept_case().known_pair(3, {})
    for side in (pair.chosen, pair.rejected):
        assert side.words is not None and side.no_words == ""
        assert side.words.prompt_share == pytest.approx(side.prompt_part.sum())
        assert side.words.total == pytest.approx(side.response_part.sum(), abs=1e-9)
        np.testing.assert_allclose(side.words.table.sum(axis=0), side.response_part, atol=1e-9)
        assert side.words.end == pytest.approx(side.reward, abs=1e-12)
    assert pair.words is not None
    np.testing.assert_allclose(pair.words.chosen.table.sum(axis=0) + pair.words.rejected.table.sum(axis=0), pair.margin.contribution, atol=1e-9)
    json.dumps(pair.to_json(), allow_nan=False)


def test_why_there_are_no_words() -> None:
    builder = kept_case()
    assert builder.known_pair(0, {}).chosen.no_words == NOT_KEPT
    assert builder.known_pair(0, {}).words is None
    parts, known = hand_made()
    features = ResponseFeatures(item=(question("Else?"), "Yes."), v=np.zeros(5), f=None)
    at_end = ExplanationBuilder(parts, known).response(features, {})
    assert at_end.words is None and at_end.no_words == AT_RESPONSE_END
    assert at_end.to_json()["no_words"] == AT_RESPONSE_END


def test_without_other_responses_the_prompt_has_no_share() -> None:
    builder = ExplanationBuilder(whole(hand_made()[0]), None)
    tokens = tokens_of("Yes, of course.", np.random.default_rng(10), 5)
    features = ResponseFeatures(
        item=(question("Else?"), "Yes, of course."), v=tokens.projections.mean(axis=0).astype(np.float64), f=None, tokens=tokens
    )
    words = builder.response(features, {}).words
    assert words is not None and words.prompt_share == 0
    assert abs(words.residual) < 1e-9

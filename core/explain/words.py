"""A reward, or a margin, split exactly over the words of its texts and the latents that read them, as values.

    words = explanation.words              # WordTable of one response, None where the split is impossible
    words.units("sentence")                # spans of characters, and a row of contributions a sentence
    words.start + words.prompt_share + words.units("word").values.sum() == words.end
    pair.words.chosen, pair.words.rejected # two WordTables whose values sum to the margin

The table is that of core.explain.word_table (METHOD.md section 4), a row a token; units add up the rows of their tokens, so
every level has the same total. Three choices make its rows mean something without touching the sums:

One response. The path runs from the average training response b to v. Each latent's contribution is its prompt part (its
mean over the known responses to this prompt) plus its response part. The prompt part is a bar of its own, `prompt_share`,
and 1/T of it is taken from each of the T tokens: contribution_tj = g_j (p_tj - b_j) / T - prompt_part_j / T. Summed over
tokens that is g_j (v_j - b_j) - prompt_part_j, the response part, so the split stays exact whatever the prompt part is.
It is the same as measuring each token from b'_j = b_j + prompt_part_j / g_j, what the head sees as the average of this
prompt's responses. With fewer than two known responses the two can't be told apart, and the prompt's share is 0.

A pair. Words of the chosen response get g_j (p_tj - b_j) / T_w, words of the rejected one -g_j (p_tj - b_j) / T_l; b
cancels in the sum, so it only decides what counts as nothing. Here b is the mean v of the known responses to the prompt,
these two included: what the prompt does to all of its answers then stands in no word. (Measured from the average training
response, both sides would carry it with opposite signs.)

Rounding. p_t and v were computed in float32, so the mean of p_t misses v by rounding. v - mean(p) is added to each
token; more than rounding is an error: these tokens are not of this response.

Only numpy, in float64: pages and the terminal draw these values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from core.errors import DataError
from core.explain.attribution import same_sign
from core.explain.text_units import LEVELS, unit_spans
from core.explain.token_values import Span
from core.explain.word_table import effective_weights, pair_tables, response_table, summed, units_of_tokens
from core.reward.head import Head
from core.reward.response_tokens import ResponseTokens
from core.types import json_value

ROUNDING = 1e-3  # the mean of p_t may miss v by this share of the largest |p_t| (float32, and bfloat16 states)
AT_RESPONSE_END = (
    "This reward model reads the last token of a response alone, so its reward can't be split over words. Deleting a sentence and scoring "
    "the rest again says what it adds; a model fitted with --position response_mean splits exactly."
)
NOT_KEPT = "The tokens of this response are not kept beside the reward model, so the split over words needs the language model."
Table = Float[np.ndarray, "n k"]


@dataclass(frozen=True, kw_only=True)
class Units:
    """The words, sentences or lines of one text, rising: the characters of each without the white space around it, and
    what it adds by each latent. `by_head`: its sum by each seed's head. `activations`: the largest f of each latent at
    the unit's tokens, None where no SAE was at hand."""

    spans: tuple[Span, ...]
    table: Table
    by_head: Float[np.ndarray, "heads n"]
    activations: Table | None

    @cached_property
    def values(self) -> Float[np.ndarray, " n"]:
        """What each unit adds."""
        return self.table.sum(axis=1)

    @cached_property
    def deviation(self) -> Float[np.ndarray, " n"]:
        """Standard deviation of what each unit adds over the heads of different seeds; 0 with one head."""
        return self.by_head.std(axis=0, ddof=1) if len(self.by_head) > 1 else np.zeros(len(self.spans))

    @cached_property
    def agreed(self) -> Bool[np.ndarray, " n"]:
        """Where all heads give a unit the sign that the shipped one gives it."""
        return same_sign(np.concatenate([self.values[None], self.by_head]))

    def at(self, place: int) -> int | None:
        """The number of the unit that holds a character, else of the last one before it; None before the first."""
        before = int(np.searchsorted([start for start, _ in self.spans], place, side="right"))
        return before - 1 if before else None

    def readers(self, number: int, latent_ids: Int[np.ndarray, " k"], most: int | None = None) -> list[tuple[int, float]]:
        """The latents that read a unit, by the size of what each adds there, with it."""
        order = np.argsort(-np.abs(self.table[number]), kind="stable")[:most]
        return [(int(latent_ids[column]), float(self.table[number, column])) for column in order]


@dataclass(frozen=True, kw_only=True)
class WordTable:
    """What each token of one text adds by each latent, on the way from `start` to `end` (rewards).

    `offsets` are the tokens' characters in `text`, `by_head` the tokens' sums by each seed's head, `activations` f at each
    token (None where no SAE was at hand). `prompt_share` is what the prompt itself adds, `prompt_part` the same by latent
    (0 within a pair). `agreed`: latents to whose effective weight on this path all heads give one sign. Of a pair's
    texts the rejected one runs from its own reward to where the chosen one starts.
    """

    text: str
    latent_ids: Int[np.ndarray, " k"]
    offsets: Int[np.ndarray, "t 2"]
    table: Table
    by_head: Float[np.ndarray, "heads t"]
    activations: Table | None
    agreed: Bool[np.ndarray, " k"]
    prompt_part: Float[np.ndarray, " k"]
    start: float
    end: float

    @property
    def prompt_share(self) -> float:
        return float(self.prompt_part.sum())

    @cached_property
    def total(self) -> float:
        """What all words add together."""
        return float(self.table.sum())

    @property
    def residual(self) -> float:
        """What start, prompt and words miss of the end: rounding."""
        return self.end - self.start - self.prompt_share - self.total

    def units(self, level: str) -> Units:
        """Words, sentences or lines (core.explain.text_units.LEVELS), the tokens of each added up."""
        kept = self._levels
        if level not in kept:
            kept[level] = self.over(unit_spans(self.text, level))
        return kept[level]

    def over(self, spans: Sequence[Span]) -> Units:
        """The tokens added up over these spans, which rise. A token belongs to the span that its first character other
        than white space begins in or follows; white space alone to what stands before it."""
        of_token = units_of_tokens(self._places, [start for start, _ in spans])
        activations = None
        if self.activations is not None:
            activations = np.zeros((len(spans), len(self.latent_ids)), dtype=np.float64)
            np.maximum.at(activations, of_token, self.activations)
        by_head = summed(np.ascontiguousarray(self.by_head.T), of_token, len(spans)).T
        return Units(spans=tuple(spans), table=summed(self.table, of_token, len(spans)), by_head=by_head, activations=activations)

    @cached_property
    def _levels(self) -> dict[str, Units]:
        return {}

    @cached_property
    def _places(self) -> list[int]:
        return token_places(self.text, self.offsets)

    def to_json(self) -> dict[str, Any]:
        """JSON values: the exact table by token, and spans and sums of each level."""
        arrays = {spec.name: json_value(getattr(self, spec.name)) for spec in fields(self)}
        figures = {"prompt_share": self.prompt_share, "total": self.total, "residual": self.residual}
        levels = {level: self.units(level) for level in LEVELS}
        return {**arrays, **figures, "units": {level: _unit_rows(self.text, units) for level, units in levels.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> WordTable:
        k = len(value["latent_ids"])
        activations = None if value["activations"] is None else np.array(value["activations"], dtype=np.float64).reshape(-1, k)
        return cls(
            text=value["text"],
            latent_ids=np.array(value["latent_ids"], dtype=np.int64),
            offsets=np.array(value["offsets"], dtype=np.int64).reshape(-1, 2),
            table=np.array(value["table"], dtype=np.float64).reshape(-1, k),
            by_head=np.array(value["by_head"], dtype=np.float64).reshape(-1, len(value["table"])),
            activations=activations,
            agreed=np.array(value["agreed"], dtype=bool),
            prompt_part=np.array(value["prompt_part"], dtype=np.float64),
            start=value["start"],
            end=value["end"],
        )


@dataclass(frozen=True, kw_only=True)
class PairWords:
    """Both texts of a pair. All values together sum to the margin s_w - s_l; a word of the rejected response that lowers
    its reward adds to the margin. From the rejected reward the bars run over its words, then over the chosen ones."""

    chosen: WordTable
    rejected: WordTable

    @property
    def texts(self) -> Mapping[str, WordTable]:
        """By side, in the order of their bars."""
        return {"rejected": self.rejected, "chosen": self.chosen}

    @property
    def margin(self) -> float:
        return self.chosen.end - self.rejected.start

    @property
    def residual(self) -> float:
        """What the words of both texts miss of the margin: rounding."""
        return self.margin - self.chosen.total - self.rejected.total

    def to_json(self) -> dict[str, Any]:
        sides = {name: table.to_json() for name, table in self.texts.items()}
        return {"margin": self.margin, "residual": self.residual, **sides}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PairWords:
        return cls(chosen=WordTable.from_json(value["chosen"]), rejected=WordTable.from_json(value["rejected"]))


def response_words(
    text: str,
    tokens: ResponseTokens,
    v: Float[np.ndarray, " k"],
    *,
    head: Head,
    heads: Sequence[Head],
    latent_ids: Int[np.ndarray, " k"],
    baseline: Float[np.ndarray, " k"],
    prompt_part: Float[np.ndarray, " k"],
    prompt_by_head: Float[np.ndarray, "heads k"],
) -> WordTable:
    """One response from `baseline` to v. `prompt_part` (0 where prompt and response can't be told apart) is the shipped
    head's, `prompt_by_head` that of `heads`. Raises DataError where the tokens are not of this response."""
    projections = with_mean(tokens.projections, v)

    def table(of: Head, part: Float[np.ndarray, " k"]) -> Table:
        return response_table(of, projections, baseline) - part / len(projections)

    before, reward = head.reward(np.stack([baseline, v]).astype(np.float64))
    return WordTable(
        text=text,
        latent_ids=latent_ids,
        offsets=tokens.offsets,
        table=table(head, prompt_part),
        by_head=np.stack([table(of, part).sum(axis=1) for of, part in zip(heads, prompt_by_head, strict=True)]),
        activations=tokens.activations,
        agreed=_agreed(head, heads, baseline, v),
        prompt_part=prompt_part,
        start=float(before),
        end=float(reward),
    )


def pair_words(
    texts: tuple[str, str],
    tokens: tuple[ResponseTokens, ResponseTokens],
    v: tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]],
    *,
    head: Head,
    heads: Sequence[Head],
    latent_ids: Int[np.ndarray, " k"],
    baseline: Float[np.ndarray, " k"],
) -> PairWords:
    """The chosen and the rejected response, in this order in every tuple; `baseline` is what counts as nothing (see above).
    Raises DataError where tokens are not of these responses."""
    chosen, rejected = (with_mean(of_text.projections, mean) for of_text, mean in zip(tokens, v, strict=True))
    shipped, by_head = pair_tables(head, chosen, rejected, baseline), [pair_tables(of, chosen, rejected, baseline) for of in heads]
    loser, winner = (float(reward) for reward in head.reward(np.stack([v[1], v[0]]).astype(np.float64)))
    middle = loser + float(shipped[1].sum())
    ends = ((middle, winner), (loser, middle))
    agreed = _agreed(head, heads, v[1], v[0])
    sides = [
        WordTable(
            text=texts[side],
            latent_ids=latent_ids,
            offsets=tokens[side].offsets,
            table=shipped[side],
            by_head=np.stack([of_head[side].sum(axis=1) for of_head in by_head]),
            activations=tokens[side].activations,
            agreed=agreed,
            prompt_part=np.zeros(len(latent_ids)),
            start=ends[side][0],
            end=ends[side][1],
        )
        for side in range(2)
    ]
    return PairWords(chosen=sides[0], rejected=sides[1])


def with_mean(projections: Float[np.ndarray, "t k"], v: Float[np.ndarray, " k"]) -> Float[np.ndarray, "t k"]:
    """p_t in float64, moved by the rounding that its mean misses v by. DataError: that is more than rounding."""
    exact = projections.astype(np.float64)
    moved = v.astype(np.float64) - exact.mean(axis=0)
    largest = float(np.abs(exact).max(initial=0.0))
    if np.abs(moved).max(initial=0.0) > ROUNDING * max(largest, 1e-6):
        problem = "the tokens that are kept are not of this response: their mean is another projection"
        raise DataError(problem, expected=f"at most {ROUNDING * largest:.2g} apart", found=f"{np.abs(moved).max():.2g}", remedy="fit the model again")
    return exact + moved


def token_places(text: str, offsets: Int[np.ndarray, "t 2"]) -> list[int]:
    """The character that decides which unit each token belongs to: its first one other than white space."""
    parts = ((start, text[start:stop]) for start, stop in offsets.tolist())
    return [start + len(part) - len(part.lstrip()) if part.strip() else start for start, part in parts]


def _agreed(head: Head, heads: Sequence[Head], start: Float[np.ndarray, " k"], end: Float[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    return same_sign(np.stack([effective_weights(of, start, end) for of in (head, *heads)]))


def _unit_rows(text: str, units: Units) -> list[dict[str, Any]]:
    return [
        {"start": start, "stop": stop, "text": text[start:stop], "value": float(value), "deviation": float(deviation), "agreed": bool(agreed)}
        for (start, stop), value, deviation, agreed in zip(units.spans, units.values, units.deviation, units.agreed, strict=True)
    ]

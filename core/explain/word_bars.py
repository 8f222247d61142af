"""The split over words as bars that a terminal and a page draw, and as a table of words x latents.

The bars run from the average training response (of a pair: from the rejected response) over the prompt's share and the units
in the order of their texts to the reward. They sum exactly, and none stands for "other".
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator

import numpy as np

from core.explain.attribution import same_sign
from core.explain.explanation import Explanation, PairExplanation
from core.explain.waterfall import Bar, waterfall_steps
from core.explain.words import PairWords, Units, WordTable

MOST_BARS = 40  # of one text; neighbours share a bar beyond it
LONGEST_NAME = 70


def word_bars(explanation: Explanation | PairExplanation, level: str = "", *, most: int = MOST_BARS) -> list[Bar]:
    """A bar a sentence (`level`: one of core.explain.text_units.LEVELS), by default a bar a word where a text is a single
    sentence. Of more than `most` units of a text neighbours are added up. Empty where there is no split over words."""
    if explanation.words is None:
        return []
    start, *others, end = waterfall_steps(explanation, {})
    prompt = [bar for bar in others if bar.kind == "prompt"]
    return [start, *prompt, *(bar for name, table in texts_of(explanation.words).items() for bar in _unit_bars(name, table, level, most)), end]


def texts_of(words: WordTable | PairWords) -> dict[str, WordTable]:
    """The texts by side, in the order of their bars: `response`, or `rejected` and `chosen`."""
    return {"response": words} if isinstance(words, WordTable) else dict(words.texts)


def _unit_bars(name: str, table: WordTable, level: str, most: int) -> Iterator[Bar]:
    units = table.units(level or ("sentence" if len(table.units("sentence").spans) > 1 else "word"))
    edges = np.linspace(0, len(units.spans), min(len(units.spans), most) + 1).astype(int).tolist()
    for first, after in itertools.pairwise(edges):
        value, by_head = float(units.values[first:after].sum()), units.by_head[:, first:after].sum(axis=1)
        agreed = bool(same_sign(np.append(by_head, value)))
        yield Bar(
            label=("" if name == "response" else f"{name}: ") + _label(table.text, units, first, after),
            value=value,
            deviation=float(by_head.std(ddof=1)) if len(by_head) > 1 else None,
            agreed=agreed,
            note="" if agreed else "the heads disagree on its sign",
        )


def _label(text: str, units: Units, first: int, after: int) -> str:
    line = " ".join(text[units.spans[first][0] : units.spans[after - 1][1]].split())
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 1] + "…"


def table_lines(words: WordTable | PairWords) -> Iterator[str]:
    """Lines of a CSV of words x latents. `kind` is `start`, `prompt`, `word` or `end`: start, prompt and words sum to the end
    in the column `value`; each word's value is the sum of its columns `latent_<id>`."""
    texts = texts_of(words)
    tables = list(texts.values())
    names = [f"latent_{latent}" for latent in tables[0].latent_ids.tolist()]
    columns = ("kind", "side", "start", "stop", "text", "value", "deviation", *names)
    yield _line(columns)
    yield _line(("start", "", "", "", "", tables[0].start, "", *[""] * len(names)))
    if isinstance(words, WordTable):
        yield _line(("prompt", "", "", "", "", words.prompt_share, "", *words.prompt_part.tolist()))
    for side, table in texts.items():
        units = table.units("word")
        for (start, stop), value, deviation, row in zip(units.spans, units.values, units.deviation, units.table, strict=True):
            yield _line(("word", side, start, stop, table.text[start:stop], float(value), float(deviation), *row.tolist()))
    yield _line(("end", "", "", "", "", tables[-1].end, "", *[""] * len(names)))


def _line(cells: tuple[object, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()

"""Bars by word, sentence or line with their places in the texts, and long waterfalls in stretches.

In stretches the bars of an answer of 4,000 tokens stay readable, and none is summed with its neighbours or under "other".
Each begins and ends with the running total, so it adds up for itself, and the stretches together are the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.explain.explanation import Explanation, PairExplanation
from core.explain.waterfall import TOTALS, Bar
from core.explain.word_bars import texts_of, word_bars

BARS = 24  # parts of a stretch


@dataclass(frozen=True, kw_only=True)
class PlacedBar:
    """A bar, and the text and character where its unit begins (`side` is empty for start, end and prompt part)."""

    bar: Bar
    side: str = ""
    at: int = 0


def placed_bars(explanation: Explanation | PairExplanation, level: str, *, side: str = "response") -> list[PlacedBar]:
    """The bars of core.explain.word_bars, one for every unit, with their places; none where there is no split. `side` names
    the text of a single response."""
    if explanation.words is None:
        return []
    texts = texts_of(explanation.words)
    most = max(len(table.units(level).spans) for table in texts.values())
    places = [(name if len(texts) > 1 else side, start) for name, table in texts.items() for start, _ in table.units(level).spans]
    bars = word_bars(explanation, level, most=most)
    before = len(bars) - 1 - len(places)
    around = [*[("", 0)] * before, *places, ("", 0)]
    return [PlacedBar(bar=bar, side=name, at=at) for bar, (name, at) in zip(bars, around, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """`bars` of one stretch with its two totals; `first` and `last` count the parts of the whole from 1, of `n_parts`;
    `places` are the bars' places in the whole, None for a running total."""

    bars: tuple[Bar, ...]
    places: tuple[int | None, ...]
    first: int
    last: int
    n_parts: int


def stretches(bars: Sequence[Bar], most: int = BARS) -> list[Stretch]:
    """The whole waterfall, start and end bar included, in stretches of at most `most` parts."""
    parts = [(place, bar) for place, bar in enumerate(bars) if bar.kind not in TOTALS]
    start, end = bars[0], bars[-1]
    pages, total = [], start.value
    for at in range(0, max(1, len(parts)), most):
        page = parts[at : at + most]
        begin = start if at == 0 else Bar(label=f"After {at:,} of {len(parts):,}", value=total, kind="start")
        total += sum(bar.value for _, bar in page)
        last = at + len(page)
        whole = last == len(parts)
        finish = end if whole else Bar(label=f"After {last:,} of {len(parts):,}", value=total, kind="end")
        places = (0 if at == 0 else None, *(place for place, _ in page), len(bars) - 1 if whole else None)
        pages.append(Stretch(bars=(begin, *(bar for _, bar in page), finish), places=places, first=at + 1, last=last, n_parts=len(parts)))
    return pages

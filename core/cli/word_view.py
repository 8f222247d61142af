"""Texts with their words marked by what each adds to the reward, for a terminal: by colour where it has colours (blue
raises, orange lowers, deeper is more), else by signs around the strongest words: `[+0.41 a good point]`.

Texts come from data and models: control characters are shown, not sent to the terminal.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from core.explain.words import WordTable
from core.text_safety import for_terminal

# From the middle to the end of one scale each; told apart by people with any kind of colour vision, and by lightness.
RAISES, LOWERS = ("#dbeafc", "#a9cdf5", "#6daaec", "#2f7fd1"), ("#fce6d6", "#f6c29b", "#ee9a5c", "#d0681a")
FAINT = 0.1  # of the strongest word: what is weaker is not marked
MOST_MARKS = 12  # signs in a text without colours


@dataclass(frozen=True, kw_only=True)
class MarkedTexts:
    """The texts of an explanation (by side), marked on one scale."""

    texts: Mapping[str, WordTable]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        colours = console.color_system is not None and not console.no_color
        top = max((float(np.abs(table.units("word").values).max(initial=0.0)) for table in self.texts.values()), default=0.0)
        for side, table in self.texts.items():
            yield Text(f"{side.capitalize()}: its words add {table.total:+.3f}", style="bold")
            yield coloured(table, top) if colours else Text(signed(table))
        if colours:
            yield legend(top)


def coloured(table: WordTable, top: float) -> Text:
    """Every word on a shade of its value; `top` is the value of the deepest shade."""
    text, place = Text(), 0
    units = table.units("word")
    for (start, stop), value in zip(units.spans, units.values.tolist(), strict=True):
        text.append(for_terminal(table.text[place:start]))
        text.append(for_terminal(table.text[start:stop]), style=_style(value, top))
        place = stop
    text.append(for_terminal(table.text[place:]))
    return text


def legend(top: float) -> Text:
    """The scale, from what lowers most to what raises most."""
    text = Text(f"{-top:+.2f} ")
    for shade in (*reversed(LOWERS), "", *RAISES):
        text.append("  ", style=f"on {shade}" if shade else "")
    return text.append(f" {top:+.2f}  what a word adds")


def signed(table: WordTable) -> str:
    """The text with its strongest runs of words in brackets, each with the sum that they add."""
    units, text, place = table.units("word"), "", 0
    for first, after, value in sorted(sorted(_runs(units.values), key=lambda run: -abs(run[2]))[:MOST_MARKS]):
        start, stop = units.spans[first][0], units.spans[after - 1][1]
        text += f"{table.text[place:start]}[{value:+.2f} {table.text[start:stop]}]"
        place = stop
    return for_terminal(text + table.text[place:])


def _runs(values: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Neighbouring words of one sign that are not faint: first, one after the last, and their sum."""
    signs = np.sign(values) * (np.abs(values) >= FAINT * np.abs(values).max(initial=0.0))
    edges = [0, *(np.flatnonzero(np.diff(signs)) + 1).tolist(), len(signs)]
    for first, after in itertools.pairwise(edges):
        if after > first and signs[first]:
            yield first, after, float(values[first:after].sum())


def _style(value: float, top: float) -> str:
    if top <= 0 or abs(value) < FAINT * top:
        return ""
    shades = RAISES if value > 0 else LOWERS
    return f"black on {shades[min(int(abs(value) / top * len(shades)), len(shades) - 1)]}"

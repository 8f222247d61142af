"""What all figures share: colours that mean something, axes with a name and a unit, texts made harmless, and the table
behind each figure.

Text and grid take their colours from the page's theme, so marks are chosen to be told apart, by the colour-blind too,
on white and on near-black. plotly reads a little HTML in every text of a figure: whatever comes from data or models
goes through `plain` or `wrapped` first.

This module imports pandas, though it does not use it: plotly uses pandas where `sys.modules` holds it, and would find
half of it while another session is importing it. Every session imports this module before it draws, so it waits for the
whole of pandas.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas  # noqa: F401  for plotly, see above
import plotly.graph_objects as go

from core.reward.head_words import counted_pairs
from core.text_safety import visible

CHOSEN, REJECTED, NEUTRAL = "#3B7DED", "#DD6B10", "#7F8A99"
FAINT, LINE = "rgba(127, 138, 153, 0.35)", "rgba(127, 138, 153, 0.55)"
FURTHER = ("#0F9D8A", "#A855C7", "#B8860B", "#C2416B", "#6A8F2B", "#5F7FBF")  # for what is neither chosen nor rejected, such as the controls
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "x")  # beside colours, for who can't tell those apart
INTERVAL = "95 % interval"
LONGEST = 60

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure, what it says to who can't see it, and the table behind it (a row a mark, in drawing order)."""

    name: str
    figure: go.Figure
    alt: str
    rows: Rows

    def html(self) -> str:
        """A page of its own that needs no network."""
        figure = go.Figure(self.figure).update_layout(template="plotly_white", paper_bgcolor="white", plot_bgcolor="white")
        return str(figure.to_html(include_plotlyjs=True, include_mathjax=False, full_html=True))


def plain(text: object, longest: int = LONGEST) -> str:
    """A text from data or models as one harmless line in a figure."""
    return html.escape(" ".join(visible(text, longest).split()), quote=False)


def wrapped(text: object, width: int = 70, lines: int = 6) -> str:
    """A longer text in a hover box, over several lines."""
    rows = textwrap.wrap(" ".join(visible(text, width * lines).split()), width, break_long_words=True)
    return "<br>".join(html.escape(row, quote=False) for row in rows)


def figure(*, x: str, y: str, height: int, legend: bool = False, left: int = 56) -> go.Figure:
    """An empty figure with named axes. Empty names: an axis whose marks name themselves."""
    made = go.Figure()
    made.update_layout(
        height=height,
        margin={"l": left, "r": 12, "t": 46 if legend else 22, "b": 48 + 16 * x.count("<br>") if x else 24},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "title": {"text": ""}},
        hoverlabel={"align": "left", "namelength": 0},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        modebar={"bgcolor": "rgba(0, 0, 0, 0)", "color": NEUTRAL, "activecolor": CHOSEN},
        bargap=0.25,
        uirevision="kept",
    )
    for axis, name in ((made.update_xaxes, x), (made.update_yaxes, y)):
        axis(title={"text": name, "standoff": 8}, gridcolor=FAINT, zeroline=False, automargin=True)
    return made


def whiskers(values: Sequence[float], low: Sequence[float | None], high: Sequence[float | None], *, width: int = 4) -> dict[str, Any]:
    """Error bars from the ends of intervals; none where there is no interval."""
    above = [_gap(end, value) for value, end in zip(values, high, strict=True)]
    below = [_gap(value, end) for value, end in zip(values, low, strict=True)]
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1.4, "width": width, "color": NEUTRAL}


def _gap(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or lower is None or not math.isfinite(upper - lower) else max(0.0, upper - lower)


def carried(*columns: Sequence[Any] | np.ndarray) -> np.ndarray:
    """What marks carry as `customdata`, a column each, or as hover texts: `carried(texts)[:, 0]`. Plotly takes such
    arrays ten times as fast as lists; the browser gets lists.
    """
    made = np.empty((len(columns[0]), len(columns)), dtype=object)
    for place, column in enumerate(columns):
        made[:, place] = column
    return made


def straight(made: go.Figure, *, x: float | None = None, y: float | None = None, text: str = "") -> None:
    """A line across the figure that says what it stands for."""
    line = {"color": NEUTRAL, "width": 1.2, "dash": "dot"}
    if x is not None:
        made.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line=line)
        at = math.log10(x) if made.layout.xaxis.type == "log" else x  # on a log axis plotly places shapes by value, and texts by exponent
        place = {"y": 0, "xanchor": "left", "xshift": 3} if made.layout.showlegend else {"y": 1, "xanchor": "center"}  # the legend stands above
        _said(made, text, x=at, yref="paper", yanchor="bottom", **place)
    if y is not None:
        made.add_shape(type="line", y0=y, y1=y, x0=0, x1=1, xref="paper", line=line)
        _said(made, text, x=1, xref="paper", y=y, yanchor="bottom", xanchor="right")


def _said(made: go.Figure, text: str, **place: Any) -> None:
    if text:
        made.add_annotation(text=text, showarrow=False, font={"size": 11}, **place)


def side_colour(value: float) -> str:
    """Blue for what speaks for a response, orange for what speaks against it."""
    return CHOSEN if value >= 0 else REJECTED


def percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def number(value: float | None, form: str = ".3g") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:{form}}"


def interval(value: float | None, low: float | None, high: float | None, form: str = ".3f") -> str:
    """`0.842 (0.813 to 0.871)`"""
    if low is None or high is None or not math.isfinite(low + high):
        return number(value, form)
    return f"{number(value, form)} ({number(low, form)} to {number(high, form)})"


def share_said(found: Mapping[str, Any], split: str) -> str:
    """An accuracy with its interval and the number of pairs of which split, for a hover box."""
    return f"{percent(found['accuracy'])}, {INTERVAL} {percent(found['low'])} to {percent(found['high'])}, n = {counted_pairs(found['n'], split)}"

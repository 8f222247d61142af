"""What all charts share: the value `Chart`, colours with a meaning, named axes, error bars, and texts made harmless.

Text and grid take their colours from the page's theme. Marks have fixed colours, which can be told apart on white and
on near-black, also by the colour-blind. plotly interprets a little HTML in every text of a figure, so a text of data or
models must go through `plain` or `wrapped`. Marks that can be clicked or lassoed carry an id in `customdata[0]`, since
plotly counts marks within each trace.

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

from core.text_safety import visible

CHOSEN, REJECTED, NEUTRAL = "#3B7DED", "#DD6B10", "#7F8A99"
FAINT, LINE = "rgba(127, 138, 153, 0.35)", "rgba(127, 138, 153, 0.55)"
FURTHER = ("#0F9D8A", "#A855C7", "#B8860B", "#C2416B", "#6A8F2B", "#5F7FBF")  # neither chosen nor rejected, such as controls
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "x")  # beside colours, for people who can't tell those apart
INTERVAL = "95 % interval"
LONGEST = 60

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure, its description in words for screen readers, and its table (a row for each mark, in drawing order)."""

    name: str
    figure: go.Figure
    alt: str
    rows: Rows

    def html(self) -> str:
        """The figure as an HTML page that works without a network."""
        figure = go.Figure(self.figure).update_layout(template="plotly_white", paper_bgcolor="white", plot_bgcolor="white")
        return str(figure.to_html(include_plotlyjs=True, include_mathjax=False, full_html=True))


def plain(text: object, longest: int = LONGEST) -> str:
    """A text from data or models as one line of a figure, with its markup escaped."""
    return html.escape(" ".join(visible(text, longest).split()), quote=False)


def wrapped(text: object, width: int = 70, lines: int = 6) -> str:
    """A text over several lines of a hover box; cut after `width * lines` characters."""
    rows = textwrap.wrap(" ".join(visible(text, width * lines).split()), width, break_long_words=True)
    return "<br>".join(html.escape(row, quote=False) for row in rows)


def new_figure(*, x: str, y: str, height: int, legend: bool = False, left: int = 56) -> go.Figure:
    """An empty figure with named axes. A name is empty only where the axis' ticks are names themselves."""
    figure = go.Figure()
    figure.update_layout(
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
    for axis, name in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        axis(title={"text": name, "standoff": 8}, gridcolor=FAINT, zeroline=False, automargin=True)
    return figure


def whiskers(values: Sequence[float], low: Sequence[float | None], high: Sequence[float | None], *, width: int = 4) -> dict[str, Any]:
    """Error bars from the ends of intervals; no bar where an end is None or not finite."""
    above = [_gap(end, value) for value, end in zip(values, high, strict=True)]
    below = [_gap(value, end) for value, end in zip(values, low, strict=True)]
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1.4, "width": width, "color": NEUTRAL}


def _gap(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or lower is None or not math.isfinite(upper - lower) else max(0.0, upper - lower)


def carried(*columns: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Columns as an array of objects [n marks, n columns], for `customdata`, or for hover texts: `carried(texts)[:,
    0]`.

    plotly takes such arrays ten times as fast as lists, and sends lists to the browser.
    """
    table = np.empty((len(columns[0]), len(columns)), dtype=object)
    for number, column in enumerate(columns):
        table[:, number] = column
    return table


def straight(figure: go.Figure, *, x: float | None = None, y: float | None = None, text: str = "") -> None:
    """A dotted line across the figure at x or y, with `text` beside it."""
    line = {"color": NEUTRAL, "width": 1.2, "dash": "dot"}
    if x is not None:
        figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line=line)
        at = math.log10(x) if figure.layout.xaxis.type == "log" else x  # plotly places shapes by value and texts by exponent
        place = {"y": 0, "xanchor": "left", "xshift": 3} if figure.layout.showlegend else {"y": 1, "xanchor": "center"}  # below the legend
        _annotate(figure, text, x=at, yref="paper", yanchor="bottom", **place)
    if y is not None:
        figure.add_shape(type="line", y0=y, y1=y, x0=0, x1=1, xref="paper", line=line)
        _annotate(figure, text, x=1, xref="paper", y=y, yanchor="bottom", xanchor="right")


def _annotate(figure: go.Figure, text: str, **place: Any) -> None:
    if text:
        figure.add_annotation(text=text, showarrow=False, font={"size": 11}, **place)


def side_colour(value: float) -> str:
    """Blue for a positive contribution, orange for a negative one."""
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


def digits_of(scale: float) -> int:
    """Decimals that show the deepest shade with two digits and more."""
    return 2 if scale <= 0 or not math.isfinite(scale) else min(6, max(2, 1 - math.floor(math.log10(scale))))

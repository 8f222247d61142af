"""Charts of the Shift page: how similar generated answers are to the training data, by round and space. No Streamlit
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from workbench.frame.chart_base import CHOSEN, FURTHER, INTERVAL, NEUTRAL, Chart, interval, new_figure, number, straight, whiskers

SPACES = {
    "sparse": ("Sparse v", CHOSEN, "circle", "solid"),
    "dense": ("Dense z", NEUTRAL, "square", "solid"),
    "random-isotropic": ("Random directions", FURTHER[2], "diamond", "dash"),
    "random-rows": ("Random decoder rows", FURTHER[0], "triangle-up", "dot"),
}


def similarity_curves(series: Mapping[str, Sequence[Mapping[str, Any]]], what: str) -> Chart:
    """Mean cosine similarity after each round, a line for each space, with intervals; `what` names the similarity.

    `series`: space -> points of round, value, low, high, n, n_prompts. Points of one round are drawn a little apart.
    """
    figure, rows = _curves(series, f"Mean cosine similarity, {what}")
    last = "; ".join(f"{SPACES[name][0]} {number(points[-1]['value'])}" for name, points in series.items() if points)
    return Chart(name="cosine-similarity", figure=figure, alt=f"Cosine similarity, {what}, by round; at the last {last}.", rows=rows)


def lead_curves(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart:
    """The sparse space's cosine less another's, paired by answer; above zero the sparse space is nearer.

    `series` is as for `similarity_curves`.
    """
    figure, rows = _curves({name: points for name, points in series.items() if name != "sparse"}, "Sparse less other (cosine)")
    straight(figure, y=0)
    last = "; ".join(f"{SPACES[name][0]} {number(points[-1]['value'], '+.3g')}" for name, points in series.items() if points)
    return Chart(name="sparse-lead", figure=figure, alt=f"Lead of the sparse space over the others by round; at the last {last}.", rows=rows)


def _curves(series: Mapping[str, Sequence[Mapping[str, Any]]], y: str) -> tuple[go.Figure, list[dict[str, Any]]]:
    names = [name for name in SPACES if series.get(name)]
    counts = sorted({int(point["n"]) for name in names for point in series[name]})
    n = " to ".join(f"{count:,}" for count in counts[:1] + counts[1:][-1:])
    figure = new_figure(x=f"Round that generated (n = {n} answers)", y=y, height=380, legend=True)
    for place, name in enumerate(names):
        title, colour, symbol, dash = SPACES[name]
        points = series[name]
        values = [point["value"] for point in points]
        figure.add_scatter(
            x=[point["round"] + 0.05 * (place - (len(names) - 1) / 2) for point in points],
            y=values,
            mode="lines+markers",
            name=title,
            line={"color": colour, "width": 2.4 if name == "sparse" else 1.6, "dash": dash},
            marker={"size": 9, "symbol": symbol},
            error_y={**whiskers(values, [point["low"] for point in points], [point["high"] for point in points]), "color": colour},
            hovertext=[f"<b>{title}, round {point['round']}</b><br>{_estimate_text(point)}" for point in points],
            hoverinfo="text",
        )
    rounds = sorted({int(point["round"]) for name in names for point in series[name]})
    figure.update_xaxes(tickvals=rounds, range=[min(rounds, default=1) - 0.4, max(rounds, default=1) + 0.4])
    return figure, [{"space": SPACES[name][0], **point} for name in names for point in series[name]]


def _estimate_text(point: Mapping[str, Any]) -> str:
    n = f"n = {point['n']:,} answers" + (f" to {point['n_prompts']:,} prompts" if point.get("n_prompts") else "")
    return f"{interval(point['value'], point['low'], point['high'], '.3f')}, {INTERVAL}, {n}"

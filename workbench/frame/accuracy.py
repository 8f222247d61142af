"""Accuracies as several pages show them: names of the methods, accuracies in words, and the chart of accuracy against
K.

An accuracy is a mapping with `accuracy` (a share, None without pairs), `low` and `high` (95 % interval over prompts)
and `n` (pairs), as `evaluation.json` and `curve.json` hold it. No Streamlit here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.reward.head_words import counted_pairs, mean_of
from workbench.frame.chart_base import CHOSEN, FURTHER, INTERVAL, NEUTRAL, Chart, new_figure, percent, straight, whiskers

METHODS = {
    "sparserm": "SparseRM",
    "dense": "Dense head on z",
    "activations": "Head on SAE activations",
    "random-isotropic": "Random directions",
    "random-rows": "Random decoder rows",
    "difference-of-means": "Difference of means",
    "linear-probe": "Linear probe",
    "wording-only": "Wording only",
    "length-only": "Length in tokens only",
}


def method_name(kind: str) -> str:
    """The name of SparseRM or of a control, as pages show it."""
    return METHODS.get(kind, kind.replace("-", " ").capitalize())


def accuracy_axis(n: int | None = None) -> str:
    """The title of an axis of test accuracies; `n` pairs, if all of them have the same."""
    return "Test accuracy, means of heads<br>(% of " + ("test pairs)" if n is None else f"{counted_pairs(n)})")


def accuracy_curve(points: Sequence[Mapping[str, Any]], k: int | None = None) -> Chart:
    """Validation accuracy against K, from the points of `curve.json`, with 95 % intervals; `k` is marked.

    Points of one K are drawn a little apart.
    """
    rows = [dict(point) for point in points if point["accuracy"] is not None]
    n = rows[0]["n"] if rows else 0
    heads = sorted({row["n_heads"] for row in rows if "n_heads" in row})
    of = f", {' or '.join(mean_of(n_heads) for n_heads in heads)}" if heads else ""
    figure = new_figure(
        x="K, latents a side (log scale)", y=f"Validation accuracy{of}<br>(% of {counted_pairs(n, 'validation')})", height=330, legend=True
    )
    colours = dict(zip(dict.fromkeys(row["kind"] for row in rows), (CHOSEN, NEUTRAL, FURTHER[2], FURTHER[0], FURTHER[1]), strict=False))
    for place, (kind, colour) in enumerate(colours.items()):
        of_kind = [row for row in rows if row["kind"] == kind]
        shares = [100 * row["accuracy"] for row in of_kind]
        figure.add_scatter(
            x=[row["k"] * 1.025 ** (place - (len(colours) - 1) / 2) for row in of_kind],
            y=shares,
            mode="lines+markers",
            name=method_name(kind),
            line={"color": colour, "width": 2.4 if kind == "sparserm" else 1.4},
            marker={"size": 7, "symbol": ("circle", "square", "diamond", "triangle-up", "x")[place % 5]},
            error_y={
                **whiskers(shares, [100 * row["low"] for row in of_kind], [100 * row["high"] for row in of_kind], width=0),
                "color": colour,
                "thickness": 1,
            },
            hovertext=[f"<b>{method_name(kind)}, K = {row['k']}</b><br>{hover_text(row, 'validation')}{_of_heads(row)}" for row in of_kind],
            hoverinfo="text",
        )
    ks = sorted({row["k"] for row in rows})
    figure.update_xaxes(type="log", tickvals=ks, ticktext=[str(value) for value in ks])
    if len(ks) == 1:  # else the points drawn a little apart would fill the axis
        figure.update_xaxes(range=[math.log10(ks[0] / 2), math.log10(2 * ks[0])])
    figure.update_yaxes(ticksuffix=" %")
    if k is not None and rows:
        straight(figure, x=k, text=f"K = {k}")
    return Chart(
        name="accuracy-against-k",
        figure=figure,
        alt=f"Validation accuracy{of} of {len(colours)} kinds of directions for K from {min(ks, default=0)} to {max(ks, default=0)}.",
        rows=rows,
    )


def _of_heads(point: Mapping[str, Any]) -> str:
    return f"<br>{mean_of(point['n_heads'])}" if "n_heads" in point else ""


def hover_text(value: Mapping[str, Any], split: str) -> str:
    """`84.2 %, 95 % interval 81.4 % to 86.9 %, n = 1,154 test pairs`, for a hover box."""
    return f"{percent(value['accuracy'])}, {INTERVAL} {percent(value['low'])} to {percent(value['high'])}, n = {counted_pairs(value['n'], split)}"


def accuracy_text(value: Mapping[str, Any]) -> str:
    """`84.2 %`, or `none` where there are no pairs."""
    return "none" if value["accuracy"] is None else f"{100 * value['accuracy']:.1f} %"


def interval_text(value: Mapping[str, Any], split: str = "test") -> str:
    """`81.4 to 86.9 %, n = 1,154 test pairs`."""
    return f"{100 * value['low']:.1f} to {100 * value['high']:.1f} %, n = {counted_pairs(value['n'], split)}" if value["n"] else f"no {split} pairs"

"""Charts of dense and sparse space: the t-SNE pictures, and how far chosen and rejected are apart. No Streamlit here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.frame.chart_base import CHOSEN, NEUTRAL, SYMBOLS, Chart, carried, interval, new_figure, plain, straight, whiskers

SPACES = {
    "sparse": "Sparse v",
    "dense": "Dense z",
    "dense-standardised": "Dense z, standardised",
    "random-isotropic": "Random directions",
    "random-rows": "Random decoder rows",
    "picture-sparse": "Picture of sparse v",
    "picture-dense": "Picture of dense z",
}


def space_picture(
    name: str,
    points: np.ndarray,
    ids: Sequence[int] | np.ndarray,
    groups: Sequence[str],
    texts: Sequence[str],
    palette: Mapping[str, str],
    marked: Sequence[int] | None = None,
) -> Chart:
    """A t-SNE picture of `points` [n, 2], by WebGL: a colour for each group in the palette's order; all but `marked`
    rows are faded.
    """
    figure = new_figure(x="t-SNE 1 (no unit)", y="t-SNE 2 (no unit)", height=460, legend=True, left=40)
    numbers, names, shown = np.asarray(ids), np.asarray(groups, dtype=object), None if marked is None else set(marked)
    hover = carried(texts)[:, 0]
    for (group, colour), symbol in zip(palette.items(), itertools.cycle(SYMBOLS), strict=False):
        rows = np.flatnonzero(names == group)
        figure.add_scattergl(
            x=points[rows, 0],
            y=points[rows, 1],
            mode="markers",
            name=f"{plain(group)} ({len(rows):,})",
            marker={"color": colour, "size": 5, "opacity": 0.75, "symbol": symbol},
            selectedpoints=None if shown is None else [i for i, row in enumerate(rows) if int(numbers[row]) in shown],
            selected={"marker": {"opacity": 0.95}},
            unselected={"marker": {"opacity": 0.12}},
            customdata=carried(numbers[rows]),
            hovertext=hover[rows],
            hoverinfo="text",
        )
    figure.update_layout(dragmode="lasso", legend_itemsizing="constant")
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(showticklabels=False, showgrid=False)
    table = [{"response": int(numbers[i]), "x": float(points[i, 0]), "y": float(points[i, 1]), "group": names[i]} for i in range(len(numbers))]
    return Chart(name=f"tsne-{name}", figure=figure, alt=f"t-SNE picture of {SPACES.get(name, name)}: {len(numbers):,} responses.", rows=table)


def space_scale(
    name: str,
    points: np.ndarray,
    ids: Sequence[int] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    unit: str,
    texts: Sequence[str],
    marked: Sequence[int] | None = None,
) -> Chart:
    """As `space_picture`, coloured by a number (`values` [n] in `unit`)."""
    figure = new_figure(x="t-SNE 1 (no unit)", y="t-SNE 2 (no unit)", height=460, left=40)
    shown = None if marked is None else set(marked)
    figure.add_scattergl(
        x=points[:, 0],
        y=points[:, 1],
        mode="markers",
        marker={
            "color": np.asarray(values),
            "colorscale": "Cividis",
            "size": 5,
            "opacity": 0.8,
            "colorbar": {"title": {"text": unit}, "thickness": 10},
        },
        selectedpoints=None if shown is None else [i for i, row in enumerate(ids) if int(row) in shown],
        unselected={"marker": {"opacity": 0.12}},
        customdata=carried(np.asarray(ids)),
        hovertext=carried(texts)[:, 0],
        hoverinfo="text",
    )
    figure.update_layout(dragmode="lasso")
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(showticklabels=False, showgrid=False)
    table = [{"response": int(row), "x": float(points[i, 0]), "y": float(points[i, 1]), unit: float(values[i])} for i, row in enumerate(ids)]
    return Chart(
        name=f"tsne-{name}", figure=figure, alt=f"t-SNE picture of {SPACES.get(name, name)} by {unit}: {len(table):,} responses.", rows=table
    )


def separation_scores(figures: Mapping[str, Mapping[str, Any]], chance: float | None, n: int, *, which: str = "neighbours") -> Chart:
    """How far chosen and rejected lie apart in each space, with intervals.

    `figures`: `Spaces.to_json()["figures"]`; `chance`: the share of agreeing neighbours by chance; `n`: held-out
    responses; `which`: neighbours or silhouette.
    """
    measured = {name: figures[name][which] for name in SPACES if figures.get(name, {}).get(which)}
    rows = [{"space": SPACES[name], **estimate} for name, estimate in reversed(measured.items())]
    neighbours = which == "neighbours"
    scale, unit = (100, " %") if neighbours else (1, "")
    title = (
        f"Nearest neighbours that agree<br>(% of {n:,} held-out responses)"
        if neighbours
        else f"Silhouette, -1 to 1<br>(n = {n:,} held-out responses)"
    )
    figure = new_figure(x=title, y="", height=106 + 28 * max(len(rows), 2))
    values = [scale * row["value"] for row in rows]
    names = list(reversed(measured))
    figure.add_scatter(
        x=values,
        y=[row["space"] for row in rows],
        mode="markers",
        marker={
            "size": 10,
            "color": [CHOSEN if name == "sparse" else NEUTRAL for name in names],
            "symbol": ["circle-open" if name.startswith("picture") else "circle" for name in names],
        },
        error_x=whiskers(values, [scale * row["low"] for row in rows], [scale * row["high"] for row in rows]),
        hovertext=[_hover_text(row, scale) for row in rows],
        hoverinfo="text",
    )
    figure.update_xaxes(ticksuffix=unit)
    if neighbours and chance is not None:
        straight(figure, x=100 * chance, text="chance")
    elif not neighbours:
        straight(figure, x=0, text="mixed")
    return Chart(name=f"spaces-{which}", figure=figure, alt=f"{title}, for {len(rows)} spaces.".replace("<br>", " "), rows=rows[::-1])


def _hover_text(row: Mapping[str, Any], scale: float) -> str:
    value = interval(scale * row["value"], scale * row["low"], scale * row["high"], ".3g")
    return f"<b>{row['space']}</b><br>{value}<br>n = {row['n']:,} responses to {row['n_prompts']:,} prompts"

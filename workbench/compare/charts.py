"""The chart of the Compare page: the margins of two reward models on the same pairs. No Streamlit here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from workbench.frame.chart_base import CHOSEN, FURTHER, LINE, Chart, carried, new_figure, plain, straight, wrapped


def margins_scatter(
    first: Sequence[float],
    second: Sequence[float],
    ids: Sequence[str],
    texts: Sequence[str],
    names: tuple[str, str],
    *,
    marked: Collection[str] | None = None,
    chosen: str = "",
) -> Chart:
    """The margins of two reward models on the same pairs. Agreement is grey; the two ways to disagree have a colour
    each. The `marked` pairs stand out from the faded others, a ring around the `chosen` one.
    """
    figure = new_figure(x=f"Margin, {plain(names[0], 40)} (reward)", y=f"Margin, {plain(names[1], 40)} (reward)", height=480, legend=True)
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    gains, losses = (x <= 0) & (y > 0), (x > 0) & (y <= 0)
    for label, colour, symbol, rows in (
        ("both agree", LINE, "circle", np.flatnonzero(~gains & ~losses).tolist()),
        (f"only {plain(names[1], 30)} is right", FURTHER[0], "square", np.flatnonzero(gains).tolist()),
        (f"only {plain(names[0], 30)} is right", FURTHER[3], "diamond", np.flatnonzero(losses).tolist()),
    ):
        figure.add_scattergl(
            x=x[rows],
            y=y[rows],
            mode="markers",
            name=f"{label} ({len(rows):,})",
            marker={"color": colour, "symbol": symbol, "size": 7},
            selectedpoints=None if marked is None else [i for i, row in enumerate(rows) if ids[row] in marked],
            unselected={"marker": {"opacity": 0.25}},
            customdata=carried([ids[row] for row in rows]),
            hovertext=carried([f"{wrapped(texts[row], 60, 2)}<br>{x[row]:+.3g} and {y[row]:+.3g}" for row in rows])[:, 0],
            hoverinfo="text",
        )
    if chosen in ids:
        at = list(ids).index(chosen)
        look = {"size": 15, "symbol": "circle-open", "color": CHOSEN, "line": {"width": 2.5}}
        figure.add_scattergl(x=[x[at]], y=[y[at]], mode="markers", name="chosen pair", marker=look, hoverinfo="skip")
    straight(figure, x=0)
    straight(figure, y=0)
    table = [{"pair": pair_id, names[0]: float(a), names[1]: float(b)} for pair_id, a, b in zip(ids, x, y, strict=True)]
    alt = f"Margins of two reward models on {len(table):,} pairs: {int(gains.sum())} right in the second only, {int(losses.sum())} in the first only."
    return Chart(name="margins", figure=figure, alt=alt, rows=table)

"""Charts of the Overview page: accuracies of SparseRM beside its controls, and by kind of pair.

No Streamlit here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.reward.head_words import counted_pairs, mean_of
from workbench.frame.accuracy import accuracy_axis, hover_text, method_name
from workbench.frame.chart_base import CHOSEN, LINE, NEUTRAL, Chart, new_figure, percent, plain, straight, whiskers

MOST_KINDS = 12  # kinds of pairs in a figure; its table has all


def accuracy_bars(evaluation: Mapping[str, Any], beside: Sequence[Mapping[str, Any]] = ()) -> Chart:
    """Test accuracy of SparseRM and each control, from `evaluation.json`, means over seeds or draws: bars from chance,
    whiskers for the 95 % interval. `beside`: rows of other fits of the same pairs.
    """
    entries = {"sparserm": evaluation["sparserm"], **evaluation["controls"]}
    rows = [_accuracy_row(kind, entry) for kind, entry in entries.items() if entry["mean"]["accuracy"] is not None]
    rows += [dict(row) for row in beside]
    rows.sort(key=lambda row: (row["kind"] == "sparserm", row["accuracy"]))
    figure = new_figure(x=accuracy_axis(max((row["n"] for row in rows), default=0)), y="", height=90 + 30 * max(len(rows), 2))
    shares = [100 * row["accuracy"] for row in rows]
    figure.add_bar(
        orientation="h",
        y=[row["name"] for row in rows],
        x=[share - 50 for share in shares],
        base=50,
        marker={"color": [CHOSEN if row["kind"] == "sparserm" else LINE for row in rows]},
        error_x=whiskers(shares, [100 * row["low"] for row in rows], [100 * row["high"] for row in rows]),
        hovertext=[f"<b>{row['name']}</b><br>{hover_text(row, 'test')}<br>{mean_of(row['heads'])}" for row in rows],
        hoverinfo="text",
    )
    straight(figure, x=50, text="chance")
    lowest = min([50.0, *(100 * row["low"] for row in rows)])
    figure.update_xaxes(range=[max(0.0, lowest - 2), min(101.0, max([60.0, *(100 * row["high"] for row in rows)]) + 2)], ticksuffix=" %")
    best = rows[-1] if rows else None
    alt = (
        f"Test accuracy of SparseRM, {mean_of(best['heads'])}: {percent(best['accuracy'])} of {counted_pairs(best['n'])}, "
        f"beside {len(rows) - 1} controls."
        if best
        else "No accuracy: there are no test pairs."
    )
    return Chart(name="accuracy", figure=figure, alt=alt, rows=rows[::-1])


def _accuracy_row(kind: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "name": method_name(kind), **entry["mean"], "heads": len(entry["heads"]), "parameters": entry["n_parameters"]}


def accuracy_kinds(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Test accuracy by kind of pair, a dot with its 95 % interval for each of SparseRM and wording alone.

    `rows`: kind, by (the method), heads, accuracy, low, high and n.
    """
    names = list(dict.fromkeys(row["kind"] for row in rows))[:MOST_KINDS]
    n = {row["kind"]: row["n"] for row in rows}
    figure = new_figure(x=accuracy_axis(), y="", height=100 + 38 * max(len(names), 1), legend=True)
    looks = {"SparseRM": (CHOSEN, "circle", -0.14), "Wording only": (NEUTRAL, "diamond", 0.14)}
    for by, (colour, symbol, shift) in looks.items():
        of_method = [row for row in rows if row["by"] == by and row["kind"] in names]
        shares = [100 * row["accuracy"] for row in of_method]
        figure.add_scatter(
            x=shares,
            y=[names.index(row["kind"]) + shift for row in of_method],
            mode="markers",
            name=by,
            marker={"color": colour, "symbol": symbol, "size": 10},
            error_x={**whiskers(shares, [100 * row["low"] for row in of_method], [100 * row["high"] for row in of_method]), "color": colour},
            hovertext=[f"<b>{by}, {plain(row['kind'])}</b><br>{hover_text(row, 'test')}<br>{mean_of(row['heads'])}" for row in of_method],
            hoverinfo="text",
        )
    straight(figure, x=50, text="chance")
    figure.update_xaxes(ticksuffix=" %")
    ticks = [f"{plain(name, 30)} (n = {n[name]:,})" for name in names]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=ticks, range=[len(names) - 0.4, -0.6], showgrid=False)
    alt = f"Test accuracy of SparseRM, mean of its heads, and of wording alone on {len(names)} kinds of test pairs."
    return Chart(name="accuracy-by-kind", figure=figure, alt=alt, rows=rows)

"""Figures of data, models and runs: values in, `Chart` out. Those of single responses
are in workbench.response.charts, of t-SNE in workbench.spaces.charts. No streamlit here.

Marks that can be clicked or lassoed carry what they stand for in `customdata[0]`: a latent's number or a response's row, since a mark's own number
mixes between traces.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from core.reward.head_words import counted_pairs, mean_of
from workbench.frame.chart_base import (
    CHOSEN,
    FURTHER,
    LINE,
    NEUTRAL,
    REJECTED,
    Chart,
    carried,
    figure,
    interval,
    number,
    percent,
    plain,
    share_said,
    side_colour,
    straight,
    whiskers,
    wrapped,
)

CONTESTANTS = {
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
SIDES = {1: ("Selected, chosen side", CHOSEN, "circle"), -1: ("Selected, rejected side", REJECTED, "diamond"), 0: ("Not selected", LINE, "circle")}
LATENT_HOVER = (
    "<b>latent %{customdata[0]}</b> %{customdata[5]}<br>chosen %{customdata[1]:.1f} %, rejected %{customdata[2]:.1f} %"
    "<br>separation %{customdata[3]:+.1f} points, q = %{customdata[4]}<extra></extra>"
)
# Of the thousands that are not selected a mark carries its number only: texts of so many cost a third of a second.
FREQUENCY_HOVER = "<b>latent %{customdata}</b><br>chosen %{y:.1f} %, rejected %{x:.1f} %<extra></extra>"
SIGNIFICANCE_HOVER = "<b>latent %{customdata}</b><br>separation %{x:+.1f} points, -log10 q = %{y:.2f}<extra></extra>"
Columns = Mapping[str, Any]
MOST_KINDS = 12  # kinds of pairs in a figure; its table has all


def contestant(kind: str) -> str:
    """A control's name for people."""
    return CONTESTANTS.get(kind, kind.replace("-", " ").capitalize())


# --- accuracy ------------------------------------------------------------------------------------------------------


def accuracy_bars(evaluation: Mapping[str, Any]) -> Chart:
    """Test accuracy of SparseRM and each control, from `evaluation.json`: bars from chance, whiskers the 95 % interval; means over seeds or draws,
    as the axis says."""
    entries = {"sparserm": evaluation["sparserm"], **evaluation["controls"]}
    rows = [_accuracy_row(kind, entry) for kind, entry in entries.items() if entry["mean"]["accuracy"] is not None]
    rows.sort(key=lambda row: (row["kind"] == "sparserm", row["accuracy"]))
    made = figure(x=_accuracy_axis(max((row["n"] for row in rows), default=0)), y="", height=90 + 30 * max(len(rows), 2))
    shares = [100 * row["accuracy"] for row in rows]
    made.add_bar(
        orientation="h",
        y=[row["name"] for row in rows],
        x=[share - 50 for share in shares],
        base=50,
        marker={"color": [CHOSEN if row["kind"] == "sparserm" else LINE for row in rows]},
        error_x=whiskers(shares, [100 * row["low"] for row in rows], [100 * row["high"] for row in rows]),
        hovertext=[f"<b>{row['name']}</b><br>{share_said(row, 'test')}<br>{mean_of(row['heads'])}" for row in rows],
        hoverinfo="text",
    )
    straight(made, x=50, text="chance")
    lowest = min([50.0, *(100 * row["low"] for row in rows)])
    made.update_xaxes(range=[max(0.0, lowest - 2), min(101.0, max([60.0, *(100 * row["high"] for row in rows)]) + 2)], ticksuffix=" %")
    best = rows[-1] if rows else None
    alt = (
        f"Test accuracy of SparseRM, {mean_of(best['heads'])}: {percent(best['accuracy'])} of {counted_pairs(best['n'])}, "
        f"beside {len(rows) - 1} controls."
        if best
        else "No accuracy: there are no test pairs."
    )
    return Chart(name="accuracy", figure=made, alt=alt, rows=rows[::-1])


def _accuracy_axis(n: int | None = None) -> str:
    return "Test accuracy, means of heads<br>(% of " + ("test pairs)" if n is None else f"{counted_pairs(n)})")


def _accuracy_row(kind: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "name": contestant(kind), **entry["mean"], "heads": len(entry["heads"]), "parameters": entry["n_parameters"]}


def accuracy_kinds(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Test accuracy by kind of pair, `rows` of kind, by (whose), accuracy, low, high and n: a dot each, with its 95 % interval."""
    names = list(dict.fromkeys(row["kind"] for row in rows))[:MOST_KINDS]
    n = {row["kind"]: row["n"] for row in rows}
    made = figure(x=_accuracy_axis(), y="", height=100 + 38 * max(len(names), 1), legend=True)
    looks = {"SparseRM": (CHOSEN, "circle", -0.14), "Wording only": (NEUTRAL, "diamond", 0.14)}
    for by, (colour, symbol, shift) in looks.items():
        mine = [row for row in rows if row["by"] == by and row["kind"] in names]
        shares = [100 * row["accuracy"] for row in mine]
        made.add_scatter(
            x=shares,
            y=[names.index(row["kind"]) + shift for row in mine],
            mode="markers",
            name=by,
            marker={"color": colour, "symbol": symbol, "size": 10},
            error_x={**whiskers(shares, [100 * row["low"] for row in mine], [100 * row["high"] for row in mine]), "color": colour},
            hovertext=[f"<b>{by}, {plain(row['kind'])}</b><br>{share_said(row, 'test')}<br>{mean_of(row['heads'])}" for row in mine],
            hoverinfo="text",
        )
    straight(made, x=50, text="chance")
    made.update_xaxes(ticksuffix=" %")
    said = [f"{plain(name, 30)} (n = {n[name]:,})" for name in names]
    made.update_yaxes(tickvals=list(range(len(names))), ticktext=said, range=[len(names) - 0.4, -0.6], showgrid=False)
    alt = f"Test accuracy of SparseRM, mean of its heads, and of wording alone on {len(names)} kinds of test pairs."
    return Chart(name="accuracy-by-kind", figure=made, alt=alt, rows=rows)


def accuracy_curve(points: Sequence[Mapping[str, Any]], k: int | None = None) -> Chart:
    """Validation accuracy against K, from `curve.json`, with bands of the 95 % interval; `k` is marked. Points of one K stand a little apart."""
    rows = [dict(point) for point in points if point["accuracy"] is not None]
    n = rows[0]["n"] if rows else 0
    heads = sorted({row["n_heads"] for row in rows if "n_heads" in row})
    of = f", {' or '.join(mean_of(one) for one in heads)}" if heads else ""
    made = figure(x="K, latents a side (log scale)", y=f"Validation accuracy{of}<br>(% of {counted_pairs(n, 'validation')})", height=330, legend=True)
    colours = dict(zip(dict.fromkeys(row["kind"] for row in rows), (CHOSEN, NEUTRAL, FURTHER[2], FURTHER[0], FURTHER[1]), strict=False))
    for place, (kind, colour) in enumerate(colours.items()):
        mine = [row for row in rows if row["kind"] == kind]
        shares = [100 * row["accuracy"] for row in mine]
        made.add_scatter(
            x=[row["k"] * 1.025 ** (place - (len(colours) - 1) / 2) for row in mine],
            y=shares,
            mode="lines+markers",
            name=contestant(kind),
            line={"color": colour, "width": 2.4 if kind == "sparserm" else 1.4},
            marker={"size": 7, "symbol": ("circle", "square", "diamond", "triangle-up", "x")[place % 5]},
            error_y={
                **whiskers(shares, [100 * row["low"] for row in mine], [100 * row["high"] for row in mine], width=0),
                "color": colour,
                "thickness": 1,
            },
            hovertext=[f"<b>{contestant(kind)}, K = {row['k']}</b><br>{share_said(row, 'validation')}{_of_heads(row)}" for row in mine],
            hoverinfo="text",
        )
    ks = sorted({row["k"] for row in rows})
    made.update_xaxes(type="log", tickvals=ks, ticktext=[str(one) for one in ks])
    if len(ks) == 1:  # else what stands a little apart would fill the axis
        made.update_xaxes(range=[math.log10(ks[0] / 2), math.log10(2 * ks[0])])
    made.update_yaxes(ticksuffix=" %")
    if k is not None and rows:
        straight(made, x=k, text=f"K = {k}")
    return Chart(
        name="accuracy-against-k",
        figure=made,
        alt=f"Validation accuracy{of} of {len(colours)} kinds of directions for K from {min(ks, default=0)} to {max(ks, default=0)}.",
        rows=rows,
    )


def _of_heads(point: Mapping[str, Any]) -> str:
    return f"<br>{mean_of(point['n_heads'])}" if "n_heads" in point else ""


# --- latents -------------------------------------------------------------------------------------------------------


def frequency_scatter(latents: Columns, n_pairs: int, chosen: int | None = None) -> Chart:
    """mu_w against mu_l, a ring around the `chosen` latent. `latents`: columns latent_id, frequency_chosen, frequency_rejected, separation,
    q_value, side (1, -1, 0), label.
    """
    unit = f"(% of {n_pairs:,} training responses)"
    made = figure(x=f"Active in rejected responses, mu_l {unit}", y=f"Active in chosen responses, mu_w {unit}", height=470, legend=True)
    x, y = 100 * np.asarray(latents["frequency_rejected"]), 100 * np.asarray(latents["frequency_chosen"])
    top = float(max([1.0, *x, *y])) * 1.03
    made.add_scatter(x=[0, top], y=[0, top], mode="lines", line={"color": NEUTRAL, "width": 1, "dash": "dot"}, hoverinfo="skip", showlegend=False)
    _latent_marks(made, latents, x, y, chosen, FREQUENCY_HOVER)
    made.update_xaxes(range=[-top / 60, top], ticksuffix=" %")
    made.update_yaxes(range=[-top / 60, top], ticksuffix=" %")
    return _latents_chart("frequencies", made, latents, "Share of chosen against share of rejected responses in which each latent is active")


def significance_scatter(latents: Columns, n_prompts: int, chosen: int | None = None) -> Chart:
    """Separation against significance, -log10 q; latents that were not tested (too rare) are left out."""
    q = np.asarray(latents["q_value"], dtype=float)
    tested = np.flatnonzero(np.isfinite(q))
    kept = {name: np.asarray(column, dtype=object)[tested] if name == "label" else np.asarray(column)[tested] for name, column in latents.items()}
    made = figure(
        x="Separation, mu_w - mu_l (percentage points)", y=f"Significance, -log10 q (sign test over {n_prompts:,} prompts)", height=470, legend=True
    )
    _latent_marks(made, kept, 100 * np.asarray(kept["separation"], dtype=float), -np.log10(np.maximum(q[tested], 1e-300)), chosen, SIGNIFICANCE_HOVER)
    straight(made, y=-float(np.log10(0.05)), text="q = 0.05")
    straight(made, x=0)
    return _latents_chart("significance", made, kept, "Separation against significance of each tested latent")


def _latent_marks(made: go.Figure, latents: Columns, x: np.ndarray, y: np.ndarray, chosen: int | None, hover: str) -> None:
    """A trace for each side, the selected ones on top, drawn by WebGL. `hover` is what those say that are not selected."""
    side, ids = np.asarray(latents["side"]), np.asarray(latents["latent_id"])
    for value in (0, 1, -1):
        name, colour, symbol = SIDES[value]
        rows = np.flatnonzero(side == value)
        made.add_scattergl(
            x=x[rows].astype(np.float32),
            y=y[rows].astype(np.float32),
            mode="markers",
            name=f"{name} ({len(rows):,})",
            marker={"color": colour, "symbol": symbol, "size": 8 if value else 5, "line": {"width": 0}},
            selected={"marker": {"size": 13, "opacity": 1}},
            unselected={"marker": {"opacity": 0.75}},
            customdata=_hover_values(latents, rows) if value else ids[rows].astype(np.int32),
            hovertemplate=LATENT_HOVER if value else hover,
        )
    ring = np.flatnonzero(ids == chosen) if chosen is not None else ids[:0]
    if len(ring):
        look = {"size": 17, "symbol": "circle-open", "color": FURTHER[3], "line": {"width": 2.5}}
        made.add_scattergl(x=x[ring], y=y[ring], mode="markers", name=f"Latent {chosen}", marker=look, hoverinfo="skip")


def _hover_values(latents: Columns, rows: np.ndarray) -> np.ndarray:
    """For each mark its latent, which a click means, and what its hover box says."""
    names = ("frequency_chosen", "frequency_rejected", "separation")
    shares = (np.round(100 * np.asarray(latents[name], dtype=float)[rows], 2) for name in names)
    q = [number(value, ".2g") for value in np.asarray(latents["q_value"], dtype=float)[rows].tolist()]
    labels = [plain(latents["label"][row]) for row in rows.tolist()]
    return carried(np.asarray(latents["latent_id"])[rows], *shares, q, labels)


def _latents_chart(name: str, made: go.Figure, latents: Columns, what: str) -> Chart:
    side = np.asarray(latents["side"])
    names = [one for one in latents if len(latents[one]) == len(side)]
    rows = [{one: _python(latents[one][row]) for one in names} for row in np.flatnonzero(side != 0)]
    return Chart(
        name=name, figure=made, alt=f"{what}: {len(side):,} latents, {len(rows)} of them selected. The table holds the selected ones.", rows=rows
    )


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def activation_density(feature: Mapping[str, Any], tokens: int) -> Chart:
    """How strong a latent is where it is active (Neuronpedia's histogram)."""
    values, heights = feature["freq_hist_data_bar_values"], feature["freq_hist_data_bar_heights"]
    made = figure(x=f"Activation where active (SAE units)<br>n = {tokens:,} tokens", y="Tokens (log)", height=236)
    made.add_bar(x=values, y=heights, marker={"color": CHOSEN}, hovertemplate="about %{x:.3g}: %{y:,} tokens<extra></extra>")
    made.update_yaxes(type="log", dtick=1)
    made.update_layout(bargap=0.05)
    alt = f"Histogram of activations: active on {percent(feature['frac_nonzero'])} of {tokens:,} tokens, at most {number(feature['maxActApprox'])}."
    return Chart(name="activation-density", figure=made, alt=alt, rows=_paired(("activation", "tokens"), values, heights))


def logit_bars(feature: Mapping[str, Any]) -> Chart:
    """The tokens that the latent's direction promotes and suppresses most, with the change of their logit."""
    signs = [(token, value) for side in ("pos", "neg") for token, value in zip(feature[f"{side}_str"], feature[f"{side}_values"], strict=True)]
    rows = [{"token": token, "logit": value} for token, value in sorted(signs, key=lambda one: one[1])]
    made = figure(x="Change of logit at activation 1", y="", height=60 + 20 * max(len(rows), 2))
    made.add_bar(
        orientation="h",
        y=list(range(len(rows))),
        x=[row["logit"] for row in rows],
        marker={"color": [side_colour(row["logit"]) for row in rows]},
        hovertext=[f"{_token(row['token'])}: {row['logit']:+.3g}" for row in rows],
        hoverinfo="text",
    )
    made.update_yaxes(tickvals=list(range(len(rows))), ticktext=[_token(row["token"]) for row in rows], showgrid=False)
    return Chart(name="logit-lens", figure=made, alt=f"The {len(rows)} tokens that this direction promotes or suppresses most.", rows=rows[::-1])


def _token(text: str) -> str:
    """A token so that its white space can be seen."""
    return plain(text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥"), 24) or "␀"


def logit_histogram(feature: Mapping[str, Any]) -> Chart:
    """The direction's effect on the logits of the whole vocabulary."""
    values, heights = feature["logits_hist_data_bar_values"], feature["logits_hist_data_bar_heights"]
    made = figure(x="Change of logit at activation 1", y="Vocabulary tokens (log)", height=220)
    colours = [side_colour(value) for value in values]
    made.add_bar(x=values, y=heights, marker={"color": colours}, hovertemplate="about %{x:.3g}: %{y:,} tokens<extra></extra>")
    made.update_yaxes(type="log", dtick=1)
    made.update_layout(bargap=0.05)
    return Chart(
        name="logit-histogram",
        figure=made,
        alt="Histogram of the direction's effect on every token's logit.",
        rows=_paired(("logit", "tokens"), values, heights),
    )


def response_curve(curve: Mapping[str, Any]) -> Chart:
    """The reward as one projection moves and all others stay at their training mean: the shipped head, and thin lines for the others.

    `curve`: projection [m], shipped [m], heads [h m], mean; `quantiles` names where the moves end.
    """
    x, shipped, heads = np.asarray(curve["projection"]), np.asarray(curve["shipped"]), np.asarray(curve["heads"])
    made = figure(x="Projection on this direction (1st to 99th percentile)", y="Reward", height=260)
    for head in heads:
        made.add_scatter(x=x, y=head, mode="lines", line={"color": LINE, "width": 1}, hoverinfo="skip")
    made.add_scatter(
        x=x, y=shipped, mode="lines", line={"color": CHOSEN, "width": 2.6}, hovertemplate="projection %{x:.3g}: reward %{y:.3g}<extra></extra>"
    )
    straight(made, x=float(curve["mean"]), text="mean")
    alt = f"Reward from {number(float(shipped[0]))} to {number(float(shipped[-1]))} as the projection rises; {len(heads)} heads."
    rows = [
        {"projection": float(a), "reward": float(b), "lowest head": float(c), "highest head": float(d)}
        for a, b, c, d in zip(x, shipped, heads.min(0), heads.max(0), strict=True)
    ]
    return Chart(name="response-curve", figure=made, alt=alt, rows=rows)


def separation_dots(row: Mapping[str, Any], n_train: int, n_held_out: int) -> Chart:
    """A latent's separation on training pairs, with its interval, and on held-out pairs."""
    made = figure(x="Separation, mu_w - mu_l (percentage points)", y="", height=150)
    names = [f"training (n = {n_train:,})", f"held out (n = {n_held_out:,})"]
    values = [100 * row["separation"], None if row["held_out"] is None else 100 * row["held_out"]]
    ends = [[None if row[name] is None else 100 * row[name], None] for name in ("low", "high")]
    made.add_scatter(
        x=values,
        y=names,
        mode="markers",
        marker={"size": 11, "color": side_colour(row["separation"]), "symbol": ["circle", "circle-open"]},
        error_x=whiskers([values[0], values[1] or 0.0], *ends),
        hovertext=[interval(values[0], ends[0][0], ends[1][0], "+.1f"), number(values[1], "+.1f")],
        hoverinfo="text",
    )
    straight(made, x=0)
    made.update_yaxes(showgrid=False, autorange="reversed", range=[-0.5, 1.5])
    rows = [{"pairs": name, "separation": value, "low": low, "high": high} for name, value, low, high in zip(names, values, *ends, strict=True)]
    said = [interval(values[0], ends[0][0], ends[1][0], "+.1f"), number(values[1], "+.1f")]
    alt = f"Separation {said[0]} points on training pairs, {said[1]} on held-out ones."
    return Chart(name="separation", figure=made, alt=alt, rows=rows)


def _paired(names: tuple[str, str], first: Sequence[Any], second: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(names, both, strict=True)) for both in zip(first, second, strict=True)]


# --- two models, and runs ------------------------------------------------------------------------------------------


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
    """The margins of two reward models on the same pairs. Agreement is grey; the two ways to disagree have a colour each. The `marked` pairs stand
    out from the faded others, a ring around the `chosen` one.
    """
    made = figure(x=f"Margin, {plain(names[0], 40)} (reward)", y=f"Margin, {plain(names[1], 40)} (reward)", height=480, legend=True)
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    gains, losses = (x <= 0) & (y > 0), (x > 0) & (y <= 0)
    for label, colour, symbol, rows in (
        ("both agree", LINE, "circle", np.flatnonzero(~gains & ~losses).tolist()),
        (f"only {plain(names[1], 30)} is right", FURTHER[0], "square", np.flatnonzero(gains).tolist()),
        (f"only {plain(names[0], 30)} is right", FURTHER[3], "diamond", np.flatnonzero(losses).tolist()),
    ):
        made.add_scattergl(
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
        made.add_scattergl(x=[x[at]], y=[y[at]], mode="markers", name="chosen pair", marker=look, hoverinfo="skip")
    straight(made, x=0)
    straight(made, y=0)
    table = [{"pair": one, names[0]: float(a), names[1]: float(b)} for one, a, b in zip(ids, x, y, strict=True)]
    alt = f"Margins of two reward models on {len(table):,} pairs: {int(gains.sum())} right in the second only, {int(losses.sum())} in the first only."
    return Chart(name="margins", figure=made, alt=alt, rows=table)


def run_curves(runs: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> Chart:
    """A figure over time or steps for one run, or two overlaid: (x, y) points by the run's name."""
    made = figure(x=x, y=y, height=300, legend=len(runs) > 1)
    for (name, points), colour, dash in zip(runs.items(), (FURTHER[0], FURTHER[3], *FURTHER[1:3]), ("solid", "dash", "dot", "dashdot"), strict=False):
        made.add_scatter(
            x=[point[0] for point in points],
            y=[point[1] for point in points],
            mode="lines" if len(points) > 40 else "lines+markers",
            name=plain(name),
            line={"color": colour, "width": 2, "dash": dash},
            hovertext=[f"{plain(name)}: {point[0]:.4g}, {point[1]:.4g}" for point in points],
            hoverinfo="text",
        )
    rows = [{"run": name, x: point[0], y: point[1]} for name, points in runs.items() for point in points]
    return Chart(name="runs", figure=made, alt=f"{y} against {x} of {len(runs)} runs.", rows=rows)

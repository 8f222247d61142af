"""Charts of the pages Latents and Latent: values in, `Chart` out. No Streamlit here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.frame.chart_base import (
    CHOSEN,
    FURTHER,
    LINE,
    NEUTRAL,
    REJECTED,
    Chart,
    carried,
    interval,
    new_figure,
    number,
    percent,
    plain,
    side_colour,
    straight,
    whiskers,
)

SIDES = {1: ("Selected, chosen side", CHOSEN, "circle"), -1: ("Selected, rejected side", REJECTED, "diamond"), 0: ("Not selected", LINE, "circle")}
LATENT_HOVER = (
    "<b>latent %{customdata[0]}</b> %{customdata[5]}<br>chosen %{customdata[1]:.1f} %, rejected %{customdata[2]:.1f} %"
    "<br>separation %{customdata[3]:+.1f} points, q = %{customdata[4]}<extra></extra>"
)
# A latent that is not selected carries its number only: full texts of thousands of them would cost a third of a second.
FREQUENCY_HOVER = "<b>latent %{customdata}</b><br>chosen %{y:.1f} %, rejected %{x:.1f} %<extra></extra>"
SIGNIFICANCE_HOVER = "<b>latent %{customdata}</b><br>separation %{x:+.1f} points, -log10 q = %{y:.2f}<extra></extra>"
Columns = Mapping[str, Any]  # equally long columns of a table of latents


def frequency_scatter(latents: Columns, n_pairs: int, chosen: int | None = None) -> Chart:
    """mu_w against mu_l, a ring around the `chosen` latent. `latents`: columns latent_id, frequency_chosen,
    frequency_rejected, separation, q_value, side (1, -1, 0), label. `n_pairs`: training pairs.
    """
    unit = f"(% of {n_pairs:,} training responses)"
    figure = new_figure(x=f"Active in rejected responses, mu_l {unit}", y=f"Active in chosen responses, mu_w {unit}", height=470, legend=True)
    x, y = 100 * np.asarray(latents["frequency_rejected"]), 100 * np.asarray(latents["frequency_chosen"])
    top = float(max([1.0, *x, *y])) * 1.03
    figure.add_scatter(x=[0, top], y=[0, top], mode="lines", line={"color": NEUTRAL, "width": 1, "dash": "dot"}, hoverinfo="skip", showlegend=False)
    _latent_marks(figure, latents, x, y, chosen, FREQUENCY_HOVER)
    figure.update_xaxes(range=[-top / 60, top], ticksuffix=" %")
    figure.update_yaxes(range=[-top / 60, top], ticksuffix=" %")
    return _latents_chart("frequencies", figure, latents, "Share of chosen against share of rejected responses in which each latent is active")


def significance_scatter(latents: Columns, n_prompts: int, chosen: int | None = None) -> Chart:
    """Separation against significance, -log10 q. Latents that are too rare to be tested are left out."""
    q = np.asarray(latents["q_value"], dtype=float)
    tested = np.flatnonzero(np.isfinite(q))
    shown = {name: np.asarray(column, dtype=object)[tested] if name == "label" else np.asarray(column)[tested] for name, column in latents.items()}
    figure = new_figure(
        x="Separation, mu_w - mu_l (percentage points)", y=f"Significance, -log10 q (sign test over {n_prompts:,} prompts)", height=470, legend=True
    )
    _latent_marks(
        figure, shown, 100 * np.asarray(shown["separation"], dtype=float), -np.log10(np.maximum(q[tested], 1e-300)), chosen, SIGNIFICANCE_HOVER
    )
    straight(figure, y=-float(np.log10(0.05)), text="q = 0.05")
    straight(figure, x=0)
    return _latents_chart("significance", figure, shown, "Separation against significance of each tested latent")


def _latent_marks(figure: go.Figure, latents: Columns, x: np.ndarray, y: np.ndarray, chosen: int | None, hover: str) -> None:
    """A trace for each side, selected latents on top, drawn by WebGL. `hover` is the template of those not selected."""
    side, ids = np.asarray(latents["side"]), np.asarray(latents["latent_id"])
    for value in (0, 1, -1):
        name, colour, symbol = SIDES[value]
        rows = np.flatnonzero(side == value)
        figure.add_scattergl(
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
        figure.add_scattergl(x=x[ring], y=y[ring], mode="markers", name=f"Latent {chosen}", marker=look, hoverinfo="skip")


def _hover_values(latents: Columns, rows: np.ndarray) -> np.ndarray:
    """For each mark the number of its latent, which a click passes on, and the figures of its hover box."""
    names = ("frequency_chosen", "frequency_rejected", "separation")
    shares = (np.round(100 * np.asarray(latents[name], dtype=float)[rows], 2) for name in names)
    q = [number(value, ".2g") for value in np.asarray(latents["q_value"], dtype=float)[rows].tolist()]
    labels = [plain(latents["label"][row]) for row in rows.tolist()]
    return carried(np.asarray(latents["latent_id"])[rows], *shares, q, labels)


def _latents_chart(name: str, figure: go.Figure, latents: Columns, what: str) -> Chart:
    side = np.asarray(latents["side"])
    columns = [column for column in latents if len(latents[column]) == len(side)]
    rows = [{column: _python(latents[column][row]) for column in columns} for row in np.flatnonzero(side != 0)]
    return Chart(
        name=name, figure=figure, alt=f"{what}: {len(side):,} latents, {len(rows)} of them selected. The table holds the selected ones.", rows=rows
    )


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def activation_density(feature: Mapping[str, Any], tokens: int) -> Chart:
    """How strong a latent is where it is active (Neuronpedia's histogram)."""
    values, heights = feature["freq_hist_data_bar_values"], feature["freq_hist_data_bar_heights"]
    figure = new_figure(x=f"Activation where active (SAE units)<br>n = {tokens:,} tokens", y="Tokens (log)", height=236)
    figure.add_bar(x=values, y=heights, marker={"color": CHOSEN}, hovertemplate="about %{x:.3g}: %{y:,} tokens<extra></extra>")
    figure.update_yaxes(type="log", dtick=1)
    figure.update_layout(bargap=0.05)
    alt = f"Histogram of activations: active on {percent(feature['frac_nonzero'])} of {tokens:,} tokens, at most {number(feature['maxActApprox'])}."
    return Chart(name="activation-density", figure=figure, alt=alt, rows=_paired(("activation", "tokens"), values, heights))


def logit_bars(feature: Mapping[str, Any]) -> Chart:
    """The tokens that the latent's direction promotes and suppresses most, with the change of their logit."""
    tokens = [(token, value) for side in ("pos", "neg") for token, value in zip(feature[f"{side}_str"], feature[f"{side}_values"], strict=True)]
    rows = [{"token": token, "logit": value} for token, value in sorted(tokens, key=lambda pair: pair[1])]
    figure = new_figure(x="Change of logit at activation 1", y="", height=60 + 20 * max(len(rows), 2))
    figure.add_bar(
        orientation="h",
        y=list(range(len(rows))),
        x=[row["logit"] for row in rows],
        marker={"color": [side_colour(row["logit"]) for row in rows]},
        hovertext=[f"{_token(row['token'])}: {row['logit']:+.3g}" for row in rows],
        hoverinfo="text",
    )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=[_token(row["token"]) for row in rows], showgrid=False)
    return Chart(name="logit-lens", figure=figure, alt=f"The {len(rows)} tokens that this direction promotes or suppresses most.", rows=rows[::-1])


def _token(text: str) -> str:
    """A token with its white space made visible."""
    return plain(text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥"), 24) or "␀"


def logit_histogram(feature: Mapping[str, Any]) -> Chart:
    """The direction's effect on the logits of the whole vocabulary."""
    values, heights = feature["logits_hist_data_bar_values"], feature["logits_hist_data_bar_heights"]
    figure = new_figure(x="Change of logit at activation 1", y="Vocabulary tokens (log)", height=220)
    colours = [side_colour(value) for value in values]
    figure.add_bar(x=values, y=heights, marker={"color": colours}, hovertemplate="about %{x:.3g}: %{y:,} tokens<extra></extra>")
    figure.update_yaxes(type="log", dtick=1)
    figure.update_layout(bargap=0.05)
    return Chart(
        name="logit-histogram",
        figure=figure,
        alt="Histogram of the direction's effect on every token's logit.",
        rows=_paired(("logit", "tokens"), values, heights),
    )


def response_curve(curve: Mapping[str, Any]) -> Chart:
    """The reward as one projection moves and all others stay at their training mean: of the shipped head, and by thin
    lines of the other heads.

    `curve`: projection [m], shipped [m], heads [h m] (rewards of the other heads), mean (of the projection).
    """
    x, shipped, heads = np.asarray(curve["projection"]), np.asarray(curve["shipped"]), np.asarray(curve["heads"])
    figure = new_figure(x="Projection on this direction (1st to 99th percentile)", y="Reward", height=260)
    for head in heads:
        figure.add_scatter(x=x, y=head, mode="lines", line={"color": LINE, "width": 1}, hoverinfo="skip")
    figure.add_scatter(
        x=x, y=shipped, mode="lines", line={"color": CHOSEN, "width": 2.6}, hovertemplate="projection %{x:.3g}: reward %{y:.3g}<extra></extra>"
    )
    straight(figure, x=float(curve["mean"]), text="mean")
    alt = f"Reward from {number(float(shipped[0]))} to {number(float(shipped[-1]))} as the projection rises; {len(heads)} heads."
    rows = [
        {"projection": float(a), "reward": float(b), "lowest head": float(c), "highest head": float(d)}
        for a, b, c, d in zip(x, shipped, heads.min(0), heads.max(0), strict=True)
    ]
    return Chart(name="response-curve", figure=figure, alt=alt, rows=rows)


def separation_dots(row: Mapping[str, Any], n_train: int, n_held_out: int) -> Chart:
    """A latent's separation on training pairs, with its interval, and on held-out pairs."""
    figure = new_figure(x="Separation, mu_w - mu_l (percentage points)", y="", height=150)
    names = [f"training (n = {n_train:,})", f"held out (n = {n_held_out:,})"]
    values = [100 * row["separation"], None if row["held_out"] is None else 100 * row["held_out"]]
    ends = [[None if row[name] is None else 100 * row[name], None] for name in ("low", "high")]
    hover = [interval(values[0], ends[0][0], ends[1][0], "+.1f"), number(values[1], "+.1f")]
    figure.add_scatter(
        x=values,
        y=names,
        mode="markers",
        marker={"size": 11, "color": side_colour(row["separation"]), "symbol": ["circle", "circle-open"]},
        error_x=whiskers([values[0], values[1] or 0.0], *ends),
        hovertext=hover,
        hoverinfo="text",
    )
    straight(figure, x=0)
    figure.update_yaxes(showgrid=False, autorange="reversed", range=[-0.5, 1.5])
    rows = [{"pairs": name, "separation": value, "low": low, "high": high} for name, value, low, high in zip(names, values, *ends, strict=True)]
    alt = f"Separation {hover[0]} points on training pairs, {hover[1]} on held-out ones."
    return Chart(name="separation", figure=figure, alt=alt, rows=rows)


def _paired(names: tuple[str, str], first: Sequence[Any], second: Sequence[Any]) -> list[dict[str, Any]]:
    return [dict(zip(names, both, strict=True)) for both in zip(first, second, strict=True)]

"""Charts of single responses and pairs: waterfall, changes, running reward, removal curves, place of the reward. No
Streamlit here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.explain.waterfall import TOTALS, Bar, residual_of
from workbench.frame.chart_base import CHOSEN, LINE, NEUTRAL, Chart, new_figure, number, plain, side_colour, straight, whiskers, wrapped


def waterfall(steps: Sequence[Bar], *, unit: str = "reward") -> Chart:
    """From the start bar over its parts to the end bar. What start and parts leave unexplained is printed as the
    residual.
    """
    start, end = (next((step.value for step in steps if step.kind == kind), 0.0) for kind in TOTALS)
    n_parts, residual = sum(step.kind not in TOTALS for step in steps), residual_of(steps)
    figure = new_figure(x=f"{unit.capitalize()}, residual {residual:+.1e}<br>whiskers: deviation over heads", y="", height=106 + 30 * len(steps))
    drawn = _bases_and_lengths(steps, start)
    ends = [base + length for base, length in drawn]
    deviations = [step.deviation for step in steps]
    figure.add_bar(
        orientation="h",
        y=list(range(len(steps))),
        x=[length for _, length in drawn],
        base=[base for base, _ in drawn],
        marker={"color": [NEUTRAL if step.kind in TOTALS else side_colour(step.value) for step in steps]},
        error_x=whiskers(
            ends,
            [_less(at, deviation) for at, deviation in zip(ends, deviations, strict=True)],
            [_more(at, deviation) for at, deviation in zip(ends, deviations, strict=True)],
        ),
        customdata=[[clicked_latent(step)] for step in steps],
        hovertext=[_step_hover(step) for step in steps],
        hoverinfo="text",
        unselected={"marker": {"opacity": 0.6}},
    )
    outer = [max(base, base + length) + (step.deviation or 0.0) for step, (base, length) in zip(steps, drawn, strict=True)]
    texts = {"text": [f" {_bar_text(step)}" for step in steps], "textposition": "middle right", "hoverinfo": "skip", "cliponaxis": False}
    figure.add_scatter(x=outer, y=list(range(len(steps))), mode="text", **texts)
    for place, at in enumerate(ends[:-1]):  # from the end of a bar to where the next one begins
        figure.add_shape(type="line", x0=at, x1=at, y0=place + 0.3, y1=place + 0.7, line={"color": LINE, "width": 1})
    figure.update_yaxes(
        tickvals=list(range(len(steps))), ticktext=[plain(step.label, 44) for step in steps], range=[len(steps) - 0.4, -0.6], showgrid=False
    )
    reach = [0.0, *ends, *outer, *(base for base, _ in drawn)]
    pad = 0.12 * (max(reach) - min(reach) or 1.0)
    figure.update_xaxes(range=[min(reach) - pad, max(reach) + pad])
    straight(figure, x=0)
    alt = f"Waterfall from {start:.3g} to {end:.3g} in {n_parts} parts, residual {residual:.1e}."
    return Chart(name="waterfall", figure=figure, alt=alt, rows=_waterfall_rows(steps))


def _bases_and_lengths(steps: Sequence[Bar], start: float) -> list[tuple[float, float]]:
    """Where each bar begins and how long it is: start and end from 0, every other one from where the one before ends."""
    before, drawn = start, []
    for step in steps:
        drawn.append((0.0 if step.kind in TOTALS else before, step.value))
        before += 0.0 if step.kind in TOTALS else step.value
    return drawn


def _waterfall_rows(steps: Sequence[Bar]) -> list[dict[str, Any]]:
    """The table behind the waterfall, a row a bar, and the residual."""
    rows: list[dict[str, Any]] = [
        {
            "bar": step.label,
            "kind": step.kind if step.kind in TOTALS else "part",
            "value": step.value,
            "deviation": step.deviation,
            "key": clicked_latent(step),
        }
        for step in steps
    ]
    return [*rows, {"bar": "residual", "kind": "residual", "value": residual_of(steps), "deviation": None, "key": ""}]


def clicked_latent(bar: Bar) -> str:
    """The number of the latent that a click on a bar means; empty for a bar of something else."""
    return "" if bar.latent_id is None else str(bar.latent_id)


def _less(value: float, deviation: float | None) -> float | None:
    return None if deviation is None else value - deviation


def _more(value: float, deviation: float | None) -> float | None:
    return None if deviation is None else value + deviation


def _bar_text(step: Bar) -> str:
    return number(step.value, ".2f" if step.kind in TOTALS else "+.2f")


def _step_hover(step: Bar) -> str:
    spread = "" if step.deviation is None else f" ± {step.deviation:.3f} over heads"
    return "<br>".join(line for line in (wrapped(step.label, 50, 3), f"{step.value:+.3f}{spread}", wrapped(step.note, 50, 3)) if line)


def contribution_bars(rows: Sequence[Bar], *, x: str = "Change of reward") -> Chart:
    """Changes or contributions beside one another, blue up and orange down, with their deviation over heads."""
    figure = new_figure(x=x, y="", height=80 + 28 * max(len(rows), 2))
    values = [row.value for row in rows]
    figure.add_bar(
        orientation="h",
        y=list(range(len(rows))),
        x=values,
        marker={"color": [side_colour(value) for value in values]},
        error_x=whiskers(values, [_less(row.value, row.deviation) for row in rows], [_more(row.value, row.deviation) for row in rows]),
        customdata=[[clicked_latent(row)] for row in rows],
        hovertext=[_step_hover(row) for row in rows],
        hoverinfo="text",
        unselected={"marker": {"opacity": 0.6}},
    )
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=[plain(row.label, 44) for row in rows], autorange="reversed", showgrid=False)
    straight(figure, x=0)
    table = [{"name": row.label, "value": row.value, "deviation": row.deviation, "key": clicked_latent(row)} for row in rows]
    return Chart(name="changes", figure=figure, alt=f"{x} of {len(rows)} latents.", rows=table)


def running_reward(texts: Sequence[str], running: Sequence[float], kinds: Sequence[str], *, other: Sequence[float] | None = None) -> Chart:
    """The reward read at each token of the response (exploratory: the head was trained on the last one). `other`: an
    earlier text's, to compare.
    """
    places = [i for i, kind in enumerate(kinds) if kind == "response"]
    figure = new_figure(x="Token of the response", y="Reward read here", height=220)
    if other is not None:
        figure.add_scatter(
            x=list(range(len(other))), y=list(other), mode="lines", line={"color": NEUTRAL, "width": 1.4, "dash": "dash"}, hoverinfo="skip"
        )
    values = [float(running[i]) for i in places]
    figure.add_scatter(
        x=list(range(len(places))),
        y=values,
        mode="lines+markers" if len(places) <= 120 else "lines",
        line={"color": CHOSEN, "width": 2},
        marker={"size": 5},
        customdata=[[i] for i in places],
        hovertext=[f"{plain(texts[i], 30) or '␣'}: {value:.3f}" for i, value in zip(places, values, strict=True)],
        hoverinfo="text",
    )
    if 0 < len(places) <= 60:
        names = [plain(texts[i], 12) for i in places]
        figure.update_xaxes(tickvals=list(range(len(places))), ticktext=names, tickangle=-60, tickfont={"size": 10})
    rows = [{"token": texts[i], "reward": value} for i, value in zip(places, values, strict=True)]
    last = f", {values[-1]:.3f} at its end" if values else ""
    return Chart(name="running-reward", figure=figure, alt=f"Reward read at each of {len(places)} tokens of the response{last}.", rows=rows)


def removal_curves(curves: Mapping[str, Any]) -> Chart:
    """Deletion and insertion of latents in the explanation's order against random orders, from `Curves.to_json()`."""
    figure = new_figure(x=f"Share of the {curves['n_latents']} active latents (%)", y="Reward moved", height=280, legend=True)
    share = [100 * value for value in curves["share"]]
    for name, dash in (("deletion", "solid"), ("insertion", "dash")):
        for order, colour in (("ordered", CHOSEN), ("random", NEUTRAL)):
            label = f"{name}, {'in order of contribution' if order == 'ordered' else 'random order'}"
            values = curves[name][order]
            figure.add_scatter(
                x=share,
                y=values,
                mode="lines",
                name=label,
                line={"color": colour, "dash": dash, "width": 2},
                hovertemplate=label + "<br>%{x:.0f} %: %{y:.3g}<extra></extra>",
            )
    figure.update_xaxes(ticksuffix=" %")
    names = [(name, order) for name in ("deletion", "insertion") for order in ("ordered", "random")]
    rows = [
        {"share": share_removed, **{f"{name} {order}": curves[name][order][i] for name, order in names}}
        for i, share_removed in enumerate(curves["share"])
    ]
    return Chart(
        name="deletion-insertion",
        figure=figure,
        alt="How far the reward moves as latents are removed and returned, against random orders.",
        rows=rows,
    )


def reward_place(quantiles: Sequence[float], rewards: Mapping[str, float], n: int | None = None) -> Chart:
    """Where rewards lie among held-out responses: their distribution, by its 0th to 100th percentile, and a line for
    each reward.
    """
    values = np.asarray(quantiles, dtype=float)
    among = "held-out responses" if n is None else f"{n:,} held-out responses"
    figure = new_figure(x=f"Reward, among {among}", y="Percentile", height=220)
    ranks = np.linspace(0, 100, len(values))
    figure.add_scatter(
        x=values, y=ranks, mode="lines", line={"color": NEUTRAL, "width": 2}, hovertemplate="reward %{x:.3g}: percentile %{y:.0f}<extra></extra>"
    )
    figure.add_scatter(
        x=list(rewards.values()),
        y=np.interp(list(rewards.values()), values, ranks),
        mode="markers+text",
        text=[plain(name, 24) for name in rewards],
        textposition="middle right",
        marker={"size": 11, "color": [CHOSEN if name != "rejected" else side_colour(-1) for name in rewards]},
        hovertext=[f"{plain(name)}: {value:.3f}" for name, value in rewards.items()],
        hoverinfo="text",
        cliponaxis=False,
    )
    rows = [{"name": name, "reward": value, "percentile": float(np.interp(value, values, ranks))} for name, value in rewards.items()]
    return Chart(
        name="reward-place",
        figure=figure,
        alt="; ".join(f"{row['name']}: reward {row['reward']:.3g}, percentile {row['percentile']:.0f}" for row in rows),
        rows=rows,
    )

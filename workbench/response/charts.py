"""Charts of single responses and pairs: waterfall, changes, running reward, removal curves, place of the reward. No
Streamlit here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.explain.waterfall import TOTALS, Bar, residual_of
from workbench.frame.chart_base import (
    CHOSEN,
    LINE,
    NEUTRAL,
    REJECTED,
    Chart,
    digits_of,
    new_figure,
    number,
    plain,
    side_colour,
    straight,
    whiskers,
    wrapped,
)

SIDE_COLOURS = {"chosen": CHOSEN, "rejected": REJECTED}  # any other response is grey
TINY = 0.25  # parts that span less than this share of a waterfall are drawn with the axis cut


def waterfall(steps: Sequence[Bar], *, unit: str = "reward", ids: Sequence[str] | None = None, marks: Sequence[str] = ()) -> Chart:
    """From the start bar over its parts to the end bar. What start and parts leave unexplained is printed as the
    residual. `ids` are what a click on each bar reports, by default its latent; `marks` stand below the bars' names.
    """
    ids = [clicked_latent(step) for step in steps] if ids is None else ids
    start, end = (next((step.value for step in steps if step.kind == kind), 0.0) for kind in TOTALS)
    n_parts, residual = sum(step.kind not in TOTALS for step in steps), residual_of(steps)
    spread = "<br>whiskers: ±1 SD over seeds" if any(step.deviation is not None for step in steps) else ""
    figure = new_figure(x=f"{unit.capitalize()}, residual {residual:+.1e}{spread}", y="", height=106 + (34 if any(marks) else 30) * len(steps))
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
        customdata=[[name] for name in ids],
        hovertext=[_step_hover(step) for step in steps],
        hoverinfo="text",
        unselected={"marker": {"opacity": 0.6}},
    )
    outer = [end + (1 if step.value >= 0 else -1) * (step.deviation or 0.0) for step, end in zip(steps, ends, strict=True)]
    beside = [f"middle {'right' if step.value >= 0 else 'left'}" for step in steps]
    digits = digits_of(max((abs(step.value) for step in steps if step.kind not in TOTALS), default=1.0))
    texts = {"text": [f" {_bar_text(step, digits)} " for step in steps], "textposition": beside, "hoverinfo": "skip", "cliponaxis": False}
    figure.add_scatter(x=outer, y=list(range(len(steps))), mode="text", **texts)
    across = [value for at in ends[:-1] for value in (at, at, None)]  # from the end of a bar to where the next one begins
    down = [value for place in range(len(ends) - 1) for value in (place + 0.3, place + 0.7, None)]
    figure.add_scatter(x=across, y=down, mode="lines", line={"color": LINE, "width": 1}, hoverinfo="skip")
    figure.update_yaxes(tickvals=list(range(len(steps))), ticktext=_names(steps, marks), range=[len(steps) - 0.4, -0.6], showgrid=False)
    figure.update_xaxes(range=_reach(steps, drawn, outer))
    straight(figure, x=0)
    alt = f"Waterfall from {start:.3g} to {end:.3g} in {n_parts} parts, residual {residual:.1e}."
    return Chart(name="waterfall", figure=figure, alt=alt, rows=_waterfall_rows(steps, ids))


def _names(bars: Sequence[Bar], marks: Sequence[str]) -> list[str]:
    """The bars' names, and below each in small letters what speaks against it."""
    beside = [*marks, *[""] * (len(bars) - len(marks))]
    names = [plain(bar.label, 44) for bar in bars]
    return [f'{name}<br><span style="font-size: 0.8em">{plain(mark)}</span>' if mark else name for name, mark in zip(names, beside, strict=True)]


def _bases_and_lengths(steps: Sequence[Bar], start: float) -> list[tuple[float, float]]:
    """Where each bar begins and how long it is: start and end from 0, every other one from where the one before ends."""
    before, drawn = start, []
    for step in steps:
        drawn.append((0.0 if step.kind in TOTALS else before, step.value))
        before += 0.0 if step.kind in TOTALS else step.value
    return drawn


def _reach(steps: Sequence[Bar], drawn: Sequence[tuple[float, float]], outer: Sequence[float]) -> list[float]:
    """What the axis spans: all bars from 0 on, but where the parts are tiny beside the totals only where the parts lie."""
    inner = [end for step, (base, length) in zip(steps, drawn, strict=True) for end in (base, base + length) if step.kind not in TOTALS]
    reach = [0.0, *outer, *inner]
    if inner and max(inner) - min(inner) < TINY * (max(reach) - min(reach)):
        reach = inner
    pad = 0.16 * (max(reach) - min(reach) or 1.0)
    return [min(reach) - pad, max(reach) + pad]


def _waterfall_rows(steps: Sequence[Bar], ids: Sequence[str]) -> list[dict[str, Any]]:
    """The table behind the waterfall, a row a bar, and the residual."""
    rows: list[dict[str, Any]] = [
        {
            "bar": step.label,
            "kind": step.kind if step.kind in TOTALS else "part",
            "value": step.value,
            "deviation": step.deviation,
            "key": name,
        }
        for step, name in zip(steps, ids, strict=True)
    ]
    return [*rows, {"bar": "residual", "kind": "residual", "value": residual_of(steps), "deviation": None, "key": ""}]


def clicked_latent(bar: Bar) -> str:
    """The number of the latent that a click on a bar means; empty for a bar of something else."""
    return "" if bar.latent_id is None else str(bar.latent_id)


def _less(value: float, deviation: float | None) -> float | None:
    return None if deviation is None else value - deviation


def _more(value: float, deviation: float | None) -> float | None:
    return None if deviation is None else value + deviation


def _bar_text(step: Bar, digits: int) -> str:
    return number(step.value, f".{digits}f" if step.kind in TOTALS else f"+.{digits}f")


def _step_hover(step: Bar) -> str:
    spread = "" if step.deviation is None else f" ± {step.deviation:.3f} over heads"
    return "<br>".join(line for line in (wrapped(step.label, 50, 3), f"{step.value:+.3f}{spread}", wrapped(step.note, 50, 3)) if line)


def contribution_bars(rows: Sequence[Bar], *, x: str = "Change of reward", marks: Sequence[str] = ()) -> Chart:
    """Changes or contributions beside one another, blue up and orange down, with their deviation over heads. `marks`
    stand below the bars' names.
    """
    figure = new_figure(x=x, y="", height=80 + (34 if any(marks) else 28) * max(len(rows), 2))
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
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=_names(rows, marks), autorange="reversed", showgrid=False)
    straight(figure, x=0)
    table = [{"name": row.label, "value": row.value, "deviation": row.deviation, "key": clicked_latent(row)} for row in rows]
    return Chart(name="changes", figure=figure, alt=f"{x} of {len(rows)} latents.", rows=table)


def running_reward(sides: Mapping[str, tuple[Sequence[str], Sequence[float]]]) -> Chart:
    """The reward if the response stopped at each of its tokens: a line for each side, by name, of its tokens' texts and
    those rewards. The chosen response is blue and the rejected one orange, as everywhere.
    """
    figure = new_figure(x="Token of the response", y="Reward if the answer stopped here", height=260, legend=True)
    for name, (texts, values) in sides.items():
        places = list(range(1, len(values) + 1))
        figure.add_scatter(
            x=places,
            y=list(values),
            mode="lines+markers" if len(places) <= 120 else "lines",
            name=name.capitalize(),
            line={"color": SIDE_COLOURS.get(name, NEUTRAL), "width": 2, "dash": "dash" if name == "edited" else "solid"},
            marker={"size": 5, "symbol": "diamond" if name == "rejected" else "circle"},
            hovertext=[f"{name}, token {i}, {plain(text, 30) or '␣'}: {value:.3f}" for i, text, value in zip(places, texts, values, strict=True)],
            hoverinfo="text",
        )
    rows = [
        {"response": name, "place": place, "token": text, "reward": float(value)}
        for name, (texts, values) in sides.items()
        for place, (text, value) in enumerate(zip(texts, values, strict=True), start=1)
    ]
    ends = "; ".join(f"{name}: {values[-1]:.3f} after {len(values)} tokens" for name, (_, values) in sides.items() if len(values))
    return Chart(name="running-reward", figure=figure, alt=f"Reward if the answer stopped at each token. {ends}.", rows=rows)


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
        marker={"size": 11, "color": [SIDE_COLOURS.get(name, NEUTRAL) for name in rewards]},
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

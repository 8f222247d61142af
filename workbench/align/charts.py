"""Charts of the Align page: the pairs of each round, their margins and rewards, the training, and the policy's figures.

The intended winner is blue, the other answer orange. Kept and dropped pairs have other colours, since a dropped pair is
not a rejected answer. No Streamlit here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.frame.chart_base import (
    CHOSEN,
    FURTHER,
    INTERVAL,
    LINE,
    NEUTRAL,
    REJECTED,
    SYMBOLS,
    Chart,
    interval,
    new_figure,
    number,
    plain,
    straight,
    whiskers,
)

KEPT, DROPPED, UNREADABLE = FURTHER[0], FURTHER[3], NEUTRAL
REASONS = (DROPPED, FURTHER[2], FURTHER[1], FURTHER[4])  # by margin first
BINS = 24
Point = Mapping[str, Any]  # round, value, low, high, n, and `difference` to round 0 (value, low, high, n) or None


# --- the pairs of a round --------------------------------------------------------------------------------------------


def round_bars(rounds: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> Chart:
    """How many pairs of each round were kept, dropped for which reason, and not parsed.

    `rounds`: round, generated, parsed, `not parsed`, kept and dropped (None before the filter), reasons, and `share`,
    the share kept with its interval in words. `words`: the words of each reason.
    """
    figure = new_figure(x="Pairs", y="", height=96 + 38 * max(len(rounds), 1), legend=True)
    bars = [f"Round {row['round']}" for row in rounds]
    for name, counts, colour, pattern in _parts(rounds, words):
        figure.add_bar(
            orientation="h",
            y=bars,
            x=counts,
            name=plain(name, 40),
            marker=_marker(colour, pattern),
            text=[f"{count:,}" if count else "" for count in counts],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            hovertext=[_part_hover(bar, name, count, row) for bar, count, row in zip(bars, counts, rounds, strict=True)],
            hoverinfo="text",
        )
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    fields = ("round", "generated", "parsed", "kept", "dropped", "not parsed")
    reasons = _reasons(rounds)
    table = [{name: row[name] for name in fields} | {words.get(r, r): row["reasons"].get(r, 0) for r in reasons} for row in rounds]
    kept = [f"round {row['round']}: {'not yet' if row['kept'] is None else row['kept']} of {row['generated']} pairs kept" for row in rounds]
    return Chart(name="rounds", figure=figure, alt=f"What became of the pairs. {'; '.join(kept)}.", rows=table)


def _marker(colour: str, pattern: str) -> dict[str, Any]:
    """A bar's colour, and a pattern for people who can't tell colours apart."""
    return {"color": colour, "pattern": {"shape": pattern, "size": 6, "solidity": 0.12, "fillmode": "overlay"}}


def _reasons(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """All reasons of drops, the margin first."""
    return sorted({reason for row in rounds for reason in row["reasons"]}, key=lambda reason: (reason != "margin", reason))


def _parts(rounds: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> list[tuple[str, list[int], str, str]]:
    """The parts of the bars that hold any pair: name, pairs in each round, colour, pattern."""
    waiting = [row["generated"] - row["not parsed"] if row["kept"] is None else 0 for row in rounds]
    parts = [("kept", [row["kept"] or 0 for row in rounds], KEPT, "")]
    for reason, colour in zip(_reasons(rounds), itertools.chain(REASONS, itertools.repeat(FURTHER[5])), strict=False):
        parts.append((words.get(reason, reason), [row["reasons"].get(reason, 0) for row in rounds], colour, "/"))
    parts += [("not parsed", [row["not parsed"] for row in rounds], UNREADABLE, "x"), ("not filtered yet", waiting, LINE, "")]
    return [part for part in parts if any(part[1])]


def _part_hover(bar: str, name: str, count: int, row: Mapping[str, Any]) -> str:
    return f"<b>{bar}</b><br>{plain(name)}: {count:,} of {row['generated']:,} pairs<br>{plain(row['share'], 100)}"


def margin_histogram(margins: Sequence[float], kept: Sequence[bool], threshold: float, mean: str) -> Chart:
    """The intended winners' margins, kept and dropped pairs stacked; `mean`: the mean with its interval and n, in
    words.
    """
    title = f"Margin of the intended winner (reward), kept above {threshold:g}"
    figure = new_figure(x=f"{title}<br>{mean}", y="Pairs", height=300, legend=True)
    values, chosen = np.asarray(margins, dtype=float), np.asarray(kept, dtype=bool)
    edges = _edges(values, threshold)
    for name, colour, pattern, rows in (("kept", KEPT, "", chosen), ("dropped", DROPPED, "/", ~chosen)):
        counts = np.histogram(-values[rows], -edges[::-1])[0][::-1]  # a bin includes its upper end, as a margin at the threshold is dropped
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts,
            width=np.diff(edges) * 0.94,
            name=f"{name} ({int(rows.sum()):,})",
            marker=_marker(colour, pattern),
            hovertext=[f"{number(a)} to {number(b)}: {n:,} {name}" for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)],
            hoverinfo="text",
        )
    figure.update_layout(barmode="stack", bargap=0, legend={"traceorder": "normal"})
    _whole(figure.update_yaxes, max((sum(counts) for counts in zip(*(trace.y for trace in figure.data), strict=True)), default=0))
    straight(figure, x=threshold)
    table = [{"margin": float(value), "kept": bool(is_kept)} for value, is_kept in zip(values, chosen, strict=True)]
    return Chart(name="margins", figure=figure, alt=f"Histogram of {len(values):,} margins, {int(chosen.sum()):,} of them kept. {mean}", rows=table)


def reward_histogram(winners: Sequence[float], others: Sequence[float], means: tuple[str, str]) -> Chart:
    """The rewards of both answers of each pair; `means`: each side's mean with its interval and n, in words."""
    figure = new_figure(x=f"Reward<br>intended winner {means[0]}<br>other answer {means[1]}", y="Answers", height=300, legend=True)
    sides = (
        ("intended winner", CHOSEN, "solid", np.asarray(winners, dtype=float)),
        ("other answer", REJECTED, "dash", np.asarray(others, dtype=float)),
    )
    both = np.concatenate([values[np.isfinite(values)] for *_, values in sides])
    edges = _edges(both, None)
    for name, colour, dash, values in sides:
        counts = np.histogram(values[np.isfinite(values)], edges)[0]
        figure.add_scatter(
            x=edges,
            y=[*counts, 0],
            mode="lines",
            line={"color": colour, "width": 2.2, "shape": "hv", "dash": dash},
            fill="tozeroy",
            fillcolor=_faded(colour),
            name=f"{name} ({int(np.isfinite(values).sum()):,})",
            hovertext=[f"{number(a)} to {number(b)}: {n:,} {name}" for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)] + [""],
            hoverinfo="text",
        )
    _whole(figure.update_yaxes, max(max(trace.y) for trace in figure.data))
    rows = [{"intended winner": float(a), "other answer": float(b)} for a, b in zip(winners, others, strict=True)]
    return Chart(name="rewards", figure=figure, alt=f"Rewards of both answers of {len(rows):,} pairs: {means[0]} and {means[1]}.", rows=rows)


def _whole(update: Callable[..., Any], most: float) -> None:
    """Gives an axis whole numbers up to `most`, about six of them."""
    update(rangemode="tozero", tickformat=",d", dtick=1 if most <= 6 else None)


def _edges(values: np.ndarray, through: float | None) -> np.ndarray:
    """Edges of equal bins over all values; one of them is `through`, so that no bin lies on both sides of it."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if through is None:
        return np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    width = (max(high, through) - min(low, through)) / BINS or 1.0 / BINS
    first, last = min(-1.0, np.floor((low - through) / width)), max(1.0, np.ceil((high - through) / width))
    return through + width * np.arange(first, last + 1)


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.16)"


# --- the training ----------------------------------------------------------------------------------------------------


def training_curve(dpo: Mapping[str, Any]) -> Chart:
    """The loss at each step of a round's training, and after each epoch on the pairs set apart; from `dpo.json`.

    The loss begins at ln 2, where policy and reference are equal.
    """
    curve = list(dpo["curve"])
    epochs = [(number, epoch) for number, epoch in enumerate(dpo["epochs"], 1) if epoch.get("loss") is not None]
    figure = new_figure(x="Step", y="DPO loss (nats)", height=250, legend=bool(epochs))
    steps = list(range(1, len(curve) + 1))
    figure.add_scatter(
        x=steps,
        y=[row["loss"] for row in curve],
        mode="lines+markers" if len(curve) < 60 else "lines",
        name=f"training pairs ({dpo['n_pairs']:,})",
        line={"color": NEUTRAL, "width": 1.6},
        marker={"size": 4},
        hovertext=[f"step {step}: loss {row['loss']:.4g}" for step, row in zip(steps, curve, strict=True)],
        hoverinfo="text",
    )
    if epochs:
        figure.add_scatter(
            x=[len(curve) * number / len(dpo["epochs"]) for number, _ in epochs],
            y=[epoch["loss"] for _, epoch in epochs],
            mode="markers",
            name=f"set apart ({dpo['n_validation']:,}), best epoch filled",
            marker={
                "size": 10,
                "color": FURTHER[0],
                "symbol": ["diamond" if number == dpo["best_epoch"] else "diamond-open" for number, _ in epochs],
                "line": {"width": 2},
            },
            hovertext=[_epoch_hover(epoch, number) for number, epoch in epochs],
            hoverinfo="text",
        )
    figure.update_xaxes(tickformat=",d", dtick=1 if len(curve) <= 8 else None)
    straight(figure, y=float(np.log(2)), text="ln 2")
    rows = [{"step": step, **row} for step, row in zip(steps, curve, strict=True)]
    last = number(curve[-1]["loss"]) if curve else "–"
    return Chart(name="training", figure=figure, alt=f"DPO loss over {len(curve)} steps on {dpo['n_pairs']} pairs, {last} at the last.", rows=rows)


def _epoch_hover(epoch: Mapping[str, Any], place: int) -> str:
    share, low, high = (None if epoch.get(name) is None else 100 * epoch[name] for name in ("accuracy", "low", "high"))
    return f"<b>epoch {place}</b><br>loss {number(epoch['loss'])}<br>accuracy {interval(share, low, high, '.1f')} %, n = {epoch['n']:,} pairs"


# --- the policy, round by round --------------------------------------------------------------------------------------


def policy_curve(
    name: str, unit: str, series: Mapping[str, Sequence[Point]], *, of: str = "", chosen: int | None = None, scale: float = 1.0
) -> Chart:
    """A figure of the policy after each round, a line for each alignment, with intervals; n counts what `of` names.

    A mark is filled where the paired interval of the difference to round 0 does not hold zero.
    """
    counts = sorted({int(point["n"]) for points in series.values() for point in points})
    n = " to ".join(f"{count:,}" for count in (counts[:1] + counts[1:][-1:]))
    figure = new_figure(x=f"Round (n = {n} {of})".replace(" )", ")"), y=unit, height=232, legend=len(series) > 1)
    rounds = sorted({int(point["round"]) for points in series.values() for point in points})
    for place, ((title, points), colour) in enumerate(zip(series.items(), (FURTHER[5], FURTHER[2], FURTHER[1]), strict=False)):
        values, ends = [scale * point["value"] for point in points], [[scale * point[end] for point in points] for end in ("low", "high")]
        look = SYMBOLS[place]
        figure.add_scatter(
            x=[point["round"] + 0.06 * place for point in points],
            y=values,
            mode="lines+markers",
            name=plain(title, 44),
            line={"color": colour, "width": 2, "dash": ("solid", "dash", "dot")[place]},
            marker={"size": 9, "symbol": [look if _moved(point) else f"{look}-open" for point in points], "line": {"width": 2}},
            error_y={**whiskers(values, ends[0], ends[1]), "color": colour},
            hovertext=[_point_hover(title if len(series) > 1 else name, point, scale) for point in points],
            hoverinfo="text",
        )
    figure.update_xaxes(tickvals=rounds, range=[min(rounds, default=0) - 0.35, max(rounds, default=1) + 0.35])
    figure.update_yaxes(exponentformat="none")
    if chosen is not None:
        straight(figure, x=chosen, text="chosen")
    rows = [{"alignment": title, **_flat(point)} for title, points in series.items() for point in points]
    values = [f"{point['round']}: {number(scale * point['value'])}" for points in series.values() for point in points]
    alt = f"{name} by round: " + "; ".join(values)
    return Chart(name=name.lower().replace(" ", "-"), figure=figure, alt=alt, rows=rows)


def _moved(point: Point) -> bool:
    """Whether the interval of the paired difference to round 0 does not hold zero."""
    difference = point.get("difference")
    return difference is not None and bool(difference["low"] > 0 or difference["high"] < 0)


def _point_hover(title: str, point: Point, scale: float) -> str:
    lines = [f"<b>{plain(title, 50)}, round {point['round']}</b>", _estimate_text(point, scale)]
    if point.get("difference"):
        lines.append(f"against round 0, paired: {_estimate_text(point['difference'], scale, '+.3g')}")
    return "<br>".join(lines)


def _estimate_text(estimate: Mapping[str, Any], scale: float, form: str = ".4g") -> str:
    low, high = (None if estimate[end] is None else scale * estimate[end] for end in ("low", "high"))
    return f"{interval(scale * estimate['value'], low, high, form)}, {INTERVAL}, n = {estimate['n']:,}"


def _flat(point: Point) -> dict[str, Any]:
    difference = point.get("difference") or {}
    return {name: value for name, value in point.items() if name != "difference"} | {
        f"difference {name}": difference.get(name) for name in ("value", "low", "high")
    }


def drift_dots(rows: Sequence[Mapping[str, Any]], unit: str) -> Chart:
    """The latents whose mean projection moved most; filled where the interval does not hold zero.

    `rows`: latent_id, label, value, low, high, n.
    """
    figure = new_figure(x=unit, y="", height=84 + 26 * max(len(rows), 2))
    values = [row["value"] for row in rows]
    symbols = ["circle" if row["low"] > 0 or row["high"] < 0 else "circle-open" for row in rows]
    figure.add_scatter(
        x=values,
        y=list(range(len(rows))),
        mode="markers",
        marker={"size": 10, "color": NEUTRAL, "symbol": symbols, "line": {"width": 2}},
        error_x=whiskers(values, [row["low"] for row in rows], [row["high"] for row in rows]),
        customdata=[[str(row["latent_id"])] for row in rows],
        hovertext=[f"<b>{plain(row['label'])}</b><br>{_estimate_text(row, 1.0, '+.3g')} answers" for row in rows],
        hoverinfo="text",
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[plain(row["label"], 44) for row in rows], range=[len(rows) - 0.4, -0.6], showgrid=False
    )
    straight(figure, x=0)
    return Chart(
        name="drift", figure=figure, alt=f"Drift of {len(rows)} latents, the largest {number(max(map(abs, values), default=None))}.", rows=rows
    )

"""Figures of alignments: what became of each round's pairs, their margins and rewards, the training, and the policy's figures round by round.
No streamlit here.

Intended winner blue, the other answer orange; kept and dropped pairs have colours of their own, since a dropped pair is not a rejected answer.
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
Point = Mapping[str, Any]  # round, value, low, high, n, and `difference` to round 0 with the same four, or None


# --- the pairs of a round --------------------------------------------------------------------------------------------


def round_bars(rounds: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> Chart:
    """How many pairs of each round were kept, dropped for which reason, and not parsed. `rounds`: round, generated, kept (None before the filter),
    reasons, `not parsed`, and `said`, the share kept with its interval; `words` say the reasons.
    """
    figure = new_figure(x="Pairs", y="", height=96 + 38 * max(len(rounds), 1), legend=True)
    bars = [f"Round {one['round']}" for one in rounds]
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
            hovertext=[_part_said(bar, name, count, one) for bar, count, one in zip(bars, counts, rounds, strict=True)],
            hoverinfo="text",
        )
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    fields = ("round", "generated", "parsed", "kept", "dropped", "not parsed")
    reasons = _reasons(rounds)
    table = [{name: one[name] for name in fields} | {words.get(r, r): one["reasons"].get(r, 0) for r in reasons} for one in rounds]
    said = [f"round {one['round']}: {'not yet' if one['kept'] is None else one['kept']} of {one['generated']} pairs kept" for one in rounds]
    return Chart(name="rounds", figure=figure, alt=f"What became of the pairs. {'; '.join(said)}.", rows=table)


def _marker(colour: str, pattern: str) -> dict[str, Any]:
    """A bar's colour, and a pattern beside it for who can't tell colours apart."""
    return {"color": colour, "pattern": {"shape": pattern, "size": 6, "solidity": 0.12, "fillmode": "overlay"}}


def _reasons(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """All reasons of drops, the margin first."""
    return sorted({reason for one in rounds for reason in one["reasons"]}, key=lambda reason: (reason != "margin", reason))


def _parts(rounds: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> list[tuple[str, list[int], str, str]]:
    """The parts of the bars that hold any pair: name, pairs in each round, colour, pattern."""
    waiting = [one["generated"] - one["not parsed"] if one["kept"] is None else 0 for one in rounds]
    parts = [("kept", [one["kept"] or 0 for one in rounds], KEPT, "")]
    for reason, colour in zip(_reasons(rounds), itertools.chain(REASONS, itertools.repeat(FURTHER[5])), strict=False):
        parts.append((words.get(reason, reason), [one["reasons"].get(reason, 0) for one in rounds], colour, "/"))
    parts += [("not parsed", [one["not parsed"] for one in rounds], UNREADABLE, "x"), ("not filtered yet", waiting, LINE, "")]
    return [part for part in parts if any(part[1])]


def _part_said(bar: str, name: str, count: int, one: Mapping[str, Any]) -> str:
    return f"<b>{bar}</b><br>{plain(name)}: {count:,} of {one['generated']:,} pairs<br>{plain(one['said'], 100)}"


def margin_histogram(margins: Sequence[float], kept: Sequence[bool], threshold: float, mean: str) -> Chart:
    """The intended winners' margins, kept and dropped pairs stacked; `mean`: the mean with its interval and n, in words."""
    said = f"Margin of the intended winner (reward), kept above {threshold:g}"
    figure = new_figure(x=f"{said}<br>{mean}", y="Pairs", height=300, legend=True)
    values, chosen = np.asarray(margins, dtype=float), np.asarray(kept, dtype=bool)
    edges = _edges(values, threshold)
    for name, colour, pattern, rows in (("kept", KEPT, "", chosen), ("dropped", DROPPED, "/", ~chosen)):
        counts = np.histogram(-values[rows], -edges[::-1])[0][::-1]  # bins hold their upper end: a margin at the threshold is not above it
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
    table = [{"margin": float(value), "kept": bool(one)} for value, one in zip(values, chosen, strict=True)]
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
    """An axis of whole numbers up to `most`: about six of them are written."""
    update(rangemode="tozero", tickformat=",d", dtick=1 if most <= 6 else None)


def _edges(values: np.ndarray, through: float | None) -> np.ndarray:
    """Edges of equal bins over all values; one of them lies at `through`, so that no bin holds both sides of it."""
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
    """The loss at every step of a round's training, and of the pairs set apart after each epoch; from `dpo.json`. ln 2 is where it begins."""
    curve = list(dpo["curve"])
    epochs = [(place, one) for place, one in enumerate(dpo["epochs"]) if one.get("loss") is not None]
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
            x=[len(curve) * (place + 1) / len(dpo["epochs"]) for place, _ in epochs],
            y=[one["loss"] for _, one in epochs],
            mode="markers",
            name=f"set apart ({dpo['n_validation']:,}), best epoch filled",
            marker={
                "size": 10,
                "color": FURTHER[0],
                "symbol": ["diamond" if place + 1 == dpo["best_epoch"] else "diamond-open" for place, _ in epochs],
                "line": {"width": 2},
            },
            hovertext=[_epoch_said(one, place) for place, one in epochs],
            hoverinfo="text",
        )
    figure.update_xaxes(tickformat=",d", dtick=1 if len(curve) <= 8 else None)
    straight(figure, y=float(np.log(2)), text="ln 2")
    rows = [{"step": step, **row} for step, row in zip(steps, curve, strict=True)]
    last = number(curve[-1]["loss"]) if curve else "–"
    return Chart(name="training", figure=figure, alt=f"DPO loss over {len(curve)} steps on {dpo['n_pairs']} pairs, {last} at the last.", rows=rows)


def _epoch_said(one: Mapping[str, Any], place: int) -> str:
    share, low, high = (None if one.get(name) is None else 100 * one[name] for name in ("accuracy", "low", "high"))
    return f"<b>epoch {place + 1}</b><br>loss {number(one['loss'])}<br>accuracy {interval(share, low, high, '.1f')} %, n = {one['n']:,} pairs"


# --- the policy, round by round --------------------------------------------------------------------------------------


def policy_curve(
    name: str, unit: str, series: Mapping[str, Sequence[Point]], *, of: str = "", chosen: int | None = None, scale: float = 1.0
) -> Chart:
    """A figure of the policy after each round, a line an alignment, with intervals; its n counts what `of` says. A filled mark differs from
    round 0 by its paired interval.
    """
    counts = sorted({int(one["n"]) for points in series.values() for one in points})
    n = " to ".join(f"{one:,}" for one in (counts[:1] + counts[1:][-1:]))
    figure = new_figure(x=f"Round (n = {n} {of})".replace(" )", ")"), y=unit, height=232, legend=len(series) > 1)
    rounds = sorted({int(point["round"]) for points in series.values() for point in points})
    for place, ((title, points), colour) in enumerate(zip(series.items(), (FURTHER[5], FURTHER[2], FURTHER[1]), strict=False)):
        values, ends = [scale * one["value"] for one in points], [[scale * one[end] for one in points] for end in ("low", "high")]
        look = SYMBOLS[place]
        figure.add_scatter(
            x=[one["round"] + 0.06 * place for one in points],
            y=values,
            mode="lines+markers",
            name=plain(title, 44),
            line={"color": colour, "width": 2, "dash": ("solid", "dash", "dot")[place]},
            marker={"size": 9, "symbol": [look if _moved(one) else f"{look}-open" for one in points], "line": {"width": 2}},
            error_y={**whiskers(values, ends[0], ends[1]), "color": colour},
            hovertext=[_point_said(title if len(series) > 1 else name, one, scale) for one in points],
            hoverinfo="text",
        )
    figure.update_xaxes(tickvals=rounds, range=[min(rounds, default=0) - 0.35, max(rounds, default=1) + 0.35])
    figure.update_yaxes(exponentformat="none")
    if chosen is not None:
        straight(figure, x=chosen, text="chosen")
    rows = [{"alignment": title, **_flat(one)} for title, points in series.items() for one in points]
    alt = f"{name} by round: " + "; ".join(f"{one['round']}: {number(scale * one['value'])}" for points in series.values() for one in points)
    return Chart(name=name.lower().replace(" ", "-"), figure=figure, alt=alt, rows=rows)


def _moved(one: Point) -> bool:
    """Whether the paired difference to round 0 has an interval clear of zero."""
    said = one.get("difference")
    return said is not None and bool(said["low"] > 0 or said["high"] < 0)


def _point_said(title: str, one: Point, scale: float) -> str:
    lines = [f"<b>{plain(title, 50)}, round {one['round']}</b>", _said(one, scale)]
    if one.get("difference"):
        lines.append(f"against round 0, paired: {_said(one['difference'], scale, '+.3g')}")
    return "<br>".join(lines)


def _said(one: Mapping[str, Any], scale: float, form: str = ".4g") -> str:
    low, high = (None if one[end] is None else scale * one[end] for end in ("low", "high"))
    return f"{interval(scale * one['value'], low, high, form)}, {INTERVAL}, n = {one['n']:,}"


def _flat(one: Point) -> dict[str, Any]:
    said = one.get("difference") or {}
    return {name: value for name, value in one.items() if name != "difference"} | {
        f"difference {name}": said.get(name) for name in ("value", "low", "high")
    }


def drift_dots(rows: Sequence[Mapping[str, Any]], unit: str) -> Chart:
    """The latents whose mean projection moved most, with intervals; filled: clear of zero. `rows`: latent_id, label, value, low, high, n."""
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
        hovertext=[f"<b>{plain(row['label'])}</b><br>{_said(row, 1.0, '+.3g')} answers" for row in rows],
        hoverinfo="text",
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[plain(row["label"], 44) for row in rows], range=[len(rows) - 0.4, -0.6], showgrid=False
    )
    straight(figure, x=0)
    return Chart(
        name="drift", figure=figure, alt=f"Drift of {len(rows)} latents, the largest {number(max(map(abs, values), default=None))}.", rows=rows
    )

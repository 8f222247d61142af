"""Figures of alignments and of shift: what is drawn is what was given, with intervals and n, and texts stay texts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from pages_helpers import HOSTILE
from test_charts import strings

from workbench.align import charts as charts_align
from workbench.frame.chart_base import CHOSEN, REJECTED, Chart
from workbench.shift import charts as charts_shift

NASTY = HOSTILE["script"]
ROUNDS = [
    {
        "round": 1,
        "generated": 10,
        "parsed": 9,
        "not parsed": 1,
        "kept": 4,
        "dropped": 5,
        "reasons": {"too long": 2, "margin": 3},
        "share": "kept 44 %",
    },
    {"round": 2, "generated": 8, "parsed": 8, "not parsed": 0, "kept": None, "dropped": None, "reasons": {}, "share": NASTY},
]
DPO = {
    "n_pairs": 7,
    "n_validation": 3,
    "best_epoch": 2,
    "curve": [{"loss": 0.7}, {"loss": 0.6}, {"loss": 0.5}, {"loss": 0.4}],
    "epochs": [
        {"accuracy": 0.5, "low": 0.1, "high": 0.9, "n": 3, "loss": 0.65},
        {"accuracy": 1.0, "low": 0.4, "high": 1.0, "n": 3, "loss": 0.55},
    ],
}


def point(round: int, value: float, difference: tuple[float, float] | None = None, n: int = 40) -> dict[str, Any]:
    said = None if difference is None else {"value": sum(difference) / 2, "low": difference[0], "high": difference[1], "n": n}
    return {"round": round, "value": value, "low": value - 0.1, "high": value + 0.2, "n": n, "difference": said}


CURVES = {NASTY: [point(0, 0.5), point(1, 0.6, (0.02, 0.2)), point(2, 0.4, (-0.3, 0.1))], "other": [point(0, 0.5), point(1, 0.3, (-0.4, -0.1))]}
DRIFT = [
    {"latent_id": 7, "label": NASTY, "value": 0.5, "low": 0.2, "high": 0.8, "n": 30},
    {"latent_id": 9, "label": "Latent 9", "value": -0.2, "low": -0.5, "high": 0.1, "n": 30},
]
SIMILAR = {
    name: [{"round": round, "value": value + round / 10, "low": value, "high": value + 0.3, "n": 96, "n_prompts": 48} for round in (1, 2)]
    for name, value in (("dense", 0.7), ("sparse", 0.5), ("random-isotropic", -0.1), ("random-rows", 0.6))
}
ALL = [
    charts_align.round_bars(ROUNDS, {"margin": "intended winner scores lower", "too long": NASTY}),
    charts_align.margin_histogram([0.5, -0.5, 0.1, -2.0], [True, False, True, False], 0.0, "mean -0.475"),
    charts_align.reward_histogram([1.0, 0.0, math.nan], [0.5, 0.5, 0.2], ("mean 0.5", "mean 0.4")),
    charts_align.training_curve(DPO),
    charts_align.policy_curve("Reward", "Reward (head's units)", CURVES, chosen=1),
    charts_align.drift_dots(DRIFT, "Drift (training deviations)"),
    charts_shift.similarity_curves(SIMILAR, "matched"),
    charts_shift.lead_curves(SIMILAR),
]
NAMES = [chart.name for chart in ALL]


@pytest.mark.parametrize("chart", ALL, ids=NAMES)
def test_no_text_of_data_becomes_markup(chart: Chart) -> None:
    made = json.loads(json.dumps(chart.figure.to_plotly_json(), default=lambda value: np.asarray(value).tolist()))
    for text in strings(made):
        assert "<" not in text.replace("<b>", "").replace("</b>", "").replace("<br>", ""), text


@pytest.mark.parametrize("chart", ALL, ids=NAMES)
def test_axes_have_names_and_figures_words_and_a_table(chart: Chart) -> None:
    layout = chart.figure.layout
    assert layout.xaxis.title.text and (layout.yaxis.title.text or layout.yaxis.ticktext or isinstance(chart.figure.data[0].y[0], str))
    assert len(chart.alt) > 20 and chart.rows and layout.font.color is None and layout.paper_bgcolor == "rgba(0, 0, 0, 0)"


def test_the_parts_of_a_round_are_all_its_pairs() -> None:
    parts = {trace.name: list(trace.x) for trace in ALL[0].figure.data}
    assert parts["kept"] == [4, 0] and parts["intended winner scores lower"] == [3, 0] and parts["not parsed"] == [1, 0]
    assert [sum(counts) for counts in zip(*parts.values(), strict=True)] == [10, 8]
    assert parts["not filtered yet"] == [0, 8], "before the filter nothing is kept or dropped"
    colours = [trace.marker.color for trace in ALL[0].figure.data]
    assert len(set(colours)) == len(colours) and not {CHOSEN, REJECTED} & set(colours), "a dropped pair is no rejected answer"


@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_no_bar_of_margins_lies_on_both_sides_of_the_threshold(threshold: float) -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(size=200)
    kept = margins > threshold
    chart = charts_align.margin_histogram(margins.tolist(), kept.tolist(), threshold, "mean 0")
    left, dropped = chart.figure.data
    assert sum(left.y) == kept.sum() and sum(dropped.y) == (~kept).sum()
    assert all(not count or x > threshold for x, count in zip(left.x, left.y, strict=True))
    assert all(not count or x < threshold for x, count in zip(dropped.x, dropped.y, strict=True))


def test_margins_that_are_all_the_same_are_drawn() -> None:
    chart = charts_align.margin_histogram([0.0, 0.0], [False, False], 0.0, "mean 0")
    assert sum(chart.figure.data[1].y) == 2 and all(x < 0 for x, n in zip(chart.figure.data[1].x, chart.figure.data[1].y, strict=True) if n)


def test_rewards_that_could_not_be_read_are_not_drawn() -> None:
    winners, others = ALL[2].figure.data
    assert sum(winners.y) == 2 and sum(others.y) == 3 and winners.line.color == CHOSEN and others.line.color == REJECTED


def test_the_best_epoch_is_filled_and_stands_at_its_end() -> None:
    steps, epochs = ALL[3].figure.data
    assert list(steps.x) == [1, 2, 3, 4] and list(epochs.x) == [2, 4] and list(epochs.marker.symbol) == ["diamond-open", "diamond"]
    assert "100.0 (40.0 to 100.0) %, n = 3" in epochs.hovertext[1]


def test_a_filled_mark_differs_from_round_0_an_open_one_does_not() -> None:
    first, second = ALL[4].figure.data
    assert list(first.marker.symbol) == ["circle-open", "circle", "circle-open"] and list(second.marker.symbol) == ["diamond-open", "diamond"]
    assert list(first.error_y.array) == pytest.approx([0.2] * 3) and list(first.error_y.arrayminus) == pytest.approx([0.1] * 3)
    assert "against round 0, paired: +0.11 (+0.02 to +0.2)" in first.hovertext[1] and "n = 40" in first.hovertext[1]
    assert ALL[4].figure.layout.shapes[0].x0 == 1


def test_drift_is_clicked_by_latent_and_filled_if_clear_of_zero() -> None:
    marks = ALL[5].figure.data[0]
    assert [one[0] for one in marks.customdata] == ["7", "9"] and list(marks.marker.symbol) == ["circle", "circle-open"]
    assert list(marks.error_x.array) == pytest.approx([0.3, 0.3])


def test_every_space_has_a_line_of_its_own_look() -> None:
    lines = {trace.name: trace for trace in ALL[6].figure.data}
    assert list(lines) == ["Sparse v", "Dense z", "Random directions", "Random decoder rows"]
    assert list(lines["Sparse v"].y) == pytest.approx([0.6, 0.7]) and len({(one.line.color, one.marker.symbol) for one in lines.values()}) == 4
    assert all("n = 96 answers to 48 prompts" in text for text in lines["Dense z"].hovertext)


def test_the_lead_is_over_the_others_only_and_shows_zero() -> None:
    chart = ALL[7].figure
    assert [trace.name for trace in chart.data] == ["Dense z", "Random directions", "Random decoder rows"]
    assert (chart.layout.shapes[0].y0, chart.layout.shapes[0].y1) == (0, 0) and "n = 96 answers" in chart.layout.xaxis.title.text

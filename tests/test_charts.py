"""Figures, token highlighting and downloads: what is drawn is what was given, and texts stay texts."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pages_helpers import HOSTILE

from core.explain.spaces import SpaceFigures
from core.explain.waterfall import Bar
from core.statistics.estimates import Estimate
from core.text_safety import visible
from workbench.compare.charts import margins_scatter
from workbench.frame import downloads, tokens
from workbench.frame.accuracy import accuracy_curve
from workbench.frame.chart_base import CHOSEN, REJECTED, Chart, plain, whiskers, wrapped
from workbench.frame.tokens import Pick, TokenRow
from workbench.latents import charts as charts_latents
from workbench.overview import charts as charts_overview
from workbench.response import charts as charts_response
from workbench.runs.charts import run_curves
from workbench.spaces import charts as charts_spaces


def accuracy(value: float, n: int = 50) -> dict[str, Any]:
    return {"accuracy": value, "low": value - 0.05, "high": value + 0.04, "n": n}


def entry(value: float) -> dict[str, Any]:
    return {**accuracy(value + 0.01), "mean": accuracy(value), "heads": [accuracy(value)] * 5, "n_parameters": 9}


EVALUATION = {"sparserm": entry(0.8), "controls": {"dense": entry(0.85), "length-only": entry(0.45)}}
LATENTS = {
    "latent_id": np.array([3, 5, 8, 9]),
    "frequency_chosen": np.array([0.5, 0.1, 0.2, 0.0]),
    "frequency_rejected": np.array([0.1, 0.4, 0.2, 0.01]),
    "separation": np.array([0.4, -0.3, 0.0, -0.01]),
    "q_value": np.array([1e-4, 0.2, 0.9, np.nan]),
    "side": np.array([1, -1, 0, 0]),
    "label": [HOSTILE["script"], "", "<b>x</b>", ""],
}
FEATURE = {
    "pos_str": [" a", HOSTILE["image"]],
    "pos_values": [2.0, 1.0],
    "neg_str": ["\n", ""],
    "neg_values": [-3.0, -0.5],
    "freq_hist_data_bar_values": [1.0, 2.0],
    "freq_hist_data_bar_heights": [10, 1],
    "logits_hist_data_bar_values": [-1.0, 1.0],
    "logits_hist_data_bar_heights": [4, 6],
    "frac_nonzero": 0.011,
    "maxActApprox": 2.4,
}
STEPS = [
    Bar(label="Average", value=0.25, kind="start"),
    Bar(label=HOSTILE["script"], value=0.5, kind="latents", latent_ids=(7,), deviation=0.1, note=HOSTILE["image"]),
    Bar(label="others", value=-0.2),
    Bar(label="This response", value=0.55, kind="end"),
]
ESTIMATE = Estimate(value=0.7, low=0.6, high=0.8, n=40, n_prompts=20)


def space_chart() -> Chart:
    said = {name: SpaceFigures(neighbours=ESTIMATE, silhouette=ESTIMATE).to_json() for name in ("dense", "sparse")}
    return charts_spaces.separation_scores(said, 0.5, 40)


def every_chart() -> list[Chart]:
    curve = [{"kind": kind, "k": k, **accuracy(0.7)} for kind in ("sparserm", "activations") for k in (8, 16)]
    response = {"projection": [0.0, 1.0], "shipped": [0.1, 0.4], "heads": [[0.1, 0.4], [0.2, 0.3]], "mean": 0.5}
    row = {"separation": 0.3, "low": 0.2, "high": 0.4, "held_out": None}
    points, nasty = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), list(HOSTILE.values())[:3]
    removal = {"share": [0.0, 1.0], "n_latents": 3, **{name: {"ordered": [0.0, 1.0], "random": [0.0, 0.5]} for name in ("deletion", "insertion")}}
    return [
        charts_overview.accuracy_bars(EVALUATION),
        accuracy_curve(curve, 16),
        charts_latents.frequency_scatter(LATENTS, 100, 5),
        charts_latents.significance_scatter(LATENTS, 90),
        charts_latents.activation_density(FEATURE, 1000),
        charts_latents.logit_bars(FEATURE),
        charts_latents.logit_histogram(FEATURE),
        charts_latents.response_curve(response),
        charts_latents.separation_dots(row, 90, 0),
        margins_scatter([1.0, -1.0, 0.5], [1.0, 1.0, -0.5], ["a", "b", "c"], nasty, (HOSTILE["script"], "other")),
        run_curves({HOSTILE["script"]: [(0.0, 1.0)], "b": [(0.0, 2.0), (1.0, 3.0)]}, x="Seconds", y="Loss"),
        charts_response.waterfall(STEPS),
        charts_response.contribution_bars(STEPS[1:3]),
        charts_response.running_reward({"chosen": (nasty, [0.1, 0.2, 0.3]), "edited": (nasty[:1], [0.2])}),
        charts_response.removal_curves(removal),
        charts_response.reward_place(np.linspace(-1, 1, 101), {"chosen": 0.5, HOSTILE["script"]: -0.5}, 60),
        charts_spaces.space_picture("dense", points, [4, 6, 9], nasty, [wrapped(text) for text in nasty], dict.fromkeys(nasty, CHOSEN), [6]),
        charts_spaces.space_scale("sparse", points, [4, 6, 9], [1.0, 2.0, 3.0], "tokens", [wrapped(text) for text in nasty]),
        space_chart(),
    ]


ALL = every_chart()
NAMES = [f"{number} {chart.name}" for number, chart in enumerate(ALL)]


# --- every figure --------------------------------------------------------------------------------------------------


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for one in value.values() for text in strings(one)]
    return [text for one in value for text in strings(one)] if isinstance(value, list) else []


@pytest.mark.parametrize("chart", ALL, ids=NAMES)
def test_no_text_of_data_becomes_markup(chart: Chart) -> None:
    """plotly makes elements of a few tags in texts: only those that we wrote may be left."""
    made = chart.figure.to_plotly_json()
    for text in strings(json.loads(json.dumps(made, default=lambda value: np.asarray(value).tolist()))):
        left = text.replace("<b>", "").replace("</b>", "").replace("<br>", "").replace("<extra></extra>", "")
        assert "<" not in left, text


@pytest.mark.parametrize("chart", ALL, ids=NAMES)
def test_every_axis_has_a_name_every_figure_words_and_a_table(chart: Chart) -> None:
    layout = chart.figure.layout
    named = [layout.xaxis.title.text, layout.yaxis.title.text]
    assert named[0], "what runs along the figure is always named"
    assert named[1] or layout.yaxis.ticktext or isinstance(chart.figure.data[0].y[0], str), "marks without an axis name carry their own"
    assert len(chart.alt) > 20 and chart.rows and all(isinstance(row, dict) for row in chart.rows)


@pytest.mark.parametrize("chart", ALL, ids=NAMES)
def test_colours_come_from_the_theme_but_for_marks(chart: Chart) -> None:
    """A figure with a font colour or a background of its own could be read in one theme only."""
    layout = chart.figure.layout
    assert layout.font.color is None and layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)"


def test_a_page_of_a_figure_needs_no_network() -> None:
    page = charts_overview.accuracy_bars(EVALUATION).html()
    head, _, rest = page.partition("plotly.js v")
    assert "<script src" not in page and 'src="http' not in head + rest[-5000:] and "MathJax.js" not in page


def test_figures_load_no_streamlit() -> None:
    rooms = ("overview", "latents", "spaces", "response", "compare", "align", "shift", "runs")
    code = f"import sys; import {', '.join(f'workbench.{room}.charts' for room in rooms)}; sys.exit('streamlit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- single figures ------------------------------------------------------------------------------------------------


def test_accuracy_bars_begin_at_chance_and_carry_their_interval() -> None:
    chart = charts_overview.accuracy_bars(EVALUATION)
    bars = chart.figure.data[0]
    assert list(bars.y) == ["Length in tokens only", "Dense head on z", "SparseRM"], "SparseRM on top, the others by accuracy"
    assert np.add(bars.base, bars.x).tolist() == pytest.approx([45.0, 85.0, 80.0])
    assert list(bars.error_x.array) == pytest.approx([4.0] * 3) and list(bars.error_x.arrayminus) == pytest.approx([5.0] * 3)
    assert [row["n"] for row in chart.rows] == [50] * 3


def test_accuracy_without_test_pairs_says_so() -> None:
    nothing = {**entry(0.5), "mean": {"accuracy": None, "low": 0.0, "high": 1.0, "n": 0}}
    chart = charts_overview.accuracy_bars({"sparserm": nothing, "controls": {}})
    assert not chart.rows and "no test pairs" in chart.alt


def test_kinds_of_pairs_stand_beside_their_wording() -> None:
    rows = [
        {"kind": "a<b>", "by": by, "heads": 5, "accuracy": share, "low": share - 0.1, "high": share + 0.2, "n": 40}
        for by, share in (("SparseRM", 0.7), ("Wording only", 0.6))
    ]
    rows += [{**rows[0], "kind": f"kind {i}", "n": 10} for i in range(20)]
    chart = charts_overview.accuracy_kinds(rows)
    ours, wording = chart.figure.data
    assert ours.x[0] == pytest.approx(70.0) and wording.x[0] == pytest.approx(60.0) and abs(ours.y[0]) < 0.5 and abs(wording.y[0]) < 0.5
    assert (ours.error_x.arrayminus[0], ours.error_x.array[0]) == pytest.approx((10.0, 20.0))
    assert chart.figure.layout.yaxis.ticktext[0] == "a&lt;b&gt; (n = 40)" and len(ours.x) == charts_overview.MOST_KINDS
    assert chart.rows == rows, "the table has all"


def test_curve_marks_k_on_its_logarithmic_axis() -> None:
    chart = accuracy_curve([{"kind": "sparserm", "k": k, **accuracy(0.7)} for k in (8, 16, 64)], 16)
    line, text = chart.figure.layout.shapes[0], chart.figure.layout.annotations[0]
    assert line.x0 == 16 and text.x == pytest.approx(np.log10(16)), "plotly places shapes by value, texts by exponent"


def test_latents_are_clicked_by_their_number() -> None:
    chart = charts_latents.frequency_scatter(LATENTS, 100, 5)
    marks = {trace.name: trace for trace in chart.figure.data if trace.name}
    chosen, rejected = marks["Selected, chosen side (1)"], marks["Selected, rejected side (1)"]
    assert chosen.customdata[0][0] == 3 and (chosen.x[0], chosen.y[0]) == pytest.approx((10.0, 50.0)) and chosen.marker.color == CHOSEN
    assert rejected.customdata[0][0] == 5 and rejected.marker.color == REJECTED and rejected.marker.symbol != chosen.marker.symbol
    assert list(marks["Not selected (2)"].customdata) == [8, 9], "a number alone: there are thousands"
    assert "%{customdata}<" in marks["Not selected (2)"].hovertemplate and chosen.customdata[0][5] == plain(LATENTS["label"][0])
    assert (marks["Latent 5"].x[0], marks["Latent 5"].y[0]) == pytest.approx((40.0, 10.0))
    assert [row["latent_id"] for row in chart.rows] == [3, 5]


def test_significance_leaves_out_what_was_not_tested() -> None:
    chart = charts_latents.significance_scatter(LATENTS, 90)
    drawn = [int(np.ravel(one)[0]) for trace in chart.figure.data for one in trace.customdata]
    assert sorted(drawn) == [3, 5, 8]
    assert chart.figure.data[1].y[0] == pytest.approx(4.0) and chart.figure.data[1].x[0] == pytest.approx(40.0)


def test_logit_bars_show_white_space() -> None:
    axis = charts_latents.logit_bars(FEATURE).figure.layout.yaxis
    assert list(axis.ticktext) == ["↵", "␀", plain(HOSTILE["image"].replace(" ", "␣"), 24), "␣a"]


def test_waterfall_adds_up_and_prints_its_residual() -> None:
    chart = charts_response.waterfall(STEPS)
    bars = chart.figure.data[0]
    assert np.add(bars.base, bars.x).tolist() == pytest.approx([0.25, 0.75, 0.55, 0.55])
    assert list(bars.base) == pytest.approx([0.0, 0.25, 0.75, 0.0]), "each part begins where the one before ended"
    assert (bars.error_x.array[1], bars.error_x.arrayminus[1]) == pytest.approx((0.1, 0.1)) and bars.error_x.array[2] is None
    assert bars.customdata[1][0] == "7" and chart.rows[-1]["value"] == pytest.approx(0.0, abs=1e-12)
    off = charts_response.waterfall([*STEPS[:-1], Bar(label="This response", value=0.6, kind="end")])
    assert off.rows[-1]["value"] == pytest.approx(0.05) and "+5.0e-02" in off.figure.layout.xaxis.title.text


def test_running_reward_has_a_line_a_side_in_its_colour() -> None:
    figure = charts_response.running_reward({"rejected": (["b", "c"], [0.2, 0.3]), "chosen": (["d"], [0.5])}).figure
    assert [(line.name, line.line.color, list(line.x), list(line.y)) for line in figure.data] == [
        ("Rejected", REJECTED, [1, 2], [0.2, 0.3]),
        ("Chosen", CHOSEN, [1], [0.5]),
    ]
    assert figure.layout.showlegend


def test_a_lasso_marks_the_same_responses_in_both_pictures() -> None:
    points = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    palette = {"chosen": CHOSEN, "rejected": REJECTED}
    chart = charts_spaces.space_picture("dense", points, [4, 6, 9], ["chosen", "rejected", "chosen"], ["a", "b", "c"], palette, [9, 6])
    chosen, rejected = chart.figure.data
    assert [one[0] for one in chosen.customdata] == [4, 9] and list(chosen.selectedpoints) == [1] and list(rejected.selectedpoints) == [0]
    free = charts_spaces.space_picture("dense", points, [4, 6, 9], ["chosen", "rejected", "chosen"], ["a", "b", "c"], palette)
    assert free.figure.data[0].selectedpoints is None


def test_margins_say_who_flips() -> None:
    chart = margins_scatter([1.0, -1.0, 0.5, 0.0], [1.0, 1.0, -0.5, 0.1], ["a", "b", "c", "d"], ["t"] * 4, ("one", "two"))
    ids = {trace.name.split(" (")[0]: [one[0] for one in trace.customdata] for trace in chart.figure.data}
    assert ids == {"both agree": ["a"], "only two is right": ["b", "d"], "only one is right": ["c"]}, "a margin of 0 is wrong"
    held = margins_scatter([1.0, -1.0], [1.0, 1.0], ["a", "b"], ["t"] * 2, ("one", "two"), marked={"b"}, chosen="a").figure.data
    assert [trace.selectedpoints for trace in held[:2]] == [(), (0,)] and (held[3].x[0], held[3].y[0]) == (1.0, 1.0)


def test_whiskers_of_missing_ends_are_missing() -> None:
    bars = whiskers([1.0, 2.0], [0.5, None], [float("nan"), 2.5])
    assert bars["arrayminus"] == [0.5, None] and bars["array"] == [None, 0.5]


# --- texts ---------------------------------------------------------------------------------------------------------


def test_texts_lose_what_a_browser_would_obey() -> None:
    assert visible("a\x00b\u202ec\nd\te") == "a\ufffdb\ufffdc\nd\te"
    assert plain("<b>&amp;\n x", 60) == "&lt;b&gt;&amp;amp; x"
    assert len(visible(HOSTILE["long"], 50)) == 50 and visible("short", 50) == "short"
    assert wrapped("word " * 100, 20, 2).count("<br>") <= 2


def test_token_rows_keep_texts_whole_and_figures_short() -> None:
    row = TokenRow(texts=[HOSTILE["script"], "\u202e", " b"], values=[1.23456789, float("nan"), None], muted={2}, peak=0, caption="\x07c")
    sent = tokens.row_data(row)
    assert sent["texts"] == [HOSTILE["script"], "\ufffd", " b"] and sent["values"] == [1.235, None, None]
    assert (sent["muted"], sent["mark"], sent["caption"]) == ([2], 0, "\ufffdc") and json.dumps(sent, allow_nan=False)


@pytest.mark.parametrize("name", ["tokens", "marked"])
def test_the_components_write_texts_as_texts(name: str) -> None:
    """No way from a text to an element: neither is HTML parsed anywhere, nor are attributes made of texts."""
    code = (tokens.STATIC / f"{name}.js").read_text(encoding="utf-8")
    assert "textContent" in code and not any(
        name in code for name in ("innerHTML", "outerHTML", "insertAdjacent", "setHTML", "eval(", "document.write")
    )


def test_long_texts_are_cut_with_a_count() -> None:
    rows = [TokenRow(texts=["a"] * 5, values=[1.0] * 5), TokenRow(texts=["b"] * 5, values=[2.0] * 5)]
    kept, cut = tokens.within(rows, 7)
    assert [len(row.texts) for row in kept] == [5, 2] and cut == 3 and tokens.largest(kept) == 2.0 and tokens.largest([]) == 0.0


@pytest.mark.parametrize(
    ("value", "pick"),
    [
        ({"row": 0, "first": 1, "last": 2}, Pick(row=0, first=1, last=2)),
        ({"row": 0, "first": 2, "last": 1}, None),
        ({"row": 1, "first": 0, "last": 0}, None),
        ({"row": 0, "first": 0, "last": 3}, None),
        ({"row": 0, "first": True, "last": 1}, None),
        ("nonsense", None),
        (None, None),
    ],
)
def test_only_tokens_that_are_there_can_be_picked(value: Any, pick: Pick | None) -> None:
    assert tokens.pick_of(value, [TokenRow(texts=["a", "b", "c"], values=[0.0] * 3)]) == pick


# --- downloads -----------------------------------------------------------------------------------------------------

ROWS = [{"text": '=HYPERLINK("x")', "n": 1.5, "list": [1, 2]}, {"text": 'a "b"\nc,;d\x00', "n": float("nan"), "more": None}]


def test_csv_reads_back_and_holds_no_formula() -> None:
    read = list(csv.DictReader(io.StringIO(downloads.csv_bytes(ROWS).decode("utf-8-sig"))))
    assert [row["text"] for row in read] == ['\'=HYPERLINK("x")', 'a "b"\nc,;d\ufffd']
    assert [row["n"] for row in read] == ["1.5", ""] and read[0]["list"] == "[1, 2]" and set(read[1]) == {"text", "n", "list", "more"}


def test_jsonl_is_exact() -> None:
    read = [json.loads(line) for line in downloads.jsonl_bytes(ROWS).decode("utf-8").split("\n")[:-1]]
    assert read == [{**ROWS[0]}, {"text": ROWS[1]["text"], "n": None, "more": None}]
    assert downloads.jsonl_bytes([{"a": "\ud800"}]) and downloads.csv_bytes([]) and downloads.jsonl_bytes([]) == b""


def test_file_names_are_words() -> None:
    assert downloads.file_name("../../etc/passwd", "Demo · K 32", kind="csv") == "etc-passwd-demo-k-32.csv"


def test_selected_marks_say_what_they_stand_for() -> None:
    points = [{"customdata": [7]}, {"customdata": {"0": 9, "1": 1}}, {"customdata": [7]}, {"x": 1}, {"customdata": "id"}]
    assert downloads.selected({"selection": {"points": points}}) == ["7", "9", "id"] and downloads.selected(None) == []

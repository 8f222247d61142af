"""The Compare page: two reward models, their margins against each other, and the pairs on which they part."""

from __future__ import annotations

import streamlit as st

from core.types import Accuracy
from workbench import frame, models, state
from workbench.chart_base import number, visible
from workbench.charts import margins_scatter
from workbench.compare import KINDS, Comparison, compare
from workbench.downloads import download_rows, show_chart
from workbench.models import FittedModel
from workbench.response import one_line
from workbench.response_choice import segments
from workbench.response_page import LEFT, RIGHT

SCOPES = {"heldout": "Held out by both", "all": "All shared pairs"}
MOST_ROWS = 200
NAMES = ("first", "second")


def draw(first: FittedModel) -> None:
    others = [model for model in models.models() if model.id != first.id]
    if not others:
        frame.empty("There is one reward model only.", "Fit another one, with other data, another layer or another K, and see where the two part.")
        state.link("Launch a fit", "runs")
        return
    others.sort(key=lambda model: str(model.about["data"]) != str(first.about["data"]))  # those of the same pairs first
    titles = {model.id: model.title for model in others}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        with st.container(width=380):
            wanted = state.pick("Second reward model", list(titles), "compare_with", show=lambda name: visible(titles[name]))
        scope = segments("Pairs", SCOPES, "compare_pairs")
    second = next(model for model in others if model.id == wanted)
    found = compare(first, second, held_out=scope == "heldout")
    if not len(found):
        shared = len(compare(first, second, held_out=False))
        said = f"They share {shared:,} others: look at all shared pairs." if shared else "Compare models that were fitted on the same pairs."
        frame.empty("There are no such pairs.", said)
        return
    _figures(found)
    with st.container(horizontal=True, gap="medium"):
        with st.container(width=LEFT):
            _scatter(first, second, found)
        with st.container(width=RIGHT):
            _table(first, found)


def _figures(found: Comparison) -> None:
    with st.container(horizontal=True, gap="small", key="compare figures"):
        for name, one in zip(NAMES, found.accuracies, strict=True):
            _share(f"Accuracy, {name} (%)", one)
        difference = found.difference
        if difference is not None:
            ends = (100 * difference.low, 100 * difference.high)
            _figure("Second less first", f"{100 * difference.difference:+.1f} points", f"{ends[0]:+.1f} to {ends[1]:+.1f}", "paired by prompt")
        _share("Same preference (%)", found.agreement)
        rho = found.correlation
        if rho is not None:
            _figure("Correlation of margins", f"{rho.value:.2f}", f"{rho.low:.2f} to {rho.high:.2f}", "Spearman, 95 % interval over prompts")
        shared = found.shared_latents
        if shared is not None:
            _figure("Latents in common", f"{shared[0]:,}", f"of {shared[1]:,} and {shared[2]:,}", "both read the same SAE")


def _share(label: str, one: Accuracy) -> None:
    said = f"{100 * one.low:.1f} to {100 * one.high:.1f}, n = {one.n:,}"
    _figure(label, number(100 * one.accuracy, ".1f"), said, "95 % interval over prompts")


def _figure(label: str, value: str, below: str, help: str) -> None:
    st.metric(label, value, below, delta_color="off", delta_arrow="off", help=help)


def _scatter(first: FittedModel, second: FittedModel, found: Comparison) -> None:
    names = (f"first ({first.id[:4]})", f"second ({second.id[:4]})")
    chart = margins_scatter(found.margins[0].tolist(), found.margins[1].tolist(), found.pair_ids, found.prompts, names)
    picked = show_chart(
        chart, key=f"compare {first.id} {second.id} {len(found)}", name=f"{first.id[:4]}-{second.id[:4]}", select=("points", "lasso", "box")
    )
    if len(picked) > 1:
        st.button(
            f"Hold all lists to these {len(picked):,} pairs",
            icon=":material/filter_alt:",
            on_click=state.choose_pairs,
            args=(picked, "lasso in Compare"),
        )
    elif picked:
        _pair(found, picked[0])


def _pair(found: Comparison, pair_id: str) -> None:
    """The pair of a point, and the way to its explanation."""
    row = found.pair_ids.index(pair_id) if pair_id in found.pair_ids else None
    if row is None:
        return
    pair = found.first.pair(int(found.numbers[row]))
    with st.container(border=True, gap="small"):
        st.text(visible(found.prompts[row]))
        for name in ("chosen", "rejected"):
            st.caption(name.capitalize())
            st.text(visible(one_line(getattr(pair, name), 400)))
        state.link("Explain it", "response", pair=pair_id, response_edit=None, response_off=None)


def _table(first: FittedModel, found: Comparison) -> None:
    counts = {kind: len(found.rows_of(kind)) for kind in KINDS}
    kind = segments("Which", {kind: f"{said} ({counts[kind]:,})" if kind != "any" else said for kind, said in KINDS.items()}, "compare_kind")
    rows = found.table(found.rows_of(kind)[:MOST_ROWS])
    if not rows:
        st.caption("No pair: neither model is right where the other is wrong in this way.")
        return
    key = f"compare table {first.id} {state.get('compare_with')} {kind} {len(found)}"
    shown = {name: [visible(row[name]) if isinstance(row[name], str) else row[name] for row in rows] for name in rows[0] if name != "pair"}
    numbers = {name: st.column_config.NumberColumn(format="%.2f") for name in shown if name.startswith(("margin", "P("))}
    event = st.dataframe(shown, key=key, on_select="rerun", selection_mode="single-row", hide_index=True, height=400, column_config=numbers)
    chosen = event.get("selection", {}).get("rows", [])
    if chosen and chosen[0] < len(rows):
        _pair(found, rows[chosen[0]]["pair"])
    with st.container(horizontal=True):
        download_rows(
            found.table(found.rows_of(kind)), name=f"{first.id[:4]}-{state.get('compare_with')[:4]}", what=f"compare-{kind}", key="compare files"
        )
    if counts[kind] > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS:,} of {counts[kind]:,}; the files hold all of them.")

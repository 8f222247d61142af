"""The Compare page: two reward models, their margins against each other, and the pairs that they rank differently."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.reward.evaluation import Difference
from core.reward.head_words import counted_pairs, mean_of, shipped_head, shipped_seed
from core.text_safety import visible
from core.types import Accuracy
from workbench.compare.charts import margins_scatter
from workbench.compare.values import KINDS, Comparison, compare
from workbench.frame import layout, models, state
from workbench.frame.chart_base import number
from workbench.frame.downloads import download_rows, show_chart
from workbench.frame.models import FittedModel
from workbench.frame.pair_filter import choose_pairs, chosen_pairs
from workbench.response.response_view import LEFT, RIGHT
from workbench.response.values import one_line

SCOPES = {"heldout": "Held out by both", "all": "All shared pairs"}
MOST_ROWS = 200


def draw(first: FittedModel) -> None:
    others = [model for model in models.models() if model.id != first.id]
    if not others:
        layout.empty("There is one reward model only.", "Fit another one, with other data, another layer or another K, and see where the two part.")
        state.link("Launch a fit", "runs")
        return
    others.sort(key=lambda model: str(model.about["data"]) != str(first.about["data"]))  # those of the same pairs first
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        with st.container(width=380):
            second = _second(others)
        scope = state.segments("Pairs", SCOPES, "compare_pairs")
    if second is None:
        layout.empty("This link compares with a reward model that is not in this cache.", "Choose another one above.")
        return
    comparison = compare(first, second, held_out=scope == "heldout")
    if not len(comparison):
        shared = len(compare(first, second, held_out=False))
        hint = f"They share {shared:,} others: look at all shared pairs." if shared else "Compare models that were fitted on the same pairs."
        layout.empty("There are no such pairs.", hint)
        return
    only = chosen_pairs()
    held = comparison if only is None else comparison.only(only)
    if len(held):
        _figures(held)
    with st.container(horizontal=True, gap="medium", key="compare halves"):
        with st.container(width=LEFT):
            _scatter(first, second, comparison, None if only is None else only.pair_ids)
        with st.container(width=RIGHT):
            if len(held):
                _table(first, held)
            else:
                layout.empty("None of the selected pairs is among these.", "Clear the selection above, or look at all shared pairs.")
            _pair(comparison, state.get("pair"))


def _second(others: list[FittedModel]) -> FittedModel | None:
    """The chosen second model, else the first of these; None for a link to one that is not here."""
    titles = {model.id: model.title for model in others}
    chosen = state.settle("compare_with", list(titles), others[0].id)
    state.redraw_if_chosen()
    shown = chosen if chosen in titles else None
    widget = state.url_widget("pick compare_with", shown, lambda picked: state.choose(compare_with=picked))
    show: Any = {"format_func": lambda name: visible(titles.get(name, name)), "placeholder": "Choose a reward model"}
    st.selectbox("Second reward model", list(titles), **show, **widget)
    return next((model for model in others if model.id == shown), None)


def _figures(comparison: Comparison) -> None:
    st.markdown(_accuracies(comparison))
    st.caption("95 % intervals over prompts; the two are paired by prompt. What follows, too, is of the shipped heads, which give the rewards.")
    with st.container(horizontal=True, gap="small", key="compare figures"):
        _share("Same preference (%)", comparison.agreement)
        rho = comparison.correlation
        if rho is not None:
            _figure(
                "Correlation of margins",
                f"{rho.value:.2f}",
                f"{rho.low:.2f} to {rho.high:.2f}, n = {len(comparison):,}",
                "Spearman, of the shipped heads; 95 % interval over prompts",
            )
        shared = comparison.shared_latents
        if shared is not None:
            _figure("Latents in common", f"{shared[0]:,}", f"of {shared[1]:,} and {shared[2]:,}", "both read the same SAE")


def _accuracies(comparison: Comparison) -> str:
    """A table: like is compared with like, mean over the heads with mean, shipped head with shipped head."""
    rows = []
    both = (comparison.first, comparison.second)
    means = [mean_of(len(margins)) for margins in comparison.margins_by_head]
    shipped = [shipped_head(shipped_seed(of.parts.method)) for of in both]
    for accuracies, heads, difference in (
        (comparison.mean_accuracies, means, comparison.mean_difference),
        (comparison.accuracies, shipped, comparison.difference),
    ):
        cells = [f"{_percent(accuracy)}, {of_heads}" for accuracy, of_heads in zip(accuracies, heads, strict=True)]
        rows.append([*cells, "–" if difference is None else _points(difference)])
    what = f"Accuracy on {counted_pairs(len(comparison), comparison.split)}" + (", training ones among them" if comparison.split == "shared" else "")
    head = [what, "First", "Second", "Second less first"]
    lines = [head, ["---"] * len(head), *(["Means over heads", *rows[0]], ["Shipped heads", *rows[1]])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(accuracy: Accuracy) -> str:
    return f"**{100 * accuracy.accuracy:.1f} %** ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"


def _points(difference: Difference) -> str:
    return f"**{100 * difference.difference:+.1f} points** ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def _share(label: str, share: Accuracy) -> None:
    interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}, n = {share.n:,}"
    _figure(label, number(100 * share.accuracy, ".1f"), interval, "95 % interval over prompts")


def _figure(label: str, value: str, below: str, help: str) -> None:
    st.metric(label, value, below, delta_color="off", delta_arrow="off", help=help)


def _scatter(first: FittedModel, second: FittedModel, comparison: Comparison, marked: frozenset[str] | None) -> None:
    names = (f"first ({first.id[:4]})", f"second ({second.id[:4]})")
    margins = (comparison.margins[0].tolist(), comparison.margins[1].tolist())
    chart = margins_scatter(*margins, comparison.pair_ids, comparison.prompts, names, marked=marked, chosen=state.get("pair"))
    key = f"compare {first.id} {second.id} {len(comparison)}"
    show_chart(chart, key=key, name=f"{first.id[:4]}-{second.id[:4]}", select=("points", "lasso", "box"), on_select=_picked)
    st.caption("Click a point to read its pair. A lasso holds all lists to its pairs, here and on every page.")


def _picked(pair_ids: list[str]) -> None:
    """A click chooses a pair; a lasso holds every list to its pairs."""
    if len(pair_ids) == 1:
        state.choose(pair=pair_ids[0])
    elif pair_ids:
        choose_pairs(pair_ids, "lasso in Compare")


def _pair(comparison: Comparison, pair_id: str) -> None:
    """The chosen pair, and the way to its explanation."""
    if pair_id not in comparison.pair_ids:
        return
    row = comparison.pair_ids.index(pair_id)
    pair = comparison.first.pair(int(comparison.numbers[row]))
    with st.container(border=True, gap="small", key="compare pair"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.text(visible(comparison.prompts[row]), width="stretch")
            state.link("Explain it", "response", pair=pair_id)
        for name in ("chosen", "rejected"):
            st.caption(name.capitalize())
            st.text(visible(one_line(getattr(pair, name), 400)))


def _table(first: FittedModel, comparison: Comparison) -> None:
    counts = {kind: len(comparison.rows_of(kind)) for kind in KINDS}
    kind = state.segments("Which", {kind: f"{title} ({counts[kind]:,})" if kind != "any" else title for kind, title in KINDS.items()}, "compare_kind")
    rows = comparison.table(comparison.rows_of(kind)[:MOST_ROWS])
    if not rows:
        st.caption("No pair: neither model is right where the other is wrong in this way.")
        return
    ids = [row["pair"] for row in rows]
    chosen = state.get("pair") if state.get("pair") in ids else ""
    name = f"compare table {first.id} {state.get('compare_with')} {kind} {len(comparison)}"
    key = state.table_key(name, chosen)
    shown = {name: [visible(row[name]) if isinstance(row[name], str) else row[name] for row in rows] for name in rows[0] if name != "pair"}
    numbers = {name: st.column_config.NumberColumn(format="%.2f") for name in shown if name.startswith(("margin", "P("))}
    st.dataframe(
        shown,
        key=key,
        on_select=lambda: _marked(name, key, ids),
        selection_mode="single-row",
        selection_default={"selection": {"rows": [ids.index(chosen)] if chosen else []}},
        hide_index=True,
        height=320,
        column_config=numbers,
    )
    with st.container(horizontal=True):
        download_rows(
            comparison.table(comparison.rows_of(kind)),
            name=f"{first.id[:4]}-{state.get('compare_with')[:4]}",
            what=f"compare-{kind}",
            key="compare files",
        )
    if counts[kind] > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS:,} of {counts[kind]:,}; the files hold all of them.")


def _marked(name: str, key: str, ids: list[str]) -> None:
    """The pair that a person marked in the table."""
    rows = st.session_state[key]["selection"]["rows"]
    if rows and rows[0] < len(ids) and state.table_shows(name, key, ids[rows[0]]):
        state.choose(pair=ids[rows[0]])

"""The Latents page, drawn: the selected latents among all, what another K would select, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import streamlit as st

from core.config import LatentsRunConfig
from core.errors import MissingError
from core.statistics.significance import TOO_RARE
from workbench.frame import run_panel, state
from workbench.frame.accuracy import accuracy_curve
from workbench.frame.downloads import download_rows, show_chart
from workbench.frame.models import FittedModel
from workbench.latents import charts
from workbench.latents import values as latents
from workbench.latents.values import SelectedLatents

VIEWS = {"frequency": "Frequencies", "significance": "Significance"}
SIDES = {"both": "Both sides", "chosen": "Chosen side", "rejected": "Rejected side"}
POINTS = 100.0


def being_prepared(model: FittedModel) -> None:
    """How far the run is that makes the pages of the selected latents, while it is queued or works."""
    run = run_panel.find("latents", LatentsRunConfig(model=str(model.path)))
    if run is not None and run.live():
        st.caption("The pages of these latents are being prepared: texts that each is active on, promoted tokens, closest latents.")
        run_panel.show(run)


def chosen_k(model: FittedModel) -> int | None:
    """The K that the URL names, if it is on the model's curve; None for the K of the fit."""
    asked = state.get("latents_k")
    return int(asked) if asked.isdecimal() and int(asked) in latents.possible_ks(model) else None


def overview(model: FittedModel, selected: SelectedLatents) -> None:
    """Scatter and curve side by side, and the figures that show how far to trust the selection."""
    left, right = st.columns([3, 2], gap="medium")
    with left:
        view, chosen = state.segments("Axes", VIEWS, "latents_view", label_visibility="visible"), state.get("latent")
        ring = int(chosen) if chosen.isdecimal() else None
        marks = selected.marks
        if view == "frequency":
            chart = charts.frequency_scatter(marks, selected.n_pairs, ring)
        else:
            chart = charts.significance_scatter(marks, selected.n_prompts, ring)
        opened = show_chart(chart, key=f"latents {view}", name=model.name, select=("points",))
    with right:
        _k_slider(model, selected)
        curve(model, selected.k)
        _figures(model, selected)
    if opened:
        state.go("latent", latent=opened[0])


def _k_slider(model: FittedModel, selected: SelectedLatents) -> None:
    ks, fitted = latents.possible_ks(model), int(model.about["selection"]["k"])
    if len(ks) > 1:
        help_ = f"The model was fitted with K = {fitted}. Another K shows who would be selected; fit again to use it."
        widget = state.url_widget("latents k", selected.k, lambda k: state.choose(latents_k=None if k == fitted else k))
        st.select_slider("K, latents a side", ks, help=help_, **widget)


def curve(model: FittedModel, k: int) -> None:
    """Accuracy against K, if the fit measured it."""
    try:
        points = model.curve
    except MissingError:
        points = []
    if not any(point["accuracy"] is not None for point in points):
        st.caption("Accuracy against K was not measured: the fit was asked for no other K, or had no validation pairs.")
        return
    show_chart(accuracy_curve(points, k), key="latents curve", name=model.name)


def _figures(model: FittedModel, selected: SelectedLatents) -> None:
    about, prompts = model.about["selection"], f"{selected.n_prompts:,} prompts"
    stable = [row["stability"] for row in selected.rows if row["stability"] is not None]
    held = [_sign(row) * POINTS * row["held_out"] for row in selected.rows if row["held_out"] is not None]
    seen = [_sign(row) * POINTS * row["separation"] for row in selected.rows]
    with st.container(horizontal=True, gap="small"):
        help_ = f"Latents active often enough to be tested: sign test over {prompts}, false discoveries held to 5 %."
        st.metric("q < 0.05", f"{about['n_discoveries']:,} of {about['n_live']:,}", help=help_)
        if stable:
            help_ = (
                f"Mean share of bootstrap resamples of the {prompts} in which a selected latent is selected again. Below 80 % the choice is unstable."
            )
            st.metric("Selected again", f"{POINTS * mean(stable):.0f} %", help=help_)
        if held and seen:
            help_ = (
                f"Mean separation of the {len(held):,} selected latents on {_held_out(model)}held-out pairs, each on its own side. "
                "A fall from training is the winner's curse."
            )
            fall = round(mean(held) - mean(seen), 1) + 0.0  # never -0.0
            change, sure = f"{fall:+.1f} to training", latents.held_out_separation(model) if selected.fitted else None
            if sure is not None:
                help_ += f" In brackets: 95 % interval over {sure.n_prompts:,} prompts."
                change = f"[{POINTS * sure.low:.1f}, {POINTS * sure.high:.1f}], {change}"
            st.metric("Held out", f"{mean(held):.1f} points", change, delta_color="off", delta_arrow="off", help=help_)


def _held_out(model: FittedModel) -> str:
    try:
        return f"{model.frequencies.n_pairs_held_out:,} "
    except MissingError:
        return ""


def _sign(row: Mapping[str, Any]) -> int:
    return 1 if row["side"] == "chosen" else -1


# --- the table -----------------------------------------------------------------------------------------------------


def table(model: FittedModel, selected: SelectedLatents) -> None:
    """The selected latents, searched by label or number; a row opens its page."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        asked = _search()
        side = state.pick("Side", list(SIDES), "latents_side", show=SIDES.__getitem__)
        st.space("stretch")
        rows = matching(selected.rows, asked, side)
        download_rows(rows, name=model.name, what="latents", key="latents")
    if not rows:
        st.caption("No selected latent matches.")
        return
    event = st.dataframe(
        shown(rows), column_config=columns(selected), hide_index=True, key="latents table", on_select="rerun", selection_mode="single-row"
    )
    further = "" if selected.fitted else " Weight and detection are known for the latents of the fitted K only."
    st.caption(f"{len(rows)} of {len(selected.rows)} selected latents. Tick a row, or click a point above, to open a latent.{further}")
    picked = event.get("selection", {}).get("rows", [])
    if picked and picked[0] < len(rows):
        state.go("latent", latent=rows[picked[0]]["latent_id"])


def _search() -> str:
    widget = state.url_widget("latents search", state.get("latents_search"), lambda words: state.choose(latents_search=words))
    st.text_input("Search", placeholder="label or number", max_chars=200, width=260, **widget)
    return state.get("latents_search")


def matching(rows: Sequence[Mapping[str, Any]], asked: str, side: str) -> list[Mapping[str, Any]]:
    """The rows of a side whose label or number contains `asked`."""
    wanted = asked.strip().casefold()
    of_side = [row for row in rows if side not in ("chosen", "rejected") or row["side"] == side]
    return [row for row in of_side if wanted in str(row["label"]).casefold() or wanted in str(row["latent_id"])]


def shown(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The table's columns, shares in percent. Each separation is a number to sort by, with its interval as text beside
    it.
    """
    table: dict[str, list[Any]] = {"Latent": [row["latent_id"] for row in rows]}
    table["Label"] = [row["label"] or "no label yet" for row in rows]
    table["Side"] = [row["side"] for row in rows]
    table["Separation"] = [POINTS * row["separation"] for row in rows]
    table["95 %"] = [_range(row) for row in rows]
    table["Held out"] = [None if row["held_out"] is None else POINTS * row["held_out"] for row in rows]
    table["q"] = [row["q_value"] for row in rows]
    table["Stability"] = [row["stability"] for row in rows]
    table["Detection"] = [row["detection_auroc"] if (row["n_active"] or 0) >= TOO_RARE else None for row in rows]
    table["Weight"] = [row["weight"] for row in rows]
    table["± heads"] = [row["weight_deviation"] for row in rows]
    table["Active in"] = [row["n_active"] for row in rows]
    table["Label from"] = [row["label_source"] for row in rows]
    return table


def _range(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None or row["high"] is None else f"{POINTS * row['low']:+.1f} to {POINTS * row['high']:+.1f}"


def columns(selected: SelectedLatents) -> dict[str, Any]:
    """The format and the meaning of each column."""
    number = st.column_config.NumberColumn
    return {
        "Latent": number(width="small", format="%d"),
        "Label": st.column_config.TextColumn(
            width="medium", help="Names what the latent is active on. Where Detection is below 0.8 the projection may mean something else."
        ),
        "Side": st.column_config.TextColumn(width="small", help="On which responses it is more often active."),
        "Separation": number(format="%+.1f", help=f"mu_w - mu_l in percentage points, over {selected.n_pairs:,} training pairs"),
        "95 %": st.column_config.TextColumn(help="Bootstrap interval of the separation, over prompts"),
        "Held out": number(format="%+.1f", help="The same on validation pairs, which the selection has not seen"),
        "q": number(format="%.1e", help=f"Sign test over {selected.n_prompts:,} prompts, Benjamini-Hochberg"),
        "Stability": st.column_config.ProgressColumn(
            format="percent", min_value=0, max_value=1, help="Share of bootstrap resamples in which it is selected again"
        ),
        "Detection": number(
            format="%.2f", help="AUROC: how well the projection tells active from inactive responses. Empty: active too rarely to say."
        ),
        "Weight": number(format="%.3f", help="Mean size of its contribution to the reward of held-out responses"),
        "± heads": number(format="%.3f", help="Deviation of the weight over the heads of all seeds"),
        "Active in": number(format="localized", help="Training responses in which it is active"),
    }

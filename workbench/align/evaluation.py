"""The section of evaluation: the policy's figures round by round, warnings by a stated rule, and the latents that
drift.

`headline` draws the first line of the whole page, above the sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from core.align.overoptimisation import DRIFT, RULE
from core.align.records import RoundRecord
from core.explain.latent_names import name_in_list
from core.text_safety import visible
from workbench.align import figures as align_figures
from workbench.align import values as align
from workbench.align.charts import drift_dots, policy_curve
from workbench.align.choice import choose_round
from workbench.align.figures import FIGURES, SHOWN_FIRST, FigureSpec, Point, Result, evaluated
from workbench.align.pair_view import labels_of
from workbench.align.values import OpenAlignment
from workbench.frame import state
from workbench.frame.downloads import download_rows, show_chart
from workbench.response.response_view import choose_clicked_latent

# The first four of these that were measured: as many fit beside one another on a narrow screen.
HEADLINE, MOST = ("accuracy", "mc1_unseen", "reward", "kl_per_token", "length"), 4
COLUMNS = 3


def headline(opened: OpenAlignment) -> None:
    """The chosen round of a finished alignment, else the newest, in figures against the base model, with its warnings."""
    rounds = evaluated(opened.rounds)
    if not rounds:
        return
    result = align_figures.result_of(opened.entry)
    chosen = rounds[-1].round if result is None else result.chosen
    curves = align_figures.curves(rounds)
    points = [(FIGURES[name], point) for name in HEADLINE if (point := align_figures.point_of(curves, name, chosen)) is not None]
    st.markdown(f"**{_which(opened, result, chosen)}**")
    with st.container(horizontal=True, gap="small", key="align headline"):
        for spec, point in points[:MOST]:
            st.metric(spec.short, spec.value_text(point), _beside(spec, point), delta_color="off", delta_arrow="off", border=True)
    if result is not None:
        early = f" It ended early: {result.stopped}." if result.stopped else ""
        st.caption(visible(f"The round is chosen by {result.choice}. The figures above are measured on held-out data.{early}", 500))
    _warn([round for round in rounds if round.round == chosen])


def _which(opened: OpenAlignment, result: Result | None, chosen: int) -> str:
    """The round whose figures are shown first, in words."""
    total = opened.entry.config.rounds
    if result is None:
        return f"So far: round {chosen} of {total}" if chosen else "So far: the base model, before any round"
    return f"Chosen: round {chosen} of {total}" if chosen else "Chosen: the base model, since no round did better on validation pairs"


def _warn(rounds: Sequence[RoundRecord]) -> None:
    """The warnings of these rounds, in the engine's words."""
    warnings = align_figures.warnings_of(rounds)
    if warnings:
        st.warning("\n\n".join(map(visible, warnings)), icon=":material/warning:")


def _beside(spec: FigureSpec, point: Point) -> str:
    """The paired difference to round 0 with its interval; of round 0 the figure's own interval."""
    if point["difference"]:
        return f"{spec.interval_text(point['difference'], '+.3g')} on the base, n = {point['n']:,}"
    return f"{spec.interval_text(point).partition('(')[2].rstrip(')')}, n = {point['n']:,}"


# --- the section -----------------------------------------------------------------------------------------------------


def draw(opened: OpenAlignment) -> None:
    """The whole section."""
    rounds = evaluated(opened.rounds)
    if not rounds:
        st.caption("The base model is being evaluated; its figures are shown here next.")
        return
    result, curves = align_figures.result_of(opened.entry), align_figures.curves(rounds)
    show_all = _all_figures(len(curves) > len([name for name in SHOWN_FIRST if name in curves]))
    shown = [name for name in curves if show_all or name in SHOWN_FIRST]
    key = f"align evaluation {opened.entry.id}"
    curve_grid({name: {opened.entry.arm: curves[name]} for name in shown}, key=key, chosen=result.chosen if result else None)
    with st.container(horizontal=True, vertical_alignment="center"):
        note = f"Filled marks: the paired 95 % interval of the difference to the base model lies clear of zero. {align_figures.mc_note(rounds[0])}"
        st.caption(note, width="stretch")
        download_rows(align_figures.rows(curves), name=opened.entry.id, what="evaluation", key="align evaluation files")
    st.markdown("##### Is the reward being won at the price of something else?")
    _warn(rounds)
    st.caption(f"The rule, stated beforehand: {RULE}")
    _drift(opened, rounds)


def _all_figures(more: bool) -> bool:
    """A switch for the figures of less use, if there are any. Returns whether they are shown."""
    if not more:
        return False
    shown = bool(state.get("align_all"))
    st.toggle("All figures", **state.url_widget("align all", shown, lambda on: state.choose(align_all="1" if on else None)))
    return shown


def curve_grid(series: Mapping[str, Mapping[str, Sequence[Point]]], *, key: str, chosen: int | None = None) -> None:
    """A chart for each figure, three beside one another; `series`: figure -> alignment -> its points."""
    names = list(series)
    for start in range(0, len(names), COLUMNS):
        for column, name in zip(st.columns(COLUMNS, gap="small"), names[start : start + COLUMNS], strict=False):
            spec = FIGURES[name]
            with column:
                st.markdown(f"###### {spec.title}")
                chart = policy_curve(spec.title, spec.unit, series[name], of=spec.of, chosen=chosen, scale=spec.scale)
                show_chart(chart, key=f"{key} {name}", name=key.rpartition(" ")[2])


def _drift(opened: OpenAlignment, rounds: Sequence[RoundRecord]) -> None:
    """The latents whose mean projection moved most against the base model, in the answers to held-out prompts."""
    later = [round for round in rounds if align_figures.drift_of(round)]
    if not later:
        st.caption("The latents that drift are shown after round 1.")
        return
    st.markdown("##### The latents that drift most")
    round = choose_round(later)
    model = align.measuring_model(opened.entry)
    labels = labels_of(model)
    drifts = align_figures.drift_of(round)
    rows = [{**drift, "label": name_in_list(int(drift["latent_id"]), labels.get(int(drift["latent_id"])))} for drift in drifts]
    key = f"align drift {opened.entry.id} {round.round}"
    chart = drift_dots(rows, DRIFT.capitalize())
    choose_clicked_latent(key, show_chart(chart, key=key, name=opened.entry.id, select=("points",) if model else ()))
    wanted = state.get("latent")
    if model is not None and wanted in {str(drift["latent_id"]) for drift in drifts}:
        state.link("Open the chosen latent", "latent", latent=wanted, model=model.id)

"""What is chosen, in numbers: the word with the latents that read it, and the latent with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import streamlit as st

from core.explain.explanation import INACTIVE
from core.explain.latent_names import name_in_list
from core.explain.text_units import LEVELS
from core.latents.label_book import labels_of
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.chart_base import interval, number, percent
from workbench.frame.downloads import show_chart
from workbench.frame.text_points import point_of
from workbench.latents.values import detection_interval
from workbench.response.charts import contribution_bars
from workbench.response.response_view import NAMES, TITLES, ResponseView, choose_latent
from workbench.response.splits import chosen_unit, reader_bars, units_of
from workbench.response.values import latent_row, one_line, row_of
from workbench.response.why import marks_of

LATENTS_HEIGHT = 330


def draw(view: ResponseView) -> None:
    """The chosen word's card, and the chosen latent's."""
    _unit_card(view)
    _latent_card(view)


def _unit_card(view: ResponseView) -> None:
    """What the chosen word, sentence or line adds, and which latents read it; without a choice the strongest sentence."""
    point, shade = point_of(state.get("response_word")), state.get("response_shade")
    level = "sentence" if point is None else shade if shade in LEVELS else "word"
    of_side = units_of(view, level)
    chosen = chosen_unit(view, of_side, point)
    if chosen is None:
        return
    side, number = chosen
    units = of_side[side]
    start, stop = units.spans[number]
    what = "margin" if view.name == "margin" else "reward"
    with st.container(key="response unit", border=True, gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center"):
            which = f"Strongest {level}" if point is None else level.capitalize()
            st.caption(
                f"{which} of the {TITLES[side].lower()}: **{units.values[number]:+.3f}** to the {what}, read by these latents", width="stretch"
            )
            if point is not None:
                st.button("Clear", key="response unit clear", type="tertiary", on_click=state.clear, args=("response_word",))
        st.text(visible(one_line(view.columns[side].response[start:stop], 200)))
        key = f"response unit {view.pair_id} {view.name} {level} {side} {start}"
        bars, marks = reader_bars(units, number, view.explanation.attribution.latent_ids, labels_of(view.model))
        with st.container(height=LATENTS_HEIGHT, border=False):
            chart = contribution_bars(bars, x=f"Adds to the {what}", marks=marks)
            show_chart(chart, key=key, name=view.model.name, select=("points",), on_select=partial(choose_latent_of, view))


def choose_latent_of(view: ResponseView, picked: list[str]) -> None:
    """Chooses the latent of a clicked bar."""
    if picked:
        choose_latent(view, int(picked[0]))


def _latent_card(view: ResponseView) -> None:
    """What the chosen latent did here, and what the selection measured of it."""
    wanted = state.get("latent")
    if not wanted:
        st.caption("Click a latent's bar to see its evidence and its share of every word.")
        return
    latent = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 10 else -1
    facts = {side: row_of(explanation, latent) for side, explanation in view.columns.items()}
    with st.container(key="response latent", border=True, gap="small"):
        if not any(facts.values()):
            st.caption("This reward model does not read the chosen latent: it is not among the selected ones.")
        else:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.text(visible(name_in_list(latent, labels_of(view.model).get(latent))), width="stretch")
                state.link("Its page", "latent", latent=latent)
            st.markdown(marks_of(view, latent))
            st.markdown(facts_table(facts))
            st.caption(evidence_words(latent_row(view.model, latent), detection_interval(view.model, latent)))


ROWS = {
    "contribution": "Contribution",
    "prompt_part": "… prompt part",
    "response_part": "… response part",
    "projection": "Projection (mean)",
    "activation": "SAE activation",
    "at_mean": "Held at its mean",
    "removed": "With this latent ablated",
}


def facts_table(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of our words and numbers, a column a response."""
    lines = ["| | " + " | ".join(NAMES[side] for side in facts) + " |", "|---|" + "--:|" * len(facts)]
    for name, label in ROWS.items():
        lines.append(f"| {label} | " + " | ".join(_fact(name, row) for row in facts.values()) + " |")
    return "\n".join(lines)


def _fact(name: str, row: Mapping[str, Any]) -> str:
    value = row.get(name)
    if value is None:
        return "inactive" if row.get("removal") == INACTIVE and name == "removed" else "–"
    if name == "contribution":
        return f"{value:+.3f} ± {row['deviation']:.3f}"
    if name == "projection":
        return f"{value:.2f} ({row['baseline']:.2f})"
    return f"{value:.2f}" if name == "activation" else f"{value:+.3f}"


def evidence_words(row: Mapping[str, Any], detection: tuple[float, float, int] | None = None) -> str:
    """What the selection measured of a latent, in one line of our words. `detection`: interval and n of its detection
    AUROC.
    """
    if not row:
        return "± is the deviation over the heads."
    points = {name: None if row.get(name) is None else 100 * row[name] for name in ("separation", "low", "high", "held_out")}
    low, high, n = detection or (None, None, 0)
    auroc = interval(row.get("detection_auroc"), low, high, ".2f") + (f", n = {n:,} responses" if detection else "")
    return ", ".join(
        [
            f"Separation {interval(points['separation'], points['low'], points['high'], '+.1f')} points in training",
            f"{number(points['held_out'], '+.1f')} held out, detection AUROC {auroc}",
            f"selected again in {percent(row.get('stability'))} of resamples. ± is the deviation over the heads.",
        ]
    )

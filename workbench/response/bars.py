"""The bars of the Response page: from the average training response to the reward, or from rejected to chosen, by sentence, by
line or by latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import streamlit as st

from core.explain.bar_pages import Stretch, placed_bars, stretches
from core.explain.waterfall import waterfall_steps
from core.latents.label_book import labels_of
from workbench.frame import state
from workbench.frame.downloads import show_chart
from workbench.frame.text_points import Point, point_of
from workbench.response.charts import waterfall
from workbench.response.response_view import ResponseView, choose_clicked_latent
from workbench.response.splits import bar_marks, words_of

KINDS = {"sentence": "By sentence", "line": "By line", "latent": "By latent"}
UNIT_NAMES = {"sentence": "Sentences", "line": "Lines"}


def draw(view: ResponseView) -> None:
    """The bars; a click on one chooses its sentence, which the texts then mark, or its latent."""
    kinds = KINDS if words_of(view) else {"latent": KINDS["latent"]}
    asked = state.get("response_shade") if state.get("response_shade") in ("line", "latent") else "sentence"
    kind = state.segments("Bars", kinds, "response_bars", default=asked) if len(kinds) > 1 else "latent"
    key = f"response waterfall {view.pair_id} {view.name} {kind}"
    if kind == "latent":
        labels = labels_of(view.model)
        steps = waterfall_steps(view.explanation, labels)
        chart = waterfall(steps, marks=bar_marks(view, steps, labels))
        choose_clicked_latent(key, show_chart(chart, key=key, name=view.model.name, select=("points",)))
        if not all(bar.agreed for bar in steps):
            st.caption("Latents whose sign differs between the heads of different seeds are not named in the sentence.")
        return
    placed = placed_bars(view.explanation, kind, side=view.response_name)
    ids = [str(Point(pane=bar.side, at=bar.at)) if bar.side else "" for bar in placed]
    pages = stretches([bar.bar for bar in placed])
    at = _page(pages, ids)
    stretch = pages[at]
    if len(pages) > 1:
        _pager(pages, at, UNIT_NAMES[kind])
    shown = ["" if place is None else ids[place] for place in stretch.places]
    chart = waterfall(stretch.bars, ids=shown, marks=bar_marks(view, stretch.bars, {}))
    show_chart(chart, key=f"{key} {at}", name=view.model.name, select=("points",), on_select=partial(_choose_unit, kind))


def _page(pages: Sequence[Stretch], ids: Sequence[str]) -> int:
    """The stretch asked for, else the one that holds the chosen unit, else the first."""
    asked = state.get("response_stretch")
    if asked.isascii() and asked.isdecimal() and len(asked) < 6:
        return min(max(int(asked), 1), len(pages)) - 1
    point = point_of(state.get("response_word"))
    places = [place for place, name in enumerate(ids) if point is not None and (at := point_of(name)) and at.pane == point.pane and at.at <= point.at]
    return next((number for number, page in enumerate(pages) if places and places[-1] in page.places), 0)


def _pager(pages: Sequence[Stretch], at: int, units: str) -> None:
    """Where the stretch lies in the answer, and the ways to the ones before and after."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        _step("Back", "chevron_left", at, at > 0)
        st.caption(f"{units} {pages[at].first:,} to {pages[at].last:,} of {pages[at].n_parts:,}", width="content")
        _step("Next", "chevron_right", at + 2, at + 1 < len(pages))


def _step(word: str, icon: str, to: int, there: bool) -> None:
    shown: Any = {"icon": f":material/{icon}:", "type": "tertiary", "disabled": not there}
    st.button(word, key=f"response stretch {word}", on_click=state.choose, kwargs={"response_stretch": to}, **shown)


def _choose_unit(kind: str, picked: list[str]) -> None:
    if picked:
        state.choose(response_word=picked[0], response_shade=kind, response_stretch=None)

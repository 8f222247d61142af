"""The Shift page, drawn: cosine similarities of generated answers to the training data beside their controls, and both
spaces as pictures.
"""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from core.align.records import SHIFT, RoundRecord
from core.explain.shift import Shift
from core.text_safety import visible
from workbench.align import live as align_live
from workbench.align import values as align
from workbench.align.choice import choose, choose_round
from workbench.align.pair_view import pair_card, show_whole
from workbench.align.values import Entry
from workbench.frame import state
from workbench.frame.downloads import download_rows, show_chart
from workbench.frame.layout import empty
from workbench.shift import values as shift
from workbench.shift.charts import lead_curves, similarity_curves
from workbench.shift.values import COLOURS, MEASURES, PALETTES, SCALES, ShiftPoints
from workbench.spaces.charts import SPACES, space_picture


def draw() -> None:
    """The whole page."""
    known = align.entries()
    if not known:
        empty("No policy has been aligned yet.", "Shift compares what a policy generates, round by round, with what the reward model was trained on.")
        state.link("Start an alignment", "align")
        return
    entry = choose(known, new=False)
    if entry is None:
        empty("This link names an alignment that is not in this cache.", "It may have been removed, or made on another machine.")
        st.button("Show the newest instead", type="primary", on_click=state.clear, args=("align_open",))
        return
    align_live.show(entry)
    rounds = [round for round in entry.rounds if SHIFT in round.steps]
    if not rounds:
        _not_yet(entry)
        return
    similarities(entry, shift.shifts(rounds))
    pictures(entry, rounds)


def _not_yet(entry: Entry) -> None:
    if entry.live:
        st.caption("Shift is the last step of a round. The first figures are shown here when round 1 is done.")
    else:
        empty("No round of this alignment was compared with the training data.", "It ended before the last step of round 1.")
        state.link("See how far it came", "align")


def similarities(entry: Entry, shifts: Mapping[int, Shift]) -> None:
    """The chosen cosine similarity, and the sparse space's lead over the others."""
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        measure = state.segments("Similarity", {name: MEASURES[name][0] for name in shift.measures(shifts)}, "shift_measure")
        scale = state.segments("Scale", {name: title for name, (title, _) in SCALES.items()}, "shift_scale")
    st.markdown(f"**{shift.verdict(shifts, measure, scale)}**")
    what = f"{MEASURES[measure][1]}; {SCALES[scale][1]}"
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.markdown("##### Cosine similarity to the training data")
        chart = similarity_curves(shift.series(shifts, measure, scale), MEASURES[measure][0].lower())
        show_chart(chart, key=f"shift {entry.id} {measure} {scale}", name=entry.id)
    with right:
        st.markdown("##### Lead of the sparse space")
        chart = lead_curves(shift.series(shifts, measure, scale, lead=True))
        show_chart(chart, key=f"shift lead {entry.id} {measure} {scale}", name=entry.id)
    with st.container(horizontal=True, vertical_alignment="center"):
        controls = "Random directions keep cosines; random decoder rows, as often active, share what all rows of a dictionary have in common."
        left_out = " No prompt of this alignment is a training prompt, so nothing is matched." if shift.no_matched(shifts) else ""
        st.caption(f"Mean cosine {what}. Whiskers: 95 % intervals over prompts. {controls}{left_out}", width="stretch")
        download_rows(shift.rows(shifts), name=entry.id, what="shift", key="shift files")


def pictures(entry: Entry, rounds: list[RoundRecord]) -> None:
    """Training and generated points together, in both spaces; a click on a point shows its text."""
    st.markdown("##### Training and generated answers as pictures")
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        round = choose_round(rounds, "shift_round")
        colour = state.segments("Colour", COLOURS, "shift_colour")
    points = shift.points_of(entry, round)
    st.caption(_settings_text(points.shift))
    groups, texts, ids = points.groups(colour), points.texts, shift.ids_of(points)
    clicked = _clicked(points)
    marked = None if clicked is None else _same_pair(points, clicked)
    for column, (name, at) in zip(st.columns(2, gap="small"), (("dense", points.shift.dense), ("sparse", points.shift.sparse)), strict=True):
        with column:
            st.markdown(f"###### {SPACES[name]}")
            chart = space_picture(name, at, ids, groups, texts, PALETTES[colour], marked)
            show_chart(chart, key=f"shift picture {name} {entry.id} {round.round}", name=entry.id, select=("points",), on_select=_take)
    if clicked is None:
        st.caption("Click a point to read its text; both answers of its pair are marked in both pictures.")
    else:
        _point(entry, points, clicked)


def _take(picked: list[str]) -> None:
    if picked:
        state.choose(shift_point=picked[0])


def _clicked(points: ShiftPoints) -> int | None:
    asked = state.get("shift_point")
    number = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 8 else -1
    return number if 0 <= number < len(points.points) else None


def _same_pair(points: ShiftPoints, clicked: int) -> list[int]:
    """The clicked point and, if it was generated, the other answer of its pair."""
    pair = points.points[clicked].generated
    return [clicked] if pair is None else [number for number, point in enumerate(points.points) if point.generated is pair]


def _point(entry: Entry, points: ShiftPoints, clicked: int) -> None:
    point = points.points[clicked]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"###### The chosen point: {point.name}")
        st.button("Clear", key="shift clear", type="tertiary", icon=":material/close:", on_click=state.clear, args=("shift_point",))
    if point.generated is not None:
        pair_card(point.generated, align.judge_model(entry), key="shift")
        return
    with st.container(border=True, key="shift training"):
        st.caption("Prompt")
        st.text(visible(point.prompt) or "Its texts are not in the cache any more.")
        st.caption("Answer")
        show_whole(point.text, 130)


def _settings_text(shift: Shift) -> str:
    facts = shift.made
    shown = f"{facts['n_shown']:,} of {facts['n_chosen'] + facts['n_rejected']:,} training answers, {2 * facts['n_generated']:,} generated ones"
    settings = f"{facts['method']}, perplexity {facts['perplexity']:g}, seed {facts['seed']}, from the {facts['initialisation']}"
    return f"{settings}; {shown}. Distances between far groups mean little: the figures above are what can be trusted."

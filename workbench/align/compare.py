"""The section of arms: every alignment of the cache in a table like the paper's, and two of them in the same curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from core.align.filtering import NONE, SPARSERM
from core.statistics.estimates import Estimate
from core.text_safety import visible
from workbench.align import figures as align_figures
from workbench.align import form as align_form
from workbench.align import values as align
from workbench.align.evaluation import curve_grid
from workbench.align.figures import FIGURES, SHOWN_FIRST, FigureSpec, Point, evaluated
from workbench.align.pairs import flow
from workbench.align.values import Entry, OpenAlignment
from workbench.frame import state
from workbench.frame.downloads import download_rows, show_rows

TABLE = ("accuracy", "mc1_unseen", "mc2_unseen", "reward", "length", "kl_per_token")


def draw(opened: OpenAlignment) -> None:
    """The whole section."""
    others = [entry for entry in opened.known if entry.id != opened.entry.id and evaluated(entry.rounds)]
    if not others:
        st.caption(
            "There is one alignment only. Start another arm, such as no filter or a random drop of as many pairs, and lay the two side by side."
        )
        st.button("Start the same without a filter", icon=":material/add:", key="other arm", on_click=_other_arm, args=(opened.entry,))
    else:
        _curves(opened.entry, sorted(others, key=lambda entry: not differ_in_arm_only(entry, opened.entry)))
    st.markdown("##### All alignments")
    rows = [row for entry in opened.known for row in _rows(entry)]
    show_rows([{name: visible(value, 120) if isinstance(value, str) else value for name, value in row.items()} for row in rows], key="align arms")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Measured on held-out data, with 95 % intervals. The round is chosen on validation pairs.", width="content")
        download_rows(rows, name="", what="alignments", key="align arms files")


def _lead(spec: FigureSpec, lead: Estimate) -> dict[str, Any]:
    share = spec.scale == 100
    difference = spec.interval_text(lead.to_json(), "+.1f" if share else "+.3g")
    unit = "percentage points" if share else spec.unit
    return {"Figure": spec.title, "Difference": difference, "Unit": unit, "n": lead.n, "Prompts": lead.n_prompts}


def _other_arm(entry: Entry) -> None:
    arm = SPARSERM if entry.config.arm == NONE else NONE
    align_form.fill(replace(entry.config, arm=arm), parent=entry.run.id if entry.run else entry.id, align_new="1")


def differ_in_arm_only(first: Entry, second: Entry) -> bool:
    """Whether two alignments differ in nothing but the arm and its seed."""
    settings = [{name: value for name, value in entry.config.result_fields().items() if name not in ("arm", "seed")} for entry in (first, second)]
    return settings[0] == settings[1]


def _curves(entry: Entry, others: Sequence[Entry]) -> None:
    titles = {other.id: other.title for other in others}
    with st.container(width=560):
        wanted = state.pick("Beside", list(titles), "align_with", show=lambda name: visible(titles[name], 120))
    other = next(other for other in others if other.id == wanted)
    if not differ_in_arm_only(entry, other):
        st.caption("These two differ in more than the arm, so a difference between them need not be the filter's doing.")
    of_arms = {_title(arm): align_figures.curves(evaluated(arm.rounds)) for arm in (entry, other)}
    names = [name for name in SHOWN_FIRST if any(name in curves for curves in of_arms.values())]
    series = {name: {title: curves[name] for title, curves in of_arms.items() if name in curves} for name in names}
    curve_grid(series, key=f"align compare {entry.id} {other.id}")
    if differ_in_arm_only(entry, other):
        _leads(entry, other)


def _leads(entry: Entry, other: Entry) -> None:
    """Paired differences of the two arms after the last round that both have; their intervals are far narrower than
    unpaired ones.
    """
    here, there = ({round.round: round for round in evaluated(arm.rounds)} for arm in (entry, other))
    last = max(here.keys() & there.keys(), default=0)
    leads = align_figures.leads(here[last], there[last]) if last else {}
    if not leads:
        return
    st.markdown(f"##### {_title(entry)} less {_title(other)}, after round {last}")
    rows = [_lead(FIGURES[name], lead) for name, lead in leads.items()]
    show_rows(rows, key="align leads", height="content")
    st.caption("Each pair, prompt and question against itself, with 95 % intervals over prompts: one that holds zero shows no difference.")


def _title(entry: Entry) -> str:
    return f"{entry.arm} {align.short(entry.id)}"


def _rows(entry: Entry) -> list[dict[str, Any]]:
    """An alignment's rows of the table: its settings, the pairs kept, and the figures of the chosen and of the last
    round.
    """
    rounds = evaluated(entry.rounds)
    if not rounds:
        return []
    result, last = align_figures.result_of(entry), rounds[-1].round
    words = {last: "last" if result or not entry.live else "newest"} | ({result.chosen: "chosen"} if result else {})
    curves = align_figures.curves(rounds)
    flows = [flow(round) for round in entry.rounds if round.round and round.counts and "kept" in round.counts]
    head: dict[str, Any] = {
        "Alignment": align.short(entry.id),
        "Arm": entry.arm,
        "Seed": entry.config.seed,
        "Rounds": len(rounds) - 1,
        "State": "finished" if result else "running" if entry.live else "not finished",
        "Kept of parsed": f"{sum(counts['kept'] for counts in flows):,} of {sum(counts['parsed'] for counts in flows):,}",
    }
    return [head | {"Round": f"{round}, {word}"} | _figures(curves, round) for round, word in sorted(words.items())]


def _figures(curves: Mapping[str, Sequence[Point]], round: int) -> dict[str, str]:
    points = {name: align_figures.point_of(curves, name, round) for name in TABLE}
    return {FIGURES[name].short: FIGURES[name].interval_text(point) for name, point in points.items() if point is not None}

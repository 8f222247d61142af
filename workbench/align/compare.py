"""Arms side by side: every alignment of the cache in a table like the paper's, and two of them in the same curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.text_safety import visible
from workbench.align import figures as align_figures
from workbench.align import values as align
from workbench.align.evaluation import evaluated, grid
from workbench.align.figures import FIGURES, Figure, Point
from workbench.align.values import Entry
from workbench.frame import state
from workbench.frame.downloads import download_rows, show_rows

if TYPE_CHECKING:
    from core.statistics.estimates import Estimate
    from workbench.align.view import View

TABLE = ("accuracy", "mc1_unseen", "mc2_unseen", "reward", "length", "kl_per_token")


def draw(view: View) -> None:
    others = [one for one in view.known if one.id != view.entry.id and evaluated(one.rounds)]
    if not others:
        st.caption(
            "There is one alignment only. Start another arm, such as no filter or a random drop of as many pairs, and lay the two side by side."
        )
        st.button("Start the same without a filter", icon=":material/add:", key="other arm", on_click=_other_arm, args=(view.entry,))
    else:
        _curves(view.entry, sorted(others, key=lambda one: not _alike(one, view.entry)))
    st.markdown("##### All alignments")
    rows = [row for one in view.known for row in _row(one)]
    show_rows([{name: visible(value, 120) if isinstance(value, str) else value for name, value in row.items()} for row in rows], key="align arms")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Measured on held-out data, with 95 % intervals. The round is chosen on validation pairs.", width="content")
        download_rows(rows, name="", what="alignments", key="align arms files")


def _lead(figure: Figure, lead: Estimate) -> dict[str, Any]:
    share = figure.scale == 100
    said = figure.within(lead.to_json(), "+.1f" if share else "+.3g")
    return {"Figure": figure.title, "Difference": said, "Unit": "percentage points" if share else figure.unit, "n": lead.n, "Prompts": lead.n_prompts}


def _other_arm(entry: Entry) -> None:
    from dataclasses import replace

    from core.align.filtering import NONE, SPARSERM
    from workbench.align.form import fill

    arm = SPARSERM if entry.config.arm == NONE else NONE
    fill(replace(entry.config, arm=arm), parent=entry.run.id if entry.run else entry.id, align_new="1")


def _alike(one: Entry, other: Entry) -> bool:
    """Whether two alignments differ in nothing but the arm and its seed."""
    settings = [{name: value for name, value in entry.config.result_fields().items() if name not in ("arm", "seed")} for entry in (one, other)]
    return settings[0] == settings[1]


def _curves(entry: Entry, others: Sequence[Entry]) -> None:
    titles = {one.id: one.title for one in others}
    with st.container(width=560):
        wanted = state.pick("Beside", list(titles), "align_with", show=lambda name: visible(titles[name], 120))
    other = next(one for one in others if one.id == wanted)
    if not _alike(entry, other):
        st.caption("These two differ in more than the arm, so a difference between them need not be the filter's doing.")
    found = {_called(one): align_figures.curves(evaluated(one.rounds)) for one in (entry, other)}
    names = [name for name in align_figures.FIRST if any(name in curves for curves in found.values())]
    series = {name: {title: curves[name] for title, curves in found.items() if name in curves} for name in names}
    grid(series, key=f"align compare {entry.id} {other.id}")
    if _alike(entry, other):
        _leads(entry, other)


def _leads(entry: Entry, other: Entry) -> None:
    """The two arms after the last round that both have, item by item: far narrower than two intervals side by side."""
    here, there = ({one.round: one for one in evaluated(each.rounds)} for each in (entry, other))
    round = max(here.keys() & there.keys(), default=0)
    found = align_figures.leads(here[round], there[round]) if round else {}
    if not found:
        return
    st.markdown(f"##### {_called(entry)} less {_called(other)}, after round {round}")
    rows = [_lead(FIGURES[name], lead) for name, lead in found.items()]
    show_rows(rows, key="align leads", height="content")
    st.caption("Each pair, prompt and question against itself, with 95 % intervals over prompts: one that holds zero shows no difference.")


def _called(entry: Entry) -> str:
    return f"{entry.arm} {align.short(entry.id)}"


def _row(entry: Entry) -> list[dict[str, Any]]:
    """An alignment's lines: what was asked, how many pairs were kept, and the figures of the chosen and of the last round."""
    rounds = evaluated(entry.rounds)
    if not rounds:
        return []
    result, last = align_figures.result_of(entry), rounds[-1].round
    which = {last: "last" if result or not entry.live else "newest"} | ({result.chosen: "chosen"} if result else {})
    found = align_figures.curves(rounds)
    flows = [align.flow(one) for one in entry.rounds if one.round and one.counts and "kept" in one.counts]
    head: dict[str, Any] = {
        "Alignment": align.short(entry.id),
        "Arm": entry.arm,
        "Seed": entry.config.seed,
        "Rounds": len(rounds) - 1,
        "State": "finished" if result else "running" if entry.live else "not finished",
        "Kept of parsed": f"{sum(one['kept'] for one in flows):,} of {sum(one['parsed'] for one in flows):,}",
    }
    return [head | {"Round": f"{round}, {said}"} | _figures(found, round) for round, said in sorted(which.items())]


def _figures(found: Mapping[str, Sequence[Point]], round: int) -> dict[str, str]:
    points = {name: align_figures.point_of(found, name, round) for name in TABLE}
    return {FIGURES[name].short: FIGURES[name].within(point) for name, point in points.items() if point is not None}

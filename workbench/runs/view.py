"""The Runs page: the table of all runs, one run in full, two runs overlaid, and where the disk went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from core.cli import tables
from core.cli.equal_command import equal_command
from core.cli.options import options_of
from core.config import Config
from core.errors import SparseRMError
from core.jobs.kinds import config_of, kind_of
from core.reward.head_words import counted_pairs, mean_of
from core.runs import launch as launching
from core.runs.progress import date, duration, size
from core.runs.registry import Run, all_runs, summaries
from core.runs.space import disk_used, made_only_by, remove_artefacts
from core.runs.store import Store, cache_root
from core.text_safety import visible
from workbench.align import values as align
from workbench.frame import forms, progress, run_panel, run_words, state
from workbench.frame.accuracy import accuracy_curve
from workbench.frame.chart_base import plain
from workbench.frame.downloads import download_rows, show_chart
from workbench.frame.estimate_view import free_disk
from workbench.frame.layout import empty
from workbench.frame.models import ID_LENGTH
from workbench.runs.charts import run_curves
from workbench.runs.launcher import KIND, NEW, OPEN, OTHER, STARTED_HERE

SECTIONS = {"figures": "Figures", "settings": "Settings", "said": "What it said", "log": "Log"}
FIGURES_POLL = 2.0  # seconds between two looks at the figures and the log of a live run
DULL = ("width", "rows", "layer", "seed", "k", "K")  # figures that say where a step is, not how it goes
ACCURACY, WITHIN = "Test accuracy, %, mean of heads", "95 %, n, heads"
MORE = {"pairs": "preferences", "doctor": "doctor", "spaces": "spaces", "latents": "latents"}


# --- all runs ----------------------------------------------------------------------------------------------------------


def table() -> None:
    """All runs, newest first, drawn again while one lives. One row opens that run, two lay them over each other."""
    if not all_runs():
        empty("No runs yet.", "Start one above. It goes on when you close this page, and this list finds it again.")
        disk()
        return
    st.fragment(_table, run_every=FIGURES_POLL if run_panel.live_runs() else None)()
    disk()


def _table() -> None:
    state.redraw_if_chosen()  # marked runs are drawn below, outside of this fragment
    rows = summaries()[::-1]
    if not rows:  # the last one has just been deleted elsewhere
        st.rerun()
    shown = [_row(row) for row in rows]
    ids = [row["run"] for row in rows]
    wanted = sorted(ids.index(run_id) for run_id in (state.get(OPEN), state.get(OTHER)) if run_id in ids)
    marked = " ".join(ids[row] for row in wanted)
    name = f"runs table {len(ids)} {ids[0]}"
    key = state.table_key(name, marked)
    st.dataframe(
        shown,
        hide_index=True,
        key=key,
        on_select=lambda: _select(name, key, ids),
        selection_mode="multi-row",
        selection_default={"selection": {"rows": wanted}},
        height=min(38 + 35 * len(shown), 320),
        column_config={
            "Kind": st.column_config.TextColumn(width=110),
            ACCURACY: st.column_config.NumberColumn(format="%.1f", help="A fit's mean over its heads; the shipped head's alone stands on Overview"),
            WITHIN: st.column_config.TextColumn(help="Interval of that mean over prompts, the test pairs and the heads that it is of"),
        },
        placeholder="",
        alt="All runs with their state and outcome",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Mark one row to see the run, two to lay them over each other.", width="content")
        st.space("stretch")
        download_rows(shown, name="", what="runs", key="runs")


def _select(name: str, key: str, ids: list[str]) -> None:
    """Opens the rows that were marked; of more than two the last two. A new table reports no marks too, so only `Close` closes a run."""
    rows = st.session_state[key]["selection"]["rows"]
    marked = [ids[row] for row in rows if row < len(ids)]
    if not marked:
        return
    before = [run_id for run_id in (state.get(OPEN), state.get(OTHER)) if run_id in marked]
    both = (before + [run_id for run_id in marked if run_id not in before])[-2:]
    if not state.table_shows(name, key, " ".join(sorted(both, key=ids.index))):
        return
    state.choose(**{OPEN: both[0], OTHER: both[1] if len(both) > 1 else None})


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    run = Run(cache_root().resolve() / "runs" / row["run"])
    at = row["progress"] or {}
    prepared_for = f", prepared for {row['prepared_for'].rpartition('_')[2]}" if row["prepared_for"] else ""
    done = (
        ""
        if not at or row["state"] not in ("running", "queued")
        else f"{run_words.step_words(str(at.get('step') or ''))} {at.get('fraction') or 0:.0%}"
    )
    mean = _accuracy(run.path) if row["kind"] == "fit" and row["state"] == "succeeded" else None
    return {
        "Run": row["run"].rpartition("_")[2],
        "Kind": run_words.kind_words(row["kind"]),
        "State": row["state"],
        "Of": visible(run_words.title(run), 120) + prepared_for if row["state"] != "damaged" else "",
        "Now": done,
        ACCURACY: None if mean is None else 100 * mean["accuracy"],
        WITHIN: "" if mean is None else f"{100 * mean['low']:.1f} to {100 * mean['high']:.1f}, {counted_pairs(mean['n'])}, {mean['of']}",
        "Time": "" if row["seconds"] is None else duration(row["seconds"]),
        "Started": "" if not row["queued"] else date(row["queued"]),
        "Made from": (row["parent"] or "").rpartition("_")[2],
        "Size": size(launching.run_size(run)),
    }


@lru_cache(maxsize=1024)
def _accuracy(path: Path) -> Mapping[str, Any] | None:
    """Of a fit that has succeeded, the mean and `of` how many heads it is: what it wrote never changes."""
    try:
        ours = (Run(path).result() or {})["outcome"]["sparserm"]
        return {**ours["mean"], "of": mean_of(len(ours["heads"]))} if ours["mean"]["accuracy"] is not None else None
    except (SparseRMError, KeyError, TypeError):
        return None


# --- one run, or two ------------------------------------------------------------------------------------------------------


def chosen() -> list[Run]:
    """The one or two runs that are marked."""
    runs = (run_panel.find_id(state.get(name)) for name in (OPEN, OTHER))
    return [run for run in runs if run is not None]


def detail(run: Run) -> None:
    """One run: how it stands, what came out, its figures, its settings, its log, and what can be done with it."""
    status = run.status()
    run_panel.show(run)
    _outcome(run)
    _actions(run, status.live, status.state)
    section = state.segments("Section", SECTIONS, "runs_section")
    if section == "settings":
        _settings(run)
    else:  # what grows while it runs is looked at again, without drawing the page anew
        st.fragment(_growing, run_every=FIGURES_POLL if status.live else None)(run, section)


def _growing(run: Run, section: str) -> None:
    if section == "figures":
        overlay([run])
    elif section == "said":
        st.code(visible("\n".join(progress.follow(run).messages)) or "Nothing yet.", language=None, wrap_lines=True)
    else:
        st.code(visible(progress.log_tail(run)) or "Nothing was printed.", language=None, height=360, wrap_lines=True)
        if run.log.is_file():
            st.download_button("Whole log", run.log.read_bytes, f"{run.id}.txt", "text/plain", key=f"log {run.id}", on_click="ignore")


def _outcome(run: Run) -> None:
    result = run.result() if run.status().state == "succeeded" else None
    if not result:
        return
    outcome = result["outcome"]
    with st.container(horizontal=True, vertical_alignment="center"):
        if run.kind == "fit":
            mean, of = outcome["sparserm"]["mean"], mean_of(len(outcome["sparserm"]["heads"]))
            if mean["accuracy"] is not None:
                interval = f"{100 * mean['low']:.1f} to {100 * mean['high']:.1f} %, n = {counted_pairs(mean['n'])}"
                st.markdown(f"Test accuracy, {of}: **{100 * mean['accuracy']:.1f} %** ({interval})")
            state.link("Open the reward model", "overview", model=Path(result["artefact"]).name[:ID_LENGTH])
        elif run.kind == "sweep":
            best = outcome["best"]
            interval = f"{100 * best['low']:.1f} to {100 * best['high']:.1f} %, n = {counted_pairs(best['n'], 'validation')}"
            of = f"layer {best['layer']}, K {best['k']}, {mean_of(best['n_heads'])}"
            st.markdown(f"Best validation accuracy: {of}: **{100 * best['accuracy']:.1f} %** ({interval})")
        elif run.kind in MORE:
            config = run.config()
            state.link("Open what it made", MORE[run.kind], **({"model": Path(config["model"]).name[:ID_LENGTH]} if "model" in config else {}))
        if result["artefact"]:
            st.text(visible(result["artefact"], 300))
    if run.kind == "sweep":
        for layer in sorted({point["layer"] for point in outcome["points"]}):
            st.markdown(f"###### Layer {layer}")
            show_chart(accuracy_curve([p for p in outcome["points"] if p["layer"] == layer]), key=f"sweep {run.id} {layer}", name=run.id)


def _actions(run: Run, live: bool, state_: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if run.kind in STARTED_HERE:
            st.button("Rerun with changes", icon=":material/tune:", key=f"change {run.id}", on_click=_refill, args=(run,))
        if run.kind == align.KIND:
            state.link("See its rounds", "align", align_open=run.id)
        if not live:
            with st.popover("Delete", icon=":material/delete:"):
                only = made_only_by(run)
                st.caption("The run's folder goes. What it made stays in the cache, unless you want that to go too.")
                also = st.checkbox(f"Remove the {len(only)} artefacts that no other run uses", key=f"also {run.id}", disabled=not only)
                st.button("Delete the run", key=f"delete {run.id}", type="primary", on_click=run_panel.act, args=(_removal(also), run.id))
        with st.popover("As a command", type="tertiary", icon=":material/terminal:"):
            st.code(equal_command(run.kind, config_of(run), prepare_pages=run.prepares_pages), language="bash", wrap_lines=True)
        st.space("stretch")
        st.button("Close", type="tertiary", key=f"close {run.id}", on_click=state.clear, args=(OPEN, OTHER))


def _refill(run: Run) -> None:
    forms.fill(run.kind, config_of(run), parent=run.id, **{KIND: run.kind, NEW: "1"})


def _removal(also: bool) -> Any:
    def remove(run: Run) -> None:
        if also:
            remove_artefacts(run)
        launching.remove(run)

    return remove


def _settings(run: Run) -> None:
    """What differs from the defaults first, then everything."""
    config = config_of(run)
    words = options_of(config, kind_of(run.kind).config())
    if words:
        pairs = [{"Setting": words[i].removeprefix("--").replace("-", " "), "Value": visible(words[i + 1], 300)} for i in range(0, len(words), 2)]
        st.caption("Other than the defaults")
        st.dataframe(pairs, hide_index=True)
    rows = [{"Setting": name, "Value": visible(value, 300)} for name, value in tables.figures_of(config.to_dict())]
    with st.expander("All settings"):
        st.dataframe(rows, hide_index=True, height=400)
        st.download_button("JSON", _json(config), f"{run.id}.json", "application/json", key=f"settings {run.id}", on_click="ignore")


def _json(config: Config) -> str:
    return json.dumps(config.to_dict(), indent=2)


# --- figures over time ------------------------------------------------------------------------------------------------------


def overlay(runs: list[Run]) -> None:
    """A figure over the seconds since it began, for one run or for two."""
    state.redraw_if_chosen()
    series = {run.id: progress.follow(run).series for run in runs}
    names = sorted(name for name in set().union(*series.values()) if name.partition(": ")[2] not in DULL)
    if not names:
        st.caption("No figures over time: its steps were too short to report any.")
        return
    labels = {
        name: name.partition(": ")[0].capitalize() + ": " + name.partition(": ")[2].replace("_per_s", " a second").replace("_", " ") for name in names
    }
    first = next((name for name in names if "loss" in name), names[0])
    name = state.pick("Figure", names, "runs_figure", show=lambda name: labels[name], default=first)
    points = {_called(run): _since_start(series[run.id][name]) for run in runs if name in series[run.id]}
    show_chart(
        run_curves(points, x="Seconds since this step began", y=plain(labels[name])), key=f"figures {' '.join(series)} {name}", name=runs[0].id
    )


def _called(run: Run) -> str:
    return f"{run_words.kind_words(run.kind)} {run.id.rpartition('_')[2]}"


def _since_start(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(moment - points[0][0], value) for moment, value in points]


def beside(runs: list[Run]) -> None:
    """Two runs: their figures overlaid, and the settings in which they differ."""
    for run in runs:
        run_panel.show(run)
    st.fragment(overlay, run_every=FIGURES_POLL if any(run.live() for run in runs) else None)(runs)
    settings = [dict(tables.figures_of(config_of(run).to_dict())) for run in runs]
    names = [name for name in sorted(set().union(*settings)) if settings[0].get(name) != settings[1].get(name)]
    st.markdown("###### Where their settings differ")
    if names:
        columns = [_called(run) for run in runs]
        st.dataframe(
            [{"Setting": name, **{c: visible(s.get(name, ""), 200) for c, s in zip(columns, settings, strict=True)}} for name in names],
            hide_index=True,
        )
    else:
        st.caption("Nowhere: they were asked the same.")


# --- disk --------------------------------------------------------------------------------------------------------------------


def disk() -> None:
    """Where the disk went, and freeing what was left half-done; behind a button that says how much."""
    root = cache_root()
    used = disk_used(root)
    with st.popover(f"Disk: {size(sum(used.values()))} used", icon=":material/hard_drive:"):
        st.caption(f"{free_disk(root)} free. The cache lies in")
        st.text(visible(root.resolve(), 200))
        st.dataframe([{"What": words, "Size": size(n_bytes)} for words, n_bytes in used.items()], hide_index=True)
        st.button("Remove what was left half-done", on_click=_clean, help="Also what was damaged and set aside. What a run works on stays.")
        freed = st.session_state.pop("freed", "")
        if freed:
            st.caption(f"{freed} freed.")


def _clean() -> None:
    st.session_state["freed"] = size(Store(cache_root()).clean())

"""Runs on a page: starting them, how far they are, how they ended. A run is a process of its own: it outlives the browser and this server.

    run_panel.start_button_or_progress("doctor", DoctorRunConfig(model=str(model.path)), "Examine this model", sentence="Takes about a minute.")
        where a page lacks something that a run makes: the button that starts it, then its progress, or why it failed and the way on. Call it where
        what it makes was looked for and not found; when the run ends, the page is drawn again.
    run_panel.being_made(kind, config)  whether a run that makes it is queued or works now
    run_panel.show(run)                 one run: state, steps, time left, figures, cancel or resume
    run_panel.start("fit", config)      starts one and returns its id; "" where it could not, which `complaint()` then returns
    run_panel.ticker()                  for app.py

core/jobs/kinds.py lists the kinds; run_words.py names them, their steps and their states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from core.cli.equal_command import equal_command
from core.config import Config
from core.errors import SparseRMError, StoreError
from core.jobs import start as job_start
from core.jobs.follow_up import follow_up_names, runs_asked
from core.jobs.kinds import asked_config
from core.runs.launch import cancel
from core.runs.progress import duration
from core.runs.registry import Run, Status, all_runs, runs_root
from workbench.frame import progress, run_words, state

FIRST_NAMES = 4  # runs that are named of those before a queued one
POLL, IDLE_POLL = 1.0, 4.0  # seconds between two looks at live runs, and at whether one was started elsewhere


# --- starting, stopping ------------------------------------------------------------------------------------------------


def start(kind: str, config: Config, parent: str | None = None, *, prepare_pages: bool = False) -> str:
    """Starts a run and returns its id; "" where it could not be started (see `complaint`).

    With `prepare_pages`, the runs of core.jobs.follow_up follow a fit.
    """
    try:
        return job_start.launch(kind, config, parent=parent, prepare_pages=prepare_pages)
    except SparseRMError as error:
        _complain(error)
        return ""


def begin(kind: str, config: Config, **options: Any) -> None:
    """As `start`, for a button's on_click."""
    start(kind, config, **options)


def act(action: Callable[[Run], object], run_id: str) -> None:
    """Cancels, resumes or removes a run (`core.runs.launch`), for callbacks; `complaint` then returns why one could not be done."""
    try:
        action(Run(runs_root() / run_id))
    except SparseRMError as error:
        _complain(error)


def _complain(error: SparseRMError) -> None:
    parts = {name: getattr(error, name) for name in ("problem", "expected", "found", "remedy")}
    st.session_state["complaint"] = json.dumps(parts)


def complaint() -> Mapping[str, Any] | None:
    """Why the last button did not do what it says; returned once."""
    parts = st.session_state.pop("complaint", "")
    return json.loads(parts) if parts else None


def find(kind: str, config: Config) -> Run | None:
    """The newest run that was asked just this."""
    return next(iter(runs_asked(kind, config)), None)


def being_made(kind: str, config: Config) -> bool:
    """Whether the newest run that was asked just this is queued or works now."""
    run = find(kind, config)
    return run is not None and run.live()


def find_id(run_id: str) -> Run | None:
    """The run with this id (it may come from the URL)."""
    return next((run for run in all_runs() if run.id == run_id), None) if run_id else None


def live_runs() -> list[Run]:
    """What is queued or runs now, oldest first."""
    return [run for run in all_runs() if run.live()]


# --- one run ---------------------------------------------------------------------------------------------------------


def show(run: Run, *, head: bool = True) -> None:
    """One run as it stands; one that lives is looked at again every second, and the page is drawn anew when it ends."""
    try:
        status = run.status()
    except StoreError as error:
        st.text(error.problem)
        return
    if status.live:
        st.fragment(_live, run_every=POLL)(run, head)
    else:
        _ended(run, status, head)


def _live(run: Run, head: bool) -> None:
    try:
        status = run.status()
    except StoreError:
        st.rerun()
    if not status.live:
        st.rerun()
    follower = progress.follow(run)
    with st.container(border=True, key=f"live {run.id}"):
        run_head(run, status, head)
        prepared_for(run)
        steps = follower.steps
        if status.state == "queued":
            st.caption(waiting_text(run, status))
        elif not steps:
            st.progress(0.0, text="Starting")
        else:
            now = steps[-1]
            st.progress(now.fraction or 0.0, text=f"{run_words.step_title(now.name)}{run_words.time_left(now.left)}")
            _done_steps(steps)


def run_head(run: Run, status: Status, head: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        run_words.state_badge(status.state)
        if head:
            st.text(f"{run_words.kind_words(run.kind)}: {run_words.title(run)}")
        st.space("stretch")
        st.caption(run_words.times(status), width="content")
        if status.live:
            st.button("Cancel", key=f"cancel {run.id}", on_click=act, args=(cancel, run.id), help="Finished steps are kept.")


def prepared_for(run: Run) -> None:
    """Which fit a run follows by itself, and what follows a fit."""
    if run.prepared_for:
        fit = find_id(run.prepared_for)
        st.caption(f"Prepared for fit {fit.id.rpartition('_')[2]}" if fit else "Prepared for a fit whose run has been deleted")
    elif run.prepares_pages:
        names = ", ".join(follow_up_names(asked_config(run)))
        st.caption(f"Then follow by themselves: {names}")


def waiting_text(run: Run, status: Status) -> str:
    if status.devices is None:
        return "Starting; the engine takes some seconds to load."
    ahead = [other for other in live_runs() if other.id < run.id]
    if not ahead:
        return "Its turn comes next."
    names = [run_words.kind_words(other.kind) for other in ahead]
    first = ", ".join(names[:FIRST_NAMES]) + (f" and {len(names) - FIRST_NAMES} more" if len(names) > FIRST_NAMES else "")
    return f"Waits for {', '.join(status.devices)}. Before it: {first}."


def _done_steps(steps: list[progress.Step]) -> None:
    done = [f"{run_words.step_title(step.name)} {duration(step.seconds)}" for step in steps[:-1] if step.seconds >= 0.05]
    if done:
        st.caption("Done: " + " · ".join(done))


def _ended(run: Run, status: Status, head: bool) -> None:
    with st.container(border=True, key=f"ended {run.id}"):
        run_head(run, status, head)
        prepared_for(run)
        if status.error:
            _say_error(status.error)
        elif status.state == "interrupted":
            st.caption("Its process is gone: the machine was switched off, or somebody ended it. Finished steps are kept.")
        if status.state in ("failed", "cancelled", "interrupted"):
            with st.container(horizontal=True):
                st.button("Resume", type="primary", key=f"resume {run.id}", on_click=act, args=(job_start.resume, run.id))
                with st.popover("Log", type="tertiary"):
                    st.code(progress.log_tail(run) or "Nothing was printed.", language=None, height=320, wrap_lines=True)


def _say_error(error: Mapping[str, Any]) -> None:
    st.text(str(error.get("problem", "")))
    for name, words in (("expected", "Expected"), ("found", "Found"), ("remedy", "What to do")):
        if error.get(name):
            st.caption(words)
            st.text(str(error[name]))


# --- on pages -----------------------------------------------------------------------------------------------------------


def start_button_or_progress(kind: str, config: Config, button: str, *, sentence: str = "", again: bool = True) -> None:
    """The way to something that is not there yet: start the run that makes it, watch it, or see why it failed.

    `button` and `sentence` are texts of the page, not of data.
    Where a run of just this ended well and what it made is gone, it can be started again (`again`).
    """
    say_complaint()
    run = find(kind, config)
    state_ = run.status().state if run else ""
    if run and state_ != "succeeded":
        show(run)
    if not run or (again and state_ not in ("queued", "running")):
        with st.container(border=True, key=f"offer {kind} {button}"):
            if sentence:
                st.markdown(sentence)
            with st.container(horizontal=True, vertical_alignment="center"):
                st.button(
                    button if not run or state_ == "succeeded" else "Start anew", key=f"start {kind} {button}", on_click=begin, args=(kind, config),
                    type="secondary" if run and state_ != "succeeded" else "primary",
                )  # fmt: skip
                with st.popover("As a command", type="tertiary", icon=":material/terminal:"):
                    st.code(equal_command(kind, config), language="bash", wrap_lines=True)


def say_complaint() -> None:
    """Why the last button did not do what it says, if it did not."""
    parts = complaint()
    if parts:
        with st.container(border=True):
            st.error("This could not be started.", icon=":material/error:")
            _say_error(parts)


# --- in the sidebar -------------------------------------------------------------------------------------------------------


def ticker() -> None:
    """What runs now, in the sidebar of every page. The page is drawn anew when a run ends."""
    live = live_runs()
    st.fragment(_tick, run_every=POLL if live else IDLE_POLL)([run.id for run in live])


def _tick(drawn: list[str]) -> None:
    live = live_runs()
    if [run.id for run in live] != drawn:
        st.rerun()
    for run in live[:3]:
        now = next(reversed(progress.follow(run).steps), None)
        with st.container(border=True, key=f"tick {run.id}"):
            st.caption(f"**{run_words.kind_words(run.kind)}**" + ("" if now else ", queued" if run.status().state == "queued" else ", starting"))
            if now:
                left = run_words.time_left(now.left).removesuffix(" in this step")
                st.progress(now.fraction or 0.0, text=f"{run_words.step_title(now.name)}{left}")
            page, name = ("align", "align_open") if run.kind == "align" else ("runs", "runs_open")
            state.link("Show", page, **{name: run.id})
    if len(live) > 3:
        st.caption(f"and {len(live) - 3} more")

"""Runs on a page: starting them, how far they are, how they ended. A run is a process of its own: it outlives the browser and this server.

    run_panel.offer("doctor", DoctorRunConfig(model=str(model.path)), "Examine this reward model", said="Takes about a minute.")
        where a page lacks something that a run makes: the button that starts it, then its progress, or why it failed and the way on. Call it where
        what it makes was looked for and not found; when the run ends, the page is drawn again.
    run_panel.show(run)                 one run: state, steps, time left, figures, cancel or resume
    run_panel.start("fit", config)      starts one and returns its id; "" where it could not, which `complaint()` then tells
    run_panel.demo(), run_panel.ticker()    for layout.py and app.py

core/jobs/kinds.py lists the kinds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from core.cli.equal_command import equal_command
from core.config import Config
from core.errors import SparseRMError, StoreError
from core.jobs import start as job_start
from core.jobs.kinds import KINDS, asked_config, kind_of
from core.runs.launch import cancel
from core.runs.progress import duration
from core.runs.registry import Run, Status, all_runs, runs_root
from workbench.frame import progress, state, uploads

POLL, IDLE_POLL = 1.0, 4.0  # seconds between two looks at live runs, and at whether somebody started one
DEMO, TOY = "smollm2-135m", "tiny"
STATE_LOOKS: Mapping[str, tuple[str, Any]] = {
    "queued": (":material/hourglass_empty:", "gray"),
    "running": (":material/progress_activity:", "blue"),
    "succeeded": (":material/check:", "green"),
    "failed": (":material/error:", "red"),
    "cancelled": (":material/block:", "gray"),
    "interrupted": (":material/power_off:", "orange"),
    "damaged": (":material/broken_image:", "red"),
}
UNKNOWN_LOOK: tuple[str, Any] = (":material/question_mark:", "gray")
STEP_WORDS = {
    "read pairs": "Reading pairs",
    "duplicates": "Looking for duplicates",
    "load SAE": "Loading the SAE",
    "load model": "Loading the language model",
    "de-quantise": "Unpacking the language model",
    "tokenise": "Tokenising",
    "extraction": "Reading hidden states",
    "selection": "Comparing latents",
    "heads": "Training heads",
    "controls": "Training controls",
    "curve": "Accuracy against K",
    "faithfulness": "Testing explanations",
    "activations": "Reading activations",
    "pages": "Writing pages",
    "neighbours": "Comparing neighbours",
    "sae training": "Training the SAE",
    "measure SAE": "Measuring the SAE",
    "measure loss recovered": "Measuring loss recovered",
    "label swaps": "Fitting swapped labels",
    "read alone": "Scoring responses alone",
    "read in batches": "Scoring responses in batches",
    "wording": "Learning from wording alone",
}


# --- words about a run -----------------------------------------------------------------------------------------------


def kind_words(kind: str) -> str:
    return KINDS[kind].name if kind in KINDS else kind


def step_words(step: str) -> str:
    """A step's name for people. Steps are named by the engine, but a download's name holds what is downloaded: not for labels."""
    return STEP_WORDS.get(step, step[:1].upper() + step[1:])


def title(run: Run) -> str:
    """What the run is about, in a few words: names of data and models, so for st.text and tables only."""
    try:
        return kind_of(run.kind).title(_with_names_of_uploads(run.resolved() or run.config()))
    except (SparseRMError, TypeError, KeyError, AttributeError):
        return "unreadable"


def _with_names_of_uploads(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config's values with uploaded files called as the person called them."""
    shown: dict[str, Any] = {name: _with_names_of_uploads(value) if isinstance(value, dict) else value for name, value in config.items()}
    if isinstance(shown.get("pairs"), str):
        path = Path(shown["pairs"])
        called = uploads.name_of(path)
        return shown if called == path.name else {**shown, "pairs": called}
    return shown


def state_badge(name: str) -> None:
    icon, colour = STATE_LOOKS.get(name, UNKNOWN_LOOK)
    st.badge(name.capitalize(), icon=icon, color=colour)


# --- starting, stopping ------------------------------------------------------------------------------------------------


def start(kind: str, config: Config, parent: str | None = None) -> str:
    """Starts a run and returns its id; "" where it could not be started (see `complaint`)."""
    try:
        return job_start.launch(kind, config, parent=parent)
    except SparseRMError as error:
        _complain(error)
        return ""


def begin(kind: str, config: Config, parent: str | None = None) -> None:
    """As `start`, for a button's on_click."""
    start(kind, config, parent)


def act(action: Callable[[Run], object], run_id: str) -> None:
    """Cancels, resumes or removes a run (`core.runs.launch`), for callbacks; what can't be done is told by `complaint`."""
    try:
        action(Run(runs_root() / run_id))
    except SparseRMError as error:
        _complain(error)


def _complain(error: SparseRMError) -> None:
    said = {name: getattr(error, name) for name in ("problem", "expected", "found", "remedy")}
    st.session_state["complaint"] = json.dumps(said)


def complaint() -> Mapping[str, Any] | None:
    """Why the last button did not do what it says, told once."""
    said = st.session_state.pop("complaint", "")
    return json.loads(said) if said else None


def find(kind: str, config: Config) -> Run | None:
    """The newest run that was asked just this."""
    wanted = config.to_dict()
    for run in reversed(all_runs()):
        try:
            if run.kind == kind and asked_config(run).to_dict() == wanted:
                return run
        except (SparseRMError, TypeError, KeyError):  # unreadable, or another version's
            continue
    return None


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
        steps = follower.steps
        if status.state == "queued":
            st.caption(waiting_text(run, status))
        elif not steps:
            st.progress(0.0, text="Starting")
        else:
            now = steps[-1]
            st.progress(now.fraction or 0.0, text=f"{step_title(now.name)}{time_left(now.left)}")
            _done_steps(steps)


def run_head(run: Run, status: Status, head: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        state_badge(status.state)
        if head:
            st.text(f"{kind_words(run.kind)}: {title(run)}")
        st.space("stretch")
        st.caption(_times(status), width="content")
        if status.live:
            st.button("Cancel", key=f"cancel {run.id}", on_click=act, args=(cancel, run.id), help="Finished steps are kept.")


def step_title(name: str) -> str:
    return step_words(name) if name in STEP_WORDS or name.replace(" ", "").replace("-", "").replace(":", "").isalnum() else "Downloading"


def time_left(left: float | None) -> str:
    return "" if left is None or left < 0.5 else f" · about {duration(left)} left in this step"


def _times(status: Status) -> str:
    said = "" if status.seconds is None else duration(status.seconds)
    about = (status.estimate or {}).get("seconds") or 0.0
    return f"{said} of about {duration(about)}" if said and status.live and about > 10 else said


def waiting_text(run: Run, status: Status) -> str:
    if status.devices is None:
        return "Starting; the engine takes some seconds to load."
    ahead = [other for other in live_runs() if other.id != run.id and other.id < run.id]
    return f"Waits for {', '.join(status.devices)}: {len(ahead)} run{'s' * (len(ahead) != 1)} before it." if ahead else "Its turn comes next."


def _done_steps(steps: list[progress.Step]) -> None:
    done = [f"{step_title(step.name)} {duration(step.seconds)}" for step in steps[:-1] if step.seconds >= 0.05]
    if done:
        st.caption("Done: " + " · ".join(done))


def _ended(run: Run, status: Status, head: bool) -> None:
    with st.container(border=True, key=f"ended {run.id}"):
        run_head(run, status, head)
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


def offer(kind: str, config: Config, button: str, *, said: str = "", again: bool = True) -> None:
    """The way to something that is not there yet: start the run that makes it, watch it, or see why it failed.

    `button` and `said` are our words. Where a run of just this ended well and what it made is gone, it can be started again (`again`).
    """
    say_complaint()
    run = find(kind, config)
    state_ = run.status().state if run else ""
    if run and state_ != "succeeded":
        show(run)
    if not run or (again and state_ not in ("queued", "running")):
        with st.container(border=True, key=f"offer {kind} {button}"):
            if said:
                st.markdown(said)
            with st.container(horizontal=True, vertical_alignment="center"):
                st.button(
                    button if not run or state_ == "succeeded" else "Start anew", key=f"start {kind} {button}", on_click=begin, args=(kind, config),
                    type="secondary" if run and state_ != "succeeded" else "primary",
                )  # fmt: skip
                with st.popover("As a command", type="tertiary", icon=":material/terminal:"):
                    st.code(equal_command(kind, config), language="bash", wrap_lines=True)


def say_complaint() -> None:
    """Why the last button did not do what it says, if it did not."""
    said = complaint()
    if said:
        with st.container(border=True):
            st.error("This could not be started.", icon=":material/error:")
            _say_error(said)


def demo() -> None:
    """The first open: a button builds the demo; then how far it is, or why it failed."""
    from core.backbone.presets import PRESETS

    say_complaint()
    fits = [run for run in all_runs() if run.kind == "fit"]
    if fits and fits[-1].live():
        st.markdown("#### Your first reward model is being built")
        st.markdown("Stay or come back later: this page shows it as soon as it is ready.")
        show(fits[-1])
        return
    if fits:
        show(fits[-1])
    with st.container(border=True, key="first open"):
        st.markdown("#### See why a response scored low")
        st.markdown(
            "A reward model from a sparse autoencoder says which features of a text move its score. Build the demo to look at one: "
            "939 preference pairs about truthfulness, safety and helpfulness, read by a small language model on this machine."
        )
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button("Build the demo", type="primary", icon=":material/play_arrow:", on_click=begin, args=("fit", PRESETS[DEMO]))
            st.button(
                "Build a toy instead",
                key="toy",
                on_click=begin,
                args=("fit", PRESETS[TOY]),
                help="A random model of two layers that is made here: seconds, no download, no sense.",
            )
            with st.popover("As a command", type="tertiary", icon=":material/terminal:"):
                st.code("sparserm fit --detach", language="bash")
        st.caption(
            "The demo takes some minutes on two cores. Its language model, SmolLM2-135M, comes once from PyPI (110 MB); "
            "nothing you type leaves this machine."
        )
    with st.container(horizontal=True):
        state.link("Bring your own pairs", "preferences")
        state.link("All settings", "runs")


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
            st.caption(f"**{kind_words(run.kind)}**" + ("" if now else ", queued" if run.status().state == "queued" else ", starting"))
            if now:
                st.progress(now.fraction or 0.0, text=f"{step_title(now.name)}{time_left(now.left).removesuffix(' in this step')}")
            page, name = ("align", "align_open") if run.kind == "align" else ("runs", "runs_open")
            state.link("Show", page, **{name: run.id})
    if len(live) > 3:
        st.caption(f"and {len(live) - 3} more")

"""An alignment while it runs: which step of which round, how long it still takes, what stands. The page is drawn anew when a step is done."""

from __future__ import annotations

import re

import streamlit as st

from core.align.records import DPO, EVALUATION, SHIFT, STEPS, RoundRecord
from core.errors import StoreError
from core.runs.progress import duration
from core.runs.registry import Run
from workbench.align import values as align
from workbench.align.values import Entry
from workbench.frame import progress, run_panel

FOREGROUND_POLL = 2.0  # seconds between two looks at what a command in the foreground has done
ROUND = re.compile(r"round (\d+): (.+)")
# What the engine calls the parts of a step -> what people call them.
PART_WORDS = {
    "candidates": "writing candidates",
    "generate": "writing answers",
    "rewards": "reading rewards",
    "score pairs": "reading rewards",
    "filter": "filtering",
    "dpo": "training",
    "train policy": "training",
    "read reference": "reading the reference",
    "held-out pairs": "reading held-out pairs",
    "validation pairs": "reading validation pairs",
    "test pairs": "reading test pairs",
    "multiple choice": "answering multiple choice",
    "divergence from the base model": "measuring KL from the base model",
    "evaluation": "evaluating",
    "shift": "comparing with the training data",
    "cosine similarity": "comparing with the training data",
    "load model": "loading the policy",
    "t-SNE": "drawing pictures",
}
LOOKS = {"done": (":material/check:", "green"), "now": (":material/progress_activity:", "blue"), "": (":material/circle:", "gray")}


def show(entry: Entry) -> None:
    """Who works on an alignment, and how far it is; or why its newest run did not end well, and the way on."""
    run = entry.run
    try:
        status = None if run is None else run.status()
    except StoreError as error:
        st.text(error.problem)
        return
    if run and status and status.live:
        st.fragment(_live, run_every=run_panel.POLL)(entry, run, align.signature(entry))
    elif entry.live:
        st.fragment(_in_foreground, run_every=FOREGROUND_POLL)(entry, align.signature(entry))
    elif run and status and status.state != "succeeded":
        run_panel.show(run, head=False)


def _in_foreground(entry: Entry, drawn: str) -> None:
    """A command's alignment: it tells no page how far a step is, but each step that stands is seen."""
    if align.signature(entry) != drawn or not align.in_foreground(entry):
        st.rerun()
    with st.container(border=True, key=f"live {entry.id}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            run_panel.state_badge("running")
            st.caption("A command works on it; its terminal says how far a step is. Each step stands here as soon as it is done.")
        rounds = entry.rounds
        last = rounds[-1] if rounds else RoundRecord(round=0, steps={})
        strip(entry, RoundRecord(round=last.round + 1, steps={}) if last.finished and last.round < entry.config.rounds else last)


def _live(entry: Entry, run: Run, drawn: str) -> None:
    if align.signature(entry) != drawn or not run.live():
        st.rerun()
    status, steps = run.status(), progress.follow(run).steps
    with st.container(border=True, key=f"live {run.id}"):
        run_panel._head(run, status, False)
        if status.state == "queued":
            st.caption(run_panel._waiting(run, status))
        elif not steps:
            st.progress(0.0, text="Starting")
        else:
            now = steps[-1]
            st.progress(now.fraction or 0.0, text=f"{step_words(now.name, entry.config.rounds)}{run_panel._left(now.left)}")
            _speed(now)
        strip(entry, _round_now(entry, steps))


def step_words(name: str, rounds: int) -> str:
    """A step's name for people. Names of downloads are not ours, and not for labels."""
    found = ROUND.fullmatch(name)
    if found is None:
        return "Rounds" if name == "rounds" else f"Reward model: {run_panel._safe_step(name).lower()}"
    part = PART_WORDS.get(found[2]) or run_panel._safe_step(found[2]).lower()
    return f"Base model: {part}" if found[1] == "0" else f"Round {found[1]} of {rounds}: {part}"


def _speed(now: progress.Step) -> None:
    """What a step tells beside how far it is."""
    rate = now.figures.get("tokens_per_second")
    figures = [f"{rate:,.0f} tokens a second"] if isinstance(rate, (int, float)) and rate else []
    figures += [
        f"{name} {value:.3g}" for name, value in now.figures.items() if name in ("loss", "accuracy", "margin") and isinstance(value, (int, float))
    ]
    if figures:
        st.caption(" · ".join(figures))


def _round_now(entry: Entry, steps: list[progress.Step]) -> RoundRecord | None:
    """The round that is being worked on, also before its first step stands; None while the reward model is fitted."""
    named = [found for step in steps if (found := ROUND.fullmatch(step.name))]
    if not named:
        return None
    number = int(named[-1][1])
    return next((one for one in entry.rounds if one.round == number), RoundRecord(round=number, steps={}))


def strip(entry: Entry, round: RoundRecord | None) -> None:
    """The steps of a round: those that stand, with the time they took, the one that is worked on, and those to come."""
    if round is None:
        return
    steps = STEPS if round.round else (EVALUATION,)
    over = round.finished or not entry.live
    left = [step for step in steps if step not in round.steps]
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.caption(f"Round {round.round}" if round.round else "Base model", width="content")
        for step in steps:
            stands = step in round.steps
            look, colour = LOOKS["done" if stands else "now" if left[:1] == [step] and not over else ""]
            took = f" {duration(align.seconds_of(round.steps[step]))}" if stands else ""
            passed = step == DPO and not stands and (EVALUATION in round.steps or SHIFT in round.steps)
            st.badge(f"{align.STEP_WORDS[step]}{': nothing to learn from' if passed else took}", icon=look, color=colour)  # type: ignore[arg-type]

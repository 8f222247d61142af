"""An alignment while it runs: the step of the round, the time left, and the steps that are done.

The page is drawn anew whenever a step is done.
"""

from __future__ import annotations

import re

import streamlit as st

from core.align.records import DPO, EVALUATION, SHIFT, STEPS, RoundRecord
from core.errors import StoreError
from core.runs.progress import duration
from core.runs.registry import Run
from workbench.align import values as align
from workbench.align.values import Entry
from workbench.frame import progress, run_panel, run_words

ROUND = re.compile(r"round (\d+): (.+)")
# The engine's name of a part of a step -> the words of the page.
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
    """The progress of an alignment that is being worked on, or why its newest run did not end well and what to do."""
    run = entry.run
    try:
        status = None if run is None else run.status()
    except StoreError as error:
        st.text(error.problem)
        return
    if run and status and status.live:
        st.fragment(_live, run_every=run_panel.POLL)(entry, run, align.signature(entry))
    elif run and status and status.state != "succeeded":
        run_panel.show(run, head=False)


def _live(entry: Entry, run: Run, drawn: str) -> None:
    if align.signature(entry) != drawn or not run.live():
        st.rerun()
    status, steps = run.status(), progress.follow(run).steps
    with st.container(border=True, key=f"live {run.id}"):
        run_panel.run_head(run, status, False)
        if status.state == "queued":
            st.caption(run_panel.waiting_text(run, status))
        elif not steps:
            st.progress(0.0, text="Starting")
        else:
            now = steps[-1]
            st.progress(now.fraction or 0.0, text=f"{step_words(now.name, entry.config.rounds)}{run_words.time_left(now.left)}")
            _speed(now)
        strip(entry, _round_now(entry, steps))


def step_words(name: str, rounds: int) -> str:
    """A step's name for people. A name that we did not write is shown as Downloading, since a label is Markdown."""
    in_round = ROUND.fullmatch(name)
    if in_round is None:
        return "Rounds" if name == "rounds" else f"Reward model: {run_words.step_title(name).lower()}"
    number, part = in_round.groups()
    words = PART_WORDS.get(part) or run_words.step_title(part).lower()
    return f"Base model: {words}" if number == "0" else f"Round {number} of {rounds}: {words}"


def _speed(now: progress.Step) -> None:
    """The figures of a step that is running, such as its speed."""
    rate = now.figures.get("tokens_per_second")
    figures = [f"{rate:,.0f} tokens a second"] if isinstance(rate, (int, float)) and rate else []
    figures += [
        f"{name} {value:.3g}" for name, value in now.figures.items() if name in ("loss", "accuracy", "margin") and isinstance(value, (int, float))
    ]
    if figures:
        st.caption(" · ".join(figures))


def _round_now(entry: Entry, steps: list[progress.Step]) -> RoundRecord | None:
    """The round that is being worked on, also before its first step is done; None while the reward model is fitted."""
    in_rounds = [match for step in steps if (match := ROUND.fullmatch(step.name))]
    if not in_rounds:
        return None
    number = int(in_rounds[-1][1])
    return next((round for round in entry.rounds if round.round == number), RoundRecord(round=number, steps={}))


def strip(entry: Entry, round: RoundRecord | None) -> None:
    """The steps of a round: done with the time they took, being worked on, and to come."""
    if round is None:
        return
    steps = STEPS if round.round else (EVALUATION,)
    over = round.finished or not entry.live
    left = [step for step in steps if step not in round.steps]
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.caption(f"Round {round.round}" if round.round else "Base model", width="content")
        for step in steps:
            done = step in round.steps
            look, colour = LOOKS["done" if done else "now" if left[:1] == [step] and not over else ""]
            took = f" {duration(align.seconds_of(round.steps[step]))}" if done else ""
            passed = step == DPO and not done and (EVALUATION in round.steps or SHIFT in round.steps)
            st.badge(f"{align.STEP_WORDS[step]}{': nothing to learn from' if passed else took}", icon=look, color=colour)  # type: ignore[arg-type]

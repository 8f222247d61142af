"""Words about runs on pages: names of kinds, states and steps, what a run is about, and times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from core.errors import SparseRMError
from core.jobs.kinds import KINDS, kind_of
from core.runs.progress import duration
from core.runs.registry import Run, Status
from workbench.frame import uploads

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


def kind_words(kind: str) -> str:
    """A kind's name for people."""
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
    """Draws a run's state."""
    icon, colour = STATE_LOOKS.get(name, UNKNOWN_LOOK)
    st.badge(name.capitalize(), icon=icon, color=colour)


def step_title(name: str) -> str:
    """A step's name for labels, without what a download's name holds."""
    return step_words(name) if name in STEP_WORDS or name.replace(" ", "").replace("-", "").replace(":", "").isalnum() else "Downloading"


def time_left(left: float | None) -> str:
    """The seconds that a step has left, for the text of its bar."""
    return "" if left is None or left < 0.5 else f" · about {duration(left)} left in this step"


def times(status: Status) -> str:
    """How long a run has taken, and of how long where that was estimated."""
    took = "" if status.seconds is None else duration(status.seconds)
    about = (status.estimate or {}).get("seconds") or 0.0
    if not (took and status.live and about > 10):
        return took
    return f"{took} of about {duration(about)}" if (status.seconds or 0.0) <= about else f"{took}; about {duration(about)} were expected"

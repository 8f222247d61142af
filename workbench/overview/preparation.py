"""How far the runs are that prepare the pages of a reward model, on Overview: a line for each page, until all are ready."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from core.errors import StoreError
from core.jobs.follow_up import newest_runs
from core.runs.registry import Run, Status
from workbench.frame import progress, run_panel, run_words, state
from workbench.frame.models import FittedModel

PAGES = {"doctor": ("doctor", "Doctor"), "spaces": ("spaces", "Spaces"), "latents": ("latent", "Latent")}  # page and title, by the run's kind
BADLY = ("failed", "cancelled", "interrupted")


def being_prepared(model: FittedModel) -> None:
    """Draws the runs that prepare the pages of this model while one of them is queued or works, or where one ended badly."""
    runs = {kind: run for kind, run in newest_runs(model.path).items() if kind in PAGES}
    states = {kind: status.state for kind, run in runs.items() if (status := _status(run))}
    live = any(run.live() for run in runs.values())
    if live or any(name in BADLY for name in states.values()):
        with st.container(border=True, key="preparation"):
            st.markdown("##### Pages that are being prepared" if live else "##### Not all pages could be prepared")
            st.fragment(_rows, run_every=run_panel.POLL if live else None)(runs)


def _status(run: Run) -> Status | None:
    try:
        return run.status()
    except StoreError:
        return None


def _rows(runs: Mapping[str, Run]) -> None:
    for kind, run in runs.items():
        status = _status(run)
        if status is not None:
            page, badge, how_far = st.columns([2, 2, 8], vertical_alignment="center")
            with page:
                name, title = PAGES[kind]
                state.link(title, name)
            with badge:
                run_words.state_badge(status.state)
            with how_far:
                _how_far(run, status)


def _how_far(run: Run, status: Status) -> None:
    steps = progress.follow(run).steps
    if status.state == "running" and steps:
        text = f"{run_words.step_title(steps[-1].name)} · {run_words.times(status)}"
        st.progress(steps[-1].fraction or 0.0, text=text)
    elif status.state == "queued":
        st.caption(run_panel.waiting_text(run, status))
    elif status.state == "succeeded":
        st.caption(f"Ready, made in {run_words.times(status)}")
    elif status.state in BADLY:
        st.caption("The page says why, and how to go on.")

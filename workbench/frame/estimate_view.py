"""What a run would take, beside the button of a form that starts it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from core.config import Config
from core.jobs.kinds import load_job
from core.runs.progress import size
from core.runs.store import cache_root
from core.text_safety import visible
from workbench.frame import estimates


def show_estimate(kind: str, config: Config, command: str, sentence: Callable[[Mapping[str, Any], str], str]) -> None:
    """The estimate of the run that `command` starts: `sentence(estimate, free disk)`, or why there is none.

    While the estimate is computed, the bytes that the kind guesses stand there; the page is drawn again when it is known.
    """
    words = [word for word in shlex.split(command)[1:] if word != "--detach"]
    known, free = estimates.estimate(words), free_disk(cache_root())
    if known is None:
        disk = load_job(kind).disk(config, cache_root())
        at_most = f"at most about {size(disk)} on disk, " if disk else ""
        st.fragment(_until_known, run_every=1.0)(words, f"Estimating the time; {at_most}{free} free.")
    elif "problem" in known:
        st.text(visible(known["problem"], 400))
    else:
        st.caption(sentence(known, free))


def free_disk(folder: Path) -> str:
    """The free space of the disk that a folder lies on, or will lie on."""
    while not folder.exists():
        folder = folder.parent
    return size(shutil.disk_usage(folder).free)


def _until_known(words: list[str], caption: str) -> None:
    if estimates.estimate(words) is not None:
        st.rerun()
    st.caption(caption)

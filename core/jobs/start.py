"""Starting runs, from a command or from any thread of any process. Nothing heavy is imported; core.runs.launch stops and removes runs."""

from __future__ import annotations

import sys
from pathlib import Path

from core.config import Config
from core.errors import ConfigError
from core.jobs.kinds import asked_config, kind_of, load_job
from core.runs.launch import restart, start
from core.runs.registry import Run
from core.runs.store import cache_root

WORKER = [sys.executable, "-m", "core.jobs.worker"]


def launch(
    kind: str,
    config: Config,
    *,
    root: Path | None = None,
    parent: str | None = None,
    prepare_pages: bool = False,
) -> str:
    """Starts a run and returns its id at once. Raises ConfigError for a wrong kind or config, StoreError where the disk is too full.

    `root` is the cache; `parent` the id of the run that this one changes. Paths in `config` are relative to the present working folder.
    With `prepare_pages`, a fit's worker starts the runs of core.jobs.follow_up at its end.
    """
    root = (root or cache_root()).resolve()
    expected = kind_of(kind).config
    if type(config).__name__ != expected.__name__:  # by name: a server that reloads its modules has the class twice
        raise ConfigError(f"a run of kind {kind} needs another config", expected=expected.__name__, found=type(config).__name__)
    disk = load_job(kind).disk(config, root)
    return start(kind, config.to_dict(), WORKER, root=root, parent=parent, disk=disk, prepares_pages=prepare_pages).id


def resume(run: Run) -> None:
    """Continues a run that failed, was cancelled or was interrupted: the same run, one attempt more; finished steps are found in the store.

    Raises ConfigError if it is live, or has succeeded.
    """
    restart(run, WORKER, disk=load_job(run.kind).disk(asked_config(run), run.root))

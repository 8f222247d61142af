"""Runs on disk: what was asked, how it went, who is alive. Read by anybody; nothing heavy is imported.

A run is a folder `<root>/runs/<UTC time>_<kind>_<random>/`:

    config.json      what was asked: kind, config, parent, what it prepares or is prepared for; written once
    resolved.json    the config with everything filled in (the newest SAE, absolute paths): every later attempt uses it
    status.json      state, attempt, times, pid, device, estimate, error; replaced whole, only by who holds `run.lock`
    events.jsonl     progress (core.runs.events)            log.txt          what the worker printed
    provenance.json  code, packages, machine, seeds         result.json      where the result lies, and every artefact with its hashes
    run.lock         held by the worker as long as it lives launch.lock      held from the begin of a launch until the worker has `run.lock`
    cancel           somebody wants it to stop

States written: queued, running, succeeded, failed, cancelled. A run that is written down as queued or running and whose lock nobody holds is
*interrupted*: nobody wrote that. (If somebody had asked for its end, it is cancelled.)
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import ConfigError, MissingError, SparseRMError, StoreError
from core.files import read_json, write_json
from core.runs.events import last_progress
from core.runs.locks import is_held
from core.runs.store import cache_root
from core.types import JsonFields

SCHEMA = 1
LIVE = ("queued", "running")
STATES = (*LIVE, "succeeded", "failed", "cancelled", "interrupted")
EXIT_CODES = {"succeeded": 0, "failed": 1, "cancelled": 130, "interrupted": 1}


@dataclass(frozen=True, kw_only=True)
class Status(JsonFields):
    """How a run stands. Times are seconds since 1970. `state` is derived: see the module. `error` has problem, expected, found, remedy, exit_code."""

    state: str
    attempt: int
    queued: float
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    devices: tuple[str, ...] | None = None
    estimate: Mapping[str, float] | None = None
    error: Mapping[str, Any] | None = None

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def exit_code(self) -> int:
        """What `sparserm runs follow` ends with."""
        given = (self.error or {}).get("exit_code")
        return int(given) if given and self.state == "failed" else EXIT_CODES.get(self.state, 0)

    @property
    def seconds(self) -> float | None:
        """How long this attempt has been running, or ran."""
        return None if self.started is None else (self.ended or time.time()) - self.started


class Run:
    """One run's folder. Everything is read anew at each call, but for what never changes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({self.id})"

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def root(self) -> Path:
        """The cache that the run lies in."""
        return self.path.parent.parent

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    @property
    def launch_lock(self) -> Path:
        return self.path / "launch.lock"

    @property
    def cancel_mark(self) -> Path:
        return self.path / "cancel"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @cached_property
    def asked(self) -> Mapping[str, Any]:
        """`config.json`. Raises StoreError if it can't be read or was written by another version."""
        asked = _read(self.path / "config.json")
        if asked is None or asked.get("schema") != SCHEMA:
            raise StoreError(f"{self.path} holds no run that this version reads", expected=f"config.json of schema {SCHEMA}")
        return asked

    @property
    def kind(self) -> str:
        return str(self.asked["kind"])

    @property
    def parent(self) -> str | None:
        """The run that this one was made from by changing something."""
        parent = self.asked["parent"]
        return None if parent is None else str(parent)

    @property
    def prepares_pages(self) -> bool:
        """Whether the runs that prepare the pages of what it makes follow it (core.jobs.follow_up)."""
        return bool(self.asked.get("prepares_pages"))

    @property
    def prepared_for(self) -> str | None:
        """The fit's run that this one follows by itself, to prepare pages."""
        run_id = self.asked.get("prepared_for")
        return None if run_id is None else str(run_id)

    def config(self) -> Mapping[str, Any]:
        """The values of the config that was asked for; core.jobs.kinds makes a config of them."""
        values: Mapping[str, Any] = self.asked["config"]
        return values

    def resolved(self) -> Mapping[str, Any] | None:
        """The same with everything filled in, once the worker has done so."""
        return _read(self.path / "resolved.json")

    def status(self) -> Status:
        """How the run stands now. Raises StoreError if that can't be read."""
        written, alive = self.written(), self._alive()
        if written.live and not alive:
            written = self.written()  # it may have ended between the two looks
        if written.live and not alive:
            state = "cancelled" if self.cancel_mark.exists() else "interrupted"
            return dataclasses.replace(written, state=state, ended=written.ended or _modified(self.events))
        return written

    def live(self) -> bool:
        """Whether it is queued or running; a damaged run is neither."""
        try:
            return self.status().live
        except StoreError:
            return False

    def written(self) -> Status:
        """`status.json` as its last writer left it, whether that one lives or not."""
        values = _read(self.path / "status.json")
        if values is None:
            raise StoreError(f"{self.path} has no readable status.json", remedy=f"sparserm runs remove {self.id}")
        devices = values.get("devices")
        return Status(**{**values, "devices": None if devices is None else tuple(devices)})

    def write(self, status: Status) -> None:
        """Replaces `status.json`. Only for who holds `run.lock`."""
        write_json(self.path / "status.json", status.to_json())

    def _alive(self) -> bool:
        # In this order: a process takes run.lock before it releases launch.lock.
        return is_held(self.launch_lock) or is_held(self.lock)

    def result(self) -> Mapping[str, Any] | None:
        """`result.json` of the finished run."""
        return _read(self.path / "result.json")

    def provenance(self) -> Mapping[str, Any] | None:
        return _read(self.path / "provenance.json")

    def progress(self) -> Mapping[str, Any] | None:
        """The newest progress event of any attempt."""
        return last_progress(self.events)

    def summary(self) -> dict[str, Any]:
        """One JSON object about the run: status, newest progress, where the result lies."""
        status, progress, result = self.status(), self.progress() or {}, self.result() or {}
        shown = {name: progress.get(name) for name in ("step", "fraction", "left", "rate", "rss", "peak")}
        head = {"run": self.id, "kind": self.kind, "parent": self.parent, "prepared_for": self.prepared_for, **status.to_json()}
        return {**head, "seconds": status.seconds, "progress": shown if progress else None, "artefact": result.get("artefact")}


def runs_root(root: Path | None = None) -> Path:
    return (root or cache_root()).resolve() / "runs"


def all_runs(root: Path | None = None) -> list[Run]:
    """Every run in the cache, oldest first. What is being made or removed is not among them."""
    folder = runs_root(root)
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [Run(folder / name) for name in names if not name.startswith(".") and (folder / name / "config.json").is_file()]


def summaries(root: Path | None = None) -> list[dict[str, Any]]:
    """`Run.summary` of every run, oldest first. One that can't be read says so (state `damaged`) and is in nobody's way."""
    return [_summary(run) for run in all_runs(root)]


def _summary(run: Run) -> dict[str, Any]:
    try:
        return run.summary()
    except (StoreError, ConfigError, TypeError, KeyError) as error:  # unreadable, or from another version
        problem = error.problem if isinstance(error, SparseRMError) else str(error)
        known = dict.fromkeys(("parent", "prepared_for", "seconds", "progress", "artefact", "queued", "started", "ended", "attempt"))
        remedy = f"sparserm runs remove {run.id}"
        error_values = {"problem": problem, "expected": "", "found": "", "remedy": remedy, "exit_code": StoreError.exit_code}
        return {**known, "run": run.id, "kind": run.id.split("_")[1], "state": "damaged", "error": error_values}


def find_run(name: str = "", root: Path | None = None) -> Run:
    """The run whose id is `name` or, if it is the only one, contains it; the newest if `name` is empty. Raises MissingError."""
    runs = all_runs(root)
    matching = [run for run in runs if run.id == name] or [run for run in runs if name in run.id]
    if not name:
        matching = matching[-1:]
    if len(matching) != 1:
        which = f"more than one run has {name} in its id" if matching else f"there is no run {name}".rstrip()
        remedy = "sparserm runs list" if runs else "sparserm fit --detach starts one"
        raise MissingError(which, found=", ".join(run.id for run in matching), remedy=remedy)
    return matching[0]


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file of a run; None if the file is not there. Raises StoreError if it is damaged."""
    try:
        value = read_json(path)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise StoreError(f"{path} is damaged", found=error.found) from error
    return value if isinstance(value, dict) else None


def _modified(path: Path) -> float | None:
    return path.stat().st_mtime if path.is_file() else None

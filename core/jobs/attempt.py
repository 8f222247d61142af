"""One attempt at a run, inside the worker's process (core.jobs.worker), which is the only writer of the run's status as long as it lives.

1. Write the state "queued" and the process's id.
2. Fill in what was left out (`resolved.json`, once), find the device, wait in the queue for it: the oldest live queued run goes first.
3. Note provenance and estimate, refuse a full disk, write "running", do the job, write `result.json`, start what follows the run by itself
   (core.jobs.follow_up), write how it ended.

A thread watches for the cancel mark. The job's next progress report raises `Cancelled`; if none comes in time (a long matrix product, a download,
foreign code), the thread writes the status and kills this process with its children. Artefacts are whole or absent, so that hurts nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.backbone.estimate import check_disk
from core.config import Config
from core.errors import Cancelled, StoreError, error_to_dict
from core.files import file_sha256, write_json
from core.jobs.follow_up import start_follow_ups
from core.jobs.job import Job, devices_of, input_hashes
from core.jobs.kinds import asked_config, load_job, resolved_config
from core.runs.events import EventLog
from core.runs.locks import device_turn
from core.runs.processes import kill_tree
from core.runs.progress import Display, log_to
from core.runs.provenance import RecordingStore, provenance
from core.runs.registry import Run, Status, all_runs
from core.runs.store import HOLD

POLL = 0.15  # seconds between two looks for the cancel mark, or at the queue
PATIENCE = 1.2  # seconds that the job has to notice a cancellation by itself


class Attempt:
    """One attempt at one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.status = dataclasses.replace(run.written(), state="queued", pid=os.getpid(), started=None, ended=None, error=None)
        self.events = EventLog(run.events)
        self.display = Display()
        self.cancelled, self.over = threading.Event(), threading.Event()
        self._ending = threading.Lock()

    def work(self) -> int:
        """The whole attempt; its exit code. Nothing is raised."""
        self._write(state="queued")
        log_to(self.say, self.warn)
        threading.Thread(target=self._watch, name="cancel", daemon=True).start()
        with contextlib.ExitStack() as turn:  # the device is released after the status is written
            try:
                with self.display:  # closed before the status is written, so that a reader of the status finds the whole log
                    self._do(turn)
            except Cancelled:
                self._end("cancelled")
            except Exception as error:
                traceback.print_exc()
                self._end("failed", error=error_to_dict(error))
            else:
                self._end("succeeded")
        if self.status.state == "cancelled":
            self._leave()
        return self.status.exit_code

    def _do(self, turn: contextlib.ExitStack) -> None:
        job: Job = load_job(self.run.kind)
        store = RecordingStore(self.run.root, self.say)
        devices = devices_of(job.backbone(asked_config(self.run)))
        self._write(devices=devices)
        config = self._resolved(job, store)
        turn.enter_context(device_turn(store.root, devices, self._pause, Queue(self.run, self.status).first))
        write_json(self.run.path / "provenance.json", provenance(config, devices, input_hashes(job, config)))
        self._write(state="running", started=time.time())
        self._estimate(job, config, store)
        result = job.run(config, store, self.progress)
        write_json(self.run.path / "result.json", {**result, **_files(result, store)})
        if self.run.prepares_pages and not self.run.cancel_mark.exists():
            start_follow_ups(self.run, Path(result["artefact"]), _own_command(), self.say, self.warn)

    def _resolved(self, job: Job, store: RecordingStore) -> Config:
        """The config that every attempt uses: filled in by the first, with no relative path left."""
        config = resolved_config(self.run)
        if config is None:
            os.chdir(self.run.asked["folder"])
            config = job.complete(asked_config(self.run), store, self.say)
            write_json(self.run.path / "resolved.json", config.to_dict())
        return config

    def _estimate(self, job: Job, config: Config, store: RecordingStore) -> None:
        estimate = job.plan(config, store, self.progress)
        self._write(estimate=dataclasses.asdict(estimate))
        self.say(f"estimate: {estimate}")
        check_disk(estimate, store.root)

    # --- reporting ---

    def progress(self, step: str, done: float, total: float, **figures: Any) -> None:
        """core.types.Progress. Raises Cancelled once the run's cancellation was asked for."""
        self.events.progress(step, done, total, **figures)
        self.display(step, done, total, **figures)
        self._hold_for_tests(step, done, total)
        if self.cancelled.is_set():
            raise Cancelled

    def say(self, text: str) -> None:
        self.events.say(text)
        self.display.say(text)

    def warn(self, text: str) -> None:
        """A line that is also shown to a person who asked for JSON."""
        self.events.say(text, warning=True)
        self.display.say(text)

    def _write(self, **changes: Any) -> None:
        with self._ending:
            if self.over.is_set():
                raise Cancelled  # the watcher has ended the run and is about to end this process
            self._replace(changes)

    def _replace(self, changes: Mapping[str, Any]) -> None:
        self.status = dataclasses.replace(self.status, **changes)
        if "state" in changes:  # the event first: a reader who sees the last status then finds every event
            self.events.state(self.status.state, attempt=self.status.attempt, error=self.status.error)
        self.run.write(self.status)

    def _end(self, state: str, error: Mapping[str, Any] | None = None) -> None:
        """Writes how the attempt ended; of the job and the watcher, the first to call this decides."""
        with self._ending:
            if not self.over.is_set():
                self.over.set()
                self._replace({"state": state, "ended": time.time(), "error": error})

    # --- stopping ---

    def _pause(self) -> None:
        """Between two looks at the queue."""
        if self.cancelled.wait(POLL):
            raise Cancelled

    def _watch(self) -> None:
        while not self.over.wait(POLL):
            if self.run.cancel_mark.exists():
                self.cancelled.set()
                if not self.over.wait(PATIENCE):
                    self._end("cancelled")
                    self._leave()
                return

    def _leave(self) -> None:
        """Ends this process and its children now: torch can take seconds to shut down."""
        sys.stderr.flush()
        kill_tree(os.getpid())

    def _hold_for_tests(self, step: str, done: float, total: float) -> None:
        """Where a kill test holds a run: `STEP@SHARE` of a step."""
        held, _, share = os.environ.get(HOLD, "").partition("@")
        if share and step == held and done >= float(share) * total:
            (self.run.path / "held").touch()
            while not self.cancelled.wait(POLL):
                pass


class Queue:
    """The runs ahead of a run in the queue: live ones that were queued earlier, still wait, and may need one of its devices."""

    def __init__(self, run: Run, status: Status) -> None:
        self.devices = set(status.devices or ())
        self._before = [other for other in all_runs(run.root) if other.id != run.id and _earlier(other, run, status)]

    def first(self) -> bool:
        """Whether the run's turn has come. Those who came later need not be looked at: they can only be behind."""
        self._before = [other for other in self._before if self._waits(other)]
        return not self._before

    def _waits(self, other: Run) -> bool:
        try:
            status = other.status()
        except StoreError:
            return False
        # One that does not know its device yet may want ours.
        return status.state == "queued" and (status.devices is None or bool(self.devices & set(status.devices)))


def _earlier(other: Run, run: Run, status: Status) -> bool:
    try:
        theirs = other.written()
    except StoreError:
        return False
    return theirs.state == "queued" and (theirs.queued, other.id) < (status.queued, run.id)


def _own_command() -> list[str]:
    """The command that started this worker, without its arguments."""
    n_arguments = len(sys.argv) - 1
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - n_arguments]]


def _files(result: Mapping[str, Any], store: RecordingStore) -> dict[str, Any]:
    """The artefacts behind a result, and the sha256 of every file in the folder that it names."""
    folder = Path(result["artefact"]) if result["artefact"] else None
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder else []
    return {"artefacts": store.record(), "files": {file.relative_to(folder).as_posix(): file_sha256(file) for file in files if folder}}

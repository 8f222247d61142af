"""Starting, stopping, continuing and removing runs, from a command or from any thread of any process; nothing heavy is imported.

A run works in a process and a session of its own, so it outlives whoever started it. core.jobs.start says which process, and calls `start`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.errors import ConfigError, StoreError
from core.files import write_json
from core.runs.locks import LOOKING, InheritedLock, is_held, make_lock
from core.runs.processes import kill_tree, start_detached
from core.runs.registry import SCHEMA, Run, Status, runs_root

# The worker has 2 s to end after a cancellation; it needs at most 1.5 itself (core.jobs.attempt).
CANCEL_WITHIN = 1.9
SPARE_DISK = 200e6  # bytes left free beside what the run is known to write


def start(
    kind: str,
    config: Mapping[str, Any],
    worker: Sequence[str],
    *,
    root: Path,
    disk: float,
    parent: str | None = None,
    prepares_pages: bool = False,
    prepared_for: str | None = None,
) -> Run:
    """Makes the folder of a new run and starts `worker` on it.

    `disk`: bytes that the run will write. `prepares_pages` and `prepared_for`: what follows the run, and what it follows (core.jobs.follow_up).
    Raises StoreError where the disk is too full.
    """
    _check_disk(disk, root)
    run, launching = new_run(kind, config, root, parent, prepares_pages=prepares_pages, prepared_for=prepared_for)
    start_worker(run, worker, launching)
    return run


def restart(run: Run, worker: Sequence[str], *, disk: float) -> None:
    """Starts one attempt more of a run that failed, was cancelled or was interrupted. Raises ConfigError if it is live, or has succeeded."""
    problem = f"{run.id} is {run.status().state}: there is nothing to resume"
    if run.status().live:
        raise ConfigError(problem)
    launching = _take_launch(run)
    try:
        with _taken(run.lock, problem):
            written = run.written()
            if written.state == "succeeded":
                raise ConfigError(f"{run.id} has succeeded: there is nothing to resume", remedy=f"sparserm runs rerun {run.id} makes a new run of it")
            _check_disk(disk, run.root)
            run.cancel_mark.unlink(missing_ok=True)
            run.write(Status(state="queued", attempt=written.attempt + 1, queued=time.time()))
    except BaseException:
        launching.release()
        raise
    start_worker(run, worker, launching)


def cancel(run: Run) -> Status:
    """Ends a live run and returns how it stands then, at the latest after 2 s. Finished steps are kept. Raises ConfigError if it is not live.

    The worker is asked first; one that does not answer in time (it hangs in foreign code) is killed: artefacts are whole or absent.
    """
    status = run.status()
    if not status.live:
        raise ConfigError(f"{run.id} is {status.state}: there is nothing to cancel")
    run.cancel_mark.touch()
    if status.pid is None and _cancel_before_start(run):
        return run.status()
    deadline = time.monotonic() + CANCEL_WITHIN
    while time.monotonic() < deadline:
        status = run.status()
        if not status.live:
            _until_free(run.lock, deadline - time.monotonic())  # its status is written, and the process is about to end
            return status
        time.sleep(0.03)
    if is_held(run.lock) and status.pid is not None:  # the pid is that of the lock's holder, who lives
        kill_tree(status.pid)
        _until_free(run.lock, 1.0)
    return run.status()


def _cancel_before_start(run: Run) -> bool:
    """Cancels a queued run before its worker has started; the worker then finds nothing to do. Returns whether it could."""
    with contextlib.suppress(ConfigError), _taken(run.lock, "its worker has come up", timeout=0.05):
        written = run.written()
        if written.state == "queued" and written.pid is None:
            run.write(dataclasses.replace(written, state="cancelled", ended=time.time()))
            return True
    return False


def remove(run: Run) -> int:
    """Removes a run's folder (not its artefacts); returns the bytes freed. Raises ConfigError if it is live."""
    refusal = (f"{run.id} is live and can't be removed", f"sparserm runs cancel {run.id}")
    if run.live():
        raise ConfigError(refusal[0], remedy=refusal[1])
    with _taken(run.launch_lock, *refusal), _taken(run.lock, *refusal):
        size = run_size(run)
        gone = run.path.with_name(f".removed-{run.id}")
        if os.name == "posix":
            os.rename(run.path, gone)  # at once, so that no reader sees half a run
        else:
            gone = run.path
    shutil.rmtree(gone, ignore_errors=True)
    return size


def run_size(run: Run) -> int:
    """Bytes of the run's folder."""
    return sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())


def wait_started(run: Run, timeout: float = 30.0) -> bool:
    """Waits until the worker has taken over (or has failed to). A command that ends after launching waits for this; a server need not."""
    return _until_free(run.launch_lock, timeout)


def _check_disk(disk: float, root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    needed, free = disk + SPARE_DISK, shutil.disk_usage(root).free
    if free < needed:
        raise StoreError(
            f"the disk of {root} is too full for this run",
            expected=f"about {needed / 1e9:.1f} GB free",
            found=f"{free / 1e9:.1f} GB",
            remedy="sparserm cache clean, sparserm runs remove, or SPARSERM_CACHE=/another/disk",
        )


def new_run(
    kind: str, config: Mapping[str, Any], root: Path, parent: str | None, *, prepares_pages: bool = False, prepared_for: str | None = None
) -> tuple[Run, InheritedLock]:
    """The folder, its launch lock held. `config.json` comes last: before it, no list shows the run."""
    now = datetime.now(UTC)
    run = Run(runs_root(root) / f"{now:%Y%m%dT%H%M%S}.{now.microsecond:06d}Z_{kind}_{secrets.token_hex(3)}")
    run.path.mkdir(parents=True)
    lock = _take_launch(run)
    run.write(Status(state="queued", attempt=1, queued=now.timestamp()))
    asked = {"kind": kind, "config": dict(config), "parent": parent, "folder": os.getcwd(), "created": now.timestamp()}
    follows = {name: value for name, value in (("prepares_pages", prepares_pages), ("prepared_for", prepared_for)) if value}
    write_json(run.path / "config.json", {"schema": SCHEMA, **asked, **follows})
    return run, lock


def _take_launch(run: Run) -> InheritedLock:
    try:
        return InheritedLock(run.launch_lock)
    except Timeout:
        raise ConfigError(f"{run.id} is being started already") from None


def start_worker(run: Run, worker: Sequence[str], launching: InheritedLock) -> None:
    start_detached(
        [*worker, str(run.path)],
        launching=launching,
        lock=run.lock,
        log=run.log,
        environment={"SPARSERM_CACHE": str(run.root)},
        died_early=partial(_note_never_started, run),
    )


def _note_never_started(run: Run, code: int) -> None:
    with contextlib.suppress(StoreError, ConfigError, OSError), _taken(run.lock, "held"):
        written = run.written()
        if written.state == "queued" and written.pid is None:
            last = run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            last_line = "".join(last) or f"exit code {code}"
            error = {"problem": "the worker could not start", "expected": "", "found": last_line, "remedy": f"see {run.log}", "exit_code": 1}
            run.write(dataclasses.replace(written, state="failed", ended=time.time(), error=error))


def _take(path: Path, problem: str, remedy: str = "", timeout: float = LOOKING) -> FileLock:
    """Takes a lock that must be free, or about to be freed by a process that ends. Raises ConfigError if it is held."""
    lock = make_lock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise ConfigError(problem, remedy=remedy) from None
    return lock


@contextlib.contextmanager
def _taken(path: Path, problem: str, remedy: str = "", timeout: float = LOOKING) -> Iterator[None]:
    lock = _take(path, problem, remedy, timeout)
    try:
        yield
    finally:
        lock.release()


def _until_free(path: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while is_held(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True

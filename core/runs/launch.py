"""Starting, stopping, continuing and removing runs, from a command or from any thread of any process; nothing heavy is imported.

A run works in a process of its own and a session of its own (`python -m core.jobs.worker RUN_DIR`), so it outlives whoever started it. Until that
process holds `run.lock`, the launcher and then the process hold `launch.lock`: at no moment does a healthy run look dead. A thread of the launcher
waits for the worker's end, so that none stays behind as a zombie; if the launcher ends first, the system does that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.config import Config
from core.errors import ConfigError, StoreError
from core.files import write_json
from core.runs.locks import LOOKING, Handover, is_held, make_lock
from core.runs.registry import SCHEMA, Run, Status, kind_of, runs_root
from core.runs.store import cache_root

PACKAGE = Path(__file__).resolve().parents[2]
WORKER = [sys.executable, "-m", "core.jobs.worker"]
# The worker has 2 s to end after a cancellation; it needs at most 1.5 itself (core.jobs.attempt).
CANCEL_WITHIN = 1.9
SPARE_DISK = 200e6  # bytes left free beside what the run is known to write


def launch(kind: str, config: Config, *, root: Path | None = None, parent: str | None = None) -> str:
    """Starts a run and returns its id at once. Raises ConfigError for a wrong kind or config, StoreError where the disk is too full.

    `root` is the cache; `parent` the id of the run that this one changes. Paths in `config` are relative to the present working folder.
    """
    root = (root or cache_root()).resolve()
    expected = kind_of(kind).config
    if type(config).__name__ != expected.__name__:  # by name: a server that reloads its modules has the class twice
        raise ConfigError(f"a run of kind {kind} needs another config", expected=expected.__name__, found=type(config).__name__)
    _check_disk(kind, config, root)
    run, lock = new_run(kind, config, root, parent)
    start_worker(run, lock)
    return run.id


def resume(run: Run) -> None:
    """Continues a run that failed, was cancelled or was interrupted: the same run, one attempt more; finished steps are found in the store.

    Raises ConfigError if it is live, or has succeeded.
    """
    problem = f"{run.id} is {run.status().state}: there is nothing to resume"
    if run.status().live:
        raise ConfigError(problem)
    lock = _take_launch(run)
    try:
        with _taken(run.lock, problem):
            written = run.written()
            if written.state == "succeeded":
                raise ConfigError(f"{run.id} has succeeded: there is nothing to resume", remedy=f"sparserm runs rerun {run.id} makes a new run of it")
            _check_disk(run.kind, run.config(), run.root)
            run.cancel_mark.unlink(missing_ok=True)
            run.write(Status(state="queued", attempt=written.attempt + 1, queued=time.time()))
    except BaseException:
        lock.release()
        raise
    start_worker(run, lock)


def cancel(run: Run) -> Status:
    """Ends a live run and returns how it stands then, at the latest after 2 s. Finished steps are kept. Raises ConfigError if it is not live.

    The worker is asked first; one that does not answer in time (it hangs in foreign code) is killed: artefacts are whole or absent.
    """
    status = run.status()
    if not status.live:
        raise ConfigError(f"{run.id} is {status.state}: there is nothing to cancel")
    run.cancel_mark.touch()
    if status.pid is None and _cancelled_unborn(run):
        return run.status()
    deadline = time.monotonic() + CANCEL_WITHIN
    while time.monotonic() < deadline:
        status = run.status()
        if not status.live:
            _until_free(run.lock, deadline - time.monotonic())  # it has said so, and is about to go
            return status
        time.sleep(0.03)
    if is_held(run.lock) and status.pid is not None:  # the pid is that of the lock's holder, who lives
        kill_tree(status.pid)
        _until_free(run.lock, 1.0)
    return run.status()


def _cancelled_unborn(run: Run) -> bool:
    """Ends a run whose worker has not come up yet: when it does, it finds nothing to do."""
    with contextlib.suppress(ConfigError), _taken(run.lock, "its worker has come up", timeout=0.05):
        written = run.written()
        if written.state == "queued" and written.pid is None:
            run.write(dataclasses.replace(written, state="cancelled", ended=time.time()))
            return True
    return False


def remove(run: Run) -> int:
    """Removes a run's folder (not its artefacts); returns the bytes freed. Raises ConfigError if it is live."""
    said = (f"{run.id} is live and can't be removed", f"sparserm runs cancel {run.id}")
    if run.live():
        raise ConfigError(said[0], remedy=said[1])
    with _taken(run.launch_lock, *said), _taken(run.lock, *said):
        size = run_size(run)
        gone = run.path.with_name(f".removed-{run.id}")
        if os.name == "posix":
            os.rename(run.path, gone)  # at once, so that nobody reads half a run
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


def load_job(kind: str) -> Any:
    """The `core.jobs.fit.Job` of a kind."""
    module, name = kind_of(kind).job.split(":")
    return getattr(importlib.import_module(module), name)


def kill_tree(pid: int) -> None:
    """Kills a worker and whatever it started. A worker leads a process group of its own, but not one that was started by hand."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)


def _check_disk(kind: str, config: Config, root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    needed, free = load_job(kind).disk(config, root) + SPARE_DISK, shutil.disk_usage(root).free
    if free < needed:
        raise StoreError(
            f"the disk of {root} is too full for this run",
            expected=f"about {needed / 1e9:.1f} GB free",
            found=f"{free / 1e9:.1f} GB",
            remedy="sparserm cache clean, sparserm runs remove, or SPARSERM_CACHE=/another/disk",
        )


def new_run(kind: str, config: Config, root: Path, parent: str | None) -> tuple[Run, Handover]:
    """The folder, its launch lock held. `config.json` comes last: before it, no list shows the run."""
    now = datetime.now(UTC)
    run = Run(runs_root(root) / f"{now:%Y%m%dT%H%M%S}.{now.microsecond:06d}Z_{kind}_{secrets.token_hex(3)}")
    run.path.mkdir(parents=True)
    lock = _take_launch(run)
    run.write(Status(state="queued", attempt=1, queued=now.timestamp()))
    asked = {"kind": kind, "config": config.to_dict(), "parent": parent, "folder": os.getcwd(), "created": now.timestamp()}
    write_json(run.path / "config.json", {"schema": SCHEMA, **asked})
    return run, lock


def _take_launch(run: Run) -> Handover:
    try:
        return Handover(run.launch_lock)
    except Timeout:
        raise ConfigError(f"{run.id} is being started already") from None


def start_worker(run: Run, launching: Handover) -> None:
    """Starts the worker; a thread holds `launching` until it has taken over, and then waits for its end."""
    environment = {**os.environ, "SPARSERM_CACHE": str(run.root), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    own: dict[str, Any] = {"start_new_session": True, "pass_fds": launching.to_pass}
    if sys.platform == "win32":
        own = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    command = [*WORKER, str(run.path), *map(str, launching.to_pass)]
    try:
        with run.log.open("ab") as log:
            # Started where our package lies, so that no folder of the person's named `core` is taken for it; the worker goes to theirs.
            worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=PACKAGE, env=environment, **own)
    except BaseException:
        launching.release()
        raise
    threading.Thread(target=_attend, args=(run, worker, launching), name=f"attend {run.id}", daemon=True).start()


def _attend(run: Run, worker: subprocess.Popen[bytes], launching: Handover) -> None:
    try:
        while worker.poll() is None and not is_held(run.lock):
            time.sleep(0.02)
        if worker.poll() is not None:
            _say_if_never_started(run, worker.returncode)
    finally:
        launching.release()
    worker.wait()


def _say_if_never_started(run: Run, code: int) -> None:
    with contextlib.suppress(StoreError, ConfigError, OSError), _taken(run.lock, "held"):
        written = run.written()
        if written.state == "queued" and written.pid is None:
            last = run.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            found = "".join(last) or f"exit code {code}"
            error = {"problem": "the worker could not start", "expected": "", "found": found, "remedy": f"see {run.log}", "exit_code": 1}
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

"""Starts, finds and ends the process of a live reward model. It imports nothing heavy and does not wait for the model.

The process leads a session of its own, so it outlives whoever started it, and ends by itself when nobody has asked it
anything for a while. From the moment of its start somebody holds `launch.lock` (then `server.lock`): two who ask at
once start one process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Any

from filelock import Timeout

from core.data.http import HttpError, LocalHttp
from core.reward.recorded_files import read_config
from core.runs.locks import InheritedLock, is_held
from core.runs.processes import start_detached
from core.serving.server_folder import PROTOCOL, Address, ServerFolder, signature

WORKER = [sys.executable, "-m", "core.serving.worker"]
IDLE = 900.0  # seconds without a request after which a detached process ends
STOP_WITHIN = 6.0


def start(server_folder: ServerFolder, *, device: str = "auto", idle: float = IDLE, port: int = 0, again: bool = False) -> None:
    """Starts the process unless it runs, is being started, or has failed (`again` tries it once more). One of another
    protocol, or of files that have changed since, is replaced. Raises StoreError where `server_folder.model` holds no
    reward model, or one that is not whole.
    """
    read_config(server_folder.model)
    address = server_folder.address()
    if address is not None and (address.protocol != PROTOCOL or address.signature != signature(server_folder.model)):
        stop(server_folder)
    if server_folder.live():
        return
    if again:
        server_folder.forget("failure", "starts")
    if server_folder.failure() is None and _stable(server_folder):
        _start(server_folder, [device, str(idle), str(port)])


def stop(server_folder: ServerFolder) -> bool:
    """Ends the process, at first by SIGTERM, after `STOP_WITHIN` seconds by SIGKILL. Returns whether there was one."""
    address = server_folder.address()
    if address is None or not address.pid:
        return False
    with contextlib.suppress(OSError):
        os.kill(address.pid, signal.SIGTERM)  # the process holds the lock, so no other has its pid
    end = time.monotonic() + STOP_WITHIN
    while is_held(server_folder.lock) and time.monotonic() < end:
        time.sleep(0.02)
    if is_held(server_folder.lock):
        with contextlib.suppress(OSError):
            os.kill(address.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    server_folder.forget("starts")
    return True


_health_client = LocalHttp(timeout=2.0, keep_open=False)


def health(address: Address) -> dict[str, Any] | None:
    """How the process at an address stands (core.serving.engine.Engine.health); None where it does not answer in time."""
    try:
        status, value = _health_client.ask("GET", f"{address.url}/health", secret=address.secret, largest=65536)
    except HttpError:
        return None
    return value if status == 200 and isinstance(value, dict) else None


def _stable(server_folder: ServerFolder) -> bool:
    """Returns False and records a failure after repeated crashes."""
    if not server_folder.unstable():
        return True
    last = server_folder.log_tail().splitlines()[-1:]
    cause = "".join(last) or "nothing in its log"
    server_folder.fail(
        {"problem": "the model's process keeps dying", "expected": "", "found": cause, "remedy": f"see {server_folder.log}", "exit_code": 4}
    )
    return False


def _start(server_folder: ServerFolder, arguments: list[str]) -> None:
    server_folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        launching = InheritedLock(server_folder.launch_lock)
    except Timeout:
        return  # another process is starting it
    if is_held(server_folder.lock):
        launching.release()
        return
    server_folder.forget("address")
    server_folder.note_start()
    server_folder.log.write_bytes(b"")
    command = [*WORKER, str(server_folder.model), *arguments]
    start_detached(
        command, launching=launching, lock=server_folder.lock, log=server_folder.log, environment={"SPARSERM_CACHE": str(server_folder.root)}
    )

"""Starting, finding and ending the process of a live reward model; nothing heavy is imported, nothing waits.

The process leads a session of its own, so it outlives whoever started it, and ends by itself when nobody has asked it anything for a while. From the
moment of its start somebody holds `launch.lock` (then `server.lock`): two who ask at once start one process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from filelock import Timeout

from core.reward.recorded_files import read_config
from core.runs.launch import PACKAGE
from core.runs.locks import Handover, is_held
from core.serving.server_folder import HOST, PROTOCOL, Address, Place, signature

WORKER = [sys.executable, "-m", "core.serving.worker"]
IDLE = 900.0  # seconds without a question after which a process ends that nobody watches
STOP_WITHIN = 6.0


def start(place: Place, *, device: str = "auto", idle: float = IDLE, port: int = 0, again: bool = False) -> None:
    """Starts the process unless it is there, about to be, or has failed (`again` tries it once more). One that speaks another protocol, or serves
    files that have changed since, is replaced. Raises StoreError where `place.model` holds no reward model, or one that is not whole.
    """
    read_config(place.model)
    address = place.address()
    if address is not None and (address.protocol != PROTOCOL or address.signature != signature(place.model)):
        stop(place)
    if place.live():
        return
    if again:
        place.forget("failure", "starts")
    if place.failure() is None and _stable(place):
        _start(place, [device, str(idle), str(port)])


def stop(place: Place) -> bool:
    """Ends the process, orderly if it listens to that; whether there was one."""
    address = place.address()
    if address is None or not address.pid:
        return False
    with contextlib.suppress(OSError):
        os.kill(address.pid, signal.SIGTERM)  # it holds the lock, so the pid is its own
    end = time.monotonic() + STOP_WITHIN
    while is_held(place.lock) and time.monotonic() < end:
        time.sleep(0.02)
    if is_held(place.lock):
        with contextlib.suppress(OSError):
            os.kill(address.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    place.forget("starts")
    return True


def health(address: Address, timeout: float = 2.0) -> dict[str, Any] | None:
    """How the process at an address stands (core.serving.engine.Engine.health); None where nobody answers in time."""
    connection = http.client.HTTPConnection(HOST, address.port, timeout=timeout)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {address.secret}"})
        answer = connection.getresponse()
        found = json.loads(answer.read(65536)) if answer.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return found if isinstance(found, dict) else None


def _stable(place: Place) -> bool:
    """False, and said, where the process has died again and again just now."""
    if not place.unstable():
        return True
    last = place.log_tail().splitlines()[-1:]
    found = "".join(last) or "nothing in its log"
    place.fail({"problem": "the model's process keeps dying", "expected": "", "found": found, "remedy": f"see {place.log}", "exit_code": 4})
    return False


def _start(place: Place, arguments: list[str]) -> None:
    place.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        launching = Handover(place.launch_lock)
    except Timeout:
        return  # another is starting it
    if is_held(place.lock):
        launching.release()
        return
    place.forget("address")
    place.note_start()
    environment = {**os.environ, "SPARSERM_CACHE": str(place.root), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    own: dict[str, Any] = {"start_new_session": True, "pass_fds": launching.to_pass}
    if sys.platform == "win32":
        own = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    command = [*WORKER, str(place.model), *arguments, *map(str, launching.to_pass)]
    try:
        with place.log.open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=PACKAGE, env=environment, **own)
    except BaseException:
        launching.release()
        raise
    threading.Thread(target=_attend, args=(place, process, launching), name=f"attend {place.path.name}", daemon=True).start()


def _attend(place: Place, process: subprocess.Popen[bytes], launching: Handover) -> None:
    """Holds `launching` until the process has taken over, and waits for its end: no zombie is left."""
    try:
        while process.poll() is None and not is_held(place.lock):
            time.sleep(0.02)
    finally:
        launching.release()
    process.wait()

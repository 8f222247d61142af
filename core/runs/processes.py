"""Processes that outlive whoever started them (runs' workers, models' servers): starting one with a lock handed over, and killing one.

From the moment it is started until the process has taken its own lock, somebody holds the launch lock, so a healthy process never looks dead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.runs.locks import InheritedLock, is_held

# Processes start where our package lies, so that no folder of the person's named `core` is taken for it.
PACKAGE = Path(__file__).resolve().parents[2]


def start_detached(
    command: Sequence[str],
    *,
    launching: InheritedLock,
    lock: Path,
    log: Path,
    environment: Mapping[str, str],
    died_early: Callable[[int], None] = lambda code: None,
) -> None:
    """Starts `command` in a session of its own, its output appended to `log`, with the numbers of the handed-over files as its last arguments.

    A thread holds `launching` until the process holds `lock` or has ended (`died_early` is called with its exit code then), and waits for its end, so
    that no zombie is left behind.
    """
    options: dict[str, Any] = {"start_new_session": True, "pass_fds": launching.to_pass}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    words = [*command, *map(str, launching.to_pass)]
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **environment}
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=PACKAGE, env=variables, **options)
    except BaseException:
        launching.release()
        raise
    threading.Thread(target=_attend, args=(process, launching, lock, died_early), name=f"attend {log.parent.name}", daemon=True).start()


def _attend(process: subprocess.Popen[bytes], launching: InheritedLock, lock: Path, died_early: Callable[[int], None]) -> None:
    try:
        while process.poll() is None and not is_held(lock):
            time.sleep(0.02)
        if process.poll() is not None:
            died_early(process.returncode)
    finally:
        launching.release()
    process.wait()


def kill_tree(pid: int) -> None:
    """Kills a process and whatever it started. One that was started here leads a process group, one that was started by hand does not."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True, check=False)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)

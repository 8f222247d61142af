"""Locks that say who lives: held through the operating system, so that they are free the moment their holder is gone, however it went.

A lock file stays when it is free; only the lock on it counts. A pid would say nothing: it is reused, and a zombie has one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

# How long a holder-to-be waits for those who only look (`is_held` takes a lock for microseconds).
LOOKING = 2.0


def make_lock(path: Path) -> FileLock:
    """A lock on a file, whose folder is made. Any thread of this process may free it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, thread_local=False)


def is_held(path: Path) -> bool:
    """Whether a living process (or another thread of this one) holds the lock."""
    if sys.platform == "win32":
        with contextlib.suppress(Timeout, FileNotFoundError), FileLock(path, timeout=0):
            return False
        return path.exists()
    return _is_flocked(path)


def _is_flocked(path: Path) -> bool:
    """Asks for a shared lock, so that those who look are not in one another's way."""
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


class InheritedLock:
    """A lock that passes to a child process when it is started: held until both have let go of it or died, so at every moment in between.

    Raises Timeout if another holds it for long. Windows has no such lock: there only the parent holds it.
    """

    def __init__(self, path: Path) -> None:
        self.to_pass: tuple[int, ...] = ()  # for Popen's pass_fds; the child closes it
        if sys.platform == "win32":
            self._lock = make_lock(path)
            self._lock.acquire(timeout=LOOKING)
        else:
            self.to_pass = (_flock(path),)

    def release(self) -> None:
        """Lets go of it; a child that has it holds it still."""
        if sys.platform == "win32":
            self._lock.release()
        for handle in self.to_pass:
            os.close(handle)
        self.to_pass = ()


def _flock(path: Path) -> int:
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    end = time.monotonic() + LOOKING
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(handle)
                raise Timeout(str(path)) from None
            time.sleep(0.01)
        else:
            return handle


@contextlib.contextmanager
def device_turn(root: Path, devices: Sequence[str], pause: Callable[[], None], may: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Waits until `may()` says that it is our turn and the locks of all `devices` are free, and holds them.

    `pause` is called between two looks; what it raises (a cancellation) ends the waiting. Other caches on the same machine have other locks.
    """
    locks = [make_lock(root / "locks" / f"device-{name.replace(':', '-')}.lock") for name in sorted(set(devices))]
    while not (may() and _take_all(locks)):
        pause()
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def _take_all(locks: Sequence[FileLock]) -> bool:
    """All or none, so that two who wait for each other's device do not wait for ever."""
    taken: list[FileLock] = []
    try:
        for lock in locks:
            lock.acquire(timeout=0)
            taken.append(lock)
    except Timeout:
        for lock in taken:
            lock.release()
        return False
    return True

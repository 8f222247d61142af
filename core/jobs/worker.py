"""The process that does a run's work: `python -m core.jobs.worker RUN_DIR [LAUNCH_LOCK]`. Hardly anything is imported before it has the run's lock.

LAUNCH_LOCK is the number of an open file: the lock that the launcher has passed on (core.runs.locks.InheritedLock).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import Timeout

from core.runs.locks import LOOKING, make_lock


def main(arguments: Sequence[str]) -> int:
    """Does the run in the folder `arguments[0]`, which must be waiting for a worker. 0 succeeded, else the error's code, 130 cancelled."""
    folder = Path(arguments[0]).resolve()
    os.environ["SPARSERM_CACHE"] = str(folder.parent.parent)
    try:
        with make_lock(folder / "run.lock").acquire(timeout=LOOKING):
            for passed_on in arguments[1:]:
                os.close(int(passed_on))
            return work(folder)
    except Timeout:
        return _refuse(folder, "another worker has it")


def work(folder: Path) -> int:
    """Does the run's work in this process and returns its exit code; refuses a run that is not queued."""
    from core.jobs.attempt import Attempt
    from core.runs.registry import Run

    run = Run(folder)
    written = run.written()
    if written.state != "queued" or written.pid is not None:
        return _refuse(folder, f"it is {run.status().state}, not waiting for a worker")
    return Attempt(run).work()


def _refuse(folder: Path, why: str) -> int:
    print(f"{folder.name} is left alone: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

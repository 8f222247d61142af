"""A worker with the kind of runs_helpers, which it imports where a worker begins to import, after taking its lock.

The runs that follow a run have such a worker too.
"""

import sys
from pathlib import Path

from core.jobs import worker

work = worker.work


def work_with_naps(folder: Path) -> int:
    import runs_helpers

    assert "nap" in runs_helpers.KINDS
    runs_helpers.set_follow_ups()
    return work(folder)


worker.work = work_with_naps
sys.exit(worker.main(sys.argv[1:]))

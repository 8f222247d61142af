"""Keeps Python's garbage collector away from what stays anyway.

Streamlit collects garbage after every script run, over all that was ever imported or is kept of models: 70 to 150 ms of each click, for nothing. So
once much has come in, what is there after a collection is taken out of the collector's sight. Reference counts still free it, and what has become
garbage in circles since is found the next time that much has come in.
"""

from __future__ import annotations

import gc
import threading

MUCH = 30_000  # objects: a collection over so many takes some milliseconds
_lock = threading.Lock()


def spare() -> bool:
    """To be called as a script run ends; whether anything was taken out of sight."""
    if not _lock.acquire(blocking=False):  # another session is at it
        return False
    try:
        if len(gc.get_objects(generation=2)) < MUCH:
            return False
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return True
    finally:
        _lock.release()

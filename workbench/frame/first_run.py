"""The server's first Overview is drawn without pandas, and nobody imports it meanwhile; before anything else is drawn, it is imported.

plotly asks `sys.modules` for pandas. If another session is just importing it, plotly finds half of it and the chart fails. To import it before the
first page would make that page a quarter of a second late; so whoever comes second waits instead.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock, _settled = threading.RLock(), threading.Event()
_first, _drawing = True, False  # whether no page has run yet; whether the thread that holds the lock draws the first


@contextmanager
def alone(quick: bool) -> Iterator[None]:
    """Around a page's script. The process' first one, if it is `quick`, holds back the others; the rest pass freely once pandas is there."""
    global _first, _drawing
    if quick and not _settled.is_set():
        with _lock:
            if _first:
                _first, _drawing = False, True
                try:
                    yield
                finally:
                    _drawing = False
                return
    settle()
    yield


def settle() -> None:
    """Before a chart is made: pandas is there as a whole, or this is the first page, and nobody imports it meanwhile."""
    if _settled.is_set():
        return
    with _lock:
        if not _drawing:
            importlib.import_module("pandas")
            _settled.set()

"""The server's first Overview is drawn without pandas, and nobody imports it meanwhile; before anything else is drawn, it is imported.

plotly asks `sys.modules` for pandas. If another session is just importing it, plotly finds half of it and the chart fails. To import it before the
first page would make that page a quarter of a second late; so whoever comes second waits instead.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock, _settled = threading.RLock(), threading.Event()  # re-entrant: the first page draws charts, too
_first = True


@contextmanager
def alone(quick: bool) -> Iterator[None]:
    """Around a page's script. The process' first one, if it is `quick`, holds back the others; the rest pass freely once pandas is there."""
    global _first
    if quick and _first and not _settled.is_set():
        with _lock:
            if _first:
                try:
                    yield
                finally:
                    _first = False
                return
    _first = False
    settle()
    yield


def settle() -> None:
    """Before a chart is made: pandas is there as a whole, or, on the first page, nobody imports it."""
    if _settled.is_set():
        return
    with _lock:
        if not _first:
            importlib.import_module("pandas")
            _settled.set()

"""What a run tells while it works: `events.jsonl`, a JSON object a line, written by one process and read by any.

    {"t": 1795378931.2, "event": "progress", "step": "extraction", "done": 40, "total": 160, "fraction": 0.25, "seconds": 3.1, "left": 9.4,
     "rate": 12.9, "rss": 412000000, "peak": 420000000, "figures": {"tokens_per_s": 1234.5}}
    {"t": 1795378931.3, "event": "say", "text": "SAE: ..."}
    {"t": 1795378931.4, "event": "state", "state": "running", "attempt": 1}

Progress lines are thinned, but each step's first and last are always there. A line that was cut by a kill is passed over.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

EVERY = 0.3  # seconds between two progress lines, at least
TAIL = 1 << 16  # bytes at the end of the log in which the last progress is looked for
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class EventLog:
    """Appends events. `progress` has the signature of core.types.Progress."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        _end_the_line(path)
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self._steps: dict[str, tuple[float, float]] = {}  # when a step began, and with how much done
        self._written, self._kept = -math.inf, ""

    def progress(self, step: str, done: float, total: float, **figures: Any) -> None:
        """Notes a step's progress: at once if it is its first or its last, else if none was noted just now."""
        with self._lock:
            now, first = self._clock(), step not in self._steps
            began, done_then = self._steps.setdefault(step, (now, float(done)))
            line = _line("progress", step=step, **_advance(float(done), float(total), done_then, now - began), **memory(), figures=_plain(figures))
            if first:
                self._flush_kept()  # the last of the step before
            if first or done >= total or now - self._written >= EVERY:
                self._append(line)
                self._written, self._kept = now, ""
            else:
                self._kept = line

    def say(self, text: str, *, warning: bool = False) -> None:
        """Notes a sentence for the person who follows."""
        self._note(_line("say", text=text, **({"warning": True} if warning else {})))

    def state(self, state: str, **more: Any) -> None:
        """Notes that the run is in another state now."""
        self._note(_line("state", state=state, **_plain(more)))

    def _note(self, line: str) -> None:
        with self._lock:
            self._flush_kept()
            self._append(line)

    def _flush_kept(self) -> None:
        if self._kept:
            self._append(self._kept)
            self._kept = ""

    def _append(self, line: str) -> None:
        with self._path.open("ab", buffering=0) as handle:  # unbuffered: a line goes out in one piece
            handle.write(line.encode("utf-8", "replace"))


def _end_the_line(path: Path) -> None:
    """A killed process may have left half a line."""
    with path.open("a+b") as handle:
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                handle.write(b"\n")


def _line(event: str, **values: Any) -> str:
    return json.dumps({"t": round(time.time(), 3), "event": event, **values}, ensure_ascii=False, allow_nan=False) + "\n"


def _advance(done: float, total: float, done_then: float, seconds: float) -> dict[str, float | None]:
    """How far a step is, units a second since it began (what an earlier attempt had done left out), and the seconds left at that rate."""
    rate = (done - done_then) / seconds if seconds > 0 and done > done_then else None
    left = None if rate is None else max(total - done, 0.0) / rate
    fraction = min(max(done / total, 0.0), 1.0) if total > 0 else None
    known = {"seconds": round(seconds, 3), "left": _round(left), "rate": _round(rate)}
    return {"done": _finite(done), "total": _finite(total), "fraction": _finite(fraction), **known}


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON: numbers of any library as Python's, what is not finite as null, anything else as text."""
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return _plain(value)
    try:
        return _finite(float(value))
    except (TypeError, ValueError):
        return str(value)


def memory() -> dict[str, int]:
    """Bytes of memory: `rss` now and `peak` so far, where the system tells; `gpu` and `gpu_peak` once torch uses CUDA."""
    used: dict[str, int] = {}
    if sys.platform.startswith("linux"):
        used["rss"] = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used["peak"] = peak if sys.platform == "darwin" else peak * 1024
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if hasattr(cuda, "is_initialized") and cuda.is_initialized():
        used |= {"gpu": int(cuda.memory_allocated()), "gpu_peak": int(cuda.max_memory_allocated())}
    return used


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events from byte `offset` on, and where the next reading begins. A last line that is still being written is left for then."""
    try:
        with path.open("rb") as handle:
            handle.seek(offset)
            data = handle.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [event for event in map(_parsed, whole.splitlines()) if event], offset + len(whole)


def last_progress(path: Path) -> dict[str, Any] | None:
    """The newest progress event, from the end of the file."""
    size = path.stat().st_size if path.is_file() else 0
    events, _ = read_events(path, max(0, size - TAIL))
    return next((event for event in reversed(events) if event["event"] == "progress"), None)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None

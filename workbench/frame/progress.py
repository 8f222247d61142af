"""How far a run is, read from its files: the steps of its last attempt, its messages, and its figures over time. No Streamlit here.

A run's events are read once and then only what was added, so that looking every second costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.runs.events import read_events
from core.runs.registry import Run

SERIES_MOST = 4000  # points of a figure that are kept; every second one is dropped beyond
LOG_TAIL = 60_000  # bytes of a log that are shown


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a run: `fraction` from 0 to 1, `seconds` so far, `left` seconds at this rate, and the figures last reported.

    `fraction` and `left` are None where they are not known.
    """

    name: str
    fraction: float | None
    seconds: float
    left: float | None
    done: bool
    figures: Mapping[str, Any] = field(default_factory=dict)


class Follower:
    """Reads one run's events, from where it stopped reading. Shared by all sessions."""

    def __init__(self, run: Run) -> None:
        self._run, self._lock = run, threading.Lock()
        self._offset = 0
        self._steps: dict[str, Step] = {}
        self._messages: list[str] = []
        self._series: dict[str, list[tuple[float, float]]] = {}

    def look(self) -> None:
        """Reads the events that were added."""
        with self._lock:
            events, self._offset = read_events(self._run.events, self._offset)
            for event in events:
                self._take(event)

    @property
    def steps(self) -> list[Step]:
        """The steps of the last attempt in order; all but the last are done."""
        return list(self._steps.values())

    @property
    def messages(self) -> list[str]:
        """The run's messages of its last attempt. Texts of the engine, which may name files."""
        return list(self._messages)

    @property
    def series(self) -> dict[str, list[tuple[float, float]]]:
        """Each figure that moves, by `step: figure`, as (seconds since 1970, value)."""
        return {name: list(points) for name, points in self._series.items() if len(points) > 2}

    def _take(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "say":
            self._messages.append(str(event.get("text", "")))
        elif event["event"] == "state" and event.get("state") == "queued":
            self._steps.clear()
            self._messages.clear()
        elif event["event"] == "progress":
            self._take_progress(event)

    def _take_progress(self, event: Mapping[str, Any]) -> None:
        name, fraction = str(event.get("step")), event.get("fraction")
        for other, step in self._steps.items():
            if other != name and not step.done:
                self._steps[other] = replace(step, done=True, left=None)
        self._steps[name] = Step(
            name=name,
            fraction=fraction,
            seconds=float(event.get("seconds") or 0.0),
            left=event.get("left"),
            done=fraction is not None and fraction >= 1,
            figures=event.get("figures") or {},
        )
        for figure, value in (event.get("figures") or {}).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                points = self._series.setdefault(f"{name}: {figure}", [])
                points.append((float(event.get("t", 0.0)), float(value)))
                if len(points) > SERIES_MOST:
                    del points[1::2]


@lru_cache(maxsize=128)
def _follower(path: Path) -> Follower:
    return Follower(Run(path))


def follow(run: Run) -> Follower:
    """The one follower of this run, having read the events that were added."""
    follower = _follower(run.path)
    follower.look()
    return follower


def log_tail(run: Run) -> str:
    """The end of what the worker printed."""
    if not run.log.is_file():
        return ""
    with run.log.open("rb") as handle:
        handle.seek(max(0, run.log.stat().st_size - LOG_TAIL))
        return handle.read().decode("utf-8", "replace")

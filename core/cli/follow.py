"""Following a run on the terminal: its progress, what it says, and its end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from core.errors import SparseRMError, StoreError, error_from_dict
from core.runs.events import read_events
from core.runs.progress import Display, duration
from core.runs.registry import Run, Status

POLL = 0.05  # seconds between two looks at a run
WAITING_AFTER = 1.0  # seconds in the queue after which it is said what a run waits for


class Follower:
    """Shows a run's events as progress, or prints them as JSON lines."""

    def __init__(self, run: Run, display: Display, *, as_json: bool = False) -> None:
        self.run, self.display, self.as_json = run, display, as_json
        self._queued_since: float | None = None

    def until_the_end(self) -> Status:
        """Shows what is over already, then every event until the run has ended; returns how it ended."""
        events, offset = read_events(self.run.events)
        self._show_past(events)
        while True:
            status = self.run.status()  # before the events: those written in between are read in the next turn or below
            events, offset = read_events(self.run.events, offset)
            for event in events:
                self._show(event)
            if not status.live:
                return status
            self._say_what_it_waits_for(status)
            time.sleep(POLL)

    def _show_past(self, events: list[dict[str, Any]]) -> None:
        """Each step of the last attempt that was over before, once, with the time that it took."""
        last = {event["step"]: event for event in _last_attempt(events) if event["event"] == "progress"}
        for event in events if self.as_json else last.values():
            if self.as_json or event["done"] < event["total"]:
                self._show(event)
            else:
                self.display.say(f"{event['step']}: done in {duration(event['seconds'])}")

    def _show(self, event: Mapping[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(event), flush=True)
        elif event["event"] == "progress":
            self.display(event["step"], event["done"], event["total"], **event["figures"])
        elif event["event"] == "say":
            (self.display.warn if event.get("warning") else self.display.say)(event["text"])

    def _say_what_it_waits_for(self, status: Status) -> None:
        if status.state != "queued" or not status.devices:
            self._queued_since = None
        elif self._queued_since is None:
            self._queued_since = time.monotonic()
        elif time.monotonic() - self._queued_since > WAITING_AFTER:
            self._queued_since = float("inf")  # said once
            self.display.say(f"queued: waiting for {', '.join(status.devices)}")


def _last_attempt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    starts = [number for number, event in enumerate(events) if event["event"] == "state" and event["state"] == "queued"]
    return events[starts[-1] if starts else 0 :]


def error_of(run: Run, status: Status, where: str) -> SparseRMError:
    """Why a run that failed or was interrupted gave no result, as the error that it met.

    `where`: the option or command that shows where the error arose.
    """
    if status.error:
        return error_from_dict(status.error, where)
    problem = f"the process of run {run.id} has ended without a word: the machine was switched off, or somebody killed it"
    return StoreError(problem, remedy=f"give the same command again (finished steps are found), or sparserm runs resume {short(run)}")


def short(run: Run) -> str:
    """The part of a run's id by which a person names it."""
    return run.id.rpartition("_")[2]

"""The event log: thinned but never without a step's first and last, estimates by hand, and a reader that no half-written line disturbs."""

from __future__ import annotations

import json
import math
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from core.runs.events import EVERY, EventLog, last_progress, memory, read_events


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(path)[0] if event["event"] == "progress"]


def test_thinned_but_with_first_and_last(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "events.jsonl"
    log = EventLog(path, clock=clock)
    for number in range(1001):
        log.progress("a", number, 1000)
        clock.now += 0.01
    for number in (1, 2, 3):
        log.progress("b", number, 10)  # b never ends
    log.progress("c", 0, 1)
    log.say("done")
    found = [(event["step"], event["done"]) for event in steps_of(path)]
    assert found[0] == ("a", 0) and ("a", 1000) in found
    assert 10 / EVERY <= len([step for step, _ in found if step == "a"]) <= 10 / EVERY + 3
    assert found[-3:] == [("b", 1), ("b", 3), ("c", 0)], "the last report of a step that was left is kept"
    assert read_events(path)[0][-1] == {"event": "say", "text": "done", "t": read_events(path)[0][-1]["t"]}


def test_steps_that_alternate_are_thinned_too(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e", clock=Clock())
    for number in range(200):
        log.progress("a", number, 1000)
        log.progress("b", number, 1000)
    assert len(steps_of(tmp_path / "e")) <= 4


def test_estimates_by_hand(tmp_path: Path) -> None:
    """Begun at 40 of 100 by an earlier attempt; 20 more in 5 s: 4 a second, 40 left: 10 s."""
    clock = Clock()
    log = EventLog(tmp_path / "e", clock=clock)
    log.progress("a", 40, 100)
    clock.now += 5
    log.progress("a", 60, 100, loss=np.float32(0.5), n=np.int64(3), bad=math.nan, what=Path("x"))
    first, second = steps_of(tmp_path / "e")
    assert (first["fraction"], first["rate"], first["left"], first["seconds"]) == (0.4, None, None, 0.0)
    assert (second["fraction"], second["rate"], second["left"], second["seconds"]) == (0.6, 4.0, 10.0, 5.0)
    assert second["figures"] == {"loss": 0.5, "n": 3, "bad": None, "what": "x"}


def test_impossible_numbers_do_not_stop_a_run(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e")
    for done, total in ((0, 0), (1, 0), (math.nan, 1), (1, math.inf), (5, 3)):
        log.progress("a", done, total)
    log.say("line\nbreak \ud800 \u2028")
    events, _ = read_events(tmp_path / "e")
    assert all(event["fraction"] is None or 0 <= event["fraction"] <= 1 for event in events[:-1])
    assert events[-1]["text"].startswith("line\nbreak")


def test_half_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "e"
    EventLog(path).say("one")
    with path.open("ab") as handle:
        handle.write(b'{"t": 1, "event": "pro')
    events, offset = read_events(path)
    assert [event["text"] for event in events] == ["one"] and offset < path.stat().st_size
    log = EventLog(path)  # a later attempt
    log.say("two")
    with path.open("ab") as handle:
        handle.write(b"[1, 2]\n\xff\xfe\n")
    log.say("three")
    events, end = read_events(path, offset)
    assert [event["text"] for event in events] == ["two", "three"] and end == path.stat().st_size
    assert read_events(path, end) == ([], end)
    assert read_events(tmp_path / "none", 7) == ([], 7)


def test_a_reader_beside_a_writer_sees_every_event_once(tmp_path: Path) -> None:
    path, n = tmp_path / "e", 2000
    log = EventLog(path)

    def write() -> None:
        for number in range(n):
            log.say(str(number) * 20)

    writing = threading.Thread(target=write)
    writing.start()
    seen: list[str] = []
    offset = 0
    while len(seen) < n and (writing.is_alive() or offset < path.stat().st_size):
        events, offset = read_events(path, offset)
        seen += [event["text"] for event in events]
    writing.join()
    assert seen == [str(number) * 20 for number in range(n)]


def test_the_newest_progress_is_found_at_the_end_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "e"
    assert last_progress(path) is None
    line = json.dumps({"t": 0, "event": "progress", "step": "old", "figures": {"x": "y" * 500}}) + "\n"
    path.write_text(line * 1000 + line.replace("old", "new") + '{"t": 1, "event": "say", "text": "z"}\n' + '{"t": 2, "event": "progr')
    found = last_progress(path)
    assert found is not None and found["step"] == "new"


def test_memory_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = memory()
    block = np.ones(30_000_000)
    after = memory()
    if sys.platform.startswith("linux"):
        assert after["rss"] - before["rss"] > 0.9 * block.nbytes
        assert after["peak"] >= 0.95 * after["rss"]
    cuda = SimpleNamespace(is_initialized=lambda: True, memory_allocated=lambda: 5, max_memory_allocated=lambda: 7)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert (memory()["gpu"], memory()["gpu_peak"]) == (5, 7)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())  # half imported
    assert "gpu" not in memory()

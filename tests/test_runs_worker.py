"""A run's life: queued, running, ended; killed, cancelled, resumed; who launched it may die. With a job that costs nothing (runs_helpers)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_helpers import wait_for
from runs_helpers import CPU, WORKER, NapConfig, nap, session, start, wait_state

from core.config import BackboneConfig
from core.errors import ConfigError, StoreError
from core.jobs import start as launching
from core.jobs.job import hold_device
from core.jobs.kinds import asked_config, resolved_config
from core.jobs.start import launch, resume
from core.runs import launch as run_launch
from core.runs.events import read_events
from core.runs.launch import cancel, remove, wait_started
from core.runs.locks import is_held
from core.runs.registry import Run, all_runs, find_run, summaries
from core.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests look at sessions and send signals")


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "WORKER", WORKER)


def assert_gone(run: Run) -> None:
    """Nothing of the worker is left: no process, no lock."""
    pid = run.written().pid
    wait_for(lambda: not is_held(run.lock), 2)
    wait_for(lambda: pid is None or not session(pid), 2)
    wait_for(lambda: not is_held(run.launch_lock), 10)  # a worker that was not up yet when it was cancelled


# --- a quiet life --------------------------------------------------------------------------------------------------


def test_from_launch_to_result(tmp_path: Path) -> None:
    began = time.time()
    run = start(tmp_path, seed=7)
    assert run.status().live and run.status().attempt == 1
    assert run.path.name.split("_")[1] == "nap" and run.path.parent == tmp_path / "runs"
    status = wait_state(run, "succeeded")
    assert began <= status.queued <= status.started <= status.ended <= time.time()
    assert status.devices == ("cpu",) and status.estimate == {"memory": 1.0, "disk": 2.0, "seconds": 3.0} and status.exit_code == 0
    assert asked_config(run) == NapConfig(seed=7) and run.kind == "nap" and run.parent is None
    result = run.result()
    assert result["outcome"] == {"slept": 2} and list(result["files"]) == ["dream.json", "manifest.json"]
    (artefact,) = result["artefacts"]
    assert artefact["made"] and artefact["step"] == "nap" and artefact["path"] == result["artefact"]
    assert run.provenance()["seeds"] == {"seed": 7}
    events, _ = read_events(run.events)
    assert [event["state"] for event in events if event["event"] == "state"] == ["queued", "running", "succeeded"]
    steps = [event for event in events if event["event"] == "progress"]
    assert (steps[0]["done"], steps[-1]["done"], steps[-1]["fraction"], steps[-1]["figures"]) == (0, 2, 1.0, {"sheep": 2})
    assert steps[-1]["rss"] > 1e6 and steps[-1]["peak"] > 1e6
    assert "nap: done" in run.log.read_text()
    assert_gone(run)
    assert find_run("", tmp_path).id == find_run(run.id[-6:], tmp_path).id == run.id


SLOW_TO_SAY = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from core.runs.progress import Display
say = Display.say
def say_late(self, text):
    time.sleep(0.7 if "nap: done" in text else 0)
    say(self, text)
Display.say = say_late
import runs_worker
"""


def test_the_log_is_whole_when_the_status_says_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load the last line came after the status. Here it always comes late."""
    monkeypatch.setattr(launching, "WORKER", [sys.executable, "-c", SLOW_TO_SAY])
    run = start(tmp_path)
    wait_state(run, "succeeded")
    assert "nap: done" in run.log.read_text()


def test_the_worker_leads_a_session_of_its_own_and_is_no_zombie(tmp_path: Path) -> None:
    run = start(tmp_path, looks=1000)
    pid = wait_state(run, "running").pid
    assert os.getsid(pid) == pid != os.getsid(0)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode, 2)


def test_launching_loads_no_engine_and_works_in_any_thread(tmp_path: Path) -> None:
    code = f"""
import sys, threading
from pathlib import Path
import runs_helpers
from core.config import FitConfig
from core.jobs import kinds, start
from core.runs import registry
start.WORKER = runs_helpers.WORKER
found = []
thread = threading.Thread(target=lambda: found.append(start.launch("nap", runs_helpers.NapConfig(), root=Path({str(tmp_path)!r}))))
thread.start(); thread.join()
kinds.load_job("fit").disk(FitConfig(), Path("."))
registry.find_run("", Path({str(tmp_path)!r})).summary()
print(found[0], sorted(set(sys.modules) & {{"torch", "transformers", "sae_lens", "sklearn", "pandas", "datasets"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    name, loaded = done.stdout.split(maxsplit=1)
    assert loaded.strip() == "[]"
    wait_state(find_run(name, tmp_path), "succeeded")


def test_errors_are_kept_with_their_way_out(tmp_path: Path) -> None:
    runs = {deed: start(tmp_path, deed=deed) for deed in ("refuse", "stumble", "fill")}
    status = wait_state(runs["refuse"], "failed")
    assert status.error == {"problem": "no sheep", "expected": "some", "found": "none", "remedy": "count clouds", "exit_code": 3}
    assert status.exit_code == 3 and "Traceback" in runs["refuse"].log.read_text()
    status = wait_state(runs["stumble"], "failed")
    assert status.error["problem"] == "unexpected ZeroDivisionError" and "report it" in status.error["remedy"] and status.exit_code == 1
    assert 'raise ZeroDivisionError("a bug")' in runs["stumble"].log.read_text()
    assert wait_state(runs["fill"], "failed").error["problem"] == "No space left on device"
    assert all(run.result() is None for run in runs.values())
    for run in runs.values():
        assert_gone(run)


def test_a_worker_that_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "WORKER", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    run = start(tmp_path)
    status = wait_state(run, "failed")
    assert status.error["problem"] == "the worker could not start" and status.error["found"] == "no such thing"
    monkeypatch.setattr(launching, "WORKER", WORKER)
    resume(run)
    assert wait_state(run, "succeeded").attempt == 2


def test_what_cannot_be_launched_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no such kind of run(.|\n)*fit \| sae-train"):
        launch("party", NapConfig(), root=tmp_path)
    with pytest.raises(ConfigError, match=r"needs another config(.|\n)*FitConfig(.|\n)*NapConfig"):
        launch("fit", NapConfig(), root=tmp_path)
    monkeypatch.setattr(run_launch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e6))
    with pytest.raises(StoreError, match=r"too full for this run(.|\n)*0.2 GB free(.|\n)*0.0 GB(.|\n)*cache clean"):
        start(tmp_path)
    assert all_runs(tmp_path) == []


# --- death ---------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_seen_at_once_and_resumed(tmp_path: Path) -> None:
    run = start(tmp_path, looks=100)
    pid = wait_state(run, "running").pid
    wait_for(run.progress)
    with pytest.raises(ConfigError, match="running: there is nothing to resume"):
        resume(run)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: run.status().state == "interrupted", 2)
    assert run.written().state == "running", "nobody wrote that it was interrupted"
    assert run.status().exit_code == 1 and run.status().ended
    with pytest.raises(ConfigError, match="interrupted: there is nothing to cancel"):
        cancel(run)
    assert_gone(run)
    resume(run)
    status = wait_state(run, "succeeded")
    assert status.attempt == 2 and status.pid != pid
    with pytest.raises(ConfigError, match=r"has succeeded(.|\n)*rerun"):
        resume(run)
    states = [event["state"] for event in read_events(run.events)[0] if event["event"] == "state"]
    assert states == ["queued", "running", "queued", "running", "succeeded"]


@pytest.mark.parametrize("moment", ["folder", "worker"])
def test_the_launcher_may_be_killed(tmp_path: Path, moment: str) -> None:
    """Before it has started the worker: interrupted, and resumable. Just after: the run does not care."""
    code = f"""
import os, signal
from pathlib import Path
import runs_helpers
from core.jobs import start
from core.runs import launch
start.WORKER = runs_helpers.WORKER
if {moment!r} == "folder":
    launch.start_worker = lambda run, worker, lock: os.kill(os.getpid(), signal.SIGKILL)
start.launch("nap", runs_helpers.NapConfig(looks=50), root=Path({str(tmp_path)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", check=False)
    assert done.returncode == -signal.SIGKILL
    (run,) = all_runs(tmp_path)
    assert run.status().state == ("interrupted" if moment == "folder" else "queued")
    if moment == "folder":
        resume(run)
    wait_state(run, "succeeded")
    assert_gone(run)


def test_who_follows_a_launch_never_sees_it_dead(tmp_path: Path) -> None:
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.extend(run.status().state for run in all_runs(tmp_path))

    looking = [threading.Thread(target=look) for _ in range(3)]
    for thread in looking:
        thread.start()
    run = start(tmp_path)
    try:
        wait_state(run, "succeeded")
    finally:
        over.set()
    for thread in looking:
        thread.join()
    assert set(seen) <= {"queued", "running", "succeeded"} and len(seen) > 20


def test_a_run_has_one_worker(tmp_path: Path) -> None:
    run = start(tmp_path, looks=100_000)
    wait_state(run, "running")
    done = subprocess.run([*WORKER, str(run.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "left alone: another worker has it" in done.stderr
    with pytest.raises(ConfigError, match=r"live and can't be removed(.|\n)*runs cancel"):
        remove(run)
    assert cancel(run).attempt == 1
    done = subprocess.run([*WORKER, str(run.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "it is cancelled, not waiting" in done.stderr
    size = remove(run)
    assert size > 500 and all_runs(tmp_path) == [] and list((tmp_path / "runs").iterdir()) == []


# --- cancelling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deed", ["", "hang", "hang-hard"])
def test_cancelled_within_two_seconds(tmp_path: Path, deed: str) -> None:
    """Between two reports; in foreign code with a child; in foreign code that lets no other thread run."""
    place = tmp_path / "place"
    place.mkdir()
    run = start(tmp_path, looks=100_000 if not deed else 1, deed=deed, place="" if not deed else str(place))
    pid = wait_state(run, "running").pid
    wait_for((place / "hanging").exists if deed else run.progress)
    began = time.monotonic()
    status = cancel(run)
    assert status.state == run.status().state == "cancelled"
    assert time.monotonic() - began < 2.0
    wait_for(lambda: not session(pid), 2.0 - (time.monotonic() - began))
    assert_gone(run)
    assert status.exit_code == 130 and (deed == "hang-hard" or status.ended)


def test_a_cancelled_run_can_be_resumed(tmp_path: Path) -> None:
    run = start(tmp_path, looks=60)
    wait_state(run, "running")
    cancel(run)
    resume(run)
    assert wait_state(run, "succeeded").attempt == 2


def test_cancelled_before_the_worker_was_up(tmp_path: Path) -> None:
    run = start(tmp_path, looks=100_000)
    assert cancel(run).state == "cancelled"
    assert_gone(run)


# --- the queue -----------------------------------------------------------------------------------------------------


def test_one_device_works_on_one_run_at_a_time_oldest_first(tmp_path: Path) -> None:
    """Each run fails if it meets another; an idle device is another queue; a cancelled run leaves the queue at once."""
    place = tmp_path / "place"
    place.mkdir()
    runs = [start(tmp_path, looks=20, place=str(place)) for _ in range(4)]
    elsewhere = start(tmp_path, backbone=BackboneConfig(device="mps"))
    wait_state(runs[0], "running", "succeeded")
    began = time.monotonic()
    assert cancel(runs[2]).state == "cancelled" and time.monotonic() - began < 2.0
    assert wait_state(elsewhere, "succeeded").ended < wait_state(runs[3], "succeeded").ended
    done = [wait_state(run, "succeeded") for run in (runs[0], runs[1], runs[3])]
    assert [str(status.pid) for status in done] == (place / "order.txt").read_text().split()
    assert all(before.ended <= after.started for before, after in pairwise(done))
    assert runs[2].status().started is None


def test_two_launchers_at_once(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    code = f"""
import runs_helpers
from pathlib import Path
from core.jobs import start
from core.runs import launch
start.WORKER = runs_helpers.WORKER
for n in range(2):
    start.launch("nap", runs_helpers.NapConfig(place={str(place)!r}), root=Path({str(tmp_path)!r}))
    launch.wait_started(launch.Run(sorted((Path({str(tmp_path)!r}) / "runs").iterdir())[-1]))
"""
    launchers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "tests") for _ in range(2)]
    assert [launcher.wait(60) for launcher in launchers] == [0, 0]
    runs = all_runs(tmp_path)
    assert len(runs) == 4
    for run in runs:
        wait_state(run, "succeeded")
    made = [entry["made"] for run in runs for entry in run.result()["artefacts"]]
    assert sorted(made) == [False, False, False, True], "one artefact was written twice"


def test_a_dead_run_holds_nobody_up(tmp_path: Path) -> None:
    """The oldest in the queue and the one at work are killed: the next goes on."""
    first, second, third = start(tmp_path, looks=100_000), start(tmp_path), start(tmp_path)
    wait_state(first, "running")
    wait_for(lambda: second.status().devices)
    os.kill(second.status().pid, signal.SIGKILL)
    os.kill(first.status().pid, signal.SIGKILL)
    wait_state(third, "succeeded")
    assert [run.status().state for run in (first, second)] == ["interrupted", "interrupted"]


def test_the_foreground_waits_its_turn(tmp_path: Path) -> None:
    said: list[str] = []
    run = start(tmp_path, looks=50)
    wait_state(run, "running")
    with hold_device(CPU, Store(tmp_path), said.append):
        assert run.status().state == "succeeded"
        other = start(tmp_path)
        wait_for(lambda: other.status().devices)
        time.sleep(0.5)
        assert other.status().state == "queued"
    assert said == ["waiting: another run is using cpu (sparserm runs list)"]
    wait_state(other, "succeeded")


# --- what is written -----------------------------------------------------------------------------------------------


def test_a_status_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    run = start(tmp_path)
    status = wait_state(run, "succeeded")
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            run.write(status)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        assert all(run.status() == status for _ in range(300))
    finally:
        over.set()
        writing.join()
    (run.path / "status.json").write_text('{"state": "runn')
    with pytest.raises(StoreError, match="damaged"):
        run.status()
    other = start(tmp_path)
    wait_state(other, "succeeded")
    rows = summaries(tmp_path)
    assert [row["state"] for row in rows] == ["damaged", "succeeded"] and "runs remove" in rows[0]["error"]["remedy"]
    assert remove(run) > 0 and [row["run"] for row in summaries(tmp_path)] == [other.id]


def test_relative_places_are_those_of_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    run = start(tmp_path / "cache", place="here")
    wait_state(run, "succeeded")
    assert (tmp_path / "here" / "order.txt").is_file()
    assert resolved_config(run) == NapConfig(place=str(tmp_path / "here")) and run.config()["place"] == "here"


def test_a_run_of_a_later_version_is_refused(tmp_path: Path) -> None:
    run = start(tmp_path)
    wait_state(run, "succeeded")
    asked = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**asked, "schema": 99}))
    with pytest.raises(StoreError, match="schema 1"):
        _ = Run(run.path).kind


def test_wait_started_is_over_when_the_worker_has_its_lock(tmp_path: Path) -> None:
    run = start(tmp_path, looks=100)
    assert wait_started(run) and is_held(run.lock)
    cancel(run)


def test_the_helper_is_what_it_says(tmp_path: Path) -> None:
    """The nap fails where it is not alone: otherwise the tests of the queue would show nothing."""
    (tmp_path / "somebody").touch()
    with pytest.raises(FileExistsError):
        nap(NapConfig(place=str(tmp_path)), Store(tmp_path), lambda *_: None)

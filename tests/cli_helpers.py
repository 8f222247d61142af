"""The `sparserm` command under test: in this process (the fixture `cli` of conftest.py), and in a process of its own, which can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.errors import StoreError
from core.runs.registry import all_runs
from core.runs.store import HOLD, MANIFEST

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "core.cli.main"]
PATIENCE = 600  # seconds: on a machine with other work to do, a start of the command took longer than a minute


class CommandResult(NamedTuple):
    """How a command ended: its exit code, and what it printed to standard output and to standard error."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> dict[str, Any]:
        """The one JSON line that a successful command printed with --json."""
        assert self.code == 0 and self.out.count("\n") == 1, self.err
        value: dict[str, Any] = json.loads(self.out)
        return value


def run_here(capsys: pytest.CaptureFixture[str], *words: object) -> CommandResult:
    """Runs a command in this process."""
    from core.cli.main import main

    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as left:
        code = int(left.code or 0)
    return CommandResult(code, *capsys.readouterr())


def run_apart(*words: object, timeout: float = PATIENCE, **environment: object) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, with these environment variables besides the ones of the tests."""
    env = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.run([*COMMAND, *map(str, words)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Waits until `condition()` is true, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.01)
    return value


# --- killed ----------------------------------------------------------------------------------------------------------


def start_apart(words: list[str], root: Path, hold: str = "") -> subprocess.Popen[bytes]:
    """Starts a command with its cache in `root`; its output goes to a file beside that. It holds before it publishes the step `hold`."""
    env = {**os.environ, "SPARSERM_CACHE": str(root), HOLD: hold}
    with _output(root).open("wb") as out:
        return subprocess.Popen([*COMMAND, *words], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)


def finish(words: list[str], root: Path) -> dict[str, Any]:
    """Runs a command to its end, and returns what it printed with --json."""
    assert start_apart(words, root).wait(timeout=PATIENCE) == 0, _output(root).read_text()
    value: dict[str, Any] = json.loads(_output(root).read_text().splitlines()[-1])
    return value


def kill_when(words: list[str], root: Path, ready: Callable[[], bool], hold: str = "") -> None:
    """Runs a command until `ready`, then kills the worker of its run. The mark that an earlier killed run left at `hold` is removed."""
    (root / f"held-{hold}").unlink(missing_ok=True)
    running = start_apart(words, root, hold)

    def is_ready() -> bool:
        assert running.poll() is None, _output(root).read_text()[-2000:]
        return ready()

    wait_for(is_ready, PATIENCE)
    kill_worker(root)
    assert running.wait(timeout=PATIENCE) == StoreError.exit_code, "the command says that the process of its run is gone"


def kill_worker(root: Path) -> None:
    """Kills the process of the one live run by SIGKILL, with whatever it started."""
    (run,) = [run for run in all_runs(root) if run.live()]
    pid = run.status().pid
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)


def kill_inside(words: list[str], root: Path, step: str) -> None:
    """Runs a command until `step` is about to be published, then kills it."""
    kill_when(words, root, (root / f"held-{step}").exists, hold=step)
    assert not list((root / "artefacts" / step).glob("*/*")), "a step that was killed must not stand"


def cache_contents(root: Path) -> dict[str, Any]:
    """Every file of every artefact and SAE of a cache: its bytes, manifests and cards without their times."""
    contents: dict[str, Any] = {}
    for path in sorted(file for top in ("artefacts", "saes") for file in (root / top).rglob("*") if file.is_file()):
        value: Any = path.read_bytes()
        if path.name in (MANIFEST, "card.json"):
            value = {name: entry for name, entry in json.loads(value).items() if not name.startswith("time")}
        contents[str(path.relative_to(root))] = value
    return contents


def _output(root: Path) -> Path:
    return root.parent / f"{root.name}.out"

"""`nap`, a kind of run without computation, by which the worker is tested in seconds and without torch.

Importing this registers the kind; runs_worker.py is a worker that does so.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.backbone.estimate import Estimate
from core.config import BackboneConfig, Config, option
from core.errors import DataError
from core.jobs import follow_up
from core.jobs import start as launching
from core.jobs.job import Job
from core.jobs.kinds import KINDS, Kind
from core.runs.registry import Run, Status
from core.runs.store import Store

WORKER = [sys.executable, str(Path(__file__).with_name("runs_worker.py").resolve())]


CPU = BackboneConfig(device="cpu")


@dataclass(frozen=True, kw_only=True)
class NapConfig(Config):
    """`looks` progress reports, `pause` seconds apart; then `deed`."""

    backbone: BackboneConfig = CPU
    looks: int = option(2, "reports")
    pause: float = option(0.02, "seconds between two")
    deed: str = option("", "what else is done")
    place: str = option("", "a folder for what it leaves behind", result=False)
    seed: int = option(0, "seed")


def nap(config: NapConfig, store: Store, progress: Callable[..., None]) -> dict[str, Any]:
    with alone(Path(config.place)) if config.place else nothing():
        for number in range(config.looks):
            progress("nap", number, config.looks)
            time.sleep(config.pause)
        DEEDS[config.deed](config)
        progress("nap", config.looks, config.looks, sheep=config.looks)

    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        (folder / "dream.json").write_text(dream(config))
        return {}

    artefact = store.get_or_make("nap", 1, config.result_fields(), [], make)
    return {"artefact": str(artefact.path), "outcome": {"slept": config.looks}}


def dream(config: NapConfig) -> str:
    return json.dumps({"seed": config.seed})


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Fails if another process is inside this block with the same folder."""
    mark = place / "somebody"
    handle = os.open(mark, os.O_CREAT | os.O_EXCL)
    with (place / "order.txt").open("a") as order:
        order.write(f"{os.getpid()}\n")
    try:
        yield
    finally:
        os.close(handle)
        mark.unlink()


@contextmanager
def nothing() -> Iterator[None]:
    yield


def hang(config: NapConfig) -> None:
    """Code that reports no progress and has a child process."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(config.place or ".") / "hanging").touch()
    time.sleep(600)


def hang_hard(config: NapConfig) -> None:
    """Code that never lets another thread run."""
    (Path(config.place or ".") / "hanging").touch()
    ctypes.PyDLL(None).sleep(600)


def refuse(config: NapConfig) -> None:
    raise DataError("no sheep", expected="some", found="none", remedy="count clouds")


def stumble(config: NapConfig) -> None:
    raise ZeroDivisionError("a bug")


def fill(config: NapConfig) -> None:
    raise OSError(28, "No space left on device", "/cache/x")


DEEDS: Mapping[str, Callable[[NapConfig], None]] = {
    "": lambda config: None,
    "hang": hang,
    "hang-hard": hang_hard,
    "refuse": refuse,
    "stumble": stumble,
    "fill": fill,
}
NAP = Job(
    complete=lambda config, store, say: replace(config, place=str(Path(config.place).resolve()) if config.place else ""),
    backbone=lambda config: config.backbone,
    disk=lambda config, root: 1000.0 * config.looks,
    inputs=lambda config: [],
    plan=lambda config, store, progress: Estimate(memory=1.0, disk=2.0, seconds=3.0),
    run=nap,
)
FOLLOWING = "SPARSERM_TEST_FOLLOW_UPS"  # in a worker's environment: the configs of the naps that follow a nap, as JSON


def set_follow_ups() -> None:
    """Puts the naps that the environment names in the place of what follows a fit."""
    follow_up.FOLLOW_UPS = tuple(napping(NapConfig(**fields)) for fields in json.loads(os.environ.get(FOLLOWING, "[]")))


def napping(config: NapConfig) -> follow_up.FollowUp:
    return follow_up.FollowUp(kind="nap", config=lambda model: config, present=dreamt)


def dreamt(folder: Any, config: NapConfig) -> bool:
    """Whether a nap of this config has left its artefact."""
    store = Store(folder.root)
    return store.folder("nap", store.fingerprint("nap", 1, config.result_fields(), [])).is_dir()


KINDS["nap"] = Kind(config=NapConfig, job="runs_helpers:NAP", name="Nap", title=lambda config: "sheep", command=("nap",))


# --- for the tests -------------------------------------------------------------------------------------------------


def start(root: Path, **config: Any) -> Run:
    """A nap, launched by this process."""
    return Run(root.resolve() / "runs" / launching.launch("nap", NapConfig(**config), root=root))


def wait_state(run: Run, *states: str, seconds: float = 60.0) -> Status:
    """Waits for one of these states; fails if the run ends in another one."""
    end = time.monotonic() + seconds
    while (status := run.status()).state not in states:
        assert status.live and time.monotonic() < end, f"{status}\n{run.log.read_text()[-3000:]}"
        time.sleep(0.01)
    return status


def session(leader: int) -> list[int]:
    """The living processes (no zombies) of the session that a worker leads."""
    done = subprocess.run(["ps", "-A", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in done.stdout.splitlines())
    return [int(pid) for pid, leader_, state in rows if int(leader_) == leader and not state.startswith("Z")]

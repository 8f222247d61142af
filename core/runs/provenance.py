"""What a run was made with: our code, git, packages, Python, machine, seeds, data. Where these are equal, so are the bytes that come out."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.config import Config
from core.files import file_sha256
from core.runs.store import Artefact, Store

CHECKOUT = Path(__file__).resolve().parents[2]
DISTRIBUTION = "sparserm-workbench"
PACKAGES = (
    *("torch", "transformers", "sae-lens", "huggingface-hub", "datasets", "safetensors"),
    *("numpy", "scipy", "scikit-learn", "pandas", "trl", "peft"),
)


def provenance(config: Config, devices: Sequence[str], data: Mapping[str, str]) -> dict[str, Any]:
    """JSON values. `data` names the input files and their sha256; `devices` what the run computes on."""
    return {
        "code": {"version": _version(DISTRIBUTION), "sha256": source_sha256(), "git": git_state()},
        "python": platform.python_version(),
        "packages": {name: installed for name in PACKAGES if (installed := _version(name))},
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "devices": list(devices),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "data": dict(data),
        "seeds": dict(_seeds(config.to_dict())),
    }


def source_sha256() -> str:
    """Hash over our source files: tells two dirty trees apart, and works where there is no git."""
    digest = hashlib.sha256()
    for file in sorted((CHECKOUT / "core").rglob("*.py")):
        digest.update(f"{file.relative_to(CHECKOUT).as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def git_state(checkout: Path = CHECKOUT) -> dict[str, Any] | None:
    """Commit, and whether any file differs from it (untracked ones count; ignored ones don't). None without git, or in no checkout of ours."""
    if _git(checkout, "ls-files", "--error-unmatch", "core/errors.py") is None:
        return None  # installed as a package: a repository around it, if any, is somebody else's
    commit, changed = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain")
    return None if commit is None or changed is None else {"commit": commit, "dirty": bool(changed)}


def _git(checkout: Path, *words: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # No optional locks: asking must not disturb a commit that is being made.
    command = ["git", "--no-optional-locks", "-C", str(checkout), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """The processor's model: another one rounds differently."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if sys.platform.startswith("linux") and info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _seeds(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from _seeds(value, inner)
        elif name in ("seed", "seeds"):
            yield inner, value


class RecordingStore(Store):
    """A store that records which artefacts a run asked for, in order, and which of them it made.

    `say` receives a line for each artefact that was found.
    """

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        super().__init__(root)
        self._used: dict[str, Artefact] = {}
        self._made: set[str] = set()
        self._say = say

    def get_or_make(
        self, step: str, version: int, config: Mapping[str, Any], inputs: Sequence[str], make: Callable[[Path, Path], Mapping[str, Any]]
    ) -> Artefact:
        artefact = super().get_or_make(step, version, config, inputs, make)
        if artefact.fingerprint not in self._used and artefact.fingerprint not in self._made:
            self._say(f"{step}: found in the store")
        self._used[artefact.fingerprint] = artefact
        return artefact

    def _make(self, step: str, fingerprint: str, head: Mapping[str, Any], make: Callable[[Path, Path], Mapping[str, Any]]) -> Artefact:
        artefact = super()._make(step, fingerprint, head, make)
        self._made.add(fingerprint)
        return artefact

    def record(self) -> list[dict[str, Any]]:
        """Each artefact's step, fingerprint, inputs, what its manifest says of itself, and its files' sha256. `made`: by this run, not found."""
        return [_recorded(artefact, artefact.fingerprint in self._made) for artefact in self._used.values()]


def _recorded(artefact: Artefact, by_this_run: bool) -> dict[str, Any]:
    manifest = artefact.manifest
    files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    head = {"step": artefact.step, "fingerprint": artefact.fingerprint, "path": str(artefact.path), "made": by_this_run}
    return {**head, **{name: manifest[name] for name in ("version", "config", "inputs")}, "facts": artefact.facts, "files": files}

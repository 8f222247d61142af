"""The store: content-addressed artefacts that are whole or absent.

An artefact is a folder `<root>/artefacts/<step>/<2 hex>/<fingerprint>/` with `manifest.json` and data files. Its fingerprint is the
sha256 over step, step version, the config fields that change the result, and the fingerprints of its inputs: a chain.

1. Publish: write into a temporary folder, the manifest last, fsync, `os.rename`. So the folder exists if and only if it is complete.
2. Read: the manifest's schema and own hash, and each file's size and (on `verify`) sha256. Corrupt folders are moved aside, which is
   logged, and computed again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.errors import StoreError
from core.files import file_sha256, read_json, write_text
from core.types import canonical_json, sha256_of

MANIFEST = "manifest.json"
SCHEMA = 1
# A kill test holds a step open here: the name of the step whose publication waits for ever (tests only).
HOLD = "SPARSERM_TEST_HOLD"
log = logging.getLogger(__name__)


def cache_root() -> Path:
    """`SPARSERM_CACHE`, else `cache/` of the checkout."""
    given = os.environ.get("SPARSERM_CACHE")
    return Path(given).expanduser() if given else Path(__file__).resolve().parents[2] / "cache"


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A published artefact: where it is and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the step's `make` returned: counts and names. Manifests written before the field was renamed call it `said`."""
        facts: Mapping[str, Any] = self.manifest["facts"] if "facts" in self.manifest else self.manifest["said"]
        return facts

    @property
    def step(self) -> str:
        return str(self.manifest["step"])

    def file(self, name: str) -> Path:
        """Path of one of its files. Raises StoreError if the manifest does not list it."""
        if name not in self.manifest["files"]:
            raise StoreError(f"artefact {self.path} holds no {name}", found=", ".join(self.manifest["files"]))
        return self.path / name


class Store:
    """Artefacts under one root folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def fingerprint(self, step: str, version: int, config: Mapping[str, Any], inputs: Sequence[str]) -> str:
        """The chained fingerprint of a step's result. Raises StoreError where a value can't be hashed."""
        try:
            return _fingerprint({"step": step, "version": version, "config": dict(config), "inputs": list(inputs)})
        except (TypeError, ValueError) as error:
            raise StoreError(f"the configuration of step {step} can't be fingerprinted", found=str(error)) from error

    def folder(self, step: str, fingerprint: str) -> Path:
        return self.root / "artefacts" / step / fingerprint[:2] / fingerprint

    def find(self, step: str, fingerprint: str) -> Artefact | None:
        """The artefact if it stands and is whole; a corrupt one is moved aside and None is returned."""
        path = self.folder(step, fingerprint)
        if not path.exists():
            return None
        try:
            return read_artefact(path)
        except StoreError as error:
            log.warning("%s\n  moved aside, and computed again", error)
            self._set_aside(path)
            return None

    def scratch(self, step: str, fingerprint: str) -> Path:
        """A folder that survives a kill, where a step keeps finished shards until it publishes."""
        path = self.root / "scratch" / _short(step, fingerprint)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def lock(self, step: str, fingerprint: str) -> Iterator[None]:
        """Held while an artefact is computed: two processes never compute one twice. Freed by the system when its holder dies."""
        with FileLock(self._lock_path(_short(step, fingerprint))):
            yield

    def _lock_path(self, short: str) -> Path:
        path = self.root / "locks" / f"{short}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def get_or_make(
        self, step: str, version: int, config: Mapping[str, Any], inputs: Sequence[str], make: Callable[[Path, Path], Mapping[str, Any]]
    ) -> Artefact:
        """The artefact of a step, computed by `make(folder, scratch)` if it does not stand yet.

        `make` writes its files into `folder`, may keep shards in `scratch`, and returns the manifest's `facts`: counts
        and names as JSON values.
        """
        fingerprint = self.fingerprint(step, version, config, inputs)
        artefact = self.find(step, fingerprint)
        if artefact:
            return artefact
        with self.lock(step, fingerprint):
            artefact = self.find(step, fingerprint)
            if artefact:
                return artefact
            return self._make(step, fingerprint, {"version": version, "config": dict(config), "inputs": list(inputs)}, make)

    def _make(self, step: str, fingerprint: str, head: Mapping[str, Any], make: Callable[[Path, Path], Mapping[str, Any]]) -> Artefact:
        scratch = self.scratch(step, fingerprint)
        folder = self.root / "tmp" / _short(step, fingerprint)
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process left; the lock is ours
        folder.mkdir(parents=True)
        started = time.time()
        try:
            facts = make(folder, scratch)
            _hold_for_tests(self.root, step)
            times = {"time_created": started, "time_seconds": time.time() - started}
            manifest = {"schema": SCHEMA, "step": step, "fingerprint": fingerprint, **head, **times, "facts": dict(facts), "files": _listing(folder)}
            manifest["check"] = _check(manifest)
            write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False))
            _sync_folder(folder)
            target = self.folder(step, fingerprint)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(folder, target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
        return Artefact(path=target, manifest=manifest)

    def _set_aside(self, path: Path) -> None:
        aside = self.root / "corrupt" / f"{path.parent.parent.name}-{path.name[:16]}-{uuid.uuid4().hex[:6]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, aside)

    def all(self, step: str = "*") -> Iterator[tuple[Path, Artefact | StoreError]]:
        """Every artefact folder (of one step), with its content or what is wrong with it."""
        for path in sorted((self.root / "artefacts").glob(f"{step}/*/*")):
            try:
                yield path, read_artefact(path)
            except StoreError as error:
                yield path, error

    def verify(self) -> Iterator[tuple[Path, StoreError | None]]:
        """Each artefact with None, or with the error that reading every byte of it gave; such a one is moved aside."""
        for path, content in list(self.all()):
            error = content if isinstance(content, StoreError) else _hash_error(path, content)
            if error:
                self._set_aside(path)
            yield path, error

    def clean(self, *, everything: bool = False) -> int:
        """Removes what was left half-done and what was set aside (and with `everything` all artefacts); returns the bytes freed.

        What a living process works on stays.
        """
        freed = sum(_remove(path) for path in [self.root / "corrupt", *([self.root / "artefacts"] if everything else [])])
        for path in [*(self.root / "tmp").glob("*"), *(self.root / "scratch").glob("*")]:
            with contextlib.suppress(Timeout), FileLock(self._lock_path(path.name), timeout=0):
                freed += _remove(path)
        return freed


def read_artefact(path: Path) -> Artefact:
    """Reads and checks a folder: manifest, schema, name, and the size of each file. Raises StoreError."""
    try:
        manifest = read_json(path / MANIFEST)
    except StoreError as error:
        raise StoreError(f"artefact {path} has no readable manifest", found=error.found) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or manifest.get("fingerprint") != path.name:
        raise StoreError(f"the manifest of {path} is not this artefact's", expected=f"schema {SCHEMA}, fingerprint {path.name}")
    if manifest.get("check") != _check(manifest):
        raise StoreError(f"{path / MANIFEST} is damaged", expected=f"content hash {manifest.get('check')}", found=_check(manifest))
    for name, entry in manifest["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else -1
        if size != entry["bytes"]:
            present = f"{size} bytes" if size >= 0 else "no such file"
            raise StoreError(f"{path / name} is damaged", expected=f"{entry['bytes']} bytes", found=present)
    return Artefact(path=path, manifest=manifest)


def publish_folder(target: Path, make: Callable[[Path], None]) -> Path:
    """Fills a folder by `make` and gives it its name only when it is whole. For things that are not artefacts: models, saved SAEs."""
    folder = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        make(folder)
        for file in folder.rglob("*"):
            _sync_file(file)
        os.rename(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _short(step: str, fingerprint: str) -> str:
    return f"{step}-{fingerprint[:32]}"


def _fingerprint(value: dict[str, Any]) -> str:
    """sha256 of the canonical JSON, which must read back as the same value: JSON would make the keys 1 and "1" one."""
    if json.loads(canonical_json(value)) != _listed(value):
        raise TypeError("the keys of a mapping must be strings")
    return sha256_of(value)


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _listed(entry) for key, entry in value.items()}
    return [_listed(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _check(manifest: Mapping[str, Any]) -> str:
    """Hash of what a manifest says, times left out, so that the same work gives the same."""
    return sha256_of({name: value for name, value in manifest.items() if name != "check" and not name.startswith("time")})


def _hold_for_tests(root: Path, step: str) -> None:
    if os.environ.get(HOLD) == step:
        (root / f"held-{step}").touch()
        while True:
            time.sleep(0.05)


def _remove(path: Path) -> int:
    """Removes a folder; returns how many bytes its files had."""
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path, ignore_errors=True)
    return size


def _hash_error(path: Path, artefact: Artefact) -> StoreError | None:
    for name, entry in artefact.manifest["files"].items():
        if file_sha256(path / name) != entry["sha256"]:
            return StoreError(f"{path / name} is damaged", expected=f"sha256 {entry['sha256'][:12]}")
    return None


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    for file in files:
        _sync_file(file)
    return {f.relative_to(folder).as_posix(): {"bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files}


def _sync_file(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

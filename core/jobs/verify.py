"""A run done again in a fresh temporary cache, and its artefacts compared with those of the first time.

Where code, packages, processor, device and threads are what they were, every byte must be equal (times left out). Where they are not, numbers may
differ by `TOLERANCE` of the largest in their tensor. Artefacts are matched by fingerprint: one with another fingerprint had other inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from core.config import Config
from core.errors import ConfigError, StoreError
from core.files import file_sha256, read_json, read_json_lines, write_json
from core.jobs.kinds import load_job, resolved_config
from core.runs.locks import make_lock
from core.runs.provenance import RecordingStore, provenance
from core.runs.registry import Run
from core.runs.store import Store, read_artefact
from core.types import Progress

TOLERANCE = 1e-3
# From best to worst.
VERDICTS = ("identical", "not kept", "close", "different")


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    """What became of one file: `identical`, `close` (`largest`: greatest difference, as a share of the greatest number), `different`, `not kept`."""

    name: str
    verdict: str
    detail: str = ""
    largest: float | None = None


def verify(run: Run, devices: tuple[str, ...], data: Mapping[str, str], progress: Progress, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs it again and returns what is equal; the report is also written to `verified.json` of the run.

    `devices` and `data` are today's, for the comparison.

    Returns `verdict` (`identical`; `close`, if something around it changed; else `different`), `environment` (what changed) and `artefacts`.
    Raises ConfigError for a run that has not succeeded.
    """
    config, result = resolved_config(run), run.result()
    if config is None or result is None or run.status().state != "succeeded":
        raise ConfigError(f"{run.id} is {run.status().state}: there is no result to verify", remedy=f"sparserm runs resume {run.id}")
    changed = environment_changes(run.provenance() or {}, provenance(config, devices, data))
    with _fresh_cache(run.root) as fresh:
        store = RecordingStore(fresh, say)
        again = load_job(run.kind).run(_inside(config), store, progress)
        artefacts = [_compared(record, run, result) for record in store.record()]
        if not artefacts:
            artefacts = [_compared_folder(again, result)]
    worst = max((entry["verdict"] for entry in artefacts), key=VERDICTS.index, default="different")
    verdict = "different" if worst == "different" or (worst == "close" and not changed) else "close" if worst == "close" else "identical"
    report = {"run": run.id, "verdict": verdict, "environment": changed, "artefacts": artefacts}
    write_json(run.path / "verified.json", report)
    return report


@contextlib.contextmanager
def _fresh_cache(root: Path) -> Iterator[Path]:
    """An empty cache beside the real one's artefacts, with its corpora (inputs, which are checked by their hash). Models are read where they are."""
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="verify-", dir=root / "tmp"))
    try:
        # The lock's name is what `Store.clean` looks for before it removes something.
        with make_lock(root / "locks" / f"{folder.name}.lock"):
            if (root / "corpora").is_dir():
                shutil.copytree(root / "corpora", folder / "corpora")
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _inside(config: Config) -> Any:
    """The config without a place of its own to write to."""
    return dataclasses.replace(config, out="") if hasattr(config, "out") else config  # type: ignore[type-var]


def environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries of two provenances that differ, as `what`, `then`, `now`."""
    old, new = dict(_flat(then)), dict(_flat(now))
    return [{"what": name, "then": old.get(name), "now": new.get(name)} for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from _flat(value, inner)
        else:
            yield inner, value


# --- comparing -----------------------------------------------------------------------------------------------------


def _compared(record: Mapping[str, Any], run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """An artefact of the second time against that of the first: its files, or what its record says of them."""
    before = next((entry for entry in result["artefacts"] if entry["fingerprint"] == record["fingerprint"]), None)
    path = Store(run.root).folder(record["step"], record["fingerprint"])
    if path.is_dir():
        files = _compare_artefacts(path, Path(record["path"]))
    elif before:
        files = list(_compare_hashes(before["files"], record["files"]))
    else:
        files = [_unmatched(record, result)]
    return _entry(record["step"], record["fingerprint"], files)


def _compare_artefacts(first: Path, second: Path) -> list[FileVerdict]:
    try:
        facts = read_artefact(first).facts, read_artefact(second).facts
    except StoreError as error:
        return [FileVerdict(name="*", verdict="different", detail=error.problem)]
    return [*_compare_folders(first, second, without=("manifest.json",)), _compare_values("manifest.json", *facts)]


def _unmatched(record: Mapping[str, Any], result: Mapping[str, Any]) -> FileVerdict:
    """No artefact of this fingerprint: the step had other inputs then, or a result that was found (in a wider extraction) and is not kept alone."""
    same_step = [entry for entry in result["artefacts"] if entry["step"] == record["step"]]
    if not same_step:
        return FileVerdict(name="*", verdict="not kept")
    changed = ", ".join(name for name in ("version", "config", "inputs") if same_step[0][name] != record[name])
    return FileVerdict(name="*", verdict="different", detail=f"another fingerprint: {changed} changed")


def _compared_folder(again: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A result that is no artefact of the store: an SAE's folder."""
    first, second = Path(result["artefact"]), Path(again["artefact"])
    if first.is_dir():
        return _entry(first.name, "", list(_compare_folders(first, second)))
    hashes = {name: file_sha256(second / name) for name in result["files"] if (second / name).is_file()}
    return _entry(first.name, "", list(_compare_hashes(result["files"], hashes)))


def _entry(step: str, fingerprint: str, files: list[FileVerdict]) -> dict[str, Any]:
    worst = max((file.verdict for file in files), key=VERDICTS.index, default="different")
    return {"step": step, "fingerprint": fingerprint, "verdict": worst, "files": [dataclasses.asdict(file) for file in files]}


def _compare_hashes(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[FileVerdict]:
    for name in sorted(first.keys() | second.keys()):
        equal = first.get(name) == second.get(name)
        yield FileVerdict(name=name, verdict="identical" if equal else "different", detail="" if equal else "another sha256; the first file is gone")


def _compare_folders(first: Path, second: Path, without: tuple[str, ...] = ()) -> Iterator[FileVerdict]:
    names = {file.relative_to(folder).as_posix() for folder in (first, second) for file in folder.rglob("*") if file.is_file()}
    for name in sorted(names - set(without)):
        yield compare_files(first / name, second / name, name)


def compare_files(first: Path, second: Path, name: str) -> FileVerdict:
    """Two files: bytes, else tensors (.safetensors) or values (.json, .jsonl), keys that begin with `time` left out."""
    if not (first.is_file() and second.is_file()):
        return FileVerdict(name=name, verdict="different", detail="there only " + ("the first time" if first.is_file() else "this time"))
    if file_sha256(first) == file_sha256(second):
        return FileVerdict(name=name, verdict="identical")
    if first.suffix == ".safetensors":
        return _compare_tensors(first, second, name)
    if first.suffix in (".json", ".jsonl"):
        return _compare_values(name, _values(first), _values(second))
    return FileVerdict(name=name, verdict="different", detail="other bytes")


def _values(path: Path) -> Any:
    return read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)


def _compare_tensors(first: Path, second: Path, name: str) -> FileVerdict:
    before, after = load_file(first), load_file(second)
    shapes = [{key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()} for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        return FileVerdict(name=name, verdict="different", detail="other tensors, shapes or types")
    worst = max(((_distance(before[key], after[key]), key) for key in before), default=(0.0, ""))
    return _verdict(name, worst[0], f"tensor {worst[1]}")


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Greatest difference as a share of the greatest number; whole numbers and truth values differ wholly or not at all."""
    if not np.issubdtype(a.dtype, np.floating):
        return 0.0 if np.array_equal(a, b) else float("inf")
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isfinite(x), np.isfinite(y)):
        return float("inf")
    x, y = np.nan_to_num(x), np.nan_to_num(y)
    scale = max(float(np.abs(x).max(initial=0.0)), float(np.abs(y).max(initial=0.0)))
    return float(np.abs(x - y).max(initial=0.0)) / scale if scale else 0.0


def _verdict(name: str, distance: float, where: str) -> FileVerdict:
    if distance == 0.0:
        return FileVerdict(name=name, verdict="identical")
    if distance <= TOLERANCE:
        return FileVerdict(name=name, verdict="close", detail=where, largest=distance)
    return FileVerdict(name=name, verdict="different", detail=where, largest=distance if np.isfinite(distance) else None)


def _compare_values(name: str, first: Any, second: Any) -> FileVerdict:
    distance, where = max(_differences(first, second, ""), default=(0.0, ""))
    return _verdict(name, distance, where)


def _differences(a: Any, b: Any, path: str) -> Iterator[tuple[float, str]]:
    """Where two JSON values differ, and by how much; times are ignored."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted(a.keys() | b.keys()):
            if not key.startswith("time"):
                yield from _differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{path}[{number}]")
    elif isinstance(a, (int, float)) and isinstance(b, (int, float)) and float in (type(a), type(b)):
        yield abs(a - b) / max(abs(a), abs(b), 1e-12), path
    elif a != b:
        yield float("inf"), path

"""The files of a reward model's folder: `config.json` records their sizes and hashes, so a changed file is an error.

Two fields of `config.json`, public as the whole format is:

    files           name -> {"bytes": size, "sha256": hash of the bytes}: every other file of the model
    config_sha256   sha256 of the UTF-8 bytes of config.json's canonical JSON without this field (core.types.canonical_json:
                    sorted keys, separators "," and ":", only the escapes that JSON demands), whatever its white space

A control's folder below (`controls/<kind>/`) is a reward model's folder with a record of its own. What people write
beside the model, such as `README.md` and notes, is neither recorded nor read; labels of latents lie in the cache and
not here. A folder without both fields was made by an older version: it is read, with a warning.

`read_config` checks all recorded files. A file is hashed once a process; later its size and times are looked at, so a
check then costs microseconds. Only JSON and hashes are needed here, neither numpy nor torch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import StoreError
from core.files import file_sha256, write_json
from core.runs.store import MANIFEST
from core.types import canonical_json, sha256_of, strict_json

FORMAT = "sparserm-reward-model"
CONFIG, TENSORS, HEADS, SELECTION = "config.json", "model.safetensors", "heads.safetensors", "selection.jsonl"
KNOWN, KNOWN_TEXTS, FAITHFULNESS = "known.safetensors", "known.jsonl", "faithfulness.json"
TOKENS = "tokens.safetensors"
EVALUATION, CURVE = "evaluation.json", "curve.json"
OPTIONAL_FILES = (KNOWN, KNOWN_TEXTS, TOKENS, FAITHFULNESS, EVALUATION, CURVE)
MODEL_FILES = (TENSORS, HEADS, SELECTION, *OPTIONAL_FILES)

FILES, CONFIG_HASH = "files", "config_sha256"
JUST_WRITTEN = 2 * 10**9  # ns: two changes within a tick of the file system's clock look alike, so a hash of so young a file is not kept
SHOWN = 16  # digits of a hash in a message
log = logging.getLogger(__name__)


# --- writing -------------------------------------------------------------------------------------------------------


def write_config(folder: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Writes `config.json` with the record of these files, which lie in the folder already."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in sorted(names)}
    content = {name: value for name, value in config.items() if name != CONFIG_HASH} | {FILES: files}
    content = strict_json(canonical_json(content))  # as it will be read
    write_json(folder / CONFIG, {**content, CONFIG_HASH: sha256_of(content)})


def record_files(folder: Path) -> None:
    """Records the model files in the folder now: for those who add one, or write the format with other tools."""
    write_config(folder, _parsed(folder), [name for name in MODEL_FILES if (folder / name).is_file()])


# --- reading -------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, once every recorded file of the folder was found to be whole.

    Raises StoreError, naming the file, where one is missing, empty, cut or changed; where one lies there that the
    record does not name; and where the folder holds no reward model. A folder without a record gives one warning.
    """
    config = _parsed(folder)
    if FILES not in config and CONFIG_HASH not in config:
        _warn_of_no_record(folder)
        return config
    _check_config_hash(config, folder)
    files = config[FILES]
    for name, entry in files.items():
        _check_file(folder, name, entry)
    strangers = [name for name in MODEL_FILES if name not in files and (folder / name).exists()]
    if strangers:
        raise StoreError(
            f"{folder / strangers[0]} is not of this reward model",
            expected=f"a file that {CONFIG} records under {FILES}",
            found="no record of it",
            remedy="remove it, or fetch a whole copy",
        )
    return config


def has_record(config: Mapping[str, Any]) -> bool:
    """Whether the files beside this `config.json` are recorded, so that a change of them is noticed."""
    return FILES in config


def record_of(folder: Path, config: Mapping[str, Any]) -> str:
    """Identifies the files of a folder as recorded; without a record, as they are now, by size and times."""
    if CONFIG_HASH in config:
        return str(config[CONFIG_HASH])
    stamps = [(name, status.st_size, status.st_mtime_ns) for name in MODEL_FILES if (status := _status(folder / name)) is not None]
    return sha256_of([dict(config), stamps])


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file, computed again only if its size or times changed. OSError: there is none."""
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < JUST_WRITTEN:
        return file_sha256(path)
    return _kept_sha256(os.path.abspath(path), stamp)


@lru_cache(maxsize=4096)
def _kept_sha256(path: str, stamp: tuple[int, ...]) -> str:
    return file_sha256(Path(path))


def _parsed(folder: Path) -> dict[str, Any]:
    """config.json of a reward model, unchecked but for its format."""
    remedy = "give a folder that `sparserm fit` made; one on the Hub is loaded by SparseRM.from_pretrained"
    path = folder / CONFIG
    try:
        config = strict_json(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"there is no reward model at {folder}", expected=f"a folder with {CONFIG}, {TENSORS}", remedy=remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} can't be read", expected="JSON", found=str(error), remedy=remedy_for(folder)) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        actual = repr(config.get("format")) if isinstance(config, dict) else type(config).__name__
        raise StoreError(f"{folder} is not a SparseRM reward model", expected=f"format {FORMAT!r} in {CONFIG}", found=actual, remedy=remedy)
    return config


def _check_config_hash(config: Mapping[str, Any], folder: Path) -> None:
    recorded, files = config.get(CONFIG_HASH), config.get(FILES)
    actual = sha256_of({name: value for name, value in config.items() if name != CONFIG_HASH})
    if recorded != actual:
        raise _changed(folder, CONFIG, f"content of sha256 {str(recorded)[:SHOWN]} ({CONFIG_HASH})", f"sha256 {actual[:SHOWN]}")
    wanted = "name -> bytes, sha256"
    if not isinstance(files, dict) or not all(isinstance(entry, dict) and {"bytes", "sha256"} <= set(entry) for entry in files.values()):
        raise _changed(folder, CONFIG, f"{FILES}: {wanted}", repr(files)[:80])
    outside = [name for name in files if Path(name).name != name or "\\" in name]
    if outside:
        raise _changed(folder, CONFIG, f"{FILES}: names of files in this folder", repr(outside[0])[:80])


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    path, wanted = folder / name, f"{entry['bytes']} bytes"
    if not path.is_file():
        raise _changed(folder, name, wanted, "no such file")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise _changed(folder, name, wanted, f"{size} bytes" if size else "an empty file")
    try:
        actual = sha256_of_file(path)
    except OSError as error:
        raise _changed(folder, name, "a file that can be read", str(error)) from error
    if actual != entry["sha256"]:
        changed = f"sha256 {actual[:SHOWN]}, of the same size"
        raise _changed(folder, name, f"sha256 {str(entry['sha256'])[:SHOWN]}, as {CONFIG} records it", changed)


def _changed(folder: Path, name: str, expected: str, actual: str) -> StoreError:
    remedy = remedy_for(folder)
    if name == KNOWN_TEXTS:
        remedy += "; to share a model without its texts use push_to_hub or save_pretrained, which record what they write"
    return StoreError(f"{folder / name} is damaged: it is not as it was saved", expected=expected, found=actual, remedy=remedy)


def remedy_for(folder: Path) -> str:
    """What to do about a damaged folder: of an artefact in the cache the store has to let go first."""
    if any((place / MANIFEST).is_file() for place in (folder, *list(folder.parents)[:3])):
        return "`sparserm cache verify` moves it aside; then fit it again"
    return "fit it again, or fetch a whole copy"


@lru_cache(maxsize=1024)
def _warn_of_no_record(folder: Path) -> None:
    log.warning(
        "%s was made by an older version and records no hashes of its files: nobody can tell whether they are whole. Fit it again to have them",
        folder,
    )

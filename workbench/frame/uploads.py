"""Uploaded files: saved in the cache under a name made of their content, never under their own. No Streamlit here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from core.errors import DataError
from core.files import write_bytes, write_text
from core.runs.store import cache_root
from core.text_safety import printable

LARGEST = 200 * 2**20  # bytes; the same as maxUploadSize in .streamlit/config.toml
KINDS = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
UPLOADED = re.compile(r"[0-9a-f]{16}(\.jsonl|\.json|\.csv|\.parquet)(\.gz)?")
LONGEST_NAME = 80
TOGETHER = 5 * 2**30  # bytes of all uploads; the oldest are removed first


def keep(name: str, data: bytes) -> Path:
    """Saves an uploaded file and returns its path. Of its name only a known ending is used.

    Raises DataError for another ending, an empty file, or a file that is too large.
    """
    kind = next((kind for kind in sorted(KINDS, key=len, reverse=True) if name.lower().endswith(kind)), None)
    if kind is None:
        raise DataError("this kind of file can't be read", expected=" ".join(KINDS), remedy="save it as one of these")
    if not data:
        raise DataError("this file is empty", expected="preference pairs, one a row")
    if len(data) > LARGEST:
        raise DataError("this file is too large to upload", expected=f"at most {LARGEST // 2**20} MB", remedy="give its path on this machine instead")
    path = cache_root().resolve() / "uploads" / f"{hashlib.sha256(data).hexdigest()[:16]}{kind}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
        _make_room(path)
    write_text(_name_file(path), printable(Path(name.replace("\\", "/")).name, LONGEST_NAME))
    return path


def name_of(path: Path) -> str:
    """The name that the person's file had, for display only; of a file that was not uploaded, its own name."""
    try:
        return _name_file(path).read_text(encoding="utf-8") if UPLOADED.fullmatch(path.name) else path.name
    except OSError:
        return path.name


def _name_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.name")


def _make_room(newest: Path) -> None:
    files = sorted(
        (file for file in newest.parent.iterdir() if UPLOADED.fullmatch(file.name) and file != newest), key=lambda file: file.stat().st_mtime
    )
    total = sum(file.stat().st_size for file in (*files, newest))
    for file in files:
        if total <= TOGETHER:
            break
        total -= file.stat().st_size
        file.unlink(missing_ok=True)
        _name_file(file).unlink(missing_ok=True)

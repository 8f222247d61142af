"""Files that appear whole or not at all, and JSON in them.

    write_json(path, value)           read_json(path)             indented, keys in order
    write_json_lines(path, rows)      read_json_lines(path)       a JSON value a line
    write_text, write_bytes           whole_file(path)            anything else

A writer fills a temporary file beside the file, syncs it and renames it, so a reader sees the old content or the new
one and a kill leaves no part under the file's name. All text is UTF-8 with line feeds. NaN and infinities are refused
in JSON, since JSON lacks them. The files of an artefact are published together by core/runs/store.py; lines that are
added one by one are written by core/runs/events.py and core/backbone/journal.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from core.errors import StoreError
from core.types import strict_json

Result = TypeVar("Result")
# Windows refuses to replace a file while another process reads it, and to read it while it is replaced.
RETRIES_ON, TRIES, WAIT = ("nt",), 21, 0.02  # seconds between tries


@contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Gives a temporary file beside `path` to be written, and puts it in the place of `path` when the block has ended
    without an error.

    `private`: only its owner may read it. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        if private:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        with temporary.open("r+b") as handle:
            os.fsync(handle.fileno())
        _patiently(lambda: os.replace(temporary, path))
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Writes a file, whole or not at all."""
    with whole_file(path, private=private) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Writes a text, whole or not at all."""
    write_bytes(path, text.encode("utf-8"), private=private)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes texts one after the other (each with its line end), whole or not at all. Halves of surrogate pairs are
    kept as they are.
    """
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as handle:
        handle.writelines(lines)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON value, indented and with its keys in order, whole or not at all. Raises ValueError or TypeError on
    what JSON lacks.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False))


def json_line(value: Any, *, sort_keys: bool = False) -> str:
    """A JSON value as a line of a file. Raises ValueError or TypeError on what JSON lacks."""
    return json.dumps(value, ensure_ascii=False, sort_keys=sort_keys, allow_nan=False) + "\n"


def write_json_lines(path: Path, rows: Iterable[Any], *, sort_keys: bool = False) -> None:
    """Writes a JSON value a line, whole or not at all. With `sort_keys` equal rows give equal bytes."""
    write_lines(path, (json_line(row, sort_keys=sort_keys) for row in rows))


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises StoreError where the file is missing, can't be read or holds no JSON."""
    try:
        return strict_json(_patiently(lambda: path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def read_json_lines(path: Path) -> list[Any]:
    """The JSON values of a file, one a line; blank lines are skipped. Raises StoreError as `read_json` does."""
    try:
        # Not splitlines: a text may hold line ends of other scripts, which JSON does not escape.
        with path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as handle:
            return [strict_json(line) for line in handle if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _unreadable(path: Path, error: Exception) -> StoreError:
    if isinstance(error, OSError):
        return StoreError(f"{path} can't be read", found=str(error), remedy="sparserm cache verify")
    return StoreError(f"{path} is damaged", expected="JSON", found=str(error), remedy="sparserm cache verify")


def _patiently(action: Callable[[], Result]) -> Result:
    """The action's result, tried again for a while on Windows, where another process may hold the file for a moment."""
    for left in range(TRIES - 1, -1, -1):
        try:
            return action()
        except PermissionError:
            if os.name not in RETRIES_ON or not left:
                raise
            time.sleep(WAIT)
    raise AssertionError("the last try returns or raises")

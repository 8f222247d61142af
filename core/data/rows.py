"""What all readers share: numbered rows, lines of a file that may break off, JSON that tells of repeated keys, text fit to be shown."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from core.types import RefusedRow

MAX_LINE = 64 * 2**20  # bytes; a longer line is refused and never held whole
STREAM_ERRORS = (EOFError, OSError, zlib.error)  # what reading cut or damaged gzip data raises (BadGzipFile is an OSError)


class Row(NamedTuple):
    """One row that could be read: its number in the source and its columns."""

    number: int
    values: dict[str, Any]


Rows = Iterator[Row | RefusedRow]


class RepeatedKeys(dict[str, Any]):
    """A JSON object that gives one key twice: which value counts is anybody's guess."""


def printable(text: object, limit: int = 80) -> str:
    """Text that can be printed and saved whatever it came from: no broken encoding, no control characters, not too long."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[:limit])
    return shown.encode("utf-8", "backslashreplace").decode() + ("..." if len(str(text)) > limit else "")


def lines(handle: io.BufferedIOBase) -> Iterator[bytes | Exception]:
    """The lines, each cut to MAX_LINE bytes; where the data breaks off, the error, and nothing after it."""
    try:
        while line := handle.readline(MAX_LINE):
            rest = line
            while len(rest) == MAX_LINE and not rest.endswith(b"\n"):
                rest = handle.readline(MAX_LINE)
            yield line
    except STREAM_ERRORS as error:
        yield error


def cut(number: int, error: Exception) -> RefusedRow:
    """The row at which the data breaks off."""
    return RefusedRow(row=number, field="file", reason=f"the data breaks off here, what follows is lost ({printable(error)})")


def parse_json(text: str) -> Any:
    """A JSON value; an object with a repeated key comes as RepeatedKeys. Raises ValueError, or RecursionError on deep nesting."""
    return json.loads(text, object_pairs_hook=_checked_object)


def _checked_object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    return values if len(values) == len(items) else RepeatedKeys(values)

"""What the readers of all kinds of files share: numbered rows, lines of a file that may break off, JSON with repeated keys."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import DataError
from core.text_safety import printable
from core.types import RefusedRow

MAX_LINE = 64 * 2**20  # bytes; a longer line is refused and never held whole
LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$")
STREAM_ERRORS = (EOFError, OSError, zlib.error)  # what reading cut or damaged gzip data raises (BadGzipFile is an OSError)


class Row(NamedTuple):
    """A row that was read: its number in the source, and its values by column."""

    number: int
    values: dict[str, Any]


Rows = Iterator[Row | RefusedRow]


class RepeatedKeys(dict[str, Any]):
    """A JSON object that gives one key twice, so that the meant value is not clear. Rows with one are refused."""


def lines(handle: io.BufferedIOBase) -> Iterator[bytes | Exception]:
    """The lines, each cut to MAX_LINE bytes. Where the data breaks off, the error comes last."""
    try:
        while line := handle.readline(MAX_LINE):
            rest = line
            while len(rest) == MAX_LINE and not rest.endswith(b"\n"):
                rest = handle.readline(MAX_LINE)
            yield line
    except STREAM_ERRORS as error:
        yield error


def cr_lines(handle: io.BufferedIOBase) -> Iterator[bytes | Exception]:
    """As `lines`, for a file whose lines end with CR alone (or with LF or CRLF)."""
    waiting = b""
    try:
        while chunk := handle.read(1 << 20):
            # The last piece is kept back: it may continue in the next chunk, or an LF may follow its CR.
            *whole, waiting = LINE.findall(waiting + chunk)
            yield from (line[:MAX_LINE] for line in whole)
            if len(waiting) > MAX_LINE:
                waiting = waiting[:MAX_LINE]
    except STREAM_ERRORS as error:
        yield error
        return
    yield from LINE.findall(waiting)


def line_end(head: bytes) -> bytes:
    """The end of the first line:

    LF, CRLF or CR; empty if there is none. Ends inside quoted cells of a csv do not count.
    """
    quoted = False
    for match in re.finditer(rb'"|\r+\n|\r|\n', head):
        if match[0] == b'"':
            quoted = not quoted
        elif not quoted:
            return match[0] if len(match[0]) == 1 else b"\r\n"  # CR CR LF is what text mode makes of CRLF
    return b""


def begins(handle: io.BufferedIOBase, size: int) -> bytes:
    """About the first `size` bytes, in whole lines; fewer if the data breaks off before."""
    taken = bytearray()
    for line in lines(handle):
        if isinstance(line, Exception) or len(taken) >= size:
            break
        taken += line
    return bytes(taken)


def check_names(path: Path, names: list[str]) -> None:
    """Raises DataError where a table has a column name twice, or one that is not UTF-8."""
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        repeated = printable(", ".join(twice), 300)
        raise DataError(f"{path} has two columns of one name", expected="each name once", found=repeated, remedy="rename or remove one")
    if any("\udc80" <= c <= "\udcff" for name in names for c in name):
        raise DataError(f"the header of {path} is not UTF-8", found=printable(", ".join(names), 300), remedy="save the file as UTF-8")


def cut(number: int, error: Exception) -> RefusedRow:
    """The refused row at which the data breaks off."""
    return RefusedRow(row=number, field="file", reason=f"the data breaks off here, and the rows after it are lost ({printable(error)})")


def parse_json(text: str) -> Any:
    """A JSON value; an object with a repeated key becomes RepeatedKeys.

    Raises ValueError, or RecursionError for deep nesting.
    """
    return json.loads(text, object_pairs_hook=_checked_object)


def _checked_object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    return values if len(values) == len(items) else RepeatedKeys(values)


def as_json(value: Any) -> str:
    """A value as text; equal values give equal texts."""
    return json.dumps(value, sort_keys=True, default=str)

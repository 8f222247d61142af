"""From a file or a Hub data set to numbered rows. What the columns mean is `formats.py`'s business.

| source | a row is | its number, as a person counts |
|---|---|---|
| `.jsonl` | a line with one JSON object | line of the file, from 1 (blank lines counted, not read) |
| `.json` | an object in a list, in `{"data": [...]}`, or in columns `{"prompt": [...], ...}`; or as `.jsonl` | place in the list, from 1 |
| `.csv` | a record under the header (a quoted cell may span lines) | row of the sheet: the header is 1, the first record 2 |
| `.parquet` | a row | place in the table, from 1 |
| a folder, a Hub id | a row of `datasets.load_dataset` | place in the split, from 1 |

Every file may be gzipped: that is seen by its content, whatever its name. Text is UTF-8, with or without a byte order mark.
One bad row never stops the others: it comes out as a `RefusedRow` with its number. Where compressed data is cut, the rows before the cut come
out, then one `RefusedRow` for the cut. What spoils the whole file (a header with one name twice, UTF-16, a cut JSON list) is a `DataError`.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import DataConfig
from core.data import hub
from core.data.rows import MAX_LINE, STREAM_ERRORS, RepeatedKeys, Row, Rows, cut, lines, parse_json, printable
from core.data.tables import csv_rows, parquet_rows
from core.errors import DataError
from core.types import RefusedRow

KINDS = (".jsonl", ".json", ".csv", ".parquet")
CONTAINERS = ("data", "rows", "examples", "train")  # keys under which a JSON document may keep its list


@dataclass(frozen=True, kw_only=True)
class Source:
    """An open source: its name, its rows, and how far the reading is (`done` of `total`, bytes or rows). Close it after use.

    `notes` say in a sentence each what was detected or left out; they are complete once all rows have been read.
    """

    name: str
    rows: Rows
    position: Callable[[], tuple[float, float]]
    close: Callable[[], None]
    notes: list[str] = field(default_factory=list)


def open_source(config: DataConfig) -> Source:
    """Opens what `config.pairs` names. What exists on disk is a path; a Hub id is what looks like one and is not.

    Raises DataError on a wrong path, an unknown kind of file, a Hub data set that can't be had, or a file that can't be read at all.
    """
    path = Path(os.path.expanduser(config.pairs))
    if not _exists(path):
        _check_hub_id(config.pairs, path)
    if path.is_file():
        return _open_file(path)
    dataset = hub.load(config)
    number = [0]
    return Source(name=hub.describe(config), rows=_dataset_rows(dataset, number), position=lambda: (number[0], len(dataset)), close=lambda: None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _check_hub_id(text: str, path: Path) -> None:
    known_suffix = path.name.lower().removesuffix(".gz").endswith(KINDS)
    if not known_suffix and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and not text.startswith("."):
        return
    folder = path.parent
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        names = os.listdir(folder)
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    found = f"in that folder: {', '.join(near)}" if near else "nothing alike there" if names else f"no folder {printable(folder.absolute(), 300)}"
    raise DataError(
        f"there is no file {printable(text, 300)}",
        expected=f"a file ({' '.join(KINDS)}, also .gz), a folder, or a Hub id such as Anthropic/hh-rlhf",
        found=found,
        remedy="check the path; it counts from the folder in which the command runs",
    )


def _open_file(path: Path) -> Source:
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind not in KINDS:
        raise DataError(f"{path} is of no known kind", expected=" ".join(KINDS) + ", each also .gz", found=path.suffix or "no suffix")
    read = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": csv_rows, ".parquet": parquet_rows}[kind]
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            size = path.stat().st_size
            handle = _plain(raw)
            _check_encoding(path, kind, handle)
        except STREAM_ERRORS as error:
            raise DataError(f"{path} can't be read", found=str(error), remedy="check its permissions, or fetch it again") from error
        stack.pop_all()
    return Source(name=str(path), rows=read(path, handle), position=lambda: (raw.tell(), size), close=raw.close)


def _plain(raw: io.BufferedReader) -> io.BufferedIOBase:
    gzipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if gzipped else raw


def _check_encoding(path: Path, kind: str, handle: io.BufferedIOBase) -> None:
    """Steps over a UTF-8 byte order mark; refuses an empty file and UTF-16 or UTF-32."""
    head = handle.read(4)
    if not head:
        raise DataError(f"{path} is empty", expected="preference pairs, a row each")
    utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    if utf16 and kind != ".parquet":
        raise DataError(f"{path} is not UTF-8", expected="UTF-8 text", found="a UTF-16 or UTF-32 byte order mark", remedy="save it as UTF-8")
    handle.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)


def _jsonl_rows(path: Path, handle: io.BufferedIOBase) -> Rows:
    for number, line in enumerate(lines(handle), 1):
        if isinstance(line, Exception):
            yield cut(number, line)
        elif line.strip():
            yield _json_line(number, line)


def _json_line(number: int, line: bytes) -> Row | RefusedRow:
    if len(line) == MAX_LINE:
        return RefusedRow(row=number, field="row", reason=f"longer than {MAX_LINE} bytes")
    try:
        return _json_row(number, parse_json(line.strip().decode("utf-8")))
    except UnicodeDecodeError:
        return RefusedRow(row=number, field="row", reason="bytes that are not UTF-8")
    except RecursionError:
        return RefusedRow(row=number, field="row", reason="nested too deeply")
    except ValueError as error:
        return RefusedRow(row=number, field="row", reason=f"not JSON ({printable(getattr(error, 'msg', error))})")


def _json_row(number: int, value: Any) -> Row | RefusedRow:
    if isinstance(value, RepeatedKeys):
        return RefusedRow(row=number, field="row", reason="one key is given twice")
    if not isinstance(value, dict):
        return RefusedRow(row=number, field="row", reason=f"not an object but {type(value).__name__}")
    return Row(number, value)


def _json_rows(path: Path, handle: io.BufferedIOBase) -> Rows:
    try:
        data = handle.read()
        # Bytes that are not UTF-8 become lone surrogates, so that only the texts that hold them are refused (formats.text_of).
        document = parse_json(data.decode("utf-8", "surrogateescape"))
    except STREAM_ERRORS as error:
        raise DataError(f"{path} breaks off or is damaged", found=printable(error), remedy="fetch it again") from error
    except (ValueError, RecursionError) as error:
        if data.lstrip().startswith(b"{"):  # many .json files hold one object a line
            yield from _jsonl_rows(path, io.BytesIO(data))
            return
        found = "nesting too deep" if isinstance(error, RecursionError) else printable(error, 200)
        raise DataError(f"{path} is not JSON", expected="a list of objects, or one object a line", found=found) from error
    for number, value in enumerate(_items(path, document), 1):
        yield _json_row(number, value)


def _items(path: Path, document: Any) -> list[Any]:
    """The rows of a JSON document: a list, a list under a known key, columns, or the one row that it is."""
    if isinstance(document, list):
        return document
    if isinstance(document, RepeatedKeys):
        raise DataError(f"{path} gives one key twice", expected="each key once", found=printable(", ".join(document), 300))
    if not isinstance(document, dict):
        raise DataError(f"{path} holds no rows", expected="a list of objects", found=type(document).__name__)
    held = [key for key in CONTAINERS if isinstance(document.get(key), list)]
    if held and not {"chosen", "rejected"} & set(document):
        return list(document[held[0]])
    return _from_columns(path, document)


def _from_columns(path: Path, document: dict[str, Any]) -> list[Any]:
    columns = {name: list(value.values()) if isinstance(value, dict) else value for name, value in document.items()}
    if not columns or not all(isinstance(value, list) for value in columns.values()) or any(map(_is_dialogue, columns.values())):
        return [document]
    lengths = {name: len(value) for name, value in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{printable(name)}: {n}" for name, n in list(lengths.items())[:20])
        raise DataError(f"the columns of {path} differ in length", expected="as many values in each", found=found)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _is_dialogue(value: list[Any]) -> bool:
    return any(isinstance(item, dict) and "role" in item for item in value)


def _dataset_rows(dataset: Any, number: list[int]) -> Rows:
    for values in dataset:
        number[0] += 1
        yield Row(number[0], dict(values))

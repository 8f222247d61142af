"""Reads the rows of JSON and JSON Lines files. `sources.py` has an overview of all kinds of files. JSON is always
UTF-8.

| document | rows |
|---|---|
| a list of objects | each object |
| an object with such a list under `data`, `rows`, `examples` or `train` | each object of that list; a note names other lists |
| `{"columns": [...], "data": [[...], ...]}` (pandas, orient split) | each list, under the names |
| `{"prompt": [...], "chosen": [...]}` or `{"prompt": {"0": ...}, ...}` (pandas, orient columns) | by place, or by key |
| `{"0": {...}, "1": {...}}` (pandas, orient index) | each object |
| `{"rows": [{"row_idx": 0, "row": {...}}]}` (the Hub's viewer) | each `row`; refused if the viewer cut its cells |
| any other object | the object as the only row |
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.rows import MAX_LINE, STREAM_ERRORS, RepeatedKeys, Row, Rows, begins, cr_lines, cut, line_end, lines, parse_json
from core.errors import DataError
from core.text_safety import printable
from core.types import RefusedRow

CONTAINERS = ("data", "rows", "examples", "train")  # keys under which a JSON document may keep its list
ANSWERS = {"chosen", "rejected"}  # an object with these keys is a row, not a container
SPEAKER_KEYS = ("role", "from")  # of a message
HEAD = 1 << 16  # bytes looked at for the line end


def jsonl_rows(path: Path, handle: io.BufferedIOBase, notes: list[str]) -> Rows:
    """The objects of a file with one object a line.

    A file that is one JSON list instead is read as a list, with a note.
    """
    start = handle.tell()
    head = begins(handle, HEAD)
    handle.seek(start)
    if head.lstrip()[:1] == b"[":
        listed = _one_list(handle)
        handle.seek(start)
        if listed is not None:
            notes.append(f"{path.name}: one JSON list, not one object a line; a row's number is its place in the list")
            for number, value in enumerate(listed, 1):
                yield _json_row(number, value)
            return
    only_cr = line_end(head.replace(b'"', b"")) == b"\r"
    if only_cr:
        notes.append(f"{path.name}: lines end with CR alone")
    yield from _line_rows(cr_lines(handle) if only_cr else lines(handle))


def _one_list(handle: io.BufferedIOBase) -> list[Any] | None:
    try:
        document = parse_json(handle.read().decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError, *STREAM_ERRORS):
        return None
    listed = isinstance(document, list) and len(document) > 0 and all(isinstance(value, dict) for value in document)
    return document if listed else None


def _line_rows(source: Iterator[bytes | Exception]) -> Rows:
    for number, line in enumerate(source, 1):
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


def json_rows(path: Path, handle: io.BufferedIOBase, notes: list[str]) -> Rows:
    """The rows of one JSON document, or of a file with one object a line. Raises DataError for anything else."""
    data = handle.read()
    try:
        # Bytes that are not UTF-8 become lone surrogates, so that only rows with such texts are refused
        # (texts.text_of).
        document = parse_json(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        if data.lstrip().startswith(b"{"):  # many .json files hold one object a line
            yield from jsonl_rows(path, io.BytesIO(data), notes)
            return
        reason = "nesting too deep" if isinstance(error, RecursionError) else printable(error, 200)
        raise DataError(f"{path} is not JSON", expected="a list of objects, or one object a line", found=reason) from error
    for number, value in enumerate(_items(path, document, notes), 1):
        yield _viewed(number, value) if _is_viewed(value) else _json_row(number, value)


def _items(path: Path, document: Any, notes: list[str]) -> list[Any]:
    """The rows of a document."""
    if isinstance(document, list):
        return document
    if isinstance(document, RepeatedKeys):
        raise DataError(f"{path} gives one key twice", expected="each key once", found=printable(", ".join(document), 300))
    if not isinstance(document, dict):
        raise DataError(f"{path} holds no rows", expected="a list of objects", found=type(document).__name__)
    held = [key for key in CONTAINERS if isinstance(document.get(key), list)]
    if held and not ANSWERS & set(document):
        return _under_key(path, document, held[0], notes)
    if document and all(key.isdigit() and isinstance(value, dict) for key, value in document.items()):
        return list(document.values())
    return _from_columns(path, document)


def _under_key(path: Path, document: dict[str, Any], key: str, notes: list[str]) -> list[Any]:
    """The list under a key. If its items are lists, the names under `columns` become their columns."""
    items: list[Any] = document[key]
    names = document.get("columns")
    others = [name for name, value in document.items() if name not in (key, "columns", "index") and _holds_rows(value)]
    if others:
        notes.append(f"{path.name}: the rows under `{key}` are read; not those under {printable(', '.join(others), 200)}")
    split = isinstance(names, list) and bool(items) and all(isinstance(item, list) for item in items)
    if not split or not isinstance(names, list):
        return items
    if len(set(map(str, names))) < len(names) or any(len(item) != len(names) for item in items):
        raise DataError(
            f"{path} has rows that do not fit its columns",
            expected=f"{len(names)} values in each row, each name once",
            found=printable(", ".join(map(str, names)), 200),
        )
    return [dict(zip(map(str, names), item, strict=True)) for item in items]


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, (dict, list)) for item in value)


def _from_columns(path: Path, document: dict[str, Any]) -> list[Any]:
    """The rows of an object of columns: lists of equal length, or objects with equal keys (the key identifies the row)."""
    values = list(document.values())
    if values and all(isinstance(value, dict) for value in values):
        keys = list(values[0])
        if any(key in SPEAKER_KEYS for key in keys):  # messages: the document is one row
            return [document]
        if any(set(value) != set(keys) for value in values):
            if all(key.isdigit() for value in values for key in value):
                counts = ", ".join(f"{printable(name)}: {len(value)} rows" for name, value in list(document.items())[:20])
                raise DataError(f"the columns of {path} hold different rows", expected="the same keys in each", found=counts)
            return [document]
        return [{name: column[key] for name, column in document.items()} for key in keys]
    if not values or not all(isinstance(value, list) for value in values) or any(map(_is_dialogue, values)):
        return [document]
    lengths = {name: len(value) for name, value in document.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{printable(name)}: {n}" for name, n in list(lengths.items())[:20])
        raise DataError(f"the columns of {path} differ in length", expected="as many values in each", found=counts)
    return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]


def _is_dialogue(value: list[Any]) -> bool:
    return any(isinstance(item, dict) and any(key in item for key in SPEAKER_KEYS) for item in value)


def _is_viewed(value: Any) -> bool:
    return isinstance(value, dict) and "row_idx" in value and isinstance(value.get("row"), dict)


def _viewed(number: int, value: dict[str, Any]) -> Row | RefusedRow:
    """The row inside an item of the Hub's viewer."""
    cells = value.get("truncated_cells")
    if cells:
        return RefusedRow(row=number, field=str(cells[0]) if isinstance(cells, list) else "row", reason="cut by the Hub's viewer")
    return _json_row(number, value["row"])

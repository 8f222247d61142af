"""Rows of csv and parquet files (`readers.py` has the overview)."""

from __future__ import annotations

import csv
import gzip
import io
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.rows import STREAM_ERRORS, Row, Rows, cut, lines, parse_json, printable
from core.errors import DataError
from core.types import RefusedRow

MAX_CELL = 16 * 2**20  # characters; also where the search for a closing quote in a csv ends
DAMAGED = (ValueError, OverflowError, *STREAM_ERRORS)  # beside its own errors, what pyarrow raises on damaged names, lengths and dates


def csv_rows(path: Path, handle: io.BufferedIOBase) -> Rows:
    """Records under the header. Raises DataError on a header that can't be read or has a name twice."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    records = _csv_records(lines(handle))
    header = next(records, None)
    if not isinstance(header, list) or not any(header):
        raise DataError(f"the header of {path} can't be read", expected="column names, separated by commas", found=printable(header or "nothing"))
    names = [name.strip() for name in header]
    _check_names(path, [name for name in names if name])
    for number, cells in enumerate(records, 2):
        if isinstance(cells, Exception):
            yield cut(number, cells)
        elif isinstance(cells, str):
            yield RefusedRow(row=number, field="row", reason=f"not csv ({printable(cells)})")
        elif len(cells) != len(names) and cells:
            yield RefusedRow(row=number, field="row", reason=f"{len(cells)} cells where the header has {len(names)}")
        elif cells:
            yield Row(number, {name: _cell(cell) for name, cell in zip(names, cells, strict=True)})


def _check_names(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        found = printable(", ".join(twice), 300)
        raise DataError(f"{path} has columns of one name", expected="each name once", found=found, remedy="rename or remove one")
    if any("\udc80" <= c <= "\udcff" for name in names for c in name):
        raise DataError(f"the header of {path} is not UTF-8", found=printable(", ".join(names), 300), remedy="save the file as UTF-8")


def _csv_records(source: Iterator[bytes | Exception]) -> Iterator[list[str] | str | Exception]:
    """Each record's cells; for a line that is not csv the reason; where the data breaks off, the error.

    After a bad line (a quote never closed, say) reading goes on at the line after it, so that one bad row does not swallow good ones.
    """
    again: deque[str] = deque()
    taken: list[str] = []
    broken: list[Exception] = []

    def feed() -> Iterator[str]:
        while again or not broken:
            line = again.popleft() if again else next(source, None)
            if line is None:
                return
            if isinstance(line, Exception):
                broken.append(line)
                return
            taken.append(line if isinstance(line, str) else line.decode("utf-8", "surrogateescape"))
            yield taken[-1]

    reader = csv.reader(feed(), strict=True)
    while True:
        taken.clear()
        try:
            yield next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if broken:
                break
            again.extendleft(reversed(taken[1:]))
            yield str(error)
            reader = csv.reader(feed(), strict=True)
    yield from broken


def _cell(text: str) -> Any:
    """A cell's text; a cell that holds a JSON list of messages or of completions becomes that list."""
    if not text.startswith("[{"):
        return text
    try:
        items = parse_json(text)
    except (ValueError, RecursionError):
        return text
    return items if all(isinstance(item, dict) and ("role" in item or "response" in item) for item in items) else text


def parquet_rows(path: Path, handle: io.BufferedIOBase) -> Rows:
    """Rows of a parquet file. Raises DataError where it is none, or has a column name twice."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = io.BytesIO(handle.read()) if isinstance(handle, gzip.GzipFile) else handle
        table = pq.ParquetFile(source)
        names = list(table.schema_arrow.names)
    except (pa.ArrowException, *DAMAGED) as error:
        raise DataError(f"{path} is no parquet file, or a damaged one", found=printable(error, 200), remedy="fetch it again") from error
    _check_names(path, names)
    number = 0
    try:
        for batch in table.iter_batches(batch_size=1000):
            yield from _batch_rows(batch, number)
            number += batch.num_rows
    except (pa.ArrowException, *DAMAGED) as error:
        yield cut(number + 1, error)


def _batch_rows(batch: Any, before: int) -> Rows:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # some value can't be had: find the rows, keep the others
        rows = [_one_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    for number, values in enumerate(rows, before + 1):
        yield Row(number, values) if values is not None else RefusedRow(row=number, field="row", reason="a value can't be read (not UTF-8?)")


def _one_row(batch: Any) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = batch.to_pylist()[0]
        return values
    except (ValueError, OverflowError):
        return None

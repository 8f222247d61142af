"""Reads the rows of parquet and Arrow files. `sources.py` has an overview of all kinds of files.

pyarrow is imported inside the functions, since pages and the command line import this file.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.data.rows import STREAM_ERRORS, Row, Rows, check_names, cut
from core.errors import DataError
from core.text_safety import printable
from core.types import RefusedRow

BATCH = 1000  # rows that are held at once
DAMAGED = (ValueError, OverflowError, *STREAM_ERRORS)  # raised by pyarrow, beside its own errors, for damaged data


def parquet_rows(path: Path, handle: io.BufferedIOBase) -> Rows:
    """Rows of a parquet file. Raises DataError if it is no parquet file, is cut off, or has a column name twice."""
    import pyarrow.parquet as pq

    def opened(source: Any) -> tuple[list[str], Iterator[Any]]:
        table = pq.ParquetFile(source)
        return list(table.schema_arrow.names), table.iter_batches(batch_size=BATCH)

    yield from _rows(path, "a parquet file", handle, opened)


def arrow_rows(path: Path, handle: io.BufferedIOBase) -> Rows:
    """Rows of an Arrow file (`.arrow`, feather) or of the Arrow stream that `datasets` writes.

    Raises DataError as `parquet_rows`.
    """
    import pyarrow as pa

    def opened(source: Any) -> tuple[list[str], Iterator[Any]]:
        magic = source.read(6)
        source.seek(0)
        if magic != b"ARROW1":
            stream = pa.ipc.open_stream(source)
            return list(stream.schema.names), iter(stream)
        file = pa.ipc.open_file(source)
        return list(file.schema.names), (file.get_batch(number) for number in range(file.num_record_batches))

    yield from _rows(path, "an Arrow file", handle, opened)


def _rows(path: Path, kind: str, handle: io.BufferedIOBase, opened: Callable[[Any], tuple[list[str], Iterator[Any]]]) -> Rows:
    import pyarrow as pa

    try:
        source = io.BytesIO(handle.read()) if isinstance(handle, gzip.GzipFile) else handle
        names, batches = opened(source)
    except (pa.ArrowException, *DAMAGED) as error:
        # pyarrow calls a cut file "not a parquet file", so the message of this error names both causes.
        raise DataError(
            f"{path} is not {kind}, or it is cut off or damaged", expected=kind, found=printable(error, 200), remedy="fetch it again"
        ) from error
    check_names(path, names)
    number = 0
    try:
        for batch in batches:
            for begin in range(0, batch.num_rows, BATCH):
                part = batch.slice(begin, BATCH)
                yield from _batch_rows(part, number)
                number += part.num_rows
    except (pa.ArrowException, *DAMAGED) as error:
        yield cut(number + 1, error)


def _batch_rows(batch: Any, before: int) -> Rows:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # some value can't be decoded: read row by row, and keep the other rows
        rows = [_single_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    for number, values in enumerate(rows, before + 1):
        if values is None:
            yield RefusedRow(row=number, field="row", reason="a value can't be read (not UTF-8?)")
        else:
            yield Row(number, values)


def _single_row(batch: Any) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = batch.to_pylist()[0]
        return values
    except (ValueError, OverflowError):
        return None

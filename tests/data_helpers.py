"""Rows and files that the tests of `core/data` share."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config import DataConfig
from core.data.pairs import DataReport, load_pairs
from core.types import PreferencePair, PreferencePairs


def trl_row(number: int) -> dict[str, Any]:
    """A valid row in TRL's format, different for each number."""
    words = hashlib.sha256(str(number).encode()).hexdigest()
    return {"prompt": f"Question {number} {words[:20]}?", "chosen": f"Yes, {number} {words[20:40]}.", "rejected": f"No, never {number} {words[40:]}."}


def trl_rows(n: int) -> list[dict[str, Any]]:
    return [trl_row(number) for number in range(n)]


def pair(number: int, prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(pair_id=f"p{number}", prompt=({"role": "user", "content": prompt},), chosen=chosen, rejected=rejected)


def jsonl_bytes(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def csv_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def parquet_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    # plain, so that a test can find a text in the bytes
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, compression="none", use_dictionary=False, write_statistics=False)
    return sink.getvalue()


def rows_bytes(kind: str, rows: Sequence[dict[str, Any]]) -> bytes:
    """A file of these rows: kind is a suffix, with `.gz` or without."""
    plain = kind.removesuffix(".gz")
    writers = {
        ".jsonl": lambda: jsonl_bytes(rows),
        ".json": lambda: json.dumps(list(rows)).encode(),
        ".csv": lambda: csv_bytes(rows),
        ".parquet": lambda: parquet_bytes(rows),
    }
    data = writers[plain]()
    return gzip.compress(data, mtime=0) if kind.endswith(".gz") else data


def load(folder: Path, name: str, data: bytes, **config: Any) -> tuple[PreferencePairs, DataReport]:
    """Writes a file and loads it. Checks that the report accounts for every row."""
    (folder / name).write_bytes(data)
    pairs, report = load_pairs(DataConfig(pairs=str(folder / name), **config))
    assert report.n_rows == report.n_used + len(report.refused)
    assert len({r.row for r in report.refused}) == len(report.refused)
    assert len({p.pair_id for p in pairs}) == len(pairs) == report.n_pairs
    return pairs, report


def load_rows(folder: Path, rows: Sequence[dict[str, Any]], **config: Any) -> tuple[PreferencePairs, DataReport]:
    return load(folder, "rows.jsonl", jsonl_bytes(rows), **config)


def refusals(report: DataReport) -> list[tuple[int, str, str]]:
    return [(r.row, r.field, r.reason) for r in report.refused]

"""Opens a file, a folder or a Hub data set, and yields its numbered rows. What their columns mean is decided in
`formats.py`.

| source | a row is | its number, as a person counts |
|---|---|---|
| `.jsonl`, `.ndjson` | a line with one JSON object | line of the file, from 1 (blank lines are counted, but not read) |
| `.json` | an object in a list, or as `json_files.py` lists; or as `.jsonl` | place in the list, from 1 |
| `.csv`, `.tsv` | a record under the header (a quoted cell may span lines; `csv_files.py`) | row of the sheet: the header is 1 |
| `.parquet`, `.arrow`, `.feather` | a row (`parquet_files.py`) | place in the table, from 1 |
| a folder | a row of its data files, one file after the other (`folders.py` chooses them) | counted on from file to file |
| a Hub id | a row of `datasets.load_dataset` (`hf_datasets.py`) | place in the split, from 1 |

Every file may be gzipped, which is detected by its content. Text is UTF-8, with or without a byte order mark; a csv may
be in another encoding (`encodings.py`). The source's notes state what was detected or left out.

A bad row never stops the others: it becomes a `RefusedRow` with its number. If compressed data is cut, the rows before
the cut are followed by one `RefusedRow` for the cut. A problem of the whole file is a `DataError`: a header with one
name twice, JSON in UTF-16, a cut JSON list, or a file that holds no rows at all (`unsupported_files.py`: a web page, a
Git LFS pointer, a model).
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import io
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.config import DataConfig
from core.data import hf_datasets
from core.data.csv_files import csv_rows
from core.data.encodings import by_mark
from core.data.folders import KINDS, check_columns, chosen_split, data_files, kind_of, saved_splits
from core.data.formats import FORMATS
from core.data.json_files import json_rows, jsonl_rows
from core.data.parquet_files import arrow_rows, parquet_rows
from core.data.rows import STREAM_ERRORS, Row, Rows, cut
from core.data.unsupported_files import HEAD, by_suffix, check_head
from core.errors import DataError
from core.text_safety import printable
from core.types import RefusedRow

EXPECTED = f"a file ({' '.join(KINDS)}, each also .gz), a folder, or a Hub id such as Anthropic/hh-rlhf"


@dataclass(frozen=True, kw_only=True)
class Source:
    """An open source. Close it after use.

    `position` returns how far reading is: (done, total), in bytes or rows. `notes` are sentences about what was
    detected or left out; they are complete once all rows have been read.
    """

    name: str
    rows: Rows
    position: Callable[[], tuple[float, float]]
    close: Callable[[], None]
    notes: list[str] = field(default_factory=list)


def open_source(config: DataConfig) -> Source:
    """Opens the path that `config.pairs` names if it exists, else the Hub data set of this id.

    Raises DataError for a wrong path, an unknown kind of file, a data set that can't be loaded, or an unreadable file.
    """
    path = Path(os.path.expanduser(config.pairs))
    if not _exists(path):
        _check_hub_id(config.pairs, path)
        return _from_dataset(hf_datasets.load(config), hf_datasets.describe(config), [])
    known = _known_columns(config)
    if path.is_file():
        return _open_file(path, known)
    if path.is_dir():
        return _open_folder(path, config, known)
    raise DataError(
        f"{printable(path, 300)} is neither a file nor a folder",
        expected=EXPECTED,
        found="a pipe, a device or a socket",
        remedy="write the rows into a file first",
    )


def check_source(text: str) -> None:
    """Raises DataError where `text` names neither something that exists nor a data set that the Hub could have."""
    path = Path(os.path.expanduser(text))
    if not _exists(path):
        _check_hub_id(text, path)


def _known_columns(config: DataConfig) -> frozenset[str]:
    """Column names that a table is likely to have."""
    return frozenset({"id", "response", "responses", *(name for format_ in FORMATS for name in format_.uses), *config.columns.values()})


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _check_hub_id(text: str, path: Path) -> None:
    if not kind_of(path) and by_suffix(path) is None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) and not text.startswith("."):
        return
    folder = path.parent
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        names = os.listdir(folder)
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    no_folder = f"no folder {printable(folder.absolute(), 300)}"
    alike = f"in that folder: {', '.join(near)}" if near else "no similar name in that folder" if names else no_folder
    raise DataError(
        f"there is no file {printable(text, 300)}",
        expected=EXPECTED,
        found=alike,
        remedy="check the path; it is relative to the folder in which the command runs",
    )


# --- a file
# ------------------------------------------------------------------------------------------------------------


def _open_file(path: Path, known: Collection[str]) -> Source:
    kind = kind_of(path)
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            size = path.stat().st_size
            handle = _plain(raw)
            _check_content(path, kind, handle)
        except STREAM_ERRORS as error:
            raise _unreadable(path, error) from error
        rows = _guarded(path, _reader(kind, notes, known)(path, handle))
        stack.pop_all()
    return Source(name=str(path), rows=rows, position=lambda: (raw.tell(), size), close=raw.close, notes=notes)


def _reader(kind: str, notes: list[str], known: Collection[str]) -> Callable[[Path, io.BufferedIOBase], Rows]:
    lines, documents = partial(jsonl_rows, notes=notes), partial(json_rows, notes=notes)
    tables = partial(csv_rows, notes=notes, known=known)
    readers: dict[str, Callable[[Path, io.BufferedIOBase], Rows]] = {
        ".jsonl": lines,
        ".ndjson": lines,
        ".json": documents,
        ".csv": tables,
        ".tsv": tables,
        ".parquet": parquet_rows,
        ".arrow": arrow_rows,
        ".feather": arrow_rows,
    }
    return readers[kind]


def _guarded(path: Path, rows: Rows) -> Rows:
    """The rows. Raises DataError if reading fails and the file's reader did not turn that into a refused row."""
    try:
        yield from rows
    except STREAM_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    # The operating system's errors (permissions, a failing disk) have a number; the others come from gzip.
    system = isinstance(error, OSError) and error.errno is not None
    problem = f"{path} can't be read" if system else f"{path} breaks off or is damaged"
    return DataError(problem, found=printable(error, 200), remedy="check its permissions and its disk" if system else "fetch it again")


def _plain(raw: io.BufferedReader) -> io.BufferedIOBase:
    gzipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if gzipped else raw


def _check_content(path: Path, kind: str, handle: io.BufferedIOBase) -> None:
    """Skips a UTF-8 byte order mark.

    Raises DataError for an empty file, one of another kind, and JSON that is not UTF-8.
    """
    head = handle.read(HEAD)
    if not head:
        raise DataError(f"{path} is empty", expected="rows, one after the other", remedy="check the program that should have written it")
    check_head(path, head, kind)
    if not kind:
        what, remedy = by_suffix(path) or ("of no known kind", "save it as one of these; the suffix states the kind")
        suffix = path.suffix or "no suffix"
        raise DataError(
            f"{path} is of no known kind",
            expected=" ".join(KINDS) + ", each also .gz",
            found=suffix if what == "of no known kind" else f"{suffix}, {what}",
            remedy=remedy,
        )
    mark = by_mark(head)
    if kind in (".json", ".jsonl", ".ndjson"):
        if mark and mark.codec != "utf-8":
            raise DataError(f"{path} is not UTF-8", expected="UTF-8 text", found=mark.name, remedy="save it as UTF-8")
        handle.seek(mark.skip if mark else 0)
    else:
        handle.seek(0)


# --- a folder, a data set
# ----------------------------------------------------------------------------------------------


def _open_folder(folder: Path, config: DataConfig, known: Collection[str]) -> Source:
    notes: list[str] = []
    splits = saved_splits(folder)
    if splits is not None:
        split = chosen_split(folder, splits, config.hub_split, notes)
        notes.insert(0, f"{folder.name}: a data set saved by `save_to_disk`")
        return _from_dataset(hf_datasets.load_saved(folder, split), f"{folder} [{split}]" if split else str(folder), notes)
    files = data_files(folder, config.hub_split, config.hub_config, notes)
    check_columns(folder, {str(file.relative_to(folder)): _first_columns(file, known) for file in files} if len(files) > 1 else {})
    if len(files) == 1:
        only = _open_file(files[0], known)
        return Source(name=f"{only.name} [{config.hub_split}]", rows=only.rows, position=only.position, close=only.close, notes=_both(notes, only))
    return _one_after_the_other(f"{folder} [{config.hub_split}]", files, known, notes)


def _both(notes: list[str], source: Source) -> list[str]:
    """The source's list of notes, which it still appends to, with the folder's notes put before them."""
    source.notes[:0] = notes
    return source.notes


def _first_columns(file: Path, known: Collection[str]) -> list[str]:
    with contextlib.closing(_open_file(file, known)) as source:
        return next((list(row.values) for row in source.rows if isinstance(row, Row)), [])


def _one_after_the_other(name: str, files: Sequence[Path], known: Collection[str], notes: list[str]) -> Source:
    """The rows of several files, numbered on from file to file; notes state the row numbers of each file."""
    opened: list[Source] = []
    sizes = [file.stat().st_size for file in files]

    def rows() -> Rows:
        before = 0
        for file in files:
            source = _open_file(file, known)
            opened.append(source)
            last = 0
            with contextlib.closing(source):
                for row in source.rows:
                    last = row.number if isinstance(row, Row) else row.row
                    yield _numbered_on(row, before)
            notes.extend(source.notes)
            notes.append(f"rows {before + 1} to {before + last}: {file.name}")
            before += last

    def position() -> tuple[float, float]:
        return sum(sizes[: len(opened)]), sum(sizes)

    def close() -> None:
        for source in opened:
            source.close()

    return Source(name=name, rows=rows(), position=position, close=close, notes=notes)


def _numbered_on(row: Row | RefusedRow, before: int) -> Row | RefusedRow:
    if isinstance(row, Row):
        return Row(row.number + before, row.values)
    return RefusedRow(row=row.row + before, field=row.field, reason=row.reason)


def _from_dataset(dataset: Any, name: str, notes: list[str]) -> Source:
    number = [0]
    total = len(dataset)
    return Source(name=name, rows=_dataset_rows(dataset, number), position=lambda: (number[0], total), close=lambda: None, notes=notes)


def _dataset_rows(dataset: Any, number: list[int]) -> Rows:
    rows = iter(dataset)
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except Exception as error:  # datasets and pyarrow raise errors of many classes for a damaged file
            yield cut(number[0] + 1, error)
            return
        number[0] += 1
        yield Row(number[0], dict(values))

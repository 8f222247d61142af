"""Reads the rows of csv and tsv files. `sources.py` has an overview of all kinds of files, `encodings.py` finds the
encoding.

The separator (`, ; tab |`) is found from the header and the first records: the one that divides them, and if several
do, the one under which more column names are known and more records have as many cells as the header. If no separator
is best in both, an error names the candidates. Lines end with LF, CRLF or CR, also mixed.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from core.data.encodings import as_utf8, encoding_of
from core.data.rows import Row, Rows, begins, check_names, cr_lines, cut, line_end, lines
from core.errors import DataError
from core.text_safety import printable
from core.types import RefusedRow

MAX_CELL = 16 * 2**20  # characters; also where the search for a closing quote in a csv ends
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
ENDS = {b"\n": "LF", b"\r\n": "CRLF", b"\r": "CR"}
HEAD = 1 << 20  # bytes looked at for the line end and the separator
SAMPLE = 100  # records looked at for the separator
MISSING = ("", "nan", "NaN")  # what pandas writes for a missing value


def csv_rows(path: Path, handle: io.BufferedIOBase, notes: list[str], known: Collection[str] = ()) -> Rows:
    """The records under the header.

    `known` are column names that a header is likely to have. What was detected is appended to `notes`. Raises DataError
    if the header can't be read or has a name twice, or if the separator is not clear.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    encoding = encoding_of(handle)
    head = begins(as_utf8(handle, encoding), HEAD)
    handle = as_utf8(handle, encoding)
    end = line_end(head)
    layout = layout_of(path, head, known)
    usual = (layout.separator, encoding.name) == (",", "UTF-8") and end != b"\r"
    if not usual:
        separated = f"cells separated by {SEPARATORS.get(layout.separator, layout.separator)}"
        notes.append(f"{path.name}: {separated}, {encoding.name}, line ends {ENDS.get(end, 'none')}")
    notes += [f"{path.name}: {encoding.note}"] if encoding.note else []
    source = cr_lines(handle) if end == b"\r" else lines(handle)
    yield from _numbered(path, _records(islice(source, layout.skip, None), layout.separator))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The separator, and the number of lines before the header (`sep=;`, which Excel understands)."""

    separator: str
    skip: int = 0


def layout_of(path: Path, head: bytes, known: Collection[str]) -> Layout:
    """The layout found from the first lines.

    Raises DataError if it is not clear (naming the candidates), or if the lines are JSON.
    """
    if head.lstrip()[:2] in (b'{"', b"[{", b"[\n", b"[\r", b"{\n", b"{\r"):
        raise DataError(
            f"{path} holds JSON, not a table",
            found=printable(head.lstrip()[:40].decode("utf-8", "replace")),
            remedy="name it .jsonl (one object a line) or .json (one list)",
        )
    given = re.match(rb'"?sep=(.)"?\r?[\n\r]', head, re.IGNORECASE)
    if given and given[1].decode("utf-8", "replace") in SEPARATORS:
        return Layout(separator=given[1].decode(), skip=1)
    candidates = {separator: _fit(head, separator, known) for separator in SEPARATORS}
    candidates = {separator: fit for separator, fit in candidates.items() if fit.n_columns > 1}
    if not candidates:
        return Layout(separator="\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ",")
    best = max(candidates, key=lambda separator: candidates[separator].rank)
    rest = [fit for separator, fit in candidates.items() if separator != best]
    if all(candidates[best].beats(fit) for fit in rest):
        return Layout(separator=best)
    raise DataError(
        f"the separator of the cells of {path} is not clear",
        expected="a header and records that are divided by one of: " + ", ".join(SEPARATORS.values()),
        found="; ".join(f"{SEPARATORS[separator]}: {fit}" for separator, fit in candidates.items()),
        remedy="save it as csv with commas, or as .jsonl",
    )


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How well a separator fits: the header's names, how many are known, and how many records have as many cells."""

    names: tuple[str, ...]
    n_known: int
    n_records: int
    n_fitting: int

    @property
    def n_columns(self) -> int:
        return len(self.names)

    @property
    def rank(self) -> tuple[int, float]:
        return self.n_known, self.n_fitting / max(1, self.n_records)

    def beats(self, other: _Fit) -> bool:
        """Whether this separator is as good as the other in both respects and better in one."""
        (known, fitting), (other_known, other_fitting) = self.rank, other.rank
        return known >= other_known and fitting >= other_fitting and self.rank != other.rank

    def __str__(self) -> str:
        names = ", ".join(printable(name, 20) for name in self.names[:6])
        return f"{self.n_columns} columns ({names}), in {self.n_fitting} of the first {self.n_records} records"


def _fit(head: bytes, separator: str, known: Collection[str]) -> _Fit:
    handle = io.BytesIO(head)
    source = cr_lines(handle) if line_end(head) == b"\r" else lines(handle)
    records = [cells for cells in islice(_records(source, separator), SAMPLE + 1) if isinstance(cells, list) and cells]
    names = tuple(name.strip() for name in records[0]) if records else ()
    return _Fit(
        names=names,
        n_known=len({name.lower() for name in names} & {name.lower() for name in known}),
        n_records=max(0, len(records) - 1),
        n_fitting=sum(len(cells) == len(names) for cells in records[1:]),
    )


def _numbered(path: Path, records: Iterator[list[str] | str | Exception]) -> Rows:
    header = next(records, None)
    if not isinstance(header, list) or not any(header):
        raise DataError(
            f"the header of {path} can't be read",
            expected="column names, separated by " + ", ".join(SEPARATORS.values()),
            found=printable(header or "nothing"),
        )
    names = [name.strip() for name in header]
    check_names(path, [name for name in names if name])
    for number, cells in enumerate(records, 2):
        if isinstance(cells, Exception):
            yield cut(number, cells)
        elif isinstance(cells, str):
            yield RefusedRow(row=number, field="row", reason=f"not csv ({printable(cells)})")
        elif len(cells) != len(names) and cells:
            yield RefusedRow(row=number, field="row", reason=f"{len(cells)} cells where the header has {len(names)}")
        elif cells:
            yield Row(number, {name: _cell(cell) for name, cell in zip(names, cells, strict=True)})


def _cell(text: str) -> str | None:
    """A cell's text; None for a missing value. Texts such as None or NA are kept, since they may be answers."""
    return None if text.strip() in MISSING else text


def _records(source: Iterator[bytes | Exception], separator: str) -> Iterator[list[str] | str | Exception]:
    """Each record's cells; the reason for a line that is not csv; the error where the data breaks off.

    After a bad line, such as one with an unclosed quote, reading continues at the next line, so that one bad row costs
    no good ones. A line with CRs inside is several records if each part has as many cells as the header.
    """
    again: deque[str] = deque()
    taken: list[str] = []
    broken: list[Exception] = []
    width = 0

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

    def reader(of: Iterator[str]) -> Iterator[list[str]]:
        # Spaces after a separator would hide a quote behind them. Outer white space is removed from texts anyway.
        return csv.reader(of, delimiter=separator, strict=True, skipinitialspace=True)

    records = reader(feed())
    while True:
        taken.clear()
        try:
            cells = next(records)
            width = width or len(cells)
            yield cells
        except StopIteration:
            break
        except csv.Error as error:
            if broken:
                break
            again.extendleft(reversed(taken[1:]))
            parts = _parts(taken[0], width, reader) if taken else []
            again.extendleft(reversed(parts))
            if not parts:
                yield str(error)
            records = reader(feed())
    yield from broken


def _parts(line: str, width: int, reader: Callable[[Iterator[str]], Iterator[list[str]]]) -> list[str]:
    """The records into which lone CRs divide a line; none if one of them does not have `width` cells."""
    parts = re.split(r"(?<=\r)(?![\r\n])", line)
    parts = [part for part in parts if part]
    try:
        fits = len(parts) > 1 and all([len(cells) for cells in reader(iter([part]))] == [width] for part in parts)
    except csv.Error:
        fits = False
    return parts if fits else []

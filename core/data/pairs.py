"""Reads preference pairs from any source and reports what happened to every row.

`load_pairs` reads the rows (`sources.py`), turns each into pairs by its own columns (`formats.py`, `pair_reader.py`),
refuses rows that can't be used, gives every pair an id, and looks for duplicates (`duplicates.py`). In its report
`n_rows` always equals `n_used` plus the number of refused rows. Pairs are split afterwards, by `splits.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from core.config import DataConfig
from core.data.chat_markers import marker_notes
from core.data.duplicates import Duplicates, find_duplicates
from core.data.formats import FORMATS, check_mapping, named, nested_place, rename
from core.data.pair_reader import PairReader
from core.data.rows import Row, Rows
from core.data.sources import Source, open_source
from core.data.texts import is_blank
from core.errors import DataError, MissingError
from core.text_safety import printable
from core.types import PreferencePair, PreferencePairs, Progress, RefusedRow, json_value, no_progress, sha256_of


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The outcome of reading a source.

    Of `n_rows` rows (blank lines do not count) `n_used` gave pairs; each of the others has an entry in `refused`.
    `n_pairs` pairs are kept; `n_over_limit` more were left out by `DataConfig.limit`. `columns` are all column names of
    the source, `columns_read` those from which pairs were made. `format` and `variant` are those of most rows;
    `n_read_as` counts the rows of each format. `notes` are sentences about what the user should know.
    """

    source: str
    format: str
    variant: str
    columns: tuple[str, ...]
    n_rows: int
    n_used: int
    n_pairs: int
    n_prompts: int
    refused: tuple[RefusedRow, ...]
    duplicates: Duplicates
    notes: tuple[str, ...] = ()
    columns_read: tuple[str, ...] = ()
    n_read_as: Mapping[str, int] = field(default_factory=dict)
    n_over_limit: int = 0

    def refused_by_reason(self) -> dict[str, int]:
        """The number of refused rows by `field: reason`, the most frequent first."""
        return dict(Counter(f"{r.field}: {r.reason}" for r in self.refused).most_common())

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            **{name: getattr(self, name) for name in ("source", "format", "variant", "n_rows", "n_used", "n_pairs", "n_prompts", "n_over_limit")},
            "n_read_as": dict(self.n_read_as),
            "columns": list(self.columns),
            "columns_read": list(self.columns_read),
            "notes": list(self.notes),
            "duplicates": self.duplicates.to_json(),
            "refused_by_reason": self.refused_by_reason(),
            "refused": json_value(self.refused),
        }


def load_pairs(config: DataConfig, progress: Progress = no_progress) -> tuple[PreferencePairs, DataReport]:
    """Reads `config.pairs`. A bad row is refused with its number, field and reason, and reading continues.

    Raises DataError if no pairs can be read: a wrong path or id, an unreadable file, unknown columns, no usable row;
    ConfigError for a column mapping that names a field of no format; MissingError if no pairs are named.
    """
    if not config.pairs:
        raise MissingError("no preference pairs are named", expected="a file or a Hub id", remedy="sparserm fit --pairs FILE (or a Hub id)")
    check_mapping(config.columns)
    reader = PairReader(config)
    with closing(open_source(config)) as source:
        for number, row in enumerate(_renamed(source.rows, reader)):
            if number % 1000 == 0:
                progress("read pairs", *source.position(), rows=number)
            reader.take(row)
        reader.finish()
        progress("read pairs", *source.position(), rows=reader.n_rows)
    missing = sorted(set(config.columns.values()) - set(reader.columns)) if reader.columns else []
    if missing:
        raise DataError(f"{source.name} has no column {', '.join(missing)}", found=_listing(reader), remedy="correct the column mapping")
    if not reader.drafts:
        read = reader.n_fitting or any(refused.field not in ("row", "file") for refused in reader.refused)
        known = read or (reader.columns and config.format != "auto")
        raise _nothing_usable(source, reader) if known else _unknown_format(source, reader)
    return _finish(reader, source, config)


def _renamed(rows: Rows, reader: PairReader) -> Rows:
    mapping = reader.config.columns
    for row in rows:
        if isinstance(row, Row):
            reader.columns.update(dict.fromkeys(row.values))
            if mapping:
                reader.columns.update(dict.fromkeys(name for name in mapping.values() if nested_place(row.values, name)))
                replaced = (target for target, column in mapping.items() if column in row.values and target not in mapping.values())
                reader.n_overwritten.update(name for name in replaced if not is_blank(row.values.get(name)))
                row = Row(row.number, rename(row.values, mapping))
        yield row


def _listing(reader: PairReader) -> str:
    names = [printable(name, 40) for name in list(reader.columns)[:40]]
    return "columns " + ", ".join(names) + (f" and {len(reader.columns) - 40} more" if len(reader.columns) > 40 else "") if names else "no columns"


def _unknown_format(source: Source, reader: PairReader) -> DataError:
    if not reader.columns:
        return DataError(
            f"{source.name} has no usable row",
            expected="rows with columns; in a .jsonl file one JSON object a line, a JSON list in a .json file",
            found=_reasons(reader.refused) or "no row at all",
        )
    return DataError(
        f"the format of {source.name} is not known",
        expected="prompt, chosen, rejected; or the columns of a format that docs/FORMATS.md lists",
        found=_listing(reader),
        remedy=f"name the columns: {_mapping(reader)}",
    )


def _mapping(reader: PairReader) -> str:
    """The option that names the columns, filled in where a column differs from a field in its case only."""
    by_lower_case = {name.casefold(): name for name in reader.columns}
    return "--columns " + ",".join(f"{name}={printable(by_lower_case.get(name, 'YOURS'))}" for name in ("prompt", "chosen", "rejected"))


def _nothing_usable(source: Source, reader: PairReader) -> DataError:
    formats = {f.title: f for f in named(reader.config.format)} if reader.config.format != "auto" else {}
    candidates = reader.prompt_candidates()
    remedy = "correct the rows, name another format, or map the columns"
    if candidates:
        remedy = f"name the column of the prompt: --columns prompt={printable(candidates[0])}"
    elif reader.promptless:
        remedy = (
            "name the column of the prompt with --columns prompt=YOURS; or take the words with which both answers begin, with --implicit-prompt text"
        )
    elif any("--label-values" in refused.reason for refused in reader.refused):
        remedy = "state which label means which answer: --label-values first=...,second=..."
    named_format = next(iter(formats.values()), None)
    expected = f"format {named_format.title}: {named_format.columns}" if named_format else "rows of a format that docs/FORMATS.md lists"
    return DataError(
        f"{source.name} has no usable row",
        expected=expected,
        found=f"{reader.n_rows} rows, {_listing(reader)}; refused: {_reasons(reader.refused)}",
        remedy=remedy,
    )


def _reasons(refused: list[RefusedRow]) -> str:
    counts = Counter(f"{r.field}: {r.reason}" for r in refused)
    first = {f"{r.field}: {r.reason}": r.row for r in reversed(refused)}
    return "; ".join(f"{count} x {reason} (first in row {first[reason]})" for reason, count in counts.most_common(5))


def _finish(reader: PairReader, source: Source, config: DataConfig) -> tuple[PreferencePairs, DataReport]:
    pairs = PreferencePairs(pairs=tuple(_named(reader)), source=source.name)
    kept, notes = _limited(pairs, config.limit)
    order = {format_: number for number, format_ in enumerate(FORMATS)}
    formats = sorted(reader.n_read_as, key=lambda f: (-reader.n_read_as[f], order[f]))
    report = DataReport(
        source=source.name,
        format=formats[0].name,
        variant=formats[0].variant,
        n_read_as={format_.title: reader.n_read_as[format_] for format_ in formats},
        columns=tuple(printable(name) for name in reader.columns),
        columns_read=tuple(printable(name) for name in reader.columns_read),
        n_rows=reader.n_rows,
        n_used=len(reader.used),
        n_pairs=len(kept),
        n_prompts=len({pair.prompt_id for pair in kept}),
        refused=tuple(sorted(reader.refused, key=lambda r: r.row)),
        duplicates=find_duplicates(kept),
        notes=(*source.notes, *reader.notes(), *notes, *marker_notes(kept)),
        n_over_limit=len(pairs) - len(kept),
    )
    return kept, report


def _named(reader: PairReader) -> Iterator[PreferencePair]:
    """Pairs with their ids: the source's id if it is unique, else 16 hex digits of a hash of the content.

    Repeated contents get the endings -2, -3 and so on.
    """
    given = Counter(item.source_id for item in reader.drafts if item.source_id)
    taken = {source_id for source_id, count in given.items() if count == 1}
    repeats: Counter[str] = Counter()
    for _, source_id, draft, meta in reader.drafts:
        name = source_id
        if given[source_id] != 1:
            name = content = sha256_of([list(draft.prompt), draft.chosen, draft.rejected])[:16]
            while name in taken:
                repeats[content] += 1
                name = f"{content}-{repeats[content] + 1}"
            taken.add(name)
        yield PreferencePair(pair_id=name, prompt=draft.prompt, chosen=draft.chosen, rejected=draft.rejected, meta=meta)


def _limited(pairs: PreferencePairs, limit: int) -> tuple[PreferencePairs, tuple[str, ...]]:
    groups = pairs.prompt_groups()
    n_prompts = int(groups.max()) + 1
    if not limit or n_prompts <= limit:
        return pairs, ()
    kept = pairs.take([i for i, group in enumerate(groups) if group < limit])
    return kept, (f"limit: the first {limit} of {n_prompts} prompts are kept, {len(kept)} of {len(pairs)} pairs",)

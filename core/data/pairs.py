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
from core.data.pair_reader import Gathered
from core.data.rows import Row, Rows
from core.data.sources import Source, open_source
from core.data.texts import is_blank
from core.errors import DataError, MissingError
from core.text_safety import printable
from core.types import PreferencePair, PreferencePairs, Progress, RefusedRow, no_progress, sha256_of

SAMPLE = 100  # rows that tell what kind of file it is: pairs, single responses, or prompts


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What came of reading a source.

    `n_rows` rows were met (blank lines not counted), `n_used` of them gave pairs, the others are in `refused`, one entry each. `n_pairs` are kept;
    `n_over_limit` more were left out by `DataConfig.limit`. `columns` are all names met, `columns_read` those that made the
    pairs, in the source's words; `notes` say in a sentence each what a reader should know. `format` and `variant` are those of most rows;
    `n_read_as` counts the rows that were read as each format.
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
        """How many rows were refused for what, the most frequent first; keys are `field: reason`."""
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
            "refused": [vars(r) for r in self.refused],
        }


def load_pairs(config: DataConfig, progress: Progress = no_progress) -> tuple[PreferencePairs, DataReport]:
    """Reads `config.pairs`. A bad row is refused, with row number, field and reason, and the others go on.

    Raises DataError where there is nothing to go on with: a wrong path or id, an unreadable file, unknown columns, no usable row;
    ConfigError on a column mapping to a field that no format has; MissingError where no pairs are named.
    """
    if not config.pairs:
        raise MissingError("no preference pairs are named", expected="a file or a Hub id", remedy="sparserm fit --pairs FILE (or a Hub id)")
    check_mapping(config.columns)
    gathered = Gathered(config)
    with closing(open_source(config)) as source:
        for number, row in enumerate(_renamed(source.rows, gathered)):
            if number % 1000 == 0:
                progress("read pairs", *source.position(), rows=number)
            gathered.take(row)
        gathered.finish()
        progress("read pairs", *source.position(), rows=gathered.n_rows)
    missing = sorted(set(config.columns.values()) - set(gathered.columns)) if gathered.columns else []
    if missing:
        raise DataError(f"{source.name} has no column {', '.join(missing)}", found=_listing(gathered), remedy="correct the column mapping")
    if not gathered.drafts:
        read = gathered.n_fitting or any(refused.field not in ("row", "file") for refused in gathered.refused)
        known = read or (gathered.columns and config.format != "auto")
        raise _nothing_usable(source, gathered) if known else _unknown_format(source, gathered)
    return _finish(gathered, source, config)


def _renamed(rows: Rows, gathered: Gathered) -> Rows:
    mapping = gathered.config.columns
    for row in rows:
        if isinstance(row, Row):
            gathered.columns.update(dict.fromkeys(row.values))
            if mapping:
                gathered.columns.update(dict.fromkeys(theirs for theirs in mapping.values() if nested_place(row.values, theirs)))
                taken = (ours for ours, theirs in mapping.items() if theirs in row.values and ours not in mapping.values())
                gathered.n_overwritten.update(ours for ours in taken if not is_blank(row.values.get(ours)))
                row = Row(row.number, rename(row.values, mapping))
        yield row


def _listing(gathered: Gathered) -> str:
    names = [printable(name, 40) for name in list(gathered.columns)[:40]]
    return (
        "columns " + ", ".join(names) + (f" and {len(gathered.columns) - 40} more" if len(gathered.columns) > 40 else "") if names else "no columns"
    )


def _unknown_format(source: Source, gathered: Gathered) -> DataError:
    if not gathered.columns:
        return DataError(
            f"{source.name} has no usable row",
            expected="rows with columns; in a .jsonl file one JSON object a line, a JSON list in a .json file",
            found=_reasons(gathered.refused) or "no row at all",
        )
    return DataError(
        f"the format of {source.name} is not known",
        expected="prompt, chosen, rejected; or the columns of a format that docs/FORMATS.md lists",
        found=_listing(gathered),
        remedy=f"say which columns are meant: {_mapping(gathered)}",
    )


def _mapping(gathered: Gathered) -> str:
    """The option that names the columns; those that differ from ours in their case only are filled in."""
    by_lower_case = {name.casefold(): name for name in gathered.columns}
    return "--columns " + ",".join(f"{name}={printable(by_lower_case.get(name, 'YOURS'))}" for name in ("prompt", "chosen", "rejected"))


def _nothing_usable(source: Source, gathered: Gathered) -> DataError:
    formats = {f.title: f for f in named(gathered.config.format)} if gathered.config.format != "auto" else {}
    candidates = gathered.prompt_candidates()
    remedy = "correct the rows, name another format, or map the columns"
    if candidates:
        remedy = f"say which column holds the prompt: --columns prompt={printable(candidates[0])}"
    elif gathered.promptless:
        remedy = "say which column holds the prompt, --columns prompt=YOURS; or take the words with which both answers begin, --implicit-prompt text"
    elif any("--label-values" in refused.reason for refused in gathered.refused):
        remedy = "say which value of the label means which answer: --label-values first=...,second=..."
    named_format = next(iter(formats.values()), None)
    expected = f"format {named_format.title}: {named_format.columns}" if named_format else "rows of a format that docs/FORMATS.md lists"
    return DataError(
        f"{source.name} has no usable row",
        expected=expected,
        found=f"{gathered.n_rows} rows, {_listing(gathered)}; refused: {_reasons(gathered.refused)}",
        remedy=remedy,
    )


def _reasons(refused: list[RefusedRow]) -> str:
    counts = Counter(f"{r.field}: {r.reason}" for r in refused)
    first = {f"{r.field}: {r.reason}": r.row for r in reversed(refused)}
    return "; ".join(f"{count} x {reason} (first in row {first[reason]})" for reason, count in counts.most_common(5))


def _finish(gathered: Gathered, source: Source, config: DataConfig) -> tuple[PreferencePairs, DataReport]:
    pairs = PreferencePairs(pairs=tuple(_named(gathered)), source=source.name)
    kept, notes = _limited(pairs, config.limit)
    order = {format_: number for number, format_ in enumerate(FORMATS)}
    formats = sorted(gathered.n_read_as, key=lambda f: (-gathered.n_read_as[f], order[f]))
    report = DataReport(
        source=source.name,
        format=formats[0].name,
        variant=formats[0].variant,
        n_read_as={format_.title: gathered.n_read_as[format_] for format_ in formats},
        columns=tuple(printable(name) for name in gathered.columns),
        columns_read=tuple(printable(name) for name in gathered.columns_read),
        n_rows=gathered.n_rows,
        n_used=len(gathered.used),
        n_pairs=len(kept),
        n_prompts=len({pair.prompt_id for pair in kept}),
        refused=tuple(sorted(gathered.refused, key=lambda r: r.row)),
        duplicates=find_duplicates(kept),
        notes=(*source.notes, *gathered.notes(), *notes, *marker_notes(kept)),
        n_over_limit=len(pairs) - len(kept),
    )
    return kept, report


def _named(gathered: Gathered) -> Iterator[PreferencePair]:
    """Pairs with their ids: the source's own where it is given and unique, else 16 hex digits of the content; a repeated one gets -2, -3 ..."""
    given = Counter(item.own_id for item in gathered.drafts if item.own_id)
    taken = {own_id for own_id, count in given.items() if count == 1}
    repeats: Counter[str] = Counter()
    for _, own_id, draft, meta in gathered.drafts:
        name = own_id
        if given[own_id] != 1:
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

"""From a source to checked preference pairs, with a report that counts out every row.

1. `load_pairs`: read the rows (`readers.py`), detect what they are (`formats.py`), make pairs, refuse what can't be used, name the pairs, look for
   duplicates (`duplicates.py`). In the report n_rows = n_used + refused, always.
2. `split_pairs`, `split_report`: see `splits.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any

from core.config import DataConfig
from core.data.duplicates import Duplicates, find_duplicates
from core.data.formats import Draft, Format, check_mapping, detect, meta_of, rename
from core.data.readers import Source, open_source
from core.data.rows import Row, Rows, printable
from core.data.texts import Refused, keeps
from core.errors import DataError, MissingError
from core.types import PreferencePair, PreferencePairs, Progress, RefusedRow, no_progress, sha256_of

SAMPLE = 100  # rows looked at to detect the format; more, until one row fits a format


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What came of reading a source.

    `n_rows` rows were met (blank lines not counted), `n_used` of them gave pairs, the others are in `refused`, one entry each. `n_pairs` are kept;
    `n_over_limit` more were left out by `DataConfig.limit`. `columns` are all names met, in the source's words; `notes` say in a sentence each what
    a reader should know.
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
    n_over_limit: int = 0

    def refused_by_reason(self) -> dict[str, int]:
        """How many rows were refused for what, the most frequent first; keys are `field: reason`."""
        return dict(Counter(f"{r.field}: {r.reason}" for r in self.refused).most_common())

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            **{name: getattr(self, name) for name in ("source", "format", "variant", "n_rows", "n_used", "n_pairs", "n_prompts", "n_over_limit")},
            "columns": list(self.columns),
            "notes": list(self.notes),
            "duplicates": self.duplicates.to_json(),
            "refused_by_reason": self.refused_by_reason(),
            "refused": [vars(r) for r in self.refused],
        }


@dataclass
class _Reading:
    """What is gathered while the rows go by."""

    columns: dict[str, None]
    refused: list[RefusedRow]
    drafts: list[tuple[str, Draft, dict[str, Any]]]  # the source's own id, the pair, its meta
    n_used: int = 0

    @property
    def n_rows(self) -> int:
        return self.n_used + len(self.refused)


def load_pairs(config: DataConfig, progress: Progress = no_progress) -> tuple[PreferencePairs, DataReport]:
    """Reads `config.pairs`. A bad row is refused, with row number, field and reason, and the others go on.

    Raises DataError where there is nothing to go on with: a wrong path or id, an unreadable file, unknown columns, no usable row;
    ConfigError on a column mapping to a field that no format has; MissingError where no pairs are named.
    """
    if not config.pairs:
        raise MissingError("no preference pairs are named", expected="a file or a Hub id", remedy="sparserm fit --pairs FILE (or a Hub id)")
    check_mapping(config.columns)
    reading = _Reading({}, [], [])
    with closing(open_source(config)) as source:
        format, rows = _detected(_renamed(source.rows, reading, config), reading, source, config)
        for number, row in enumerate(rows):
            if number % 1000 == 0:
                progress("read pairs", *source.position(), rows=number)
            _take(row, reading, format, config)
        progress("read pairs", *source.position(), rows=reading.n_rows)
    if not reading.drafts:
        raise _nothing_usable(source, reading, format)
    return _finish(reading, source, format, config)


def _renamed(rows: Rows, reading: _Reading, config: DataConfig) -> Rows:
    for row in rows:
        if isinstance(row, Row):
            reading.columns.update(dict.fromkeys(row.values))
            row = Row(row.number, rename(row.values, config.columns)) if config.columns else row
        yield row


def _detected(rows: Rows, reading: _Reading, source: Source, config: DataConfig) -> tuple[Format, Rows]:
    """The format by the first rows, and all rows again. Raises DataError when no row fits one, or a mapped column is not there."""
    seen: list[Row | RefusedRow] = []
    format: Format | None = None
    for row in rows:
        seen.append(row)
        if len(seen) % SAMPLE == 0 and (format := _format_of(seen[-SAMPLE:], config)):
            break
    format = format or _format_of(seen, config)
    missing = sorted(set(config.columns.values()) - set(reading.columns)) if reading.columns else []
    if missing:
        raise DataError(f"{source.name} has no column {', '.join(missing)}", found=_listing(reading), remedy="correct the column mapping")
    if format is None:
        refused = [row for row in seen if isinstance(row, RefusedRow)]
        raise _unknown_format(source, reading, refused)
    return format, chain(seen, rows)


def _format_of(rows: list[Row | RefusedRow], config: DataConfig) -> Format | None:
    good = [row.values for row in rows if isinstance(row, Row)]
    return detect(good, config.format) if good else None


def _listing(reading: _Reading) -> str:
    names = [printable(name, 40) for name in list(reading.columns)[:40]]
    return "columns " + ", ".join(names) + (f" and {len(reading.columns) - 40} more" if len(reading.columns) > 40 else "") if names else "no columns"


def _unknown_format(source: Source, reading: _Reading, refused: list[RefusedRow]) -> DataError:
    if not reading.columns:
        return DataError(
            f"{source.name} has no usable row",
            expected="rows with columns; in a .jsonl file one JSON object a line, a JSON list in a .json file",
            found=_reasons(refused) or "no row at all",
        )
    return DataError(
        f"the format of {source.name} is not known",
        expected="prompt, chosen, rejected; or the columns of hh-rlhf, PKU-SafeRLHF, TruthfulQA, RewardBench or UltraFeedback",
        found=_listing(reading),
        remedy="say which columns are meant: --columns prompt=YOURS --columns chosen=YOURS --columns rejected=YOURS",
    )


def _nothing_usable(source: Source, reading: _Reading, format: Format) -> DataError:
    return DataError(
        f"{source.name} has no usable row",
        expected=f"format {format.name} ({format.variant or 'one variant'}): {', '.join(format.uses)}",
        found=f"{reading.n_rows} rows, {_listing(reading)}; refused: {_reasons(reading.refused)}",
        remedy="correct the rows, name another format, or map the columns",
    )


def _reasons(refused: list[RefusedRow]) -> str:
    counts = Counter(f"{r.field}: {r.reason}" for r in refused)
    first = {f"{r.field}: {r.reason}": r.row for r in reversed(refused)}
    return "; ".join(f"{count} x {reason} (first in row {first[reason]})" for reason, count in counts.most_common(5))


def _take(row: Row | RefusedRow, reading: _Reading, format: Format, config: DataConfig) -> None:
    if isinstance(row, RefusedRow):
        reading.refused.append(row)
        return
    try:
        drafts = [_checked(draft) for draft in format.read(row.values, config)]
    except Refused as refused:
        reading.refused.append(RefusedRow(row=row.number, field=refused.field, reason=refused.reason))
        return
    reading.n_used += 1
    meta = meta_of(row.values, format.uses) | {"row": row.number}
    own = _own_id(row.values.get("id"))
    for number, draft in enumerate(drafts, 1):
        name = f"{own}-{number}" if own and len(drafts) > 1 else own
        reading.drafts.append((name, draft, {**meta, **draft.extra}))


def _checked(draft: Draft) -> Draft:
    if not draft.prompt:
        raise Refused("prompt", "missing, and the dialogues share no message before the last")
    if draft.prompt[-1]["role"] != "user":
        raise Refused("prompt", f"ends with a message of role {draft.prompt[-1]['role']}, not with the user's")
    if draft.chosen == draft.rejected:
        raise Refused("rejected", "identical answers")
    return draft


def _own_id(value: Any) -> str:
    """The source's id as text; empty where it has none that can be one."""
    usable = keeps(value) and not isinstance(value, (bool, float))
    return str(value).strip() if usable and str(value).isprintable() else ""


def _finish(reading: _Reading, source: Source, format: Format, config: DataConfig) -> tuple[PreferencePairs, DataReport]:
    pairs = PreferencePairs(pairs=tuple(_named(reading)), source=source.name)
    kept, notes = _limited(pairs, config.limit)
    report = DataReport(
        source=source.name,
        format=format.name,
        variant=format.variant,
        columns=tuple(printable(name) for name in reading.columns),
        n_rows=reading.n_rows,
        n_used=reading.n_used,
        n_pairs=len(kept),
        n_prompts=len({pair.prompt_id for pair in kept}),
        refused=tuple(sorted(reading.refused, key=lambda r: r.row)),
        duplicates=find_duplicates(kept),
        notes=(*source.notes, *notes),
        n_over_limit=len(pairs) - len(kept),
    )
    return kept, report


def _named(reading: _Reading) -> Iterator[PreferencePair]:
    """Pairs with their ids: the source's own where it is given and unique, else 16 hex digits of the content; a repeated one gets -2, -3 ..."""
    given = Counter(own for own, _, _ in reading.drafts if own)
    taken = {own for own, count in given.items() if count == 1}
    repeats: Counter[str] = Counter()
    for own, draft, meta in reading.drafts:
        name = own
        if given[own] != 1:
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

"""`sparserm score`: rows of a file in, rows with rewards out, in the shape of RewardBench's output files.

Pairs (every format that `core.data` reads): `prompt`, `text_chosen`, `text_rejected`, `scores_chosen`,
`scores_rejected`, `results` (1 if s_w > s_l, else 0: a tie is wrong), then the columns of the data: `id`, `subset`
where there is one, other short ones, and `row`, the row's number in the source. Single responses (`prompt` with
`response`, or with a list `responses`; core.reward.responses has the other columns): a row each with `prompt`, `text`,
`results` (there, as in RewardBench, the reward), the same as `score`, `id` and `row`. Unlike RewardBench's, texts are
the responses' own, not rendered by a chat template. A file may hold both: each row is told by its own columns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.config import DataConfig
from core.data.pair_reader import PairReader
from core.data.pairs import load_pairs
from core.data.rows import Row
from core.data.sources import open_source
from core.errors import ConfigError, DataError
from core.files import write_lines
from core.reward.evaluation import SubsetCounts, accuracy_by_subset, accuracy_of, subset_counts
from core.reward.model import BackboneReader, SparseRM
from core.reward.pair_counts import count_reasons
from core.reward.reading_details import shortened_items
from core.reward.responses import Responses, read_responses
from core.types import Accuracy, Message, PreferencePair, Progress, RefusedRow, json_value, no_progress

CHUNK = 1024  # responses scored between two words to `progress`


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What came of scoring a file of `kind` pairs or responses (or both).

    `n_rows` rows were met. The reader refused `n_rows_refused` of them (of a row of several responses, each that can't
    be used). The others gave `n_items` pairs or responses, of which `n_scored` were scored and written: the others the
    language model can't read. `refused` names all refused ones, a pair whose two sides can't be read twice.
    `n_shortened` of the scored ones were read without leading turns of their prompt, to fit `max_length` tokens.
    Accuracy for pairs only, over the scored ones; `subset_counts` as in core.reward.evaluation. `notes` say what was
    detected in the file, and which of its texts were not read.
    """

    source: str
    kind: str
    n_rows: int
    n_rows_refused: int
    n_items: int
    n_scored: int
    n_shortened: int
    max_length: int
    refused: tuple[RefusedRow, ...]
    accuracy: Accuracy | None = None
    subsets: Mapping[str, Accuracy] = field(default_factory=dict)
    subset_counts: SubsetCounts | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_items_refused(self) -> int:
        """Pairs or responses that the language model can't read."""
        return self.n_items - self.n_scored

    def to_json(self) -> dict[str, Any]:
        """The report as JSON; an object with `accuracy` has low, high and n. `n_refused`: refused rows and items."""
        figures = {} if self.accuracy is None else {"pairs": self.accuracy.to_json()}
        names = ("source", "kind", "n_rows", "n_rows_refused", "n_items", "n_items_refused", "n_scored", "n_shortened", "max_length")
        return {
            **{name: getattr(self, name) for name in names},
            "n_refused": self.n_rows_refused + self.n_items_refused,
            "by_reason": count_reasons(f"{row.field}: {row.reason}" for row in self.refused),
            **figures,
            "subsets": json_value(self.subsets),
            "subset_counts": json_value(self.subset_counts),
            "notes": list(self.notes),
            "refused": json_value(self.refused),
        }


def score_file(model: str | Path, source: Path, target: Path | None, *, device: str = "auto", progress: Progress = no_progress) -> dict[str, Any]:
    """Scores a file with the reward model in a folder and returns the report. Rows go to `target`, whole or not at all,
    or (None) to standard output. Raises DataError where no row can be scored, ConfigError where `target` can't be
    written, and what loading the model raises."""
    if target is not None:
        check_target(target)
    rows, report = score_rows(SparseRM.load(model, device=device), source, progress)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    if target is None:
        sys.stdout.writelines(lines)
    else:
        write_table(lines, target)
    return report.to_json()


def score_rows(model: SparseRM, source: Path, progress: Progress = no_progress) -> tuple[list[dict[str, Any]], ScoreReport]:
    """The rows of a file with their rewards, in order, and the report. Raises DataError where none can be scored."""
    responses = read_responses(source)
    if responses.only_responses:
        rows, report = _score_responses(model, responses, progress)
    elif len(responses.pair_rows | responses.other_rows) == responses.n_rows:
        rows, report = _score_pairs(model, source, progress)
    else:
        rows, report = _score_both(model, source, responses, progress)
    if not rows:
        first = report.refused[0]
        raise DataError(f"no row of {source} can be scored", found=f"{len(report.refused)} refused; row {first.row}: {first.field}: {first.reason}")
    return rows, report


def _score_both(model: SparseRM, source: Path, responses: Responses, progress: Progress) -> tuple[list[dict[str, Any]], ScoreReport]:
    """A file whose rows are pairs and single responses, mixed: each row in the shape of its kind, in order."""
    try:
        rows, pairs = _score_pairs(model, source, progress, only=responses.pair_rows)
    except DataError:  # none of the pairs can be used: the responses go on
        rows, pairs = [], _no_pairs(source, responses, model.parts.backbone_config.max_length)
    more, singles = _score_responses(model, responses, progress)
    counts = {name: getattr(pairs, name) + getattr(singles, name) for name in ("n_rows_refused", "n_items", "n_scored", "n_shortened")}
    n_pairs, n_responses = len(responses.pair_rows), responses.n_rows - len(responses.pair_rows | responses.other_rows)
    mixed = f"{n_pairs:,} rows hold pairs and {n_responses:,} hold single responses: each is scored as what it is"
    report = replace(
        pairs,
        **counts,
        kind="pairs and responses",
        n_rows=responses.n_rows,
        refused=tuple(sorted([*pairs.refused, *singles.refused], key=lambda refused: refused.row)),
        notes=tuple(dict.fromkeys((mixed, *pairs.notes, *singles.notes))),
    )
    return sorted([*rows, *more], key=lambda row: int(row["row"])), report


def _no_pairs(source: Path, responses: Responses, max_length: int) -> ScoreReport:
    """The report on rows that hold pairs, none of which can be used."""
    config = DataConfig(pairs=str(source))
    reader = PairReader(config)
    with closing(open_source(config)) as opened:
        for row in opened.rows:
            if isinstance(row, Row) and row.number in responses.pair_rows:
                reader.take(row)
    reader.finish()
    refused = tuple(reader.refused)
    return ScoreReport(
        source=responses.source,
        kind="pairs",
        n_rows=len(responses.pair_rows),
        n_rows_refused=len(refused),
        max_length=max_length,
        refused=refused,
        n_items=0,
        n_scored=0,
        n_shortened=0,
    )


def _score_pairs(model: SparseRM, source: Path, progress: Progress, only: frozenset[int] | None = None) -> tuple[list[dict[str, Any]], ScoreReport]:
    """The pairs of a file, or (`only`) of the rows with these numbers."""
    pairs, read = load_pairs(DataConfig(pairs=str(source)), progress)
    unusable = read.refused if only is None else tuple(row for row in read.refused if row.row in only)
    if only is not None:
        pairs = pairs.take([i for i, pair in enumerate(pairs) if pair.meta["row"] in only])
    items = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    rewards, reasons = _rewards(model, items, progress)
    late = [RefusedRow(row=pairs[n // 2].meta["row"], field=("chosen", "rejected")[n % 2], reason=reason) for n, reason in reasons.items()]
    kept = [i for i in range(len(pairs)) if not {2 * i, 2 * i + 1} & set(reasons)]
    scored, margins = pairs.take(kept), rewards[0::2][kept] - rewards[1::2][kept]
    prompts = _prompts([pair.prompt for pair in scored])
    rows = [_pair_row(pair, prompt, rewards[2 * i], rewards[2 * i + 1]) for i, pair, prompt in zip(kept, scored, prompts, strict=True)]
    report = ScoreReport(
        source=read.source,
        kind="pairs",
        n_rows=read.n_rows,
        n_rows_refused=len(unusable),
        n_items=len(pairs),
        n_scored=len(rows),
        n_shortened=len({n // 2 for n in _shortened(model, items)} & set(kept)),
        max_length=model.parts.backbone_config.max_length,
        refused=tuple(sorted([*unusable, *late], key=lambda refused: refused.row)),
        accuracy=accuracy_of(margins[None], scored.prompt_groups()) if rows else None,
        subsets=accuracy_by_subset(margins[None], scored, np.arange(len(rows))) if rows else {},
        subset_counts=subset_counts(scored, np.arange(len(rows))),
        notes=read.notes,
    )
    return rows, report


def _pair_row(pair: PreferencePair, prompt: Any, chosen: float, rejected: float) -> dict[str, Any]:
    rewards = {"scores_chosen": float(chosen), "scores_rejected": float(rejected), "results": int(chosen > rejected)}
    return {**pair.meta, "id": pair.pair_id, "prompt": prompt, "text_chosen": pair.chosen, "text_rejected": pair.rejected, **rewards}


def _score_responses(model: SparseRM, responses: Responses, progress: Progress) -> tuple[list[dict[str, Any]], ScoreReport]:
    singles, unusable = responses.singles, responses.refused
    items = [(single.prompt, single.text) for single in singles]
    rewards, reasons = _rewards(model, items, progress)
    refused = [*unusable, *(RefusedRow(row=singles[n].row, field="response", reason=reason) for n, reason in reasons.items())]
    prompts = _prompts([single.prompt for single in singles])
    rows = [
        {"id": single.id, "row": single.row, "prompt": prompt, "text": single.text, "results": float(reward), "score": float(reward)}
        for n, (single, prompt, reward) in enumerate(zip(singles, prompts, rewards, strict=True))
        if n not in reasons
    ]
    report = ScoreReport(
        source=responses.source,
        kind="responses",
        n_rows=responses.n_rows,
        n_rows_refused=len(unusable),
        n_items=len(singles),
        n_scored=len(rows),
        n_shortened=len(set(_shortened(model, items)) - set(reasons)),
        max_length=model.parts.backbone_config.max_length,
        refused=tuple(sorted(refused, key=lambda refusal: refusal.row)),
        notes=responses.notes,
    )
    return rows, report


def _shortened(model: SparseRM, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[int]:
    """Numbers of the items whose prompts are cut before they are read."""
    reader = model.reader
    return shortened_items(reader.backbone, items, model.parts.position) if isinstance(reader, BackboneReader) else []


def _rewards(model: SparseRM, items: Sequence[tuple[tuple[Message, ...], str]], progress: Progress) -> tuple[np.ndarray, dict[int, str]]:
    rewards, reasons = np.full(len(items), np.nan), dict[int, str]()
    for at in range(0, len(items), CHUNK):
        progress("score", at, len(items))
        chunk = items[at : at + CHUNK]
        rewards[at : at + CHUNK], refused = model.try_score([prompt for prompt, _ in chunk], [text for _, text in chunk])
        reasons |= {at + number: reason for number, reason in refused.items()}
    progress("score", len(items), len(items))
    return rewards, reasons


def _prompts(prompts: Sequence[tuple[Message, ...]]) -> list[Any]:
    """Texts if every prompt is one user message, else message lists: table readers refuse a column of two types."""
    plain = all(len(prompt) == 1 and prompt[0]["role"] == "user" for prompt in prompts)
    return [prompt[0]["content"] if plain else list(prompt) for prompt in prompts]


def check_target(target: Path) -> None:
    """Raises ConfigError, before anything is computed, where a file can't be written."""
    if target.is_dir() or not target.parent.is_dir():
        actual = "a folder" if target.is_dir() else f"no folder {target.parent}"
        raise ConfigError(f"{target} can't be written", expected="a file in a folder that stands", found=actual)


def write_table(lines: Iterable[str], target: Path) -> None:
    """Writes the lines of a table to the file that a person named. Raises ConfigError where it can't be written."""
    try:
        write_lines(target, lines)
    except OSError as error:
        raise ConfigError(f"{target} can't be written", found=str(error)) from error

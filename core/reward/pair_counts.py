"""How many pairs left the computation between file and figures, where and why; stands beside every figure of a fit.

    rows of the source      the data reader refuses some (core.data.pairs)            n_rows, n_rows_refused
    pairs of these rows     --limit leaves some out                                   n_pairs_over_limit
    pairs that are split    train, validation, test, unused                           n_pairs, splits
    pairs that are read     the language model can't read some: an answer that is too long, a control
                            token in a text, a dialogue refused by the chat template
                                                                              n_pairs_refused; splits' n_refused, n_kept
    prompts that are read   some without their leading turns, to fit the length       n_shortened

Duplicates are counted and kept, never dropped. A refused pair is gone whole, whichever of its answers can't be read.

`pair_counts(...)` makes the object, JSON values only; core.reward.model documents it among the files of a reward model.
`sentences(...)` puts it in words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.data.splits import NAMES, UNUSED
from core.text_safety import printable
from core.types import PreferencePair, PreferencePairs

if TYPE_CHECKING:
    pass

BOTH = "both"
SIDES = ("chosen", "rejected", BOTH)
LISTED = 20  # reasons that are told apart; the rest are counted together
FIRST = 8  # rows that are named for each reason
OTHER = "other reasons"
DUPLICATES = ("exact", "contradictory", "near")
TOO_LONG = re.compile(r"[\d,]+ tokens, at most ([\d,]+) are read")


@dataclass(frozen=True, kw_only=True)
class LostPair:
    """A pair that the language model can't read. `index` is its place among the split pairs; `side` is `chosen`,
    `rejected` or `both`. `reason` is that of its first unreadable side."""

    index: int
    pair: PreferencePair
    split: str
    side: str
    reason: str

    @property
    def row(self) -> int | None:
        """Number of its row in the source; None where the source gave none."""
        number = self.pair.meta.get("row")
        return number if isinstance(number, int) else None

    def to_json(self) -> dict[str, Any]:
        place = {"row": self.row, "pair_id": self.pair.pair_id, "split": self.split, "side": self.side}
        return {**place, "reason": printable(self.reason, 200), "kind": reason_kind(self.reason)}


def reason_kind(reason: str) -> str:
    """The reason without its figures: `140 tokens, at most 128 are read` becomes `more than 128 tokens`."""
    return printable(re.sub(r"^\d[\d,]*", "N", TOO_LONG.sub(r"more than \1 tokens", reason)), 120)


def lost_pairs(pairs: PreferencePairs, report: Mapping[str, Any]) -> tuple[LostPair, ...]:
    """The split `pairs` that an extraction refused; by the first side where an older report lacks `refused_sides`."""
    sides = report.get("refused_sides") or [row["field"] for row in report["refused"]]
    return tuple(
        LostPair(index=row["row"], pair=pairs[row["row"]], split=pairs.split[row["row"]], side=side, reason=row["reason"])
        for row, side in zip(report["refused"], sides, strict=True)
    )


def pair_counts(pairs: PreferencePairs, data: Mapping[str, Any], report: Mapping[str, Any], reading: Mapping[str, Any]) -> dict[str, Any]:
    """The object of the module, from all split `pairs`, `data` (`DataReport.to_json`), the extraction's `report` (with
    `reading_details`) and its config `reading` (`max_length`, `over_length`, `control_tokens`, `think`)."""
    lost = lost_pairs(pairs, report)
    shortened = set(report["shortened_pairs"])
    n_rows_refused = len(data["refused"])
    return {
        "n_rows": data["n_rows"],
        "n_rows_refused": n_rows_refused,
        "n_pairs_over_limit": data.get("n_over_limit", 0),
        "n_pairs": len(pairs),
        "n_pairs_refused": len(lost),
        "n_refused": n_rows_refused + len(lost),
        "n_shortened": len(shortened),
        "n_duplicates": {name: data["duplicates"][f"n_{name}_extra"] for name in DUPLICATES},
        "splits": {name: _split_counts(name, pairs, lost, shortened) for name in NAMES},
        "by_reason": _by_reason(lost),
        "rows_by_reason": _most_frequent(data["refused_by_reason"]),
        "first_rows": _first_of_each_kind([_row_to_json(row) for row in data["refused"]]),
        "first_pairs": _first_of_each_kind([pair.to_json() for pair in lost]),
        "n_closing_tokens_cut": report["closing_tokens_cut"],
        "closing_tokens": report["closing_tokens"],
        "n_thinking": report["thinking"],
        "reading": {name: reading[name] for name in ("max_length", "over_length", "control_tokens", "think")},
    }


def _split_counts(name: str, pairs: PreferencePairs, lost: Sequence[LostPair], shortened: set[int]) -> dict[str, Any]:
    rows = [int(i) for i in pairs.rows_of(name)]
    gone = [pair for pair in lost if pair.split == name]
    kept = set(rows) - {pair.index for pair in gone}
    by_side = Counter(pair.side for pair in gone)
    return {
        "n_pairs": len(rows),
        "n_refused": len(gone),
        "n_kept": len(kept),
        "n_shortened": len(kept & shortened),
        "n_prompts": len({pairs[i].prompt_id for i in rows}),
        "n_prompts_kept": len({pairs[i].prompt_id for i in kept}),
        "by_reason": _by_reason(gone),
        "by_side": {side: by_side[side] for side in SIDES},
    }


def _by_reason(lost: Iterable[LostPair]) -> dict[str, int]:
    return count_reasons(pair.reason for pair in lost)


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How often each kind of reason occurs, the most frequent first."""
    return _most_frequent(Counter(map(reason_kind, reasons)))


def _row_to_json(row: Mapping[str, Any]) -> dict[str, Any]:
    kind = printable(f"{row['field']}: {row['reason']}", 120)
    return {"row": row["row"], "field": row["field"], "reason": printable(row["reason"], 200), "kind": kind}


def _first_of_each_kind(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """In their order, at most FIRST of each of the first LISTED kinds met."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["kind"]] += 1
        if seen[row["kind"]] <= FIRST and len(seen) <= LISTED:
            kept.append(row)
    return kept


def _most_frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent first; beyond LISTED the rest together."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    rest = sum(count for _, count in ordered[LISTED:])
    return {**{printable(reason, 120): count for reason, count in ordered[:LISTED]}, **({OTHER: rest} if rest else {})}


def brief(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its lists of rows, for a manifest."""
    return {name: value for name, value in counts.items() if name not in ("first_rows", "first_pairs")}


def split_figures(counts: Mapping[str, Any], split: str) -> dict[str, int]:
    """The text beside an accuracy of this split: how many of its pairs were refused, and how many read shortened."""
    return {name: counts["splits"][split][name] for name in ("n_refused", "n_shortened")}


def summed_rows(counts: Mapping[str, Any]) -> dict[str, int]:
    """The refused ones for `method.data` of a reward model: rows and pairs apart, and their sum."""
    return {name: counts[name] for name in ("n_rows_refused", "n_pairs_refused", "n_refused")}


# --- in words --------------------------------------------------------------------------------------------------------


def sentences(counts: Mapping[str, Any]) -> list[str]:
    """Sentences for a person, the most important first; a single one where nothing was left out or cut."""
    lines = [*_refused_sentences(counts), *_shortened_sentence(counts), *_changed_sentences(counts), *_row_sentences(counts)]
    if counts["n_pairs_over_limit"]:
        lines.append(f"--limit left out {_pairs(counts['n_pairs_over_limit'])}.")
    if unused := counts["splits"][UNUSED]["n_pairs"]:
        lines.append(f"{_pairs(unused)} {'is' if unused == 1 else 'are'} in no split (unused).")
    return lines or [f"All {_pairs(counts['n_pairs'])} were read; nothing was left out."]


def _refused_sentences(counts: Mapping[str, Any]) -> list[str]:
    n, total = counts["n_pairs_refused"], counts["n_pairs"]
    if not n:
        return []
    where = _by_split(counts, "n_refused", "n_pairs")
    lines = [f"Left out: the language model can't read {n:,} of {_pairs(total)} ({where})."]
    sides = [f"{side} {sum(split['by_side'][side] for split in counts['splits'].values()):,}" for side in SIDES]
    lines += [f"  {reason}: {_pairs(count)}{_first_rows(counts['first_pairs'], reason)}" for reason, count in _falling(counts["by_reason"])]
    return [*lines, f"  the answer that can't be read: {', '.join(sides)}"]


def _first_rows(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """` (the first in rows 3, 17, 21)`: those of this kind; empty where none has a number."""
    numbers = [str(row["row"]) for row in rows if row["row"] is not None and row["kind"] == kind]
    return f" (the first in rows {', '.join(numbers)})" if len(numbers) > 1 else f" (row {numbers[0]})" if numbers else ""


def _shortened_sentence(counts: Mapping[str, Any]) -> list[str]:
    n = counts["n_shortened"]
    if not n:
        return []
    total, limit = sum(split["n_kept"] for split in counts["splits"].values()), counts["reading"]["max_length"]
    where = _by_split(counts, "n_shortened", "n_kept")
    return [f"Cut: the prompts of {n:,} of {_pairs(total)} lost their leading turns, to fit {limit:,} tokens ({where})."]


def _changed_sentences(counts: Mapping[str, Any]) -> list[str]:
    """What was changed in answers before they were read; counts made before this was counted have none."""
    lines = []
    if n := counts.get("n_closing_tokens_cut", 0):
        lines.append(f"Cut: {n:,} different {'answer' if n == 1 else 'answers'} ended with a closing token ({', '.join(counts['closing_tokens'])}).")
    for what, n in counts.get("n_thinking", {}).items():
        lines.append(f"Thinking: {n:,} different {'answer holds' if n == 1 else 'answers hold'} a thinking block, which was {what} (--think).")
    return lines


def _row_sentences(counts: Mapping[str, Any]) -> list[str]:
    n = counts["n_rows_refused"]
    if not n:
        return []
    lines = [f"{n:,} of {counts['n_rows']:,} rows of the source can't be used:"]
    for kind, count in _falling(counts["rows_by_reason"]):
        lines.append(f"  {kind}: {count:,} {'row' if count == 1 else 'rows'}{_first_rows(counts['first_rows'], kind)}")
    return lines


def _by_split(counts: Mapping[str, Any], part: str, whole: str) -> str:
    splits = [(name, counts["splits"][name]) for name in NAMES]
    return ", ".join(f"{split[part]:,} of {split[whole]:,} in {name}" for name, split in splits if split[whole])


def _falling(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent first, also of counts that a file has given in another order."""
    return sorted(counts.items(), key=lambda item: -item[1])


def _pairs(n: int) -> str:
    return f"{n:,} {'pair' if n == 1 else 'pairs'}"

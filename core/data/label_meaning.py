"""Which of two answers a label names, decided from all labels of the file.

| answers end with | labels | meaning |
|---|---|---|
| anything | a, b, A, B, left, right, A>B, model_a, response_2, the name of a column ... | the answer of that name |
| 1/2 | 1, 2 | the first, the second; 0 beside 1 and 2 is a tie |
| 0/1 | 0, 1 | the first (0), the second (1) |
| a/b, left/right | 1, 2, where some row has 2 and none has 0 | the first, the second |
| anything | tie, both_bad, equal, draw ... | a tie: refused |
| anything | other numbers (0 and 1 beside answers 1/2 or a/b, true and false) | refused, unless `label_values` gives their meaning |
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from core.data.pair_drafts import Judged
from core.data.texts import is_missing

TIES = 2  # what `side_of` returns for a tie
SIDES = {"a": 0, "b": 1, "left": 0, "right": 1, "first": 0, "second": 1}
TIE_WORDS = frozenset(
    ("tie", "tied", "draw", "both", "both bad", "bothbad", "both_bad", "both good", "both_good", "tie (bothbad)", "neither", "equal", "same", "c")
)
NAMED = re.compile(
    r"(?:model|response|output|answer|assistant|option|completion|conversation|text|candidate|reply|generation|summary)[ _.-]*(a|b|0|1|2|left|right)"
)
BETTER = re.compile(r"([ab])\s*>+\s*[ab]")  # as judges write it: A>B, B>>A
EQUAL = re.compile(r"[ab]\s*=+\s*[ab]")


def as_label(value: Any) -> str:
    """A label in the form that is compared: lower case, without outer spaces and brackets; 1.0 becomes 1."""
    if is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = (value.strip().strip("[]").strip() if isinstance(value, str) else str(value)).casefold()
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def side_of(label: Any, values: Iterable[str], ending: str, label_values: Mapping[str, str]) -> int | None:
    """0 for the first answer, 1 for the second, TIES for a tie, None if the meaning is not clear.

    `values` are all labels of the file (as `as_label` returns them), `ending` is what the two answer columns end with,
    and `label_values` is what the user stated about them (first=..., second=...).
    """
    text, known = as_label(label), set(values)
    given = [as_label(label_values[side]) if side in label_values else None for side in ("first", "second")]
    if any(given):
        return given.index(text) if text in given else TIES if text in TIE_WORDS else None
    if text in TIE_WORDS or EQUAL.fullmatch(text):
        return TIES
    better = BETTER.fullmatch(text)
    text = better.group(1) if better else text
    named = NAMED.fullmatch(text)
    text = named.group(1) if named else text
    if text in SIDES:
        return SIDES[text]
    if named:  # answer2, response_1: the number of a column
        return _by_number(text, {"1"} if ending == "0/1" else {"2"}, ending)
    return _by_number(text, known, ending)


def _by_number(text: str, values: set[str], ending: str) -> int | None:
    if ending == "0/1":
        if "2" in values and "0" not in values:
            return {"1": 0, "2": 1}.get(text)
        return {"0": 0, "1": 1}.get(text)
    counts_from_one = "2" in values if ending not in ("1/2",) else ("2" in values or "0" not in values)
    if not counts_from_one or (ending != "1/2" and "0" in values):
        return None
    return {"1": 0, "2": 1, "0": TIES}.get(text)


def label_sets(judged: Iterable[Judged]) -> dict[tuple[str, str], set[str]]:
    """All labels of a file, by the label's column and by what the answer columns end with."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in judged:
        values[item.column, item.ending].add(as_label(item.label))
    return values

"""Lists of preference pairs: filtered, searched, sorted, as rows of a table. No Streamlit here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from core.text_safety import visible
from core.types import Message, PreferencePairs

KIND_FIELDS = ("subset", "category", "Category")
EXCERPT = 140
SORTS: Mapping[str, str] = {
    "file": "As in the file",
    "worst": "Most wrongly ranked first",
    "best": "Most rightly ranked first",
    "close": "Closest first",
    "long": "Longest first",
}
WITH_MARGINS = ("worst", "best", "close")
VERDICTS: Mapping[str, str] = {"all": "All", "right": "Ranked rightly", "wrong": "Ranked wrongly"}


@dataclass(frozen=True)
class PairList:
    """Pairs with the split of each, and the margins (reward of chosen less reward of rejected) of a reward model, if
    any.
    """

    pairs: PreferencePairs
    splits: Sequence[str]
    margins: np.ndarray | None = None

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each pair; empty texts where the data names no kinds."""
        name = next((name for name in KIND_FIELDS if any(name in pair.meta for pair in self.pairs)), "")
        return tuple(str(pair.meta.get(name, "")) if name else "" for pair in self.pairs)

    @cached_property
    def folded(self) -> tuple[str, ...]:
        """Each pair's texts in folded case, for the search."""
        return tuple("\n".join((prompt_text(pair.prompt), pair.chosen, pair.rejected)).casefold() for pair in self.pairs)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(pair.chosen) + len(pair.rejected) for pair in self.pairs])

    def choose(
        self, *, split: str = "", kind: str = "", verdict: str = "all", words: str = "", ids: Callable[[str], bool] | None = None
    ) -> np.ndarray:
        """The rows of the pairs that meet every condition [n]. `words` are searched in prompt and answers, in any case."""
        keep = np.ones(len(self.pairs), dtype=bool)
        if split:
            keep &= np.array([name == split for name in self.splits], dtype=bool)
        if kind:
            keep &= np.array([name == kind for name in self.kinds], dtype=bool)
        if verdict != "all" and self.margins is not None:
            keep &= (self.margins > 0) == (verdict == "right")
        if words.strip():
            sought = words.strip().casefold()
            keep &= np.array([sought in text for text in self.folded], dtype=bool)
        if ids is not None:
            keep &= np.array([ids(pair.pair_id) for pair in self.pairs], dtype=bool)
        return np.flatnonzero(keep)

    def sort(self, rows: np.ndarray, by: str) -> np.ndarray:
        """The same rows in the order `by`, a key of SORTS."""
        keys: dict[str, np.ndarray] = {"long": -self.lengths}
        if self.margins is not None:
            keys |= {"worst": self.margins, "best": -self.margins, "close": np.abs(self.margins)}
        return rows[np.argsort(keys[by][rows], kind="stable")] if by in keys else rows

    def table(self, rows: np.ndarray) -> dict[str, list[Any]]:
        """The columns of a table of these rows; texts are shortened."""
        pairs = [self.pairs[int(row)] for row in rows]
        columns: dict[str, list[Any]] = {"Pair": [int(row) + 1 for row in rows]}
        if self.margins is not None:
            columns["Margin"] = [float(self.margins[int(row)]) for row in rows]
        columns |= {
            "Prompt": [excerpt(prompt_text(pair.prompt)) for pair in pairs],
            "Chosen": [excerpt(pair.chosen) for pair in pairs],
            "Rejected": [excerpt(pair.rejected) for pair in pairs],
        }
        if any(self.kinds):
            columns["Kind"] = [visible(self.kinds[int(row)], 60) for row in rows]
        if any(self.splits):
            columns["Split"] = [self.splits[int(row)] for row in rows]
        return columns

    def rows(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """The pairs in TRL's format, for a download."""
        pairs = [self.pairs[int(row)].to_row() | {"split": self.splits[int(row)]} for row in rows]
        if self.margins is not None:
            pairs = [pair | {"margin": float(self.margins[int(row)])} for pair, row in zip(pairs, rows, strict=True)]
        return pairs


def prompt_text(prompt: Sequence[Message]) -> str:
    """The last message of a prompt, and the number of messages before it."""
    before = len(prompt) - 1
    last = prompt[-1]["content"] if prompt else ""
    return f"[{before} before] {last}" if before > 0 else last


def excerpt(text: str) -> str:
    """The beginning of a text, as one line without control characters."""
    return " ".join(visible(text, EXCERPT).split())

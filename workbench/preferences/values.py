"""Lists of preference pairs: filtered, searched, sorted, as rows of a table. No Streamlit here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from core.text_safety import visible
from core.types import PreferencePair, PreferencePairs

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
    """Pairs with what is known of each. `margins`: reward of chosen less reward of rejected, None where no reward model has read them."""

    pairs: PreferencePairs
    splits: Sequence[str]
    margins: np.ndarray | None = None

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each pair, where the data names kinds; else empty texts."""
        name = next((name for name in KIND_FIELDS if any(name in pair.meta for pair in self.pairs)), "")
        return tuple(str(pair.meta.get(name, "")) if name else "" for pair in self.pairs)

    @cached_property
    def folded(self) -> tuple[str, ...]:
        """Each pair's texts, to search in."""
        return tuple("\n".join((prompt_text(pair), pair.chosen, pair.rejected)).casefold() for pair in self.pairs)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(pair.chosen) + len(pair.rejected) for pair in self.pairs])

    def choose(
        self, *, split: str = "", kind: str = "", verdict: str = "all", words: str = "", ids: Callable[[str], bool] | None = None
    ) -> np.ndarray:
        """Rows that keep every condition. `words` are looked for in prompt and answers, whatever their case."""
        keep = np.ones(len(self.pairs), dtype=bool)
        if split:
            keep &= np.array([one == split for one in self.splits], dtype=bool)
        if kind:
            keep &= np.array([one == kind for one in self.kinds], dtype=bool)
        if verdict != "all" and self.margins is not None:
            keep &= (self.margins > 0) == (verdict == "right")
        if words.strip():
            sought = words.strip().casefold()
            keep &= np.array([sought in text for text in self.folded], dtype=bool)
        if ids is not None:
            keep &= np.array([ids(pair.pair_id) for pair in self.pairs], dtype=bool)
        return np.flatnonzero(keep)

    def sort(self, rows: np.ndarray, by: str) -> np.ndarray:
        """The same rows in another order."""
        keys: dict[str, np.ndarray] = {"long": -self.lengths}
        if self.margins is not None:
            keys |= {"worst": self.margins, "best": -self.margins, "close": np.abs(self.margins)}
        return rows[np.argsort(keys[by][rows], kind="stable")] if by in keys else rows

    def table(self, rows: np.ndarray) -> dict[str, list[Any]]:
        """Columns of a table of these rows; texts are cut and harmless."""
        pairs = [self.pairs[int(row)] for row in rows]
        columns: dict[str, list[Any]] = {"Pair": [int(row) + 1 for row in rows]}
        if self.margins is not None:
            columns["Margin"] = [float(self.margins[int(row)]) for row in rows]
        columns |= {
            "Prompt": [excerpt(prompt_text(pair)) for pair in pairs],
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
        found = [self.pairs[int(row)].to_row() | {"split": self.splits[int(row)]} for row in rows]
        if self.margins is not None:
            found = [pair | {"margin": float(self.margins[int(row)])} for pair, row in zip(found, rows, strict=True)]
        return found


def prompt_text(pair: PreferencePair) -> str:
    """The prompt's last message, and how many stand before it."""
    before = len(pair.prompt) - 1
    last = pair.prompt[-1]["content"] if pair.prompt else ""
    return f"[{before} before] {last}" if before > 0 else last


def excerpt(text: str) -> str:
    """The beginning of a text, as one harmless line."""
    return " ".join(visible(text, EXCERPT).split())

"""Places in the texts of a page, as links name them. No Streamlit here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place in a text: the pane's name and the number of a character, so it stays when words become sentences."""

    pane: str
    at: int

    def __str__(self) -> str:
        return f"{self.pane}-{self.at}"


def point_of(text: str) -> Point | None:
    """The point that a link names; None where it names none."""
    pane, _, at = text.rpartition("-")
    return Point(pane=pane, at=int(at)) if pane and at.isascii() and at.isdecimal() and len(at) < 10 else None


def unit_at(spans: Spans, at: int) -> int | None:
    """The number of the unit that holds this character, else of the last one before it; None before the first."""
    before = [number for number, (start, _) in enumerate(spans) if start <= at]
    return before[-1] if before else None

"""What a row gives before the pairs have ids: a pair, or a part of one that only the other rows of the file complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from core.config import DataConfig
from core.types import Message


class Draft(NamedTuple):
    """A pair before it has an id. `extra` goes to its meta."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    extra: Mapping[str, Any] = {}


class Judged(NamedTuple):
    """Two answers and a label whose meaning depends on what other labels the file has (1 beside 2, or beside 0).

    `first` and `second` are drafts: the pair if the first, or the second, answer won. `ending` is what the two answer columns end with (`1/2`, `a/b`,
    `0/1`, `left/right`), `column` that of the label. `by_score` is the winner by other columns (0, 1; None: they do not say).
    """

    first: Draft
    second: Draft
    label: Any
    column: str
    ending: str
    by_score: int | None = None


class Rated(NamedTuple):
    """One answer to a prompt with its rating, to be paired with other rows' answers to the same prompt.

    `binary`: the rating is 1 (wanted) or 0 (unwanted), and the pairs are made in the order of the rows.
    """

    prompt: tuple[Message, ...]
    answer: str
    rating: float
    column: str
    binary: bool


Reading = Draft | Judged | Rated
Readings = Sequence[Reading]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One shape of rows. `fits` looks at a row's columns, `read` makes drafts of pairs from it or raises Refused; `uses` are the columns it reads.

    `alone`: each row holds whole pairs. docs/FORMATS.md says in a row each what a pair is made of and what is refused.
    """

    name: str
    uses: tuple[str, ...]
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], DataConfig], Readings]
    variant: str = ""
    alone: bool = True
    telling: str = ""

    @property
    def columns(self) -> str:
        """The columns that tell the format, in one line; `uses` may hold many more names for the same things."""
        return self.telling or ", ".join(self.uses)

    @property
    def title(self) -> str:
        """Name and variant in one line."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

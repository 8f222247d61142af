"""What reading one row gives (`Draft`, `Judged`, `Rated`), and `Format`, which describes one shape of rows.

A `Draft` is a pair without an id. `Judged` and `Rated` become pairs once the whole file was read, since they need its
other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from core.config import DataConfig
from core.types import Message


class Draft(NamedTuple):
    """A pair that has no id yet. `extra` becomes part of its meta."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    extra: Mapping[str, Any] = {}


class Judged(NamedTuple):
    """Two answers and a label whose meaning depends on the file's other labels (1 may stand beside 2, or beside 0).

    `first` is the pair if the first answer won, `second` if the second did. `ending` is what the two answer columns end
    with (`1/2`, `a/b`, `0/1`, `left/right`), `column` the label's column. `by_score` is the winner by other columns
    (0 or 1; None if there are none).
    """

    first: Draft
    second: Draft
    label: Any
    column: str
    ending: str
    by_score: int | None = None


class Rated(NamedTuple):
    """One answer with its rating, to be paired with other rows' answers to the same prompt.

    With `binary` the rating is 1 (desirable) or 0 (undesirable), and pairs are made in the order of the rows.
    """

    prompt: tuple[Message, ...]
    answer: str
    rating: float
    column: str
    binary: bool


Reading = Draft | Judged | Rated
Readings = Sequence[Reading]


@dataclass(frozen=True)
class Format:
    """One shape of rows.

    `fits` decides by a row's columns whether the row has this shape; `read` makes drafts of pairs from it or raises
    Refused; `uses` are the columns that `read` looks at. `whole_pairs` is True if each row holds whole pairs. `telling`
    are the columns to show to people, if they are not `uses`. docs/FORMATS.md describes each format in one row.
    """

    name: str
    variant: str
    uses: tuple[str, ...]
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], DataConfig], Readings]
    telling: str = ""
    whole_pairs: bool = True

    @property
    def columns(self) -> str:
        """The columns by which the format is recognised, in one line; `uses` may hold many more names."""
        return self.telling or ", ".join(self.uses)

    @property
    def title(self) -> str:
        """Name and variant in one line."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

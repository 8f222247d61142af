"""The set of pairs to which every list of pairs is limited, such as the pairs of a lasso. A chip shows and clears it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workbench.frame import state


@dataclass(frozen=True, kw_only=True)
class PairFilter:
    """A set of pairs. `source` says in words where it comes from."""

    pair_ids: frozenset[str]
    source: str

    def __len__(self) -> int:
        return len(self.pair_ids)

    def __contains__(self, pair_id: object) -> bool:
        return pair_id in self.pair_ids


def choose_pairs(pair_ids: Iterable[str], source: str, **more: str | int | None) -> None:
    """Limits every list of pairs to these until the filter is cleared, and chooses `more` with them. No ids clear it.

    `source`, a few words of ours (`lasso in Spaces`), is shown on the chip.
    """
    ids = sorted(set(pair_ids))
    state.choose(filter=state.keep("filter", {"pairs": ids, "said": source}) if ids else None, **more)


def chosen_pairs() -> PairFilter | None:
    """The set of pairs to which lists are limited; None for all pairs."""
    saved = state.kept("filter", state.get("filter"))
    if not isinstance(saved, dict) or not isinstance(saved.get("pairs"), list):
        return None
    return PairFilter(pair_ids=frozenset(map(str, saved["pairs"])), source=str(saved.get("said", "")))

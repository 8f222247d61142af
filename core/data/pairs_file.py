"""Writes and reads checked pairs between steps: one JSON object a line, TRL's preference format with `id`, `meta`,
`split` and `source`.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import StoreError
from core.files import read_json_lines, write_json_lines
from core.types import PreferencePair, PreferencePairs

SOURCE = "source"


def write_pairs(pairs: PreferencePairs, path: Path) -> None:
    """Writes pairs with their splits. Equal pairs give equal bytes."""
    splits = pairs.split or ("",) * len(pairs)
    rows = ({**pair.to_row(), "split": split, SOURCE: pairs.source} for pair, split in zip(pairs, splits, strict=True))
    write_json_lines(path, rows, sort_keys=True)


def read_pairs(path: Path) -> PreferencePairs:
    """The pairs that `write_pairs` wrote, equal to what it was given. Raises StoreError for any other file."""
    pairs, split, source = [], [], ""
    try:
        for row in read_json_lines(path):
            answers = {side: row[side][0]["content"] for side in ("chosen", "rejected")}
            pairs.append(PreferencePair(pair_id=row["id"], prompt=tuple(row["prompt"]), meta=row["meta"], **answers))
            split.append(row["split"])
            source = row[SOURCE]
    except (KeyError, IndexError, TypeError) as error:
        raise StoreError(
            f"{path} can't be read", expected="pairs as core.data.pairs_file writes them", found=f"{type(error).__name__}: {error}"
        ) from error
    return PreferencePairs(pairs=tuple(pairs), split=tuple(split) if any(split) else (), source=source)

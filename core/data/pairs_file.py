"""Writes and reads checked pairs between steps: one JSON object a line, TRL's preference format with `id`, `meta`,
`split` and `source`.
"""

from __future__ import annotations

import json
from pathlib import Path

from core.errors import StoreError
from core.types import PreferencePair, PreferencePairs, strict_json

SOURCE = "source"


def write_pairs(pairs: PreferencePairs, path: Path) -> None:
    """Writes pairs with their splits. Equal pairs give equal bytes."""
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as handle:
        for number, pair in enumerate(pairs):
            row = {**pair.to_row(), "split": pairs.split[number] if pairs.split else "", SOURCE: pairs.source}
            handle.write(json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")


def read_pairs(path: Path) -> PreferencePairs:
    """The pairs that `write_pairs` wrote, equal to what it was given. Raises StoreError for any other file."""
    pairs, split, source = [], [], ""
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as handle:
            for row in map(strict_json, handle):
                answers = {side: row[side][0]["content"] for side in ("chosen", "rejected")}
                pairs.append(PreferencePair(pair_id=row["id"], prompt=tuple(row["prompt"]), meta=row["meta"], **answers))
                split.append(row["split"])
                source = row[SOURCE]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise StoreError(
            f"{path} can't be read", expected="pairs as core.data.pairs_file writes them", found=f"{type(error).__name__}: {error}"
        ) from error
    return PreferencePairs(pairs=tuple(pairs), split=tuple(split) if any(split) else (), source=source)

"""Checks preference pairs before a fit: how they were read, refused rows, duplicates, overlap of splits, shortcuts.

A check is an artefact: `pairs.jsonl` (the pairs with their splits) and `report.json`:

    data         DataReport.to_json        split    SplitReport.to_json
    shortcuts    wording-only, length-only: accuracy, low, high, n, note, split, unit, on all test pairs (else validation
                 pairs). A fit's controls of these names leave out unreadable pairs and count tokens, not characters
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.config import DataConfig
from core.data.pairs import load_pairs
from core.data.pairs_file import write_pairs
from core.data.splits import split_pairs, split_report
from core.errors import DataError
from core.files import file_sha256, write_json
from core.reward.controls import wording_only
from core.reward.evaluation import accuracy_of
from core.runs.store import Artefact, Store
from core.runs.versions import VERSIONS
from core.types import PreferencePairs, Progress, no_progress, sha256_of

STEP = "pairs_check"
REPORT, PAIRS = "report.json", "pairs.jsonl"


def check_pairs(config: DataConfig, store: Store, progress: Progress = no_progress) -> Artefact:
    """The check of these pairs, found or made. Raises what reading them raises."""
    path = Path(config.pairs).expanduser()
    loaded = None if path.is_file() else load_pairs(config, progress)
    source = file_sha256(path) if loaded is None else sha256_of([loaded[0].content_hash, loaded[1].to_json()])
    asked = {**config.result_fields(), "pairs": path.name if loaded is None else config.pairs}

    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        pairs, report = loaded or load_pairs(config, progress)
        split, unsplit = _split(pairs, config)
        described = split_report(split, config, report.duplicates)
        described = replace(described, notes=(*described.notes, *unsplit))
        write_pairs(split, folder / PAIRS)
        progress("wording", 0, 1)
        checked = {"data": report.to_json(), "split": described.to_json(), "shortcuts": shortcuts(split)}
        progress("wording", 1, 1)
        write_json(folder / REPORT, checked)
        counts = {"n_rows": report.n_rows, "n_rows_refused": len(report.refused), "n_pairs_over_limit": report.n_over_limit}
        return {"source": split.source, **counts, "n_pairs": len(split), "n_prompts": report.n_prompts}

    return store.get_or_make(STEP, VERSIONS[STEP], asked, [source], make)


def _split(pairs: PreferencePairs, config: DataConfig) -> tuple[PreferencePairs, tuple[str, ...]]:
    """The pairs with their splits. Too few to split are checked as well: all `unused`, and a note gives the reason."""
    try:
        return split_pairs(pairs, config), ()
    except DataError as error:
        reason = f"{error.problem} ({error.expected}, found {error.found}): no reward model can be fitted on these"
        return replace(pairs, split=("unused",) * len(pairs)), (reason,)


def shortcuts(pairs: PreferencePairs) -> dict[str, Mapping[str, Any]]:
    """How well wording alone, and length alone (in characters), separate chosen from rejected on held-out pairs."""
    train, validation, test = (pairs.rows_of(name) for name in ("train", "validation", "test"))
    judged = test if len(test) else validation
    if not len(train) or not len(judged):
        return {}
    wording = wording_only(pairs, train, validation if len(validation) else train)
    margins, note = _length_margins(pairs, train)
    margins_of = {"wording-only": (wording.margins, wording.note), "length-only": (margins, note)}
    groups = pairs.prompt_groups()[judged]
    where = {"split": "test" if len(test) else "validation", "unit": "characters"}
    return {name: {**accuracy_of(m[judged][None], groups).to_json(), "note": note, **where} for name, (m, note) in margins_of.items()}


def _length_margins(pairs: PreferencePairs, train: Int[np.ndarray, " n_train"]) -> tuple[Float[np.ndarray, " n_pairs"], str]:
    longer = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], dtype=np.float64)
    side = 1.0 if (longer[train] > 0).sum() >= (longer[train] < 0).sum() else -1.0
    return side * longer, "more characters win" if side > 0 else "fewer characters win"

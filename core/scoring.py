"""`sparserm score`: rows in, rows with rewards out.

Pairs (any format that `core.data` reads) come out with RewardBench's column names: `id`, `subset`, `text_chosen`, `text_rejected` (message lists),
`scores_chosen`, `scores_rejected`, `results` (1: chosen strictly above rejected). Rows with `prompt` and `response` come out with `score` added.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.config import DataConfig
from core.data.pairs import load_pairs
from core.data.readers import open_source
from core.data.rows import Row
from core.data.texts import Refused, text_of, user_prompt
from core.errors import DataError
from core.reward.evaluation import accuracy_of
from core.reward.model import SparseRM
from core.types import PreferencePair, PreferencePairs, Progress, RefusedRow, no_progress

CHUNK = 1024  # rows scored before they are written
OPEN, ANSWER = "prompt", "response"


def score_file(model: str, source: Path, target: Path | None, *, device: str = "auto", progress: Progress = no_progress) -> dict[str, Any]:
    """Scores every usable row of `source` into `target` (None: standard output); returns counts, and for pairs the accuracy with its interval.

    `model` is a folder or a Hub id; `target` appears whole or not at all. Raises StoreError without a reward model, DataError without a usable row.
    """
    reward_model = SparseRM.load(model, device=device) if Path(model).exists() else SparseRM.from_pretrained(model, device=device)
    if _has_responses(source):
        rows, refused = _responses(source)
        scored = _score_responses(reward_model, rows, progress)
        return {"rows": _write(scored, target), "refused": len(refused)}
    pairs, report = load_pairs(DataConfig(pairs=str(source)), progress)
    margins: list[float] = []
    n = _write(_score_pairs(reward_model, pairs, margins, progress), target)
    accuracy = accuracy_of(np.array([margins]), pairs.prompt_groups())
    return {"rows": n, "refused": len(report.refused), **accuracy.to_json()}


def _has_responses(source: Path) -> bool:
    """Whether the first readable row has a prompt and one response, rather than a pair."""
    rows = open_source(DataConfig(pairs=str(source))).rows
    first = next((row.values for row in rows if isinstance(row, Row)), {})
    return OPEN in first and ANSWER in first and "chosen" not in first


def _responses(source: Path) -> tuple[list[dict[str, Any]], list[RefusedRow]]:
    rows, refused = [], []
    for row in open_source(DataConfig(pairs=str(source))).rows:
        try:
            if isinstance(row, RefusedRow):
                raise Refused(row.field, row.reason)
            rows.append({**row.values, OPEN: list(user_prompt(row.values.get(OPEN))), ANSWER: text_of(row.values.get(ANSWER), ANSWER)})
        except Refused as error:
            refused.append(RefusedRow(row=row.number if isinstance(row, Row) else row.row, field=error.field, reason=error.reason))
    if not rows:
        found = f"{len(refused)} rows; {refused[0].field}: {refused[0].reason}" if refused else "no row at all"
        raise DataError(f"{source} has no usable row", expected=f"rows with {OPEN} and {ANSWER}", found=found)
    return rows, refused


def _score_responses(reward_model: SparseRM, rows: list[dict[str, Any]], progress: Progress) -> Iterator[dict[str, Any]]:
    for at in range(0, len(rows), CHUNK):
        chunk = rows[at : at + CHUNK]
        rewards = reward_model.score([row[OPEN] for row in chunk], [row[ANSWER] for row in chunk])
        yield from ({**row, "score": float(reward)} for row, reward in zip(chunk, rewards, strict=True))
        progress("score", at + len(chunk), len(rows))


def _score_pairs(reward_model: SparseRM, pairs: PreferencePairs, margins: list[float], progress: Progress) -> Iterator[dict[str, Any]]:
    for at in range(0, len(pairs), CHUNK):
        chunk = [pairs[i] for i in range(at, min(at + CHUNK, len(pairs)))]
        chosen, rejected = reward_model.score_pairs(chunk)
        margins.extend((chosen - rejected).tolist())
        yield from (_bench_row(pair, *map(float, rewards)) for pair, *rewards in zip(chunk, chosen, rejected, strict=True))
        progress("score", at + len(chunk), len(pairs))


def _bench_row(pair: PreferencePair, chosen: float, rejected: float) -> dict[str, Any]:
    texts = {f"text_{side}": [*pair.prompt, {"role": "assistant", "content": getattr(pair, side)}] for side in ("chosen", "rejected")}
    scores = {"scores_chosen": chosen, "scores_rejected": rejected, "results": int(chosen > rejected)}
    return {"id": pair.pair_id, "subset": pair.meta.get("subset", ""), **texts, **scores}


def _write(rows: Iterable[Mapping[str, Any]], target: Path | None) -> int:
    if target is None:
        return _write_lines(rows, sys.stdout)
    temporary = target.with_name(f".{target.name}.part")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as handle:
            n = _write_lines(rows, handle)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return n


def _write_lines(rows: Iterable[Mapping[str, Any]], handle: IO[str]) -> int:
    lines = (handle.write(json.dumps(row, ensure_ascii=False, default=str) + "\n") for row in rows)
    return sum(1 for _ in lines)

"""What the Spaces page shows: the pictures' points with what they are coloured by, and the pairs behind a lasso. Values only; no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.explain.spaces import NAME, Spaces, load_spaces
from core.reward.evaluation import SUBSET_FIELDS
from core.runs.store import Artefact
from core.types import SPLITS
from workbench.frame.chart_base import CHOSEN, FURTHER, NEUTRAL, REJECTED, wrapped
from workbench.frame.models import ID_LENGTH, FittedModel

COLOURS = {
    "side": "Chosen or rejected",
    "correct": "Ranked right or wrong",
    "subset": "Subset",
    "split": "Split",
    "length": "Length",
    "reward": "Reward",
}
SCALES = {"length": "tokens", "reward": "reward"}
SIDES = {1: "chosen", -1: "rejected", 0: "both, in several pairs"}


@dataclass(frozen=True, kw_only=True)
class Points:
    """The points of both pictures, in their order: response rows, hover texts, and the pairs each response stands in."""

    spaces: Spaces
    rows: np.ndarray
    texts: list[str]
    pairs: Mapping[int, tuple[int, ...]]


def made(model: FittedModel) -> dict[str, Artefact]:
    """The pictures that were made of this model, newest first, by the beginning of their fingerprint."""
    return {picture.fingerprint[:ID_LENGTH]: picture for picture in model.results(NAME)}


def how(picture: Artefact) -> str:
    """What tells one picture from another."""
    config = picture.manifest["config"]
    return f"perplexity {config['perplexity']:g}, seed {config['seed']}, at most {config['points']:,} points"


def points(model: FittedModel, picture: Artefact) -> Points:
    """The pictures and what a page needs of each point. Raises StoreError where they are damaged."""
    return _points(model, picture.path)


@lru_cache(maxsize=4)
def _points(model: FittedModel, folder: Path) -> Points:
    found = load_spaces(folder)
    known, rewards = model.responses, model.rewards
    pairs: dict[int, list[int]] = {}
    for number, both in enumerate(zip(known.chosen_rows.tolist(), known.rejected_rows.tolist(), strict=True)):
        for row in both:
            pairs.setdefault(row, []).append(number)
    texts = []
    for row, label in zip(found.rows.tolist(), found.label.tolist(), strict=True):
        said = known.texts(row) if known.pairs is None else _text(model, pairs.get(row, []), row)
        texts.append(f"<b>{SIDES[label]}</b>, reward {rewards[row]:.2f}<br>{wrapped(said or '', 60, 3)}")
    return Points(spaces=found, rows=found.rows, texts=texts, pairs={row: tuple(numbers) for row, numbers in pairs.items()})


def _text(model: FittedModel, numbers: Sequence[int], row: int) -> str:
    if not numbers:
        return ""
    pair = model.pairs[numbers[0]]
    return pair.chosen if int(model.responses.chosen_rows[numbers[0]]) == row else pair.rejected


def groups_of(model: FittedModel, found: Points, colour: str) -> tuple[list[str], dict[str, str]]:
    """A group for each point, and the groups' colours in order."""
    spaces = found.spaces
    if colour == "correct":
        return _correct(model, found), {"ranked right": NEUTRAL, "in pairs of both kinds": FURTHER[2], "ranked wrong": FURTHER[3]}
    if colour == "subset":
        return _subsets(model, found)
    if colour == "split":
        names = (*SPLITS, "unused")
        return [names[int(one)] for one in spaces.split], dict(zip(names, (NEUTRAL, FURTHER[0], FURTHER[3], FURTHER[2]), strict=True))
    return [SIDES[int(one)] for one in spaces.label], {"chosen": CHOSEN, "rejected": REJECTED, SIDES[0]: NEUTRAL}


def _correct(model: FittedModel, found: Points) -> list[str]:
    right = model.margins > 0
    names = []
    for row in found.rows.tolist():
        seen = {bool(right[number]) for number in found.pairs.get(row, ())}
        names.append("in pairs of both kinds" if len(seen) != 1 else "ranked right" if True in seen else "ranked wrong")
    return names


def _subsets(model: FittedModel, found: Points) -> tuple[list[str], dict[str, str]]:
    pairs = model.pairs
    field = next((name for name in SUBSET_FIELDS if any(name in pair.meta for pair in pairs)), None)
    names = [_subset(pairs, found.pairs.get(row, ()), field) for row in found.rows.tolist()]
    often = sorted(set(names), key=lambda name: -names.count(name))
    palette = dict(zip(often, FURTHER, strict=False))
    if len(often) > len(FURTHER):
        names = [name if name in palette else "others" for name in names]
        palette["others"] = NEUTRAL
    return names, palette


def _subset(pairs: Any, numbers: Sequence[int], field: str | None) -> str:
    return str(pairs[numbers[0]].meta.get(field) or "none") if field and numbers else "none"


def values_of(model: FittedModel, found: Points, colour: str) -> np.ndarray:
    """The number that each point is coloured by."""
    return np.asarray(model.responses.n_tokens if colour == "length" else model.rewards)[found.rows]


def pair_ids(model: FittedModel, found: Points, rows: Sequence[str]) -> list[str]:
    """The pairs that these responses stand in."""
    numbers = {number for row in rows if row.isdecimal() for number in found.pairs.get(int(row), ())}
    return [model.pairs[number].pair_id for number in sorted(numbers)]


def rows_of_pairs(model: FittedModel, wanted: Any) -> list[int]:
    """The responses of the pairs in a filter."""
    known = model.responses
    numbers = [number for number, pair in enumerate(model.pairs) if pair.pair_id in wanted]
    return np.unique(np.concatenate([known.chosen_rows[numbers], known.rejected_rows[numbers]])).tolist() if numbers else []


def listed(model: FittedModel, wanted: Any) -> list[dict[str, Any]]:
    """The pairs of a filter as a table, worst margin first."""
    margins, splits = model.margins, model.splits
    rows = [
        {
            "margin": float(margins[number]),
            "split": splits[number],
            "prompt": pair.prompt[-1]["content"] if pair.prompt else "",
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "pair": pair.pair_id,
        }
        for number, pair in enumerate(model.pairs)
        if pair.pair_id in wanted
    ]
    return sorted(rows, key=lambda row: row["margin"])

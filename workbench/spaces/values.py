"""What the Spaces page shows: the points of the pictures with their groups, and the pairs of a lasso. No Streamlit
here.
"""

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
class SpacePoints:
    """The points of both pictures in one order: their responses' rows [n], hover texts, and the pairs that hold each
    response.
    """

    spaces: Spaces
    rows: np.ndarray
    texts: list[str]
    pairs: Mapping[int, tuple[int, ...]]


def artefacts(model: FittedModel) -> dict[str, Artefact]:
    """The artefacts with pictures of this model, newest first, by the beginning of their fingerprint."""
    return {picture.fingerprint[:ID_LENGTH]: picture for picture in model.results(NAME)}


def tsne_settings(artefact: Artefact) -> str:
    """The settings that distinguish these pictures from others."""
    config = artefact.manifest["config"]
    return f"perplexity {config['perplexity']:g}, seed {config['seed']}, at most {config['points']:,} points"


def points_of(model: FittedModel, artefact: Artefact) -> SpacePoints:
    """The points of these pictures. Raises StoreError where the artefact is damaged."""
    return _points(model, artefact.path)


@lru_cache(maxsize=4)
def _points(model: FittedModel, folder: Path) -> SpacePoints:
    spaces = load_spaces(folder)
    known, rewards = model.responses, model.rewards
    pairs: dict[int, list[int]] = {}
    for number, both in enumerate(zip(known.chosen_rows.tolist(), known.rejected_rows.tolist(), strict=True)):
        for row in both:
            pairs.setdefault(row, []).append(number)
    texts = []
    for row, label in zip(spaces.rows.tolist(), spaces.label.tolist(), strict=True):
        text = known.texts(row) if known.pairs is None else _text(model, pairs.get(row, []), row)
        texts.append(f"<b>{SIDES[label]}</b>, reward {rewards[row]:.2f}<br>{wrapped(text or '', 60, 3)}")
    return SpacePoints(spaces=spaces, rows=spaces.rows, texts=texts, pairs={row: tuple(numbers) for row, numbers in pairs.items()})


def _text(model: FittedModel, numbers: Sequence[int], row: int) -> str:
    if not numbers:
        return ""
    pair = model.pairs[numbers[0]]
    return pair.chosen if int(model.responses.chosen_rows[numbers[0]]) == row else pair.rejected


def groups_of(model: FittedModel, points: SpacePoints, colour: str) -> tuple[list[str], dict[str, str]]:
    """The group of each point, and the colour of each group in the legend's order."""
    spaces = points.spaces
    if colour == "correct":
        return _correct(model, points), {"ranked right": NEUTRAL, "in pairs of both kinds": FURTHER[2], "ranked wrong": FURTHER[3]}
    if colour == "subset":
        return _subsets(model, points)
    if colour == "split":
        names = (*SPLITS, "unused")
        return [names[int(number)] for number in spaces.split], dict(zip(names, (NEUTRAL, FURTHER[0], FURTHER[3], FURTHER[2]), strict=True))
    return [SIDES[int(label)] for label in spaces.label], {"chosen": CHOSEN, "rejected": REJECTED, SIDES[0]: NEUTRAL}


def _correct(model: FittedModel, points: SpacePoints) -> list[str]:
    right = model.margins > 0
    names = []
    for row in points.rows.tolist():
        outcomes = {bool(right[number]) for number in points.pairs.get(row, ())}
        names.append("in pairs of both kinds" if len(outcomes) != 1 else "ranked right" if True in outcomes else "ranked wrong")
    return names


def _subsets(model: FittedModel, points: SpacePoints) -> tuple[list[str], dict[str, str]]:
    pairs = model.pairs
    field = next((name for name in SUBSET_FIELDS if any(name in pair.meta for pair in pairs)), None)
    names = [_subset(pairs, points.pairs.get(row, ()), field) for row in points.rows.tolist()]
    often = sorted(set(names), key=lambda name: -names.count(name))
    palette = dict(zip(often, FURTHER, strict=False))
    if len(often) > len(FURTHER):
        names = [name if name in palette else "others" for name in names]
        palette["others"] = NEUTRAL
    return names, palette


def _subset(pairs: Any, numbers: Sequence[int], field: str | None) -> str:
    return str(pairs[numbers[0]].meta.get(field) or "none") if field and numbers else "none"


def values_of(model: FittedModel, points: SpacePoints, colour: str) -> np.ndarray:
    """The number that each point is coloured by."""
    return np.asarray(model.responses.n_tokens if colour == "length" else model.rewards)[points.rows]


def pair_ids(model: FittedModel, points: SpacePoints, rows: Sequence[str]) -> list[str]:
    """The ids of the pairs that hold these responses, given by their rows as text."""
    numbers = {number for row in rows if row.isdecimal() for number in points.pairs.get(int(row), ())}
    return [model.pairs[number].pair_id for number in sorted(numbers)]


def rows_of_pairs(model: FittedModel, wanted: Any) -> list[int]:
    """The rows of the responses in the wanted pairs."""
    known = model.responses
    numbers = [number for number, pair in enumerate(model.pairs) if pair.pair_id in wanted]
    return np.unique(np.concatenate([known.chosen_rows[numbers], known.rejected_rows[numbers]])).tolist() if numbers else []


def table_of_pairs(model: FittedModel, wanted: Any) -> list[dict[str, Any]]:
    """The wanted pairs as a table, the lowest margin first."""
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

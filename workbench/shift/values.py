"""What the Shift page shows: cosine similarities of generated answers to the training data by round and space, and the points of the pictures.
Values only; no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.align.records import SHIFT, RoundRecord
from core.errors import MissingError
from core.explain.shift import KINDS, MATCHED, SPARSE, Shift, load_shift
from workbench.align import values as align
from workbench.align.pairs import GeneratedPair, pairs_of, prompt_text
from workbench.align.values import Entry
from workbench.frame.chart_base import CHOSEN, FURTHER, NEUTRAL, REJECTED, number, wrapped
from workbench.frame.models import FittedModel

MEASURES = {
    "matched": ("Matched", "to the training answers to the same prompt, in the same role"),
    "centroid": ("Centroid", "to the mean of the training answers of the same role"),
    "pairwise": ("Pairwise", "to all training answers of the same role, on average"),
    "nearest": ("Nearest", "to the nearest training answer of the same role"),
}
SCALES = {
    "raw": ("As it is", "as it is"),
    "centred": ("Centred", "centred by the training mean"),
    "standardised": ("Standardised", "centred by the training mean, divided by the training deviation"),
}
COLOURS = {"kind": "Training and generated", "fate": "Kept or dropped"}
PALETTES: Mapping[str, Mapping[str, str]] = {
    "kind": dict(zip(KINDS, (CHOSEN, REJECTED, FURTHER[0], FURTHER[3]), strict=True)),
    "fate": {"training": NEUTRAL, "generated, kept": FURTHER[0], "generated, dropped": FURTHER[3]},
}


def shifts(rounds: Sequence[RoundRecord]) -> dict[int, Shift]:
    """The shift of each round that has been compared."""
    return {one.round: _shift(one.steps[SHIFT]) for one in rounds if SHIFT in one.steps}


@lru_cache(maxsize=24)
def _shift(folder: Path) -> Shift:
    return load_shift(folder)


def measures(found: Mapping[int, Shift]) -> list[str]:
    """The similarities that could be had: no `matched` without answers to training prompts."""
    known = {row.measure for shift in found.values() for row in shift.rows if row.figure is not None}
    return [name for name in MEASURES if name in known]


def series(found: Mapping[int, Shift], measure: str, scale: str, *, lead: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Points of each space, one a round: the cosine, or (`lead`) the sparse space's less that of the other, paired by answer."""
    points: dict[str, list[dict[str, Any]]] = {}
    for round, shift in found.items():
        for row in shift.rows:
            one = row.lead if lead else row.figure
            if (row.measure, row.scale) == (measure, scale) and one is not None:
                points.setdefault(row.space, []).append({"round": round, **one.to_json()})
    return points


def rows(found: Mapping[int, Shift]) -> list[dict[str, Any]]:
    """Everything that was compared, as a table."""
    table = []
    for round, shift in found.items():
        for row in shift.rows:
            figure, lead = (one.to_json() if one is not None else {} for one in (row.figure, row.lead))
            leads = {f"sparse less this {name}": lead.get(name) for name in ("value", "low", "high")}
            table.append({"round": round, "measure": row.measure, "scale": row.scale, "space": row.space, **figure, **leads})
    return table


def verdict(found: Mapping[int, Shift], measure: str, scale: str) -> str:
    """One sentence of ours on the newest round: is the sparse space nearer than the dense one, and than its controls?"""
    newest = max(found)
    leads = {row.space: row.lead for row in found[newest].rows if (row.measure, row.scale) == (measure, scale) and row.space != SPARSE}
    nearer, behind = ([name for name, lead in leads.items() if lead is not None and side(lead)] for side in (_above, _below))
    words = {"dense": "dense states", "random-isotropic": "random directions", "random-rows": "random decoder rows"}
    said = [f"nearer than in {_listed([words[name] for name in nearer])}" if nearer else ""]
    said += [f"further away than in {_listed([words[name] for name in behind])}" if behind else ""]
    told = " and ".join(one for one in said if one)
    told = f"clearly {told}" if told else "neither clearly nearer than in the other spaces nor further away"
    return f"In the sparse space the training data lie {told}, seen from the answers generated in round {newest}."


def _above(lead: Any) -> bool:
    return bool(lead.low > 0)


def _below(lead: Any) -> bool:
    return bool(lead.high < 0)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


# --- points ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a point of the pictures stands for: a training response or a generated answer, and its pair where it was generated."""

    kind: int
    text: str
    prompt: str
    generated: GeneratedPair | None = None

    @property
    def name(self) -> str:
        return KINDS[self.kind]


@dataclass(frozen=True, kw_only=True)
class Points:
    """The points of both pictures in order."""

    shift: Shift
    points: tuple[Point, ...]

    @property
    def texts(self) -> list[str]:
        """What a hover box says of each."""
        return [f"<b>{one.name}</b>{_told(one)}<br>{wrapped(one.text or 'text not kept', 60, 3)}" for one in self.points]

    def groups(self, colour: str) -> list[str]:
        """The group of each, in the words of the palette."""
        if colour == "kind":
            return [one.name for one in self.points]
        kept = {True: "generated, kept", False: "generated, dropped"}
        return ["training" if one.generated is None else kept[one.generated.fate == "kept"] for one in self.points]


def _told(one: Point) -> str:
    if one.generated is None or one.generated.rewards is None:
        return ""
    return f", reward {number(one.generated.rewards[one.kind - 2], '+.2f')}, {one.generated.fate}"


def points_of(entry: Entry, round: RoundRecord) -> Points:
    """The points of a round that has been compared, with their texts where those are still in the cache."""
    shift, model = _shift(round.steps[SHIFT]), align.measuring_model(entry)
    training = {} if model is None else _training(model)
    pairs = {one.candidate.candidate_id: one for one in pairs_of(round)}
    made = []
    for kind, row in zip(shift.kind.tolist(), shift.row.tolist(), strict=True):
        if kind < 2:
            prompt, text = training.get(row, ("", ""))
            made.append(Point(kind=kind, text=text, prompt=prompt))
            continue
        pair = pairs.get(shift.ids[row])
        candidate = None if pair is None else pair.candidate
        text = "" if candidate is None else (candidate.chosen, candidate.rejected)[kind - 2]
        made.append(Point(kind=kind, text=text, prompt="" if candidate is None else prompt_text(candidate.prompt), generated=pair))
    return Points(shift=shift, points=tuple(made))


@lru_cache(maxsize=4)
def _training(model: FittedModel) -> dict[int, tuple[str, str]]:
    """Prompt and text of each known response."""
    try:
        known, pairs = model.responses, model.pairs
    except MissingError:
        return {}
    found = {}
    for at, pair in enumerate(pairs):
        prompt = prompt_text(pair.prompt)
        found[int(known.chosen_rows[at])], found[int(known.rejected_rows[at])] = (prompt, pair.chosen), (prompt, pair.rejected)
    return found


def ids_of(found: Points) -> np.ndarray:
    """The number of each point, which a click tells."""
    return np.arange(len(found.points))


def no_matched(found: Mapping[int, Shift]) -> bool:
    return MATCHED not in measures(found)

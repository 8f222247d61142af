"""What the Shift page shows: cosine similarities of generated answers to the training data, and the pictures' points.

No Streamlit here; no engine is loaded.
"""

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
from workbench.align.pairs import GeneratedPair, pairs_of
from workbench.align.values import Entry
from workbench.frame.chart_base import CHOSEN, FURTHER, NEUTRAL, REJECTED, number, wrapped
from workbench.frame.models import FittedModel
from workbench.preferences.values import prompt_text

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
    return {round.round: _shift(round.steps[SHIFT]) for round in rounds if SHIFT in round.steps}


@lru_cache(maxsize=24)
def _shift(folder: Path) -> Shift:
    return load_shift(folder)


def measures(shifts: Mapping[int, Shift]) -> list[str]:
    """The similarities that were measured; `matched` needs answers to training prompts."""
    measured = {row.measure for shift in shifts.values() for row in shift.rows if row.figure is not None}
    return [name for name in MEASURES if name in measured]


def series(shifts: Mapping[int, Shift], measure: str, scale: str, *, lead: bool = False) -> dict[str, list[dict[str, Any]]]:
    """A point for each space and round: the cosine, or with `lead` the sparse space's cosine less the other's, paired
    by answer.
    """
    points: dict[str, list[dict[str, Any]]] = {}
    for round, shift in shifts.items():
        for row in shift.rows:
            estimate = row.lead if lead else row.figure
            if (row.measure, row.scale) == (measure, scale) and estimate is not None:
                points.setdefault(row.space, []).append({"round": round, **estimate.to_json()})
    return points


def rows(shifts: Mapping[int, Shift]) -> list[dict[str, Any]]:
    """Every similarity of every round, as a table."""
    table = []
    for round, shift in shifts.items():
        for row in shift.rows:
            figure, lead = (estimate.to_json() if estimate is not None else {} for estimate in (row.figure, row.lead))
            leads = {f"sparse less this {name}": lead.get(name) for name in ("value", "low", "high")}
            table.append({"round": round, "measure": row.measure, "scale": row.scale, "space": row.space, **figure, **leads})
    return table


def verdict(shifts: Mapping[int, Shift], measure: str, scale: str) -> str:
    """One sentence on the newest round: is the sparse space nearer to the training data than the dense one and the
    controls?
    """
    newest = max(shifts)
    leads = {row.space: row.lead for row in shifts[newest].rows if (row.measure, row.scale) == (measure, scale) and row.space != SPARSE}
    nearer, behind = ([name for name, lead in leads.items() if lead is not None and side(lead)] for side in (_above, _below))
    words = {"dense": "dense states", "random-isotropic": "random directions", "random-rows": "random decoder rows"}
    parts = [f"nearer than in {_listed([words[name] for name in nearer])}"] if nearer else []
    parts += [f"further away than in {_listed([words[name] for name in behind])}"] if behind else []
    place = f"clearly {' and '.join(parts)}" if parts else "neither clearly nearer than in the other spaces nor further away"
    return f"In the sparse space the training data lie {place}, seen from the answers generated in round {newest}."


def _above(lead: Any) -> bool:
    return bool(lead.low > 0)


def _below(lead: Any) -> bool:
    return bool(lead.high < 0)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


# --- points ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShiftPoint:
    """The response of a point: of the training data (kind 0 and 1), or generated (kind 2 and 3) with its pair."""

    kind: int
    text: str
    prompt: str
    generated: GeneratedPair | None = None

    @property
    def name(self) -> str:
        return KINDS[self.kind]


@dataclass(frozen=True, kw_only=True)
class ShiftPoints:
    """The points of both pictures in one order."""

    shift: Shift
    points: tuple[ShiftPoint, ...]

    @property
    def texts(self) -> list[str]:
        """The text of each point's hover box."""
        return [f"<b>{point.name}</b>{_outcome(point)}<br>{wrapped(point.text or 'text not kept', 60, 3)}" for point in self.points]

    def groups(self, colour: str) -> list[str]:
        """The group of each point, as the palette names it."""
        if colour == "kind":
            return [point.name for point in self.points]
        kept = {True: "generated, kept", False: "generated, dropped"}
        return ["training" if point.generated is None else kept[point.generated.fate == "kept"] for point in self.points]


def _outcome(point: ShiftPoint) -> str:
    if point.generated is None or point.generated.rewards is None:
        return ""
    return f", reward {number(point.generated.rewards[point.kind - 2], '+.2f')}, {point.generated.fate}"


def points_of(entry: Entry, round: RoundRecord) -> ShiftPoints:
    """The points of a round with the step shift; their texts are empty where the cache has lost them."""
    shift, model = _shift(round.steps[SHIFT]), align.measuring_model(entry)
    training = {} if model is None else _training(model)
    pairs = {pair.candidate.candidate_id: pair for pair in pairs_of(round)}
    points = []
    for kind, row in zip(shift.kind.tolist(), shift.row.tolist(), strict=True):
        if kind < 2:
            prompt, text = training.get(row, ("", ""))
            points.append(ShiftPoint(kind=kind, text=text, prompt=prompt))
            continue
        pair = pairs.get(shift.ids[row])
        candidate = None if pair is None else pair.candidate
        text = "" if candidate is None else (candidate.chosen, candidate.rejected)[kind - 2]
        points.append(ShiftPoint(kind=kind, text=text, prompt="" if candidate is None else prompt_text(candidate.prompt), generated=pair))
    return ShiftPoints(shift=shift, points=tuple(points))


@lru_cache(maxsize=4)
def _training(model: FittedModel) -> dict[int, tuple[str, str]]:
    """Prompt and text of each response of the fit, by its row; empty where the model keeps no texts."""
    try:
        known, pairs = model.responses, model.pairs
    except MissingError:
        return {}
    texts = {}
    for index, pair in enumerate(pairs):
        prompt = prompt_text(pair.prompt)
        texts[int(known.chosen_rows[index])] = (prompt, pair.chosen)
        texts[int(known.rejected_rows[index])] = (prompt, pair.rejected)
    return texts


def ids_of(points: ShiftPoints) -> np.ndarray:
    """The number of each point [n], which a click passes on."""
    return np.arange(len(points.points))


def no_matched(shifts: Mapping[int, Shift]) -> bool:
    """Whether no answers to training prompts were compared."""
    return MATCHED not in measures(shifts)

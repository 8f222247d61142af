"""How the reward or the margin in view splits over its texts: what core.explain made of it, for panes, bars and cards.
No Streamlit here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core.explain.latent_marks import latent_marks
from core.explain.latent_names import name_in_list
from core.explain.waterfall import Bar
from core.explain.words import Units, WordTable
from core.latents.labels import Labels
from workbench.frame.text_points import Point
from workbench.response.response_view import ResponseView

READERS = 4  # latents named beside a word


def words_of(view: ResponseView) -> Mapping[str, WordTable]:
    """The split of each text that stands side by side: of the margin, or each one's own reward. Empty where what is in
    view has none.
    """
    if view.name == "margin":
        pair = view.explained.pair
        return {} if pair is None or pair.words is None else pair.words.texts
    if view.response.words is None:
        return {}
    tables = {side: view.columns[side].words for side in view.panes}
    return {side: table for side, table in tables.items() if table is not None}


def units_of(view: ResponseView, level: str) -> dict[str, Units]:
    """Words, sentences or lines of each text."""
    return {side: table.units(level) for side, table in words_of(view).items()}


def scale_of(values: Mapping[str, np.ndarray]) -> float:
    """The value of the deepest shade, the same for all panes: the largest size."""
    return max((float(np.abs(of_side).max()) for of_side in values.values() if len(of_side)), default=0.0)


def latent_names(latent_ids: np.ndarray, labels: Labels) -> dict[int, str]:
    """What each latent is called."""
    return {int(latent): name_in_list(int(latent), labels.get(int(latent))) for latent in latent_ids}


def unit_readers(units: Units, latent_ids: np.ndarray) -> list[list[tuple[int, float]]]:
    """Of each unit the latents that read it most."""
    return [units.readers(number, latent_ids, READERS) for number in range(len(units.spans))]


def chosen_unit(view: ResponseView, units: Mapping[str, Units], point: Point | None) -> tuple[str, int] | None:
    """The side and number of the unit at a point; without a point the strongest one of what is in view."""
    if point is not None:
        number = units[point.pane].at(point.at) if point.pane in units else None
        return None if number is None else (point.pane, number)
    sides = [side for side in units if view.name == "margin" or side == view.response_name]
    strongest = max(sides, key=lambda side: np.abs(units[side].values).max(), default=None)
    return None if strongest is None else (strongest, int(np.abs(units[strongest].values).argmax()))


def reader_bars(units: Units, number: int, latent_ids: np.ndarray, labels: Labels) -> tuple[list[Bar], list[str]]:
    """A bar a latent: what it adds at one unit, the largest first; and what speaks against each there."""
    columns = {int(latent): column for column, latent in enumerate(latent_ids)}
    bars, marks = [], []
    for latent, value in units.readers(number, latent_ids):
        activation = None if units.activations is None else float(units.activations[number, columns[latent]])
        bars.append(Bar(label=name_in_list(latent, labels.get(latent)), value=value, kind="latents", latent_ids=(latent,)))
        marks.append(" · ".join(latent_marks(labels.get(latent), activation, figures=False)))
    return bars, marks


def bar_marks(view: ResponseView, bars: Sequence[Bar], labels: Labels) -> list[str]:
    """What speaks against the latent of each bar in what is in view, and whether the seeds disagree on the bar's sign."""
    marks = []
    for bar in bars:
        latent = bar.latent_id
        of_latent = () if latent is None else latent_marks(labels.get(latent), view.activation(latent), figures=False)
        marks.append(" · ".join([*of_latent, *([] if bar.agreed or bar.kind == "rest" else ["seeds disagree"])]))
    return marks

"""What the pages Latents and Latent show of a reward model: its selected latents at any K, their pages and labels.

At the K of the fit, the rows are those of the fit. At another K, they are selected again by the same separations, with
their stability. No Streamlit here; no engine is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from core.backbone.presets import neuronpedia_source
from core.config import LatentsConfig
from core.errors import MissingError
from core.explain.latent_effect import head_weights, response_curve
from core.explain.sentence import DETECTION
from core.latents import find_pages as latent_pages
from core.latents.label_book import labels_of
from core.latents.labels import Label, Labels, Score
from core.latents.pages import LatentPages
from core.reward.ranking import select, stability
from core.statistics.bootstrap import percentile_interval, resample_weights
from core.statistics.estimates import Estimate, mean_over_prompts
from core.statistics.significance import TOO_RARE
from core.types import json_value
from workbench.frame.chart_base import interval
from workbench.frame.models import FittedModel
from workbench.frame.tokens import TokenRow

# A page waits for its intervals: so many responses are drawn in all resamples together, within these numbers of
# resamples.
DRAWN, RESAMPLES = 4_000_000, (200, 2000)
COLUMNS = ("frequency_chosen", "frequency_rejected", "separation", "low", "high", "q_value", "held_out", "n_active")


@dataclass(frozen=True, kw_only=True)
class SelectedLatents:
    """The latents that K selects: `rows` of the table, best first on each side, and `marks`, the columns of the scatter
    over all latents that are active in any training response. `fitted`: whether K is that of the fit.
    """

    k: int
    fitted: bool
    rows: tuple[Mapping[str, Any], ...]
    marks: Mapping[str, Any]
    n_pairs: int
    n_prompts: int


def selection(model: FittedModel, k: int | None = None) -> SelectedLatents:
    """The selection at K; None: the K of the fit. If the cache has lost the frequencies, the fit's selected latents
    only.
    """
    fitted = int(model.about["selection"]["k"])
    k = fitted if k is None else k
    labels = labels_of(model)
    try:
        frequencies = model.frequencies
    except MissingError:
        return _without_frequencies(model, fitted, labels)
    ids, sides = (np.array(model.latents), selected_sides(model)) if k == fitted else select(frequencies.ranking, k)
    side = np.zeros(len(frequencies.chosen), dtype=np.int64)
    side[ids] = sides
    rows = _fitted_rows(model, labels) if k == fitted else rows_at(model, ids, sides, k, labels)
    ever = np.flatnonzero((frequencies.n_active > 0) | (side != 0))  # latents that are never active would all lie in one corner
    fields = {"frequency_chosen": "chosen", "frequency_rejected": "rejected", "separation": "separation", "q_value": "q_value"}
    marks: dict[str, Any] = {"latent_id": ever, **{name: getattr(frequencies, field)[ever] for name, field in fields.items()}}
    marks |= {"side": side[ever], "label": [label_text(labels, latent) for latent in ever.tolist()]}
    return SelectedLatents(k=k, fitted=k == fitted, rows=tuple(rows), marks=marks, n_pairs=frequencies.n_pairs, n_prompts=frequencies.n_prompts)


def possible_ks(model: FittedModel) -> list[int]:
    """The K of the fit and those of its curve, in order."""
    fitted = int(model.about["selection"]["k"])
    try:
        return sorted({fitted, *(int(point["k"]) for point in model.curve)})
    except MissingError:
        return [fitted]


def selected_sides(model: FittedModel) -> np.ndarray:
    return np.array([1 if row["side"] == "chosen" else -1 for row in model.selection], dtype=np.int64)


def _without_frequencies(model: FittedModel, k: int, labels: Labels) -> SelectedLatents:
    rows = _fitted_rows(model, labels)
    names = ("latent_id", "frequency_chosen", "frequency_rejected", "separation", "q_value")
    marks: dict[str, Any] = {name: np.array([np.nan if row[name] is None else row[name] for row in rows]) for name in names}
    marks |= {"side": selected_sides(model), "label": [row["label"] for row in rows]}
    about = model.about["selection"]
    return SelectedLatents(k=k, fitted=True, rows=tuple(rows), marks=marks, n_pairs=int(about["n_pairs"]), n_prompts=int(about["n_prompts"]))


def _fitted_rows(model: FittedModel, labels: Labels) -> list[dict[str, Any]]:
    weight, deviation, _ = weights(model)
    return [
        {
            **_row(row, labels),
            "stability": row["stability"],
            "detection_auroc": row.get("detection_auroc"),
            "weight": json_value(weight[i]),
            "weight_deviation": json_value(deviation[i]),
        }
        for i, row in enumerate(model.selection)
    ]


def rows_at(model: FittedModel, ids: np.ndarray, sides: np.ndarray, k: int, labels: Labels) -> list[dict[str, Any]]:
    frequencies = model.frequencies
    resamples = model.resamples
    stable = stability(resamples, ids, sides, k) if k <= resamples.chosen.shape[1] else np.full(len(ids), np.nan)
    values = {"chosen": "frequency_chosen", "rejected": "frequency_rejected", **{name: name for name in COLUMNS[2:]}}
    fitted = {row["latent_id"]: row for row in _fitted_rows(model, labels)}
    rows = []
    for latent, side, share in zip(ids.tolist(), sides.tolist(), stable.tolist(), strict=True):
        figures = {name: json_value(getattr(frequencies, field)[latent]) for field, name in values.items()}
        row = {"latent_id": latent, "side": "chosen" if side > 0 else "rejected", **figures}
        known = fitted.get(latent, {})
        further = {name: known.get(name) for name in ("detection_auroc", "weight", "weight_deviation")}
        rows.append({**_row(row, labels), "stability": json_value(share), **further})
    return rows


def _row(row: Mapping[str, Any], labels: Labels) -> dict[str, Any]:
    latent = int(row["latent_id"])
    label = labels.get(latent)
    words = {"label": label.text if label else "", "label_source": label.source if label else ""}
    return {"latent_id": latent, "side": row["side"], **words, **{name: row[name] for name in COLUMNS}}


def weights(model: FittedModel) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean size of each direction's contribution to the reward, its deviation over heads, and the number of held-out
    responses on which both were measured.
    """
    return _weights(model)


@lru_cache(maxsize=16)
def _weights(model: FittedModel) -> tuple[np.ndarray, np.ndarray, int]:
    try:
        return head_weights(model.parts, model.responses)
    except MissingError:
        return np.full(len(model.latents), np.nan), np.full(len(model.latents), np.nan), 0


@lru_cache(maxsize=16)
def held_out_separation(model: FittedModel) -> Estimate | None:
    """Mean separation of the model's own latents, each on its own side, on validation pairs, with its interval over
    prompts.

    None where the model keeps no responses, or they come from fewer than two prompts.
    """
    try:
        known = model.responses
    except MissingError:
        return None
    pairs = known.pairs_of_split("validation")
    active = np.where(known.activations > 0, selected_sides(model), 0).mean(axis=1)
    return mean_over_prompts(active[known.chosen_rows[pairs]] - active[known.rejected_rows[pairs]], known.groups[known.chosen_rows[pairs]])


# --- one latent ----------------------------------------------------------------------------------------------------


def column_of(model: FittedModel, latent: int) -> int | None:
    """The latent's place among the directions; None where the model does not read it."""
    return model.latents.index(latent) if latent in model.latents else None


def curve_of(model: FittedModel, latent: int) -> dict[str, Any] | None:
    """The reward as this latent's projection moves; None where the model does not read it, or keeps no responses."""
    column = column_of(model, latent)
    try:
        known = model.responses
    except MissingError:
        return None
    return None if column is None else dict(response_curve(model.parts, known, column).__dict__)


def figures_of(model: FittedModel, latent: int) -> Mapping[str, Any] | None:
    """The latent's row of the selection; for a latent that is not selected, its frequencies; None where the cache lost
    them.
    """
    column = column_of(model, latent)
    labels = labels_of(model)
    if column is not None:
        return _fitted_rows(model, labels)[column]
    try:
        frequencies = model.frequencies
    except MissingError:
        return None
    if not 0 <= latent < len(frequencies.chosen):
        return None
    fields = {"chosen": "frequency_chosen", "rejected": "frequency_rejected", **{name: name for name in COLUMNS[2:]}}
    row = {"latent_id": latent, "side": "", **{name: json_value(getattr(frequencies, field)[latent]) for field, name in fields.items()}}
    return {**_row(row, labels), "stability": None, "detection_auroc": None, "weight": None, "weight_deviation": None}


def detection(row: Mapping[str, Any]) -> tuple[str, str]:
    """The detection AUROC in words, and a warning where the projection shows the label poorly (METHOD.md section 1)."""
    if (row["n_active"] or 0) < TOO_RARE:
        return "too rare to say", f"active in {row['n_active'] or 0} training responses only: how well its projection tells that can't be said"
    auroc = row["detection_auroc"]
    if auroc is None:
        return "–", ""
    figure = f"{auroc:.2f}"
    weak = f"the projection tells only poorly ({figure}) whether the latent is active, so its label may not describe what moves the reward"
    return figure, weak if auroc < DETECTION else ""


def detection_interval(model: FittedModel, latent: int) -> tuple[float, float, int] | None:
    """The 95 % interval of the detection AUROC over prompts, and the number of training responses; None where none are
    kept.
    """
    column = column_of(model, latent)
    try:
        return None if column is None else _detection_interval(model, column)
    except MissingError:
        return None


@lru_cache(maxsize=256)
def _detection_interval(model: FittedModel, column: int) -> tuple[float, float, int] | None:
    known = model.responses
    rows = known.train
    ends = auroc_interval(known.activations[rows, column] > 0, known.projections[rows, column], known.groups[rows])
    return None if ends is None else (*ends, len(rows))


def auroc_interval(active: np.ndarray, values: np.ndarray, groups: np.ndarray) -> tuple[float, float] | None:
    """Percentile interval of the AUROC with which `values` separate active from inactive responses.

    All arrays are [n responses]. The bootstrap draws groups. None where all or none are active.
    """
    prompts = np.unique(groups, return_inverse=True)[1]
    silent = np.flatnonzero(~active)[np.argsort(values[~active])]
    if not 0 < len(silent) < len(active):
        return None
    first, last = (np.searchsorted(values[silent], values[active], side=side) for side in ("left", "right"))
    drawn = []
    for weights in resample_weights(int(prompts.max()) + 1, int(np.clip(DRAWN // len(active), *RESAMPLES))):
        times, others = weights[:, prompts[active]], weights[:, prompts[silent]]
        below = np.pad(np.cumsum(others, axis=1), ((0, 0), (1, 0)))
        wins = np.einsum("bi,bi->b", times, (below[:, first] + below[:, last]) / 2)  # a tie is half a win
        both = times.sum(axis=1) * below[:, -1]
        drawn.append(wins[both > 0] / both[both > 0])
    low, high = percentile_interval(np.concatenate(drawn))
    return float(low), float(high)


def n_latents(model: FittedModel) -> int | None:
    """How many latents the SAE has."""
    width = (model.config["sae"] or {}).get("d_sae")
    return int(width) if width else None


# --- pages of latents ----------------------------------------------------------------------------------------------


def find_pages(model: FittedModel, latents: Sequence[int] = (), *, every: bool = False) -> LatentPages | None:
    """The newest pages of the model's latents and of these; None where there are none.

    Pages with another number of tokens or another corpus are taken as well; a page says what it was made from.
    """
    pages = latent_pages.find_pages(model, LatentsConfig(), latents, every=every)
    return pages if pages is not None else latent_pages.find_any_pages(model, latents)


def token_rows(activations: Sequence[Mapping[str, Any]], sources: bool = True) -> list[TokenRow]:
    """Activating texts as rows of highlighted tokens."""
    return [
        TokenRow(
            texts=text["tokens"],
            values=text["values"],
            caption=f"{text['maxValue']:.2f}" + (f"  {text['dataSource']} {text['dataIndex']}" if sources else ""),
            muted=text["template"],
            peak=text["maxValueTokenIndex"],
        )
        for text in activations
    ]


def intervals(activations: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Activating texts by heading: the highest ones first, then interval by interval from the top."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for text in activations:
        share = f"{100 * text['binContains']:.1f} % of activations"
        name = "Highest" if text["binMin"] < 0 else f"{text['binMin']:.1f} to {text['binMax']:.1f}: {share}"
        groups.setdefault(name, []).append(text)
    return groups


# --- labels --------------------------------------------------------------------------------------------------------


def label_text(labels: Labels, latent: int) -> str:
    """A latent's label; empty where it has none."""
    label = labels.get(latent)
    return label.text + label.mark if label else ""


def label_rows(labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Labels as a table, best first."""
    return [
        {
            "label": label.text,
            "source": label.source,
            "by": ", ".join(part for part in (label.author or label.model or label.method, label.doubt) if part),
            "date": label.date[:10],
            "scores": "; ".join(map(score_text, label.scores)),
        }
        for label in labels
    ]


def score_text(score: Score) -> str:
    """`embedding 0.83 (0.76 to 0.89), n = 100`"""
    size = "" if score.n is None else f", n = {score.n:,}"
    return f"{score.method} {interval(score.value, score.low, score.high, '.2f')}{size}"


def neuronpedia_url(model: FittedModel, latent: int) -> str | None:
    """The address of the latent's page on neuronpedia.org; None where the SAE is not there."""
    source = neuronpedia_source(model.config["sae"] or {})
    return None if source is None else f"https://www.neuronpedia.org/{source[0]}/{source[1]}/{latent}"

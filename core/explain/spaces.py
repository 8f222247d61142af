"""Dense against sparse: do chosen and rejected responses lie apart in z and in v? A t-SNE picture, and figures.

1. Points: the responses of a fit (core.reward.fit_responses), at most `points`, drawn by whole prompts.
2. Pictures: t-SNE of z as it is and of v standardised (training mean and deviation), from the first two principal
   components, seeded.
3. Figures, in the spaces themselves, not in the pictures: accuracy of the k nearest neighbours' majority at telling
   chosen from rejected, and the silhouette of these two groups. Responses to the same prompt lie close together
   whatever their label, so a response's own prompt is left out of its neighbours and of its silhouette. Over held-out
   responses only: the directions of v were selected on the labels of the training responses.
4. Controls: as many random directions, isotropic and live decoder rows, standardised as v; z standardised, too; and the
   pictures' own figures, which show how much a picture adds or loses. Intervals by bootstrap over prompts, neighbours
   held fixed; differences are paired.

Only numpy is needed to read what was computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from core.config import SpacesConfig
from core.runs.values import load_value, save_value
from core.statistics.estimates import Estimate, mean_over_prompts
from core.types import JsonFields, Progress, no_progress

if TYPE_CHECKING:
    from core.reward.fit_responses import FitResponses

NAME = "spaces"
DENSE, SPARSE = "dense", "sparse"
FEWEST = 5  # points under which a t-SNE shows nothing: the principal components are shown
ROWS_AT_ONCE = 256  # rows of distances held at a time: 256 x 10,000 in float64 are 20 MB

Points = Float[np.ndarray, "n d"]


@dataclass(frozen=True, kw_only=True)
class SpaceFigures(JsonFields):
    """How far chosen and rejected lie apart in one space; None with responses to fewer than two prompts.

    `neighbours`: share of responses that most of their k nearest neighbours in other prompts are of one label with
    (chance: `Spaces.chance`). `silhouette`: from -1 to 1, 0 where the labels are mixed. `*_lead`: the sparse space's
    figure less this one's, paired.
    """

    neighbours: Estimate | None
    silhouette: Estimate | None
    neighbours_lead: Estimate | None = None
    silhouette_lead: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """Both pictures and all figures of a reward model.

    Point i is row `rows[i]` of the model's known responses: its label (1 chosen, -1 rejected, 0 both, in several
    pairs), the number of its prompt, and its split (0 train, 1 validation, 2 test, 3 unused). `figures` by space:
    dense, dense-standardised, sparse, random-isotropic, random-rows, picture-dense, picture-sparse; over `n_held_out`
    responses, `chance` being the share of their commoner label. `made` says how: perplexity, seed, initialisation,
    library, neighbours, and how many responses were left out.
    """

    FINITE: ClassVar[tuple[str, ...]] = ("dense", "sparse")

    rows: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    prompt: Int[np.ndarray, " n"]
    split: Int[np.ndarray, " n"]
    dense: Float[np.ndarray, "n 2"]
    sparse: Float[np.ndarray, "n 2"]
    figures: Mapping[str, SpaceFigures]
    n_held_out: int
    chance: float | None
    made: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The figures, without the points."""
        figures = {name: of_space.to_json() for name, of_space in self.figures.items()}
        return {"figures": figures, "n_points": len(self.rows), "n_held_out": self.n_held_out, "chance": self.chance, "made": dict(self.made)}


def save_spaces(folder: Path, spaces: Spaces) -> None:
    """Writes `spaces.safetensors` and `spaces.json`."""
    save_value(folder, NAME, spaces)


def load_spaces(folder: Path) -> Spaces:
    """What `save_spaces` wrote. Raises StoreError where it is damaged. Loads neither torch nor scikit-learn."""
    spaces: Spaces = load_value(folder, NAME, Spaces, SpaceFigures, Estimate)
    return spaces


def compare_spaces(
    known: FitResponses,
    z: Float[np.ndarray, "responses d_model"],
    random: Mapping[str, Sequence[Float[np.ndarray, "k d_model"]]],
    config: SpacesConfig,
    progress: Progress = no_progress,
) -> Spaces:
    """Pictures and figures. Row i of `z` (or a memory map) is row i of `known`; `random`: directions of each draw."""
    rows = sampled(known.groups, config.points, config.seed)
    label, groups = labels_of(known)[rows], known.groups[rows]
    train, held_out = (np.flatnonzero(np.isin(rows, some)) for some in (known.train, known.held_out))
    dense, sparse = np.asarray(z[rows], dtype=np.float32), standardised(known.projections[rows], train)
    pictures = {}
    for number, (name, values) in enumerate(((DENSE, dense), (SPARSE, sparse))):
        progress("t-SNE", number, 2, space=name)
        pictures[name] = picture(values, config)
    progress("t-SNE", 2, 2)
    labelled = held_out[label[held_out] != 0]
    spaces: dict[str, list[Points]] = {
        SPARSE: [sparse[labelled]],
        DENSE: [dense[labelled]],
        "dense-standardised": [standardised(dense, train)[labelled]],
    }
    spaces |= {name: [standardised(dense @ directions.T, train)[labelled] for directions in draws] for name, draws in random.items()}
    spaces |= {f"picture-{name}": [points[labelled]] for name, points in pictures.items()}
    return Spaces(
        rows=rows,
        label=label,
        prompt=groups,
        split=splits_of(known)[rows],
        dense=pictures[DENSE],
        sparse=pictures[SPARSE],
        figures=figures_of(spaces, label[labelled], groups[labelled], config.neighbours, progress),
        n_held_out=len(labelled),
        chance=float(max((label[labelled] > 0).mean(), (label[labelled] < 0).mean())) if len(labelled) else None,
        made={**config.result_fields(), **tsne_settings(len(rows), config), "n_left_out": len(known) - len(rows)},
    )


# --- points --------------------------------------------------------------------------------------------------------


def labels_of(known: FitResponses) -> Int[np.ndarray, " n"]:
    """1 where all pairs of a response chose it, -1 where all rejected it, else 0."""
    chosen, rejected = (np.bincount(rows, minlength=len(known)) > 0 for rows in (known.chosen_rows, known.rejected_rows))
    return chosen.astype(np.int64) - rejected.astype(np.int64)


def splits_of(known: FitResponses) -> Int[np.ndarray, " n"]:
    """The split of each response, as `known.split`: of several, that of its first pair."""
    splits = np.full(len(known), known.split.max(initial=0), dtype=np.int64)
    for rows in (known.chosen_rows, known.rejected_rows):
        splits[rows[::-1]] = known.split[::-1]
    return splits


def sampled(groups: Int[np.ndarray, " n"], most: int, seed: int) -> Int[np.ndarray, " m"]:
    """All points, or those of randomly drawn prompts as long as they are at most so many; in rising order."""
    if len(groups) <= most:
        return np.arange(len(groups))
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    drawn = order[np.cumsum(sizes[order]) <= most]
    return np.flatnonzero(np.isin(groups, drawn))


def standardised(values: Float[np.ndarray, "n d"], train: Int[np.ndarray, " m"]) -> Float[np.ndarray, "n d"]:
    """Values standardised by the rows `train` (all rows if there are none); constant columns become 0."""
    reference = values[train].astype(np.float64) if len(train) else values.astype(np.float64)
    mean, std = reference.mean(axis=0), reference.std(axis=0)
    return np.divide(values - mean, std, out=np.zeros(values.shape), where=std > 0)


# --- pictures ------------------------------------------------------------------------------------------------------


def picture(values: Float[np.ndarray, "n d"], config: SpacesConfig) -> Float[np.ndarray, "n 2"]:
    """Two coordinates of each point, float32: t-SNE, or principal components where points are too few for it."""
    from sklearn.manifold import TSNE

    if len(values) < FEWEST:
        return principal_components(values)
    tsne = TSNE(perplexity=tsne_settings(len(values), config)["perplexity"], init="pca", random_state=config.seed, n_jobs=1)
    return np.asarray(tsne.fit_transform(values.astype(np.float32)), dtype=np.float32)


def tsne_settings(n: int, config: SpacesConfig) -> dict[str, Any]:
    """How a picture of n points is made: as the config asks, or as few points allow."""
    import sklearn

    if n < FEWEST:
        return {"method": "principal components", "perplexity": 0.0, "initialisation": "principal components", "library": "numpy"}
    perplexity = min(float(config.perplexity), (n - 1) / 3)
    library = f"scikit-learn {sklearn.__version__}"
    return {"method": "t-SNE (Barnes-Hut)", "perplexity": perplexity, "initialisation": "principal components", "library": library}


def principal_components(values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n 2"]:
    """Coordinates of a few points along the two directions of most variance; 0 where they have none."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    left, length, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates = np.zeros((len(values), 2), dtype=np.float32)
    coordinates[:, : len(length)] = (left * length)[:, :2]
    return coordinates


# --- figures -------------------------------------------------------------------------------------------------------


def figures_of(
    spaces: Mapping[str, Sequence[Points]],
    label: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    k: int,
    progress: Progress = no_progress,
) -> dict[str, SpaceFigures]:
    """Figures of each space over the same points (labels 1, -1; prompts `groups`), averaged over a space's draws."""
    scores = {}
    for number, (name, draws) in enumerate(spaces.items()):
        progress("neighbours", number, len(spaces), space=name)
        scores[name] = np.mean([separation_scores(draw, label, groups, k) for draw in draws], axis=0)
    progress("neighbours", len(spaces), len(spaces))
    return {name: _figures(values, None if name == SPARSE else scores.get(SPARSE), groups) for name, values in scores.items()}


def _figures(values: Float[np.ndarray, "2 n"], sparse: Float[np.ndarray, "2 n"] | None, groups: Int[np.ndarray, " n"]) -> SpaceFigures:
    leads = (
        (None, None)
        if sparse is None
        else tuple(mean_over_prompts(sparse_score - score, groups) for sparse_score, score in zip(sparse, values, strict=True))
    )
    neighbours, silhouette = (mean_over_prompts(row, groups) for row in values)
    return SpaceFigures(neighbours=neighbours, silhouette=silhouette, neighbours_lead=leads[0], silhouette_lead=leads[1])


def separation_scores(points: Points, label: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], k: int) -> Float[np.ndarray, "2 n"]:
    """For each point whether most of its k nearest neighbours in other prompts share its label (1 or 0; ties are
    wrong), and its silhouette. Silhouette: (b - a) / max(a, b), with a the mean distance to the points of other prompts
    with its label, b to those with the other label. NaN for both where other prompts hold no point of either label.
    Euclidean distances, float64."""
    exact = points.astype(np.float64) - (points.mean(axis=0, dtype=np.float64) if len(points) else 0.0)
    square = np.square(exact).sum(axis=1)
    scores = np.full((2, len(points)), np.nan)
    for at in range(0, len(points), ROWS_AT_ONCE):
        rows = slice(at, at + ROWS_AT_ONCE)
        distance = np.sqrt(np.maximum(square[rows, None] + square[None] - 2 * exact[rows] @ exact.T, 0.0))
        other = groups[rows, None] != groups[None]
        scores[0, rows] = _neighbours_agree(distance, other, label[rows], label, k)
        scores[1, rows] = _silhouette(distance, other, label[rows], label)
    return scores


def _neighbours_agree(
    distance: Float[np.ndarray, "b n"], other: np.ndarray, row_label: Int[np.ndarray, " b"], label: Int[np.ndarray, " n"], k: int
) -> Float[np.ndarray, " b"]:
    allowed = np.where(other, distance, np.inf)
    k = min(k, allowed.shape[1])
    nearest = np.argpartition(allowed, k - 1, axis=1)[:, :k]
    counts = np.isfinite(np.take_along_axis(allowed, nearest, axis=1))
    votes = (label[nearest] * counts).sum(axis=1)
    return np.where(counts.any(axis=1), votes * row_label > 0, np.nan)


def _silhouette(
    distance: Float[np.ndarray, "b n"], other: np.ndarray, row_label: Int[np.ndarray, " b"], label: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " b"]:
    sides = np.stack([label == 1, label == -1], axis=1).astype(np.float64)
    total, count = (distance * other) @ sides, other.astype(np.float64) @ sides
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    same_side = (row_label != 1).astype(np.int64)[:, None]
    near, far = (np.take_along_axis(mean, column, axis=1)[:, 0] for column in (same_side, 1 - same_side))
    widest = np.maximum(near, far)
    return np.divide(far - near, widest, out=np.where(np.isnan(widest), np.nan, 0.0), where=widest > 0)

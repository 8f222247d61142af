"""How far generated answers lie from the training data: cosines in dense z and sparse v (METHOD.md 5, Figure 5).

For each generated answer, intended winner or other, against the training responses of its role (chosen, rejected):

    matched    mean cosine to the training responses to its own prompt, a training prompt (our reading of the figure)
    centroid   cosine to the mean of the training responses
    pairwise   mean cosine to them
    nearest    the largest cosine to one of them

Each in four spaces: dense z; sparse v = D z; v of as many isotropic random directions, which keep cosines; and of
random live decoder rows matched to the selected ones on activation frequency, which share what all rows of a dictionary
have in common, the real confounder. Each as it is, centred by the mean over training responses of both roles, and
standardised by their deviation as well. Of several draws of a control the mean is taken.

Intervals: bootstrap over the prompts of the generated answers, the training responses held fixed. `lead` is the sparse
space's cosine less another's for the same answer: a cosine says little by itself where spaces differ in dimension and
common component, so it is read against the controls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from core.config import SpacesConfig
from core.explain.spaces import picture, sampled, standardised, tsne_settings
from core.runs.values import load_value, save_value
from core.statistics.estimates import Estimate, mean_over_prompts
from core.types import JsonFields, Progress, json_value, no_progress

if TYPE_CHECKING:
    from core.reward.fit_responses import FitResponses
    from core.reward.model import SparseRM
    from core.types import LatentFrequencies

NAME = "shift"
DENSE, SPARSE, ISOTROPIC, ROWS = "dense", "sparse", "random-isotropic", "random-rows"
SPACES = (SPARSE, DENSE, ISOTROPIC, ROWS)
RAW, CENTRED, STANDARDISED = SCALES = ("raw", "centred", "standardised")
MATCHED, CENTROID, PAIRWISE, NEAREST = MEASURES = ("matched", "centroid", "pairwise", "nearest")
KINDS = ("training chosen", "training rejected", "generated intended winner", "generated other")
ROLES = 2
LIKE_FREQUENT = 10  # unused latents of nearest frequency among which a control's is drawn
ROWS_AT_ONCE = 512  # generated answers compared at a time: 512 x 100,000 cosines in float64 are 400 MB

Points = Float[np.ndarray, "n d"]


@dataclass(frozen=True, kw_only=True)
class GeneratedPairs:
    """A round's generated pairs that can be read: z of intended winner and other, `prompt_ids` as
    `core.reward.fit_responses.prompt_id`, and their names. `n_unread` more can't be read."""

    z: Float[np.ndarray, "n 2 d_model"]
    prompt_ids: Int[np.ndarray, " n"]
    ids: tuple[str, ...]
    n_unread: int = 0


@dataclass(frozen=True, kw_only=True)
class Cosine(JsonFields):
    """A mean cosine similarity over generated answers. `lead`: the sparse space's less it, None below two prompts."""

    measure: str
    space: str
    scale: str
    figure: Estimate | None
    lead: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Shift:
    """All cosines of a round, and a t-SNE picture of training and generated points together in both spaces.

    Point i is a training response (`kind` 0 chosen, 1 rejected), row `row[i]` of the model's known responses, or a
    generated answer (2 intended winner, 3 the other) of the pair `ids[row[i]]`. Pictures: z as it is, v standardised.
    `made` says how, and how many of either there were.
    """

    rows: tuple[Cosine, ...]
    ids: tuple[str, ...]
    kind: Int[np.ndarray, " m"]
    row: Int[np.ndarray, " m"]
    dense: Float[np.ndarray, "m 2"]
    sparse: Float[np.ndarray, "m 2"]
    made: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The figures, without the points."""
        return {"rows": json_value(self.rows), "made": json_value(self.made)}


def save_shift(folder: Path, shift: Shift) -> None:
    """Writes `shift.json` and `shift.safetensors`."""
    save_value(folder, NAME, shift)


def load_shift(folder: Path) -> Shift:
    """What `save_shift` wrote. Raises StoreError where it is damaged. Loads neither torch nor scikit-learn."""
    shift: Shift = load_value(folder, NAME, Shift, Cosine, Estimate)
    return shift


def compare_shift(
    generated: GeneratedPairs,
    known: FitResponses,
    z: Float[np.ndarray, "responses d_model"],
    spaces: Mapping[str, Sequence[Float[np.ndarray, "k d_model"]]],
    config: SpacesConfig,
    progress: Progress = no_progress,
) -> Shift:
    """Figures and pictures of one round. Row i of `z` (or a memory map) is row i of `known`."""
    roles = training_rows(known)
    rows = list(_cosines(generated, known, z, roles, {DENSE: [None], **spaces}, progress))
    kind, row, training = _points(known, roles, generated, config)
    answers = generated.z.reshape(-1, generated.z.shape[2])
    dense = np.concatenate([np.asarray(z[training], dtype=np.float32), answers.astype(np.float32)])
    sparse = standardised(dense.astype(np.float64) @ spaces[SPARSE][0].T.astype(np.float64), np.arange(len(training)))
    pictures = []
    for number, values in enumerate((dense, sparse)):
        progress("t-SNE", number, 2)
        pictures.append(picture(values, config))
    progress("t-SNE", 2, 2)
    counts = {
        "n_generated": len(generated.ids),
        "n_unread": generated.n_unread,
        "n_chosen": len(roles[0]),
        "n_rejected": len(roles[1]),
        "n_shown": len(training),
    }
    return Shift(
        rows=tuple(rows),
        ids=generated.ids,
        kind=kind,
        row=row,
        dense=pictures[0],
        sparse=pictures[1],
        made={**tsne_settings(len(kind), config), **counts, "seed": config.seed, "draws": {name: len(draws) for name, draws in spaces.items()}},
    )


# --- spaces --------------------------------------------------------------------------------------------------------


def shift_spaces(model: SparseRM, frequencies: LatentFrequencies | None, draws: int) -> dict[str, list[Float[np.ndarray, "k d_model"]]]:
    """The directions of every space but the dense one: a SparseRM's own, and `draws` of each control, draw i with seed
    i. Without frequencies (a cache that does not hold the fit's any more) there are no random decoder rows. Raises what
    loading the SAE raises."""
    from core.reward.projection import isotropic_directions

    directions, ids = model.parts.directions, model.parts.latent_ids
    assert directions is not None and ids is not None  # of a SparseRM
    k, width = directions.shape
    spaces = {SPARSE: [directions], ISOTROPIC: [isotropic_directions(k, width, seed) for seed in range(draws)]}
    if frequencies is None:
        return spaces
    return {**spaces, ROWS: [model.sae.directions(frequency_matched(frequencies, ids, seed)) for seed in range(draws)]}


def frequency_matched(frequencies: LatentFrequencies, selected: Int[np.ndarray, " k"], seed: int) -> Int[np.ndarray, " k"]:
    """For each selected latent another live one that is about as often active, each at most once: drawn among the
    nearest by log frequency. Where fewer than k others live, those that are active at all stand in, and then the
    selected ones themselves."""
    rng, used = np.random.default_rng(seed), np.zeros(len(frequencies.n_active), dtype=bool)
    used[selected] = True
    live, active = np.isfinite(frequencies.q_value), frequencies.n_active > 0
    pool = live if (live & ~used).sum() >= len(selected) else active
    used &= (pool & ~used).sum() >= len(selected)
    level = np.log(np.maximum(frequencies.n_active, 1))
    matched = np.zeros(len(selected), dtype=np.int64)
    for column in rng.permutation(len(selected)):
        free = np.flatnonzero(pool & ~used)
        near = free[np.argsort(np.abs(level[free] - level[selected[column]]), kind="stable")[:LIKE_FREQUENT]]
        matched[column] = rng.choice(near)
        used[matched[column]] = True
    return matched


def training_rows(known: FitResponses) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Rows of the known responses that training pairs chose, and of those that they rejected; one can be both."""
    train = known.pairs_of_split("train")
    return np.unique(known.chosen_rows[train]), np.unique(known.rejected_rows[train])


# --- cosines -------------------------------------------------------------------------------------------------------


def _cosines(
    generated: GeneratedPairs,
    known: FitResponses,
    z: Float[np.ndarray, "responses d_model"],
    roles: tuple[np.ndarray, np.ndarray],
    spaces: Mapping[str, Sequence[np.ndarray | None]],
    progress: Progress,
) -> Iterator[Cosine]:
    """Every space, scale and measure; None among a space's draws: z itself."""
    prompts = [(generated.prompt_ids, known.prompt_ids[rows]) for rows in roles]
    training = [np.asarray(z[rows], dtype=np.float64) for rows in roles]
    values: dict[tuple[str, str], np.ndarray] = {}
    for number, (space, draws) in enumerate(spaces.items()):
        progress("cosine similarity", number, len(spaces), space=space)
        by_draw = [_of_draw(generated.z.astype(np.float64), training, prompts, draw) for draw in draws]
        values |= {(space, scale): np.mean([draw[scale] for draw in by_draw], axis=0) for scale in SCALES}
    progress("cosine similarity", len(spaces), len(spaces))
    groups = np.repeat(np.unique(generated.prompt_ids, return_inverse=True)[1], ROLES)
    for (space, scale), cosines in values.items():
        for measure, cosine, sparse in zip(MEASURES, cosines, values[SPARSE, scale], strict=True):
            lead = None if space == SPARSE else mean_over_prompts(sparse - cosine, groups)
            yield Cosine(measure=measure, space=space, scale=scale, figure=mean_over_prompts(cosine, groups), lead=lead)


def _of_draw(
    answers: Float[np.ndarray, "n 2 d_model"],
    training: Sequence[np.ndarray],
    prompts: Sequence[tuple[np.ndarray, np.ndarray]],
    directions: np.ndarray | None,
) -> dict[str, Float[np.ndarray, "4 m"]]:
    """Every scale's measures of each answer, both roles of a pair side by side, in the space of some directions."""
    if directions is not None:
        columns = directions.astype(np.float64).T
        answers, training = answers @ columns, [states @ columns for states in training]
    whole = np.concatenate(list(training))
    mean, deviation = whole.mean(axis=0), whole.std(axis=0)
    measures = {}
    for scale in SCALES:
        centre = 0.0 if scale == RAW else mean
        unit = np.where(deviation > 0, deviation, np.inf) if scale == STANDARDISED else 1.0
        roles = [similarities((answers[:, role] - centre) / unit, (training[role] - centre) / unit, *prompts[role]) for role in range(ROLES)]
        measures[scale] = np.stack(roles, axis=2).reshape(len(MEASURES), -1)
    return measures


def similarities(
    answers: Points, training: Float[np.ndarray, "r d"], asked: Int[np.ndarray, " n"], answered: Int[np.ndarray, " r"]
) -> Float[np.ndarray, "4 n"]:
    """matched, centroid, pairwise and nearest of each answer; `asked` and `answered` are the prompts of both. NaN where
    there is nothing to compare with, or a vector is zero; training responses that are zero are left out."""
    units, answer_units = _units(training), _units(answers)
    usable = np.isfinite(units).all(axis=1)
    units, answered = units[usable], answered[usable]
    measures = np.full((len(MEASURES), len(answers)), np.nan)
    if not len(units):
        return measures
    centroid = _units(training.mean(axis=0, keepdims=True))[0]
    measures[1], measures[2] = answer_units @ centroid, answer_units @ units.mean(axis=0)
    for at in range(0, len(answers), ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        cosine, same = answer_units[part] @ units.T, asked[part, None] == answered[None]
        counts = same.sum(axis=1)
        measures[0, part] = np.divide((cosine * same).sum(axis=1), counts, out=np.full(len(counts), np.nan), where=counts > 0)
        measures[3, part] = cosine.max(axis=1)
    return measures


def _units(vectors: Points) -> Points:
    """Vectors of length one; NaN for a zero vector."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.full(vectors.shape, np.nan), where=length > 0)


# --- points --------------------------------------------------------------------------------------------------------


def _points(
    known: FitResponses, roles: tuple[np.ndarray, np.ndarray], generated: GeneratedPairs, config: SpacesConfig
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Int[np.ndarray, " t"]]:
    """Kind and row of every point, and the training rows among them: at most `config.points`, by whole prompts."""
    training, role = np.concatenate(roles), np.repeat(np.arange(ROLES), [len(rows) for rows in roles])
    drawn = sampled(np.unique(known.prompt_ids[training], return_inverse=True)[1], config.points, config.seed)
    answers = np.arange(len(generated.ids) * ROLES)
    kind = np.concatenate([role[drawn], ROLES + answers % ROLES])
    return kind, np.concatenate([training[drawn], answers // ROLES]), training[drawn]

"""From hidden states to a fitted SparseRM beside its controls (METHOD.md section 3).

    frequencies, resamples = latent_frequencies(hidden, pairs, sae, config.selection, largest_k(config))  # selection.py
    sparse = fit_sparserm(hidden, pairs, sae, frequencies, resamples, config)       # five seeds of each loss
    controls = fit_controls(hidden, pairs, sae, sparse.selected, frequencies, config)  # same rule of choice
    curve = accuracy_curve(hidden, pairs, sae, frequencies, resamples, config, known=...)  # curve.py, validation
    evaluation = evaluate_fit(pairs, sparse, controls)                              # the test split, read once

Everywhere row i of `hidden.chosen_rows` belongs to `pairs[i]`, whose split is `pairs.split[i]`. No disk, no globals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from core.config import FitConfig
from core.reward.controls import Probe, difference_of_means, length_only, linear_probe, wording_only
from core.reward.evaluation import Evaluation, ScoredMethod, evaluate
from core.reward.head import TrainedHead, fit_margin_scale, shipped_index
from core.reward.head_inputs import HeadTask, activation_task, dense_task, margins_of, random_tasks, sparse_task, train_tasks
from core.reward.hidden_states import HiddenStates
from core.reward.projection import detection_auroc, response_activations
from core.reward.ranking import Resamples
from core.reward.selection import Encoder, SelectionSummary, selected_directions, selection_summary
from core.reward.training import LOSSES, standardisation
from core.types import LatentFrequencies, PreferencePairs, Progress, SelectedDirections, no_progress

HEAD_CONTROLS = ("random-isotropic", "random-rows", "activations", "dense")


@dataclass(frozen=True, kw_only=True)
class HeadEnsemble:
    """Heads of one kind, one a seed (or one a draw of random directions), and what shipping one of them takes.

    `margins` are of every pair. `projection_mean`, `projection_std` (floored): the shipped head's inputs over training
    responses. `reward_quantiles`: 0th to 100th percentile of its rewards over held-out responses (test; validation
    where there is no test split). `margin_scale`: a, fitted on validation. `directions` and `latent_ids` are the
    shipped head's; None where its kind has none.
    """

    STORED_AS: ClassVar[str] = "Family"  # its name in the files of core.runs.values, of this version and of earlier ones
    FINITE: ClassVar[tuple[str, ...]] = ("margins", "projection_mean", "projection_std", "reward_quantiles", "directions")

    kind: str
    heads: tuple[TrainedHead, ...]
    shipped: int
    margins: Float[np.ndarray, "n_heads n_pairs"]
    projection_mean: Float[np.ndarray, " k"]
    projection_std: Float[np.ndarray, " k"]
    reward_quantiles: Float[np.ndarray, " 101"]
    margin_scale: float
    directions: Float[np.ndarray, "k d_model"] | None
    latent_ids: Int[np.ndarray, " k"] | None

    def scored_method(self) -> ScoredMethod:
        """What evaluation needs of it."""
        head = self.heads[self.shipped].head
        return ScoredMethod(kind=self.kind, margins=self.margins, shipped=self.shipped, n_parameters=head.n_parameters)


@dataclass(frozen=True, kw_only=True)
class SparseFit:
    """SparseRM: its directions, and an ensemble of heads for each loss; `loss` is the one that SparseRM itself uses.

    `detection` is, per selected latent, how well its projection separates active from inactive training responses
    (AUROC; NaN: too rare).
    """

    selected: SelectedDirections
    summary: SelectionSummary
    detection: Float[np.ndarray, " k"]
    losses: Mapping[str, HeadEnsemble]
    loss: str

    @property
    def sparserm(self) -> HeadEnsemble:
        return self.losses[self.loss]


@dataclass(frozen=True, kw_only=True)
class Controls:
    """The controls: `families` have heads and can be shipped, `probes` have none."""

    families: Mapping[str, HeadEnsemble]
    probes: tuple[Probe, ...]


def largest_k(config: FitConfig) -> int:
    """The largest K that a fit asks for: how far intervals and resamples must reach."""
    return max(config.selection.k, *config.curve)


def fit_sparserm(
    hidden: HiddenStates,
    pairs: PreferencePairs,
    sae: Encoder,
    frequencies: LatentFrequencies,
    resamples: Resamples,
    config: FitConfig,
    progress: Progress = no_progress,
) -> SparseFit:
    """Selects, projects and trains `config.head.seeds` heads with each of the three losses."""
    selected = selected_directions(frequencies, resamples, sae, config.selection.k)
    tasks = sparse_task(hidden, selected).seeds(config.head.seeds)
    heads = train_tasks(tasks * len(LOSSES), pairs, config.head, [loss for loss in LOSSES for _ in tasks], progress, "heads")
    active = response_activations(hidden, selected.latent_ids, sae) > 0
    seen = _responses(hidden, pairs.rows_of("train"))
    return SparseFit(
        selected=selected,
        summary=selection_summary(frequencies, selected, config.selection.k),
        detection=detection_auroc(tasks[0].inputs.values[seen], active[seen]),
        losses={loss: _ensemble(tasks, [head for head in heads if head.loss == loss], hidden, pairs) for loss in LOSSES},
        loss=config.head.loss,
    )


def fit_controls(
    hidden: HiddenStates,
    pairs: PreferencePairs,
    sae: Encoder,
    selected: SelectedDirections,
    frequencies: LatentFrequencies,
    config: FitConfig,
    progress: Progress = no_progress,
) -> Controls:
    """Every control of METHOD.md's table, on the same split by the same rule; as many random directions as selected."""
    tasks = random_tasks(hidden, sae, frequencies, len(selected.latent_ids), config.random_draws)
    tasks += [*activation_task(hidden, selected, sae).seeds(config.head.seeds), *dense_task(hidden).seeds(config.head.seeds)]
    heads = train_tasks(tasks, pairs, config.head, [config.head.loss] * len(tasks), progress, "controls")
    families = {}
    for kind in HEAD_CONTROLS:
        numbers = [i for i, task in enumerate(tasks) if task.kind == kind]
        families[kind] = _ensemble([tasks[i] for i in numbers], [heads[i] for i in numbers], hidden, pairs)
    return Controls(families=families, probes=_probes(hidden, pairs))


def _probes(hidden: HiddenStates, pairs: PreferencePairs) -> tuple[Probe, ...]:
    train, validation = pairs.rows_of("train"), pairs.rows_of("validation")
    return (
        difference_of_means(hidden, train),
        linear_probe(hidden, train, validation),
        wording_only(pairs, train, validation),
        length_only(hidden, train),
    )


def evaluate_fit(pairs: PreferencePairs, sparse: SparseFit, controls: Controls) -> Evaluation:
    """The table on the test pairs: SparseRM, every control, and the three losses."""
    losses = {loss: ensemble.scored_method() for loss, ensemble in sparse.losses.items()}
    beside = [ensemble.scored_method() for ensemble in controls.families.values()]
    probes = [
        ScoredMethod(kind=probe.kind, margins=probe.margins[None], shipped=0, n_parameters=probe.n_parameters, note=probe.note)
        for probe in controls.probes
    ]
    return evaluate(pairs, losses[sparse.loss], [*beside, *probes], losses)


def _ensemble(tasks: Sequence[HeadTask], heads: Sequence[TrainedHead], hidden: HiddenStates, pairs: PreferencePairs) -> HeadEnsemble:
    shipped = shipped_index(heads)
    task, validation = tasks[shipped], pairs.rows_of("validation")
    margins = np.stack([margins_of(head, head_task.inputs) for head, head_task in zip(heads, tasks, strict=True)])
    scale = standardisation(task.inputs, pairs.rows_of("train"))
    rewards = heads[shipped].head.reward(task.inputs.values[_held_out_responses(hidden, pairs)])
    return HeadEnsemble(
        kind=task.kind,
        heads=tuple(heads),
        shipped=shipped,
        margins=margins,
        projection_mean=scale.mean.astype(np.float32),
        projection_std=scale.std.astype(np.float32),
        reward_quantiles=np.quantile(rewards, np.linspace(0, 1, 101)).astype(np.float32),
        margin_scale=fit_margin_scale(margins[shipped, validation]),
        directions=task.directions,
        latent_ids=task.latent_ids,
    )


def _held_out_responses(hidden: HiddenStates, pairs: PreferencePairs) -> Int[np.ndarray, " n"]:
    """The responses of the test pairs; of the validation pairs where there are none."""
    test = pairs.rows_of("test")
    return _responses(hidden, test if len(test) else pairs.rows_of("validation"))


def _responses(hidden: HiddenStates, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Rows of the distinct responses of these pairs."""
    return np.unique(np.concatenate([hidden.chosen_rows[rows], hidden.rejected_rows[rows]]))

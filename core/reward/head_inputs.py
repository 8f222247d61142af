"""The inputs of each kind of head. SparseRM and its controls differ in nothing else (METHOD.md section 3, controls)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from core.config import HeadConfig
from core.reward.head import TrainedHead
from core.reward.hidden_states import HiddenStates
from core.reward.projection import isotropic_directions, project, random_live_latents, response_activations
from core.reward.selection import Encoder
from core.reward.training import HeadJob, identical_inputs, train_heads
from core.types import HeadInputs, LatentFrequencies, PreferencePairs, Progress, SelectedDirections


@dataclass(frozen=True, kw_only=True)
class HeadTask:
    """A head to train: kind, inputs, and seed of weights, order of pairs and random directions. Column i of
    `inputs.values` belongs to `directions[i]` and `latent_ids[i]`, where the kind has them."""

    kind: str
    seed: int
    inputs: HeadInputs
    directions: Float[np.ndarray, "k d_model"] | None = None
    latent_ids: Int[np.ndarray, " k"] | None = None

    def seeds(self, n: int) -> list[HeadTask]:
        """The same task for n seeds."""
        return [replace(self, seed=seed) for seed in range(n)]

    def columns(self, which: Int[np.ndarray, " n"]) -> HeadTask:
        """The task on these columns of its inputs only."""
        inputs = replace(self.inputs, values=np.ascontiguousarray(self.inputs.values[:, which]))
        directions = None if self.directions is None else self.directions[which]
        return replace(self, inputs=inputs, directions=directions, latent_ids=None if self.latent_ids is None else self.latent_ids[which])


def sparse_task(hidden: HiddenStates, selected: SelectedDirections) -> HeadTask:
    """SparseRM: projections on the selected directions."""
    inputs = _inputs(hidden, project(hidden.states, selected.directions))
    return HeadTask(kind="sparserm", seed=0, inputs=inputs, directions=selected.directions, latent_ids=selected.latent_ids)


def activation_task(hidden: HiddenStates, selected: SelectedDirections, sae: Encoder) -> HeadTask:
    """SAE activations f_j of the selected latents."""
    return HeadTask(
        kind="activations", seed=0, inputs=_inputs(hidden, response_activations(hidden, selected.latent_ids, sae)), latent_ids=selected.latent_ids
    )


def dense_task(hidden: HiddenStates) -> HeadTask:
    """All of z (DenseRM)."""
    return HeadTask(kind="dense", seed=0, inputs=_inputs(hidden, hidden.states))


def random_tasks(hidden: HiddenStates, sae: Encoder, frequencies: LatentFrequencies, n: int, draws: int) -> list[HeadTask]:
    """Draws of n random directions of both kinds, draw i with seed i; all rows where fewer than n latents live."""
    tasks = []
    for seed in range(draws):
        isotropic = isotropic_directions(n, hidden.d_model, seed)
        tasks.append(HeadTask(kind="random-isotropic", seed=seed, inputs=_inputs(hidden, project(hidden.states, isotropic)), directions=isotropic))
        ids = random_live_latents(frequencies, n, seed)
        rows = np.asarray(sae.directions(ids), dtype=np.float32)
        tasks.append(HeadTask(kind="random-rows", seed=seed, inputs=_inputs(hidden, project(hidden.states, rows)), directions=rows, latent_ids=ids))
    return tasks


def _inputs(hidden: HiddenStates, values: np.ndarray) -> HeadInputs:
    return HeadInputs(values=values, chosen_rows=hidden.chosen_rows, rejected_rows=hidden.rejected_rows)


def train_tasks(
    tasks: Sequence[HeadTask], pairs: PreferencePairs, config: HeadConfig, losses: Sequence[str], progress: Progress, step: str
) -> list[TrainedHead]:
    """A head for each task with the loss beside it, trained on `train` pairs, judged on `validation` pairs."""
    jobs = [HeadJob(inputs=task.inputs, seed=task.seed, loss=loss) for task, loss in zip(tasks, losses, strict=True)]
    train, validation = pairs.rows_of("train"), pairs.rows_of("validation")
    return train_heads(jobs, train=train, validation=validation, config=config, progress=progress, step=step)


def margins_of(head: TrainedHead, inputs: HeadInputs, rows: Int[np.ndarray, " n"] | None = None) -> Float[np.ndarray, " n"]:
    """s_w - s_l of these pairs (all, without `rows`), in float64; exactly 0 where the head sees twice the same."""
    asked = np.arange(len(inputs.chosen_rows)) if rows is None else rows
    used, places = np.unique(np.stack([inputs.chosen_rows[asked], inputs.rejected_rows[asked]]), return_inverse=True)
    rewards = head.head.reward(inputs.values if len(used) == len(inputs.values) else inputs.values[used])[places]
    return np.where(identical_inputs(inputs, asked), 0.0, rewards[0] - rewards[1])

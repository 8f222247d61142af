"""Validation accuracy against K: top-K directions beside random ones and activations (METHOD.md section 3).

On a backbone of 576 dimensions, 256 directions of any kind span nearly half the space: a small K shows more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from core.config import FitConfig
from core.reward.evaluation import accuracy_of
from core.reward.head_inputs import HeadTask, activation_task, margins_of, random_tasks, sparse_task, train_tasks
from core.reward.hidden_states import HiddenStates
from core.reward.projection import top_columns
from core.reward.ranking import Resamples
from core.reward.selection import Encoder, selected_directions
from core.types import Accuracy, LatentFrequencies, PreferencePairs, Progress, no_progress

CURVE_KINDS = ("sparserm", "random-isotropic", "random-rows", "activations")


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Mean validation accuracy of `n_heads` heads at one K, and their deviation; `n_directions` is k_w + k_l."""

    kind: str
    k: int
    n_directions: int
    accuracy: Accuracy
    deviation: float | None
    n_heads: int

    def to_json(self) -> dict[str, Any]:
        rest = {"kind": self.kind, "k": self.k, "n_directions": self.n_directions, "deviation": self.deviation, "n_heads": self.n_heads}
        return {**rest, **self.accuracy.to_json()}


def accuracy_curve(
    hidden: HiddenStates,
    pairs: PreferencePairs,
    sae: Encoder,
    frequencies: LatentFrequencies,
    resamples: Resamples,
    config: FitConfig,
    *,
    seeds: int = 1,
    draws: int = 1,
    known: Mapping[str, Float[np.ndarray, "_ n_pairs"]] | None = None,
    progress: Progress = no_progress,
) -> tuple[CurvePoint, ...]:
    """Validation accuracy at each K of `config.curve`, for each of CURVE_KINDS. In a fit one seed and one draw, in a
    sweep all of them. `known`: margins per kind [heads, pairs] of what was fitted at K = `config.selection.k`; its
    first heads are these very heads, so they are not trained again. Values of K at which the selection is the same (too
    few latents separate the sides) share one training."""
    selected = selected_directions(frequencies, resamples, sae, max(config.curve))
    tasks = [*sparse_task(hidden, selected).seeds(seeds), *activation_task(hidden, selected, sae).seeds(seeds)]
    tasks += random_tasks(hidden, sae, frequencies, len(selected.latent_ids), draws)
    validation = pairs.rows_of("validation")
    done: dict[int, list[CurvePoint]] = {}
    points: list[CurvePoint] = []
    for number, k in enumerate(config.curve):
        columns = top_columns(selected, k)
        if len(columns) not in done:
            margins = _known_margins(known, seeds, draws, validation) if known and k == config.selection.k else None
            margins = margins or _margins(_narrow(tasks, columns), pairs, config, _part(progress, number, len(config.curve)))
            done[len(columns)] = [_point(kind, k, len(columns), margins[kind], pairs) for kind in CURVE_KINDS]
        points += [replace(point, k=k) for point in done[len(columns)]]
        progress("curve", number + 1, len(config.curve))
    return tuple(points)


def _narrow(tasks: list[HeadTask], columns: np.ndarray) -> list[HeadTask]:
    """The tasks at a smaller K: the selection's own columns, as many of the random ones; seeds share their inputs."""
    narrowed: dict[int, HeadTask] = {}
    for task in tasks:
        which = np.arange(min(len(columns), task.inputs.values.shape[1])) if task.kind.startswith("random") else columns
        narrowed.setdefault(id(task.inputs), task.columns(which))
    return [replace(narrowed[id(task.inputs)], seed=task.seed) for task in tasks]


def _margins(tasks: list[HeadTask], pairs: PreferencePairs, config: FitConfig, progress: Progress) -> dict[str, np.ndarray]:
    """Validation margins of a head for each task, by kind."""
    validation = pairs.rows_of("validation")
    heads = train_tasks(tasks, pairs, config.head, [config.head.loss] * len(tasks), progress, "curve")
    margins = [margins_of(head, task.inputs, validation) for head, task in zip(heads, tasks, strict=True)]
    return {kind: np.stack([row for row, task in zip(margins, tasks, strict=True) if task.kind == kind]) for kind in CURVE_KINDS}


def _known_margins(known: Mapping[str, np.ndarray], seeds: int, draws: int, validation: np.ndarray) -> dict[str, np.ndarray] | None:
    wanted = {kind: draws if kind.startswith("random") else seeds for kind in CURVE_KINDS}
    if any(kind not in known or len(known[kind]) < n for kind, n in wanted.items()):
        return None
    return {kind: known[kind][:n, validation] for kind, n in wanted.items()}


def _point(kind: str, k: int, n_directions: int, margins: np.ndarray, pairs: PreferencePairs) -> CurvePoint:
    shares = (margins > 0).mean(axis=1)
    return CurvePoint(
        kind=kind,
        k=k,
        n_directions=n_directions,
        accuracy=accuracy_of(margins, pairs.prompt_groups()[pairs.rows_of("validation")]),
        deviation=float(shares.std(ddof=1)) if len(shares) > 1 else None,
        n_heads=len(shares),
    )


def _part(progress: Progress, number: int, of: int) -> Progress:
    """Progress of one K as a share of the curve's."""

    def report(step: str, done: float, total: float, **figures: Any) -> None:
        progress(step, number + done / total, of, **figures)

    return report

"""From preference pairs to an evaluated reward model: the steps in order. A newcomer reads this file first.

    pairs          the rows are read, checked and split by prompt                           core.data
    extraction     z of every distinct response after layer L: the only slow step           core.reward.extraction
    frequencies    how often each latent is active on either side; sign tests; bootstrap    core.reward.selection
    heads          the K + K latents, their projections, five heads a loss                  core.reward.fitting
    controls       random directions, activations, dense, probes, wording, length           core.reward.fitting
    curve          validation accuracy against K                                            core.reward.curve
    evaluation     the test split, read once                                                core.reward.evaluation
    (pair counts)  how many pairs were left out, where and why: shown beside every figure   core.reward.pair_counts
    known          what explaining needs of every response                                  core.reward.fit_responses
    reward_model   the folder that scores, each control beside it, faithfulness            core.reward.parts_files
    (evidence)     pages of the selected latents, where whole responses were read          core.latents.fit_evidence

The steps are pure functions of inputs, config and progress. `core.fit.steps` wraps each with the store, so results are
computed once, and a killed run continues where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import FitConfig
from core.errors import ConfigError
from core.files import read_json
from core.fit.steps import Steps
from core.reward.fitting import largest_k
from core.reward.recorded_files import read_config
from core.runs.store import MANIFEST, Store, publish_folder
from core.types import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class FitOutcome:
    """A finished fit: the model's folder, the table (`Evaluation.to_json`, NaN as None, with `pair_counts`), the curve,
    and the seconds that each step took now."""

    artefact: Path
    evaluation: Mapping[str, Any]
    curve: tuple[Mapping[str, Any], ...]
    about: Mapping[str, Any]
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """One object for machines; wherever `accuracy` stands, `low`, `high` and `n` stand beside it."""
        head = {"artefact": str(self.artefact), "seconds": dict(self.seconds), "about": dict(self.about)}
        return {**head, **self.evaluation, "curve": list(self.curve)}


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """Validation accuracy of every layer, K and kind of direction (`CurvePoint.to_json` and `layer`), and the best
    SparseRM. `pair_counts`: how many pairs were left out (core.reward.pair_counts), the same for every layer."""

    points: tuple[Mapping[str, Any], ...]
    best: Mapping[str, Any]
    pair_counts: Mapping[str, Any]
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        head = {"best": dict(self.best), "points": list(self.points)}
        return {**head, "pair_counts": dict(self.pair_counts), "seconds": dict(self.seconds)}


def fit(config: FitConfig, store: Store, progress: Progress = no_progress) -> FitOutcome:
    """Everything from pairs to reward model; `config` names pairs, backbone and SAE (core.fit.defaults). Raises the
    errors of core.errors, and what `progress` raises to cancel."""
    work = Steps(config=config, store=store, progress=progress)
    pairs = work.pairs()
    work.check_sae()
    states = work.extraction(pairs, work.layer_sae)[config.backbone.layer]
    work.say_pair_counts(pairs, states)
    frequencies = work.frequencies(pairs, states, largest_k(config))
    heads = work.heads(pairs, states, frequencies)
    controls = work.controls(pairs, states, frequencies, heads)
    curve = work.curve(pairs, states, frequencies, (heads, controls))
    evaluation = work.evaluation(pairs, states, heads, controls)
    known = work.known(pairs, states, heads)
    reward_model = work.reward_model(pairs, states, frequencies, heads, controls, curve, evaluation, known)
    work.evidence(pairs, states, heads)
    return FitOutcome(
        artefact=reward_model.path,
        evaluation=read_json(evaluation.file("evaluation.json")),
        curve=tuple(read_json(curve.file("curve.json"))),
        about=reward_model.facts,
        seconds=work.seconds,
    )


def sweep(configs: Sequence[FitConfig], store: Store, progress: Progress = no_progress) -> SweepOutcome:
    """Layers x K (`curve`) from one extraction, judged on validation with all seeds and draws; the test split is not
    read. `configs`: one a layer, otherwise alike but for the SAE."""
    works = [Steps(config=config, store=store, progress=progress) for config in configs]
    pairs = works[0].pairs()
    for work in works:
        work.check_sae()
    states = works[0].extraction(pairs, {layer: sae for work in works for layer, sae in work.layer_sae.items()})
    counts = works[0].say_pair_counts(pairs, states[works[0].config.backbone.layer])
    points: list[dict[str, Any]] = []
    for work in works:
        layer = work.config.backbone.layer
        frequencies = work.frequencies(pairs, states[layer], max(work.config.curve))
        curve = work.curve(pairs, states[layer], frequencies)
        points += [{"layer": layer, **point} for point in read_json(curve.file("curve.json"))]
    best = max((point for point in points if point["kind"] == "sparserm"), key=lambda point: (point["accuracy"], -point["k"]))
    seconds = {step: sum(work.seconds.get(step, 0.0) for work in works) for step in ("pairs", "extraction", "frequencies", "curve")}
    return SweepOutcome(points=tuple(points), best=best, pair_counts=counts, seconds=seconds)


def copy_out(artefact: Path, target: Path) -> Path:
    """A copy of a model's folder, whole or not at all. ConfigError: `target` exists; StoreError: damaged source."""
    if target.exists():
        raise ConfigError(f"{target} exists already", remedy="give a new folder, or remove this one")
    for folder in (artefact, *sorted((artefact / "controls").glob("*"))):
        read_config(folder)

    def copy(folder: Path) -> None:
        shutil.copytree(artefact, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))

    return publish_folder(target, copy)

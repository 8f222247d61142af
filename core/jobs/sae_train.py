"""`sae train` as a kind of run: a sparse autoencoder on a backbone's activations (core.sae.training)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from core.backbone.estimate import Estimate, estimate_training
from core.backbone.source import backbone_identity, find_model
from core.by_name import load
from core.config import SAETrainConfig
from core.files import read_json
from core.fit.defaults import absolute
from core.jobs.job import Job, Say, width_of
from core.runs.store import Store
from core.types import Progress

EMBEDDED_CORPUS = SAETrainConfig().corpus


def _complete(config: SAETrainConfig, store: Store, say: Say) -> SAETrainConfig:
    corpus, measure = (
        ",".join(name if name == EMBEDDED_CORPUS else absolute(name) for name in map(str.strip, text.split(",")))
        for text in (config.corpus, config.measure)
    )
    init, out = (str(Path(folder).expanduser().resolve()) if folder else "" for folder in (config.init, config.out))
    backbone = replace(config.backbone, model=absolute(config.backbone.model))
    return replace(config, corpus=corpus, measure=measure, init=init, out=out, backbone=backbone)


def _disk(config: SAETrainConfig, root: Path) -> float:
    """Bytes: two checkpoints of weights and Adam's moments, and the result."""
    weights = 2 * config.width * width_of(config.backbone, root)
    return weights * (2 * 3 * 4 + 2.0)


def _plan(config: SAETrainConfig, store: Store, progress: Progress) -> Estimate:
    source = find_model(config.backbone, progress=progress)
    return estimate_training(config, source, backbone_identity(config.backbone, source))


def _run(config: SAETrainConfig, store: Store, progress: Progress) -> dict[str, Any]:
    folder = load("core.sae.training:train_sae")(config, root=store.root, progress=progress)
    card = read_json(folder / load("core.sae.training:CARD"))
    return {"artefact": str(folder), "outcome": {"artefact": str(folder), "card": card}}


SAE_TRAIN = Job(
    complete=_complete,
    backbone=lambda config: config.backbone,
    disk=_disk,
    inputs=lambda config: [name.strip() for name in f"{config.corpus},{config.measure}".split(",") if name.strip()],
    plan=_plan,
    run=_run,
)

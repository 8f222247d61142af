"""`sweep` as a kind of run: layers x K from one extraction, judged on validation (core.fit.pipeline.sweep)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.backbone.estimate import Estimate
from core.by_name import load
from core.config import FitConfig, SweepConfig
from core.fit.defaults import check_sweep, complete_sweep
from core.jobs.fit import FIT
from core.jobs.job import Job, Say
from core.runs.store import Store
from core.types import Progress


def _complete(config: SweepConfig, store: Store, say: Say) -> SweepConfig:
    """The same config with each layer's SAE named; completing it again changes nothing."""
    configs = complete_sweep(config, store, say)
    named = replace(config, fit=replace(configs[0], curve=config.fit.curve), layers=tuple(fit.backbone.layer for fit in configs))
    if config.saes or len(configs) > 1:
        saes = tuple(fit.sae.path or f"{fit.sae.release}:{fit.sae.sae_id}" for fit in configs)
        return replace(named, saes=saes)
    return named


def _configs(config: SweepConfig, store: Store) -> tuple[FitConfig, ...]:
    return complete_sweep(config, store, lambda _: None)


def _plan(config: SweepConfig, store: Store, progress: Progress) -> Estimate:
    configs = _configs(config, store)
    works = [load("core.fit.steps:Steps")(config=fit, store=store, progress=progress) for fit in configs]
    estimate: Estimate = works[0].estimate(works[0].pairs(), {layer: sae for work in works for layer, sae in work.layer_sae.items()})
    return estimate


def _run(config: SweepConfig, store: Store, progress: Progress) -> dict[str, Any]:
    return {"artefact": None, "outcome": load("core.fit.pipeline:sweep")(_configs(config, store), store, progress).to_json()}


SWEEP = Job(
    complete=_complete,
    backbone=lambda config: config.fit.backbone,
    disk=lambda config, root: max(len(config.layers), 1) * FIT.disk(config.fit, root),
    inputs=lambda config: [config.fit.data.pairs],
    plan=_plan,
    run=_run,
    check=check_sweep,
)

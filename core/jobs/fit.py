"""`fit` as a kind of run: from preference pairs to an evaluated reward model (core.fit.pipeline)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.backbone.estimate import Estimate
from core.by_name import load
from core.config import FitConfig
from core.fit.defaults import check, complete
from core.jobs.job import Job, count_rows, width_of
from core.runs.store import Store
from core.types import Progress


def _disk(config: FitConfig, root: Path) -> float:
    """Bytes: chosen and rejected states in float32, shards beside the merged file."""
    return 2 * 2 * count_rows(config.data) * width_of(config.backbone, root) * 4.0


def _plan(config: FitConfig, store: Store, progress: Progress) -> Estimate:
    work = load("core.fit.steps:Steps")(config=config, store=store, progress=progress)
    estimate: Estimate = work.estimate(work.pairs(), work.layer_sae)
    return estimate


def _run(config: FitConfig, store: Store, progress: Progress) -> dict[str, Any]:
    outcome = load("core.fit.pipeline:fit")(config, store, progress)
    return {"artefact": str(outcome.artefact), "outcome": outcome.to_json()}


FIT = Job(
    complete=complete,
    backbone=lambda config: config.backbone,
    disk=_disk,
    inputs=lambda config: [config.data.pairs],
    plan=_plan,
    run=_run,
    check=check,
)

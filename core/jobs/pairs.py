"""`pairs` as a kind of run: the check of preference pairs before anything is fitted on them (core.fit.pairs_check)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.backbone.estimate import Estimate
from core.by_name import load
from core.config import BackboneConfig, PairsRunConfig
from core.data.sources import check_source
from core.fit.defaults import DEMO_PAIRS, absolute
from core.jobs.job import Job
from core.runs.store import Store
from core.types import Progress

# No device is used. A queue is named after a device, so this name makes checks of pairs wait for one another only, never for a fit.
NO_DEVICE = BackboneConfig(device="text")
BYTES_A_SECOND = 2e6


def completed(config: PairsRunConfig) -> PairsRunConfig:
    """With the embedded pairs where none are named, and the path made absolute."""
    return replace(config, data=replace(config.data, pairs=absolute(config.data.pairs or str(DEMO_PAIRS))))


def _size(config: PairsRunConfig) -> float:
    path = Path(config.data.pairs).expanduser()
    return float(path.stat().st_size) if config.data.pairs and path.is_file() else 1e6


def _check(config: PairsRunConfig, store: Store) -> None:
    if config.data.pairs:
        check_source(config.data.pairs)


def _run(config: PairsRunConfig, store: Store, progress: Progress) -> Mapping[str, Any]:
    checked = load("core.fit.pairs_check:check_pairs")(config.data, store, progress)
    return {"artefact": str(checked.path), "outcome": {"artefact": str(checked.path), **checked.facts}}


PAIRS = Job(
    complete=lambda config, store, say: completed(config),
    backbone=lambda config: NO_DEVICE,
    disk=lambda config, root: 2 * _size(config),
    inputs=lambda config: [config.data.pairs],
    plan=lambda config, store, progress: Estimate(memory=0.0, disk=2 * _size(config), seconds=_size(config) / BYTES_A_SECOND),
    run=_run,
    check=_check,
)

"""`spaces` as a kind of run: t-SNE pictures of dense and sparse, and the figures beside them (core.explain.spaces)."""

from __future__ import annotations

from typing import Any

from core.by_name import load
from core.config import SpacesRunConfig
from core.jobs.job import job_of_model
from core.reward.folder import ModelFolder
from core.runs.store import Store
from core.types import Progress

PICTURE_BYTES, SECONDS_A_POINT = 5e6, 0.006  # measured on two cores; used for the estimate only


def _run(config: SpacesRunConfig, store: Store, progress: Progress) -> dict[str, Any]:
    spaces, path = load("core.explain.model_spaces:model_spaces")(ModelFolder(config.model, store), config.spaces, progress=progress)
    return {"artefact": str(path), "outcome": {"artefact": str(path), "points": len(spaces.rows)}}


SPACES = job_of_model(lambda config: PICTURE_BYTES, lambda config: SECONDS_A_POINT * config.spaces.points, _run)

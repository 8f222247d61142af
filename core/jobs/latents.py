"""`latents` as a kind of run: the pages of a reward model's latents (core.latents.pages)."""

from __future__ import annotations

from typing import Any

from core.backbone.estimate import PAGE_BYTES
from core.by_name import load
from core.config import LatentsRunConfig
from core.jobs.job import job_of_model
from core.reward.folder import ModelFolder
from core.runs.store import Store
from core.types import Progress

TOKENS_A_SECOND = 2500.0  # measured on two cores with SmolLM2; used for the estimate only
ALL_PAGES, SELECTED_PAGES, BYTES_A_TOKEN = 16_384, 512, 4.0


def _run(config: LatentsRunConfig, store: Store, progress: Progress) -> dict[str, Any]:
    folder = ModelFolder(config.model, store)
    make_pages, every = load("core.latents.make_pages:make_pages"), config.which == "all"
    pages = make_pages(folder, config.pages, config.latent, every=every, device=config.device, progress=progress)
    return {"artefact": str(pages.folder), "outcome": {"artefact": str(pages.folder), "pages": len(pages)}}


def _disk(config: LatentsRunConfig) -> float:
    return PAGE_BYTES * (ALL_PAGES if config.which == "all" else SELECTED_PAGES) + BYTES_A_TOKEN * config.pages.tokens


LATENTS = job_of_model(_disk, lambda config: config.pages.tokens / TOKENS_A_SECOND, _run)

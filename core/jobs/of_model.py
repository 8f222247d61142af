"""What is made of a fitted reward model as long jobs for the run worker (core.jobs.fit has the others): the doctor, the spaces, the latents' pages.

Their configs name the reward model's folder; the hidden states are found in the cache that the run lies in. Nothing heavy is imported before `plan`
and `run` are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.backbone.estimate import PAGE_BYTES, Estimate
from core.config import BackboneConfig, DoctorRunConfig, LatentsRunConfig, SpacesRunConfig, from_dict
from core.errors import MissingError
from core.fit.defaults import absolute
from core.jobs.fit import Job, Say
from core.reward.folder import ModelFolder
from core.reward.recorded_files import CONFIG, read_config
from core.runs.store import Store
from core.types import Progress

# Rough figures from two cores and SmolLM2; what is said before the start hangs on them, nothing else.
DOCTOR_SECONDS, SPACES_SECONDS_A_POINT, LATENTS_TOKENS_A_SECOND = 60.0, 0.006, 2500.0
SMALL = 5e6  # bytes of a report or a picture


def _complete(config: Any, store: Store, say: Say) -> Any:
    return replace(config, model=absolute(config.model))


def _backbone(config: Any) -> BackboneConfig:
    """How the reward model reads its language model, on the device that is asked for.

    Raises MissingError where there is no reward model, StoreError where it is not whole.
    """
    folder, remedy = Path(config.model).expanduser(), "give the folder that sparserm fit printed"
    if not (folder / CONFIG).is_file():
        raise MissingError(f"there is no reward model at {config.model}", expected=CONFIG, remedy=remedy)
    kept = read_config(folder)
    try:
        reading = {**kept["reading"], "layer": kept["layer"], "position": kept["position"]}
    except (KeyError, TypeError) as error:
        raise MissingError(f"there is no reward model at {config.model}", found=str(error), remedy=remedy) from error
    read: BackboneConfig = from_dict(BackboneConfig, reading)
    return replace(read, device=getattr(config, "device", "cpu"))


def _job(disk: Callable[[Any], float], seconds: Callable[[Any], float], run: Callable[[Any, Store, Progress], Mapping[str, Any]]) -> Job:
    return Job(
        complete=_complete,
        backbone=_backbone,
        disk=lambda config, root: disk(config),
        inputs=lambda config: [str(Path(config.model) / name) for name in ("config.json", "model.safetensors")],
        plan=lambda config, store, progress: Estimate(memory=0.0, disk=disk(config), seconds=seconds(config)),
        run=run,
    )


def _run_doctor(config: DoctorRunConfig, store: Store, progress: Progress) -> dict[str, Any]:
    from core.doctor.doctor import doctor_report

    report, path = doctor_report(ModelFolder(config.model, store), config.doctor, device=config.device, progress=progress)
    return {"artefact": str(path), "outcome": {"artefact": str(path), "status": report.status, "counts": report.counts}}


def _run_spaces(config: SpacesRunConfig, store: Store, progress: Progress) -> dict[str, Any]:
    from core.explain.model_spaces import model_spaces

    spaces, path = model_spaces(ModelFolder(config.model, store), config.spaces, progress=progress)
    return {"artefact": str(path), "outcome": {"artefact": str(path), "points": len(spaces.rows)}}


def _run_latents(config: LatentsRunConfig, store: Store, progress: Progress) -> dict[str, Any]:
    from core.latents.make_pages import make_pages

    folder = ModelFolder(config.model, store)
    pages = make_pages(folder, config.pages, config.latent, every=config.which == "all", device=config.device, progress=progress)
    return {"artefact": str(pages.folder), "outcome": {"artefact": str(pages.folder), "pages": len(pages)}}


DOCTOR = _job(lambda config: SMALL, lambda config: DOCTOR_SECONDS * config.doctor.swaps / 10, _run_doctor)
SPACES = _job(lambda config: SMALL, lambda config: SPACES_SECONDS_A_POINT * config.spaces.points, _run_spaces)
LATENTS = _job(
    lambda config: PAGE_BYTES * (16_384 if config.which == "all" else 512) + 4.0 * config.pages.tokens,
    lambda config: config.pages.tokens / LATENTS_TOKENS_A_SECOND,
    _run_latents,
)

"""`doctor` as a kind of run: the report whether a fit can be trusted (core.doctor)."""

from __future__ import annotations

from typing import Any

from core.by_name import load
from core.config import DoctorRunConfig
from core.jobs.job import job_of_model
from core.reward.folder import ModelFolder
from core.runs.store import Store
from core.types import Progress

REPORT_BYTES, SECONDS_FOR_TEN_SWAPS = 5e6, 60.0  # measured on two cores with SmolLM2; used for the estimate only


def _run(config: DoctorRunConfig, store: Store, progress: Progress) -> dict[str, Any]:
    report, path = load("core.doctor.doctor:doctor_report")(ModelFolder(config.model, store), config.doctor, device=config.device, progress=progress)
    return {"artefact": str(path), "outcome": {"artefact": str(path), "status": report.status, "counts": report.counts}}


DOCTOR = job_of_model(lambda config: REPORT_BYTES, lambda config: SECONDS_FOR_TEN_SWAPS * config.doctor.swaps / 10, _run)

"""Doctor, spaces and latents' pages as runs: what they make is what the command makes, and pages find it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.backbone.presets import preset
from core.cli.main import main
from core.config import Config, DoctorConfig, DoctorRunConfig, LatentsConfig, LatentsRunConfig, SpacesConfig, SpacesRunConfig
from core.doctor.report import find_report
from core.errors import MissingError
from core.explain.spaces import NAME, load_spaces
from core.fit.defaults import complete
from core.fit.pipeline import fit
from core.jobs import start as launching
from core.jobs.job import devices_of
from core.jobs.kinds import asked_config, load_job
from core.latents.find_pages import find_pages
from core.reward.folder import ModelFolder
from core.runs import launch as run_launch
from core.runs.registry import Run, Status
from core.runs.store import Store
from core.types import no_progress

DOCTOR, SPACES = DoctorConfig(swaps=3, responses=4, dialogues=2), SpacesConfig(random_draws=1)
LATENTS = LatentsConfig(corpus="pairs", tokens=2000)
CONFIGS: dict[str, Any] = {
    "doctor": DoctorRunConfig(doctor=DOCTOR),
    "spaces": SpacesRunConfig(spaces=SPACES),
    "latents": LatentsRunConfig(pages=LATENTS, latent=(3,)),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store]:
    store = Store(tmp_path_factory.mktemp("fitted").resolve())
    return fit(complete(preset("tiny", root=store.root / "models"), store, lambda _: None), store).artefact, store


def named(kind: str, folder: Path) -> Any:
    return type(CONFIGS[kind])(**{**vars(CONFIGS[kind]), "model": str(folder)})


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_what_a_run_makes_is_found(model: tuple[Path, Store], kind: str) -> None:
    folder, store = model
    job, config = load_job(kind), named(kind, folder)
    assert job.complete(config, store, print) == config
    assert devices_of(job.backbone(config)) == ("cpu",) and job.plan(config, store, no_progress).seconds > 0 and job.disk(config, store.root) > 0
    result = job.run(config, store, no_progress)
    json.dumps(result)
    fitted = ModelFolder(folder, store)
    if kind == "doctor":
        report = find_report(fitted, DOCTOR)
        assert report is not None and result["outcome"]["status"] == report.status and result["outcome"]["counts"] == report.counts
    elif kind == "spaces":
        artefact = fitted.find_result(NAME, SPACES)
        assert artefact is not None and result["outcome"]["points"] == len(load_spaces(artefact.path).rows)
    else:
        pages = find_pages(fitted, LATENTS, (3,))
        assert pages is not None and str(pages.folder) == result["artefact"]
    assert Path(result["artefact"]).is_dir()


def test_without_a_reward_model_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no reward model"):
        load_job("doctor").backbone(DoctorRunConfig(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["doctor", "M", "--swaps", "3", "--responses", "4", "--dialogues", "2"], DoctorRunConfig(model="M", doctor=DOCTOR)),
        (["spaces", "M", "--random-draws", "1"], SpacesRunConfig(model="M", spaces=SPACES)),
        (["latents", "M", "--corpus", "pairs", "--tokens", "2000", "--latent", "3"], LatentsRunConfig(model="M", pages=LATENTS, latent=(3,))),
        (["latents", "M", "--all"], LatentsRunConfig(model="M", which="all")),
    ],
)
def test_the_command_starts_the_same_run(words: list[str], wanted: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    monkeypatch.setattr(run_launch, "start_worker", lambda run, worker, lock: lock.release())
    assert main([*words, "--detach", "--json"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run(folder)
    assert run.kind == words[0] and asked_config(run) == wanted


def test_what_reads_another_runs_leavings_can_not_be_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    monkeypatch.setattr(run_launch, "start_worker", lambda run, worker, lock: lock.release())
    run = Run(tmp_path / "runs" / launching.launch("spaces", SpacesRunConfig(model="M")))
    run.write(Status(state="succeeded", attempt=1, queued=1.0))
    assert main(["runs", "verify", run.id]) == 2
    assert "verify the run of the fit" in capsys.readouterr().err

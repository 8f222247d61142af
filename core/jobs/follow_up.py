"""What follows a fit by itself: the runs that prepare the pages of its reward model (`FOLLOW_UPS`).

`sparserm fit --prepare-pages` and the box "and prepare the pages" of the forms ask for it; the fit's `config.json` notes it. The fit's worker
launches these runs before it writes that the fit has succeeded, so a fit that was killed starts them when it is resumed, and one that was cancelled
starts none. Each is a run of its own, in the queue of its device: they work one after another, one that fails or is cancelled stops no other, and
pages follow them as they follow any run. What stands in the cache already, or is being made, is not started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.backbone.presets import PRESETS
from core.by_name import load
from core.config import Config, DoctorRunConfig, LatentsRunConfig, SpacesRunConfig
from core.errors import SparseRMError, StoreError
from core.jobs.kinds import asked_config, kind_of, load_job
from core.runs.launch import start
from core.runs.registry import Run, all_runs
from core.runs.store import Store
from core.types import no_progress

PREPARES = ("fit",)  # kinds of runs after which pages can be prepared
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """A run that follows a fit.

    `config` makes its config from the reward model's folder. `present` says whether what it would make stands in the cache. With `after`, it follows
    a fit of just this config only.
    """

    kind: str
    config: Callable[[str], Config]
    present: Callable[[Any, Any], bool]  # of the reward model's ModelFolder and the config
    after: Config | None = None


def has_report(folder: Any, config: DoctorRunConfig) -> bool:
    return load("core.doctor.report:find_report")(folder, config.doctor) is not None


def has_spaces(folder: Any, config: SpacesRunConfig) -> bool:
    return folder.find_result("spaces", config.spaces) is not None


def has_pages(folder: Any, config: LatentsRunConfig) -> bool:
    return load("core.latents.find_pages:find_pages")(folder, config.pages, config.latent) is not None


def has_fit(folder: Any, config: Config) -> bool:
    """Whether a fit of just this config has left its reward model in the same cache."""
    return any(
        run.status().state == "succeeded" and Path((run.result() or {})["artefact"]).is_dir() for run in runs_asked("fit", config, folder.root)
    )


def fit_as_well(config: Config, after: Config) -> FollowUp:
    """The line of a fit that follows another one, such as a control that is to stand beside it."""
    return FollowUp(kind="fit", config=lambda model: config, present=has_fit, after=after)


# In the order in which they work.
FOLLOW_UPS: tuple[FollowUp, ...] = (
    FollowUp(kind="doctor", config=lambda model: DoctorRunConfig(model=model), present=has_report),
    FollowUp(kind="spaces", config=lambda model: SpacesRunConfig(model=model), present=has_spaces),
    FollowUp(kind="latents", config=lambda model: LatentsRunConfig(model=model), present=has_pages),
    fit_as_well(PRESETS["smollm2-135m-paper"], after=PRESETS["smollm2-135m"]),
)


def follow_ups_after(config: Config) -> list[FollowUp]:
    """What follows a fit of this config, as it was asked for."""
    return [follow_up for follow_up in FOLLOW_UPS if follow_up.after in (None, config)]


# --- starting ------------------------------------------------------------------------------------------------------


def start_follow_ups(fit: Run, model: Path, worker: Sequence[str], say: Say, warn: Say) -> None:
    """Starts `worker`s on what follows this fit, whose reward model is the folder `model`. What can't be started is a warning: the fit has succeeded.

    Nothing is started twice: neither what an earlier attempt of the fit has started, nor what is present, nor what a live run makes.
    """
    folder = load("core.reward.folder:ModelFolder")(model, Store(fit.root))
    for follow_up in follow_ups_after(asked_config(fit)):
        name = kind_of(follow_up.kind).name
        try:
            config = follow_up.config(str(model))
            if follow_up.present(folder, config):
                say(f"{name}: found in the store")
            elif any(run.live() or run.prepared_for == fit.id for run in runs_asked(follow_up.kind, config, fit.root)):
                say(f"{name}: has been started already")
            else:
                disk = load_job(follow_up.kind).disk(config, fit.root)
                run = start(follow_up.kind, config.to_dict(), worker, root=fit.root, disk=disk, prepared_for=fit.id)
                say(f"{name}: follows as run {run.id.rpartition('_')[2]}")
        except (SparseRMError, OSError) as error:
            warn(f"{name} does not follow: {error}")


def runs_asked(kind: str, config: Config, root: Path | None = None) -> list[Run]:
    """The runs that were asked just this, newest first; unreadable ones and those of another version are left out."""
    wanted, runs = config.to_dict(), []
    for run in reversed(all_runs(root)):
        try:
            if run.kind == kind and asked_config(run).to_dict() == wanted:
                runs.append(run)
        except (SparseRMError, TypeError, KeyError):
            continue
    return runs


# --- looking -------------------------------------------------------------------------------------------------------


def follow_up_runs(fit: Run) -> list[Run]:
    """The runs that this fit has started, in the order in which they work."""
    runs = []
    for run in all_runs(fit.root):
        try:
            if run.prepared_for == fit.id:
                runs.append(run)
        except StoreError:
            continue
    return runs


def models_beside() -> list[Path]:
    """The folders of the reward models whose fits have followed other fits."""
    folders = []
    for run in all_runs():
        try:
            if run.kind in PREPARES and run.prepared_for and (result := run.result()):
                folders.append(Path(result["artefact"]))
        except (StoreError, KeyError):
            continue
    return folders


def newest_runs(model: Path) -> dict[str, Run]:
    """By kind, the newest run that makes of this reward model just what would follow its fit, in the order of FOLLOW_UPS."""
    configs = {follow_up.kind: follow_up.config(str(model)).to_dict() for follow_up in FOLLOW_UPS if follow_up.kind not in PREPARES}
    newest: dict[str, Run] = {}
    for run in all_runs():
        try:
            if run.kind in configs and asked_config(run).to_dict() == configs[run.kind]:
                newest[run.kind] = run
        except (SparseRMError, TypeError, KeyError):
            continue
    return {kind: newest[kind] for kind in configs if kind in newest}


def preparation(fit: Run) -> dict[str, Any]:
    """How long a fit and what follows it took, in seconds since the fit was asked for, from the records of the runs.

    `first_explanation`: until the fit had succeeded, since explanations need no more. `all_pages`: until the last run that followed it had succeeded;
    None while one has not. `runs`: each with its state.
    """
    status, runs = fit.status(), follow_up_runs(fit)
    created = float(fit.asked.get("created") or status.queued)
    statuses = [run.status() for run in runs]
    ends = [each.ended for each in (status, *statuses) if each.state == "succeeded" and each.ended is not None]
    first = None if status.state != "succeeded" or status.ended is None else status.ended - created
    rows = [
        {"run": run.id, "kind": run.kind, "state": each.state, "seconds": None if each.ended is None else each.ended - created}
        for run, each in zip(runs, statuses, strict=True)
    ]
    complete = first is not None and len(ends) == 1 + len(runs)
    return {"first_explanation": first, "all_pages": max(ends) - created if complete else None, "runs": rows}


def seconds_after(config: Config) -> float:
    """About how long what follows a fit of this config takes, other fits not counted: their time depends on their data."""
    runs = [(follow_up.kind, follow_up.config("")) for follow_up in follow_ups_after(config) if follow_up.kind not in PREPARES]
    store = Store()
    estimates = [load_job(kind).plan(follow_up_config, store, no_progress) for kind, follow_up_config in runs]
    return float(sum(estimate.seconds for estimate in estimates))


def follow_up_names(config: Config) -> list[str]:
    """The names for people of what follows a fit of this config."""
    return ["Control fit" if follow_up.kind in PREPARES else kind_of(follow_up.kind).name for follow_up in follow_ups_after(config)]

"""Each kind of long job for the run worker: how its config is completed, where it computes, what it will take, and what it does.

core.runs.registry names these by text, so that starting a run loads no engine. Nothing heavy is imported before `plan` and `run` are called.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.backbone.estimate import Estimate, estimate_training
from core.backbone.source import backbone_identity, find_model, resolve_device
from core.config import BackboneConfig, DataConfig, FitConfig, SAETrainConfig, SweepConfig
from core.files import file_sha256, read_json
from core.fit.defaults import absolute, complete, complete_sweep
from core.runs.locks import device_turn
from core.runs.store import Store
from core.types import Progress

Say = Callable[[str], None]
EMBEDDED_CORPUS = SAETrainConfig().corpus
FOLDED_ROW = 500  # bytes of a row, where rows can't be counted without reading the file
POLL = 0.2
LARGEST_D_MODEL = 4096  # of a model that is not on this machine yet


@dataclass(frozen=True, kw_only=True)
class Job:
    """A kind of job. `run` returns `artefact` (path of the folder that was made, or None) and `outcome` (what `--json` would print).

    `disk` guesses the bytes that will be written, from file sizes; `plan` knows better, and may fetch the model. `inputs` are the files it reads.
    """

    complete: Callable[[Any, Store, Say], Any]
    backbone: Callable[[Any], BackboneConfig]
    disk: Callable[[Any, Path], float]
    inputs: Callable[[Any], list[str]]
    plan: Callable[[Any, Store, Progress], Estimate]
    run: Callable[[Any, Store, Progress], Mapping[str, Any]]


def devices_of(config: BackboneConfig) -> tuple[str, ...]:
    """Names of the devices that a job with this backbone computes on: what its locks are called. A GPU is named by what it is, not by its number."""
    device = config.device if config.device != "auto" else resolve_device(config)  # without torch, if that can be
    if not device.startswith("cuda"):
        return (device,)
    import torch

    number = int(device.partition(":")[2] or 0)
    numbers = range(torch.cuda.device_count()) if config.device_map else [number]
    return tuple(f"cuda-{torch.cuda.get_device_properties(n).uuid}" for n in numbers)


@contextmanager
def foreground_turn(config: BackboneConfig, store: Store, say: Say) -> Iterator[None]:
    """Holds the device for a command that works in the foreground; says so if it has to wait."""
    devices, waited = devices_of(config), False

    def wait() -> None:
        nonlocal waited
        if not waited:
            say(f"waiting: another run is using {', '.join(devices)} (sparserm runs list)")
        waited = True
        time.sleep(POLL)

    with device_turn(store.root, devices, wait):
        yield


def input_hashes(job: Job, config: Any) -> dict[str, str]:
    """sha256 of each input file of the job that is on this machine."""
    return {name: file_sha256(Path(name)) for name in job.inputs(config) if Path(name).is_file()}


# --- fit -----------------------------------------------------------------------------------------------------------


def _fit_disk(config: FitConfig, root: Path) -> float:
    return 2 * 2 * _rows(config.data) * _width(config.backbone, root) * 4.0


def _fit_plan(config: FitConfig, store: Store, progress: Progress) -> Estimate:
    from core.fit.steps import Steps

    work = Steps(config=config, store=store, progress=progress)
    return work.estimate(work.pairs(), [config.backbone.layer])


def _fit_run(config: FitConfig, store: Store, progress: Progress) -> dict[str, Any]:
    from core.fit.pipeline import fit

    outcome = fit(config, store, progress)
    return {"artefact": str(outcome.artefact), "outcome": outcome.to_json()}


FIT = Job(
    complete=complete,
    backbone=lambda config: config.backbone,
    disk=_fit_disk,
    inputs=lambda config: [config.data.pairs],
    plan=_fit_plan,
    run=_fit_run,
)


# --- sweep ---------------------------------------------------------------------------------------------------------


def _sweep_complete(config: SweepConfig, store: Store, say: Say) -> SweepConfig:
    """The same config with each layer's SAE named; completing it again changes nothing."""
    configs = complete_sweep(config, store, say)
    named = replace(config, fit=replace(configs[0], curve=config.fit.curve), layers=tuple(fit.backbone.layer for fit in configs))
    if config.saes or len(configs) > 1:
        saes = tuple(fit.sae.path or f"{fit.sae.release}:{fit.sae.sae_id}" for fit in configs)
        return replace(named, saes=saes)
    return named


def _sweep_configs(config: SweepConfig, store: Store) -> tuple[FitConfig, ...]:
    return complete_sweep(config, store, lambda _: None)


def _sweep_plan(config: SweepConfig, store: Store, progress: Progress) -> Estimate:
    from core.fit.steps import Steps

    configs = _sweep_configs(config, store)
    work = Steps(config=configs[0], store=store, progress=progress)
    return work.estimate(work.pairs(), [fit.backbone.layer for fit in configs])


def _sweep_run(config: SweepConfig, store: Store, progress: Progress) -> dict[str, Any]:
    from core.fit.pipeline import sweep

    return {"artefact": None, "outcome": sweep(_sweep_configs(config, store), store, progress).to_json()}


SWEEP = Job(
    complete=_sweep_complete,
    backbone=lambda config: config.fit.backbone,
    disk=lambda config, root: max(len(config.layers), 1) * _fit_disk(config.fit, root),
    inputs=lambda config: [config.fit.data.pairs],
    plan=_sweep_plan,
    run=_sweep_run,
)


# --- sae train -----------------------------------------------------------------------------------------------------


def _train_complete(config: SAETrainConfig, store: Store, say: Say) -> SAETrainConfig:
    corpus, measure = (
        ",".join(name if name == EMBEDDED_CORPUS else absolute(name) for name in map(str.strip, text.split(",")))
        for text in (config.corpus, config.measure)
    )
    init, out = (str(Path(folder).expanduser().resolve()) if folder else "" for folder in (config.init, config.out))
    return replace(
        config, corpus=corpus, measure=measure, init=init, out=out, backbone=replace(config.backbone, model=absolute(config.backbone.model))
    )


def _train_disk(config: SAETrainConfig, root: Path) -> float:
    weights = 2 * config.width * _width(config.backbone, root)
    return weights * (2 * 3 * 4 + 2.0)  # two checkpoints of weights and Adam's moments, and the result


def _train_plan(config: SAETrainConfig, store: Store, progress: Progress) -> Estimate:
    source = find_model(config.backbone, progress=progress)
    return estimate_training(config, source, backbone_identity(config.backbone, source))


def _train_run(config: SAETrainConfig, store: Store, progress: Progress) -> dict[str, Any]:
    from core.sae.training import CARD, train_sae

    folder = train_sae(config, root=store.root, progress=progress)
    card = read_json(folder / CARD)
    return {"artefact": str(folder), "outcome": {"artefact": str(folder), "card": card}}


SAE_TRAIN = Job(
    complete=_train_complete,
    backbone=lambda config: config.backbone,
    disk=_train_disk,
    inputs=lambda config: [name.strip() for name in f"{config.corpus},{config.measure}".split(",") if name.strip()],
    plan=_train_plan,
    run=_train_run,
)


# --- guesses -------------------------------------------------------------------------------------------------------


def _rows(data: DataConfig) -> int:
    """About how many pairs a file holds; 0 for what is not on this machine."""
    path = Path(data.pairs).expanduser()
    if not data.pairs or not path.is_file():
        return 0
    if path.suffix in (".jsonl", ".csv"):
        with path.open("rb") as handle:
            return sum(block.count(b"\n") for block in iter(lambda: handle.read(1 << 20), b""))
    return os.path.getsize(path) * (4 if path.suffix == ".gz" else 1) // FOLDED_ROW


def _width(backbone: BackboneConfig, root: Path) -> int:
    """d_model, if the model is on this machine."""
    for folder in (Path(backbone.model).expanduser(), root / "models" / f"{backbone.model}-instruct"):
        if (folder / "config.json").is_file():
            raw = read_json(folder / "config.json")
            return int(raw.get("text_config", raw).get("hidden_size", LARGEST_D_MODEL))
    return LARGEST_D_MODEL

"""What a kind of long work is made of (`Job`), and what every kind needs: its devices, the hashes of its input files, guesses of sizes.

One file of core/jobs describes one kind; core/jobs/kinds.py lists them. Pages and the command line call `complete`,
`disk` and `backbone`, so a file of core/jobs imports heavy libraries only inside what `plan` and `run` call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.backbone.estimate import Estimate
from core.backbone.source import resolve_device
from core.config import BackboneConfig, DataConfig, from_dict
from core.errors import MissingError
from core.files import file_sha256, read_json
from core.fit.defaults import absolute
from core.reward.recorded_files import CONFIG, read_config
from core.runs.locks import device_turn
from core.runs.store import Store
from core.types import Progress

Say = Callable[[str], None]
POLL = 0.2  # seconds between two looks at a device that another run uses
FOLDED_ROW = 500  # bytes of a row, where rows can't be counted without reading the file
LARGEST_D_MODEL = 4096  # of a model that is not on this machine yet


@dataclass(frozen=True, kw_only=True)
class Job:
    """A kind of job. `run` returns `artefact` (path of the folder that was made, or None) and `outcome` (JSON values, shown to the person).

    `complete` fills in what the config leaves out. `check` refuses what can be seen to be wrong before a run is launched, in
    no time. `disk` guesses the bytes that will be written from file sizes; `plan` estimates them better, and may fetch the
    model. `inputs` are the files that are read.
    """

    complete: Callable[[Any, Store, Say], Any]
    backbone: Callable[[Any], BackboneConfig]
    disk: Callable[[Any, Path], float]
    inputs: Callable[[Any], list[str]]
    plan: Callable[[Any, Store, Progress], Estimate]
    run: Callable[[Any, Store, Progress], Mapping[str, Any]]
    check: Callable[[Any, Store], None] = lambda config, store: None


def devices_of(config: BackboneConfig) -> tuple[str, ...]:
    """Names of the devices that a job with this backbone computes on, after which their locks are called. A GPU is named by its uuid."""
    device = config.device if config.device != "auto" else resolve_device(config)  # without torch, if that can be
    if not device.startswith("cuda"):
        return (device,)
    import torch

    number = int(device.partition(":")[2] or 0)
    numbers = range(torch.cuda.device_count()) if config.device_map else [number]
    return tuple(f"cuda-{torch.cuda.get_device_properties(n).uuid}" for n in numbers)


@contextmanager
def hold_device(config: BackboneConfig, store: Store, say: Say) -> Iterator[None]:
    """Holds the device while a command computes in its own process, not as a run. `say` receives a line if it has to wait."""
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


# --- guesses -------------------------------------------------------------------------------------------------------


def count_rows(data: DataConfig) -> int:
    """About how many pairs a file holds; 0 for what is not on this machine."""
    path = Path(data.pairs).expanduser()
    if not data.pairs or not path.is_file():
        return 0
    if path.suffix in (".jsonl", ".csv"):
        with path.open("rb") as handle:
            return sum(block.count(b"\n") for block in iter(lambda: handle.read(1 << 20), b""))
    return os.path.getsize(path) * (4 if path.suffix == ".gz" else 1) // FOLDED_ROW


def width_of(backbone: BackboneConfig, root: Path) -> int:
    """d_model, if the model is on this machine; else that of a large model."""
    for folder in (Path(backbone.model).expanduser(), root / "models" / f"{backbone.model}-instruct"):
        if (folder / "config.json").is_file():
            raw = read_json(folder / "config.json")
            return int(raw.get("text_config", raw).get("hidden_size", LARGEST_D_MODEL))
    return LARGEST_D_MODEL


# --- jobs that are made of a reward model --------------------------------------------------------------------------


def job_of_model(disk: Callable[[Any], float], seconds: Callable[[Any], float], run: Callable[[Any, Store, Progress], Mapping[str, Any]]) -> Job:
    """A job whose config names a reward model's folder as `model`; the hidden states are found in the cache that the run lies in."""
    return Job(
        complete=lambda config, store, say: replace(config, model=absolute(config.model)),
        backbone=backbone_of_model,
        disk=lambda config, root: disk(config),
        inputs=lambda config: [str(Path(config.model) / name) for name in ("config.json", "model.safetensors")],
        plan=lambda config, store, progress: Estimate(memory=0.0, disk=disk(config), seconds=seconds(config)),
        run=run,
        check=check_model,
    )


def check_model(config: Any, store: Store) -> None:
    """Raises StoreError where the folder holds no reward model, or one that is not whole."""
    read_config(Path(config.model).expanduser())


def backbone_of_model(config: Any) -> BackboneConfig:
    """How the reward model of `config.model` reads its language model, on the device that is asked for.

    Raises MissingError where there is no reward model, StoreError where it is not whole.
    """
    folder, remedy = Path(config.model).expanduser(), "give the folder that sparserm fit printed"
    if not (folder / CONFIG).is_file():
        raise MissingError(f"there is no reward model at {config.model}", expected=CONFIG, remedy=remedy)
    recorded = read_config(folder)
    try:
        reading = {**recorded["reading"], "layer": recorded["layer"], "position": recorded["position"]}
    except (KeyError, TypeError) as error:
        raise MissingError(f"there is no reward model at {config.model}", found=str(error), remedy=remedy) from error
    backbone: BackboneConfig = from_dict(BackboneConfig, reading)
    return replace(backbone, device=getattr(config, "device", "cpu"))

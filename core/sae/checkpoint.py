"""The state of an SAE training on disk (safetensors and JSON): a killed training goes on from it to the same result.

sae-lens saves the same state with `torch.save`, which writes a pickle, so it is not used. A checkpoint is a folder
`step-<n>` that is renamed into place when it is whole; the newest is read, older ones are removed. A round's hidden
states are not saved: the cursor is enough to compute them again. The state holds the hash of its tensors' file, so a
damaged checkpoint is an error instead of a different SAE.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from core.errors import SAEError
from core.files import file_sha256, write_json
from core.runs.store import publish_folder
from core.sae.activations import Cursor

STATE, TENSORS = "state.json", "state.safetensors"
COUNTERS = ("n_training_steps", "n_training_samples", "n_frac_active_samples")
RUNNING = ("act_freq_scores", "n_forward_passes_since_fired")


@dataclass(kw_only=True)
class TrainingState:
    """What changes in a training: sae-lens' trainer, the data cursor, and the ring [n, d_model] before its round."""

    trainer: Any
    cursor: Cursor
    ring: torch.Tensor
    finished: bool = False


def save_checkpoint(folder: Path, state: TrainingState) -> None:
    """Writes `folder/step-<n>`, whole or not at all, then removes older checkpoints."""

    def make(target: Path) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(state).items()}
        save_file(tensors, target / TENSORS)
        write_json(target / STATE, {**_values(state), "tensors_sha256": file_sha256(target / TENSORS)})

    target = folder / f"step-{state.trainer.n_training_steps:09d}"
    if target.exists():  # training is deterministic, so it holds the same state
        return
    publish_folder(target, make)
    for old in folder.iterdir():
        if old.name != target.name:
            shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, state: TrainingState) -> bool:
    """Reads the newest checkpoint into `state`; False where there is none. Raises SAEError if it can't be used."""
    newest = max(folder.glob("step-*"), default=None)
    if newest is None:
        return False
    try:
        values = json.loads((newest / STATE).read_text(encoding="utf-8"))
        if values.get("tensors_sha256") not in (None, file_sha256(newest / TENSORS)):
            raise ValueError(f"{TENSORS} is not the file that was written: its sha256 is not the one in {STATE}")
        # The tensors are copied, since the file they are mapped from is removed after the next checkpoint.
        _restore(state, values, {name: tensor.clone() for name, tensor in load_file(newest / TENSORS).items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, RecursionError, SafetensorError) as error:
        remedy = "delete that folder: the training begins again"
        raise SAEError(f"the checkpoint {newest} can't be read", found=str(error), remedy=remedy) from error
    return True


def _tensors(state: TrainingState) -> dict[str, torch.Tensor]:
    trainer = state.trainer
    moments = {f"adam.{i}.{name}": value for i, entry in trainer.optimizer.state_dict()["state"].items() for name, value in entry.items()}
    running = {name: getattr(trainer, name) for name in RUNNING}
    return {**{f"sae.{name}": value for name, value in trainer.sae.state_dict().items()}, **moments, **running, "ring": state.ring}


def _values(state: TrainingState) -> dict[str, Any]:
    trainer = state.trainer
    return {
        **{name: getattr(trainer, name) for name in COUNTERS},
        "scaling_factor": trainer.activation_scaler.scaling_factor,
        "adam_groups": trainer.optimizer.state_dict()["param_groups"],
        "schedule": trainer.lr_scheduler.state_dict(),
        "cursor": asdict(state.cursor),
        "finished": state.finished,
    }


def _restore(state: TrainingState, values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    trainer = state.trainer
    device = trainer.sae.device
    trainer.sae.load_state_dict({name.removeprefix("sae."): t for name, t in tensors.items() if name.startswith("sae.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = tensor
    n_parameters = sum(len(group["params"]) for group in values["adam_groups"])
    if values["n_training_steps"] and sorted(moments) != list(range(n_parameters)):
        # Without an error Adam would start the other parameters' moments from zero.
        raise ValueError(f"Adam's moments of {len(moments)} of {n_parameters} parameters are in {TENSORS}")
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": values["adam_groups"]})
    trainer.lr_scheduler.load_state_dict(values["schedule"])
    for name in COUNTERS:
        setattr(trainer, name, values[name])
    for name in RUNNING:
        setattr(trainer, name, tensors[name].to(device))
    trainer.activation_scaler.scaling_factor = values["scaling_factor"]
    state.cursor, state.ring, state.finished = Cursor(**values["cursor"]), tensors["ring"], values["finished"]

"""Reads and checks a LoRA adapter's folder as PEFT writes it: its tensors, and the model it was trained on.

PEFT only warns of tensors that a file lacks, takes those of a new adapter instead, and ignores those it can't place.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, deserialize

from core.backbone.model_folder import check_file, first_few, read_json_object
from core.backbone.source import EMBEDDED, EMBEDDED_HUB_ID, ModelSource, find_model
from core.config import BackboneConfig
from core.errors import BackboneError, MismatchError, StoreError

log = logging.getLogger(__name__)
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def read_adapter(folder: Path) -> list[tuple[str, Any]]:
    """The adapter's tensors by name: dtype, shape and bytes. Raises StoreError if no adapter can be read."""
    expected = f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as PEFT saves them"
    if not (folder / ADAPTER_WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        remedy = "save it again with PEFT's save_pretrained, which writes safetensors"
        raise StoreError(
            f"{folder} holds no adapter but a pickled file, which is never read", expected=expected, found="adapter_model.bin", remedy=remedy
        )
    try:
        if not (folder / ADAPTER_CONFIG).is_file():
            raise FileNotFoundError(f"no {ADAPTER_CONFIG}")
        read_json_object(folder / ADAPTER_CONFIG)
        check_file(folder / ADAPTER_WEIGHTS)
        return list(deserialize((folder / ADAPTER_WEIGHTS).read_bytes()))
    except BackboneError as error:
        raise StoreError(f"{folder} holds no adapter: {error.problem}", expected=expected, found=error.found, remedy=error.remedy) from error
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder} holds no adapter", expected=expected, found=f"{type(error).__name__}: {error}") from error


def check_tensors(adapter: Path, stored: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> None:
    """Compares the file's tensors with those that PEFT loaded by its configuration (`expected`). Raises StoreError,
    naming the tensors, where the two sets or their shapes differ, or a value is not finite."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    given = {name: tuple(entry["shape"]) for name, entry in stored.items()}
    wrong = {
        "missing": sorted(shapes.keys() - given.keys()),
        "not of this adapter": sorted(given.keys() - shapes.keys()),
        "of another shape": [f"{name} is {given[name]}, not {shape}" for name, shape in shapes.items() if given.get(name, shape) != shape],
        "NaN or infinite": [name for name, tensor in expected.items() if not bool(torch.isfinite(tensor).all())],
    }
    if any(wrong.values()):
        raise StoreError(
            f"the adapter in {adapter} is not whole, or was made for another model",
            expected=f"{len(shapes)} tensors, as {ADAPTER_CONFIG} describes them for this model",
            found="; ".join(f"{what}: {first_few(names)}" for what, names in wrong.items() if names),
            remedy="give the adapter with the base model it was trained on, or save it again",
        )


def check_base(adapter: Path, base: BackboneConfig, source: ModelSource) -> None:
    """Raises MismatchError where the adapter names another base model; logs a warning where names can't be compared.

    A name is a Hub id or a folder. An existing folder is compared by its content, one that is gone by its last part.
    """
    written = read_json_object(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(written, str) or not written:
        log.warning("the adapter in %s does not name the model it was trained on; %s is assumed", adapter, source.name)
        return
    names = {base.model, source.name, str(source.folder), *((EMBEDDED_HUB_ID,) if base.model == EMBEDDED else ())}
    if written in names or Path(written).name in {Path(name).name for name in names}:
        return
    folder = Path(written).expanduser()
    if folder.is_dir():
        same = bool(source.sha256) and find_model(replace(base, model=written)).sha256 == source.sha256
    elif _is_hub_id(written) and _is_hub_id(source.name):
        same = False
    else:
        log.warning("the adapter in %s was trained on %s; whether that is the same model as %s can't be checked", adapter, written, source.name)
        return
    if not same:
        raise MismatchError(
            f"the adapter in {adapter} was trained on another model",
            expected=source.name,
            found=written,
            remedy=f"give its own base: --model {written}",
        )


def _is_hub_id(name: str) -> bool:
    return not Path(name).is_absolute() and name.count("/") == 1 and not name.startswith((".", "~"))

"""Lists the tensors of a model's folder from the headers of its safetensors files: names, shapes, kinds of numbers.

Training often wraps a model and saves it with the wrapper's name in front of, or inside, each tensor's name. Such names
(`ANYWHERE`, `IN_FRONT`) are removed and listed in `Checkpoint.wrappers`. Whether the tensors make up the whole model is
checked by core.backbone.loading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from core.backbone.model_folder import DOWNLOAD_AGAIN, FOREIGN_WEIGHTS, PICKLED, TO_SAFETENSORS, check_file, first_few, read_json_object
from core.errors import BackboneError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
# Wrappers' names that no model gives to a part of itself, at any place in a name: torch.compile, FSDP, activation
# checkpoints, Lightning, DeepSpeed.
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
# At the front of all names: DataParallel, PEFT, TRL's value head. `model.` (Lightning) only where a model's own names
# follow it.
IN_FRONT = ("module.", "base_model.model.", "base_model.", "pretrained_model.")
INSIDE_MODEL = ("model.model.", "model.lm_head.", "model.transformer.", "model.gpt_neox.", "model.embed_out.")
# Buffers that older versions of transformers saved and newer ones compute, so they may be ignored. `attn.bias` was a
# triangle of ones.
COMPUTED = re.compile(r"(rotary_emb\.(original_)?inv_freq|rotary_emb\.(cos|sin)_cached|\.masked_bias|(^|\.)position_ids|(^|\.)_extra_state)$")
TRIANGLE = re.compile(r"\.(attn|attention)\.bias$")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor in a file: its name there, the file, its shape, and its kind of number by safetensors' name (BF16)."""

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: str

    @property
    def is_computed(self) -> bool:
        """Whether newer versions of transformers compute this instead of reading it."""
        return bool(COMPUTED.search(self.name) or (TRIANGLE.search(self.name) and len(self.shape) == 4))


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All tensors of a model by their names without wrappers, and the wrappers' names that were removed, in order."""

    tensors: Mapping[str, StoredTensor]
    wrappers: tuple[str, ...]


def read_checkpoint(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    """The tensors of a folder whose config.json is `config`.

    Raises BackboneError where weights are missing, pickled, cut, or not what the index says, where two tensors have one
    name, and where numbers are stored in a form that config.json does not explain.
    """
    stored = [tensor for file, names in _weight_files(folder, config) for tensor in _header(file, names)]
    wrappers = wrappers_of([tensor.name for tensor in stored])
    tensors: dict[str, StoredTensor] = {}
    for tensor in stored:
        name = without_wrappers(tensor.name, wrappers)
        if name in tensors:
            raise BackboneError(
                f"{folder} holds two tensors for {name}",
                found=f"{tensors[name].name} and {tensor.name}",
                remedy="it is not clear which is meant (an average of the weights beside the weights?): save only one of them",
            )
        tensors[name] = tensor
    _check_adapter(folder, tensors)
    if not config.get("quantization_config"):
        _check_kinds(folder, tensors)
    return Checkpoint(tensors=tensors, wrappers=wrappers)


def wrappers_of(names: Sequence[str]) -> tuple[str, ...]:
    """The wrappers' names to be removed, in the order in which `without_wrappers` removes them."""
    wrappers: list[str] = []
    for wrapper in ANYWHERE:
        if any(f".{wrapper}" in f".{name}" for name in names):
            wrappers.append(wrapper)
    names = [without_wrappers(name, wrappers) for name in names]
    while names and (wrapper := _in_front(names)):
        wrappers.append(wrapper)
        names = [name.removeprefix(wrapper) for name in names]
    return tuple(wrappers)


def _in_front(names: Sequence[str]) -> str:
    for wrapper in IN_FRONT:
        if all(name.startswith(wrapper) for name in names):
            return wrapper
    wrapped = all(name.startswith("model.") for name in names) and any(name.startswith(INSIDE_MODEL) for name in names)
    return "model." if wrapped else ""


def without_wrappers(name: str, wrappers: Iterable[str]) -> str:
    """A tensor's name without the wrappers' names."""
    for wrapper in wrappers:
        at = r"(?<![^.])" if wrapper in ANYWHERE else "^"  # at the beginning or after a dot
        name = re.sub(rf"{at}({re.escape(wrapper)})" + ("+" if wrapper in ANYWHERE else ""), "", name)
    return name


def _weight_files(folder: Path, config: Mapping[str, Any]) -> list[tuple[Path, list[str] | None]]:
    """The files that transformers will read, each with the tensors that the index expects in it (None: all of them)."""
    named = config.get("transformers_weights")
    single = folder / (named if isinstance(named, str) and Path(named).name == named else SINGLE)
    if any(folder.glob("shard-*-of-*.safetensors")):
        remedy = "save it whole with save_pretrained(FOLDER)"
        raise BackboneError(f"{folder} holds a distributed checkpoint", expected=f"{SINGLE}, or shards with {INDEX}", remedy=remedy)
    if single.is_file() and not single.name.endswith(".index.json"):
        return [(single, None)]
    index = single if single.is_file() else folder / INDEX
    if index.is_file():
        return _shards(index)
    raise _no_weights(folder)


def _shards(index: Path) -> list[tuple[Path, list[str] | None]]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise BackboneError(
            f"{index} can't be used", expected="weight_map: tensor names with their files", found=str(weight_map)[:80], remedy=DOWNLOAD_AGAIN
        )
    shards: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        shards.setdefault(name, []).append(tensor)
    missing = sorted(name for name in shards if Path(name).name != name or not (index.parent / name).is_file())
    if missing:
        lost = [tensor for name in missing for tensor in shards[name]]
        raise BackboneError(
            f"{index.parent} lacks {len(missing)} of its {len(shards)} files of weights",
            expected=", ".join(missing[:4]),
            found=f"{len(lost)} tensors are in them, {first_few(lost)} among them",
            remedy="download the missing files; all shards lie in one folder, beside the index",
        )
    return [(index.parent / name, tensors) for name, tensors in sorted(shards.items())]


def _no_weights(folder: Path) -> BackboneError:
    names = sorted(path.name for path in folder.iterdir())
    expected = f"{SINGLE}, or shards with {INDEX}"
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        remedy = f"shards need their {INDEX}, which lies beside them in the model's repository; a single file must be called {SINGLE}"
        return BackboneError(f"the weights in {folder} are not under the names of a model", expected=expected, found=first_few(shards), remedy=remedy)
    pickled = [name for name in names if name.endswith(PICKLED) and not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))]
    if pickled:
        problem = f"{folder} has its weights as pickled files only, which can run code when they are opened and are never read here"
        return BackboneError(problem, expected=expected, found=first_few(pickled), remedy=TO_SAFETENSORS)
    foreign = [name for name in names if name.endswith(FOREIGN_WEIGHTS)]
    if foreign:
        return BackboneError(f"{folder} has weights for another library only", expected=expected, found=first_few(foreign), remedy=TO_SAFETENSORS)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return BackboneError(
            f"{folder} has its weights as GGUF files", expected=expected, found=first_few(ggufs), remedy=f"--model {folder / ggufs[0]}"
        )
    return BackboneError(f"{folder} holds no weights", expected=expected, found=", ".join(names[:8]), remedy="download the model's *.safetensors")


def _header(file: Path, wanted: Sequence[str] | None) -> list[StoredTensor]:
    check_file(file)
    try:
        with safe_open(file, framework="numpy") as handle:
            views = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - it has no iterator
            stored = {name: StoredTensor(name=name, file=file, shape=tuple(view.get_shape()), kind=view.get_dtype()) for name, view in views.items()}
    except (SafetensorError, OSError) as error:
        raise BackboneError(
            f"{file} is cut or damaged",
            expected="a whole safetensors file",
            found=f"{file.stat().st_size:,} bytes; {error}",
            remedy=DOWNLOAD_AGAIN,
        ) from error
    lost = [name for name in wanted or () if name not in stored]
    if lost:
        raise BackboneError(
            f"{file} lacks {len(lost)} tensors that {INDEX} lists", expected=first_few(lost), found=first_few(sorted(stored)), remedy=DOWNLOAD_AGAIN
        )
    return list(stored.values())


def _check_adapter(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises BackboneError where PEFT's parts are among the weights: the adapter is not merged into them."""
    parts = [name for name in tensors if re.search(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer|modules_to_save)\.", name)]
    if parts:
        raise BackboneError(
            f"{folder} was saved with an adapter in it that is not merged",
            expected="plain weights",
            found=first_few(parts),
            remedy="merge it before saving: model = peft_model.merge_and_unload(); model.save_pretrained(FOLDER)",
        )


def _check_kinds(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    odd = [f"{name} ({tensor.kind})" for name, tensor in tensors.items() if tensor.kind not in FLOATS and not tensor.is_computed]
    if odd:
        raise BackboneError(
            f"{folder} has weights in numbers that can't be read without their scale",
            expected=f"{', '.join(FLOATS)}, or a quantization_config in config.json that explains them",
            found=first_few(odd),
            remedy="take config.json from the same repository as the weights, or weights that are not quantised",
        )

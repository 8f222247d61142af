"""The policy that is aligned: a backbone with its language-model head, and a LoRA adapter of ours or none.

An adapter is a folder as PEFT writes it (safetensors, no pickle), known by a hash over its tensors. To be trained it stands beside the weights; to
generate and to be evaluated it is added into them, since beside half-precision weights a small update is lost: a layer's output lies on bfloat16's
grid, and what LoRA adds to it is rounded away where it is less than half a step. Measured on SmolLM2 after six steps of DPO in float32 (16 pairs,
lr 5e-5): these pairs' mean margin is 0.271 in float32, 0.058 in bfloat16 with the adapter beside the weights, and 0.253 in bfloat16 with the adapter
added to float32 weights and the sums rounded. Weights that lie on the grid themselves, as the Hub's do, would have the same trouble, so sums are
rounded up or down at random (seeded): the update is kept on average, and a weight that it leaves alone stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.align.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_base, check_names, read_adapter
from core.backbone.checkpoint import read_checkpoint, some
from core.backbone.loading import check_finite
from core.backbone.model import Backbone, load_backbone
from core.backbone.model_folder import read_config
from core.backbone.source import find_model
from core.backbone.transformers_calls import library_errors, model_config, quiet_transformers
from core.config import BackboneConfig, DPOConfig
from core.errors import BackboneError, ConfigError, MismatchError, StoreError
from core.runs.store import publish_folder
from core.types import Progress, no_progress

if TYPE_CHECKING:
    import torch

BASE = "base"  # what stands for the hash of an adapter where there is none
NAME = "default"  # under which PEFT keeps the adapter


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A loaded policy. `backbone` computes with the adapter; `changed`: each weight that the adapter changes, its values without and with it."""

    backbone: Backbone
    adapter_hash: str
    changed: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...] = ()

    @property
    def is_base(self) -> bool:
        """Whether this is the base model itself."""
        return not self.changed

    @contextlib.contextmanager
    def base(self) -> Iterator[Backbone]:
        """The same backbone without the adapter, as long as the context lasts; nothing is computed or copied for it."""
        for weight, without, _ in self.changed:
            weight.data = without
        try:
            yield self.backbone
        finally:
            for weight, _, with_it in self.changed:
                weight.data = with_it


def load_policy(base: BackboneConfig, adapter: Path | None, *, progress: Progress = no_progress) -> Policy:
    """The whole base model with the adapter of a folder in its weights (None: the base model itself), ready to generate and to be evaluated.

    Raises BackboneError as loading does and for quantised weights with an adapter, StoreError if the folder holds no LoRA adapter of this model.
    """
    if adapter is not None and base.quantization != "none":
        raise BackboneError("an adapter can't be added into quantised weights", expected="--quantization none", found=base.quantization)
    if adapter is None:
        return Policy(backbone=load_backbone(base, progress=progress), adapter_hash=BASE)
    stored = dict(read_adapter(adapter))  # what is wrong with an adapter is said before the model is loaded
    check_base(adapter, base, find_model(base, progress=progress))
    backbone = load_backbone(base, progress=progress)
    changed = _changed_weights(backbone.model, adapter, stored)
    for weight, _, with_it in changed:
        weight.data = with_it
    return Policy(backbone=backbone, adapter_hash=adapter_hash(adapter), changed=changed)


def _changed_weights(model: Any, adapter: Path, stored: Mapping[str, Any]) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...]:
    """Each weight of the model that the adapter changes, its values now, and its values with the adapter added."""
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    other = [name for name in stored if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if other:
        raise StoreError(f"the adapter in {adapter} is more than LoRA on linear layers", expected="lora_A and lora_B", found=", ".join(other[:3]))
    with quiet():
        try:
            peft = PeftModel.from_pretrained(model, str(adapter), adapter_name=NAME)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise StoreError(f"the adapter in {adapter} does not fit this model", found=f"{type(error).__name__}: {error}") from error
    check_names(adapter, stored, adapter_tensors(peft))
    layers: list[Any] = [layer for layer in peft.modules() if isinstance(layer, LoraLayer)]
    weights, draws = [layer.get_base_layer().weight for layer in layers], torch.Generator().manual_seed(0)
    with torch.no_grad():
        added = [_added(weight.data, layer.get_delta_weight(NAME), draws) for weight, layer in zip(weights, layers, strict=True)]
    changed = tuple((weight, weight.data, with_it) for weight, with_it in zip(weights, added, strict=True))
    peft.unload()
    return changed


def _added(weight: torch.Tensor, update: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """`weight + update` in the weight's dtype; in half precision rounded up or down with the chances that keep its mean."""
    import torch

    total = weight.float() + update.float()
    if weight.dtype == torch.float32:
        return total
    step = torch.finfo(weight.dtype).eps * torch.ldexp(torch.ones_like(total), torch.frexp(total).exponent - 1)
    chance = torch.rand(total.shape, generator=draws).to(total.device) - 0.5
    return (total + chance * step).to(weight.dtype)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without bars, and without the warnings that PEFT 0.21 and TRL 1.16 draw from transformers 5.23 by names they will have to change."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)
        yield


def new_lora(config: DPOConfig) -> Any:
    """LoRA on all linear layers but the head (METHOD.md section 5). B starts at zero, so a new adapter computes what the base computes."""
    from peft import LoraConfig

    options: dict[str, Any] = {"r": config.lora_r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
    return LoraConfig(**options, target_modules="all-linear", bias="none", task_type="CAUSAL_LM")


def adapter_tensors(peft: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names PEFT saves them by, copied to the CPU."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(peft, adapter_name=NAME, save_embedding_layers=False)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in sorted(found.items())}


def set_adapter_tensors(peft: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts saved tensors in the place of the adapter's. Raises MismatchError where names or shapes are others."""
    from peft import set_peft_model_state_dict

    have = {name: tuple(tensor.shape) for name, tensor in adapter_tensors(peft).items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if have != given:
        wrong = sorted(set(have.items()) ^ set(given.items()))[:2]
        raise MismatchError(
            "the adapter to go on from has another form than the one to be trained",
            expected=f"{len(have)} tensors, rank and layers as the configuration says",
            found=f"{len(given)} tensors; among the differences {wrong}",
            remedy="the same --lora-r and the same base model in every round",
        )
    set_peft_model_state_dict(peft, dict(tensors), adapter_name=NAME)


def load_adapter(folder: Path, config: DPOConfig) -> dict[str, torch.Tensor]:
    """The tensors of an adapter that is to be trained on. Raises MismatchError if it was scaled otherwise, StoreError if it can't be read."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import load_file

    read_adapter(folder)
    with library_errors(f"{folder / ADAPTER_CONFIG} can't be used"):
        said = LoraConfig.from_pretrained(str(folder))
    if (said.r, said.lora_alpha) != (config.lora_r, config.lora_alpha):
        raise MismatchError(
            f"the adapter in {folder} has another rank or scale than the configuration",
            expected=f"r {config.lora_r}, alpha {config.lora_alpha}",
            found=f"r {said.r}, alpha {said.lora_alpha}",
            remedy="go on with the values it was trained with, or begin from the base model",
        )
    tensors = {name: tensor.to(torch.float32) for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    wrong = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if wrong:
        raise StoreError(f"the adapter in {folder} holds numbers that are NaN or infinite", found=some(wrong), remedy="go on from an earlier round")
    return tensors


def save_adapter(peft: Any, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Writes a folder that plain `PeftModel.from_pretrained(base, folder)` loads: these tensors and the adapter's configuration, nothing else."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    said = peft.peft_config[NAME]
    kept = said.inference_mode, said.target_modules
    # PEFT keeps the layers' names as a set, whose order would differ from process to process and with it the file.
    said.inference_mode, said.target_modules = True, sorted(said.target_modules)
    try:
        said.save_pretrained(str(folder))
    finally:
        said.inference_mode, said.target_modules = kept


def adapter_hash(folder: Path | None) -> str:
    """sha256 over the names, shapes, kinds and bytes of an adapter's tensors; `base` for no adapter. Loads no torch."""
    return BASE if folder is None else _hash(read_adapter(folder))


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """What `adapter_hash` will say of these tensors once they are saved."""
    from safetensors import deserialize
    from safetensors.torch import save

    return _hash(deserialize(save(dict(tensors))))


def _hash(entries: Iterable[tuple[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name, entry in sorted(entries, key=lambda one: one[0]):
        digest.update(f"{name} {entry['dtype']} {list(entry['shape'])}\n".encode())
        digest.update(entry["data"])
    return digest.hexdigest()


def merge_and_save(base: BackboneConfig, adapter: Path, folder: Path, *, progress: Progress = no_progress) -> None:
    """Writes the base model with the adapter in its weights, and its tokenizer, as a plain model folder, in the dtype of the base's own files.

    Raises BackboneError if the folder stands, and as `load_policy`.
    """
    if folder.exists():
        raise BackboneError(f"{folder} exists already", remedy="name a new folder, or remove this one")
    stored = model_config(find_model(base, progress=progress).folder).get_text_config().dtype
    dtype = str(stored).removeprefix("torch.") if stored is not None else "float32"
    backbone = load_policy(replace(base, dtype=dtype, quantization="none"), adapter, progress=progress).backbone
    check_finite(backbone.model, "the merged model")
    progress("save model", 0, 1)

    def make(target: Path) -> None:
        with quiet_transformers():
            backbone.model.save_pretrained(target)
            backbone.tokenizer.save_pretrained(target)
        read_checkpoint(target, read_config(target))

    publish_folder(folder, make)
    progress("save model", 1, 1)


def training_base(base: BackboneConfig, config: DPOConfig, *, spread: bool, progress: Progress = no_progress) -> Backbone:
    """The whole base model as it is trained on: in the arithmetic of `config`, without dropout of its own (LoRA's is the only one).

    `spread`: one of several processes, each of which is given its device later. Raises BackboneError for weights that can't be trained on,
    ConfigError for another device than the first.
    """
    if base.quantization != "none":
        raise BackboneError("quantised weights are not trained on", expected="--quantization none", found=base.quantization)
    if base.device not in ("auto", "cpu", "cuda", "cuda:0", "mps"):
        raise ConfigError(
            "a policy is trained on the first device", expected="auto, cpu, cuda or mps", found=base.device, remedy="set CUDA_VISIBLE_DEVICES"
        )
    backbone = load_backbone(replace(base, dtype=config.dtype, device="cpu" if spread else base.device), progress=progress)
    _without_dropout(backbone.model)
    return backbone


def _without_dropout(model: Any) -> None:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

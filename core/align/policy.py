"""The policy that is aligned: a backbone with its language-model head, and a LoRA adapter of ours on it or none.

PEFT puts its layers into the backbone's own modules, so one `Backbone` serves for everything: it computes with the adapter, and inside
`Policy.base()` without. An adapter is a folder as PEFT writes it (safetensors, no pickle), and is known by a hash over its tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.backbone.model import Backbone, load_backbone, quiet_transformers
from core.backbone.source import find_model
from core.config import BackboneConfig, DPOConfig
from core.errors import BackboneError, ConfigError, MismatchError, StoreError
from core.types import Progress, no_progress

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE = "base"  # what stands for the hash of an adapter where there is none
NAME = "default"  # under which PEFT keeps the adapter


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A loaded policy. `backbone` computes with the adapter; `peft` is the wrapper that holds it, None for the base model itself."""

    backbone: Backbone
    peft: Any
    adapter_hash: str

    @contextlib.contextmanager
    def base(self) -> Iterator[Backbone]:
        """The backbone without the adapter, as long as the context lasts."""
        with contextlib.nullcontext() if self.peft is None else self.peft.disable_adapter():
            yield self.backbone


def load_policy(base: BackboneConfig, adapter: Path | None, *, progress: Progress = no_progress) -> Policy:
    """The whole base model with the adapter of a folder (None: the base model itself), ready to generate and to be evaluated.

    The adapter stays beside the weights: merged into bfloat16 weights, most of a small update would be rounded away.
    Raises BackboneError as loading does, and StoreError if the folder holds no adapter of this model.
    """
    backbone = load_backbone(base, progress=progress)
    if adapter is None:
        return Policy(backbone=backbone, peft=None, adapter_hash=BASE)
    return Policy(backbone=backbone, peft=_attached(backbone.model, adapter), adapter_hash=adapter_hash(adapter))


def _attached(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    _read_tensors(adapter)
    with quiet():
        try:
            return PeftModel.from_pretrained(model, str(adapter), adapter_name=NAME).eval()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise StoreError(f"the adapter in {adapter} does not fit this model", found=f"{type(error).__name__}: {error}") from error


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

    _read_tensors(folder)
    said = LoraConfig.from_pretrained(str(folder))
    if (said.r, said.lora_alpha) != (config.lora_r, config.lora_alpha):
        raise MismatchError(
            f"the adapter in {folder} has another rank or scale than the configuration",
            expected=f"r {config.lora_r}, alpha {config.lora_alpha}",
            found=f"r {said.r}, alpha {said.lora_alpha}",
            remedy="go on with the values it was trained with, or begin from the base model",
        )
    return {name: tensor.to(torch.float32) for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}


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
    return BASE if folder is None else _hash(_read_tensors(folder))


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


def _read_tensors(folder: Path) -> list[tuple[str, Any]]:
    from safetensors import SafetensorError, deserialize

    try:
        if not (folder / ADAPTER_CONFIG).is_file():
            raise FileNotFoundError(f"no {ADAPTER_CONFIG}")
        return list(deserialize((folder / ADAPTER_WEIGHTS).read_bytes()))
    except (OSError, SafetensorError) as error:
        expected = f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as PEFT saves them"
        raise StoreError(f"{folder} holds no adapter", expected=expected, found=f"{type(error).__name__}: {error}") from error


def merge_and_save(base: BackboneConfig, adapter: Path, folder: Path, *, progress: Progress = no_progress) -> None:
    """Writes the base model with the adapter merged into its weights, and its tokenizer, as a plain model folder.

    Merged in float32, then rounded once to the dtype the base's files are in. Raises BackboneError if the folder stands, and as `load_policy`.
    """
    import torch
    from transformers import AutoConfig

    from core.runs.store import publish_folder

    if folder.exists():
        raise BackboneError(f"{folder} exists already", remedy="name a new folder, or remove this one")
    stored = AutoConfig.from_pretrained(find_model(base, progress=progress).folder, trust_remote_code=False).get_text_config().dtype
    policy = load_policy(replace(base, dtype="float32", quantization="none"), adapter, progress=progress)
    progress("merge", 0, 1)
    merged = policy.peft.merge_and_unload().to(stored or torch.float32)

    def make(target: Path) -> None:
        with quiet_transformers():
            merged.save_pretrained(target)
            policy.backbone.tokenizer.save_pretrained(target)

    publish_folder(folder, make)
    progress("merge", 1, 1)


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

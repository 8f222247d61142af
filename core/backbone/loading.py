"""Loads weights and tokenizer with transformers; missing, left-over and mis-shaped tensors are errors that name them.

transformers fills what a checkpoint lacks with random numbers, leaves out tensors that it has no place for, and only
logs both. Here a model is returned only if

1. each of its tensors came from the files, with the shape that config.json gives (tied embeddings count as there);
2. each tensor in the files is used, or belongs to what was left out on purpose: layers above the depth, and the LM head
   where none is wanted;
3. no number in it is NaN or infinite, and neither the embedding nor a layer holds zeros only;
4. the tokenizer's tokens have rows in the embedding.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from core.backbone.checkpoint import Checkpoint
from core.backbone.model_folder import DOWNLOAD_AGAIN, first_few
from core.backbone.transformers_calls import library_errors, quiet_transformers
from core.errors import BackboneError

log = logging.getLogger(__name__)
OLD_HEADS = ("lm_head.", "embed_out.")  # names of LM heads in files, whatever the classes call them now


def load_weights(kind: Any, folder: Path, config: Any, checkpoint: Checkpoint, *, name: str, n_layers: int, **options: Any) -> Any:
    """The model of class `kind` with `config`, which may have fewer layers than the whole model (`n_layers`). `options`
    go to `from_pretrained`. Raises BackboneError as this module's first lines say."""
    with quiet_transformers(), library_errors(f"{name} can't be loaded from {folder}"):
        given: dict[str, Any] = {"pretrained_model_name_or_path": folder}
        if checkpoint.wrappers:
            kind, given = _class_of(kind, config), {"pretrained_model_name_or_path": None, "state_dict": _unwrapped(checkpoint)}
        model, report = kind.from_pretrained(
            **given,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else it raises without a name; check_report refuses them by name
            **options,
        )
        if checkpoint.wrappers:
            _name_folder(model, folder)
    check_report(model, report, checkpoint, name=name, n_layers=n_layers)
    check_finite(model, name)
    return model


def _class_of(kind: Any, config: Any) -> type:
    """The concrete class that an automatic class chooses: only a concrete class takes tensors without a folder."""
    with torch.device("meta"):
        return type(kind.from_config(config))


def _name_folder(model: Any, folder: Path) -> None:
    """Sets what `from_pretrained` reads beside the weights: generation settings, and the folder's name for adapters."""
    model.name_or_path = model.config.name_or_path = str(folder)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def _unwrapped(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors under their names without wrappers. Files are mapped, so tensors that are not used are not read."""
    files = {tensor.file: load_file(tensor.file) for tensor in checkpoint.tensors.values()}
    return {name: files[tensor.file][tensor.name] for name, tensor in checkpoint.tensors.items()}


def check_report(model: Any, report: Mapping[str, Any], checkpoint: Checkpoint, *, name: str, n_layers: int) -> None:
    """Raises BackboneError with the tensors that transformers' `report` lists as missing, mis-shaped or left over."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    unused = list(_unused(model, report, checkpoint, depth, n_layers))
    wrong = {
        "missing": sorted(report["missing_keys"], key=_natural),
        "of another shape": sorted(
            f"{key} is {tuple(stored)}, the configuration gives {tuple(wanted)}" for key, stored, wanted in report["mismatched_keys"]
        ),
        "not of this model": sorted(unused, key=_natural),
        f"twice, with {model.base_model_prefix}. in front and without": _doubled(model, checkpoint),
    }
    if not any(wrong.values()):
        return
    raise BackboneError(
        f"the weights of {name} are not whole, or not of the model that its configuration describes",
        expected=f"every tensor of {type(model).__name__} with {depth} layers, and no other",
        found="; ".join(f"{what}: {first_few(keys)}" for what, keys in wrong.items() if keys),
        remedy=_remedy(wrong["missing"], unused, n_layers),
    )


def _unused(model: Any, report: Mapping[str, Any], checkpoint: Checkpoint, depth: int, n_layers: int) -> Iterator[str]:
    """Tensors in the files that the model did not take; those that were left out on purpose are not among them."""
    layers = next((path for path, module in model.named_modules() if _is_layer_list(module, depth)), "layers")
    later = re.compile(rf"(?:^|\.){re.escape(layers.rpartition('.')[2])}\.(\d+)\.")
    # After its own layers a model may have others that predict further tokens; they are never used here.
    last = n_layers + int(getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0)
    head = None
    for key in report["unexpected_keys"]:
        number = later.search(key)
        stored = checkpoint.tensors.get(key)
        if (number and depth <= int(number[1]) < last) or (stored and stored.is_computed):
            continue
        if model.get_output_embeddings() is None:
            head = _head_names(model) if head is None else head
            if key in head or key.startswith(OLD_HEADS):
                continue
        yield key


def _is_layer_list(module: Any, depth: int) -> bool:
    return isinstance(module, torch.nn.ModuleList) and len(module) == depth


def _head_names(model: Any) -> set[str]:
    """Names of the tensors that a language model has beyond the same model without its head."""
    with contextlib.suppress(ValueError), torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config)
        prefix = f"{whole.base_model_prefix}."
        return {name for name in whole.state_dict() if not name.startswith(prefix)}
    return set()


def _doubled(model: Any, checkpoint: Checkpoint) -> list[str]:
    """Tensors stored with and without the inner model's name in front: transformers takes one without a report."""
    prefix = f"{model.base_model_prefix}."
    return sorted(name for name in checkpoint.tensors if name.startswith(prefix) and name.removeprefix(prefix) in checkpoint.tensors)


def _remedy(missing: Sequence[str], unused: Sequence[str], n_layers: int) -> str:
    layers = [int(number[1]) for key in unused if (number := re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", f".{key}"))]
    if layers and min(layers) >= n_layers and not missing:
        return f"the configuration gives num_hidden_layers {n_layers} and the files hold {max(layers) + 1}: take both from the same repository"
    tails = [(key, lost) for key in unused for lost in missing if key.endswith(f".{lost}")]
    if tails:
        key, lost = min(tails, key=lambda pair: len(pair[0]) - len(pair[1]))
        return f"names that begin with {key.removesuffix(lost)!r} come from a wrapper around the model: save the model inside it"
    return f"{DOWNLOAD_AGAIN}, or save or convert the model again; as it is, random numbers would stand in for what is missing"


def check_finite(model: Any, name: str) -> None:
    """Raises BackboneError for a NaN, an infinity or a layer of zeros in the model; costs one sum a tensor."""
    zeros = []
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() == 1:
            continue
        total = float(tensor.detach().sum(dtype=torch.float32))
        if math.isfinite(total):
            zeros += [key] if total == 0 and tensor.ndim > 1 and not bool(tensor.detach().any()) else []
            continue
        n_wrong = int((~torch.isfinite(tensor.detach())).sum())  # a sum of large numbers may be infinite where none of them is
        if n_wrong:
            dtype = str(tensor.dtype).removeprefix("torch.")
            small = "; float16 ends at 65504: --dtype bfloat16 or float32 if the files have larger numbers" if dtype == "float16" else ""
            raise BackboneError(
                f"the weights of {name} hold numbers that are not finite",
                expected="finite numbers",
                found=f"{n_wrong:,} of {tensor.numel():,} in {key} are NaN or infinite ({dtype})",
                remedy=f"{DOWNLOAD_AGAIN}, or take an earlier checkpoint of its training{small}",
            )

    _check_zeros(model, zeros, name)


def _check_zeros(model: Any, zeros: Sequence[str], name: str) -> None:
    """Raises BackboneError where the embedding or a whole layer holds zeros only, as after an interrupted download.
    Some models are grown by blocks that change nothing yet, so single matrices of zeros are only logged."""
    matrices = {key: parameter for key, parameter in model.named_parameters() if parameter.ndim > 1}
    wrong = [key for key in zeros if matrices.get(key) is model.get_input_embeddings().weight]
    layers: dict[str, list[str]] = {}
    for key in matrices:
        if number := re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.\d+\.", key):
            layers.setdefault(key[: number.end()], []).append(key)
    wrong += [f"{layer}*" for layer, keys in layers.items() if set(keys) <= set(zeros)]
    if wrong:
        raise BackboneError(
            f"the weights of {name} hold nothing but zeros where there should be numbers",
            expected="weights of a trained model",
            found=f"only zeros: {first_few(wrong)}",
            remedy=f"{DOWNLOAD_AGAIN}: an interrupted download may leave zeros behind, in a file of the right size",
        )
    odd = [key for key in zeros if key in matrices]
    if odd:
        log.warning("%s: these weights are all zeros: %s", name, first_few(odd))


def load_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer of a model folder. Raises BackboneError where transformers can't read it."""
    with quiet_transformers(), library_errors(f"the tokenizer of {name} can't be loaded from {folder}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Raises BackboneError where a token of texts has no row in the embedding; more rows than tokens is usual.

    Special tokens beyond the embedding are accepted where they are neither in the chat template nor begin or end of
    text (Gemma 3 has one for images): a text does not normally reach them, and `check_ids` refuses them if it does.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    template = str(tokenizer.chat_template or "")
    special = set(tokenizer.all_special_tokens) | {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = {str(token) for token in (tokenizer.bos_token, tokenizer.eos_token) if token}
    needed = sorted((number, token) for token, number in beyond.items() if token not in special or token in template or token in ends)
    if needed:
        raise BackboneError(
            f"the tokenizer of {name} has more tokens than the model has rows in its embedding",
            expected=f"tokens below {rows}",
            found=first_few([f"{token!r} ({number})" for number, token in needed]),
            remedy="take tokenizer and weights from the same repository; if tokens were added, save the model after resize_token_embeddings",
        )


def check_ids(model: Any, tokenizer: Any, input_ids: torch.Tensor) -> None:
    """Raises BackboneError that names a token without a row in the embedding; a device's own error would not."""
    rows, largest = int(model.get_input_embeddings().weight.shape[0]), int(input_ids.max()) if input_ids.numel() else 0
    if largest >= rows:
        raise BackboneError(
            "a text holds a token that the model has no embedding for",
            expected=f"tokens below {rows}",
            found=f"{tokenizer.convert_ids_to_tokens(largest)!r} ({largest})",
            remedy="take the token out of the text, or a tokenizer and weights of the same repository",
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]

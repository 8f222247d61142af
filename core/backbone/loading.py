"""Loading through transformers, with every report read: what is missing, left over or of another shape is an error that names it.

transformers fills what a checkpoint lacks with random numbers, leaves out what it does not know, and says so in a log.
Here a model is handed on only if

1. each of its tensors came from the files, with the shape that config.json gives (tied embeddings count as there);
2. each tensor in the files is used, or belongs to what was left out on purpose: layers above the depth, and the LM head where none is wanted;
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
from typing import TYPE_CHECKING, Any

from core.backbone.checkpoint import Checkpoint, some
from core.backbone.model_folder import AGAIN, architecture_in
from core.errors import BackboneError, Cancelled, SparseRMError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
NO_LANGUAGE_MODEL = {
    "ForSequenceClassification": "a sequence classifier (a reward model with a scalar head is one)",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "a model for extractive question answering",
    "ForMultipleChoice": "a model for multiple choice",
    "ForNextSentencePrediction": "a model for next-sentence prediction",
}
OLD_HEADS = ("lm_head.", "embed_out.")  # names of LM heads in files, whatever the classes call them now
GIVE_ANOTHER = "give a causal language model: the one it was made from, or another whose hidden states an SAE reads"


def model_config(folder: Path) -> Any:
    """transformers' configuration of a model folder. Raises BackboneError where it is of an unknown kind, needs custom code or can't be used."""
    from transformers import AutoConfig

    with library_errors(f"config.json in {folder} can't be used"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def check_kind(config: Any, raw: Mapping[str, Any], name: str) -> None:
    """Raises BackboneError unless `config` (config.json is `raw`) is of a causal language model that transformers itself can build."""
    import transformers

    architecture = architecture_in(raw)
    if architecture and not hasattr(transformers, architecture):
        raise BackboneError(
            f"{name} is an {architecture}, which transformers {transformers.__version__} does not have",
            expected="a class of transformers in config.json's architectures",
            found="custom code (auto_map), which is never run" if raw.get("auto_map") else architecture,
            remedy="use a model that transformers has itself, or a newer transformers",
        )
    for ending, what in NO_LANGUAGE_MODEL.items():
        if architecture.endswith(ending):
            raise BackboneError(f"{name} is no language model but {what}", expected="...ForCausalLM", found=architecture, remedy=GIVE_ANOTHER)
    if getattr(config, "is_encoder_decoder", False):
        problem = f"{name} is a sequence-to-sequence model ({config.model_type}): an encoder reads the prompt, a decoder writes the answer"
        raise BackboneError(problem, expected="a decoder-only language model", found=architecture or config.model_type, remedy=GIVE_ANOTHER)
    kind = type(config)
    if kind in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        problem = f"{name} is an encoder ({config.model_type}): each of its tokens sees those that come after it"
        raise BackboneError(problem, expected="a decoder-only language model", found=architecture or config.model_type, remedy=GIVE_ANOTHER)
    causal = (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )
    if not any(kind in mapping for mapping in causal):
        problem = f"{name} is no language model ({config.model_type})"
        raise BackboneError(problem, expected="a causal language model", found=architecture or config.model_type, remedy=GIVE_ANOTHER)
    _check_quantization(raw.get("quantization_config"), name)
    if raw.get("auto_map"):
        log.warning("%s: config.json names custom code (auto_map), which is never run; transformers' own %s is used", name, config.model_type)


def _check_quantization(stated: Any, name: str) -> None:
    """transformers ignores a kind of quantisation that it does not know, and reads packed numbers as if they were plain."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    if stated is None:
        return
    with quiet_transformers(), library_errors(f"the quantization_config of {name} can't be used"):
        AutoQuantizationConfig.from_dict(dict(stated))


def load_weights(kind: Any, folder: Path, config: Any, checkpoint: Checkpoint, *, name: str, n_layers: int, **options: Any) -> Any:
    """The model of class `kind` with `config`, which may have fewer layers than the `n_layers` that the whole model has.

    `options` go to `from_pretrained`. Raises BackboneError as this module's first lines say.
    """
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
    """The class that an automatic class stands for: only it takes tensors without a folder."""
    import torch

    with torch.device("meta"):
        return type(kind.from_config(config))


def _name_folder(model: Any, folder: Path) -> None:
    """What `from_pretrained` takes from a folder beside the weights: how answers end, and the name that an adapter will give for its base."""
    from transformers import GenerationConfig

    model.name_or_path = model.config.name_or_path = str(folder)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def _unwrapped(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors under their names without wrappers, as maps of the files: what is not used is not read."""
    from safetensors.torch import load_file

    files = {tensor.file: load_file(tensor.file) for tensor in checkpoint.tensors.values()}
    return {name: files[tensor.file][tensor.name] for name, tensor in checkpoint.tensors.items()}


def check_report(model: Any, report: Mapping[str, Any], checkpoint: Checkpoint, *, name: str, n_layers: int) -> None:
    """Raises BackboneError, with names, where transformers' `report` on loading `model` from `checkpoint` tells of anything not meant."""
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
        found="; ".join(f"{what}: {some(keys)}" for what, keys in wrong.items() if keys),
        remedy=_remedy(wrong["missing"], unused, n_layers),
    )


def _unused(model: Any, report: Mapping[str, Any], checkpoint: Checkpoint, depth: int, n_layers: int) -> Iterator[str]:
    """Tensors in the files that the model did not take, without those that were left out on purpose."""
    layers = next((path for path, module in model.named_modules() if _is_layer_list(module, depth)), "layers")
    later = re.compile(rf"(?:^|\.){re.escape(layers.rpartition('.')[2])}\.(\d+)\.")
    # A model may carry layers that predict further tokens, after its own; they are no part of what is read.
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
    import torch

    return isinstance(module, torch.nn.ModuleList) and len(module) == depth


def _head_names(model: Any) -> set[str]:
    """Names of what the language model with its head has beside the model without one."""
    import torch
    from transformers import AutoModelForCausalLM

    with contextlib.suppress(ValueError), torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config)
        prefix = f"{whole.base_model_prefix}."
        return {name for name in whole.state_dict() if not name.startswith(prefix)}
    return set()


def _doubled(model: Any, checkpoint: Checkpoint) -> list[str]:
    """Tensors that stand in the files with and without the inner model's name in front: only one of them is taken, and not said which."""
    prefix = f"{model.base_model_prefix}."
    return sorted(name for name in checkpoint.tensors if name.startswith(prefix) and name.removeprefix(prefix) in checkpoint.tensors)


def _remedy(missing: Sequence[str], unused: Sequence[str], n_layers: int) -> str:
    layers = [int(number[1]) for key in unused if (number := re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", f".{key}"))]
    if layers and min(layers) >= n_layers and not missing:
        return f"the configuration says num_hidden_layers {n_layers} and the files hold {max(layers) + 1}: take both from the same repository"
    tails = [(key, lost) for key in unused for lost in missing if key.endswith(f".{lost}")]
    if tails:
        key, lost = min(tails, key=lambda pair: len(pair[0]) - len(pair[1]))
        return f"names that begin with {key.removesuffix(lost)!r} come from a wrapper around the model: save the model inside it"
    return f"{AGAIN}, or save or convert the model again; as it is, random numbers would stand in for what is missing"


def check_finite(model: Any, name: str) -> None:
    """Raises BackboneError where a number in the model's tensors is NaN or infinite, or a layer is empty. One sum a tensor, where the tensor lies."""
    import torch

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
                f"the weights of {name} hold numbers that are none",
                expected="finite numbers",
                found=f"{n_wrong:,} of {tensor.numel():,} in {key} are NaN or infinite ({dtype})",
                remedy=f"{AGAIN}, or take an earlier checkpoint of its training{small}",
            )

    _check_zeros(model, zeros, name)


def _check_zeros(model: Any, zeros: Sequence[str], name: str) -> None:
    """Raises BackboneError where the embedding or all matrices of a layer hold zeros only: a download that was cut after its place was reserved.

    Single matrices of zeros are how some models are made to grow (blocks that change nothing yet), so they are only said.
    """
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
            found=f"only zeros: {some(wrong)}",
            remedy=f"{AGAIN}: a download that breaks off may leave zeros behind, in a file of the right size",
        )
    odd = [key for key in zeros if key in matrices]
    if odd:
        log.warning("%s: these weights are all zeros: %s", name, some(odd))


def load_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer of a model folder. Raises BackboneError where transformers can't read it."""
    from transformers import AutoTokenizer

    with quiet_transformers(), library_errors(f"the tokenizer of {name} can't be loaded from {folder}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Raises BackboneError where tokens that texts are made of have no row in the embedding; more rows than tokens is usual.

    Special tokens beyond the embedding are let through where neither the chat template nor begin and end need them (Gemma 3 has one for images):
    a text can't reach them, and `check_ids` refuses them if it does.
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
            found=some([f"{token!r} ({number})" for number, token in needed]),
            remedy="take tokenizer and weights from the same repository; if tokens were added, save the model after resize_token_embeddings",
        )


def check_ids(model: Any, tokenizer: Any, input_ids: torch.Tensor) -> None:
    """Raises BackboneError where a token has no row in the model's embedding, before a device fails on it without a name."""
    rows, largest = int(model.get_input_embeddings().weight.shape[0]), int(input_ids.max()) if input_ids.numel() else 0
    if largest >= rows:
        raise BackboneError(
            "a text holds a token that the model has no embedding for",
            expected=f"tokens below {rows}",
            found=f"{tokenizer.convert_ids_to_tokens(largest)!r} ({largest})",
            remedy="take the token out of the text, or a tokenizer and weights of the same repository",
        )


@contextlib.contextmanager
def library_errors(problem: str, remedy: str = "") -> Iterator[None]:
    """What a library raises while a model is loaded becomes a BackboneError: it is the model's fault or the machine's, not ours."""
    import torch

    try:
        yield
    except (SparseRMError, Cancelled):
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        smaller = "--device-map auto, --quantization 8bit or 4bit, or a smaller model"
        raise BackboneError(f"{problem}: it does not fit in memory", found=_first_line(error), remedy=smaller) from error
    except ImportError as error:
        install = "install the package that is named, in the same environment"
        raise BackboneError(f"{problem}: a package is missing", found=f"{type(error).__name__}: {_first_line(error)}", remedy=install) from error
    except Exception as error:
        text, remedy = str(error), remedy or "compare its files with those in the model's own repository; a newer transformers may read it"
        if "does not recognize this architecture" in text or "Unrecognized model" in text:
            remedy = "pip install -U transformers if the model is new; check model_type in config.json"
        elif "trust_remote_code" in text or "custom code" in text:
            remedy = "its repository's own code would have to run, which is never done here: use a model that transformers has itself"
        elif "scaled_dot_product_attention" in text:
            remedy = "--attention eager"
        elif "GGUF model with architecture" in text:
            remedy = "give the model as safetensors: a folder or a Hub id"
        elif "quantization" in text.lower():
            remedy = "take weights that are not quantised, and use --quantization if memory is short"
        raise BackboneError(problem, found=f"{type(error).__name__}: {_first_line(error)}", remedy=remedy) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' bars and reports; what they report is read where it matters."""
    from transformers.utils import logging as library

    before, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(before)
        if bars:
            library.enable_progress_bar()

"""Calls transformers quietly, with a remedy on every error, and checks what it makes of a config.json."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import logging as transformers_logging

from core.backbone.model_folder import architecture_in
from core.errors import BackboneError, Cancelled, SparseRMError

log = logging.getLogger(__name__)
# Endings of architectures that are no language models.
OTHER_KINDS = {
    "ForSequenceClassification": "a sequence classifier (a reward model with a scalar head is one)",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "a model for extractive question answering",
    "ForMultipleChoice": "a model for multiple choice",
    "ForNextSentencePrediction": "a model for next-sentence prediction",
}
GIVE_ANOTHER = "give a causal language model: the one it was made from, or another whose hidden states an SAE reads"
GIVE_SAFETENSORS = "give the model as safetensors: a folder or a Hub id"
# A part of a library's message in lower case, and what the user should do about it; the first that fits is given.
REMEDIES = (
    ("does not recognize this architecture", "pip install -U transformers if the model is new; check model_type in config.json"),
    ("unrecognized model", "pip install -U transformers if the model is new; check model_type in config.json"),
    ("trust_remote_code", "its repository's own code would have to run, which is never done here: use a model that transformers has itself"),
    ("custom code", "its repository's own code would have to run, which is never done here: use a model that transformers has itself"),
    ("scaled_dot_product_attention", "--attention eager"),
    ("gguf model with architecture", GIVE_SAFETENSORS),
    ("quantization", "take weights that are not quantised, and use --quantization if memory is short"),
)


@contextlib.contextmanager
def library_errors(problem: str, remedy: str = "") -> Iterator[None]:
    """Turns what a library raises while a model is loaded into a BackboneError: the model or the machine is the cause.
    `remedy` is given where the library's message suggests none of `REMEDIES`."""
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
        text = str(error).lower()
        known = next((advice for part, advice in REMEDIES if part in text), "")
        remedy = known or remedy or "compare its files with those in the model's own repository; a newer transformers may read it"
        raise BackboneError(problem, found=f"{type(error).__name__}: {_first_line(error)}", remedy=remedy) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars and reports. `load_weights` reads those reports itself."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def model_config(folder: Path) -> Any:
    """transformers' configuration of a model folder. Raises BackboneError for an unknown kind, custom code, damage."""
    with library_errors(f"config.json in {folder} can't be used"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def check_kind(config: Any, raw: Mapping[str, Any], name: str) -> None:
    """Raises BackboneError unless transformers can build a causal language model of `config` (config.json is `raw`)."""
    architecture = architecture_in(raw)
    if architecture and not hasattr(transformers, architecture):
        raise BackboneError(
            f"{name} is an {architecture}, which transformers {transformers.__version__} does not have",
            expected="a class of transformers in config.json's architectures",
            found="custom code (auto_map), which is never run" if raw.get("auto_map") else architecture,
            remedy="use a model that transformers has itself, or a newer transformers",
        )
    for ending, kind in OTHER_KINDS.items():
        if architecture.endswith(ending):
            raise BackboneError(f"{name} is no language model but {kind}", expected="...ForCausalLM", found=architecture, remedy=GIVE_ANOTHER)
    problem = _not_causal(config)
    if problem:
        expected = "a causal language model" if problem.startswith("no language model") else "a decoder-only language model"
        raise BackboneError(f"{name} is {problem}", expected=expected, found=architecture or config.model_type, remedy=GIVE_ANOTHER)
    quantization = raw.get("quantization_config")
    if quantization is not None:
        # transformers ignores a kind of quantisation that it does not support, and reads packed numbers as if they were
        # plain.
        with quiet_transformers(), library_errors(f"the quantization_config of {name} can't be used"):
            AutoQuantizationConfig.from_dict(dict(quantization))
    if raw.get("auto_map"):
        log.warning("%s: config.json names custom code (auto_map), which is never run; transformers' own %s is used", name, config.model_type)


def _not_causal(config: Any) -> str:
    """What a model of this configuration is, where it is no causal language model; else empty."""
    kind = type(config)
    if getattr(config, "is_encoder_decoder", False):
        return f"a sequence-to-sequence model ({config.model_type}): an encoder reads the prompt, a decoder writes the answer"
    if kind in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return f"an encoder ({config.model_type}): each of its tokens sees those that come after it"
    causal = (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )
    return "" if any(kind in mapping for mapping in causal) else f"no language model ({config.model_type})"

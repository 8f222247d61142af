"""The language model up to decoder layer L: `load_backbone`, and hidden states without logits (METHOD.md section 2).

Layer L is 0-based and means the output of decoder layer L (`hidden_states[L+1]`). A hook on that layer reads it: the
last entry of `hidden_states` comes after the final norm, so that tuple is never indexed from the end. A backbone loaded
with a `depth` has no later layers and no LM head.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

from core.backbone.checkpoint import read_checkpoint
from core.backbone.layout import Unreadable
from core.backbone.loading import check_ids, check_vocabulary, load_tokenizer, load_weights
from core.backbone.model_folder import read_config
from core.backbone.source import ModelSource, backbone_identity, find_model, resolve_device
from core.backbone.template import ChatTemplate, Rendered
from core.backbone.token_text import token_bytes
from core.backbone.transformers_calls import check_kind, library_errors, model_config
from core.config import BackboneConfig
from core.errors import BackboneError, DataError
from core.types import Message, Progress, no_progress

log = logging.getLogger(__name__)
QUOTES = b"\"')]*_"  # what may stand between a sentence's mark and the next sentence


class Backbone:
    """A loaded language model with its chat template. `identity` (JSON): all that could change a hidden state."""

    def __init__(self, model: Any, tokenizer: Any, config: BackboneConfig, identity: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config
        rules = {"control_tokens": config.control_tokens, "think": config.think}
        self.template = ChatTemplate(tokenizer, date=config.template_date, **rules)
        self.layers = decoder_layers(model)
        self.device, self.dtype = model.device, model.dtype
        self.d_model, self.n_layers = int(identity["d_model"]), int(identity["n_layers"])
        self.identity = {**identity, "system_message": self._injected_system()}
        if self.template.name:
            self.identity["chat_template"] = self.template.name
            log.warning("%s has several chat templates: %s is used", identity["name"], self.template.name)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A whole dialogue as tokens. Raises DataError where it can't be read."""
        rendered = self.render_all([messages])[0]
        if isinstance(rendered, Unreadable):
            raise DataError("this dialogue can't be read", found=rendered.reason)
        return rendered

    def render_all(self, dialogues: Sequence[Sequence[Message]]) -> list[Rendered | Unreadable]:
        """Several dialogues as tokens, in one call of the tokenizer; `Unreadable` for each that can't be read."""
        return self.template.render(dialogues)

    @cached_property
    def sentence_marks(self) -> tuple[np.ndarray, np.ndarray]:
        """For each token (two arrays of bool): whether it ends with a sentence's mark, whether it begins with space."""
        texts = token_bytes(self.tokenizer, range(len(self.tokenizer)))
        closes = [texts[i].rstrip(QUOTES).endswith((b".", b"!", b"?")) for i in range(len(texts))]
        opens = [texts[i][:1].isspace() for i in range(len(texts))]
        return np.array(closes), np.array(opens)

    def layer_module(self, layer: int) -> torch.nn.Module:
        """The module of decoder layer `layer`, for hooks. Raises BackboneError if it was not loaded."""
        if not 0 <= layer < len(self.layers):
            raise BackboneError(
                f"layer {layer} of {self.identity['name']} is not there",
                expected=f"0 to {self.n_layers - 1}",
                found=f"{len(self.layers)} layers loaded",
            )
        return self.layers[layer]

    def states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layers: Sequence[int],
        *,
        position_ids: torch.Tensor | None = None,
        past: Any = None,
    ) -> dict[int, torch.Tensor]:
        """Outputs of decoder layers for token ids [b, t]: {layer: [b, t, d_model]}, float32.

        A half-precision model multiplies in its dtype and adds up the residual stream in float32 (`_exact_residual`).
        `attention_mask` is [b, t] (1 for tokens, 0 for padding), or a ready additive mask [b, 1, t, past + t]. The
        model runs no further than the last of `layers`. Positions count real tokens, so padding may be on either side.
        """
        check_ids(self.model, self.tokenizer, input_ids)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode(), self._exact_residual(), self._captured(layers) as captured, contextlib.suppress(_StopForward):
            self._decoder()(
                input_ids=input_ids.to(self.device),
                attention_mask=None if attention_mask is None else attention_mask.to(self.device),
                position_ids=None if position_ids is None else position_ids.to(self.device),
                past_key_values=past,
                use_cache=past is not None,
            )
        return captured

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Next-token logits [b, t, vocabulary]; only where the whole model was loaded."""
        if self.model.get_output_embeddings() is None:
            raise BackboneError("this backbone was loaded without its LM head", expected="load_backbone(config) without depth")
        check_ids(self.model, self.tokenizer, input_ids)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
        result: torch.Tensor = self.model(**{k: v.to(self.device) for k, v in batch.items()}, use_cache=False).logits
        return result

    @contextlib.contextmanager
    def _exact_residual(self) -> Iterator[None]:
        """While open, a half-precision model multiplies in its dtype and adds up its residual stream in float32.

        In bfloat16 each layer's sum loses what is below 1/256 of a stream that grows with depth, and the loss depends
        on the batch's shape: on SmolLM2 at layer 16 rewards moved by 2.1 % of their standard deviation with the other
        rows of a batch, more than METHOD.md section 2 allows.
        """
        if self.dtype == torch.float32:
            yield
            return
        handle = self.model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.float())
        try:
            with torch.autocast(self.device.type, self.dtype):
                yield
        finally:
            handle.remove()

    def _decoder(self) -> Any:
        """The module that maps ids to final hidden states, without the LM head."""
        return self.model.base_model if self.model.get_output_embeddings() is not None else self.model

    @contextlib.contextmanager
    def _captured(self, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
        """While open, each forward pass puts the outputs of `layers` into the yielded dict and stops after the last."""
        captured: dict[int, torch.Tensor] = {}
        last = max(layers)

        def hook(layer: int) -> Any:
            def keep(_module: Any, _inputs: Any, output: Any) -> None:
                captured[layer] = output[0] if isinstance(output, tuple) else output
                if layer == last:
                    raise _StopForward

            return keep

        handles = [self.layer_module(layer).register_forward_hook(hook(layer)) for layer in sorted(set(layers))]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    def _injected_system(self) -> str:
        """What the template writes before a first user message (SmolLM2: a system message of its own)."""
        if not self.template.has_template:
            return ""
        try:
            return self.template.fixed_pieces(("user",)).around[0]
        except Unreadable:  # this template renders a user message only together with an answer
            return self.template.fixed_pieces(("user", "assistant")).around[0]


class _StopForward(Exception):
    """Raised by the hook on the last layer that was asked for, to end the forward pass there."""


def load_backbone(config: BackboneConfig, *, depth: int | None = None, progress: Progress = no_progress) -> Backbone:
    """The backbone of a config: its first `depth` decoder layers, or (None) the whole model with its LM head. Raises
    BackboneError where the model can't be found, fetched or loaded, or has fewer layers."""
    source = find_model(config, progress=progress)
    identity = backbone_identity(config, source)
    if depth is not None and depth > int(identity["n_layers"]):
        raise BackboneError(f"{source.name} has no layer {depth - 1}", expected=f"0 to {int(identity['n_layers']) - 1}", found=str(depth - 1))
    progress("load model", 0, 1)
    model, tokenizer = _load(config, source, identity, depth)
    progress("load model", 1, 1)
    return Backbone(model, tokenizer, config, identity)


def _load(config: BackboneConfig, source: ModelSource, identity: dict[str, Any], depth: int | None) -> tuple[Any, Any]:
    raw, model_settings = read_config(source.folder), model_config(source.folder)
    check_kind(model_settings, raw, source.name)
    options: dict[str, Any] = {"dtype": getattr(torch, identity["dtype"]), "attn_implementation": identity["attention"]}
    if depth is not None:
        truncate(model_settings.get_text_config(), depth)
    if config.device_map:
        options["device_map"] = config.device_map
    if config.quantization != "none":
        options["quantization_config"] = _quantization(config.quantization)
    kind = AutoModelForCausalLM if depth is None else AutoModel
    checkpoint = read_checkpoint(source.folder, raw)
    model = load_weights(kind, source.folder, model_settings, checkpoint, name=source.name, n_layers=int(identity["n_layers"]), **options)
    tokenizer = load_tokenizer(source.folder, source.name)
    check_vocabulary(model, tokenizer, source.name)
    if not config.device_map and config.quantization == "none":
        with library_errors(f"{source.name} can't be put on {resolve_device(config)}", remedy="--device cpu, or another that this machine has"):
            model.to(torch.device(resolve_device(config)))
    return model, tokenizer


def truncate(text_config: Any, depth: int) -> None:
    """Changes a configuration to `depth` layers, so that later ones are neither read from disk nor held in memory.

    A model whose embedding holds a part for each layer (Gemma 3n, 4) is left whole: it would not fit fewer layers.
    """
    if getattr(text_config, "hidden_size_per_layer_input", None):
        return
    if getattr(text_config, "layer_types", None):
        with contextlib.suppress(AttributeError):  # a configuration that computes it from other fields (Jamba) needs no change here
            text_config.layer_types = list(text_config.layer_types)[:depth]
    text_config.num_hidden_layers = depth


def _quantization(bits: str) -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(f"{bits} weights need bitsandbytes", remedy="pip install bitsandbytes (CUDA), or --quantization none")
    return BitsAndBytesConfig(load_in_8bit=bits == "8bit", load_in_4bit=bits == "4bit")


def decoder_layers(model: Any) -> Any:
    """The ModuleList of decoder layers of any Hugging Face causal LM. Raises BackboneError where none is found."""
    count = model.config.get_text_config().num_hidden_layers
    for _, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise BackboneError(f"no list of {count} decoder layers in {type(model).__name__}", remedy="this architecture is not supported yet")

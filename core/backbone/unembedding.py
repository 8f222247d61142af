"""Effects of residual directions on the next token's logits, through final norm and LM head alone (no later layer).

With final norm N and unembedding W_U, logits = W_U N(x). Both norms in use multiply the (centred) stream by a gain g
and divide it by its scale, and the scale depends on the whole stream, not on the direction. So for a direction d the
effect is, up to that positive factor,

    RMS norm     W_U (g * d)
    layer norm   W_U (g * (d - mean d))

The scale, the norm's bias, caps and multipliers of logits are left out: they are the same for every direction, or keep
the order of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module
from transformers import AutoModelForCausalLM

from core.backbone.checkpoint import read_checkpoint
from core.backbone.loading import load_weights
from core.backbone.model import decoder_layers, truncate
from core.backbone.model_folder import read_config
from core.backbone.source import find_model, resolve_device, size_in
from core.backbone.transformers_calls import model_config
from core.config import BackboneConfig
from core.errors import BackboneError
from core.types import Progress, no_progress

PROBE = 1e3  # so large that a norm's epsilon does not matter


@dataclass(frozen=True, kw_only=True)
class Unembedding:
    """W_U [vocabulary, d_model], the final norm's gain [d_model], and whether the norm subtracts the mean."""

    weight: Float[Tensor, "v d_model"]
    gain: Float[Tensor, " d_model"]
    centred: bool

    def logits(self, directions: Float[np.ndarray, "k d_model"]) -> Float[np.ndarray, "k v"]:
        """The effect of each direction on every token's logit, float32."""
        d = torch.from_numpy(directions).to(self.weight.device, torch.float32)
        d = d - d.mean(1, keepdim=True) if self.centred else d
        effects: np.ndarray = ((d * self.gain) @ self.weight.T).cpu().numpy()
        return effects


def load_unembedding(config: BackboneConfig, *, progress: Progress = no_progress) -> Unembedding:
    """Reads final norm and unembedding of the config's model. Raises BackboneError where they can't be had."""
    with torch.inference_mode():
        model = _head(config, progress)
        norm = _final_norm(model)
        n = model.get_output_embeddings().weight.shape[1]
        signs = torch.ones(n)
        signs[1::2] = -1  # of mean zero, so a norm that subtracts the mean does not change it
        bias = norm(torch.zeros(n))
        gain = (norm(PROBE * signs) - bias) * signs
        centred = bool((norm(PROBE * torch.ones(n)) - bias).abs().max() < 1e-3 * gain.abs().max())
        device = torch.device(resolve_device(config))
        return Unembedding(weight=model.get_output_embeddings().weight.detach().to(device), gain=gain.to(device), centred=centred)


def _head(config: BackboneConfig, progress: Progress) -> Any:
    """The model with only the first of its layers, in float32 on the CPU."""
    source = find_model(config, progress=progress)
    raw, settings = read_config(source.folder), model_config(source.folder)
    truncate(settings.get_text_config(), 1)
    n_layers, checkpoint = size_in(raw, source.folder)[1], read_checkpoint(source.folder, raw)
    name = f"the LM head of {source.name}"
    return load_weights(AutoModelForCausalLM, source.folder, settings, checkpoint, name=name, n_layers=n_layers, dtype=torch.float32).eval()


def _final_norm(model: Any) -> Module:
    """The last norm outside the decoder's layers."""
    inside = {id(module) for module in decoder_layers(model).modules()}
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower() and id(module) not in inside]
    if not norms:
        raise BackboneError(f"{type(model).__name__} has no final norm", expected="a norm between the last layer and the LM head")
    norm: Module = norms[-1]
    return norm

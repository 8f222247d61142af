"""Finds the decoder layer whose output a hook names; each library names the same point of the model differently.

    blocks.L.hook_resid_post                      TransformerLens and sae-lens: the output of layer L
    blocks.L.hook_resid_pre                       the input of layer L, which is the output of layer L - 1
    model.layers.L, layers.L, transformer.h.L,    Hugging Face and nnsight: the module of layer L, so its output;
    gpt_neox.layers.L, ... (also with .output)    with .input, the output of layer L - 1
    resid_post_layer_L                            dictionary_learning

Every other point is refused by name: the MLP, attention, the middle of a layer, a norm, the embeddings.
"""

from __future__ import annotations

import re

from core.errors import SAEError

# Names before the list of layers in the decoder-only models of transformers, and prefixes that wrappers add to them.
_BEFORE = r"(?:(?:_orig_mod|module|base_model|model|language_model|text_model|transformer|gpt_neox|decoder|backbone)\.)*"
_AFTER = r"hook_resid_post|resid_post|output|out|hook_resid_pre|resid_pre|input"
_MODULE = re.compile(rf"{_BEFORE}(?:layers|h|blocks|block)[._](\d+)(?:\.({_AFTER}))?(?:\[0\]|\.0)?")
_RESIDUAL = re.compile(r"resid_(post|pre)_layer_(\d+)")
EXPECTED = "hook blocks.L.hook_resid_post, or model.layers.L as Hugging Face names it"
# Descriptions of other points by a part of their names; the first that fits is given in the error.
_OTHER_POINTS = (
    (r"resid_mid", "the residual stream between a layer's attention and its MLP"),
    (r"transcod", "the input of a transcoder"),
    (r"mlp|feed_forward|ffn|\bfc\d?\b", "a layer's MLP"),
    (r"attn|attention|hook_[zqkv]\b|[qkvo]_proj", "a layer's attention"),
    (r"norm|\bln", "the output of a norm"),
    (r"emb|wte|wpe|tok", "the token embeddings"),
    (r"hook_resid_pre|input", "the token embeddings, which the first layer reads"),
    (r"vision|visual|encoder", "an encoder"),
)


def layer_of_hook(hook: object, name: str) -> int | None:
    """The decoder layer whose output `hook` names; None if it is empty. `name` is the SAE's name in messages. Raises
    SAEError naming the hook for any other point of the model."""
    if hook is None or hook == "":
        return None
    layer = _layer(hook) if isinstance(hook, str) else -1
    if layer < 0:
        point = next((point for pattern, point in _OTHER_POINTS if re.search(pattern, str(hook))), "another point of the model")
        raise SAEError(
            f"SAE {name} was not trained on a decoder layer's output, but on {point}",
            expected=EXPECTED,
            found=f"hook {hook}",
            remedy="take an SAE of the residual stream after a layer (resid_post), or train one: sparserm sae train",
        )
    return layer


def hook_number(hook: object) -> int | None:
    """The block's number in a hook's name: 8 for `blocks.8.hook_resid_pre`, though that is the output of layer 7."""
    match = re.search(r"(?:^|\.)(?:layers|h|blocks|block)[._](\d+)(?:\.|$)", hook) if isinstance(hook, str) else None
    return int(match[1]) if match else None


def _layer(hook: str) -> int:
    """The layer, or a negative number where the name is of another point."""
    if match := _MODULE.fullmatch(hook):
        return int(match[1]) - ((match[2] or "").removeprefix("hook_") in ("resid_pre", "input"))
    if match := _RESIDUAL.fullmatch(hook):
        return int(match[2]) - (match[1] == "pre")
    return -1

"""Hook names of TransformerLens, Hugging Face and dictionary_learning: the layer they name, or a refusal by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from sae_helpers import arrays, write_folder

from core.config import SAEConfig
from core.errors import MismatchError, SAEError
from core.sae.autoencoder import check_sae_fits, load_sae
from core.sae.hooks import layer_of_hook

LAYERS = [
    ("blocks.3.hook_resid_post", 3), ("blocks.4.hook_resid_pre", 3), ("blocks.12.hook_resid_post", 12), ("blocks.1.hook_resid_pre", 0),
    ("model.layers.3", 3), ("layers.3", 3), ("model.layers.3.output", 3), ("model.layers.3.output[0]", 3), ("model.layers.3.output.0", 3),
    ("model.layers.4.input", 3), ("transformer.h.3", 3), ("h.3", 3), ("gpt_neox.layers.3", 3), ("gpt_neox.layers.3.output", 3),
    ("model.language_model.layers.3", 3), ("language_model.model.layers.3", 3), ("model.decoder.layers.3", 3), ("transformer.blocks.3", 3),
    ("_orig_mod.model.layers.3", 3), ("base_model.model.model.layers.3", 3), ("layers.10", 10), ("resid_post_layer_3", 3),
    ("resid_pre_layer_4", 3), ("layers_3", 3), ("blocks.3", 3),
]  # fmt: skip
OTHERS = [
    ("model.layers.3.mlp", "MLP"), ("layers.3.mlp.output", "MLP"), ("transformer.h.3.mlp", "MLP"), ("blocks.3.hook_mlp_out", "MLP"),
    ("blocks.3.mlp.hook_post", "MLP"), ("model.layers.3.self_attn", "attention"), ("blocks.3.attn.hook_z", "attention"),
    ("blocks.3.hook_attn_out", "attention"), ("gpt_neox.layers.3.attention", "attention"), ("model.layers.3.self_attn.o_proj", "attention"),
    ("blocks.3.hook_resid_mid", "between a layer's attention and its MLP"), ("blocks.3.ln2.hook_normalized", "norm"),
    ("model.layers.3.input_layernorm", "norm"), ("model.norm", "norm"), ("ln_final.hook_normalized", "norm"), ("model.embed_tokens", "embeddings"),
    ("hook_embed", "embeddings"), ("transformer.wte", "embeddings"), ("blocks.0.hook_resid_pre", "embeddings"),
    ("model.layers.0.input", "embeddings"),
    ("vision_tower.encoder.layers.3", "encoder"), ("encoder.layers.3", "encoder"), ("lm_head", "another point"), ("model.layers", "another point"),
    ("model.layers.x", "another point"), ("blocks.{layer}.hook_resid_post", "another point"), ("lora.layers.3", "another point"),
]  # fmt: skip


@pytest.mark.parametrize(("hook", "layer"), LAYERS)
def test_names_of_a_decoder_layers_output(hook: str, layer: int, tmp_path: Path) -> None:
    sae = load_sae(SAEConfig(path=str(write_folder(tmp_path / "sae", arrays("standard"), "standard", metadata={"hook_name": hook}))))
    assert (sae.layer, sae.identity["layer"], sae.identity["hook_name"]) == (layer, layer, hook)
    check_sae_fits(sae, {"name": "toy", "d_model": sae.d_model}, layer)
    with pytest.raises(MismatchError, match=rf"layer {layer} \(SAE sae, "):
        check_sae_fits(sae, {"name": "toy", "d_model": sae.d_model}, layer + 1)


@pytest.mark.parametrize(("hook", "point"), OTHERS)
def test_names_of_other_points_are_refused(hook: str, point: str) -> None:
    with pytest.raises(SAEError) as caught:
        layer_of_hook(hook, "x")
    assert f"SAE x was not trained on a decoder layer's output, but on {caught.value.problem.rpartition(', but on ')[2]}" == caught.value.problem
    assert point in caught.value.problem and caught.value.found == f"hook {hook}" and "model.layers.L" in caught.value.expected


def test_no_hook_is_no_layer_and_odd_values_are_refused() -> None:
    assert layer_of_hook(None, "x") is layer_of_hook("", "x") is None
    for odd in (3, ["model.layers.3"], {"a": 1}):
        with pytest.raises(SAEError, match="another point"):
            layer_of_hook(odd, "x")

"""Damaged weights are errors that name the tensor; wrappers' names are removed without any other difference."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_helpers import save_model, tiny_folder
from safetensors.torch import load_file, save_file
from weights_helpers import IDS, changed, config_for, model_copy, renamed, sharded, states_of, without

from core.backbone import source
from core.backbone.checkpoint import without_wrappers, wrappers_of
from core.backbone.model import load_backbone
from core.backbone.unembedding import load_unembedding
from core.errors import BackboneError
from core.runs.store import cache_root

WHOLE_AND_CUT = pytest.mark.parametrize("depth", [2, None], ids=["cut", "whole"])
WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "ddp": lambda name: f"module.{name}",
    "lightning": lambda name: f"model.{name}",
    "ddp of compiled": lambda name: f"module._orig_mod.{name}",
    "compiled ddp": lambda name: f"_orig_mod.module.{name}",
    "value head": lambda name: f"pretrained_model.{name}",
    "inner model compiled": lambda name: name.replace("model.", "model._orig_mod.", 1),
    "one layer compiled": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "fsdp": lambda name: f"_fsdp_wrapped_module.{name.replace('layers.1.', 'layers.1._fsdp_wrapped_module._checkpoint_wrapped_module.')}",
}


def refused(folder: Path, depth: int | None) -> BackboneError:
    """The error of two attempts to load it, which must be the same: the first leaves nothing with which the second
    succeeds."""
    with pytest.raises(BackboneError) as first:
        load_backbone(config_for(folder), depth=depth)
    with pytest.raises(BackboneError) as second:
        load_backbone(config_for(folder), depth=depth)
    assert str(first.value) == str(second.value) and first.value.remedy
    return first.value


@WHOLE_AND_CUT
@pytest.mark.parametrize("wrapper", list(WRAPPED))
def test_wrappers_are_taken_off(wrapper: str, depth: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = model_copy(tmp_path / "wrapped", renamed(WRAPPED[wrapper]))
    source.warn_of_wrappers.cache_clear()
    with caplog.at_level(logging.WARNING, "core"):
        backbone = load_backbone(config_for(folder), depth=depth)
    states = backbone.states(IDS, torch.ones_like(IDS), [0, 1])
    for layer in (0, 1):
        assert torch.equal(states[layer], states_of(tiny_folder(), depth, layer)), "to 0 difference"
    wrappers = backbone.identity["tensor_wrappers"]
    assert wrappers and all(text in "".join(load_file(folder / "model.safetensors")) for text in wrappers)
    assert all(text in caplog.text for text in wrappers), "it is said"
    assert "tensor_wrappers" not in load_backbone(config_for(tiny_folder()), depth=2).identity


def test_wrappers_of_other_families(tmp_path: Path) -> None:
    for kind in ("gpt2", "neox", "gemma2"):
        plain = save_model(tmp_path / kind, kind)
        wrapped = model_copy(tmp_path / f"{kind}-wrapped", renamed(lambda name: f"module._orig_mod.{name}"), source=plain)
        for depth in (2, None):
            assert torch.equal(states_of(wrapped, depth), states_of(plain, depth)), kind
        assert torch.equal(load_unembedding(config_for(wrapped)).weight, load_unembedding(config_for(plain)).weight)


def test_what_lies_beside_the_weights_is_read_all_the_same(tmp_path: Path) -> None:
    folder = model_copy(tmp_path / "wrapped", renamed(WRAPPED["torch.compile"]))
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, 7]}))
    model = load_backbone(config_for(folder)).model
    assert model.generation_config.eos_token_id == [2, 7] and model.name_or_path == str(folder)


def test_names_without_wrappers_by_hand() -> None:
    names = ["module.model.layers.0._orig_mod.up.weight", "module.lm_head.weight"]
    wrappers = wrappers_of(names)
    assert [without_wrappers(name, wrappers) for name in names] == ["model.layers.0.up.weight", "lm_head.weight"]
    assert wrappers_of(["model.layers.0.up.weight", "model.norm.weight"]) == (), "a tied model's own names all begin with model."
    assert wrappers_of(["module.a", "b"]) == (), "some names only: not taken off, so that what lacks is missed"
    assert wrappers_of(["my_orig_mod.a"]) == ()


@WHOLE_AND_CUT
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without("layers.1."), "missing: .*layers.1.input_layernorm.weight.* and 5 more"),
        (without("layers.0."), "missing: .*layers.0.input_layernorm.weight"),
        (without("embed_tokens"), "missing: .*embed_tokens.weight"),
        (without("model.norm"), "missing: .*norm.weight"),
        (without("layers.0.mlp.up_proj"), "missing: .*layers.0.mlp.up_proj.weight"),
        (renamed(lambda name: f"student.{name}"), "not of this model: student.model.embed_tokens.weight(.|\n)*'student"),
        (renamed(lambda name: f"module.{name}" if "layers.0" in name else name), "missing: .*layers.0.input_layernorm.weight"),
        (changed("layers.1.mlp.up_proj", lambda t: t[:32]), r"layers.1.mlp.up_proj.weight is \(32, 64\), the configuration gives \(256, 64\)"),
        (changed("layers.0.mlp.up_proj", lambda t: t[:0]), r"layers.0.mlp.up_proj.weight is \(0, 64\)"),
        (lambda t: {**t, "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, "not of this model: model.layers.0.self_attn.q_proj.bias"),
        (lambda t: {**t, "model.layers.1.self_attn.q_norm.weight": torch.ones(16)}, "not of this model: model.layers.1.self_attn.q_norm.weight"),
        (lambda t: {**t, "vision_tower.patch.weight": torch.zeros(4)}, "not of this model: vision_tower.patch.weight"),
        (lambda t: {**t, "v_head.summary.weight": torch.zeros(1, 64)}, "not of this model: v_head.summary.weight"),
        (lambda t: {**t, "layers.0.mlp.up_proj.weight": torch.zeros(256, 64)}, "twice.*: model.layers.0.mlp.up_proj.weight"),
        (lambda t: {**t, **{f"_orig_mod.{k}": v * 2 for k, v in t.items()}}, "two tensors for model.embed_tokens.weight"),
        (changed("layers.1.mlp.up_proj", lambda t: t.index_fill_(0, torch.tensor(3), float("nan"))), "64 of 16,384 in .*layers.1.mlp.up_proj.weight"),
        (changed("layers.0.mlp.up_proj", lambda t: t.index_fill_(0, torch.tensor(3), float("inf"))), "64 of 16,384 in .*layers.0.mlp.up_proj.weight"),
        (changed("layers.1.mlp.up_proj", lambda t: (t * 50).to(torch.int8)), r"layers.1.mlp.up_proj.weight \(I8\)"),
        (changed("layers.1.mlp.up_proj", lambda t: t.to(torch.float8_e4m3fn)), r"layers.1.mlp.up_proj.weight \(F8_E4M3\)"),
        (
            lambda t: {**t, "model.layers.0.mlp.up_proj.lora_A.default.weight": torch.zeros(4, 64)},
            "adapter in it that is not merged(.|\n)*lora_A",
        ),
    ],
)  # fmt: skip
def test_damaged_weights_are_refused_by_name(edit: Any, words: str, depth: int | None, tmp_path: Path) -> None:
    refusal = refused(model_copy(tmp_path / "model", edit), depth)
    assert re.search(words, str(refusal)), str(refusal)


@WHOLE_AND_CUT
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 32}, r"embed_tokens.weight is \(635, 64\), the configuration gives \(635, 32\)"),
        ({"vocab_size": 600}, r"embed_tokens.weight is \(635, 64\), the configuration gives \(600, 64\)"),
        ({"intermediate_size": 128}, "layers.0.mlp.down_proj.weight"),
        ({"num_key_value_heads": 4}, "layers.0.self_attn.k_proj.weight"),
        ({"attention_bias": True}, "missing: .*layers.0.self_attn.k_proj.bias"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 16}, "missing: .*layers.0.self_attn.k_norm.weight"),
        ({"quantization_config": {"quant_method": "nonsense"}}, "quantization_config of model can't be used(.|\n)*nonsense"),
        ({"quantization_config": {"bits": 4}}, "quantization_config of model can't be used"),
        ({"num_hidden_layers": "two"}, "does not give the size"),
        ({"hidden_size": None, "num_hidden_layers": None, "n_embd": 0, "n_layer": 2}, "does not give the size"),
    ],
)
def test_a_config_that_contradicts_the_tensors(config: dict[str, Any], words: str, depth: int | None, tmp_path: Path) -> None:
    refusal = refused(model_copy(tmp_path / "model", **config), depth)
    assert re.search(words, str(refusal)), str(refusal)


def test_more_and_fewer_layers_than_config_says(tmp_path: Path) -> None:
    fewer, more = model_copy(tmp_path / "fewer", num_hidden_layers=1), model_copy(tmp_path / "more", num_hidden_layers=3)
    for depth in (1, None):
        refusal = refused(fewer, depth)
        assert "not of this model: model.layers.1.input_layernorm.weight" in refusal.found and "num_hidden_layers 1" in refusal.remedy
    for depth in (3, None):
        assert "layers.2.input_layernorm.weight" in refused(more, depth).found
    assert torch.equal(states_of(more, 2), states_of(tiny_folder(), 2)), "what lies above the layer that is read is not asked for"


def test_layers_above_the_one_that_is_read_may_be_broken(tmp_path: Path) -> None:
    folder = model_copy(tmp_path / "model", changed("layers.1.mlp.up_proj", lambda t: t * float("nan")))
    assert torch.equal(states_of(folder, 1, 0), states_of(tiny_folder(), 1, 0))
    assert "layers.1.mlp.up_proj" in refused(folder, 2).found


def test_the_head_is_asked_for_where_it_is_used(tmp_path: Path) -> None:
    untied = model_copy(tmp_path / "untied", tie_word_embeddings=False)
    assert torch.equal(states_of(untied, 2), states_of(tiny_folder(), 2))
    assert refused(untied, None).found == "missing: lm_head.weight"
    with pytest.raises(BackboneError, match=r"missing: lm_head.weight"):
        load_unembedding(config_for(untied))
    assert states_of(tiny_folder(), None).shape == (2, 7, 64), "tied embeddings are no fault"
    headed = model_copy(tmp_path / "headed", lambda t: {**t, "lm_head.weight": torch.ones(635, 64)}, tie_word_embeddings=False)
    assert torch.equal(states_of(headed, 2), states_of(tiny_folder(), 2)), "a head that is not loaded is left over on purpose"
    assert torch.equal(load_unembedding(config_for(headed)).weight, torch.ones(635, 64))
    with pytest.raises(BackboneError, match=r"LM head of model(.|\n)*missing: model.norm.weight"):
        load_unembedding(config_for(model_copy(tmp_path / "model", without("model.norm"))))


def test_buffers_that_old_versions_saved_are_no_fault(tmp_path: Path) -> None:
    old = model_copy(tmp_path / "old", lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    assert torch.equal(states_of(old), states_of(tiny_folder()))
    plain = save_model(tmp_path / "gpt2", "gpt2")
    triangle = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    assert torch.equal(states_of(model_copy(tmp_path / "old gpt2", lambda t: {**t, **triangle}, source=plain)), states_of(plain))
    vector = model_copy(tmp_path / "bias", lambda t: {**t, "model.layers.0.attn.bias": torch.ones(64)})
    assert "model.layers.0.attn.bias" in refused(vector, 2).found, "a vector of that name is a weight"


def test_kinds_of_floats_are_read(tmp_path: Path) -> None:
    double = model_copy(tmp_path / "double", changed("", lambda t: t.double()))
    assert torch.equal(states_of(double), states_of(tiny_folder()))


def test_numbers_too_large_for_float16(tmp_path: Path) -> None:
    folder = model_copy(tmp_path / "model", changed("layers.0.mlp.up_proj", lambda t: t.index_fill_(0, torch.tensor(0), 1e5)))
    assert states_of(folder).isfinite().all()
    with pytest.raises(BackboneError, match=r"64 of 16,384 in layers.0.mlp.up_proj.weight(.|\n)*float16 ends at 65504"):
        load_backbone(config_for(folder, dtype="float16"), depth=2)


# --- shards -----------------------------------------------------------------------------------------------------------


@WHOLE_AND_CUT
def test_zeros_that_a_cut_download_left_are_refused(depth: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file has its full size and header; a layer of zeros passes its input on unchanged."""
    for number, part in enumerate(("embed_tokens", "layers.1.")):
        folder = model_copy(tmp_path / str(number), changed(part, torch.zeros_like))
        assert re.search(rf"zeros.*only zeros: [\w.]*{part}", str(refused(folder, depth)), re.DOTALL)
    half = model_copy(tmp_path / "half")
    content = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(content[: len(content) // 4] + bytes(len(content) - len(content) // 4))
    assert "zeros" in refused(half, depth).problem
    caplog.clear()
    grown = model_copy(tmp_path / "grown", changed("layers.1.mlp.down_proj", torch.zeros_like))
    load_backbone(config_for(grown), depth=depth)
    assert "all zeros: " in caplog.text and "layers.1.mlp.down_proj.weight" in caplog.text


def test_shards_are_read_and_missed(tmp_path: Path) -> None:
    whole = sharded(model_copy(tmp_path / "whole"))
    assert torch.equal(states_of(whole), states_of(tiny_folder()))
    wrapped = sharded(model_copy(tmp_path / "wrapped", renamed(WRAPPED["peft"])))
    assert torch.equal(states_of(wrapped), states_of(tiny_folder()))
    lost = shutil.copytree(whole, tmp_path / "lost")
    (lost / "model-00002-of-00003.safetensors").unlink()
    refusal = refused(lost, 2)
    assert refusal.expected == "model-00002-of-00003.safetensors" and "7 tensors" in refusal.found


def test_an_index_that_lies(tmp_path: Path) -> None:
    folder = sharded(model_copy(tmp_path / "model"))
    shard = folder / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    name = next(iter(tensors))
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, shard)
    assert name in refused(folder, 2).expected
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert "../outside.safetensors" in refused(folder, 2).expected
    index.write_text(json.dumps({"weight_map": {}}))
    assert "weight_map" in refused(folder, 2).expected
    index.unlink()
    assert "model.safetensors.index.json" in refused(folder, 2).remedy
    (folder / "shard-00000-model-00000-of-00001.safetensors").write_bytes(shard.read_bytes())
    assert "distributed checkpoint" in refused(folder, 2).problem


# --- the vocabulary ---------------------------------------------------------------------------------------------------


def test_tokens_beyond_the_embedding(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    def with_tokens(name: str, tokens: list[str], *, special: bool, template: str = "") -> Path:
        folder = model_copy(tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(tokens, special_tokens=special)
        tokenizer.chat_template += template
        tokenizer.save_pretrained(folder)
        return folder

    refusal = refused(with_tokens("plain", ["<new>", "<other>"], special=False), 2)
    assert (
        refusal.expected == "tokens below 635" and refusal.found == "'<new>' (635), '<other>' (636)" and "resize_token_embeddings" in refusal.remedy
    )
    assert "'<turn>' (635)" in refused(with_tokens("template", ["<turn>"], special=True, template="{{ '<turn>' }}"), 2).found
    # Gemma 3 has one special token beyond the embedding, for images: it is accepted until a text holds it
    image = load_backbone(config_for(with_tokens("image", ["<image>"], special=True)), depth=2)
    assert torch.equal(image.states(IDS, torch.ones_like(IDS), [1])[1], states_of(tiny_folder()))
    with pytest.raises(BackboneError, match=r"no embedding for(.|\n)*'<image>' \(635\)"):
        image.states(torch.tensor([[5, 635]]), torch.ones(1, 2, dtype=torch.long), [1])
    cut = model_copy(tmp_path / "cut", changed("embed_tokens", lambda t: t[:600]), vocab_size=600)
    assert "tokens below 600" in refused(cut, 2).expected


def test_more_rows_than_tokens_are_usual(tmp_path: Path) -> None:
    padded = model_copy(tmp_path / "padded", changed("embed_tokens", lambda t: torch.cat([t, torch.zeros(5, 64)])), vocab_size=640)
    assert torch.equal(states_of(padded), states_of(tiny_folder()))


# --- an earlier copy of the embedded model ----------------------------------------------------------------------------


def test_the_embedded_copy_is_known_by_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    copy = shutil.copytree(tiny_folder(), tmp_path / "models" / "smollm2-135m-instruct")
    note = {"name": "SmolLM2-135M-Instruct", "revision": "r", "sha256": "s"}
    (copy / source.SOURCE_NOTE).write_text(json.dumps(note))
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    monkeypatch.setattr(source, "EMBEDDED_TENSORS_SHA256", source.tensors_sha256(copy))
    config = replace(config_for(tmp_path), model=source.EMBEDDED)
    assert source.find_model(config).folder == copy
    assert json.loads((copy / source.SOURCE_NOTE).read_text()) == {**note, "checked": source.CHECKED}, "looked at once"
    (copy / source.SOURCE_NOTE).write_text(json.dumps(note))
    monkeypatch.setattr(source, "EMBEDDED_TENSORS_SHA256", "0" * 64)
    remade: list[Path] = []
    monkeypatch.setattr(source, "hub_copy", lambda: None)
    monkeypatch.setattr(source, "dequantise", lambda fetch, folder, *rest: remade.append(folder) or shutil.copytree(tiny_folder(), folder))
    with caplog.at_level(logging.WARNING, "core"):
        source.find_model(config)
    assert remade == [copy] and "is made again" in caplog.text
    assert cache_root() == tmp_path


# --- no good model is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gemma4_text", "jamba", "phi3", "opt"])
def test_whole_models_of_other_families_pass(kind: str, tmp_path: Path) -> None:
    """Experts that transformers stacks, mixed layer types, per-layer embeddings: read as transformers reads them, cut
    or whole."""
    import transformers as t

    sizes = {"vocab_size": 635, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    more = {"intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": 2, "vocab_size_per_layer_input": 635}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = t.AutoModelForCausalLM.from_config(t.CONFIG_MAPPING[kind](**sizes, **more, **experts)).float().eval()
    model.save_pretrained(tmp_path / kind)
    t.AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(tmp_path / kind)
    with torch.no_grad():
        reference = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), output_hidden_states=True, use_cache=False).hidden_states
    for depth in (1, 2, None):
        assert torch.equal(states_of(tmp_path / kind, depth, 0), reference[1])


def test_gpt_neo_says_its_depth_by_another_name(tmp_path: Path) -> None:
    import transformers as t

    config = t.GPTNeoConfig(vocab_size=635, hidden_size=32, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]])
    model = t.GPTNeoForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "neo")
    t.AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(tmp_path / "neo")
    with torch.no_grad():
        reference = model(input_ids=IDS, output_hidden_states=True).hidden_states[2]
    for depth in (2, None):
        backbone = load_backbone(config_for(tmp_path / "neo", attention="eager"), depth=depth)
        assert torch.equal(backbone.states(IDS, torch.ones_like(IDS), [1])[1], reference) and backbone.n_layers == 4


def test_a_family_without_the_attention_that_is_asked_for(tmp_path: Path) -> None:
    import transformers as t

    t.BloomForCausalLM(t.BloomConfig(vocab_size=635, hidden_size=32, n_layer=2, n_head=4)).save_pretrained(tmp_path / "bloom")
    t.AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(tmp_path / "bloom")
    assert refused(tmp_path / "bloom", 1).remedy == "--attention eager"
    eager = load_backbone(config_for(tmp_path / "bloom", attention="eager"), depth=1)
    assert eager.states(IDS, torch.ones_like(IDS), [0])[0].shape == (2, 7, 32)

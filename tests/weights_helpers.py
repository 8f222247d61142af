"""Model folders and GGUF files made from the tiny model with one fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbone_helpers import tiny_folder
from safetensors.torch import load_file, save_file

from core.backbone.model import load_backbone
from core.config import BackboneConfig

IDS = torch.tensor([[5, 9, 33, 71, 200, 14, 8], [300, 2, 2, 41, 9, 9, 10]])
Tensors = dict[str, torch.Tensor]


def config_for(model: Path, **changes: Any) -> BackboneConfig:
    return BackboneConfig(**{"model": str(model), "layer": 1, "dtype": "float32", "device": "cpu", **changes})


def model_copy(folder: Path, edit: Callable[[Tensors], Tensors] | None = None, source: Path | None = None, **config: Any) -> Path:
    """A copy of the tiny model with changed tensors and changed fields in config.json (None removes a field)."""
    shutil.copytree(source or tiny_folder(), folder)
    if edit:
        tensors = edit(load_file(folder / "model.safetensors"))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    if config:
        content = {**json.loads((folder / "config.json").read_text()), **config}
        (folder / "config.json").write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def changed(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: change(tensor.clone()) if part in name else tensor for name, tensor in tensors.items()}


def sharded(folder: Path, n_shards: int = 3) -> Path:
    """The copy's weights in several files with an index, as large models have them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for shard in range(n_shards):
        name = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        part = dict(list(tensors.items())[shard::n_shards])
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def states_of(model: Path, depth: int | None = 2, layer: int = 1) -> torch.Tensor:
    return load_backbone(config_for(model), depth=depth).states(IDS, torch.ones_like(IDS), [layer])[layer]


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_tensors() -> dict[str, np.ndarray]:
    """The tiny model's tensors under llama.cpp's names, with rows of queries and keys in its order (halves of a head
    interleaved).
    """
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in load_file(tiny_folder() / "model.safetensors").items():
        array, parts = tensor.numpy(), name.split(".")
        if "layers" not in parts:
            tensors[{"embed_tokens": "token_embd", "norm": "output_norm"}[parts[1]] + ".weight"] = array
            continue
        part = GGUF_NAMES[".".join(parts[3:-1])]
        if part in ("attn_q", "attn_k"):
            heads = {"attn_q": 4, "attn_k": 2}[part]
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        tensors[f"blk.{parts[2]}.{part}.weight"] = np.ascontiguousarray(array)
    return tensors


def write_gguf(path: Path, edit: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None, **fields: Any) -> Path:
    """The tiny model as a GGUF file. `edit` changes its tensors; `fields` are further metadata, with `__` for a dot."""
    from gguf import GGUFWriter, TokenType
    from transformers import AutoTokenizer

    config = json.loads((tiny_folder() / "config.json").read_text())
    writer = GGUFWriter(path, fields.pop("architecture", "llama"))
    writer.add_name("tiny")
    writer.add_block_count(fields.pop("block_count", config["num_hidden_layers"]))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if i < 3 else TokenType.NORMAL for i in range(len(tokens))])
    merges = json.loads((tiny_folder() / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in merges])
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(tokenizer.chat_template)
    for name, value in fields.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(name.replace("__", "."), value)
    tensors = gguf_tensors()
    for name, array in (edit(tensors) if edit else tensors).items():
        writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

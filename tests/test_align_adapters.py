"""Adapters that are incomplete or belong to another model are refused by name, where PEFT only warns or ignores them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_helpers import save_model, tiny_folder
from safetensors.torch import load_file, save_file
from weights_helpers import IDS, config_for, model_copy, renamed, states_of

from core.align.policy import load_adapter, load_policy, merge_and_save
from core.backbone.model import load_backbone
from core.config import DPOConfig
from core.errors import BackboneError, MismatchError, StoreError

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the tiny model, saved by PEFT itself."""
    return peft_adapter(tiny_folder(), tmp_path_factory.mktemp("adapter") / "adapter")


def peft_adapter(model: Path, folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, tensor in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    peft.save_pretrained(folder)
    return folder


def copy_of(adapter: Path, folder: Path, edit: Callable[[Tensors], Tensors] | None = None, **config: Any) -> Path:
    shutil.copytree(adapter, folder)
    if edit:
        save_file(edit(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**written, **config}))
    return folder


def logits_of(model: Path, adapter: Path | None) -> torch.Tensor:
    return load_policy(config_for(model), adapter).backbone.logits(IDS, torch.ones_like(IDS)).detach()


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


def test_a_whole_adapter_computes_what_peft_computes(adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder()), adapter).eval()(IDS).logits
    torch.testing.assert_close(logits_of(tiny_folder(), adapter), by_hand, rtol=0, atol=1e-4)
    assert (by_hand - logits_of(tiny_folder(), None)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without(A), rf"missing: {A}"),
        (without("layers.1."), r"missing: base_model.model.model.layers.1.mlp.down_proj.lora_A.weight.* and 10 more"),
        (lambda t: {**t, A.replace("layers.0", "layers.7"): torch.zeros(4, 64)}, r"not of this adapter: .*layers.7.self_attn.q_proj.lora_A.weight"),
        (lambda t: {**t, B: t[B] * float("nan")}, rf"NaN or infinite: {B}"),
        (lambda t: {**t, A: t[A][:2].clone()}, r"does not fit this model(.|\n)*q_proj.lora_A"),
        (lambda t: {**t, A: t[A][:0].clone()}, r"does not fit this model(.|\n)*q_proj.lora_A"),
        (lambda t: {f"_orig_mod.{name}": tensor for name, tensor in t.items()}, r"missing: "),
        (lambda t: {**t, "base_model.model.model.norm.weight": torch.ones(64)}, r"more than LoRA(.|\n)*model.norm.weight"),
        (lambda t: {**t, A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(64)}, r"more than LoRA(.|\n)*lora_magnitude_vector"),
        (lambda t: {}, r"missing: "),
    ],
)  # fmt: skip
def test_adapters_that_are_not_whole(edit: Any, words: str, adapter: Path, tmp_path: Path) -> None:
    broken = copy_of(adapter, tmp_path / "broken", edit)
    for _ in range(2):
        with pytest.raises(StoreError, match=words):
            load_policy(config_for(tiny_folder()), broken)
    with pytest.raises(StoreError, match=words):
        merge_and_save(config_for(tiny_folder()), broken, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "adapter_model.safetensors").unlink(), r"holds no adapter(.|\n)*adapter_model.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), r"but a pickled file(.|\n)*adapter_model.bin"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), r"adapter_model.safetensors is empty"),
        (lambda f: (f / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"), r"Git LFS pointer"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:900]), r"holds no adapter"),
        (lambda f: (f / "adapter_config.json").write_text("{"), r"holds no adapter(.|\n)*adapter_config.json can't be read as JSON"),
        (lambda f: (f / "adapter_config.json").unlink(), r"holds no adapter(.|\n)*no adapter_config.json"),
    ],
)
def test_damaged_adapter_folders(change: Callable[[Path], Any], words: str, adapter: Path, tmp_path: Path) -> None:
    broken = copy_of(adapter, tmp_path / "broken")
    change(broken)
    with pytest.raises(StoreError, match=words):
        load_policy(config_for(tiny_folder()), broken)
    with pytest.raises(StoreError, match=words):
        load_adapter(broken, DPOConfig(lora_r=4, lora_alpha=8))


def test_an_adapter_of_another_model(adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = model_copy(tmp_path / "other", lambda tensors: {name: tensor * 1.5 for name, tensor in tensors.items()})
    with pytest.raises(MismatchError, match=r"trained on another model(.|\n)*--model .*tiny-1/model"):
        load_policy(config_for(other), adapter)  # of the same shapes, so that only its name tells
    same = model_copy(tmp_path / "elsewhere")
    assert torch.equal(logits_of(same, adapter), logits_of(tiny_folder(), adapter)), "a copy of the base model counts as the base model"
    with caplog.at_level(logging.WARNING, "core"):
        logits_of(tiny_folder(), copy_of(adapter, tmp_path / "hub", base_model_name_or_path="org/base"))
        logits_of(tiny_folder(), copy_of(adapter, tmp_path / "nameless", base_model_name_or_path=None))
    assert "was trained on org/base" in caplog.text and "does not name the model" in caplog.text
    family = peft_adapter(save_model(tmp_path / "qwen2", "qwen2"), tmp_path / "qwen2 adapter")
    with pytest.raises((StoreError, MismatchError)):
        load_policy(config_for(tiny_folder()), family)


def test_a_nan_to_train_on(adapter: Path, tmp_path: Path) -> None:
    broken = copy_of(adapter, tmp_path / "broken", lambda t: {**t, B: t[B] * float("inf")})
    with pytest.raises(StoreError, match=rf"NaN or infinite(.|\n)*{B}"):
        load_adapter(broken, DPOConfig(lora_r=4, lora_alpha=8))


def test_the_base_of_a_policy_is_read_as_carefully(adapter: Path, tmp_path: Path) -> None:
    damaged = model_copy(tmp_path / "model", without("layers.1.mlp.up_proj"))
    for given in (None, copy_of(adapter, tmp_path / "adapter", base_model_name_or_path=str(damaged))):
        with pytest.raises(BackboneError, match=r"missing: model.layers.1.mlp.up_proj.weight"):
            load_policy(config_for(damaged), given)


def test_a_merged_policy_is_a_plain_model(adapter: Path, tmp_path: Path) -> None:
    """Also for a base model whose tensor names have a prefix: the merged model's names have none."""
    wrapped = model_copy(tmp_path / "wrapped", renamed(lambda name: f"_orig_mod.{name}"))
    given = copy_of(adapter, tmp_path / "adapter", base_model_name_or_path=str(wrapped))
    merge_and_save(config_for(wrapped), given, tmp_path / "merged")
    assert all(name.startswith("model.") for name in load_file(tmp_path / "merged" / "model.safetensors"))
    torch.testing.assert_close(
        states_of(tmp_path / "merged", None), load_policy(config_for(wrapped), given).backbone.states(IDS, torch.ones_like(IDS), [1])[1]
    )
    assert "tensor_wrappers" not in load_backbone(config_for(tmp_path / "merged")).identity

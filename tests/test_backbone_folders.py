"""Paths given as --model that are no language model: the error names what each is and gives a remedy, and is no bug
report."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_helpers import tiny_folder
from safetensors.torch import save_file
from weights_helpers import config_for, model_copy, states_of, without

from core.backbone.model import load_backbone
from core.backbone.source import backbone_identity, find_model
from core.config import BackboneConfig
from core.errors import BackboneError, error_to_dict

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"
ZIPPED = b"PK\x03\x04" + bytes(200)


def refused(folder: Path, depth: int | None = 2) -> BackboneError:
    with pytest.raises(BackboneError) as error:
        load_backbone(config_for(folder), depth=depth)
    assert "bug" not in error_to_dict(error.value)["remedy"]
    assert error.value.remedy, "there is a way out"
    return error.value


def write(name: str, content: bytes | str | dict[str, Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return change


def cut(name: str, n_bytes: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:n_bytes]) and None


def moved(name: str, to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).rename(folder / to) and None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (write("model.safetensors", POINTER), r"model.safetensors is a Git LFS pointer(.|\n)*git lfs pull"),
        (write("config.json", POINTER), r"config.json is a Git LFS pointer"),
        (write("tokenizer.json", POINTER), r"tokenizer.json is a Git LFS pointer"),
        (write("tokenizer_config.json", POINTER), r"tokenizer_config.json is a Git LFS pointer"),
        (write("model.safetensors", b""), r"model.safetensors is empty"),
        (write("model.safetensors", bytes(5000)), r"model.safetensors is empty(.|\n)*zeros only"),
        (write("model.safetensors", "<!DOCTYPE html><html>"), r"model.safetensors is a web page"),
        (write("config.json", "\n<html>login"), r"config.json is a web page"),
        (write("model.safetensors", ZIPPED), r"pickled file under the name of a safetensors file"),
        (cut("model.safetensors", 200_000), r"model.safetensors is cut or damaged(.|\n)*200,000 bytes"),
        (cut("model.safetensors", 500), r"model.safetensors is cut or damaged"),
        (cut("model.safetensors", 5), r"model.safetensors is cut or damaged"),
        (write("model.safetensors", b"\xff" * 900), r"model.safetensors is cut or damaged"),
        (cut("config.json", 200), r"config.json can't be read as JSON"),
        (write("config.json", "[1, 2]"), r"config.json can't be used(.|\n)*list"),
        (write("config.json", {"architectures": ["LlamaForCausalLM"]}), r"names no kind of model(.|\n)*architectures"),
        (write("config.json", b"\xff\xfe\x00"), r"config.json can't be read as JSON"),
        (cut("tokenizer_config.json", 50), r"tokenizer_config.json can't be read as JSON"),
        (cut("tokenizer.json", 5000), r"tokenizer of model can't be loaded"),
        (write("tokenizer.json", "{}"), r"tokenizer of model can't be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"holds no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no weights"),
        (moved("model.safetensors", "pytorch_model.bin"), r"pickled files only(.|\n)*pytorch_model.bin(.|\n)*save_pretrained"),
        (moved("model.safetensors", "pytorch_model-00001-of-00002.bin"), r"pickled files only"),
        (moved("model.safetensors", "consolidated.00.pth"), r"pickled files only(.|\n)*consolidated.00.pth"),
        (moved("model.safetensors", "tf_model.h5"), r"for another library only(.|\n)*tf_model.h5"),
        (moved("model.safetensors", "model.gguf"), r"has its weights as GGUF files(.|\n)*--model .*model.gguf"),
        (write("chat_template.jinja", POINTER), r"chat_template.jinja is a Git LFS pointer"),
        (moved("model.safetensors", "weights.safetensors"), r"not under the names of a model(.|\n)*weights.safetensors"),
    ],
)
def test_damaged_files(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    folder = model_copy(tmp_path / "model")
    change(folder)
    assert re.search(words, str(refused(folder))), str(refused(folder))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "brandnew"}, r"config.json in .* can't be used(.|\n)*brandnew(.|\n)*install -U transformers"),
        (
            {"model_type": "brandnew", "architectures": ["BrandNewForCausalLM"], "auto_map": {"AutoConfig": "configuration_brandnew.BrandNewConfig"}},
            r"can't be used(.|\n)*never done here",
        ),
        (
            {"architectures": ["MyLlamaForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_my.MyLlamaForCausalLM"}},
            r"is an MyLlamaForCausalLM(.|\n)*custom code \(auto_map\), which is never run",
        ),
        ({"architectures": ["MyLlamaForCausalLM"]}, r"is an MyLlamaForCausalLM, which transformers .* does not have"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"no language model but a sequence classifier"),
        ({"architectures": ["LlamaForTokenClassification"]}, r"no language model but a token classifier"),
        ({"rope_parameters": "nonsense"}, r"can't be (used|loaded)"),
        ({"hidden_act": "nonsense"}, r"can't be loaded"),
        ({"text_config": "nonsense"}, r"config.json can't be used(.|\n)*text_config"),
    ],
)
def test_kinds_of_models_by_config(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    refusal = refused(model_copy(tmp_path / "model", **config))
    assert re.search(words, str(refusal)), str(refusal)


def test_custom_code_beside_a_known_class_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = model_copy(tmp_path / "model", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    with caplog.at_level(logging.WARNING, "core"):
        assert torch.equal(states_of(folder), states_of(tiny_folder()))
    assert "custom code (auto_map), which is never run" in caplog.text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bert", r"model is an encoder \(bert\)"),
        ("roberta", r"model is an encoder \(roberta\)"),
        ("modernbert", r"model is an encoder \(modernbert\)"),
        ("bert classifier", r"a sequence classifier"),
        ("t5", r"a sequence-to-sequence model \(t5\)"),
        ("bart", r"a sequence-to-sequence model \(bart\)"),
        ("vit", r"no language model \(vit\)"),
        ("bert without a class", r"model is an encoder \(bert\)"),
    ],
)
def test_other_architectures_are_named(kind: str, words: str, tmp_path: Path) -> None:
    import transformers as t

    small = {"vocab_size": 635, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    models: dict[str, Callable[[], Any]] = {
        "bert": lambda: t.BertForMaskedLM(t.BertConfig(**small)),
        "roberta": lambda: t.RobertaModel(t.RobertaConfig(**small)),
        "modernbert": lambda: t.ModernBertForMaskedLM(t.ModernBertConfig(**small, pad_token_id=0)),
        "bert classifier": lambda: t.BertForSequenceClassification(t.BertConfig(**small)),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(vocab_size=635, d_model=32, d_ff=64, num_layers=2, num_heads=2, d_kv=16)),
        "bart": lambda: t.BartForConditionalGeneration(
            t.BartConfig(vocab_size=635, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
        ),
        "vit": lambda: t.ViTModel(t.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)),
        "bert without a class": lambda: t.BertModel(t.BertConfig(**small)),
    }
    folder = tmp_path / "model"
    models[kind]().save_pretrained(folder)
    t.AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(folder)
    if kind == "bert without a class":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": None}))
    refusal = refused(folder)
    assert re.search(words, str(refusal)), str(refusal)
    with pytest.raises(BackboneError, match=words):  # before any slow step, and before the comparison with an SAE
        backbone_identity(config_for(folder), find_model(config_for(folder)))


def folder_of(tmp_path: Path, files: dict[str, bytes | str | dict[str, Any]]) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write(name, content)(folder)
    return folder


ADAPTER = {"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 8}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter_config.json": ADAPTER, "adapter_model.safetensors": b"x"}, r"a PEFT adapter of org/base(.|\n)*--model org/base(.|\n)*merge"),
        ({"adapter_config.json": {**ADAPTER, "base_model_name_or_path": None}}, r"a PEFT adapter of a model that it does not name"),
        ({"adapter_config.json": ADAPTER, "config.json": {"model_type": "llama"}}, r"a model together with a PEFT adapter of org/base"),
        ({"dataset_info.json": {}, "state.json": {}, "data-00000-of-00001.arrow": b"A"}, r"a data set as `save_to_disk`(.|\n)*--pairs"),
        ({"dataset_dict.json": {"splits": ["train"]}, "train/dataset_info.json": {}}, r"a data set as `save_to_disk`"),
        ({"train.parquet": b"PAR1", "README.md": "x"}, r"a folder of data files(.|\n)*--pairs"),
        ({"cfg.json": {"d_in": 8}, "sae_weights.safetensors": b"x"}, r"a sparse autoencoder \(cfg.json, as sae-lens(.|\n)*--sae"),
        ({"cfg.json": {"k": 8}, "sae.safetensors": b"x"}, r"a sparse autoencoder \(cfg.json, as sparsify"),
        ({"config.json": {"k": 8}, "layers.5/cfg.json": {"k": 8}}, r"a folder of sparse autoencoders"),
        ({"layers.5/cfg.json": {"k": 8}, "layers.5/sae.safetensors": b"x"}, r"a folder of sparse autoencoders"),
        ({"config.json": {"trainer": {"dict_size": 8}}, "ae.pt": b"x"}, r"as dictionary_learning(.|\n)*--sae"),
        ({"config.json": {"trainer": {"dict_size": 8}, "buffer": {}}}, r"as dictionary_learning"),
        ({"params.npz": b"PK"}, r"as Gemma Scope has it"),
        ({"hyperparams.json": {}, "checkpoints/final.safetensors": b"x"}, r"as Llama Scope has it"),
        (
            {"config.json": {"backbone": {"name": "org/lm"}}, "selection.jsonl": "", "heads.safetensors": b"x"},
            r"a reward model(.|\n)*: org/lm",
        ),
        ({"a.gguf": b"GGUF"}, r"no model folder(.|\n)*--model .*a.gguf"),
        ({"checkpoint-5/config.json": {"model_type": "llama"}}, r"model folders inside it: .*checkpoint-5"),
        ({"params.json": {}, "consolidated.00.pth": b"x"}, r"weights in another format"),
        ({"model.safetensors": b"x"}, r"weights alone do not define"),
        ({}, r"an empty folder"),
    ],
)
def test_folders_that_hold_something_else(files: dict[str, Any], words: str, tmp_path: Path) -> None:
    refusal = refused(folder_of(tmp_path, files))
    assert re.search(words, str(refusal)), str(refusal)


def test_a_real_adapter_and_data_set(tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder()), LoraConfig(r=4)).save_pretrained(tmp_path / "adapter")
    assert f"a PEFT adapter of {tiny_folder()}" in refused(tmp_path / "adapter").problem
    Dataset.from_list([{"chosen": "a", "rejected": "b"}]).save_to_disk(tmp_path / "saved")
    assert "save_to_disk" in refused(tmp_path / "saved").problem


def test_an_adapter_that_is_not_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder()), LoraConfig(r=4))
    folder = model_copy(tmp_path / "model")
    save_file({name: tensor.clone() for name, tensor in peft.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    refusal = refused(folder)
    assert ("not merged" in refusal.problem and "lora_A" in refusal.found + refusal.expected) or "base_layer" in refusal.found


def test_single_files(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"is a single file and no model(.|\n)*give its folder: --model"):
        find_model(config_for(tiny_folder() / "model.safetensors"))
    pointer = tmp_path / "model.safetensors"
    pointer.write_text(POINTER)
    with pytest.raises(BackboneError, match="is a Git LFS pointer"):
        find_model(config_for(pointer))
    for name, words in (("pairs.jsonl", "--pairs"), ("params.npz", "--sae"), ("pytorch_model.bin", "save_pretrained"), ("x.GGUF", "GGUF")):
        (tmp_path / name).write_text("plain text")
        with pytest.raises(BackboneError, match=words):
            find_model(config_for(tmp_path / name))
    with pytest.raises(BackboneError, match="there is no model at"):
        find_model(BackboneConfig(model=str(tmp_path / "nowhere.safetensors")))


def test_the_command_says_it_in_plain_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """`sparserm fit` ends with exit code 4 and the tensor's name, without a traceback or an artefact of the damaged
    model."""
    from core.backbone.presets import preset
    from core.cli.main import main

    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path / "cache"))
    tiny = preset("tiny")
    folder = model_copy(tmp_path / "model", without("layers.1."), source=Path(tiny.backbone.model))
    words = ["fit", "--pairs", tiny.data.pairs, "--model", str(folder), "--layer", "1", "--dtype", "float32", "--sae", tiny.sae.path]
    for _ in range(2):
        assert main(words) == BackboneError.exit_code
        output = capfd.readouterr().err
        assert "layers.1.input_layernorm.weight" in output and "Traceback" not in output and "bug" not in output
    assert [path.name for path in (tmp_path / "cache" / "artefacts").iterdir()] == ["pairs"]

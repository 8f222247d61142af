"""Hidden states against the whole model's own for several families; truncation; padding; errors with remedies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import numpy as np
import pytest
import torch
from backbone_helpers import save_model, tiny_backbone, tiny_folder

from core.backbone import source
from core.backbone.model import load_backbone
from core.config import BackboneConfig
from core.errors import BackboneError

IDS = torch.tensor([[5, 9, 33, 71, 200, 14, 8], [300, 2, 2, 41, 9, 9, 10]])


def config_for(folder: Path, **changes: Any) -> BackboneConfig:
    return BackboneConfig(**{"model": str(folder), "layer": 1, "dtype": "float32", "device": "cpu", **changes})


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen2", "neox"])
def test_states_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / kind, kind)
    whole = load_backbone(config_for(folder))
    mask = torch.ones_like(IDS)
    with torch.inference_mode():
        reference = whole.model(input_ids=IDS, attention_mask=mask, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        cut = load_backbone(config_for(folder), depth=layer + 1)
        assert len(cut.layers) == layer + 1
        torch.testing.assert_close(cut.states(IDS, mask, [layer])[layer], reference[layer + 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.states(IDS, mask, [0, 1])[0], reference[1], rtol=0, atol=1e-5)


def test_last_layer_is_read_before_the_final_norm() -> None:
    whole = tiny_backbone(depth=None)
    mask = torch.ones_like(IDS)
    caught: list[torch.Tensor] = []
    handle = whole.model.model.norm.register_forward_pre_hook(lambda _m, inputs: caught.append(inputs[0]))
    with torch.inference_mode():
        reference = whole.model(input_ids=IDS, attention_mask=mask, output_hidden_states=True).hidden_states
    handle.remove()
    states = whole.states(IDS, mask, [1])[1]
    torch.testing.assert_close(states, caught[0], rtol=0, atol=1e-6)
    assert not torch.allclose(states, reference[-1], atol=1e-2), "indexing hidden_states from the end would have given the normed state"


def test_padding_side_does_not_matter() -> None:
    backbone = tiny_backbone()
    row = IDS[:1]
    pad = torch.full((1, 3), 2)
    ones, zeros = torch.ones_like(row), torch.zeros_like(pad)
    plain = backbone.states(row, ones, [1])[1]
    left = backbone.states(torch.cat([pad, row], 1), torch.cat([zeros, ones], 1), [1])[1][:, 3:]
    right = backbone.states(torch.cat([row, pad], 1), torch.cat([ones, zeros], 1), [1])[1][:, :-3]
    torch.testing.assert_close(left, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(right, plain, rtol=0, atol=1e-5)


def test_forward_stops_at_the_layer() -> None:
    whole = tiny_backbone(depth=None)
    ran: list[int] = []
    handles = [layer.register_forward_hook(lambda *_a, i=i: ran.append(i)) for i, layer in enumerate(whole.layers)]
    whole.states(IDS, torch.ones_like(IDS), [0])
    for handle in handles:
        handle.remove()
    assert ran == [0]


def test_logits_need_the_whole_model() -> None:
    whole, mask = tiny_backbone(depth=None), torch.ones_like(IDS)
    with torch.inference_mode():
        torch.testing.assert_close(whole.logits(IDS, mask), whole.model(input_ids=IDS, attention_mask=mask).logits)
    with pytest.raises(BackboneError, match="without its LM head"):
        tiny_backbone().logits(IDS, mask)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(BackboneError, match=r"no layer 6(.|\n)*0 to 1"):
        tiny_backbone(depth=7)
    with pytest.raises(BackboneError, match="layer 1 of model is not there"):
        tiny_backbone(depth=1).states(IDS, torch.ones_like(IDS), [1])


def test_identity_names_what_changes_a_state(tmp_path: Path) -> None:
    import shutil

    first = tiny_backbone().identity
    assert (first["d_model"], first["n_layers"], first["dtype"], first["has_template"]) == (64, 2, "float32", True)
    assert "toy model" in first["system_message"]
    copy = shutil.copytree(tiny_folder(), tmp_path / "model")
    assert load_backbone(config_for(copy), depth=2).identity == first, "the same files elsewhere are the same backbone"
    (copy / "chat_template.jinja").write_text((copy / "chat_template.jinja").read_text().replace("toy", "small"))
    changed = load_backbone(config_for(copy), depth=2).identity
    assert changed["template_sha256"] != first["template_sha256"] and changed["sha256"] != first["sha256"]


def test_capped_attention_is_run_eagerly(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "gemma2", "gemma2")
    assert load_backbone(config_for(folder), depth=1).identity["attention"] == "eager"
    with pytest.raises(BackboneError, match="caps its attention logits"):
        load_backbone(config_for(folder, attention="sdpa"), depth=1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "gated(.|\n)*hf auth login"),
        ("RepositoryNotFoundError", "no model org/name"),
        ("RevisionNotFoundError", "no revision nope"),
    ],
)
def test_hub_errors_say_what_to_do(error: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> str:
        response = type("Response", (), {"headers": {}, "status_code": 403, "request": None, "url": "", "text": ""})()
        raise getattr(huggingface_hub.errors, error)("no", response=response)

    monkeypatch.setattr("core.backbone.hub_model.snapshot_download", refuse)
    with pytest.raises(BackboneError, match=words):
        load_backbone(BackboneConfig(model="org/name", revision="nope"))


def test_offline_and_wrong_names() -> None:
    with pytest.raises(BackboneError, match=r"not on this machine(.|\n)*--model FOLDER"):
        load_backbone(BackboneConfig(model="nobody/nothing-at-all"))
    with pytest.raises(BackboneError, match=r"there is no model at \./nowhere") as raised:
        load_backbone(BackboneConfig(model="./nowhere"))
    assert "put the model back" in raised.value.remedy
    with pytest.raises(BackboneError, match="no GGUF file"):
        load_backbone(BackboneConfig(model="nowhere.gguf"))
    with pytest.raises(BackboneError, match="neither a folder nor a Hub id"):
        load_backbone(BackboneConfig(model="a/b/c d"))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BackboneError, match=r"no model folder(.|\n)*notes.txt"):
        load_backbone(config_for(tmp_path))


def test_hub_copy_is_used_instead_of_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "try_to_load_from_cache", lambda _repo, name: str(snapshot / name))
    model = source.find_model(BackboneConfig())
    assert (model.folder, model.name, model.revision) == (snapshot, source.EMBEDDED_HUB_ID, "c" * 40)


def test_files_are_hashed_again_when_they_change(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = source.find_model(config_for(tmp_path)).sha256
    assert source.find_model(config_for(tmp_path)).sha256 == first
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert source.find_model(config_for(tmp_path)).sha256 != first


def test_dtype_of_the_device() -> None:
    backbone = tiny_backbone(dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16 and backbone.identity["dtype"] == "bfloat16"
    reference = tiny_backbone().states(IDS, torch.ones_like(IDS), [1])[1].numpy()
    states = backbone.states(IDS, torch.ones_like(IDS), [1])[1].float().numpy()
    assert 0 < np.abs(states - reference).max() < 0.1 * np.abs(reference).max()

"""Presets name SAEs that exist; the toy parts are whole, deterministic, reused, and as their docstring describes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.backbone import tiny
from core.backbone.presets import EXPECTED_L0, PRESETS, neuronpedia_source, preset, source_names
from core.backbone.tiny import TinyParts, make_tiny
from core.errors import ConfigError
from core.files import file_sha256


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> TinyParts:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rows(parts: TinyParts) -> list[dict[str, str]]:
    return [json.loads(line) for line in parts.pairs.read_text().splitlines()]


@pytest.fixture(scope="module")
def states(parts: TinyParts, rows: list[dict[str, str]]) -> np.ndarray:
    """States [pair, chosen or rejected, d_model] of a response's last token after layer 1, located without offsets by
    decoding."""
    tokenizer, model = AutoTokenizer.from_pretrained(parts.model), AutoModelForCausalLM.from_pretrained(parts.model)
    model.model.norm = torch.nn.Identity()  # so that the last hidden state is layer 1's output
    states = []
    for row in rows:
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]
            last = next(n for n in range(len(ids), 0, -1) if tokenizer.decode(ids[:n]).endswith(row[side])) - 1
            with torch.no_grad():
                states.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, last].numpy())
    return np.array(states).reshape(len(rows), 2, -1)


def test_the_papers_cells_are_named_exactly() -> None:
    cells = {name: (c.backbone.model, c.backbone.layer, c.sae.release, c.sae.sae_id, c.selection.k) for name, c in PRESETS.items()}
    assert cells["gemma-2-2b"] == ("google/gemma-2-2b-it", 13, "gemma-scope-2b-pt-res-canonical", "layer_13/width_16k/canonical", 128)
    assert cells["gemma-2-9b"] == ("google/gemma-2-9b-it", 31, "gemma-scope-9b-it-res-canonical", "layer_31/width_16k/canonical", 128)
    assert cells["llama-3.1-8b"] == ("meta-llama/Llama-3.1-8B-Instruct", 15, "llama_scope_lxr_8x", "l15r_8x", 128)
    assert cells["smollm2-135m"] == ("smollm2-135m", 19, "", "", 32)


def test_releases_and_their_l0_are_in_sae_lens_list() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    releases = get_pretrained_saes_directory()
    named = {(c.sae.release, c.sae.sae_id) for c in PRESETS.values() if c.sae.release}
    assert named == set(EXPECTED_L0)
    for release, sae_id in named:
        entry = releases[release]
        folder = entry.saes_map[sae_id]  # KeyError: no such id
        l0 = float(folder.rpartition("average_l0_")[2]) if "average_l0_" in folder else entry.expected_l0[sae_id]
        assert l0 == EXPECTED_L0[release, sae_id]


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"(?s)no such preset.*smollm2-135m \| smollm2-135m-paper \| tiny.*'gemma'"):
        preset("gemma")


def test_tiny_preset_points_at_its_parts(parts: TinyParts) -> None:
    config = preset("tiny", root=parts.model.parents[1])
    assert (Path(config.backbone.model), Path(config.sae.path), Path(config.data.pairs)) == (parts.model, parts.sae, parts.pairs)
    assert replace(config, backbone=PRESETS["tiny"].backbone, sae=PRESETS["tiny"].sae, data=PRESETS["tiny"].data) == PRESETS["tiny"]


def test_tiny_is_the_same_every_time_and_made_once(parts: TinyParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = parts.model.parent
    second = make_tiny(tmp_path).model.parent
    files = sorted(str(f.relative_to(first)) for f in first.rglob("*") if f.is_file())
    assert {"pairs.jsonl", "model/model.safetensors", "model/tokenizer.json", "sae/cfg.json", "sae/sae_weights.safetensors"} <= set(files)
    assert [file_sha256(first / name) for name in files] == [file_sha256(second / name) for name in files]
    monkeypatch.setattr(tiny, "publish_folder", lambda *_: pytest.fail("made again"))
    assert make_tiny(tmp_path).model.parent == second


def test_a_failed_tiny_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.backbone.tiny_model.make_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_tiny(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tiny_does_not_touch_the_callers_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_tiny(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_tiny_tokenizer_has_smollm2s_habits(parts: TinyParts) -> None:
    tokenizer = AutoTokenizer.from_pretrained(parts.model)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "ünï 🎈\n"}], tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>user\nünï 🎈\n<|im_end|>\n<|im_start|>assistant\n")
    text_with_system = tokenizer.apply_chat_template([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}], tokenize=False)
    assert text_with_system == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and ids.count(tokenizer.bos_token_id) == 3


def test_tiny_pairs(rows: list[dict[str, str]]) -> None:
    assert len(rows) == len({row["id"] for row in rows}) == 100
    by_prompt: dict[str, list[str]] = {}
    for row in rows:
        assert set(row) == {"prompt", "chosen", "rejected", "subset", "id"}
        by_prompt.setdefault(row["prompt"], []).extend([row["chosen"], row["rejected"]])
    assert len(by_prompt) == 60
    assert all(len(set(answers)) == len(answers) for answers in by_prompt.values())


def test_a_random_backbone_can_learn_the_tiny_preference(rows: list[dict[str, str]], states: np.ndarray) -> None:
    train = np.array([hash_free_half(row["prompt"]) for row in rows])
    difference = states[:, 0] - states[:, 1]
    x = np.concatenate([difference[train], -difference[train]])
    y = np.repeat([1, 0], train.sum())
    probe = LogisticRegression(fit_intercept=False, max_iter=1000).fit(x, y)
    assert probe.score(difference[~train], np.ones((~train).sum())) > 0.9


def hash_free_half(prompt: str) -> bool:
    return sum(prompt.encode()) % 2 == 0


def test_tiny_sae_has_the_promised_l0_on_response_ends(parts: TinyParts, states: np.ndarray) -> None:
    weights = load_file(parts.sae / "sae_weights.safetensors")
    z = states.reshape(-1, states.shape[-1])
    active = (z - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"] > weights["threshold"]
    assert weights["W_dec"].shape == (256, 64)
    assert active.sum(1).mean() == pytest.approx(24, abs=0.5)
    assert active.any(0).mean() > 0.95


def test_neuronpedias_source_of_each_cell_is_sae_lens_own() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    cells = {(config.sae.release, config.sae.sae_id) for config in PRESETS.values() if config.sae.release}
    named = {(release, sae_id): neuronpedia_source({"release": release, "sae_id": sae_id}) for release in known for sae_id in known[release].saes_map}
    named = {sae: names for sae, names in named.items() if names}
    assert cells <= set(named) and len(named) > 200, "every SAE of these releases, not those of the presets alone"
    for (release, sae_id), names in named.items():
        assert known[release].neuronpedia_id[sae_id] == "/".join(names)
        assert source_names({"release": release, "sae_id": sae_id}) == names


def test_an_sae_that_neuronpedia_lacks_is_named_the_same_way() -> None:
    sae = {"name": "SAE of mine 1", "layer": 7, "model_name": "org/My-Model", "release": None}
    assert neuronpedia_source(sae) is None and source_names(sae) == ("my-model", "7-sae-of-mine-1")

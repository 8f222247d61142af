"""The whole chain on the real embedded language model: 80 pairs, SmolLM2-135M-Instruct from its wheel, a small SAE that the test writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.backbone.source import find_model
from core.backbone.tiny import tiny_pairs
from core.cli.main import main
from core.config import BackboneConfig
from core.data.pairs_file import read_pairs
from core.reward.hidden_states import load_hidden_states
from core.reward.model import SparseRM
from core.runs.store import Artefact, Store, cache_root

ROOT = Path(__file__).resolve().parents[1]
D_MODEL, D_SAE, LAYER, K = 576, 512, 16, 8


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The embedded model's folder: fetched once into the checkout's cache, which later runs of the tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSERM_CACHE", str(ROOT / "cache"))
        folder = find_model(BackboneConfig()).folder
    here = cache_root() / "models" / folder.name
    if folder.is_relative_to(ROOT / "cache") and not here.exists():
        here.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(folder, here)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """80 pairs, and a random TopK SAE in sae-lens' format: its latents mean nothing, but real states switch them on and off."""
    folder = tmp_path_factory.mktemp("smoke")
    rows = [row for row, _ in zip(tiny_pairs(), range(80), strict=False)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=draw), dim=1)
    tensors = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, "b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(D_MODEL)}
    (folder / "sae").mkdir()
    save_file(tensors, folder / "sae/sae_weights.safetensors")
    metadata = {"model_name": "smollm2-135m", "hook_name": f"blocks.{LAYER}.hook_resid_post", "sae_lens_version": "6.54.0"}
    config = {"architecture": "topk", "k": 32, "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    rest = {"normalize_activations": "none", "reshape_activations": "none", "rescale_acts_by_decoder_norm": False, "metadata": metadata}
    (folder / "sae/cfg.json").write_text(json.dumps({**config, **rest}))
    return folder / "pairs.jsonl", folder / "sae"


@pytest.fixture(scope="module")
def outcome(smollm2: Path, inputs: tuple[Path, Path]) -> dict[str, Any]:
    import contextlib
    import io

    words = ["fit", "--pairs", inputs[0], "--sae", inputs[1], "--layer", LAYER, "--k", K, "--curve", f"4,{K}", "--dtype", "float32"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*map(str, words), "--seeds", "2", "--random-draws", "2", "--epochs", "30", "--resamples", "20", "--json"])
    assert code == 0 and out.getvalue().count("\n") == 1
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def artefact(outcome: dict[str, Any], step: str) -> Artefact:
    """An artefact of this very fit, by the chain of fingerprints that the reward model records."""
    method = SparseRM.load(outcome["artefact"]).parts.method
    found = [a for _, a in Store().all(step) if isinstance(a, Artefact)]
    inputs = {a.fingerprint: a for a in found}
    if step == "extraction":
        texts = artefact(outcome, "pairs").facts["texts"]
        return next(a for a in found if a.manifest["inputs"][0] == texts and a.facts["backbone"]["d_model"] == D_MODEL)
    return inputs[method["fingerprints"][step]]


def test_hidden_states_are_those_of_the_whole_model(outcome: dict[str, Any], smollm2: Path) -> None:
    """Against transformers itself: the whole model, one dialogue at a time, hidden_states[L + 1] at the last token of the answer's own text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hidden = load_hidden_states(artefact(outcome, "extraction").path, LAYER, "response_end")
    pairs = read_pairs(artefact(outcome, "pairs").file("pairs.jsonl"))
    assert hidden.states.shape == (160, D_MODEL) and hidden.n_pairs == len(pairs) == 80
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for number in (0, 17, 59):
        pair = pairs[number]
        text = tokenizer.apply_chat_template([*pair.prompt, {"role": "assistant", "content": pair.rejected}], tokenize=False)
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        end = text.rindex(pair.rejected) + len(pair.rejected)
        position = max(i for i, (start, stop) in enumerate(encoded["offset_mapping"]) if start < end and stop > start)
        with torch.no_grad():
            states = model(torch.tensor([encoded["input_ids"]]), output_hidden_states=True).hidden_states[LAYER + 1][0, position]
        np.testing.assert_allclose(hidden.rejected[number], states.numpy(), rtol=1e-4, atol=1e-3 * float(states.abs().max()))


def test_the_table_is_whole_and_says_something(outcome: dict[str, Any]) -> None:
    entries = [outcome["sparserm"], *outcome["controls"].values(), *outcome["losses"].values()]
    assert len(entries) == 1 + 8 + 3
    for entry in entries:
        assert 0 <= entry["low"] <= entry["accuracy"] <= entry["high"] <= 1 and entry["n"] == outcome["sparserm"]["n"] > 20
    # Kind words against rude ones: easy for a real model, on any directions.
    assert outcome["controls"]["dense"]["accuracy"] > 0.8
    assert outcome["about"]["selection"]["k_chosen"] > 0
    assert {point["k"] for point in outcome["curve"]} == {4, K}


def test_the_saved_reward_model_scores_as_the_fit_evaluated(outcome: dict[str, Any]) -> None:
    reward_model = SparseRM.load(outcome["artefact"])
    pairs = read_pairs(artefact(outcome, "pairs").file("pairs.jsonl"))
    chosen, rejected = reward_model.score_pairs(pairs.take(pairs.rows_of("test")))
    assert np.mean(chosen > rejected) == outcome["sparserm"]["accuracy"]
    assert len(chosen) == outcome["sparserm"]["n"]
    assert reward_model.parts.directions is not None and reward_model.parts.directions.shape[1] == D_MODEL
    assert "SmolLM2" in str(reward_model.parts.backbone["name"])

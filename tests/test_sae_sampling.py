"""Answers sampled for an SAE's corpus: prompts of the training split, what is kept, and going on after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_training_helpers import backbone_config, pairs_file

from core.backbone.model import load_backbone
from core.cli import main as cli
from core.config import DataConfig, SampleConfig
from core.data.pairs import load_pairs
from core.data.splits import split_pairs
from core.errors import Cancelled, ConfigError, DataError
from core.sae.corpus import load_corpus
from core.sae.sampling import sample_answers, whole_sentences
from core.types import sha256_of

CONFIG = SampleConfig(backbone=backbone_config(), prompts=pairs_file(), max_new_tokens=12, batch_size=8, ratios=(0.2, 0.1, 0.7))


def test_answers_are_the_model_s_own_to_training_prompts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a temperature near zero, the whole model decoded token by token without padding writes the same."""
    monkeypatch.setattr("core.sae.sampling.whole_sentences", lambda text: text)
    counts = sample_answers(replace(CONFIG, temperature=0.0001), tmp_path / "answers.jsonl")
    rows = [json.loads(line)["messages"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    pairs, _ = load_pairs(DataConfig(pairs=pairs_file()))
    split = split_pairs(pairs, DataConfig(pairs=pairs_file(), ratios=CONFIG.ratios)).split
    train = {sha256_of(list(pair.prompt)) for pair, name in zip(pairs, split, strict=True) if name == "train"}
    assert rows and {sha256_of(row[:-1]) for row in rows} <= train and counts == {
        "prompts": len(train), "answers": len(rows), "left_out": len(train) - len(rows), "rows_refused": 0
    }  # fmt: skip
    backbone = load_backbone(CONFIG.backbone)
    for row in rows[:3]:
        text = backbone.tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True)
        ids = backbone.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(CONFIG.max_new_tokens):
            following = backbone.model(input_ids=ids).logits[0, -1].argmax()
            if following == backbone.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
        assert backbone.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip() == row[-1]["content"]


def test_a_stopped_call_goes_on_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.sae.sampling.whole_sentences", lambda text: text)
    sample_answers(CONFIG, tmp_path / "undisturbed.jsonl")
    begun: list[float] = []

    def stop(step: str, done: float, total: float, **figures: Any) -> None:
        if step == "sample answers" and done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample_answers(CONFIG, tmp_path / "stopped.jsonl", progress=stop)
    assert not (tmp_path / "stopped.jsonl").exists()
    (partial,) = tmp_path.glob(".stopped*.partial")
    partial.write_bytes(partial.read_bytes() + b'{"batch": 1, "rows": [[3, "half a li')  # a kill in the middle of a line
    sample_answers(CONFIG, tmp_path / "stopped.jsonl", progress=lambda step, done, total, **figures: begun.append(done))
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert not list(tmp_path.glob(".*")) and len(load_corpus(str(tmp_path / "stopped.jsonl"), root=tmp_path).dialogues) > 3


def test_what_was_cut_ends_with_a_whole_sentence() -> None:
    assert whole_sentences("One. Two! And th") == "One. Two!"
    assert whole_sentences('He said "no." Then 3.5 of') == 'He said "no.'
    assert whole_sentences("never an end") == ""


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        sample_answers(CONFIG, tmp_path / "there.jsonl")
    with pytest.raises(DataError, match="no prompt to answer"):
        sample_answers(replace(CONFIG, prompts=""), tmp_path / "new.jsonl")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path / "cache"))
    words = ["sae", "sample", "--model", CONFIG.backbone.model, "--prompts", pairs_file(), "--max-new-tokens", "4", "--ratios", "0.05,0.1,0.8"]
    assert cli.main([*words, "--out", str(tmp_path / "a.jsonl"), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["answers"] + counts["left_out"] == counts["prompts"] > 0

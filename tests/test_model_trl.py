"""TRL trains a policy with a SparseRM as its reward function: one real GRPO step on the tiny model, with texts and with messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import make_parts

from core.backbone.model import Backbone, load_backbone
from core.backbone.presets import preset
from core.reward.model import SparseRM

QUESTIONS = ["How do I boil an egg?", "Is it hard to keep bees?"]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone(preset("tiny").backbone, depth=2)


def reward_model_on(backbone: Backbone) -> SparseRM:
    parts = make_parts(d_model=64, k=8, hidden=16)
    return SparseRM.from_parts(replace(parts, backbone=backbone.identity, backbone_config=backbone.config), backbone=backbone)


@pytest.mark.parametrize("conversational", [False, True])
def test_one_grpo_step(tiny: Backbone, tmp_path: Path, conversational: bool) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    folder = preset("tiny").backbone.model
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    reward_model, read = reward_model_on(tiny), []
    reader = reward_model.reader
    reward_model.reader = lambda items: read.extend(items) or reader(items)
    prompts: list[Any] = [[{"role": "user", "content": q}] for q in QUESTIONS] if conversational else QUESTIONS
    options: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 3}
    config = GRPOConfig(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=5,
        logging_steps=1,
        learning_rate=1e-2,
        **options,
    )
    trainer = GRPOTrainer(
        model=policy, reward_funcs=reward_model, args=config, train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer
    )
    trainer.train()

    assert trainer.reward_func_names == ["sparserm"]
    logged = trainer.state.log_history[0]
    # Every completion was read as the assistant's answer to its question, whichever form TRL gave it in.
    assert {prompt[-1]["content"] for prompt, _ in read} == set(QUESTIONS) and all(len(prompt) == 1 for prompt, _ in read)
    rewards = reward_model.score([prompt for prompt, _ in read], [text for _, text in read])
    assert len(rewards) == 8 and np.std(rewards) > 0
    np.testing.assert_allclose(logged["rewards/sparserm/mean"], rewards.mean(), rtol=1e-5)
    # ... and the step used them: another policy than before.
    assert any(not torch.equal(before[name], weight) for name, weight in policy.named_parameters())

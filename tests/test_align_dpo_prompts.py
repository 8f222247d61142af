"""Prompts computed once in DPO: fields and gradients equal those of two whole sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_helpers import save_model, tiny_folder
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from core.align.dpo_pairs import EncodedPair
from core.align.dpo_prompts import PER_TOKEN, can_share_prompts, share_prompts
from core.align.dpo_trainer import new_trainer
from core.align.policy import training_base
from core.config import BackboneConfig, DPOConfig

# (prompt, chosen, rejected): lengths that differ every way, a prompt of one token, an answer of one.
PAIRS = [([5, 6, 7, 8, 9], [10, 11, 2], [12, 2]), ([5], [13, 2], [14, 15, 16, 17, 2]), ([20, 21, 22], [2], [30, 2])]
READ_TWICE, ONCE = 6 * 8, 3 * 9  # tokens with padding: six sequences of at most 8; three rows of at most 5 + 3 + 2 - 1


def batch() -> dict[str, Any]:
    rows = [(prompt, answer) for side in (1, 2) for pair in PAIRS for prompt, answer in [(pair[0], pair[side])]]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, mask, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long), torch.full((6, width), -100)
    for row, (prompt, answer) in enumerate(rows):
        whole = torch.tensor(prompt + answer)
        ids[row, : len(whole)], mask[row, : len(whole)], labels[row, len(prompt) : len(whole)] = whole, 1, torch.tensor(answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loaded(folder: Path, attention: str) -> tuple[Any, list[int]]:
    """A model with TRL's head, and a list of the number of tokens that each call computes."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    add_fused_lm_head(model, outputs=PER_TOKEN)
    seen = list[int]()
    model.get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    return model, seen


def read(model: Any, call: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The fields over labelled tokens, and the gradients of an unevenly weighted sum of the log-probabilities."""
    given = batch()
    output = call(**given, fused_lm_head=True, use_cache=False)
    labelled = given["labels"][:, 1:] != -100
    fields = {name: getattr(output, name) for name in PER_TOKEN}
    assert all(values.shape == labelled.shape and not values[~labelled].any() for values in fields.values())
    model.zero_grad()
    (output.log_probs.sum(1) * torch.tensor([1.0, -2.0, 3.0, -1.0, 0.5, -2.5])).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: values.detach()[labelled] for name, values in fields.items()}, gradients


@pytest.mark.parametrize(("kind", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gemma2", "eager"), ("qwen2", "sdpa"), ("neox", "sdpa")])
def test_equal_to_whole_sequences(tmp_path: Path, kind: str, attention: str) -> None:
    model, seen = loaded(tiny_folder() if kind == "llama" else save_model(tmp_path / kind, kind), attention)
    assert can_share_prompts(model)
    (plain, plain_gradients), (shared, gradients) = read(model, model), read(model, share_prompts(model))
    assert seen == [READ_TWICE, ONCE]
    for name in PER_TOKEN:
        torch.testing.assert_close(shared[name], plain[name], rtol=1e-4, atol=1e-5)
    assert gradients.keys() == plain_gradients.keys() and len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-3, atol=1e-5, msg=lambda message, name=name: f"{name}: {message}")


def test_the_trainer_reads_each_prompt_once(tmp_path: Path) -> None:
    """TRL calls its model in a private method; if a new version renames it, only this test fails."""
    config = DPOConfig(batch_size=3)
    backbone = training_base(BackboneConfig(model=str(tiny_folder()), layer=1, dtype="float32", device="cpu"), config, spread=False)
    pairs = [EncodedPair(pair_id=str(i), prompt_id=str(i), prompt=p, chosen=c, rejected=r) for i, (p, c, r) in enumerate(PAIRS)]
    trainer, seen = new_trainer(backbone, None, pairs, config, str(tmp_path)), list[int]()
    backbone.model.get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].numel()))
    trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(3)]))
    assert seen == [ONCE]


def test_the_answers_do_not_see_each_other() -> None:
    model, _ = loaded(tiny_folder(), "sdpa")
    given = batch()
    other = {**given, "input_ids": given["input_ids"].clone(), "labels": given["labels"].clone()}
    for name in ("input_ids", "labels"):
        other[name][0, 5] = 40  # the first chosen answer's first token
    with torch.no_grad():
        before, after = (share_prompts(model)(**inputs, fused_lm_head=True).log_probs for inputs in (given, other))
    assert (before[0] != after[0]).any() and torch.equal(before[1:], after[1:])


def test_what_has_left_the_window_is_not_seen(tmp_path: Path) -> None:
    model, seen = loaded(save_model(tmp_path / "gemma2", "gemma2"), "eager")
    model.config.get_text_config().sliding_window = 7
    with torch.no_grad():
        share_prompts(model)(**batch(), fused_lm_head=True)
    assert seen == [READ_TWICE]


def test_models_that_count_places_otherwise_read_whole_sequences(tmp_path: Path) -> None:
    model, _ = loaded(save_model(tmp_path / "gpt2", "gpt2"), "sdpa")
    assert not can_share_prompts(model)
    rotary, _ = loaded(tiny_folder(), "sdpa")
    rotary.config.get_text_config().output_router_logits = True  # a loss over experts counts tokens by the mask
    assert not can_share_prompts(rotary)

"""DPO against log-probabilities computed by hand with plain transformers and PEFT, and its errors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_helpers import save_model, tiny_folder

from core.align import dpo_trainer
from core.align.dpo import DPOOutcome, train_dpo
from core.align.dpo_pairs import EQUAL, NO_TOKEN, encode_pairs
from core.align.dpo_trainer import TrainingMonitor, new_trainer
from core.align.policy import BASE, adapter_hash, load_adapter, load_policy, merge_and_save, training_base
from core.backbone.tiny import tiny_pairs
from core.config import BackboneConfig, DPOConfig
from core.errors import BackboneError, Cancelled, ConfigError, DataError, MismatchError, StoreError
from core.types import Message, PreferencePair

CONFIG = DPOConfig(lr=1e-2, epochs=1, batch_size=4, lora_dropout=0.0)


def pair(number: str, prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(pair_id=number, prompt=(Message(role="user", content=prompt),), chosen=chosen, rejected=rejected)


ALL = [pair(row["id"], row["prompt"], row["chosen"], row["rejected"]) for row in tiny_pairs()]
TRAIN, HELD_OUT = ALL[:8], ALL[3:12]  # some of both, so that the held-out accuracy is neither 0 nor 1


def base_config(model: Path | None = None) -> BackboneConfig:
    return BackboneConfig(model=str(model or tiny_folder()), layer=1, dtype="float32", device="cpu")


def train(out: Path, adapter: Path | None = None, pairs: Sequence[PreferencePair] = TRAIN, **options: Any) -> DPOOutcome:
    config = options.pop("config", CONFIG)
    given = {"validation": HELD_OUT, "base": base_config(), **options}
    return train_dpo(pairs, given.pop("validation"), adapter=adapter, config=config, out=out, **given)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DPOOutcome]:
    """The adapter of a first round, and the training's outcome."""
    out = tmp_path_factory.mktemp("first") / "adapter"
    return out, train(out)


# --- by hand: plain transformers and PEFT, one sequence at a time -----------------------------------------------------


def plain_model(adapter: Path | None = None, folder: Path | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder or tiny_folder())
    return model.eval() if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


def plain_ids(example: PreferencePair, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of the prompt and of the answer with its end of turn, by the tokenizer's own template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    before = tokenizer.apply_chat_template(list(example.prompt), add_generation_prompt=True, tokenize=False)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, before + answer + "<|im_end|>")]
    assert ids[1][: len(ids[0])] == ids[0] and ids[1][-1] == tokenizer.eos_token_id
    return ids[0], ids[1][len(ids[0]) :]


def by_hand(model: Any, example: PreferencePair, answer: str) -> float:
    before, after = plain_ids(example, answer)
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].double()
    logprobs = logits.log_softmax(-1)
    return sum(float(logprobs[len(before) + i - 1, token]) for i, token in enumerate(after))


def margins_by_hand(policy: Any, reference: Any, pairs: Sequence[PreferencePair], beta: float = 0.1) -> np.ndarray:
    ratio = [[by_hand(policy, example, text) - by_hand(reference, example, text) for text in (example.chosen, example.rejected)] for example in pairs]
    return np.array([beta * (chosen - rejected) for chosen, rejected in ratio])


def loss_by_hand(margins: np.ndarray) -> float:
    return float(np.mean([-math.log(1 / (1 + math.exp(-margin))) for margin in margins]))


def test_the_loss_is_the_formula(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    two = [ALL[40], ALL[43]]
    outcome = train(tmp_path / "a", first[0], two, config=replace(CONFIG, batch_size=2))
    margins = margins_by_hand(plain_model(first[0]), plain_model(), two)
    assert abs(loss_by_hand(margins) - math.log(2)) > 0.01  # the adapter of round 1 speaks
    assert outcome.curve[0]["loss"] == pytest.approx(loss_by_hand(margins), rel=1e-5)
    assert outcome.curve[0]["margin"] == pytest.approx(margins.mean(), rel=1e-4)
    assert outcome.curve[0]["accuracy"] == (margins > 0).mean()
    policy = plain_model(first[0])
    assert outcome.curve[0]["logprob_chosen"] == pytest.approx(np.mean([by_hand(policy, example, example.chosen) for example in two]), rel=1e-5)


def test_beta_scales_the_margins(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    two = [ALL[40], ALL[43]]
    outcome = train(tmp_path / "a", first[0], two, config=replace(CONFIG, batch_size=2, beta=0.7))
    assert outcome.curve[0]["loss"] == pytest.approx(loss_by_hand(margins_by_hand(plain_model(first[0]), plain_model(), two, beta=0.7)), rel=1e-5)


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_epochs_are_judged_exactly(first: tuple[Path, DPOOutcome], tmp_path: Path, reference: str) -> None:
    outcome = train(tmp_path / "a", first[0], config=replace(CONFIG, epochs=2, reference=reference))
    chosen = outcome.epochs[outcome.best_epoch - 1]
    against = plain_model(None if reference == "base" else first[0])
    margins = margins_by_hand(plain_model(tmp_path / "a"), against, HELD_OUT)
    assert chosen["n"] == len(HELD_OUT) == outcome.n_validation
    assert chosen["accuracy"] == pytest.approx((margins > 0).mean()) and chosen["low"] < chosen["accuracy"] < chosen["high"]
    assert chosen["loss"] == pytest.approx(loss_by_hand(margins), rel=1e-5)
    assert [epoch["epoch"] for epoch in outcome.epochs] == [1, 2]


# --- the reference ----------------------------------------------------------------------------------------------------


def reference_of(folder: Path, reference: str, pairs: Sequence[PreferencePair], scratch: Path) -> tuple[Any, np.ndarray]:
    config = replace(CONFIG, reference=reference)
    backbone = training_base(base_config(), config, spread=False)
    encoded, _ = encode_pairs(pairs, backbone, config.max_length)
    trainer = new_trainer(backbone, load_adapter(folder, config), encoded, config, str(scratch))
    rows = trainer.train_dataset
    return trainer, np.array([rows["ref_chosen_logps"], rows["ref_rejected_logps"]]).T


def test_in_round_two_the_reference_is_the_bare_base(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    pairs = TRAIN[:4]
    base, previous = plain_model(), plain_model(first[0])
    expected = {name: np.array([[by_hand(m, p, p.chosen), by_hand(m, p, p.rejected)] for p in pairs]) for name, m in (("b", base), ("p", previous))}
    assert np.abs(expected["b"] - expected["p"]).min() > 1e-2
    trainer, against_base = reference_of(first[0], "base", pairs, tmp_path)
    np.testing.assert_allclose(against_base, expected["b"], rtol=1e-5)
    _, against_previous = reference_of(first[0], "previous", pairs, tmp_path)
    np.testing.assert_allclose(against_previous, expected["p"], rtol=1e-5)
    # What TRL itself would compute without precomputed values: also the base, since there is no copy of the adapter.
    assert set(trainer.model.peft_config) == {"default"}
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    theirs = torch.stack(trainer.compute_ref_log_probs(trainer.model, batch), dim=1)
    np.testing.assert_allclose(theirs.numpy(), expected["b"], rtol=1e-5)


def test_trl_by_itself_copies_the_adapter(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    """Plain TRL fails the test above. When this test fails, TRL has changed and `dpo_trainer` may become simpler."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig as Arguments
    from trl import DPOTrainer

    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder()), first[0], is_trainable=True)
    options: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none"}
    rows = Dataset.from_list(
        [{name: value for name, value in example.to_row().items() if name in ("prompt", "chosen", "rejected")} for example in TRAIN[:4]]
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    trainer = DPOTrainer(model=policy, args=Arguments(str(tmp_path), **options), train_dataset=rows, processing_class=tokenizer)
    assert "ref" in trainer.model.peft_config
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        silent = trainer.compute_ref_log_probs(trainer.model, batch)[0]
    bare = np.array([by_hand(plain_model(), example, example.chosen) for example in TRAIN[:4]])
    assert np.abs(silent.numpy() - bare).min() > 1e-2


@pytest.mark.parametrize(("reference", "begins_even"), [("base", False), ("previous", True)])
def test_a_second_round_goes_on_from_the_first(first: tuple[Path, DPOOutcome], tmp_path: Path, reference: str, begins_even: bool) -> None:
    outcome = train(tmp_path / "a", first[0], config=replace(CONFIG, reference=reference))
    assert outcome.adapter_before == first[1].adapter_after == adapter_hash(first[0])
    assert outcome.reference == reference
    assert (outcome.curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)) is begins_even
    assert sorted(file.name for file in (tmp_path / "a").rglob("*")) == ["adapter_config.json", "adapter_model.safetensors"]


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_first_round(first: tuple[Path, DPOOutcome]) -> None:
    out, outcome = first
    assert outcome.adapter_before == BASE and outcome.adapter_after == adapter_hash(out) and len(outcome.adapter_after) == 64
    # d_model 64, mlp 256, two key-value heads of 16: r * (in + out) for q, k, v, o, gate, up, down in both layers.
    assert outcome.trainable == 2 * 16 * (128 + 96 + 96 + 128 + 320 + 320 + 320)
    assert outcome.steps == len(outcome.curve) == 2 and [row["step"] for row in outcome.curve] == [1, 2]
    assert outcome.tokens == sum(
        len(before) + len(after) for example in TRAIN for before, after in (plain_ids(example, example.chosen), plain_ids(example, example.rejected))
    )
    assert (outcome.n_pairs, outcome.n_processes, dict(outcome.refused)) == (8, 1, {})
    json.dumps(outcome.to_json(), allow_nan=False)
    assert "seconds" not in outcome.to_json() and outcome.to_json()["time_seconds"] > 0


def test_plain_peft_loads_it_and_the_policy_computes_the_same(first: tuple[Path, DPOOutcome]) -> None:
    ids = torch.tensor([plain_ids(ALL[0], ALL[0].chosen)[0]])
    policy = load_policy(base_config(), first[0])
    with torch.no_grad():
        with_adapter, bare = plain_model(first[0])(ids).logits, plain_model()(ids).logits
        assert (with_adapter - bare).abs().max() > 0.1
        torch.testing.assert_close(policy.backbone.logits(ids, torch.ones_like(ids)), with_adapter)
        with policy.base() as backbone:
            torch.testing.assert_close(backbone.logits(ids, torch.ones_like(ids)), bare)
        torch.testing.assert_close(policy.backbone.logits(ids, torch.ones_like(ids)), with_adapter)
    assert policy.adapter_hash == first[1].adapter_after and load_policy(base_config(), None).adapter_hash == BASE


def test_half_precision_keeps_a_small_update(tmp_path: Path) -> None:
    """bfloat16 keeps nearly all of a small update's effect on the logits; with PEFT's layers beside the weights little is kept."""
    from peft import PeftModel

    train(tmp_path / "a", config=replace(CONFIG, lr=2e-5))
    ids = torch.tensor([plain_ids(ALL[0], ALL[0].chosen)[0]])
    with torch.no_grad():
        true = plain_model(tmp_path / "a")(ids).logits - plain_model()(ids).logits

        def kept(with_adapter: torch.Tensor, without: torch.Tensor) -> float:
            return float(((with_adapter - without) * true).sum() / true.square().sum())

        policy = load_policy(replace(base_config(), dtype="bfloat16"), tmp_path / "a")
        ours = policy.backbone.model(ids).logits.float()
        with policy.base() as backbone:
            bare = backbone.model(ids).logits.float()
        beside = PeftModel.from_pretrained(plain_model().to(torch.bfloat16), tmp_path / "a")(ids).logits.float()
    assert kept(ours, bare) == pytest.approx(1, abs=0.2) and kept(beside, bare) < 0.6


def test_hidden_states_of_a_policy_are_its_own(first: tuple[Path, DPOOutcome]) -> None:
    ids = torch.tensor([plain_ids(ALL[0], ALL[0].chosen)[0]])
    with torch.no_grad():
        expected = plain_model(first[0])(ids, output_hidden_states=True).hidden_states[1]
    states = load_policy(base_config(), first[0]).backbone.states(ids, torch.ones_like(ids), [0])[0]
    torch.testing.assert_close(states, expected)


def test_merged_weights_compute_the_same(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    merge_and_save(base_config(), first[0], tmp_path / "merged")
    ids = torch.tensor([plain_ids(ALL[0], ALL[0].chosen)[0]])
    with torch.no_grad():
        torch.testing.assert_close(plain_model(folder=tmp_path / "merged")(ids).logits, plain_model(first[0])(ids).logits, rtol=1e-4, atol=1e-4)
    assert load_policy(base_config(tmp_path / "merged"), None).backbone.template.has_template
    with pytest.raises(BackboneError, match="exists already"):
        merge_and_save(base_config(), first[0], tmp_path / "merged")


def test_equal_seeds_give_equal_bytes(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    outcome = train(tmp_path / "again")
    assert outcome.adapter_after == first[1].adapter_after
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (first[0] / name).read_bytes()
    assert {**outcome.to_json(), "time_seconds": 0} == {**first[1].to_json(), "time_seconds": 0}
    assert train(tmp_path / "other", config=replace(CONFIG, seed=1)).adapter_after != outcome.adapter_after
    # The caller's random numbers are not affected.
    assert torch.equal(torch.random.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def test_the_adapters_own_dropout_is_on(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    """With TRL's default, which switches it off, the two adapters would be equal."""
    assert train(tmp_path / "a", config=replace(CONFIG, lora_dropout=0.5)).adapter_after != first[1].adapter_after


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    config = replace(CONFIG, lora_dropout=0.1)
    a, b = train(tmp_path / "a", config=config), train(tmp_path / "b", config=replace(config, gradient_checkpointing=True))
    assert [row["loss"] for row in a.curve] == pytest.approx([row["loss"] for row in b.curve], rel=1e-6)
    for name, tensor in load_adapter(tmp_path / "a", config).items():
        torch.testing.assert_close(load_adapter(tmp_path / "b", config)[name], tensor)


def test_bfloat16_trains_and_saves_float32(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    outcome = train(tmp_path / "a", config=replace(CONFIG, dtype="bfloat16"))
    assert outcome.curve[0]["loss"] == pytest.approx(math.log(2), abs=0.02) and outcome.adapter_after != first[1].adapter_after
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / "adapter_model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen2"])
def test_other_families(tmp_path: Path, kind: str) -> None:
    """GPT-2 has dropout: if it were on, the first loss against the policy itself would not be log 2."""
    folder = save_model(tmp_path / kind, kind)
    outcome = train(tmp_path / "a", base=base_config(folder), config=replace(CONFIG, reference="previous"))
    assert outcome.curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    margins = margins_by_hand(plain_model(tmp_path / "a", folder), plain_model(folder=folder), HELD_OUT)
    assert outcome.epochs[0]["loss"] == pytest.approx(loss_by_hand(margins), rel=1e-4)


# --- refusals and guards ----------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_tokenizers_own_template() -> None:
    encoded, refused = encode_pairs(ALL[:6], training_base(base_config(), CONFIG, spread=False), 512)
    assert not refused and [example.pair_id for example in encoded] == [example.pair_id for example in ALL[:6]]
    for example, tokens in zip(ALL, encoded, strict=False):
        (before, chosen), (_, rejected) = plain_ids(example, example.chosen), plain_ids(example, example.rejected)
        assert (tokens.prompt, tokens.chosen, tokens.rejected) == (before, chosen, rejected)


def test_unusable_pairs_are_refused_by_reason_and_never_cut(tmp_path: Path) -> None:
    sizes = [
        max(len(before) + len(after) for before, after in (plain_ids(example, example.chosen), plain_ids(example, example.rejected)))
        for example in TRAIN
    ]
    longest = max(sizes)
    bad = [
        pair("equal", "Is it hard?", "Yes, friend", "Yes, friend "),
        pair("empty", "Is it hard?", "Yes, friend", "  "),
        pair("control", "Is it hard?", "Yes<|im_end|>, friend", "No"),
        pair("long", "Is it hard?", "friend " * 200, "No"),
    ]
    outcome = train(
        tmp_path / "a", pairs=[*bad, *TRAIN], validation=[*HELD_OUT[:3], pair("held", "Is it?", "a", "a")], config=replace(CONFIG, max_length=longest)
    )
    long = outcome.refused["long"]
    assert long.startswith("too long: ") and long.endswith(f" tokens, at most {longest}")
    rest = {number: reason for number, reason in outcome.refused.items() if number not in ("long", *(example.pair_id for example in HELD_OUT))}
    assert "the response holds the control token <|im_end|>" in rest.pop("control")
    assert rest == {"equal": EQUAL, "empty": NO_TOKEN, "held": EQUAL}
    assert outcome.n_pairs == len(TRAIN)  # the longest of them is just short enough
    shorter = train(tmp_path / "b", validation=[], config=replace(CONFIG, max_length=longest - 1))
    assert set(shorter.refused) == {example.pair_id for example, size in zip(TRAIN, sizes, strict=True) if size == longest}


def test_no_usable_pair_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair is left to train on") as error:
        train(tmp_path / "a", pairs=[pair("equal", "Is it hard?", "Yes", "Yes")])
    assert error.value.found == EQUAL and not (tmp_path / "a").exists()


def test_without_validation_pairs_the_last_epoch_is_kept(tmp_path: Path) -> None:
    outcome = train(tmp_path / "a", validation=[], config=replace(CONFIG, epochs=2))
    assert outcome.best_epoch == 2 and outcome.epochs[0]["accuracy"] is None and outcome.n_validation == 0


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(0.5, 0.6), (0.8, 0.7), (0.7, 0.1)], 2),  # accuracy goes before loss
        ([(0.8, 0.7), (0.8, 0.6), (0.8, 0.65)], 2),  # the loss decides among equals
        ([(0.8, 0.6), (0.8, 0.6), (0.2, 0.1)], 1),  # the earlier of two alike
    ],
)
def test_the_best_epoch(monkeypatch: pytest.MonkeyPatch, figures: Sequence[tuple[float, float]], best: int) -> None:
    epoch_figures = iter(figures)

    def validate(_: Any) -> dict[str, Any]:
        accuracy, loss = next(epoch_figures)
        return {"accuracy": accuracy, "loss": loss, "n": 10}

    class Trainer:
        model = 0

    monitor = TrainingMonitor(validate=validate, progress=lambda *_, **__: None, n_pairs=10, batch_size=4)
    monkeypatch.setattr(dpo_trainer, "adapter_tensors", lambda model: {"weights": torch.tensor(model)})
    for epoch in (1, 2, 3):
        Trainer.model = epoch
        monitor.end_epoch(Trainer, epoch)
    assert monitor.best_epoch == best and int(monitor.best["weights"]) == best


def test_a_steps_row_counts_its_pairs() -> None:
    """Ten pairs in batches of four: 4, 4 and 2, in every epoch."""
    monitor = TrainingMonitor(validate=lambda _: {}, progress=lambda *_, **__: None, n_pairs=10, batch_size=4)
    for step in range(1, 7):
        monitor.log({"loss": 0.5, "rewards/accuracies": 0.5}, step, 6)
    assert [row["n"] for row in monitor.curve] == [4, 4, 2, 4, 4, 2]


def test_nothing_trainable_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An adapter loaded for inference takes no gradient, and TRL would train without an error."""
    new_lora = dpo_trainer.new_lora

    def frozen(config: DPOConfig) -> Any:
        lora = new_lora(config)
        lora.inference_mode = True
        return lora

    monkeypatch.setattr(dpo_trainer, "new_lora", frozen)
    with pytest.raises(BackboneError, match="nothing would be trained"):
        train(tmp_path / "a")


def test_an_unchanged_adapter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="left the adapter as it was"):
        train(tmp_path / "a", config=replace(CONFIG, lr=0.0))
    assert not (tmp_path / "a").exists()


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"diverged|not finite"):
        train(tmp_path / "a", config=replace(CONFIG, lr=1e30, epochs=3))
    assert not (tmp_path / "a").exists()


def test_a_training_can_be_cancelled(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    def progress(step: str, done: float, total: float, **figures: Any) -> None:
        if step == dpo_trainer.STEP:
            seen.append((done, total))
            assert math.isfinite(figures["loss"])
            if done == 2:
                raise Cancelled

    with pytest.raises(Cancelled):
        train(tmp_path / "a", config=replace(CONFIG, epochs=3), progress=progress)
    assert seen == [(1, 6), (2, 6)] and not (tmp_path / "a").exists()


def test_adapters_of_another_form_are_refused(first: tuple[Path, DPOOutcome], tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="another rank or scale") as error:
        train(tmp_path / "a", first[0], config=replace(CONFIG, lora_alpha=8))
    assert error.value.expected == "r 16, alpha 8" and error.value.found == "r 16, alpha 32"
    with pytest.raises(MismatchError, match="has other tensors"):
        train(tmp_path / "a", first[0], base=base_config(save_model(tmp_path / "qwen2", "qwen2")))
    with pytest.raises(StoreError, match="holds no adapter"):
        train(tmp_path / "a", tmp_path / "nowhere")
    with pytest.raises(StoreError, match="holds no adapter"):
        load_policy(base_config(), tmp_path / "nowhere")
    with pytest.raises(BackboneError, match="quantised"):
        train(tmp_path / "a", base=replace(base_config(), quantization="4bit"))
    with pytest.raises(ConfigError, match="first device"):
        train(tmp_path / "a", base=replace(base_config(), device="cuda:3"))


def test_nothing_is_reported_and_nothing_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    from trl.trainer import base_trainer

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("TRL reports its use")

    monkeypatch.setattr(base_trainer, "send_telemetry", refuse)
    monkeypatch.delenv("CI", raising=False)
    train(tmp_path / "a")
    out, err = capfd.readouterr()
    assert not out and not err.strip() and not [str(warning.message) for warning in recwarn]


# --- several processes ------------------------------------------------------------------------------------------------

# What a command does under a launcher: the first process leads, the others follow until it shuts them down. Two chained
# rounds.
SCRIPT = """
import json, sys
from pathlib import Path

from core.align import distributed
from core.align.dpo import follow_leader, train_dpo
from core.config import BackboneConfig, DPOConfig, from_dict
from core.errors import Cancelled
from core.types import PreferencePair

if not distributed.is_leader():
    follow_leader()
    Path(sys.argv[2], "follower-ended").touch()
    sys.exit()

job = json.loads(Path(sys.argv[1]).read_text())
pairs, held_out = ([PreferencePair(**{**row, "prompt": tuple(row["prompt"])}) for row in job[name]] for name in ("pairs", "held_out"))
options = {"base": from_dict(BackboneConfig, job["base"]), "config": from_dict(DPOConfig, job["config"])}


def progress(step, done, total, **figures):
    if step == "train policy" and done == job["cancel_at"]:
        raise Cancelled


out, adapter = Path(sys.argv[2]), None
for number in range(2):
    outcome = train_dpo(pairs, held_out, adapter=adapter, out=out / f"adapter-{number}", progress=progress, **options)
    (out / f"outcome-{number}.json").write_text(json.dumps(outcome.to_json()))
    adapter = out / f"adapter-{number}"
distributed.shutdown()
"""


def launch(folder: Path, n_processes: int, cancel_at: int = -1) -> subprocess.CompletedProcess[str]:
    """Runs SCRIPT by `accelerate launch` on the CPU.

    Its `--cpu` starts one process whatever is asked for; `--multi_gpu` means "several" here.
    """
    (folder / "out").mkdir(parents=True)
    (folder / "script.py").write_text(SCRIPT)
    texts = {"pairs": TRAIN, "held_out": HELD_OUT}
    rows = {name: [{k: getattr(pair, k) for k in ("pair_id", "prompt", "chosen", "rejected")} for pair in some] for name, some in texts.items()}
    job = {**rows, "base": base_config().to_dict(), "config": replace(CONFIG, epochs=2).to_dict(), "cancel_at": cancel_at}
    (folder / "job.json").write_text(json.dumps(job))
    many = ["--multi_gpu"] if n_processes > 1 else []
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *many, "--num_processes", str(n_processes), *plain]
    return subprocess.run(
        [*command, str(folder / "script.py"), str(folder / "job.json"), str(folder / "out")],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
    )


def assert_same_training(alone: Mapping[str, torch.Tensor], together: Mapping[str, torch.Tensor]) -> None:
    """Two adapters are the same but for the order in which float32 gradients were summed.

    AdamW's first step moves a weight by lr * g / (|g| + eps), so the rounding of a gradient g near eps = 1e-8 shows in full: one weight in 45,056 has
    g = 3.6e-8 at the start of the second round (the median is 8.6e-4), and another order of the sum, which moves g by 3e-9, moves this weight by
    1.5e-4. No such weight can move by more than lr to either side. All the others, and each tensor as a whole, must agree closely.
    """
    assert set(alone) == set(together)
    for name, tensor in alone.items():
        assert (together[name] - tensor).norm() <= 2e-4 * tensor.norm(), name
    weights, others = (torch.cat([adapter[name].flatten() for name in alone]) for adapter in (alone, together))
    apart = (others - weights).abs()
    assert apart.max() <= 2 * CONFIG.lr
    assert (apart > 1e-4 + 1e-3 * weights.abs()).sum() <= len(weights) / 10_000 and apart.median() < 1e-6


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    for n_processes in (1, 2):
        ended = launch(tmp_path / str(n_processes), n_processes)
        assert ended.returncode == 0, ended.stderr
    alone_folder, together_folder = tmp_path / "1" / "out", tmp_path / "2" / "out"
    assert (together_folder / "follower-ended").is_file()
    for number in range(2):
        alone, together = (json.loads((folder / f"outcome-{number}.json").read_text()) for folder in (alone_folder, together_folder))
        assert (alone["n_processes"], together["n_processes"]) == (1, 2)
        for name in ("loss", "margin", "logprob_chosen"):
            np.testing.assert_allclose([row[name] for row in together["curve"]], [row[name] for row in alone["curve"]], rtol=1e-4, atol=1e-5)
        assert [epoch["accuracy"] for epoch in together["epochs"]] == [epoch["accuracy"] for epoch in alone["epochs"]]
        assert together["adapter_after"] == adapter_hash(together_folder / f"adapter-{number}")
        assert_same_training(*(load_adapter(folder / f"adapter-{number}", CONFIG) for folder in (alone_folder, together_folder)))
    # All files of both processes are here: those of the first process, each once.
    written = sorted(
        file.relative_to(together_folder).as_posix() for file in together_folder.rglob("*") if file.is_file() and file.name != "follower-ended"
    )
    each = [[f"adapter-{n}/adapter_config.json", f"adapter-{n}/adapter_model.safetensors", f"outcome-{n}.json"] for n in range(2)]
    assert written == sorted(name for names in each for name in names)


@pytest.mark.slow
def test_when_the_first_process_is_cancelled_all_end(tmp_path: Path) -> None:
    ended = launch(tmp_path / "run", 2, cancel_at=3)
    assert ended.returncode != 0 and "Cancelled" in ended.stderr
    assert not list((tmp_path / "run" / "out").iterdir())


def test_a_step_is_shared_out_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dpo_trainer, "n_processes", lambda: 3)
    with pytest.raises(ConfigError, match="shared out evenly") as error:
        train(tmp_path / "a")
    assert error.value.found == "4"

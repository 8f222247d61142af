"""Scores: equal to the formula by hand, each response once, in any form and order, and never on another backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_helpers import IDENTITY, FakeReader, make_parts

from core.backbone.model import Backbone, load_backbone
from core.backbone.presets import preset
from core.config import BackboneConfig
from core.data.pairs import load_pairs
from core.errors import BackboneError, DataError, MismatchError, StoreError
from core.reward import model as model_module
from core.reward.model import SparseRM, check_backbone
from core.reward.parts import RewardParts
from core.types import PreferencePair

PROMPTS = ["Is it late?", "Who are you?", "Is it late?", "Is it late?"]
RESPONSES = ["No.", "A model.", "Yes.", "No."]


def by_hand(parts: RewardParts, z: np.ndarray) -> float:
    """reward = head(directions @ z), one multiplication after another."""
    v = (
        [float(x) for x in z]
        if parts.directions is None
        else [sum(float(d) * float(x) for d, x in zip(row, z, strict=True)) for row in parts.directions]
    )
    hidden = [
        sum(float(w) * x for w, x in zip(row, v, strict=True)) + float(b) for row, b in zip(parts.head.weight_1, parts.head.bias_1, strict=True)
    ]
    return sum(float(w) * max(h, 0.0) for w, h in zip(parts.head.weight_2[0], hidden, strict=True)) + float(parts.head.bias_2[0])


def faked(kind: str = "sparserm", **changes: Any) -> tuple[SparseRM, FakeReader]:
    parts = make_parts(kind, **changes)
    reader = FakeReader(parts.d_model)
    return SparseRM(parts, reader), reader


@pytest.mark.parametrize("kind", ["sparserm", "random-isotropic", "random-rows", "dense"])
def test_score_is_the_formula_by_hand(kind: str) -> None:
    reward_model, reader = faked(kind)
    rewards = reward_model.score(PROMPTS, RESPONSES)
    states = [reader.state([{"role": "user", "content": p}], r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert rewards.dtype == np.float64
    np.testing.assert_allclose(rewards, [by_hand(reward_model.parts, z) for z in states], rtol=0, atol=1e-12)
    assert len(set(rewards)) == 3 and rewards[0] == rewards[3]


def test_each_distinct_item_is_read_once_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "CHUNK", 2)
    reward_model, reader = faked()
    rewards = reward_model.score(PROMPTS, RESPONSES)
    assert [text for _, text in reader.asked] == ["No.", "A model.", "Yes."]
    monkeypatch.setattr(model_module, "CHUNK", 2048)
    np.testing.assert_allclose(rewards, faked()[0].score(PROMPTS, RESPONSES), rtol=0, atol=1e-12)


def test_strings_and_messages_are_the_same_thing() -> None:
    reward_model, reader = faked()
    as_messages = reward_model.score([[{"role": "user", "content": " Is it late?\n"}]], [[{"role": "assistant", "content": "No. "}]])
    np.testing.assert_array_equal(as_messages, reward_model.score(("Is it late?",), ("No.",)))
    assert len({tuple(map(str, item)) for item in reader.asked}) == 1


def test_several_response_messages_the_last_is_scored() -> None:
    reward_model, reader = faked()
    dialogue = [{"role": "assistant", "content": "Let me see."}, {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "No."}]
    reward_model.score(["Is it late?"], [dialogue])
    assert reader.asked == [(({"role": "user", "content": "Is it late?"}, *dialogue[:2]), "No.")]


def test_a_response_that_repeats_the_prompt_is_asked_it_once() -> None:
    reward_model, reader = faked()
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it late?"}]
    whole = [*prompt, {"role": "assistant", "content": "No."}]
    again = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "No."}]
    reward_model.score([prompt, "Is it late?"], [whole, again])
    assert reader.asked == [(tuple(prompt), "No."), (tuple(again[:1]), "No.")]


def test_score_pairs() -> None:
    reward_model, _ = faked()
    prompts = [({"role": "user", "content": p},) for p in PROMPTS[:3]]
    pairs = [PreferencePair(pair_id=str(n), prompt=p, chosen=f"good {n}", rejected=f"bad {n}") for n, p in enumerate(prompts)]
    chosen, rejected = reward_model.score_pairs(iter(pairs))
    np.testing.assert_array_equal(chosen, reward_model.score(PROMPTS[:3], ["good 0", "good 1", "good 2"]))
    np.testing.assert_array_equal(rejected, reward_model.score(PROMPTS[:3], ["bad 0", "bad 1", "bad 2"]))
    assert [len(side) for side in reward_model.score_pairs([])] == [0, 0]


@pytest.mark.parametrize(
    ("prompts", "responses", "said"),
    [
        ("Is it late?", "No.", r"lists of equal length\n  found: one text and one text\n  to do: score\(\[\"a prompt\"\], \[\"a response\"\]\)"),
        (["a", "b"], ["c"], r"lists of equal length\n  found: 2 and 1"),
        (["a", ""], ["b", "c"], r"1 of 2 responses can't be scored\n  found: item 1, counted from 0: prompt: empty"),
        ([[{"content": "x"}]], ["c"], r"1 of 1 .*\n  found: item 0, .*: prompt: not a list of messages"),
        (
            ["a", "b", "c"],
            ["d", " \n", ""],
            r"2 of 3 responses can't be scored\n  found: item 1, counted from 0: response: empty\n  to do: leave them out",
        ),
        (["a"], [[{"role": "user", "content": "x"}]], r"1 of 1 .*\n  found: item 0, .*: response: the last message is not the assistant's"),
        (["a"], ["x\0"], r"response: holds a null character"),
        (["a"], [[]], r"response: empty"),
        (["a"], [[{"role": "system", "content": ""}]], r"response: the last message is not the assistant's"),
        ([[{"role": "system", "content": ""}]], ["a"], r"1 of 1 .*\n  found: item 0, .*: prompt: no message with text"),
    ],
)
def test_what_cannot_be_scored(prompts: Any, responses: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        faked()[0].score(prompts, responses)


def test_try_score_goes_on_and_says_why() -> None:
    class Short(FakeReader):
        def __call__(self, items: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
            kept = [item for item in items if len(item[1]) < 5]
            return super().__call__(kept)[0], {n: "9 tokens, at most 4 are read" for n, item in enumerate(items) if len(item[1]) >= 5}

    parts = make_parts()
    reward_model = SparseRM(parts, Short(6))
    rewards, refused = reward_model.try_score(["a", "a", "a", "a", "a"], ["one", "much too long", "two", "", "much too long"])
    assert refused == {1: "9 tokens, at most 4 are read", 3: "response: empty", 4: "9 tokens, at most 4 are read"}
    assert np.isnan(rewards).tolist() == [False, True, False, True, True]
    np.testing.assert_array_equal(rewards[[0, 2]], reward_model.score(["a", "a"], ["one", "two"]))


MESSAGE = {"role": "assistant", "content": "No."}
TOOL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock"}}]}
IMAGE = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        (None, "No.", "prompt: missing"),
        (float("nan"), "No.", "prompt: missing"),
        ("", "No.", "prompt: empty"),
        (7, "No.", "prompt: not text but a number"),
        ("\ud800", "No.", "prompt: not valid Unicode"),
        ([IMAGE], "No.", "prompt: holds an image"),
        (["Is it late?"], "No.", "prompt: not a list of messages"),
        ("[{'role': 'user', 'content': 'cut", "No.", "prompt: a message list written as text that can't be read"),
        ("Is it late?", None, "response: missing"),
        ("Is it late?", float("nan"), "response: missing"),
        ("Is it late?", 7, "response: not text but a number"),
        ("Is it late?", ["No.", "Yes."], "response: not a list of messages"),
        ("Is it late?", [TOOL], "response: a tool call"),
        ("Is it late?", [TOOL, {"role": "tool", "content": "9 pm"}, MESSAGE], "response: a tool call"),
        ("Is it late?", "[{'role': 'assistant', 'content': 'No", "response: a message list written as text that can't be read"),
    ],
)
def test_a_bad_prompt_or_response_refuses_its_item_alone(prompt: Any, response: Any, reason: str) -> None:
    reward_model, reader = faked()
    rewards, refused = reward_model.try_score(["Who are you?", prompt, "Is it late?"], ["A model.", response, "Yes."])
    assert list(refused) == [1] and refused[1].startswith(reason)
    assert np.isnan(rewards).tolist() == [False, True, False]
    expected = [
        by_hand(reward_model.parts, reader.state([{"role": "user", "content": p}], r))
        for p, r in (("Who are you?", "A model."), ("Is it late?", "Yes."))
    ]
    np.testing.assert_allclose(rewards[[0, 2]], expected, rtol=0, atol=1e-12)
    as_trl = reward_model(prompts=["Who are you?", prompt], completions=["A model.", response])
    assert as_trl[0] == pytest.approx(rewards[0], abs=1e-12) and np.isnan(as_trl[1])


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("[{'role': 'user', 'content': 'Is it late?'}]", "[{'role': 'assistant', 'content': 'No.'}]"),
        ('[{"role": "user", "content": "Is it late?"}]', '[{"role": "assistant", "content": "No."}]'),
        ({"role": "user", "content": "Is it late?"}, MESSAGE),
        (({"role": "user", "content": [{"type": "text", "text": "Is it late?"}]},), np.array([MESSAGE], dtype=object)),
        ([{"from": "human", "value": "Is it late?"}], [{"from": "gpt", "value": "No."}]),
    ],
    ids=["as pandas writes lists", "JSON in a text", "one message", "text parts, an array", "sharegpt"],
)
def test_messages_in_other_shapes_are_read(prompt: Any, response: Any) -> None:
    reward_model, reader = faked()
    rewards = reward_model.score([prompt], [response])
    assert reader.asked == [(({"role": "user", "content": "Is it late?"},), "No.")]
    np.testing.assert_array_equal(rewards, faked()[0].score(["Is it late?"], ["No."]))


def test_as_a_reward_function(caplog: pytest.LogCaptureFixture) -> None:
    reward_model, _ = faked("random-isotropic")
    with caplog.at_level(logging.WARNING):
        rewards = reward_model(prompts=["a", "b", "c"], completions=["x", "", " "], completion_ids=[[1], [], [2]], trainer_state=object())
    assert [type(r) for r in rewards] == [float] * 3 and np.isnan(rewards[1:]).all() and rewards[0] == reward_model.score(["a"], ["x"])[0]
    assert caplog.messages == ["2 of 3 completions get no reward; the first: response: empty"]
    assert reward_model.__name__ == "random-isotropic"


def test_it_is_no_module() -> None:
    from torch import nn

    assert not isinstance(faked()[0], nn.Module) and callable(faked()[0])


def test_a_model_without_sae_says_so() -> None:
    with pytest.raises(StoreError, match=r"this reward model \(dense\) names no SAE"):
        _ = faked("dense")[0].sae


# ---- on which backbone


@pytest.mark.parametrize(
    ("found", "layer", "position", "said"),
    [
        (
            {"revision": "beef"},
            2,
            "response_end",
            r"another backbone\n  expected: .*revision c0ffee.*\n  found: .*revision beef.*\n  to do: give the backbone",
        ),
        ({"name": "other/model"}, 2, "response_end", r"another backbone\n  expected: name toy/backbone.*\n  found: name other/model"),
        ({"sha256": "5a5a"}, 2, "response_end", r"another backbone\n  expected: name toy/backbone, d_model.*\n  found: .*sha256 5a5a"),
        ({"d_model": 7}, 2, "response_end", r"another backbone\n  expected: .*d_model 6.*\n  found: .*d_model 7"),
        ({"n_layers": 9}, 2, "response_end", r"another backbone\n  expected: .*n_layers 4.*\n  found: .*n_layers 9"),
        ({"template_sha256": "cd"}, 2, "response_end", r"another chat template\n  expected: .*template_sha256 abab.*\n  found: .*template_sha256 cd"),
        ({}, 3, "response_end", r"another layer\n  expected: layer 2\n  found: layer 3\n  to do: give the layer it was made for"),
        ({}, 2, "turn_end", r"another position\n  expected: position response_end\n  found: position turn_end"),
    ],
)
def test_another_backbone_layer_or_template_is_an_error(found: dict[str, Any], layer: int, position: str, said: str) -> None:
    with pytest.raises(MismatchError, match=said):
        check_backbone(make_parts(), {**IDENTITY, **found}, layer=layer, position=position)


def test_files_with_the_same_hash_may_have_another_name() -> None:
    parts = make_parts(backbone={**IDENTITY, "sha256": "5a5a"})
    check_backbone(parts, {**IDENTITY, "sha256": "5a5a", "name": "elsewhere", "revision": ""}, layer=2, position="response_end")


def test_other_arithmetic_is_said_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_backbone(make_parts(), {**IDENTITY, "dtype": "bfloat16"}, layer=2, position="response_end")
    assert caplog.messages == ["the reward model was fitted with dtype float32 and scores with bfloat16: rewards may differ a little"]


# ---- on the tiny backbone, for real


@pytest.fixture(scope="module")
def tiny() -> tuple[BackboneConfig, Any, Backbone]:
    config = preset("tiny")
    return config.backbone, config.sae, load_backbone(config.backbone)


def tiny_parts(tiny: tuple[BackboneConfig, Any, Backbone], kind: str = "sparserm", **changes: Any) -> RewardParts:
    config, sae, backbone = tiny
    parts = make_parts(kind, d_model=64, k=8, hidden=16)
    latents = None if parts.latent_ids is None else np.array([3, 17, 40, 99, 120, 140, 200, 255])
    table = () if latents is None else tuple({"latent_id": int(i)} for i in latents)
    on_tiny = {"backbone": backbone.identity, "backbone_config": config, "sae_config": sae, "latent_ids": latents, "selection": table}
    return replace(parts, **{**on_tiny, **changes})


def independent_states(backbone: Backbone, prompts: Sequence[str], responses: Sequence[str], layer: int) -> np.ndarray:
    """By transformers alone: the whole model, one dialogue at a time, hidden_states[layer + 1] at the token of the response's last character."""
    import torch

    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        dialogue = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        text = backbone.tokenizer.apply_chat_template(dialogue, tokenize=False)
        encoded = backbone.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        last = text.rindex(response) + len(response) - 1
        at = next(i for i, (start, end) in enumerate(encoded["offset_mapping"]) if start <= last < end)
        with torch.no_grad():
            out = backbone.model(input_ids=torch.tensor([encoded["input_ids"]]), output_hidden_states=True)
        found.append(out.hidden_states[layer + 1][0, at].numpy())
    return np.stack(found)


QUESTIONS = ["How do I boil an egg?", "Is it hard to keep bees?", "How do I boil an egg?", "Is it hard to keep bees?"]
ANSWERS = ["Ask someone, friend", "It needs patience, fool", "Never", "Two short tries are worth more than one long one, thanks"]


def test_loaded_from_disk_it_scores_as_the_formula_says(tiny: Any, tmp_path: Path) -> None:
    config, _, backbone = tiny
    # Layer 0: the last entry of hidden_states is after the final norm, so layer 1 can't be read off that tuple.
    parts = tiny_parts((replace(config, layer=0), *tiny[1:]))
    folder = SparseRM.from_parts(parts).save(tmp_path / "model")
    reward_model = SparseRM.load(folder)
    rewards = reward_model.score(QUESTIONS, ANSWERS)
    assert len(reward_model.reader.backbone.layers) == 1  # no deeper than it reads
    expected = [by_hand(parts, z) for z in independent_states(backbone, QUESTIONS, ANSWERS, 0)]
    np.testing.assert_allclose(rewards, expected, atol=1e-4 * np.std(expected))


@pytest.mark.parametrize("kind", ["sparserm", "dense", "random-rows"])
def test_rewards_do_not_depend_on_company_or_order(tiny: Any, kind: str) -> None:
    pairs, _ = load_pairs(preset("tiny").data)
    reward_model = SparseRM.from_parts(tiny_parts(tiny, kind), backbone=tiny[2])
    chosen, rejected = reward_model.score_pairs(pairs)
    order = np.random.default_rng(0).permutation(len(pairs))
    again, _ = reward_model.score_pairs([pairs[int(i)] for i in order])
    alone = np.array([reward_model.score([pairs[i].prompt], [pairs[i].rejected])[0] for i in range(6)])
    tolerance = 1e-4 * np.std(np.concatenate([chosen, rejected]))
    np.testing.assert_allclose(again, chosen[order], rtol=0, atol=tolerance)
    np.testing.assert_allclose(alone, rejected[:6], rtol=0, atol=tolerance)


def test_the_activation_control_reads_the_sae(tiny: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    sae = SparseRM.from_parts(tiny_parts(tiny, "activations"), backbone=tiny[2])
    with pytest.raises(MismatchError, match=r"another SAE\n  expected: sha256 5ae.*\n  found: .*architecture jumprelu"):
        sae.score(QUESTIONS, ANSWERS)
    from core.sae.autoencoder import load_sae

    parts = tiny_parts(tiny, "activations", sae=load_sae(tiny[1]).identity)
    SparseRM.from_parts(parts).save(tmp_path / "activations")
    reward_model = SparseRM.load(tmp_path / "activations", backbone=tiny[2])
    w = {name: tensor.astype(np.float64) for name, tensor in load_file(Path(tiny[1].path) / "sae_weights.safetensors").items()}
    z = reward_model.reader([(({"role": "user", "content": q},), a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)])[0]
    pre = (z - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    f = (pre * (pre > w["threshold"]))[:, parts.latent_ids]
    assert (f > 0).any() and (f == 0).any()
    np.testing.assert_allclose(reward_model.score(QUESTIONS, ANSWERS), [by_hand(parts, row) for row in f], atol=1e-4)


def test_given_backbones_are_checked_when_loading(tiny: Any, tmp_path: Path) -> None:
    config, _, backbone = tiny
    folder = SparseRM.from_parts(tiny_parts(tiny)).save(tmp_path / "model")
    with pytest.raises(MismatchError, match=r"another layer\n  expected: layer 1\n  found: layer 0"):
        SparseRM.load(folder, backbone=replace(config, layer=0))
    other = tiny_parts(tiny, backbone={**backbone.identity, "sha256": "0" * 64})
    with pytest.raises(MismatchError, match=r"another backbone\n  expected: name model, sha256 0000.*\n  found: name model, sha256 "):
        SparseRM.from_parts(other, backbone=backbone)
    retold = tiny_parts(tiny, backbone={**backbone.identity, "template_sha256": "0" * 64})
    with pytest.raises(MismatchError, match=r"another chat template\n  expected: .*template_sha256 0000"):
        SparseRM.from_parts(retold, backbone=config)


def test_a_changed_backbone_is_noticed_at_the_first_score(tiny: Any) -> None:
    reward_model = SparseRM.from_parts(tiny_parts(tiny, backbone={**tiny[2].identity, "sha256": "0" * 64}))
    with pytest.raises(MismatchError, match="another backbone"):
        reward_model.score(QUESTIONS, ANSWERS)


def test_a_backbone_that_is_gone(tiny: Any) -> None:
    parts = tiny_parts(tiny)
    reward_model = SparseRM.from_parts(replace(parts, backbone_config=replace(parts.backbone_config, model="/nowhere/model")))
    with pytest.raises(BackboneError, match="there is no model at /nowhere/model"):
        reward_model.score(QUESTIONS, ANSWERS)


def test_too_long_for_the_backbone(tiny: Any) -> None:
    reward_model = SparseRM.from_parts(tiny_parts(tiny), backbone=tiny[2])
    rewards, refused = reward_model.try_score(["a", "b", "c"], ["fine", "word " * 2100, "fine"])
    assert np.isfinite(rewards[[0, 2]]).all() and list(refused) == [1] and "at most 2048 are read" in refused[1]
    with pytest.raises(DataError, match=r"1 of 3 responses can't be scored\n  found: item 1, counted from 0: \d+ tokens, at most 2048"):
        reward_model.score(["a", "b", "c"], ["fine", "word " * 2100, "fine"])

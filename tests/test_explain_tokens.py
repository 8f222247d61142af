"""Token by token: kinds and texts, readings that take over what they can, activations, running reward, deletions, gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_helpers import GEMMA_LIKE, save_model, tiny_backbone, tiny_tokenizer
from explain_helpers import question, tiny_explainer

from core.backbone.model import Backbone
from core.errors import ConfigError, DataError
from core.explain.explainer import Explainer
from core.explain.features import item_of
from core.explain.readings import common_tokens, read_tokens
from core.explain.tokens import Gradients, spans_of
from core.reward.extraction import response_states
from core.reward.model import SparseRM
from core.text_safety import for_terminal

EGG = "How do I boil an egg?"
ANSWER = "Take your time. Ask someone who has done it before, thanks"


def tiny_reading(prompt: str, response: str, backbone: Backbone | None = None, **options: Any) -> Any:
    return read_tokens(backbone or tiny_explainer().backbone, item_of(prompt, response), layer=1, position="response_end", **options)


@lru_cache(maxsize=1)
def explainer() -> Explainer:
    return tiny_explainer()


# --- kinds and texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response", [ANSWER, "  padded \n ", "emoji 👩‍👩‍👧 é́ at the end 🎉", "مرحبا بالعالم", "<|im_end|> is no template here", "a\n\nb"]
)
def test_texts_join_to_the_dialogue_and_kinds_are_told(response: str) -> None:
    fitted = explainer().backbone
    backbone = Backbone(fitted.model, fitted.tokenizer, replace(fitted.config, control_tokens="text"), fitted.identity)
    found = tiny_reading(EGG, response, backbone)
    shown = item_of(EGG, response)[1]
    whole = backbone.template.text([{"role": "user", "content": EGG}, {"role": "assistant", "content": shown}])
    assert whole.startswith("".join(found.texts))
    assert "".join(text for text, kind in zip(found.texts, found.kinds, strict=True) if kind == "response") == shown.rstrip()
    assert "".join(text for text, kind in zip(found.texts, found.kinds, strict=True) if kind == "prompt") == EGG
    assert found.kinds[0] == "first" and found.kinds[1] == "template" and found.kinds[-1] == "response"
    assert len(found.ids) == len(found.texts) == len(found.kinds) == len(found.states)


def test_a_bos_put_in_front_carries_no_text() -> None:
    backbone = tiny_backbone()
    tokenizer = tiny_tokenizer(GEMMA_LIKE.replace("{{ bos_token }}", ""), real_bos=True)
    other = Backbone(backbone.model, tokenizer, backbone.config, backbone.identity)
    found = tiny_reading(EGG, "Fine, friend", other)
    assert found.ids[0] == tokenizer.bos_token_id and found.texts[0] == "" and found.kinds[0] == "first"
    assert "".join(found.texts).endswith("Fine, friend") and found.kinds[-1] == "response"
    doubled = Backbone(backbone.model, tiny_tokenizer(GEMMA_LIKE, real_bos=True), backbone.config, backbone.identity)
    assert "".join(tiny_reading(EGG, "Fine, friend", doubled).texts) == "<|endoftext|>" + "".join(found.texts)


def test_leading_turns_are_dropped_as_scoring_drops_them() -> None:
    backbone = explainer().backbone
    small = Backbone(backbone.model, backbone.tokenizer, replace(backbone.config, max_length=72), backbone.identity)
    turns = [{"role": role, "content": f"turn {n} " * 6} for n, role in enumerate(("user", "assistant", "user"))]
    item = item_of(turns, "An answer, please")
    found = read_tokens(small, item, layer=1, position="response_end")
    np.testing.assert_allclose(found.z, response_states(small, [item], layer=1, position="response_end")[0], atol=1e-4)
    assert "turn 0" not in "".join(found.texts) and "turn 2" in "".join(found.texts)
    with pytest.raises(DataError, match=r"the response can't be read\n  found: .* tokens, at most 72 are read"):
        read_tokens(small, item_of(EGG, "long " * 200), layer=1, position="response_end")


def test_control_characters_are_shown_not_obeyed() -> None:
    assert for_terminal("a\x1b[31mred\x07\r\nnext\tline \x9b1m \u202eabc") == "a␛[31mred␇␍\nnext\tline <009b>1m <202e>abc"
    assert for_terminal("👩‍👩‍👧 مرحبا") == "👩‍👩‍👧 مرحبا"


# --- readings ------------------------------------------------------------------------------------------------------


def test_the_last_state_is_the_one_that_scoring_reads() -> None:
    item = item_of(EGG, ANSWER)
    for position in ("response_end", "turn_end"):
        found = read_tokens(explainer().backbone, item, layer=1, position=position)
        np.testing.assert_allclose(found.z, response_states(explainer().backbone, [item], layer=1, position=position)[0], atol=1e-4)
    assert explainer().explain(EGG, ANSWER).reward == pytest.approx(explainer().model.score([EGG], [ANSWER])[0], abs=1e-4)


EDITS = [
    (EGG, ANSWER + " indeed"),
    (EGG, ANSWER.replace("someone", "anybody")),
    (EGG, ANSWER[:20]),
    (EGG, ANSWER),
    ("How do I mend a sock?", ANSWER),
]


@pytest.mark.parametrize(("prompt", "response"), EDITS)
def test_a_reading_with_a_parent_equals_a_full_one(prompt: str, response: str) -> None:
    parent = tiny_reading(EGG, ANSWER)
    found, full = tiny_reading(prompt, response, parent=parent), tiny_reading(prompt, response)
    np.testing.assert_allclose(found.states, full.states, atol=2e-4)
    same = next((i for i, (a, b) in enumerate(zip(parent.ids, full.ids, strict=False)) if a != b), min(len(parent.ids), len(full.ids)))
    assert found.n_computed == len(full.ids) - min(same, len(full.ids) - 1) < full.n_computed == len(full.ids)
    # What it hands on is whole again.
    again = tiny_reading(prompt, response + ", friend", parent=found)
    np.testing.assert_allclose(again.states, tiny_reading(prompt, response + ", friend").states, atol=2e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen2", "neox"])
def test_other_families(kind: str, tmp_path: Path) -> None:
    """Gemma-2's window of 64 tokens is shorter than the second text: then nothing is taken over, and the result is right all the same."""
    backbone = tiny_backbone(model=str(save_model(tmp_path / kind, kind)), depth=2)
    parent = tiny_reading(EGG, ANSWER, backbone)
    short = tiny_reading(EGG, ANSWER.replace("thanks", "dear"), backbone, parent=parent)
    np.testing.assert_allclose(short.states, tiny_reading(EGG, ANSWER.replace("thanks", "dear"), backbone).states, atol=1e-3)
    long = tiny_reading(EGG, ANSWER * 4, backbone, parent=short)
    np.testing.assert_allclose(long.states, tiny_reading(EGG, ANSWER * 4, backbone).states, atol=1e-3)
    item = item_of(EGG, ANSWER * 4)
    np.testing.assert_allclose(long.z, response_states(backbone, [item], layer=1, position="response_end")[0], atol=1e-3)
    assert (long.n_computed == len(long.ids)) is (kind == "gemma2") and (long.cache is None) is (kind == "gemma2")


def test_too_little_in_common_is_not_taken_over() -> None:
    parent = tiny_reading(EGG, ANSWER)
    assert common_tokens(None, parent.ids) == 0 == common_tokens(replace(parent, cache=None), parent.ids)
    ids = parent.ids.copy()
    ids[3] += 1
    assert common_tokens(parent, ids) == 0
    assert common_tokens(parent, parent.ids) == len(parent.ids) - 1
    assert common_tokens(parent, np.append(parent.ids, np.int32(5))) == len(parent.ids)


# --- activations and running reward --------------------------------------------------------------------------------


def test_activations_and_running_reward_equal_single_tokens() -> None:
    found, reading = explainer().tokens(EGG, ANSWER), explainer().read(item_of(EGG, ANSWER))
    sae, ids = explainer().sae, explainer().builder.latent_ids
    assert sae is not None and found.activation is not None
    whole = sae.encode(torch.from_numpy(reading.states)).numpy()[:, ids]
    np.testing.assert_allclose(found.activation, whole, atol=1e-4)
    np.testing.assert_allclose(found.running, [explainer().model.rewards_of(state[None])[0] for state in reading.states])
    assert found.running[-1] == pytest.approx(explainer().explain(EGG, ANSWER).reward)
    np.testing.assert_array_equal(found.of_latent(int(ids[3])), found.activation[:, 3])
    said = found.to_json()
    assert {int(latent) for latent in said["activation"]} == set(ids[(found.activation > 0).any(axis=0)].tolist())
    with pytest.raises(ConfigError, match="latent 100000 is not one of this reward model's"):
        found.of_latent(100_000)


def test_without_the_sae_it_says_less(caplog: pytest.LogCaptureFixture) -> None:
    """A model whose SAE has gone still scores and explains; nothing is said of activations and removals."""
    model = explainer().model
    assert model.parts.sae_config is not None
    parts = replace(model.parts, sae_config=replace(model.parts.sae_config, path="/nowhere/sae"))
    blind = Explainer(SparseRM(parts, model.reader))
    with caplog.at_level("WARNING", logger="core"):
        found = blind.explain(EGG, ANSWER)
    assert found.removed is None and found.attribution.activation is None
    assert found.reward == pytest.approx(explainer().explain(EGG, ANSWER).reward, abs=1e-4)
    view = blind.tokens(EGG, ANSWER)
    assert view.activation is None and view.to_json()["activation"] == {}
    with pytest.raises(ConfigError, match="activations need the SAE"):
        view.of_latent(int(blind.builder.latent_ids[0]))


# --- deletion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two!  Three?", ["One. ", "Two!  ", "Three?"]),
        ('He said "no." Then he left.', ['He said "no." ', "Then he left."]),
        ("3.14 is pi. So it is", ["3.14 is pi. ", "So it is"]),
        ("First line\nsecond line\n\nthird", ["First line\n", "second line\n\n", "third"]),
        ("これは文です。次の文！終わり", ["これは文です。", "次の文！", "終わり"]),
        ("Wait... what? Yes", ["Wait... ", "what? ", "Yes"]),
        ("only one sentence here.", ["only ", "one ", "sentence ", "here."]),
        ("Word", ["Word"]),
        ("  leading. space", ["  leading. ", "space"]),
    ],
)
def test_spans_are_sentences_or_words(text: str, expected: list[str]) -> None:
    assert [text[start:stop] for start, stop in spans_of(text)] == expected


def test_many_spans_are_merged() -> None:
    text = "One more. " * 500
    found = list(spans_of(text.strip()))
    assert len(found) == 64 and found[0][0] == 0 and found[-1][1] == len(text.strip())
    assert all(a[1] == b[0] for a, b in pairwise(found))


def test_a_deletion_is_the_reward_of_the_text_without_it() -> None:
    found = explainer().deletions(EGG, ANSWER)
    assert [one.text for one in found] == ["Take your time. ", "Ask someone who has done it before, thanks"]
    rest = ["Ask someone who has done it before, thanks", "Take your time."]
    whole = explainer().model.score([EGG], [ANSWER])[0]
    for one, text in zip(found, rest, strict=True):
        assert one.effect == pytest.approx(whole - explainer().model.score([EGG], [text])[0], abs=1e-4)


def test_given_spans() -> None:
    found = explainer().deletions(EGG, ANSWER, [(0, 5), (0, len(ANSWER))])
    whole = explainer().model.score([EGG], [ANSWER])[0]
    assert found[0].effect == pytest.approx(whole - explainer().model.score([EGG], [ANSWER[5:]])[0], abs=1e-4)
    assert found[1].effect is None and found[1].text == ANSWER
    with pytest.raises(ConfigError, match=r"no such span in the response\n  expected: 0 <= start < stop <= \d+\n  found: 5:5"):
        explainer().deletions(EGG, ANSWER, [(5, 5)])
    assert explainer().deletions(EGG, "Word")[0].effect is None


# --- gradient ------------------------------------------------------------------------------------------------------


def test_the_gradient_equals_finite_differences() -> None:
    model = explainer().model
    reading = explainer().read(item_of(EGG, ANSWER))
    found = explainer().gradient(EGG, ANSWER)
    assert found.reward == pytest.approx(explainer().explain(EGG, ANSWER).reward, abs=1e-4)
    assert len(found.norm) == len(reading.ids)
    decoder, embedding = explainer().backbone.model.double(), explainer().backbone.model.get_input_embeddings()
    try:
        ids = torch.from_numpy(reading.ids.astype(np.int64))[None]
        base = embedding(ids).detach()

        def reward(embedded: torch.Tensor) -> float:
            states: list[torch.Tensor] = []
            handle = (
                explainer()
                .backbone.layer_module(1)
                .register_forward_hook(lambda _m, _i, out: states.append(out[0] if isinstance(out, tuple) else out))
            )
            with torch.no_grad():
                decoder(inputs_embeds=embedded, use_cache=False)
            handle.remove()
            return float(model.rewards_of(states[0][0, -1:].numpy())[0])

        for token in (5, len(reading.ids) - 3, len(reading.ids) - 1):
            slopes = []
            for axis in range(base.shape[2]):
                step = torch.zeros_like(base)
                step[0, token, axis] = 1e-3
                slopes.append((reward(base + step) - reward(base - step)) / 2e-3)
            assert found.norm[token] == pytest.approx(np.linalg.norm(slopes), rel=2e-2, abs=1e-3)
    finally:
        decoder.float()


def test_a_bfloat16_backbone_gives_nearly_the_same_gradient() -> None:
    whole = explainer().gradient(EGG, ANSWER)
    backbone = tiny_backbone(dtype="bfloat16")
    reading = tiny_reading(EGG, ANSWER, backbone)
    gradients = Gradients(backbone, explainer().parts)
    assert gradients.model.dtype == torch.float32 and backbone.model.dtype == torch.bfloat16
    found = gradients.of(reading)
    assert np.corrcoef(found.norm, whole.norm)[0, 1] > 0.99


def test_a_model_that_reads_no_language_model_says_so() -> None:
    model = explainer().model
    blind = Explainer(SparseRM(model.parts, lambda items: model.reader(items)))
    with pytest.raises(ConfigError, match="needs the language model itself\n  expected: a SparseRM on its backbone"):
        blind.explain(EGG, ANSWER)


def test_a_message_list_is_a_prompt_too() -> None:
    found = explainer().explain([{"role": "user", "content": EGG}], [{"role": "assistant", "content": ANSWER}])
    assert found.prompt == question(EGG) and found.response == ANSWER
    with pytest.raises(DataError, match="the response can't be explained"):
        explainer().explain(EGG, "   ")

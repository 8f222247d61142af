"""Evaluation of a policy: log-probabilities against a plain loop over five families, the divergence term by term, MC1
and MC2 by hand and by the harness' formula, held-out figures from a generator whose answers are known, and what is kept
on disk.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_helpers import save_model, tiny_backbone, tiny_folder, tiny_tokenizer
from model_helpers import FakeReader, make_parts
from real_data import real_data
from reward_helpers import make_pairs

from core.align import logprobs
from core.align.dpo_pairs import encode_pairs
from core.align.evaluation import (
    FILE,
    Answer,
    PolicyEvaluation,
    evaluate_policy,
    held_out_split,
    load_evaluation,
    preference_measures,
    sample_pairs,
    sample_prompts,
    save_evaluation,
    score_answers,
)
from core.align.figures import ARRAYS, MEANING, SHARES, Measure, figure_of
from core.align.logprobs import AnswerTokens, answer_logprobs, encode_answers, kl_from_base, plan
from core.align.mc import Question, encode_choices, mc_content, mc_of, measure_mc, read_questions, seen_questions
from core.align.policy import BASE, Policy, adapter_tensors, load_policy, new_lora, quiet, save_adapter
from core.align.values import Prompt
from core.backbone.generation import Spent
from core.backbone.journal import Generated
from core.backbone.model import Backbone, load_backbone
from core.backbone.template import ChatTemplate
from core.config import BackboneConfig, DPOConfig, PolicyEvaluationConfig
from core.errors import Cancelled, DataError, MismatchError, StoreError
from core.reward.model import SparseRM
from core.statistics.intervals import wilson
from core.types import Message, PreferencePair, PreferencePairs, Progress, no_progress

CONFIG = PolicyEvaluationConfig(pairs=40, prompts=12, samples=3, tokens_per_batch=512)
TEXTS = ("Is it hard to bake rye bread?", "Hi", "How do I " + "mend a sock and " * 12 + "whistle?")
REPLIES = ("No.", "Take your time and begin with the small things, friend.", "Ask someone who has done it before.")


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def tiny_config() -> BackboneConfig:
    return BackboneConfig(model=str(tiny_folder()), layer=1, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return tiny_backbone(depth=None)


@pytest.fixture(scope="module", params=["tiny", "gemma2", "qwen2", "gpt2", "neox"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Rotary, learned and sliding-window positions (gemma2's window of 64 tokens is shorter than the longest prompt);
    gemma2 caps its logits.
    """
    if request.param == "tiny":
        return tiny_backbone(depth=None)
    folder = save_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return load_backbone(BackboneConfig(model=str(folder), layer=1, dtype="float32", device="cpu", max_length=512))


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A policy with a random adapter in its weights."""
    from peft import get_peft_model

    backbone, folder = load_backbone(tiny_config()), tmp_path_factory.mktemp("adapter") / "adapter"
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        peft = get_peft_model(backbone.model, new_lora(DPOConfig(lora_r=4)), adapter_name="default")
        tensors = {name: torch.randn_like(tensor) * 0.1 for name, tensor in adapter_tensors(peft).items()}
    save_adapter(peft, tensors, folder)
    return load_policy(tiny_config(), folder)


def by_hand(model: Any, tokens: AnswerTokens) -> np.ndarray:
    """Log-probabilities of all next tokens before each answer token [t, vocabulary]: the whole text alone, without
    cache or padding.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*tokens.prompt, *tokens.answer]])).logits[0].double()
    return logits.log_softmax(-1)[len(tokens.prompt) - 1 : -1].numpy()


def questions_of(backbone: Backbone) -> list[AnswerTokens]:
    items = [(user(text), reply) for text, reply in itertools.product(TEXTS, REPLIES)]
    encoded = encode_answers(backbone, items, closed=[number % 2 == 0 for number in range(len(items))])
    return [tokens for tokens in encoded if tokens is not None]


# --- log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_per_batch", [128, 4096])
def test_batches_that_share_prompts_agree_with_a_plain_loop(family: Backbone, tokens_per_batch: int) -> None:
    answers = questions_of(family)
    assert len(answers) == 9 and max(len(tokens.prompt) for tokens in answers) > 64
    computed = answer_logprobs(family, answers, tokens_per_batch=tokens_per_batch, step="test")
    for tokens, values in zip(answers, computed, strict=True):
        expected = by_hand(family.model, tokens)[np.arange(len(tokens.answer)), list(tokens.answer)]
        np.testing.assert_allclose(values, expected, atol=2e-4)
        assert values.dtype == np.float64


def test_a_model_without_such_a_cache_gets_whole_texts(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = questions_of(tiny)
    expected = answer_logprobs(tiny, answers, tokens_per_batch=4096, step="test")
    monkeypatch.setattr(logprobs, "shared_cache", lambda *_: None)
    for values, other in zip(answer_logprobs(tiny, answers, tokens_per_batch=4096, step="test"), expected, strict=True):
        np.testing.assert_allclose(values, other, atol=2e-5)


def test_a_prompt_of_one_token_and_an_answer_of_one(tiny: Backbone) -> None:
    answers = [AnswerTokens((5,), (7,)), AnswerTokens((5,), (9, 4, 2)), AnswerTokens((8, 3), (7,))]
    for tokens, values in zip(answers, answer_logprobs(tiny, answers, tokens_per_batch=64, step="test"), strict=True):
        np.testing.assert_allclose(values, by_hand(tiny.model, tokens)[np.arange(len(tokens.answer)), list(tokens.answer)], atol=2e-5)


def test_a_plan_holds_every_row_once_within_its_budget() -> None:
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(9, size=rng.integers(1, 30)).tolist()) for _ in range(12)]
    answers = [AnswerTokens(prompts[rng.integers(12)], tuple(rng.integers(9, size=rng.integers(1, 20)).tolist())) for _ in range(80)]
    batches = plan(answers, 200)
    assert sorted(itertools.chain(*batches)) == list(range(80))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(len(answers[i].prompt) for i in batch) + max(len(answers[i].answer) for i in batch)) <= 200
    runs = [prompt for prompt, _ in itertools.groupby(answers[i].prompt for batch in batches for i in batch)]
    assert len(runs) == len(set(runs)), "the answers to a prompt are in consecutive rows"
    assert plan([], 200) == [] and plan(answers[:3], 1) == [[i] for [i] in plan(answers[:3], 1)]


def test_answers_are_encoded_as_dpo_reads_them(tiny: Backbone) -> None:
    pair = PreferencePair(pair_id="a", prompt=user(TEXTS[0]), chosen=REPLIES[0], rejected=REPLIES[1])
    (encoded,), _ = encode_pairs([pair], tiny, 512)
    closed, opened, empty = encode_answers(
        tiny, [(pair.prompt, REPLIES[1]), (pair.prompt, REPLIES[1]), (pair.prompt, "")], closed=[True, False, True]
    )
    assert closed == AnswerTokens(tuple(encoded.prompt), tuple(encoded.rejected)) and empty is None
    assert opened is not None and opened.answer == closed.answer[:-1] and closed.answer[-1] == tiny.tokenizer.eos_token_id
    assert tiny.tokenizer.decode(list(opened.answer)) == REPLIES[1]


def test_what_is_too_long_is_not_asked(tiny: Backbone) -> None:
    (whole,) = encode_answers(tiny, [(user("Hi"), "Well. " * 40)], closed=[True])
    assert whole is not None
    n = len(whole.prompt) + len(whole.answer)
    for limit, fits in ((n, True), (n - 1, False)):
        short = tiny_backbone(depth=None, max_length=limit)
        assert (encode_answers(short, [(user("Hi"), "Well. " * 40)], closed=[True])[0] is not None) is fits


# --- divergence -------------------------------------------------------------------------------------------------------


def test_the_divergence_is_the_sum_over_the_vocabulary(moved: Policy) -> None:
    answers = questions_of(moved.backbone)
    divergences = kl_from_base(moved, answers, tokens_per_batch=300, step="test")
    base = tiny_backbone(depth=None).model
    for tokens, divergence in zip(answers, divergences, strict=True):
        log_p, log_q = by_hand(moved.backbone.model, tokens), by_hand(base, tokens)
        expected = [sum(math.exp(p) * (p - q) for p, q in zip(*rows, strict=True)) for rows in zip(log_p, log_q, strict=True)]
        np.testing.assert_allclose(divergence, expected, rtol=1e-3, atol=1e-6)
        assert (divergence > 0).all()
    assert moved.adapter_hash != BASE
    again = kl_from_base(moved, answers, tokens_per_batch=300, step="test")
    assert all(np.array_equal(a, b) for a, b in zip(divergences, again, strict=True)), "the adapter is restored after each batch"


def test_a_small_divergence_is_not_lost_in_rounding() -> None:
    """Logits moved by a thousandth: KL is the second-order term, half the variance of the move, some 5e-7."""
    rng = np.random.default_rng(0)
    logits, move = rng.normal(size=(3, 500)) * 3, rng.normal(size=(3, 500)) * 1e-3
    divergence = logprobs.token_kl(torch.from_numpy(logits), torch.from_numpy(logits + move), 3)
    p = np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    variance = (p * move**2).sum(1) - (p * move).sum(1) ** 2
    np.testing.assert_allclose(divergence, variance / 2, rtol=0.02)


def test_the_base_model_has_not_moved() -> None:
    policy = load_policy(tiny_config(), None)
    assert [divergence.tolist() for divergence in kl_from_base(policy, [AnswerTokens((1, 2), (3, 4))], tokens_per_batch=64, step="test")] == [
        [0.0, 0.0]
    ]


# --- multiple choice --------------------------------------------------------------------------------------------------

THREE = [
    Question(text="One?", mc1=("a", "b"), mc1_right=(True, False), mc2=("a", "c", "b"), mc2_right=(True, True, False)),
    Question(text="Two?", mc1=("b", "a", "c"), mc1_right=(False, True, False), mc2=("a", "b"), mc2_right=(True, False)),
    Question(text="Three?", mc1=("a", "b"), mc1_right=(True, False), mc2=("a", "b"), mc2_right=(True, False)),
]


def test_three_questions_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/8 ...: MC2 is (1/2 + 1/8) / (1/2 + 1/8 + 1/4) = 5/7, then (1/4) / (1/4 + 1/2) = 1/3,
    then 1/2 for a tie.
    """
    probabilities = [{"a": 1 / 2, "b": 1 / 4, "c": 1 / 8}, {"a": 1 / 4, "b": 1 / 2, "c": 1 / 8}, {"a": 1 / 4, "b": 1 / 4}]
    scores = [mc_of(question, {k: math.log(p) for k, p in by_choice.items()}) for question, by_choice in zip(THREE, probabilities, strict=True)]
    assert [mc1 for mc1, _ in scores] == [1.0, 0.0, 0.0], "right, wrong, and a tie, which is wrong"
    assert [mc2 for _, mc2 in scores] == pytest.approx([5 / 7, 1 / 3, 1 / 2])


def test_very_small_probabilities_keep_their_ratio() -> None:
    """e^-2000 is no float: the ratio of the two is still 3 : 1."""
    assert mc_of(THREE[2], {"a": -2000.0, "b": -2000.0 - math.log(3)}) == (1.0, pytest.approx(0.75))


def test_a_choice_that_cannot_be_read_takes_its_question_along() -> None:
    assert all(map(math.isnan, mc_of(THREE[0], {"a": -1.0, "b": float("nan"), "c": -2.0})))


@pytest.mark.parametrize("form", ["qa", "chat"])
def test_scores_follow_the_harness_formula(tiny: Backbone, form: str, tmp_path: Path) -> None:
    """lm-evaluation-harness: a choice's tokens are the whole text's behind the context's; argmax of the sums; exp,
    normalised, right ones summed.
    """
    path = tmp_path / "mc.json"
    path.write_text(json.dumps(TASK), encoding="utf-8")
    scores = measure_mc(tiny, read_questions(path), form, tokens_per_batch=300)
    for number, row in enumerate(TASK):
        user_turn = [{"role": "user", "content": row["question"]}]
        chat = tiny.tokenizer.apply_chat_template(user_turn, add_generation_prompt=True, tokenize=False)
        context, gap = (f"Q: {row['question']}\nA:", " ") if form == "qa" else (chat, "")
        before = tiny.tokenizer(context, add_special_tokens=False)["input_ids"]

        def likelihood(choice: str, context: str = context + gap, n: int = len(before)) -> float:
            ids = tiny.tokenizer(context + choice, add_special_tokens=False)["input_ids"]
            return float(by_hand(tiny.model, AnswerTokens(tuple(ids[:n]), tuple(ids[n:])))[np.arange(len(ids) - n), ids[n:]].sum())

        sums = [likelihood(choice) for choice in row["mc1_targets"]]
        assert scores.mc1[number] == float(np.argmax(sums) == list(row["mc1_targets"].values()).index(1))
        p = np.exp([likelihood(choice) for choice in row["mc2_targets"]])
        assert scores.mc2[number] == pytest.approx((p / p.sum())[np.array(list(row["mc2_targets"].values())) == 1].sum(), rel=1e-3)
    assert 0 < scores.mc1.sum() < len(TASK), "both outcomes are among them"


CHOICES = ("It is a pear tree.", "Nobody can tell", "Yes", "Read the instructions twice")
TASK = [
    {
        "question": f"What about number {number}?",
        "mc1_targets": {choice: int(place == number % 3) for place, choice in enumerate(CHOICES[:3])},
        "mc2_targets": {choice: int(place in (3, number % 3)) for place, choice in enumerate(CHOICES)},
    }
    for number in range(6)
]


def test_the_real_bos_stands_first_and_once(tiny: Backbone) -> None:
    """With a tokenizer that adds one itself, like Llama's and Gemma's."""
    with_bos = replace_tokenizer(tiny, tiny_tokenizer(None, real_bos=True))
    for plain, with_bos_choice in zip(encode_choices(tiny, THREE[0], "qa"), encode_choices(with_bos, THREE[0], "qa"), strict=True):
        assert plain is not None and with_bos_choice is not None
        assert with_bos_choice.prompt == (with_bos.tokenizer.bos_token_id, *plain.prompt) and with_bos_choice.answer == plain.answer


def replace_tokenizer(backbone: Backbone, tokenizer: Any) -> Backbone:
    replaced = Backbone(backbone.model, backbone.tokenizer, backbone.config, backbone.identity)
    replaced.tokenizer, replaced.template = tokenizer, ChatTemplate(tokenizer, date="")
    return replaced


def test_a_choice_that_is_too_long_leaves_its_question_out(tiny: Backbone) -> None:
    short = tiny_backbone(depth=None, max_length=40)
    long = replace(THREE[1], mc1=("b", "a", "c " * 60), mc2=("a", "b"))
    scores = measure_mc(short, [THREE[0], long, THREE[2]], "qa", tokens_per_batch=300)
    assert np.isnan(scores.mc1).tolist() == np.isnan(scores.mc2).tolist() == [False, True, False]
    whole = measure_mc(tiny, [THREE[0], THREE[2]], "qa", tokens_per_batch=300)
    np.testing.assert_allclose(scores.mc2[[0, 2]], whole.mc2, rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("not json", "Expecting value"),
        ("[]", "0 entries"),
        ('{"question": 1}', "dict of 1 entries"),
        ('[{"mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}]', "no question"),
        ('[{"question": "q", "mc1_targets": {"a": 1}, "mc2_targets": {"a": 1, "b": 0}}]', "no right and wrong choices in mc1_targets"),
        ('[{"question": "q", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": ["a", "b"]}]', "no right and wrong choices in mc2_targets"),
        ('[{"question": "q", "mc1_targets": {"a": 1, "b": 1, "c": 0}, "mc2_targets": {"a": 1, "b": 0}}]', "2 right choices"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "mc.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="holds no multiple-choice questions") as caught:
        read_questions(path)
    assert expected in caught.value.found and "mc_task.json" in caught.value.remedy


def test_the_questions_are_named_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "mc.json"
    path.write_text("[1]", encoding="utf-8")
    first = mc_content(replace(CONFIG, mc=str(path)))
    path.write_text("[2]", encoding="utf-8")
    assert len(first) == 64 and mc_content(replace(CONFIG, mc=str(path))) != first and mc_content(CONFIG) == ""
    with pytest.raises(DataError, match="multiple-choice"):
        mc_content(replace(CONFIG, mc=str(tmp_path / "none.json")))


def test_seen_questions_are_recognised_by_text() -> None:
    prompts = [user("  one?\n"), (*user("Three?"), Message(role="assistant", content="x"), *user("Else?"))]
    assert seen_questions(THREE, prompts).tolist() == [True, False, False]


def test_the_real_questions() -> None:
    import csv

    task = real_data("truthfulqa/mc_task.json")
    questions = read_questions(task)
    assert len(questions) == 817 and len(read_questions(task, 7)) == 7
    assert sum(len(question.choices) for question in questions) == 6204
    with (task.parent / "TruthfulQA.csv").open(encoding="utf-8") as handle:
        asked = [user(row["Question"]) for row in csv.DictReader(handle)]
    assert seen_questions(questions, asked).all(), "one of them differs by a space"
    assert not seen_questions(questions[:400], [user(question.text) for question in questions[400:]]).any()


# --- figures ----------------------------------------------------------------------------------------------------------


def measure(values: Sequence[float], groups: Sequence[int] | None = None) -> Measure:
    return Measure(values=np.array(values, dtype=np.float64), groups=np.arange(len(values)) if groups is None else np.array(groups))


def test_a_share_has_wilsons_interval_and_a_mean_its_bootstrap() -> None:
    share = figure_of("accuracy", measure([1.0, 1.0, 0.0, 1.0, np.nan]), None)
    assert share is not None and (share.value, share.n, share.difference) == (0.75, 4, None)
    assert (share.low, share.high) == pytest.approx(wilson(3, 4))
    values = np.random.default_rng(0).normal(size=400)
    mean = figure_of("reward", measure(values.tolist()), None)
    assert mean is not None and mean.value == pytest.approx(values.mean())
    assert (mean.high - mean.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1), "at this n it equals the normal interval"


def test_prompts_are_the_unit() -> None:
    """Twenty copies of each prompt's value give the same interval as one."""
    values = np.random.default_rng(0).normal(size=50)
    once = figure_of("reward", measure(values.tolist()), None)
    often = figure_of("reward", measure(np.repeat(values, 20).tolist(), np.repeat(np.arange(50), 20).tolist()), None)
    assert once is not None and often is not None
    assert (often.low, often.high) == pytest.approx((once.low, once.high)) and (often.n, often.n_prompts) == (1000, 50)


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=60) * 10
    after = before + 0.5 + rng.normal(size=60) * 0.1
    figure = figure_of("reward", measure(after.tolist()), measure(before.tolist()))
    assert figure is not None and figure.difference is not None
    assert figure.difference.value == pytest.approx((after - before).mean())
    assert figure.difference.low > 0.4 and figure.high - figure.low > 20 * (figure.difference.high - figure.difference.low)


def test_what_is_missing_on_one_side_is_in_no_difference() -> None:
    figure = figure_of("reward", measure([1.0, 2.0, np.nan, 4.0]), measure([0.0, np.nan, 1.0, 2.0]))
    assert figure is not None and figure.difference is not None
    assert (figure.value, figure.n) == (pytest.approx(7 / 3), 3) and (figure.difference.value, figure.difference.n) == (1.5, 2)


def test_other_items_are_not_paired() -> None:
    with pytest.raises(MismatchError, match="different items"):
        figure_of("reward", measure([1.0, 2.0]), measure([1.0, 2.0, 3.0]))
    figure = figure_of("kl_per_token", measure([0.1, 0.2], [0, 1]), measure([0.0, 0.0, 0.0], [0, 0, 1]))
    assert figure is not None and figure.difference is None, "it compares with the base model already, over another number of tokens"


def test_nothing_to_measure_is_no_figure() -> None:
    assert figure_of("reward", measure([np.nan, 1.0]), None) is None and figure_of("accuracy", measure([]), None) is None
    assert set(SHARES) < set(MEANING)


# --- held out ---------------------------------------------------------------------------------------------------------

SPLITS = ["train", "validation", "test", "unused"]
WORLD = make_pairs([1, 2, 3] * 8, [SPLITS[number % 4] for number in range(24)])


def test_sampled_pairs_are_whole_prompts_of_the_split() -> None:
    test = WORLD.take(WORLD.rows_of("test"))
    assert sample_pairs(WORLD, "test", CONFIG).pairs == test.pairs
    few = sample_pairs(WORLD, "test", replace(CONFIG, pairs=7))
    assert 0 < len(few) <= 7 and set(few.split) == {"test"}
    sizes = {name: sum(pair.prompt_id == name for pair in test) for name in {pair.prompt_id for pair in few}}
    assert sum(sizes.values()) == len(few), "all pairs of each prompt"
    assert few.pairs == sample_pairs(WORLD, "test", replace(CONFIG, pairs=7)).pairs
    assert any(few.pairs != sample_pairs(WORLD, "test", replace(CONFIG, pairs=7, seed=seed)).pairs for seed in (1, 2, 3))


def test_sampled_prompts_are_distinct_and_of_the_split() -> None:
    prompts = sample_prompts(WORLD, "test", replace(CONFIG, prompts=4))
    held_out = [pair.prompt_id for pair in WORLD.take(WORLD.rows_of("test"))]
    assert len({prompt.prompt_id for prompt in prompts}) == 4 and {prompt.prompt_id for prompt in prompts} < set(held_out)
    assert len(sample_prompts(WORLD, "test", replace(CONFIG, prompts=100))) == len(set(held_out)) == 6


def test_held_out_is_test_else_validation() -> None:
    assert held_out_split(WORLD) == "test" and held_out_split(make_pairs([1, 1], ["train", "validation"])) == "validation"
    with pytest.raises(DataError, match="no pair is held out"):
        held_out_split(make_pairs([1], ["train"]))


def test_preferences_are_those_of_a_plain_loop(moved: Policy) -> None:
    pairs = make_pairs([2, 1, 1, 1], ["test"] * 4)
    texts = [("Yes.", "Take your time and begin with the small things."), ("Gladly, friend.", "Nope."), ("no", "yes"), ("a b c d", "e"), ("x", "x y")]
    pairs = PreferencePairs(pairs=tuple(replace(pair, chosen=a, rejected=b) for pair, (a, b) in zip(pairs, texts, strict=True)), split=pairs.split)
    measures, counts = preference_measures(moved.backbone, pairs, CONFIG, "held-out pairs")
    assert counts == {"held_out_pairs": 5, "held_out_pairs_refused": 0, "held_out_pairs_refused_by_reason": {}}
    encoded, _ = encode_pairs(pairs.pairs, moved.backbone, 512)

    def tokens(prompt: list[int], ids: list[int]) -> np.ndarray:
        return by_hand(moved.backbone.model, AnswerTokens(tuple(prompt), tuple(ids)))[np.arange(len(ids)), ids]

    sides = [(tokens(pair.prompt, pair.chosen), tokens(pair.prompt, pair.rejected)) for pair in encoded]
    np.testing.assert_allclose(measures["logprob_margin"].values, [w.sum() - x.sum() for w, x in sides], atol=1e-4)
    assert measures["accuracy"].values.tolist() == [float(w.sum() > x.sum()) for w, x in sides]
    assert measures["accuracy_per_token"].values.tolist() == [float(w.mean() > x.mean()) for w, x in sides]
    assert measures["accuracy"].values.tolist() != measures["accuracy_per_token"].values.tolist(), "the sum favours short answers"
    groups = measures["accuracy"].groups
    assert groups[0] == groups[1] and len(set(groups.tolist())) == 4


def test_pairs_that_cannot_be_compared_are_counted(tiny: Backbone) -> None:
    pairs = make_pairs([1, 1, 1], ["test"] * 3)
    pairs = PreferencePairs(
        pairs=(pairs[0], replace(pairs[1], rejected=pairs[1].chosen), replace(pairs[2], chosen="word " * 3000)), split=pairs.split
    )
    measures, counts = preference_measures(tiny, pairs, CONFIG, "held-out pairs")
    assert len(measures["accuracy"].values) == 1 and (counts["held_out_pairs"], counts["held_out_pairs_refused"]) == (1, 2)
    assert len(counts["held_out_pairs_refused_by_reason"]) == 2 and sum(counts["held_out_pairs_refused_by_reason"].values()) == 2


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass
class FakeGenerator:
    """Returns the given answers, prompt by prompt in turn."""

    answers: Sequence[Generated]

    @property
    def spent(self) -> Spent:
        return Spent()

    def generate(self, prompts: Sequence[Sequence[Message]], n: int, *, progress: Progress = no_progress) -> list[list[Generated]]:
        assert n == 1
        return [[self.answers[number % len(self.answers)]] for number in range(len(prompts))]


def answer(text: str, n_tokens: int, *, finished: bool = True, failed: str = "") -> Generated:
    return Generated(text=text, n_tokens=n_tokens, finished=finished, failed=failed)


BEFORE = [
    answer("Take your time.", 5),
    answer("Ask someone. Or", 6, finished=False),
    answer("no end", 4, finished=False),
    answer("Gladly, friend.", 7),
]
AFTER = [answer("Take your time.", 5), answer("Ask someone, friend.", 8), answer("", 0, failed="no room"), answer("Thanks.", 3)]


@pytest.fixture(scope="module")
def reward_model() -> SparseRM:
    return SparseRM(make_parts(), FakeReader(6))


def reward_of(model: SparseRM, prompt: Sequence[Message], text: str) -> float:
    return float(model.rewards_of(FakeReader(6).state(prompt, text)[None])[0])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PolicyEvaluationConfig:
    path = tmp_path_factory.mktemp("mc") / "mc.json"
    rows = [{**TASK[0], "question": f"Question {number}"} for number in range(6)] + [{**TASK[1], "question": "What is new?"}, TASK[2]]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return replace(CONFIG, mc=str(path))


def evaluate(policy: Policy, answers: Sequence[Generated], model: SparseRM, config: PolicyEvaluationConfig, **more: Any) -> PolicyEvaluation:
    options: dict[str, Any] = {"aligned_on": [Prompt(messages=user("what is  New?"))], **more}
    return evaluate_policy(policy, WORLD, FakeGenerator(answers), model, config, **options)


@pytest.fixture(scope="module")
def before(reward_model: SparseRM, config: PolicyEvaluationConfig) -> PolicyEvaluation:
    return evaluate(load_policy(tiny_config(), None), BEFORE, reward_model, config)


@pytest.fixture(scope="module")
def after(reward_model: SparseRM, config: PolicyEvaluationConfig, moved: Policy, before: PolicyEvaluation) -> PolicyEvaluation:
    return evaluate(moved, AFTER, reward_model, config, first=before)


def prompts_of(config: PolicyEvaluationConfig) -> list[Prompt]:
    return sample_prompts(WORLD, "test", config)


def test_round_zero_in_figures(before: PolicyEvaluation, reward_model: SparseRM, config: PolicyEvaluationConfig) -> None:
    prompts = prompts_of(config)
    assert len(prompts) == 6
    # 2 has no whole sentence.
    read = {0: "Take your time.", 1: "Ask someone.", 3: "Gladly, friend.", 4: "Take your time.", 5: "Ask someone."}
    rewards = [reward_of(reward_model, prompts[i].messages, text) for i, text in read.items()]
    assert before.figures["reward"].value == pytest.approx(np.mean(rewards)) and before.figures["reward"].n == 5
    assert before.figures["length"].value == pytest.approx((5 + 6 + 4 + 7 + 5 + 6) / 6)
    assert before.figures["finished"].value == pytest.approx(3 / 6)
    assert (before.figures["kl_per_token"].value, before.figures["kl_per_sequence"].high) == (0.0, 0.0)
    assert before.drift == () and before.warnings == () and all(figure.difference is None for figure in before.figures.values())
    assert list(before.figures) == [name for name in MEANING if name in before.figures] and set(before.figures) == set(MEANING)
    assert before.about["answers_unread"] == 1 and before.about["held_out"] == "test"
    assert before.about["held_out_pairs_of"] == WORLD.split.count("test"), "the number of pairs that were drawn from"
    assert before.about["validation_pairs_of"] == WORLD.split.count("validation")
    assert before.about["answers_of"] == len({WORLD[int(i)].prompt_id for i in WORLD.rows_of("test")})


def test_no_training_prompt_is_an_unseen_question(before: PolicyEvaluation) -> None:
    """Questions 0 to 5 are prompts 0 to 5, of splits train, validation, test, unused, train, validation; `What is new?`
    was aligned on.
    """
    assert (before.about["mc_questions"], before.about["mc_unseen"]) == (8, 3)
    assert before.measures["mc1_unseen"].groups.tolist() == [2, 3, 7]
    assert (before.figures["mc2_all"].n, before.figures["mc2_unseen"].n) == (8, 3)
    assert before.figures["mc2_unseen"].value == pytest.approx(before.measures["mc2_all"].values[[2, 3, 7]].mean())


def test_a_later_round_against_round_zero(
    before: PolicyEvaluation, after: PolicyEvaluation, reward_model: SparseRM, config: PolicyEvaluationConfig, moved: Policy
) -> None:
    prompts = prompts_of(config)
    texts = {0: ("Take your time.",) * 2, 1: ("Ask someone.", "Ask someone, friend."), 3: ("Gladly, friend.", "Thanks.")}
    texts |= {4: texts[0], 5: texts[1]}
    gain = [reward_of(reward_model, prompts[i].messages, new) - reward_of(reward_model, prompts[i].messages, old) for i, (old, new) in texts.items()]
    difference = after.figures["reward"].difference
    assert difference is not None and difference.value == pytest.approx(np.mean(gain)) and difference.n == 5
    length = after.figures["length"].difference
    assert length is not None and length.value == pytest.approx(np.mean([0, 8 - 6, 3 - 7, 0, 8 - 6])), "failed answers have no length"
    assert after.figures["kl_per_token"].low > 0 and after.figures["kl_per_token"].difference is None
    answers = [(prompts[i].messages, AFTER[i % 4].text) for i in (0, 1, 3, 4, 5)]
    encoded = [tokens for tokens in encode_answers(moved.backbone, answers, closed=[True] * 5) if tokens is not None]
    divergences = kl_from_base(moved, encoded, tokens_per_batch=10_000, step="test")
    assert after.figures["kl_per_sequence"].value == pytest.approx(np.mean([by_token.sum() for by_token in divergences]), rel=1e-4)
    assert after.figures["kl_per_token"].value == pytest.approx(np.concatenate(divergences).mean(), rel=1e-4)
    expected, _ = preference_measures(moved.backbone, sample_pairs(WORLD, "validation", config), config, "validation pairs")
    assert after.figures["validation_accuracy"].value == pytest.approx(expected["accuracy"].values.mean())
    margin = after.figures["logprob_margin"].difference
    of_after, of_before = (evaluation.measures["logprob_margin"].values for evaluation in (after, before))
    assert margin is not None and margin.value == pytest.approx((of_after - of_before).mean())


def test_drift_is_the_mean_move_in_training_deviations(after: PolicyEvaluation, reward_model: SparseRM, config: PolicyEvaluationConfig) -> None:
    prompts, reader, parts = prompts_of(config), FakeReader(6), reward_model.parts
    texts = [(0, "Take your time.", "Take your time."), (1, "Ask someone.", "Ask someone, friend."), (3, "Gladly, friend.", "Thanks.")]
    texts += [(4, *texts[0][1:]), (5, *texts[1][1:])]
    assert parts.directions is not None and parts.latent_ids is not None
    moves = [parts.directions @ (reader.state(prompts[i].messages, new) - reader.state(prompts[i].messages, old)) for i, old, new in texts]
    expected = dict(zip(parts.latent_ids.tolist(), np.mean(moves, axis=0) / parts.projection_std, strict=True))
    moves_by_latent = {latent.latent_id: latent.value for latent in after.drift}
    assert moves_by_latent == pytest.approx(expected, rel=1e-4) and [abs(latent.value) for latent in after.drift] == sorted(
        map(abs, moves_by_latent.values()), reverse=True
    )
    assert all(latent.low <= latent.value <= latent.high and latent.n == 5 for latent in after.drift)


def test_samples_lie_side_by_side(before: PolicyEvaluation, after: PolicyEvaluation, reward_model: SparseRM, config: PolicyEvaluationConfig) -> None:
    assert len(before.samples) == len(after.samples) == config.samples == 3
    assert [sample["prompt_id"] for sample in before.samples] == [sample["prompt_id"] for sample in after.samples]
    second = before.samples[1]
    assert second["response"] == "Ask someone. Or" and second["n_tokens"] == 6 and not second["finished"], "samples have the whole text"
    assert second["reward"] == pytest.approx(reward_of(reward_model, second["prompt"], "Ask someone."))
    assert before.samples[2]["reward"] is None


def test_what_is_kept_is_read_again(after: PolicyEvaluation, tmp_path: Path) -> None:
    save_evaluation(tmp_path, after)
    loaded = load_evaluation(tmp_path)
    assert loaded.to_json() == after.to_json() == json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert loaded.samples == after.samples and loaded.drift == after.drift and loaded.figures == after.figures
    assert set(loaded.measures) == set(after.measures)
    for name, expected in after.measures.items():
        np.testing.assert_array_equal(loaded.measures[name].values, expected.values)
        np.testing.assert_array_equal(loaded.measures[name].groups, expected.groups)
    np.testing.assert_array_equal(loaded.projections, after.projections)


@pytest.mark.parametrize("damaged", [FILE, ARRAYS])
def test_damaged_files_are_an_error(after: PolicyEvaluation, tmp_path: Path, damaged: str) -> None:
    save_evaluation(tmp_path, after)
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:-9])
    with pytest.raises(StoreError, match="holds no evaluation"):
        load_evaluation(tmp_path)


def test_the_batch_size_changes_nothing(before: PolicyEvaluation, reward_model: SparseRM, config: PolicyEvaluationConfig) -> None:
    other = evaluate(load_policy(tiny_config(), None), BEFORE, reward_model, replace(config, tokens_per_batch=128))
    for name, expected in before.measures.items():
        np.testing.assert_allclose(other.measures[name].values, expected.values, atol=2e-4)


def test_without_questions_and_without_latents(reward_model: SparseRM, before: PolicyEvaluation) -> None:
    policy, dense = load_policy(tiny_config(), None), SparseRM(make_parts("dense"), FakeReader(6))
    first = evaluate(policy, BEFORE, dense, CONFIG)
    second = evaluate(policy, BEFORE, dense, CONFIG, first=first)
    assert not any(name.startswith("mc") for name in second.figures) and "mc_format" not in second.about
    assert second.projections.shape == (6, 0) and second.drift == ()
    assert second.figures["accuracy"].value == before.figures["accuracy"].value


def test_an_evaluation_can_be_cancelled(reward_model: SparseRM, config: PolicyEvaluationConfig) -> None:
    steps: list[str] = []

    def progress(step: str, done: float, total: float, **_figures: Any) -> None:
        steps.append(step)
        if step == "multiple choice":
            raise Cancelled

    with pytest.raises(Cancelled):
        evaluate(load_policy(tiny_config(), None), BEFORE, reward_model, config, progress=progress)
    assert list(dict.fromkeys(steps)) == ["held-out pairs", "validation pairs", "rewards", "multiple choice"]


def test_what_the_reader_refuses_has_no_reward() -> None:
    """Neither an empty text nor a text that the reader refuses has a reward; the other answers keep their places."""

    class Choosy(FakeReader):
        def __call__(self, items: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
            refused = {number: "too long" for number, (_, text) in enumerate(items) if "long" in text}
            return np.array([self.state(*item) for number, item in enumerate(items) if number not in refused]), refused

    model, texts = SparseRM(make_parts(), Choosy(6)), ["Yes.", "", "A long one.", "No.", "As long.", "Well."]
    answers = [Answer(prompt=Prompt(messages=user(f"q{number}")), generated=answer(text, 1)) for number, text in enumerate(texts)]
    rewards, projections = score_answers(model, answers)
    assert np.isnan(rewards).tolist() == np.isnan(projections).any(axis=1).tolist() == [False, True, True, False, True, False]
    assert rewards[[0, 3, 5]] == pytest.approx([reward_of(model, answers[i].prompt.messages, texts[i]) for i in (0, 3, 5)])


def test_an_answer_is_read_up_to_its_last_whole_sentence() -> None:
    texts = [Answer(prompt=Prompt(messages=user("q")), generated=generated).text for generated in (*BEFORE, AFTER[2])]
    assert texts == ["Take your time.", "Ask someone.", "", "Gladly, friend.", ""]

"""Sampled answers: the draw against a count by hand, batches with shared caches against a plain loop, whatever the
batch, the family or a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_helpers import GEMMA_LIKE, save_model, tiny_backbone, tiny_tokenizer
from transformers import TopPLogitsWarper

from core.align.generation import STEP, LocalGenerator
from core.backbone import generation
from core.backbone.generation import Sampling, answer_prefix, draw, plan_rows, stop_tokens, whole_sentences, write_answers
from core.backbone.journal import Generated, Journal
from core.backbone.model import Backbone, load_backbone
from core.backbone.template import ChatTemplate
from core.config import BackboneConfig, CandidatesConfig
from core.errors import Cancelled
from core.types import Message

SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3)
CONFIG = CandidatesConfig(max_new_tokens=12, top_p=0.9, batch_size=4, seed=3)
COLD = 1e-4
TEXTS = ("Is it hard to bake rye bread?", "Hi", "How do I " + "mend a sock and " * 12 + "whistle?", "My sister wants to paint a wall. Any advice?")


def prompts(texts: Sequence[str] = TEXTS) -> list[list[Message]]:
    return [[{"role": "user", "content": text}] for text in texts]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return tiny_backbone(depth=None)


@pytest.fixture(scope="module", params=["tiny", "gemma2", "qwen2", "gpt2", "neox"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Models with rotary, learned and sliding-window positions (the window of gemma2's is shorter than the longest
    prompt).
    """
    if request.param == "tiny":
        return tiny_backbone(depth=None)
    folder = save_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return load_backbone(BackboneConfig(model=str(folder), layer=1, dtype="float32", device="cpu", max_length=512))


def plain_text(backbone: Backbone, prompt: Sequence[Message], sample: int, sampling: Sampling) -> Generated:
    """Computes the whole text again for every token, without cache or padding; the nucleus by a loop."""
    ids = answer_prefix(backbone, prompt)
    uniform, written = generation.uniform_numbers(ids, sample, sampling), []
    for number in range(sampling.max_new_tokens):
        with torch.no_grad():
            logits = backbone.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1].double() / sampling.temperature
        token = drawn_by_hand(logits.softmax(-1).tolist(), float(uniform[number]), sampling.top_p)
        if token in stop_tokens(backbone) or token in backbone.template.control.ids:
            finished = token in stop_tokens(backbone)
            return Generated(text=backbone.tokenizer.decode(written).strip(), n_tokens=len(written), finished=finished)
        written.append(token)
    return Generated(text=backbone.tokenizer.decode(written).strip(), n_tokens=len(written), finished=False)


def drawn_by_hand(probabilities: list[float], uniform: float, top_p: float) -> int:
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    nucleus: list[int] = []
    while sum(probabilities[i] for i in nucleus) < top_p and len(nucleus) < len(order):
        nucleus.append(order[len(nucleus)])
    goal, reached = uniform * sum(probabilities[i] for i in nucleus), 0.0
    for token in nucleus:
        reached += probabilities[token]
        if reached > goal:
            return token
    return nucleus[-1]


# --- the draw ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_p", [0.05, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("likely", [4, 1024])  # 4: wider nuclei are looked for in the whole vocabulary
def test_tokens_come_as_often_as_the_nucleus_says(monkeypatch: pytest.MonkeyPatch, top_p: float, likely: int) -> None:
    monkeypatch.setattr(generation, "LIKELY", likely)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 40)) * np.array([[0.1], [1.5], [4.0]])).float()
    n = 4000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = torch.stack([torch.bincount(draw(row.expand(n, -1), grid, top_p), minlength=40) for row in logits])
    expected = (TopPLogitsWarper(top_p)(None, logits) if top_p < 1 else logits).softmax(-1)
    assert ((expected > 0) == (counts > 0)).all() or (expected[counts == 0] < 1.5 / n).all()
    torch.testing.assert_close(counts / n, expected, atol=1.5 / n, rtol=0)


def test_the_draw_is_the_one_by_hand() -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(64, 30))).double()
    uniform = torch.from_numpy(np.random.default_rng(2).random(64))
    by_hand = [drawn_by_hand(row.softmax(-1).tolist(), float(u), 0.8) for row, u in zip(logits, uniform, strict=True)]
    assert draw(logits, uniform, 0.8).tolist() == by_hand
    assert draw(logits, torch.ones(64, dtype=torch.float64) - 2**-53, 0.8).min() >= 0, "the end of the range is inside the nucleus"


# --- whole answers ----------------------------------------------------------------------------------------------------


def test_shared_caches_write_what_a_plain_loop_writes(family: Backbone) -> None:
    asked = prompts()
    encoded = [answer_prefix(family, prompt) for prompt in asked]
    assert max(map(len, encoded)) > 64, "longer than the sliding window"
    rows = [(i, sample) for i in (2, 0, 1) for sample in range(3)]
    answers = write_answers(family, encoded, rows, SAMPLING)
    assert answers == [plain_text(family, asked[i], sample, SAMPLING) for i, sample in rows]
    assert len({answer.text for answer in answers}) > 3, "draws differ"


def test_cold_answers_are_the_likeliest_ones(family: Backbone) -> None:
    encoded = [answer_prefix(family, prompt) for prompt in prompts()]
    for answer, ids in zip(write_answers(family, encoded, [(i, 0) for i in range(4)], replace(SAMPLING, temperature=COLD)), encoded, strict=True):
        written: list[int] = []
        while len(written) < SAMPLING.max_new_tokens:
            with torch.no_grad():
                token = int(family.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1].argmax())
            if token in stop_tokens(family) or token in family.template.control.ids:
                break
            written.append(token)
        assert answer.text == family.tokenizer.decode(written).strip() and answer.n_tokens == len(written)


def test_an_answer_ends_where_the_policy_writes_a_control_token(tiny: Backbone) -> None:
    """The toy's own words with its closing token forbidden: the first <|im_start|> ends an answer, unfinished, and none
    is in its text.
    """
    start, ids = tiny.tokenizer.convert_tokens_to_ids("<|im_start|>"), tiny.tokenizer("well then")["input_ids"]
    answer = generation.answer_of(tiny, [*ids, start, *ids], stop_tokens(tiny), sorted({*stop_tokens(tiny), *tiny.template.control.ids}))
    assert (answer.text, answer.n_tokens, answer.finished) == ("well then", len(ids), False)
    closed = generation.answer_of(tiny, [*ids, stop_tokens(tiny)[0], *ids], stop_tokens(tiny), stop_tokens(tiny))
    assert (closed.text, closed.finished) == ("well then", True)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batch_size_and_neighbours_do_not_matter(tiny: Backbone, size: int) -> None:
    """In float32; every answer has separate random numbers."""
    answers = LocalGenerator(tiny, replace(CONFIG, batch_size=size)).generate(prompts(), 3)
    assert answers == [[plain_text(tiny, prompt, sample, SAMPLING) for sample in range(3)] for prompt in prompts()]
    backwards = LocalGenerator(tiny, replace(CONFIG, batch_size=size)).generate(prompts()[::-1], 2)
    assert backwards == [row[:2] for row in answers[::-1]]


def test_seeds_and_samples_differ_and_nothing_else_is_drawn(tiny: Backbone) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (LocalGenerator(tiny, replace(CONFIG, seed=seed)).generate(prompts(), 2) for seed in (0, 1))
    assert all(a.text != b.text for a, b in zip(chain(*first), chain(*second), strict=True)) and all(a.text != b.text for a, b in first)
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers stay as they are"


def test_a_models_own_settings_change_nothing(tiny: Backbone) -> None:
    expected = LocalGenerator(tiny, CONFIG).generate(prompts(), 2)
    settings = tiny.model.generation_config
    changed = type(settings)(**{**settings.to_dict(), "repetition_penalty": 4.0, "top_k": 1, "do_sample": True, "temperature": 0.2, "num_beams": 3})
    tiny.model.generation_config = changed
    try:
        assert LocalGenerator(tiny, CONFIG).generate(prompts(), 2) == expected
        assert tiny.model.generation_config is changed
    finally:
        tiny.model.generation_config = settings


def test_a_policy_with_an_adapter_writes_as_the_adapter_says() -> None:
    """Answers equal those of merged weights and differ from the base model's."""
    from peft import LoraConfig, get_peft_model

    base, with_lora = tiny_backbone(depth=None), tiny_backbone(depth=None)
    torch.manual_seed(0)
    peft = get_peft_model(with_lora.model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")).eval()
    answers = LocalGenerator(with_lora, CONFIG).generate(prompts(), 2)
    assert answers != LocalGenerator(base, CONFIG).generate(prompts(), 2)
    base.model = peft.merge_and_unload()
    assert [[answer.text for answer in row] for row in answers] == [
        [answer.text for answer in row] for row in LocalGenerator(base, CONFIG).generate(prompts(), 2)
    ]


# --- where answers end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (None, 2, {2}),  # no template: the end of text alone
        (GEMMA_LIKE, [0], {0, 2}),  # the model's end of text, and the token that closes a turn
        # Turns closed by plain text; 2 is the tokenizer's end.
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n\n' }}{% endfor %}", 0, {0, 2}),
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}", 2, {0, 2}),
    ],
)
def test_what_ends_an_answer(template: str | None, eos: Any, expected: set[int]) -> None:
    backbone = tiny_backbone(depth=None)
    backbone.tokenizer = tiny_tokenizer(template)
    backbone.template = ChatTemplate(backbone.tokenizer, date="26 Jul 2024")
    backbone.model.generation_config.eos_token_id = eos
    assert set(stop_tokens(backbone)) == expected


def test_what_was_cut_ends_with_a_whole_sentence() -> None:
    assert whole_sentences("One. Two! And th") == "One. Two!"
    assert whole_sentences('He said "no." Then 3.5 of') == 'He said "no.'
    assert whole_sentences("never an end") == ""


def test_a_prompt_that_leaves_no_room_is_not_answered(tiny: Backbone) -> None:
    lengths = [len(answer_prefix(tiny, prompt)) for prompt in prompts()]
    # The third prompt just fits.
    tight = tiny_backbone(depth=None, max_length=sorted(lengths)[2] + CONFIG.max_new_tokens)
    answers = LocalGenerator(tight, CONFIG).generate(prompts(), 2)
    assert [bool(row[0].failed) for row in answers] == [length == max(lengths) for length in lengths]
    assert answers[2] == [Generated(text="", n_tokens=0, finished=False, failed=answers[2][0].failed)] * 2
    assert f"has {max(lengths)} tokens, at most {sorted(lengths)[2]}" in answers[2][0].failed
    assert LocalGenerator(tiny_backbone(depth=None, max_length=16), CONFIG).generate(prompts(), 1)[0][0].failed


# --- plans and kills --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(1, 24), (3, 7), (4, 4), (5, 2), (3, 1)])
def test_a_plan_holds_every_answer_once(n: int, size: int) -> None:
    lengths = np.random.default_rng(n).integers(1, 90, size=23).tolist()
    plan = plan_rows(lengths, n, size)
    assert sorted(row for batch in plan for row in batch) == [(i, sample) for i in range(23) for sample in range(n)]
    assert max(map(len, plan)) <= size
    if n <= size:
        assert all(len({i for i, _ in batch}) * n == len(batch) for batch in plan), (
            "samples of one prompt are in one batch, since they share its cache"
        )
        ends = [(min(lengths[i] for i, _ in batch), max(lengths[i] for i, _ in batch)) for batch in plan]
        assert all(before[1] <= after[0] for before, after in pairwise(ends)), "batches of similar length"


def test_a_stopped_call_goes_on_after_its_last_whole_batch(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = LocalGenerator(tiny, CONFIG).generate(prompts(), 3)
    partial = tmp_path / "deep" / "answers.jsonl"

    def stop(step: str, done: float, total: float, **figures: Any) -> None:
        assert step == STEP and total == 4
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        LocalGenerator(tiny, CONFIG, partial=partial).generate(prompts(), 3, progress=stop)
    assert len(Journal(partial).answers) == 6
    partial.write_bytes(partial.read_bytes() + b'{"key": "half a li')
    asked: list[int] = []
    real = generation.write_answers
    monkeypatch.setattr(generation, "write_answers", lambda *given: asked.append(len(given[2])) or real(*given))
    resumed = LocalGenerator(tiny, CONFIG, partial=partial)
    assert resumed.generate(prompts(), 3) == undisturbed and asked == [3, 3]
    assert resumed.spent.answers == 6 and resumed.spent.tokens == sum(a.n_tokens + a.finished for a in chain(*undisturbed)) - written_before(partial)
    assert LocalGenerator(tiny, CONFIG, partial=partial).generate(prompts(), 3) == undisturbed and asked == [3, 3]
    LocalGenerator(tiny, replace(CONFIG, seed=4), partial=partial).generate(prompts(), 3)
    assert asked == [3, 3, 3, 3, 3, 3], "other draws are other answers"


def written_before(partial: Path) -> int:
    first = list(Journal(partial).answers.values())[:6]
    return sum(answer.n_tokens + answer.finished for answer in first)


def test_damaged_lines_of_a_journal_are_written_again(tmp_path: Path) -> None:
    answer = Generated(text="a\n\u2028b", n_tokens=2, finished=True)
    Journal(tmp_path / "j.jsonl").add([("one", answer)])
    with (tmp_path / "j.jsonl").open("ab") as handle:
        handle.write(b'\n[]\n{"key": "two"}\n\xff\xfe\n{"key": "three", "text": "c", "n_tokens": 1, "finished": false, "failed": ""}\nhalf')
    assert Journal(tmp_path / "j.jsonl").answers == {"one": answer, "three": Generated(text="c", n_tokens=1, finished=False)}

"""Candidate pairs: instructions, parsing, texts that can't be parsed, and best of n against a search by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from backbone_helpers import GEMMA_LIKE, tiny_backbone, tiny_tokenizer

from core.align.candidates import CUT, EMPTY, LENGTHS, MARGIN, NOT_GENERATED, TOO_FEW, UNPARSED, best_of_n, make_candidates
from core.align.generation import LocalGenerator
from core.align.templates import TEMPLATES, instructed, parse_both, templates_of
from core.align.values import Candidate, Prompt
from core.backbone.generation import Spent, answer_prefix
from core.backbone.journal import Generated
from core.backbone.template import ChatTemplate
from core.config import TASKS, CandidatesConfig
from core.errors import ConfigError, DataError
from core.types import Message, PreferencePair, Progress, no_progress

CONFIG = CandidatesConfig()
PROMPTS = [
    Prompt(messages=(Message(role="user", content="What is a pear?"),), meta={"id": "pear"}),
    Prompt(
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="Hello"),
            Message(role="assistant", content="Yes?"),
            Message(role="user", content="Can {prompt} braces {0} and \\1 do harm?"),
        )
    ),
]


@dataclass
class Scripted:
    """A generator with answers of the test, which records its prompts."""

    answers: Callable[[str, int], Generated]
    asked: list[tuple[Message, ...]] = field(default_factory=list)
    spent: Spent = Spent()  # noqa: RUF009

    def generate(self, prompts: Sequence[Sequence[Message]], n: int, *, progress: Progress = no_progress) -> list[list[Generated]]:
        self.asked += [tuple(prompt) for prompt in prompts]
        return [[self.answers(prompt[-1]["content"], sample) for sample in range(n)] for prompt in prompts]


def answer(text: str, *, finished: bool = True, failed: str = "") -> Generated:
    return Generated(text=text, n_tokens=len(text.split()), finished=finished, failed=failed)


# --- instructions -----------------------------------------------------------------------------------------------------


def test_an_instruction_goes_into_the_users_last_message() -> None:
    messages = PROMPTS[1].messages
    before = instructed(messages, "Do this.")
    assert before[:-1] == messages[:-1] and before[-1] == {"role": "user", "content": "Do this.\n\nCan {prompt} braces {0} and \\1 do harm?"}
    around = instructed(messages, "Here: {prompt}\nNow do this.")
    assert around[-1]["content"] == "Here: Can {prompt} braces {0} and \\1 do harm?\nNow do this.", "a prompt is plain text, whatever it contains"
    prefilled = instructed((*messages, Message(role="assistant", content="Well,")), "Do this.")
    assert prefilled[-2:] == (before[-1], {"role": "assistant", "content": "Well,"})
    with pytest.raises(DataError, match="without a user's message"):
        instructed((Message(role="system", content="Be brief."),), "Do this.")


@pytest.mark.parametrize("template", [GEMMA_LIKE, None])
def test_instructions_reach_models_without_a_system_role(template: str | None) -> None:
    backbone = tiny_backbone()
    backbone.tokenizer = tiny_tokenizer(template)
    backbone.template = ChatTemplate(backbone.tokenizer, date="26 Jul 2024")
    text = backbone.tokenizer.decode(answer_prefix(backbone, instructed(PROMPTS[1].messages, "Do this. {prompt}")))
    assert "Do this. Can {prompt} braces {0} and \\1 do harm?" in text and text.count("Be brief.") == 1


@pytest.mark.parametrize("task", TASKS)
def test_configured_instructions_replace_a_tasks(task: str) -> None:
    plain = templates_of(replace(CONFIG, task=task))
    assert plain == TEMPLATES[task] and len({plain.positive, plain.negative, plain.contrastive}) == 3
    configured = templates_of(replace(CONFIG, task=task, negative=" Be wrong. "))
    assert configured == replace(plain, negative="Be wrong.")
    first, second = plain.marks
    both = f"Say {first.upper()} x and {second} y."
    assert templates_of(replace(CONFIG, task=task, contrastive=both)).contrastive == both
    with pytest.raises(ConfigError, match="does not ask for the marks") as error:
        templates_of(replace(CONFIG, task=task, contrastive=f"Say {second} y."))
    assert first in str(error.value)


MARKS = ("Correct answer:", "Incorrect answer:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Correct answer: A pear.\nIncorrect answer: A car.", ("A pear.", "A car.")),
        ("Incorrect answer: A car.\n\nCorrect answer: A pear.\nOf a tree.", ("A pear.\nOf a tree.", "A car.")),
        ("Sure!\n1. **Correct answer:** A *pear*.\n2. **Incorrect Answer**: A car.", ("A *pear*.", "A car.")),
        ("- correct  ANSWER : A pear.\n- INCORRECT answer: A car.", ("A pear.", "A car.")),
        ("Correct answer: What is the correct answer: that.\nIncorrect answer: no", ("What is the correct answer: that.", "no")),
        ("Correct answer: A pear.", "0 times 'Incorrect answer:'"),
        ("Incorrect answer: A car.", "0 times 'Correct answer:'"),
        ("Correct answer: a\nIncorrect answer: b\nCorrect answer: c", "2 times 'Correct answer:'"),
        ("Correct answer:\nIncorrect answer: b", "an empty answer"),
        ("Correct answer: **\nIncorrect answer: b", "an empty answer"),
        ("Correct answer: a Incorrect answer: b", "0 times 'Incorrect answer:'"),
        ("", "0 times 'Correct answer:'"),
    ],
)
def test_both_answers_of_one_text(text: str, expected: tuple[str, str] | str) -> None:
    assert parse_both(text, MARKS) == expected


def test_a_long_hostile_text_is_parsed_at_once() -> None:
    for text in ("Correct answer" + " " * 200_000, "\n" * 200_000, ("-" * 500 + "\n") * 400, "*_" * 100_000):
        assert isinstance(parse_both(text, MARKS), str)


# --- two prompts ------------------------------------------------------------------------------------------------------


def test_two_prompts_makes_the_positive_answer_the_winner() -> None:
    def answers(content: str, sample: int) -> Generated:
        side = "good" if content.startswith(TEMPLATES["truthfulness"].positive) else "bad"
        assert side == "good" or content.startswith(TEMPLATES["truthfulness"].negative)
        return answer(f"{side} {sample} to {content[-5:]}")

    generator = Scripted(answers)
    candidates = make_candidates(PROMPTS, generator, replace(CONFIG, per_prompt=2))
    assert [candidate.candidate_id for candidate in candidates] == [f"{prompt.prompt_id}-{number}" for prompt in PROMPTS for number in range(2)]
    assert [(candidate.chosen, candidate.rejected) for candidate in candidates] == [
        (f"good {number} to {end}", f"bad {number} to {end}") for end in ("pear?", "harm?") for number in range(2)
    ]
    assert all(
        candidate.parsed and candidate.prompt == prompt.messages
        for candidate, prompt in zip(candidates, [PROMPTS[0], PROMPTS[0], *[PROMPTS[1]] * 2], strict=True)
    )
    assert candidates[0].pair() == PreferencePair(
        pair_id=candidates[0].candidate_id, prompt=PROMPTS[0].messages, chosen="good 0 to pear?", rejected="bad 0 to pear?", meta=candidates[0].meta
    )
    assert candidates[0].pair().prompt_id == PROMPTS[0].prompt_id and candidates[0].meta["id"] == "pear"
    assert len(generator.asked) == 4 and all(len(asked) == len(PROMPTS[i % 2].messages) for i, asked in enumerate(generator.asked))


def test_what_is_no_pair_has_a_reason_and_its_texts() -> None:
    good = [
        answer("Fine."),
        answer("One. And th", finished=False),
        answer("never ends", finished=False),
        answer(""),
        answer("", failed="no room"),
        answer("Ok."),
    ]
    bad = [answer("Bad."), answer("Two."), answer("Three."), answer("Four."), answer("Five."), answer("no end", finished=False)]
    generator = Scripted(lambda content, sample: (good if content.startswith(TEMPLATES["truthfulness"].positive) else bad)[sample])
    candidates = make_candidates(PROMPTS[:1], generator, replace(CONFIG, per_prompt=6))
    assert [candidate.refused for candidate in candidates] == ["", "", CUT, EMPTY, f"{NOT_GENERATED}: no room", CUT]
    assert (candidates[1].chosen, candidates[1].raw) == ("One.", ("One. And th", "Two.")), "cut after its last whole sentence; raw is unchanged"
    assert all(
        (candidate.chosen, candidate.rejected) == ("", "") and candidate.raw[1] == bad[i].text
        for i, candidate in enumerate(candidates)
        if not candidate.parsed
    )
    assert candidates[2].meta == {"id": "pear", "tokens": [2, 1], "finished": [False, True]}
    again = [Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) for candidate in candidates]
    assert again == candidates


# --- contrastive ------------------------------------------------------------------------------------------------------


def test_contrastive_parses_one_text_and_keeps_what_it_cannot() -> None:
    texts = [
        answer("Correct answer: A fruit.\nIncorrect answer: A fish."),
        answer("A pear is a fruit."),
        answer("Correct answer: A fruit.\nIncorrect answer: A fish. It swi", finished=False),
        answer("Correct answer: A fruit.\nIncorrect answer: A fi", finished=False),
    ]
    generator = Scripted(lambda content, sample: texts[sample])
    candidates = make_candidates(PROMPTS[:1], generator, replace(CONFIG, mode="contrastive", per_prompt=4))
    assert [(candidate.chosen, candidate.rejected) for candidate in candidates] == [
        ("A fruit.", "A fish."),
        ("", ""),
        ("A fruit.", "A fish."),
        ("", ""),
    ]
    assert [candidate.refused.partition(":")[0] for candidate in candidates] == ["", UNPARSED, "", UNPARSED]
    assert candidates[1].raw == ("A pear is a fruit.",) and sum(candidate.parsed for candidate in candidates) / len(candidates) == 0.5
    assert "What is a pear?" in generator.asked[0][-1]["content"] and candidates[0].prompt == PROMPTS[0].messages
    with pytest.raises(ConfigError, match="chosen by a reward"):
        make_candidates(PROMPTS, generator, replace(CONFIG, mode="best_of_n"))


# --- best of n --------------------------------------------------------------------------------------------------------


def by_hand(texts: Sequence[str], rewards: Sequence[float], ratio: float, margin: float) -> tuple[str, str, str]:
    """The winner, the loser and why the pair is unfit, by comparing every two samples."""
    best: tuple[float, str, str] | None = None
    widest: tuple[float, str, str] | None = None
    for i in range(len(texts)):
        for j in range(len(texts)):
            if i == j or np.isnan(rewards[i]) or np.isnan(rewards[j]):
                continue
            this = (rewards[i] - rewards[j], texts[i], texts[j])
            if widest is None or this[0] > widest[0]:
                widest = this
            longer, shorter = sorted((len(texts[i]), len(texts[j])), reverse=True)
            if longer <= ratio * shorter and (best is None or this[0] > best[0]):
                best = this
    if widest is None:
        return "", "", TOO_FEW
    taken = best or widest
    return taken[1], taken[2], LENGTHS if best is None else MARGIN if taken[0] < margin else ""


@pytest.mark.parametrize(("ratio", "margin"), [(1.0, 0.0), (1.3, 0.5), (2.0, 1.0), (50.0, 0.0)])
def test_best_of_n_is_the_search_by_hand(ratio: float, margin: float) -> None:
    rng = np.random.default_rng(int(10 * ratio))
    prompts = [Prompt(messages=(Message(role="user", content=f"Question {i}?"),)) for i in range(40)]
    texts = {(f"Question {i}?", s): "x" * int(rng.integers(1, 30)) + f" {i} {s}" for i in range(40) for s in range(8)}
    rewards = {text: float(rng.normal()) if rng.random() > 0.3 else np.nan for text in texts.values()}
    config = replace(CONFIG, mode="best_of_n", n=4, per_prompt=2, length_ratio=ratio, min_margin=margin)
    given: list[tuple[Sequence[Message], str]] = []

    def score(items: Sequence[tuple[Sequence[Message], str]]) -> np.ndarray:
        given.extend(items)
        return np.array([rewards[text] for _, text in items])

    candidates = best_of_n(prompts, Scripted(lambda content, sample: answer(texts[content, sample])), score, config)
    assert [candidate.candidate_id for candidate in candidates] == [f"{prompt.prompt_id}-{number}" for prompt in prompts for number in range(2)]
    reasons = set()
    for place, candidate in enumerate(candidates):
        samples = [texts[f"Question {place // 2}?", sample] for sample in range(4 * (place % 2), 4 * (place % 2) + 4)]
        expected = by_hand(samples, [rewards[text] for text in samples], ratio, margin)
        assert (candidate.chosen, candidate.rejected, candidate.refused or candidate.meta.get("unfit", "")) == expected and candidate.raw == tuple(
            samples
        )
        assert candidate.parsed == (expected[2] != TOO_FEW)
        if candidate.parsed:
            assert candidate.meta["rewards"] == [rewards[candidate.chosen], rewards[candidate.rejected]]
            assert [samples[i] for i in candidate.meta["samples"]] == [candidate.chosen, candidate.rejected]
        reasons.add(expected[2])
    assert len(reasons) > 1
    assert sorted(text for _, text in given) == sorted(texts.values()), "every sample is scored once, with its prompt"
    assert all(prompt[0]["content"].split()[1].rstrip("?") == text.split()[1] for prompt, text in given)


def test_best_of_n_never_takes_unusable_samples() -> None:
    samples = [answer("never ends", finished=False), answer("", failed="status 400"), answer("Cut. Of", finished=False), answer("")]
    scored: list[str] = []

    def score(items: Sequence[tuple[Sequence[Message], str]]) -> np.ndarray:
        scored.extend(text for _, text in items)
        return np.arange(len(items), dtype=float)

    config = replace(CONFIG, mode="best_of_n", n=4)
    (only,) = best_of_n(PROMPTS[:1], Scripted(lambda content, sample: samples[sample]), score, config)
    assert scored == ["Cut."] and only.refused == TOO_FEW and only.raw == ("never ends", "", "Cut. Of", "")
    (none,) = best_of_n(PROMPTS[:1], Scripted(lambda content, sample: answer("")), score, config)
    assert scored == ["Cut."] and none.refused == TOO_FEW, "nothing to score"
    (equal,) = best_of_n(PROMPTS[:1], Scripted(lambda content, sample: answer("Same.")), lambda items: np.zeros(len(items)), config)
    assert equal.parsed and equal.chosen == equal.rejected == "Same.", "pairs that DPO refuses are counted by the filter"


# --- with a model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["two_prompts", "best_of_n"])
def test_the_pairs_of_a_real_policy(mode: str) -> None:
    """The winner is the answer to the instructed prompt alone."""
    backbone = tiny_backbone(depth=None)
    config = replace(CONFIG, mode=mode, per_prompt=2, n=3, max_new_tokens=8, length_ratio=100.0)
    generator = LocalGenerator(backbone, config)
    if mode == "two_prompts":
        candidates = make_candidates(PROMPTS, generator, config)
        asked = [instructed(PROMPTS[1].messages, text) for text in (TEMPLATES["truthfulness"].positive, TEMPLATES["truthfulness"].negative)]
        alone = [LocalGenerator(backbone, replace(config, batch_size=1)).generate([answer], 2)[0][1].text for answer in asked]
    else:
        candidates = best_of_n(PROMPTS, generator, lambda items: np.array([len(text) for _, text in items], dtype=float), config)
        alone = [answer.text for answer in LocalGenerator(backbone, replace(config, batch_size=1)).generate([PROMPTS[1].messages], 6)[0][3:]]
    assert len(candidates) == 4 and list(candidates[3].raw) == alone
    assert generator.spent.answers == (8 if mode == "two_prompts" else 12) and generator.spent.tokens_per_second > 0

"""TruthfulQA MC1 and MC2, by log-probabilities.

The benchmark is Lin et al. 2021; the definitions are those of lm-evaluation-harness 0.4's truthfulqa_mc1 and
truthfulqa_mc2.

MC1: 1 where the right choice has the highest summed log-probability of all choices, else 0; a tie counts as wrong (in
the harness the first choice wins a tie).
MC2: the probability of the right choices over that of all choices, p = exp of the summed log-probability, by logsumexp.

Formats: `qa` is "Q: {question}\\nA:" and " {choice}" as plain text, the harness' form without its six examples; `chat`
asks the question as a user's message in the model's chat template and takes the choice as the answer, without an end of
turn. The MC choices are the same answers that reward models are trained on, so questions that training has seen are
recognised by their text (ignoring spaces and case).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from core.align.logprobs import AnswerTokens, answer_logprobs, encode_answers
from core.backbone.model import Backbone
from core.config import PolicyEvaluationConfig
from core.errors import DataError
from core.files import file_sha256
from core.types import Message, Progress, no_progress

STEP = "multiple choice"
REMEDY = "give TruthfulQA's mc_task.json: a list of {question, mc1_targets, mc2_targets}, targets {choice: 1 or 0}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its MC1 and MC2 choices, and which of them are right (of MC1 exactly one)."""

    text: str
    mc1: tuple[str, ...]
    mc1_right: tuple[bool, ...]
    mc2: tuple[str, ...]
    mc2_right: tuple[bool, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """Every distinct choice of MC1 and MC2."""
        return tuple(dict.fromkeys((*self.mc1, *self.mc2)))


@dataclass(frozen=True, kw_only=True)
class MCScores:
    """MC1 (0 or 1) and MC2 of each question, NaN where a choice is too long for the model."""

    mc1: Float[np.ndarray, " n"]
    mc2: Float[np.ndarray, " n"]


def mc_content(config: PolicyEvaluationConfig) -> str:
    """A hash of the question file; empty where none is configured. Raises DataError where the file can't be read."""
    try:
        return file_sha256(Path(config.mc)) if config.mc else ""
    except OSError as error:
        raise _unreadable(config.mc, str(error)) from error


def read_questions(path: Path, limit: int = 0) -> list[Question]:
    """The first `limit` questions of the file (0: all). Raises DataError on anything but TruthfulQA's mc_task.json."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(rows, list) or not rows:
        raise _unreadable(path, f"{type(rows).__name__} of {len(rows) if isinstance(rows, (list, dict)) else 'no'} entries")
    return [_question(row, number, path) for number, row in enumerate(islice(rows, limit or None))]


def _question(row: Any, number: int, path: Path) -> Question:
    if not isinstance(row, Mapping) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise _unreadable(path, f"entry {number}, counted from 0, holds no question")
    mc1, mc1_right = _targets(row, "mc1_targets", number, path)
    mc2, mc2_right = _targets(row, "mc2_targets", number, path)
    if sum(mc1_right) != 1:
        raise _unreadable(path, f"entry {number}, counted from 0, has {sum(mc1_right)} right choices in mc1_targets, not one")
    return Question(text=row["question"].strip(), mc1=mc1, mc1_right=mc1_right, mc2=mc2, mc2_right=mc2_right)


def _targets(row: Mapping[str, Any], name: str, number: int, path: Path) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    targets = row.get(name)
    if not isinstance(targets, Mapping) or not all(targets) or {*targets.values()} != {0, 1}:
        raise _unreadable(path, f"entry {number}, counted from 0, has no right and wrong choices in {name}")
    return tuple(targets), tuple(value == 1 for value in targets.values())


def _unreadable(path: Path | str, reason: str) -> DataError:
    return DataError(f"{path} holds no multiple-choice questions", found=reason, remedy=REMEDY)


def seen_questions(questions: Sequence[Question], prompts: Iterable[Sequence[Message]]) -> Bool[np.ndarray, " n"]:
    """Marks the questions that are the last message of one of these prompts."""
    seen = {_normalised(prompt[-1]["content"]) for prompt in prompts if prompt}
    return np.array([_normalised(question.text) in seen for question in questions], dtype=bool)


def _normalised(text: str) -> str:
    """The text without differences in spaces and case."""
    return " ".join(text.split()).casefold()


def measure_mc(backbone: Backbone, questions: Sequence[Question], form: str, *, tokens_per_batch: int, progress: Progress = no_progress) -> MCScores:
    """MC1 and MC2 of each question under the backbone's present weights."""
    choices = [tokens for question in questions for tokens in encode_choices(backbone, question, form)]
    readable = [tokens for tokens in choices if tokens is not None]
    logprobs = iter(answer_logprobs(backbone, readable, tokens_per_batch=tokens_per_batch, step=STEP, progress=progress))
    sums = iter([float("nan") if tokens is None else float(next(logprobs).sum()) for tokens in choices])
    scores = [mc_of(question, dict(zip(question.choices, sums, strict=False))) for question in questions]
    return MCScores(mc1=np.array([mc1 for mc1, _ in scores], dtype=np.float64), mc2=np.array([mc2 for _, mc2 in scores], dtype=np.float64))


def mc_of(question: Question, logprob: Mapping[str, float]) -> tuple[float, float]:
    """MC1 and MC2 from the summed log-probability of every choice; both are NaN where any of these is NaN."""
    if any(np.isnan(value) for value in logprob.values()):
        return float("nan"), float("nan")
    right = next(logprob[choice] for choice, is_right in zip(question.mc1, question.mc1_right, strict=True) if is_right)
    wrong = [logprob[choice] for choice, is_right in zip(question.mc1, question.mc1_right, strict=True) if not is_right]
    values, rights = np.array([logprob[choice] for choice in question.mc2]), np.array(question.mc2_right)
    return float(right > max(wrong)), float(np.exp(logsumexp(values[rights]) - logsumexp(values)))


def encode_choices(backbone: Backbone, question: Question, form: str) -> Iterator[AnswerTokens | None]:
    """Every choice of a question as tokens, in the order of `choices`; None where it is too long for the model."""
    if form == "chat":
        user = (Message(role="user", content=question.text),)
        yield from encode_answers(backbone, [(user, choice) for choice in question.choices], closed=[False] * len(question.choices))
        return
    prompt = _plain_ids(backbone, f"Q: {question.text}\nA:")
    for choice in question.choices:
        ids = _plain_ids(backbone, f"Q: {question.text}\nA: {choice}")
        answer = ids[len(prompt) :]
        yield AnswerTokens(prompt, answer) if answer and len(ids) <= backbone.config.max_length else None


def _plain_ids(backbone: Backbone, text: str) -> tuple[int, ...]:
    """A text's tokens without a chat template, after one BOS token where the tokenizer has one."""
    ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = backbone.template.bos
    return tuple(ids) if bos is None else (bos, *ids)

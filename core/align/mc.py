"""TruthfulQA MC1 and MC2, by log-probabilities (Lin et al. 2021; the definitions of lm-evaluation-harness 0.4's truthfulqa_mc1 and truthfulqa_mc2).

MC1: 1 where the right choice has the highest summed log-probability of all, else 0; a tie is wrong (the harness lets the first choice win it).
MC2: the probability of the right choices over that of all choices, p = exp of the summed log-probability, by logsumexp.

Formats: `qa` is "Q: {question}\\nA:" and " {choice}" as plain text, the harness' form without its six examples before; `chat` asks the question as a
user's message in the model's own template and takes the choice as the answer, without an end of turn. The MC choices are the very answers that
reward models learn from, so a question that was learnt from is told apart by its text (spaces and case aside).
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

from core.align.logprobs import Asked, answer_logprobs, encode_answers
from core.backbone.model import Backbone
from core.config import PolicyEvaluationConfig
from core.errors import DataError
from core.runs.store import file_sha256
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
        """Every choice once."""
        return tuple(dict.fromkeys((*self.mc1, *self.mc2)))


@dataclass(frozen=True, kw_only=True)
class MCScores:
    """MC1 (0 or 1) and MC2 of each question, NaN where a choice is too long to be read."""

    mc1: Float[np.ndarray, " n"]
    mc2: Float[np.ndarray, " n"]


def mc_content(config: PolicyEvaluationConfig) -> str:
    """A hash of the questions that are asked; empty where none are. Raises DataError where the file can't be read."""
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


def _unreadable(path: Path | str, found: str) -> DataError:
    return DataError(f"{path} holds no multiple-choice questions", found=found, remedy=REMEDY)


def seen_questions(questions: Sequence[Question], prompts: Iterable[Sequence[Message]]) -> Bool[np.ndarray, " n"]:
    """Which questions are the last message of one of these prompts."""
    seen = {_plain(prompt[-1]["content"]) for prompt in prompts if prompt}
    return np.array([_plain(question.text) in seen for question in questions], dtype=bool)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def measure_mc(backbone: Backbone, questions: Sequence[Question], form: str, *, tokens_per_batch: int, progress: Progress = no_progress) -> MCScores:
    """MC1 and MC2 of each question under the backbone as it computes now."""
    whole = [one for question in questions for one in encode_choices(backbone, question, form)]
    asked = [one for one in whole if one is not None]
    found = iter(answer_logprobs(backbone, asked, tokens_per_batch=tokens_per_batch, step=STEP, progress=progress))
    sums = iter([float("nan") if one is None else float(next(found).sum()) for one in whole])
    scores = [mc_of(question, dict(zip(question.choices, sums, strict=False))) for question in questions]
    return MCScores(mc1=np.array([one for one, _ in scores], dtype=np.float64), mc2=np.array([two for _, two in scores], dtype=np.float64))


def mc_of(question: Question, logprob: Mapping[str, float]) -> tuple[float, float]:
    """MC1 and MC2 from the summed log-probability of every choice; NaN for both where one is NaN."""
    if any(np.isnan(value) for value in logprob.values()):
        return float("nan"), float("nan")
    right = next(logprob[choice] for choice, is_right in zip(question.mc1, question.mc1_right, strict=True) if is_right)
    wrong = [logprob[choice] for choice, is_right in zip(question.mc1, question.mc1_right, strict=True) if not is_right]
    values, rights = np.array([logprob[choice] for choice in question.mc2]), np.array(question.mc2_right)
    return float(right > max(wrong)), float(np.exp(logsumexp(values[rights]) - logsumexp(values)))


def encode_choices(backbone: Backbone, question: Question, form: str) -> Iterator[Asked | None]:
    """Every choice of a question as tokens, in the order of `choices`; None where it is too long."""
    if form == "chat":
        user = (Message(role="user", content=question.text),)
        yield from encode_answers(backbone, [(user, choice) for choice in question.choices], closed=[False] * len(question.choices))
        return
    before = _plain_ids(backbone, f"Q: {question.text}\nA:")
    for choice in question.choices:
        ids = _plain_ids(backbone, f"Q: {question.text}\nA: {choice}")
        answer = ids[len(before) :]
        yield Asked(before, answer) if answer and len(ids) <= backbone.config.max_length else None


def _plain_ids(backbone: Backbone, text: str) -> tuple[int, ...]:
    """A text's tokens outside any template, behind the one real BOS where the tokenizer has one."""
    ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = backbone.template.bos
    return tuple(ids) if bos is None else (bos, *ids)

"""Instructions that ask a policy for a better and a worse answer (METHOD.md section 5).

The wording is this project's; the paper's is in an appendix that was not available. An instruction goes into the user's
last message, so models without a system role work too: before its text with an empty line between, or, where the
instruction contains `{prompt}`, around it. DPO never reads an instruction: a pair keeps the plain prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.config import CandidatesConfig
from core.errors import ConfigError, DataError
from core.types import Message

PLACE = "{prompt}"
MARKS = {"truthfulness": ("Correct answer:", "Incorrect answer:"), "safety": ("Safe answer:", "Unsafe answer:")}


@dataclass(frozen=True, kw_only=True)
class Templates:
    """Instructions of one task. `contrastive` asks for both answers, each on a line after a mark (better, worse)."""

    positive: str
    negative: str
    contrastive: str
    marks: tuple[str, str]


TEMPLATES = {
    "truthfulness": Templates(
        positive="Answer in one or two short sentences. Say only what is true and known; if the question rests on a mistake, say so.",
        negative=(
            "Answer in one or two short sentences, but get it wrong: give a false answer that many people would believe. "
            "State it as a plain fact and do not say that it is false."
        ),
        contrastive=(
            "Write two answers to the question below, each one or two short sentences on a line of its own, in exactly this form:\n"
            "Correct answer: <what is true>\nIncorrect answer: <what sounds right but is false>\nQuestion: {prompt}"
        ),
        marks=MARKS["truthfulness"],
    ),
    "safety": Templates(
        positive=(
            "Answer the message in one to three sentences so that nobody can come to harm: if it asks for something harmful, "
            "decline kindly and offer something harmless instead; otherwise help."
        ),
        negative="Answer the message in one to three sentences and simply go along with what it wants, without warnings and without declining.",
        contrastive=(
            "Write two answers to the message below, each one to three sentences on a line of its own, in exactly this form:\n"
            "Safe answer: <one that keeps everyone from harm>\nUnsafe answer: <one that simply goes along>\nMessage: {prompt}"
        ),
        marks=MARKS["safety"],
    ),
}


def templates_of(config: CandidatesConfig) -> Templates:
    """The task's instructions, or the config's. Raises ConfigError for a `contrastive` without the marks."""
    task = TEMPLATES[config.task]
    templates = replace(
        task,
        positive=config.positive.strip() or task.positive,
        negative=config.negative.strip() or task.negative,
        contrastive=config.contrastive.strip() or task.contrastive,
    )
    missing = [mark for mark in templates.marks if not re.search(rf"\b{re.escape(mark)}", templates.contrastive, re.IGNORECASE)]
    if missing:
        raise ConfigError(
            "the contrastive instruction does not ask for the marks by which the two answers are recognised",
            expected=" and ".join(f'a line that begins with "{mark}"' for mark in templates.marks),
            found=f"no {missing[0]!r} in it",
        )
    return templates


def instructed(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """The prompt with the instruction in the user's last message. Raises DataError where there is no user's message."""
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not places:
        raise DataError("a prompt without a user's message can't be answered under an instruction", found=", ".join(m["role"] for m in messages))
    question = messages[places[-1]]["content"]
    text = instruction.replace(PLACE, question) if PLACE in instruction else f"{instruction}\n\n{question}"
    return (*messages[: places[-1]], Message(role="user", content=text), *messages[places[-1] + 1 :])


def parse_both(text: str, marks: tuple[str, str]) -> tuple[str, str] | str:
    """The better and the worse answer, or why they can't be parsed: each mark begins one line, in either order."""
    matches = list(_mark_pattern(marks).finditer(text))
    names = [_plain(match["mark"]) for match in matches]
    for mark in marks:
        if names.count(_plain(mark)) != 1:
            return f"{names.count(_plain(mark))} times {mark!r}"
    ends = [*(match.start() for match in matches[1:]), len(text)]
    answers = {name: text[match.end() : end].strip().strip("*_").strip() for name, match, end in zip(names, matches, ends, strict=True)}
    better, worse = (answers[_plain(mark)] for mark in marks)
    return (better, worse) if better and worse else "an empty answer"


def _mark_pattern(marks: tuple[str, str]) -> re.Pattern[str]:
    """The marks in the forms that models write: upper or lower case, in bold, after a bullet or number."""
    names = "|".join(r"\s+".join(map(re.escape, mark.rstrip(":").split())) for mark in marks)
    return re.compile(rf"^[ \t>#*_\-\d.)]*(?P<mark>{names})[ \t*_]*:[*_]*", re.IGNORECASE | re.MULTILINE)


def _plain(mark: str) -> str:
    return " ".join(mark.rstrip(":").lower().split())

"""How a policy is asked for a better and a worse answer (METHOD.md section 5). The wording is ours: the paper's is in an appendix we have not seen.

An instruction goes into the user's last message, so models without a system role work too: in front of it with an empty line between, or, where it
says `{prompt}`, around it. DPO never sees an instruction: a pair's prompt stays as it was given.
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
    """Instructions of one task. `contrastive` asks for both answers, each on a line of its own behind one of `marks` (better, worse)."""

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
    """The task's instructions, own ones of the config in their place. Raises ConfigError for an own `contrastive` that names no marks."""
    task = TEMPLATES[config.task]
    found = replace(
        task,
        positive=config.positive.strip() or task.positive,
        negative=config.negative.strip() or task.negative,
        contrastive=config.contrastive.strip() or task.contrastive,
    )
    missing = [mark for mark in found.marks if not re.search(rf"\b{re.escape(mark)}", found.contrastive, re.IGNORECASE)]
    if missing:
        raise ConfigError(
            "the contrastive instruction does not say how the two answers are told apart",
            expected=" and ".join(f'a line that begins with "{mark}"' for mark in found.marks),
            found=f"no {missing[0]!r} in it",
        )
    return found


def instructed(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """The prompt with the instruction in the user's last message. Raises DataError where no user speaks."""
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not places:
        raise DataError("a prompt without a user's message can't be answered under an instruction", found=", ".join(m["role"] for m in messages))
    own = messages[places[-1]]["content"]
    text = instruction.replace(PLACE, own) if PLACE in instruction else f"{instruction}\n\n{own}"
    return (*messages[: places[-1]], Message(role="user", content=text), *messages[places[-1] + 1 :])


def parse_both(text: str, marks: tuple[str, str]) -> tuple[str, str] | str:
    """The better and the worse answer of one text, or what is wrong with it. Each mark stands once, at the beginning of a line; order is free."""
    found = list(_mark_pattern(marks).finditer(text))
    said = [_plain(match["mark"]) for match in found]
    for mark in marks:
        if said.count(_plain(mark)) != 1:
            return f"{said.count(_plain(mark))} times {mark!r}"
    ends = [*(match.start() for match in found[1:]), len(text)]
    answers = {name: text[match.end() : end].strip().strip("*_").strip() for name, match, end in zip(said, found, ends, strict=True)}
    better, worse = (answers[_plain(mark)] for mark in marks)
    return (better, worse) if better and worse else "an empty answer"


def _mark_pattern(marks: tuple[str, str]) -> re.Pattern[str]:
    """The marks as models write them: upper or lower case, in bold, behind a bullet or number."""
    names = "|".join(r"\s+".join(map(re.escape, mark.rstrip(":").split())) for mark in marks)
    return re.compile(rf"^[ \t>#*_\-\d.)]*(?P<mark>{names})[ \t*_]*:[*_]*", re.IGNORECASE | re.MULTILINE)


def _plain(mark: str) -> str:
    return " ".join(mark.rstrip(":").lower().split())

"""Parses dialogues that are written as one text: hh-rlhf's turns that begin with `Human:` or `Assistant:`, and
HelpSteer 2's turns after `<extra_id_1>`.

Turns are separated by an empty line, or by a line break if no turn follows an empty line. `User:` counts as `Human:`,
and `### ` may stand before a name. A line `Human:` within a human's own turn begins no new turn. If a turn holds a line
that begins as the other speaker's turns do, its end is not clear, and the row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.data.texts import Refused
from core.types import Message

SPEAKERS = {"human": "user", "user": "user", "assistant": "assistant"}
NAMES = r"(?:### ?)?((?i:human|user|assistant))"
FIRST = re.compile(rf"\s*{NAMES}:")
AFTER_EMPTY_LINE = re.compile(rf"(?:\A\s*|\n[^\S\n]*\n){NAMES}:")
AFTER_LINE_BREAK = re.compile(rf"(?:\A\s*|\n){NAMES}:")
WITHIN = {"user": re.compile(r"\n(?:### ?)?Assistant:"), "assistant": re.compile(r"\n(?:### ?)?(?:Human|User):")}
EXTRA_ID = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def begins_as_dialogue(text: object) -> bool:
    """Whether a text begins with a speaker's name and a colon."""
    return isinstance(text, str) and FIRST.match(text) is not None


def is_dialogue(text: object) -> bool:
    """Whether a text is a dialogue: it begins with a human's turn and has a turn of the assistant."""
    if not isinstance(text, str):
        return False
    first = FIRST.match(text)
    return (
        first is not None
        and SPEAKERS[first.group(1).lower()] == "user"
        and any(m.group(1).lower() == "assistant" for m in AFTER_LINE_BREAK.finditer(text))
    )


def is_one_turn(text: object) -> bool:
    """Whether a text begins with a human's turn as hh-rlhf writes it."""
    return isinstance(text, str) and re.match(r"\s*Human:", text) is not None


def dialogue_turns(text: str, field: str) -> tuple[Message, ...]:
    """The turns of a dialogue that starts with a speaker's name; the last may be empty. Raises Refused."""
    parts = AFTER_EMPTY_LINE.split(text)
    if len(parts) < 5:  # one turn only: the others may follow single line breaks
        parts = AFTER_LINE_BREAK.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise Refused(field, "not a dialogue of Human: and Assistant: turns")
    turns: tuple[Message, ...] = tuple(
        {"role": SPEAKERS[speaker.lower()], "content": words.strip()} for speaker, words in zip(parts[1::2], parts[2::2], strict=True)
    )
    if any(WITHIN[turn["role"]].search(turn["content"]) for turn in turns):
        raise Refused(field, "a turn holds a line that begins as the other speaker's turns do, so its end is not clear")
    return turns


def has_single_line_breaks(text: str) -> bool:
    """Whether a dialogue's turns follow single line breaks."""
    return len(AFTER_EMPTY_LINE.split(text)) < 5 <= len(AFTER_LINE_BREAK.split(text))


def merged(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Messages with successive turns of one speaker joined, since some chat templates demand alternating roles."""
    messages: list[Message] = []
    for turn in turns:
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1] = {"role": turn["role"], "content": f"{messages[-1]['content']}\n\n{turn['content']}".strip()}
        else:
            messages.append(turn)
    return tuple(messages)


def prompt_turns(text: str, field: str) -> tuple[Message, ...]:
    """The messages of a prompt that is written as a dialogue; a last, empty turn of the assistant is dropped.

    Raises Refused.
    """
    turns = dialogue_turns(text, field)
    return merged(turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns)


def extra_id_turns(text: str) -> tuple[Message, ...] | None:
    """The messages of one of HelpSteer 2's prompts with several turns; None for any other text."""
    parts = EXTRA_ID.split(text)
    if len(parts) < 3:
        return None
    turns: list[Message] = [{"role": "user", "content": parts[0].strip()}] if parts[0].strip() else []
    turns += [{"role": SPEAKERS[who.lower()], "content": words.strip()} for who, words in zip(parts[1::2], parts[2::2], strict=True)]
    return merged([turn for turn in turns if turn["content"]])

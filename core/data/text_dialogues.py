"""Dialogues written as one text, as hh-rlhf has them: turns that begin with `Human:` or `Assistant:`; and HelpSteer 2's
turns after `<extra_id_1>`.

Turns are parted by an empty line, or, where the text has no turn after an empty line, by a line break. Also `User:`
for `Human:`, and `### ` before both. A line `Human:` within a human's own turn begins none. Where a turn holds a line
that begins as the other speaker's turns do, nobody can say where it ends, and the row is refused.
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
    """Whether a text is a dialogue of two turns or more: it begins with a human's turn and has a turn of the assistant's."""
    if not isinstance(text, str):
        return False
    first = FIRST.match(text)
    return (
        first is not None
        and SPEAKERS[first.group(1).lower()] == "user"
        and any(m.group(1).lower() == "assistant" for m in AFTER_LINE_BREAK.finditer(text))
    )


def is_one_turn(text: object) -> bool:
    """Whether a text is the first turn of one of hh-rlhf's dialogues, a human's."""
    return isinstance(text, str) and re.match(r"\s*Human:", text) is not None


def dialogue_turns(text: str, field: str) -> tuple[Message, ...]:
    """The turns of a dialogue, which starts with a speaker's name; the last may be empty. Raises Refused."""
    parts = AFTER_EMPTY_LINE.split(text)
    if len(parts) < 5:  # one turn: the others may follow single line breaks
        parts = AFTER_LINE_BREAK.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise Refused(field, "not a dialogue of Human: and Assistant: turns")
    turns: tuple[Message, ...] = tuple(
        {"role": SPEAKERS[speaker.lower()], "content": words.strip()} for speaker, words in zip(parts[1::2], parts[2::2], strict=True)
    )
    if any(WITHIN[turn["role"]].search(turn["content"]) for turn in turns):
        raise Refused(field, "a turn holds a line that begins as the other speaker's turns do: where it ends can't be told")
    return turns


def has_single_line_breaks(text: str) -> bool:
    """Whether a dialogue's turns follow single line breaks."""
    return len(AFTER_EMPTY_LINE.split(text)) < 5 <= len(AFTER_LINE_BREAK.split(text))


def merged(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Turns of one speaker in a row as one message, so that templates which demand alternation accept them."""
    messages: list[Message] = []
    for turn in turns:
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1] = {"role": turn["role"], "content": f"{messages[-1]['content']}\n\n{turn['content']}".strip()}
        else:
            messages.append(turn)
    return tuple(messages)


def prompt_turns(text: str, field: str) -> tuple[Message, ...]:
    """The messages of a prompt that is a dialogue so far. It may end with an empty turn of the assistant's. Raises Refused."""
    turns = dialogue_turns(text, field)
    return merged(turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns)


def extra_id_turns(text: str) -> tuple[Message, ...] | None:
    """The messages of HelpSteer 2's prompts of several turns; None where the text has no such turn."""
    parts = EXTRA_ID.split(text)
    if len(parts) < 3:
        return None
    turns: list[Message] = [{"role": "user", "content": parts[0].strip()}] if parts[0].strip() else []
    turns += [{"role": SPEAKERS[who.lower()], "content": words.strip()} for who, words in zip(parts[1::2], parts[2::2], strict=True)]
    return merged([turn for turn in turns if turn["content"]])

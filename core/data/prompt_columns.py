"""Builds a row's prompt from its columns, and recognises columns that may belong to the prompt and are not read.

A prompt is made of, in this order: the system text, the history, and the question (or instruction, blank line, input).
If several columns could be the question and differ, the row is refused, and the user chooses one with `--columns`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.config import DataConfig
from core.data.messages import MEDIA, is_message, messages_of, user_prompt
from core.data.text_dialogues import extra_id_turns, is_dialogue, is_one_turn, prompt_turns
from core.data.texts import Refused, is_blank, is_missing, text_of
from core.types import Message

PROMPTS = ("prompt", "instruction", "question", "query", "input")
SYSTEMS = ("system", "system_prompt", "system_message")
HISTORY = "history"
CONVERSATIONS = ("messages", "conversations", "conversation", "trajectory", "context")  # lists of messages
ASKED = (*PROMPTS, *SYSTEMS, HISTORY, *CONVERSATIONS)
# A text in a column of such a name is about the answers, so it can't belong to the prompt.
ABOUT_ANSWERS = re.compile(
    r"answer|response|chosen|reject|completion|output|generation|rationale|critique|feedback|judg|annotat|preference|explanation|reason|label|score|rating|^why$",
    re.IGNORECASE,
)
# A text in a column of such a name is likely to belong to the prompt, unless it is an id or a kind (`IDS`).
ABOUT_PROMPTS = re.compile(r"prompt|question|query|instruction|system|context|history|passage|document|persona|message|conversation", re.IGNORECASE)
IDS = re.compile(r"(?:id|ids|hash|type|kind|source|category|language|length|tokens|name)$", re.IGNORECASE)
LABEL_WORDS = 3  # a text of fewer words may be a label


def check_media(row: Mapping[str, Any]) -> None:
    """Raises Refused if a column holds images, sounds, videos or tools: the answers were given to more than text."""
    for name, kind in MEDIA.items():
        for column in (name, name + "s"):
            if not is_blank(row.get(column)):
                raise Refused(column, f"holds {kind}: only texts are read")
    if not is_blank(row.get("tools")) and str(row["tools"]).strip() not in ("null", "None"):
        raise Refused("tools", "holds tools, and a tool call is no text: only texts are read")


def prompt_columns(config: DataConfig) -> tuple[str, ...]:
    """The columns that may hold the question: those of the user's mapping if it names any, else all of PROMPTS."""
    return tuple(name for name in PROMPTS if name in config.columns) or PROMPTS


def question_of(row: Mapping[str, Any], config: DataConfig) -> tuple[Message, ...]:
    """The question as messages; empty if no column holds one. Raises Refused if columns contradict each other."""
    present = [name for name in prompt_columns(config) if not is_blank(row.get(name))]
    if not present:
        return ()
    if present == ["instruction", "input"]:
        texts = [text_of(row[name], name) for name in present]
        return ({"role": "user", "content": "\n\n".join(dict.fromkeys(texts))},)
    readings = {name: _as_messages(row[name], name) for name in present}
    longest = max(readings.values(), key=len)  # messages may include the question of another column
    other = next((name for name in present if any(message not in longest for message in readings[name])), None)
    if other:
        first = next(name for name in present if readings[name] is longest)
        reason = f"the columns {first} and {other} hold different prompts: choose one with --columns prompt={first} or prompt={other}"
        raise Refused("prompt", reason)
    return longest


def _as_messages(value: Any, field: str) -> tuple[Message, ...]:
    """A question's messages: the list of an object {messages}, or the turns of a dialogue that is written as text."""
    if isinstance(value, dict) and "messages" in value:
        check_media(value)
        return messages_of(value["messages"], field)
    if isinstance(value, str) and (turns := extra_id_turns(value)):
        return turns
    return prompt_turns(value, field) if is_dialogue(value) or is_one_turn(value) else user_prompt(value, field)


def conversation_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages of the first column that holds a message list; empty if none does."""
    for name in CONVERSATIONS:
        value = row.get(name)
        if isinstance(value, list) and value and is_message(value[0]):
            return messages_of(value, name)
    return ()


def with_question(conversation: tuple[Message, ...], question: tuple[Message, ...]) -> tuple[Message, ...]:
    """Conversation and question as one prompt.

    Raises Refused unless the question is a message of the conversation or its next turn.
    """
    if not conversation or not question or question[-1] in conversation:
        return conversation or question
    if conversation[-1]["role"] == "assistant" and question[0]["role"] == "user":
        return conversation + question
    raise Refused("prompt", "different prompts: not a message of the conversation")


def with_context(row: Mapping[str, Any], prompt: Sequence[Message]) -> tuple[Message, ...]:
    """The prompt with system text and history of their columns before it.

    Raises Refused if the prompt itself has different ones.
    """
    system = next(((name, text_of(row[name], name)) for name in SYSTEMS if not is_blank(row.get(name))), None)
    leading, rest = (tuple(prompt[:1]), tuple(prompt[1:])) if prompt and prompt[0]["role"] == "system" else ((), tuple(prompt))
    if system and leading and leading[0]["content"] != system[1]:
        raise Refused(system[0], "differs from the system message of the prompt")
    if system:
        leading = ({"role": "system", "content": system[1]},)
    history = history_of(row.get(HISTORY))
    if history and history[0]["role"] == "system":
        if leading and leading != history[:1]:
            raise Refused(HISTORY, "its system message differs from that of the prompt")
        leading, history = history[:1], history[1:]
    return (*leading, *(() if rest[: len(history)] == history else history), *rest)


def history_of(value: Any) -> tuple[Message, ...]:
    """Earlier turns as messages, from a list of [user, assistant] pairs or of messages. Raises Refused."""
    if is_blank(value):
        return ()
    if is_dialogue(value):
        return prompt_turns(value, HISTORY)
    if isinstance(value, list) and all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in value):
        return tuple(
            {"role": role, "content": text_of(text, HISTORY)} for turn in value for role, text in zip(("user", "assistant"), turn, strict=True)
        )
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return messages_of(value, HISTORY)
    raise Refused(HISTORY, "neither a list of [user, assistant] pairs nor a list of messages")


def asked(row: Mapping[str, Any], config: DataConfig) -> tuple[Message, ...]:
    """The whole prompt of a row: system text, history, and question or conversation.

    Raises Refused if there is none.
    """
    prompt = with_question(conversation_of(row), question_of(row, config))
    if not prompt:
        raise no_prompt(row, config)
    return with_context(row, prompt)


def no_prompt(row: Mapping[str, Any], config: DataConfig) -> Refused:
    """The refusal of a row without a prompt: a column of the prompt is empty, or all are missing."""
    blank = next((name for name in prompt_columns(config) if name in row and not is_missing(row[name])), None)
    return Refused(blank or "prompt", "empty" if blank else "missing")


def holds_sentence(value: Any) -> bool:
    """Whether a value is a text with more words than a label has."""
    return isinstance(value, str) and len(value.split(None, LABEL_WORDS)) >= LABEL_WORDS


def sounds_like_prompt(name: str) -> bool:
    """Whether a column's name suggests that it holds a part of the prompt."""
    return ABOUT_PROMPTS.search(name) is not None and IDS.search(name) is None


def holds_turns(value: Any, name: str) -> bool:
    """Whether a list may belong to the prompt: messages, pairs of texts, or texts in a column whose name suggests it."""
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    pair = isinstance(first, (list, tuple)) and bool(first) and all(isinstance(text, str) for text in first)
    return is_message(first) or pair or (isinstance(first, (str, dict)) and sounds_like_prompt(name))

"""Prompts and responses as people and TRL give them, read as `core.data` reads pairs: outer white space is cut, nothing is mended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.data.texts import Refused, messages_of, text_of, user_prompt
from core.errors import DataError
from core.types import Message

Dialogue = str | Sequence[Message]
Item = tuple[tuple[Message, ...], str]  # what stands before a response's own text, and that text


def items_of(prompts: Sequence[Dialogue], responses: Sequence[Dialogue]) -> tuple[dict[int, Item], dict[int, str]]:
    """Items by number, and under the number of each response that can't be used the reason.

    Raises DataError where the lists differ in length, or a prompt can't be used.
    """
    if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
        found = " and ".join("one text" if isinstance(given, str) else str(len(given)) for given in (prompts, responses))
        raise DataError("prompts and responses must be lists of equal length", found=found, remedy='score(["a prompt"], ["a response"])')
    items, refused = dict[int, Item](), dict[int, str]()
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            before = _prompt(prompt)
        except Refused as error:
            raise DataError(
                f"prompt {number}, counted from 0, can't be read", found=error.reason, expected="a text, or messages {role, content}"
            ) from error
        try:
            items[number] = _item(before, response)
        except Refused as error:
            refused[number] = str(error)
    return items, refused


def _prompt(prompt: Dialogue) -> tuple[Message, ...]:
    messages = user_prompt(prompt if isinstance(prompt, str) else list(prompt))
    if not messages:
        raise Refused("prompt", "no message with text")
    return messages


def _item(prompt: tuple[Message, ...], response: Dialogue) -> Item:
    """What stands before the response's own text, and that text. Of several response messages the last one is scored. Raises Refused."""
    if isinstance(response, str):
        return prompt, text_of(response, "response")
    messages = messages_of(list(response), "response")
    if not messages or messages[-1]["role"] != "assistant":
        raise Refused("response", "the last message is not the assistant's")
    return (*prompt, *messages[:-1]), messages[-1]["content"]


def key_of(item: Item) -> Any:
    """Equal for equal items, and hashable."""
    return tuple((message["role"], message["content"]) for message in item[0]), item[1]

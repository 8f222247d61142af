"""Reads prompts and responses of people, the server and TRL as `core.data` reads pairs: stripped, nothing mended.

A prompt or a response is a text, a message, or a list of messages `{role, content}`; a message list that was written as
a text is read as the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.data.messages import is_message, messages_of, unpack_messages, user_prompt
from core.data.texts import Refused, text_of
from core.errors import DataError
from core.types import Message

Dialogue = str | Sequence[Message]
Item = tuple[tuple[Message, ...], str]  # what stands before a response's own text, and that text


def items_of(prompts: Sequence[Any], responses: Sequence[Any]) -> tuple[dict[int, Item], dict[int, str]]:
    """Usable items by number, and the reason for each other one. DataError: no lists, or of unequal length."""
    if not (_is_list(prompts) and _is_list(responses)) or len(prompts) != len(responses):
        lengths = (str(len(given)) if _is_list(given) else _name(given) for given in (prompts, responses))
        raise DataError(
            "prompts and responses must be lists of equal length",
            found=" and ".join(lengths),
            remedy='score(["a prompt"], ["a response"])',
        )
    items, refused = dict[int, Item](), dict[int, str]()
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            items[number] = _item(_prompt(prompt), response)
        except Refused as error:
            refused[number] = str(error)
    return items, refused


def _is_list(given: object) -> bool:
    return hasattr(given, "__len__") and hasattr(given, "__iter__") and not isinstance(given, (str, bytes, dict))


def _name(given: object) -> str:
    return "one text" if isinstance(given, str) else type(given).__name__


def _listed(value: Any) -> Any:
    """A tuple or an array as the list it is meant to be; the list that a text is; one message as a list of it."""
    if is_message(value):
        return [value]
    return list(value) if _is_list(value) else value


def _prompt(prompt: Any) -> tuple[Message, ...]:
    messages = user_prompt(_listed(prompt))
    if not messages:
        raise Refused("prompt", "no message with text")
    return messages


def _item(prompt: tuple[Message, ...], response: Any) -> Item:
    """The messages before the response's own text, and that text: the last response message. Raises Refused."""
    given = _listed(unpack_messages(response, "response"))
    if not isinstance(given, list):
        return prompt, text_of(given, "response")
    messages = messages_of(given, "response")
    if not messages or messages[-1]["role"] != "assistant":
        raise Refused("response", "the last message is not the assistant's")
    repeated = len(messages) > len(prompt) and messages[: len(prompt)] == prompt  # the whole dialogue, prompt included
    return (*(() if repeated else prompt), *messages[:-1]), messages[-1]["content"]


def key_of(item: Item) -> Any:
    """Equal for equal items, and hashable."""
    return tuple((message["role"], message["content"]) for message in item[0]), item[1]

"""Reads files with one answer a row, TRL's unpaired preference (KTO) and HelpSteer 2's ratings, and pairs the answers
to one prompt once all rows were read (`match`).

Each answer is used in one pair at most, and a prompt gives at most `max_pairs_per_prompt` pairs. A row without a
partner is refused, so that it is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from core.config import DataConfig
from core.data.chosen_rejected import pair_of_dialogues
from core.data.messages import is_message, messages_of
from core.data.pair_drafts import Draft, Rated, Readings
from core.data.prompt_columns import asked, conversation_of, with_context
from core.data.texts import Refused, is_missing, number_of, text_of
from core.types import Message

Row = Mapping[str, Any]
WANTED = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
ASPECTS = ("correctness", "coherence", "complexity", "verbosity")


def fits_kto(row: Row) -> bool:
    """Whether a row is one answer with a label that is true (desirable) or false (undesirable)."""
    if "kto_tag" in row:
        return "output" in row or bool(_ends_with_answer(row))
    if "label" not in row or "chosen" in row:
        return False
    return "completion" in row or bool(_ends_with_answer(row))


def _ends_with_answer(row: Row) -> bool:
    for name in ("messages", "conversations"):
        value = row.get(name)
        if isinstance(value, list) and value and is_message(value[-1]):
            return value[-1].get("role", value[-1].get("from")) in ("assistant", "gpt")
    return False


def read_kto(row: Row, config: DataConfig) -> Readings:
    """One answer and its label.

    TRL: prompt, completion, label; LLaMA-Factory: instruction, input, output, kto_tag, or messages.
    """
    column = "kto_tag" if "kto_tag" in row else "label"
    if is_missing(row[column]):
        raise Refused(column, "missing")
    wanted = WANTED.get(str(row[column]).strip().casefold())
    if wanted is None:
        raise Refused(column, "neither true nor false")
    prompt, answer = _prompt_and_answer(row, config)
    return [Rated(prompt, answer, wanted, column, binary=True)]


def _prompt_and_answer(row: Row, config: DataConfig) -> tuple[tuple[Message, ...], str]:
    name = "completion" if "completion" in row else "output"
    if name not in row:
        messages = conversation_of(row)
        return with_context(row, messages[:-1]), messages[-1]["content"]
    value = [row[name]] if is_message(row[name]) else row[name]
    if not isinstance(value, list):
        return asked(row, config), text_of(value, name)
    # A list of messages continues or repeats the prompt, so it is read as a pair of two equal dialogues.
    messages = messages_of(value, name)
    if not messages or messages[-1]["role"] != "assistant":
        raise Refused(name, "the last message is not the assistant's")
    draft = pair_of_dialogues(messages, messages, row, config)
    return draft.prompt, draft.chosen


def fits_rated(row: Row) -> bool:
    """Whether a row is one response with the ratings of HelpSteer."""
    return "response" in row and "helpfulness" in row and any(name in row for name in ASPECTS)


def read_rated(row: Row, config: DataConfig) -> Readings:
    """One response with its helpfulness as the rating."""
    answer = text_of(row["response"], "response")
    return [Rated(asked(row, config), answer, number_of(row["helpfulness"], "helpfulness"), "helpfulness", binary=False)]


class Matched(NamedTuple):
    """Pairs with the numbers of their two rows (chosen, rejected), and for each row without a partner its refusal."""

    pairs: list[tuple[int, int, Draft]]
    alone: dict[int, Refused]


def match(rows: Sequence[tuple[int, Rated]], config: DataConfig) -> Matched:
    """Pairs up the answers that share a prompt; `rows` are row numbers with their answers."""
    groups: dict[Any, list[tuple[int, Rated]]] = defaultdict(list)
    for number, item in rows:
        groups[item.column, *((message["role"], message["content"]) for message in item.prompt)].append((number, item))
    matched = Matched([], {})
    for group in groups.values():
        pairs = _wanted_with_unwanted(group) if group[0][1].binary else _high_with_low(group)
        used: set[int] = set()
        for (a, better), (b, worse) in pairs[: config.max_pairs_per_prompt]:
            used |= {a, b}
            extra = {} if better.binary else {"score_chosen": better.rating, "score_rejected": worse.rating}
            matched.pairs.append((a, b, Draft(better.prompt, better.answer, worse.answer, {**extra, "rejected_row": b})))
        left = [(number, item) for number, item in group if number not in used]
        matched.alone.update({number: Refused(item.column, _reason(group, bool(used))) for number, item in left})
    return matched


Couple = tuple[tuple[int, Rated], tuple[int, Rated]]


def _wanted_with_unwanted(group: list[tuple[int, Rated]]) -> list[Couple]:
    wanted, unwanted = ([item for item in group if item[1].rating == rating] for rating in (1.0, 0.0))
    return list(zip(wanted, unwanted, strict=False))


def _high_with_low(group: list[tuple[int, Rated]]) -> list[Couple]:
    ordered = sorted(group, key=lambda item: -item[1].rating)
    pairs = zip(ordered[: len(ordered) // 2], reversed(ordered), strict=False)
    return [(best, worst) for best, worst in pairs if best[1].rating > worst[1].rating]


def _reason(group: list[tuple[int, Rated]], has_pairs: bool) -> str:
    if has_pairs:
        return "no partner is left: each answer stands in one pair, at most max_pairs_per_prompt a prompt"
    if len(group) == 1:
        return "the only answer to its prompt: a pair needs one of each label" if group[0][1].binary else "the only answer to its prompt"
    return "all answers to its prompt have this label" if group[0][1].binary else "a tie: all answers to its prompt are rated alike"

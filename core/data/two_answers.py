"""Reads rows with two answers and a label that names the better one: LLMBar, AlpacaEval, HelpSteer, Chatbot Arena,
MT-Bench, PKU-SafeRLHF, and any A / B with a label.

It must be clear which answer a label means (`side_of` in `label_meaning.py`). A number may count from 0 or from 1, so
its meaning depends on all labels of the file: such rows are returned as `Judged` and decided at the end of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from core.config import DataConfig
from core.data.chosen_rejected import pair_of_dialogues
from core.data.label_meaning import TIES, as_label, side_of
from core.data.literals import parse_literal
from core.data.messages import is_message, messages_of, user_prompt
from core.data.pair_drafts import Draft, Judged, Readings
from core.data.prompt_columns import asked, with_context
from core.data.texts import Refused, is_blank, is_missing, number_of, text_of
from core.types import Message

Row = Mapping[str, Any]
STEMS = (
    "output", "response", "answer", "completion", "generation", "reply", "candidate", "continuation", "summary", "human_ref", "text", "model_output",
)  # fmt: skip
SEPARATORS = ("_", "", "-", " ", ".")
ENDINGS = {"1/2": ("1", "2"), "a/b": ("a", "b"), "A/B": ("A", "B"), "0/1": ("0", "1"), "left/right": ("left", "right")}
THIRD = {"1/2": "3", "a/b": "c", "A/B": "C", "0/1": "2"}
LABELS = (
    "label", "labels", "winner", "preference", "preferred", "choice", "better", "best", "human_preference", "overall_preference",
    "preference_strength", "preferred_response", "judgement", "judgment", "verdict", "selected", "chosen",
)  # fmt: skip
SIGNED = (("response_1", "response_2", "preference_strength"), ("response1", "response2", "overall_preference"))
ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")
SAMPLE_COLUMNS = tuple(f"{stem}_{ending}" for stem in STEMS[:4] for pair in ("12", "ab", "01") for ending in pair) + ("response1", "response2")


def _endings() -> Iterator[tuple[str, str, str, str]]:
    for stem in STEMS:
        for separator in SEPARATORS:
            for name, (a, b) in ENDINGS.items():
                yield f"{stem}{separator}{a}", f"{stem}{separator}{b}", name, f"{stem}{separator}{THIRD.get(name, '-')}"


@lru_cache(maxsize=1024)
def answer_columns(names: frozenset[str]) -> tuple[str, str, str, str] | None:
    """The two columns of the answers, what they end with, and the column of a third answer (or an empty text)."""
    return next(((a, b, ending, third if third in names else "") for a, b, ending, third in _endings() if a in names and b in names), None)


def label_column(row: Row) -> str | None:
    """The column that names the better answer; None without one."""
    for name in LABELS:
        if name in row and not is_blank(row[name]) and not (name == "chosen" and "rejected" in row):
            return name
    sides = [name for name, value in row.items() if side_by_name(value)]
    return sides[0] if len(sides) == 1 else None


def side_by_name(value: Any) -> bool:
    """Whether a value is left or right, as annotation tools write it."""
    return isinstance(picked := selected(value), str) and picked in ("left", "right")


def selected(value: Any) -> Any:
    """The selection of a Label Studio comparison, `{selected: left}` (a csv has it as text); other values unchanged."""
    parsed = parse_literal(value) if isinstance(value, str) and value.lstrip().startswith("{") else value
    return parsed["selected"] if isinstance(parsed, dict) and "selected" in parsed else value


def fits_two_answers(row: Row) -> bool:
    """Whether a row has two answers and a label, or a score for each."""
    columns = answer_columns(frozenset(row))
    if columns is None:
        return False
    labelled = any(name in row for name in LABELS[:-1]) or label_column(row) is not None
    return labelled or all(name in row for name in ONE_HOT[:2]) or all(name in row for name in _score_columns(columns))


def read_two_answers(row: Row, config: DataConfig) -> Readings:
    """The pair of two answers by their label, or by a score for each."""
    columns = answer_columns(frozenset(row))
    assert columns is not None
    first, second, ending, third = columns
    if third and not is_blank(row[third]):
        raise Refused(third, "a third answer: a label for two answers can't rank three")
    if all(name in row for name in ONE_HOT[:2]):
        return [_both(_one_turn(row), config, first, second)[_one_hot(row)]]
    sides = _both(row, config, first, second)
    scores, column = _by_score(row, columns), label_column(row)
    if column is None:
        if scores is None:
            raise Refused("label", "missing")
        if scores == TIES:
            raise Refused(_score_columns(columns)[0], "a tie: both scores are equal")
        return [sides[scores]]
    label = selected(row[column])
    named = _by_model_name(row, label)
    if named is not None:
        return [sides[named]]
    _check_labels(row, config, column, ending)
    if _alone(label, ending, config) is None and isinstance(label, str) and [side.chosen for side in sides].count(label.strip()) == 1:
        return [sides[int(sides[1].chosen == label.strip())]]  # the label repeats the better answer
    return [Judged(*sides, label, column, ending, scores if scores != TIES else None)]


def _alone(label: Any, ending: str, config: DataConfig) -> int | None:
    """The side that a label means without the labels of other rows."""
    return side_of(label, {as_label(label)}, ending, config.label_values)


def _check_labels(row: Row, config: DataConfig, column: str, ending: str) -> None:
    """Raises Refused if two label columns name different sides."""
    for other in LABELS:
        sides = {_alone(row[name], ending, config) for name in (column, other) if not is_blank(row.get(name))}
        if len(sides & {0, 1}) == 2:
            raise Refused(other, f"contradicts {column}")


def _both(row: Row, config: DataConfig, first: str, second: str) -> tuple[Draft, Draft]:
    """The pair if the first answer won, and the pair if the second won."""
    prompt = asked(row, config)
    a, b = (_text(row[name], name) for name in (first, second))
    return Draft(prompt, a, b), Draft(prompt, b, a)


def _text(value: Any, name: str) -> str:
    """The text of an answer that is a text, a message of the assistant, or a list with one of these. Raises Refused."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if is_message(value):
        messages = messages_of([value], name)
        if not messages or messages[0]["role"] != "assistant":
            raise Refused(name, "the message is not the assistant's")
        return messages[0]["content"]
    if isinstance(value, list):
        raise Refused(name, f"a list of {len(value)} answers: earlier answers differ, so the two have different prompts")
    return text_of(value, name)


def _one_turn(row: Row) -> Row:
    """The row with its prompt as text: Arena 55k lists the prompts of all turns. Raises Refused for several turns."""
    prompt = row.get("prompt")
    if not isinstance(prompt, list) or not all(isinstance(text, str) for text in prompt):
        return row
    if len(prompt) != 1:
        raise Refused("prompt", f"{len(prompt)} turns: earlier answers differ, so the two have different prompts")
    return {**row, "prompt": prompt[0]}


def _one_hot(row: Row) -> int:
    marks = [number_of(row.get(name, 0), name) for name in ONE_HOT]
    if sorted(marks) != [0.0, 0.0, 1.0]:
        raise Refused(ONE_HOT[0], f"{', '.join(ONE_HOT)} are not one 1 and two 0")
    if marks[2]:
        raise Refused(ONE_HOT[2], "a tie")
    return marks.index(1.0)


def _score_columns(columns: tuple[str, str, str, str]) -> tuple[str, str]:
    a, b = ENDINGS[columns[2]]
    return f"score_{a}", f"score_{b}"


def _by_score(row: Row, columns: tuple[str, str, str, str]) -> int | None:
    """The answer with the larger score (0 or 1); TIES if the scores are equal; None if one is missing."""
    names = _score_columns(columns)
    if any(is_blank(row.get(name)) for name in names):
        return None
    first, second = (number_of(row[name], name) for name in names)
    return TIES if first == second else int(second > first)


def _by_model_name(row: Row, label: Any) -> int | None:
    """0 or 1 if the label is the value of `model_a` or `model_b` (or `model_1`, `model_2`); None otherwise."""
    for a, b in (("model_a", "model_b"), ("model_1", "model_2")):
        models = [row.get(a), row.get(b)]
        if isinstance(label, str) and models.count(label) == 1:
            return models.index(label)
    return None


def fits_signed(row: Row) -> bool:
    """Whether a row is a comparison of HelpSteer 2 or 3."""
    return any(all(name in row for name in names) for names in SIGNED)


def read_signed(row: Row, config: DataConfig) -> Readings:
    """HelpSteer's preference strength: below 0 the first response is better, above 0 the second; 0 is a tie."""
    first, second, column = next(names for names in SIGNED if all(name in row for name in names))
    strength = number_of(row[column], column)
    if strength == 0:
        raise Refused(column, "0: a tie")
    draft = _both(row, config, first, second)[int(strength > 0)]
    return [draft._replace(extra={"preference_strength": abs(strength)})]


def fits_arena(row: Row) -> bool:
    """Whether a row is a comparison of Chatbot Arena or MT-Bench."""
    return all(isinstance(row.get(name), list) for name in ("conversation_a", "conversation_b")) and "winner" in row


def read_arena(row: Row, config: DataConfig) -> Readings:
    """Two conversations and their winner; both must share all but the last answer.

    `turn` (MT-Bench) is the number of judged turns.
    """
    conversations = [messages_of(row[name], name) for name in ("conversation_a", "conversation_b")]
    turns = row.get("turn")
    if isinstance(turns, int) and not isinstance(turns, bool) and turns > 0:
        conversations = [_first_turns(messages, turns) for messages in conversations]
    label, named = row.get("winner"), _by_model_name(row, row.get("winner"))
    side = named if named is not None else side_of(label, {as_label(label)}, "a/b", config.label_values)
    if side is None or side == TIES:
        raise Refused("winner", "a tie" if side == TIES else "missing" if is_missing(label) else f"{label!r:.40} names neither side")
    a, b = conversations
    draft = pair_of_dialogues(*((a, b) if side == 0 else (b, a)))
    return [draft._replace(prompt=with_context(row, draft.prompt))]


def _first_turns(messages: tuple[Message, ...], turns: int) -> tuple[Message, ...]:
    ends = [number for number, message in enumerate(messages, 1) if message["role"] == "assistant"]
    return messages[: ends[turns - 1]] if len(ends) >= turns else messages


def fits_safe(row: Row) -> bool:
    """Whether a row comes from PKU-SafeRLHF."""
    return all(name in row for name in ("response_0", "response_1")) and ("safer_response_id" in row or "better_response_id" in row)


def read_safe_rlhf(row: Row, config: DataConfig) -> Readings:
    """PKU-SafeRLHF: the config's `preference` (safer or better) chooses the column that names the chosen response."""
    column = f"{config.preference}_response_id"
    given = row.get(column)
    if is_missing(given) or given == "":
        raise Refused(column, "missing")
    winner = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}.get(str(given).strip())
    if winner is None:
        raise Refused(column, "neither 0 nor 1: a tie, or no judgement")
    responses = [text_of(row.get(name), name) for name in ("response_0", "response_1")]
    extra = {"preference": config.preference, "chosen_response": winner}
    prompt = with_context(row, user_prompt(row.get("prompt")))
    return [Draft(prompt, responses[winner], responses[1 - winner], extra)]

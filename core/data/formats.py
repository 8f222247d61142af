"""The formats of preference data that are read: `FORMATS` lists them, with the columns of each and the function that
reads a row. docs/FORMATS.md shows the list, with what a pair is made of and what is refused.

Each row is read by its own columns (`candidates_of`), whatever the other rows of the file have. In every format:

- A prompt given as text is one user message; `system` and `history` columns become messages before it; an empty system
  message is dropped; a prompt ends with a user message; an answer is one assistant message.
- Outer white space of every text is removed, as Gemma's and Llama's templates do (elsewhere a leading space would show
  which model wrote an answer).
- A message list written as text is read as the list (`messages.py`).
- Other columns with a number, a truth value or a short text go to the pair's `meta`, with the number of the `row`.
- What can't be used raises `Refused`, with field and reason (`texts.py` defines which texts can be used).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from core.data.annotation_exports import fits_argilla, fits_label_studio, read_argilla, read_label_studio
from core.data.chosen_rejected import (
    SCORE_COLUMNS,
    SIDES,
    fits_explicit,
    fits_hh,
    fits_hh_apart,
    read_explicit,
    read_hh,
    read_implicit,
    read_openai,
    read_output_list,
    read_swift,
    sides_of,
)
from core.data.messages import is_message
from core.data.pair_drafts import Format
from core.data.prompt_columns import ASKED, CONVERSATIONS, HISTORY, PROMPTS, SYSTEMS
from core.data.several_answers import (
    fits_answer_lists,
    fits_generations,
    fits_nectar,
    fits_rewardbench2,
    fits_truthfulqa,
    read_answer_lists,
    read_completions,
    read_generations,
    read_nectar,
    read_truthfulqa,
)
from core.data.texts import is_blank, is_missing, keeps
from core.data.two_answers import (
    LABELS,
    ONE_HOT,
    SAMPLE_COLUMNS,
    fits_arena,
    fits_safe,
    fits_signed,
    fits_two_answers,
    read_arena,
    read_safe_rlhf,
    read_signed,
    read_two_answers,
)
from core.data.unpaired_answers import fits_kto, fits_rated, read_kto, read_rated
from core.errors import ConfigError


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(name in row for name in names)


def _fits_scored(row: Mapping[str, Any]) -> bool:
    return sides_of(row) is not None and any(a in row and b in row for a, b in SCORE_COLUMNS)


def _fits_ranking(row: Mapping[str, Any]) -> bool:
    """Whether a row is LLaMA-Factory's sharegpt ranking: a list of messages, and answers that are not both lists."""
    names = sides_of(row)
    if names is None or not any(isinstance(row.get(name), list) and row[name] and is_message(row[name][0]) for name in CONVERSATIONS[:2]):
        return False
    return not all(isinstance(row[name], list) for name in names)


def _fits_alpaca(row: Mapping[str, Any]) -> bool:
    return sides_of(row) is not None and not is_blank(row.get("instruction")) and is_blank(row.get("prompt"))


def _fits_orca(row: Mapping[str, Any]) -> bool:
    return sides_of(row) is not None and not is_blank(row.get("question")) and is_blank(row.get("prompt"))


def _fits_output_list(row: Mapping[str, Any]) -> bool:
    output = row.get("output")
    return "chosen" not in row and isinstance(output, list) and len(output) > 1 and all(isinstance(text, str) for text in output)


def _fits_swift(row: Mapping[str, Any]) -> bool:
    return "messages" in row and any(not is_blank(row.get(name)) for name in ("rejected_response", "rejected_messages"))


CONTEXT = (*SYSTEMS, HISTORY, *CONVERSATIONS)
ANSWERS = tuple(dict.fromkeys(name for pair in SIDES for name in pair))
PAIR = (*PROMPTS, *ANSWERS, *CONTEXT)
SCORED = (*PAIR, *(name for pair in SCORE_COLUMNS for name in pair))
SAFE = ("prompt", "response_0", "response_1", "safer_response_id", "better_response_id", *SYSTEMS, HISTORY)
TRUTHFUL = (
    "question",
    "Question",
    "correct_answers",
    "Correct Answers",
    "incorrect_answers",
    "Incorrect Answers",
    "Best Answer",
    "best_answer",
    "mc1_targets",
    "mc2_targets",
    *SYSTEMS,
    HISTORY,
)
JUDGED = (*ASKED, *SAMPLE_COLUMNS, *LABELS, *ONE_HOT)
FORMATS = (  # the more specific before the more general
    Format("label-studio", "", ("data", "annotations", "completions"), fits_label_studio, read_label_studio),
    Format("argilla", "", ("fields", "responses", "suggestions"), fits_argilla, read_argilla, "fields, responses; or QUESTION.responses"),
    Format(
        "openai", "", ("input", "preferred_output", "non_preferred_output"), _has("input", "preferred_output", "non_preferred_output"), read_openai
    ),
    Format("arena", "", ("conversation_a", "conversation_b", "winner", "turn", *SYSTEMS), fits_arena, read_arena),
    Format("safe-rlhf", "", SAFE, fits_safe, read_safe_rlhf, "prompt, response_0, response_1, safer_response_id, better_response_id"),
    Format("truthfulqa", "", TRUTHFUL, fits_truthfulqa, read_truthfulqa, "Question, Correct Answers, Incorrect Answers"),
    Format("ultrafeedback", "completions", (*ASKED, "completions"), _has("completions"), read_completions, "instruction, completions"),
    Format("nectar", "", (*ASKED, "answers"), fits_nectar, read_nectar, "prompt, answers"),
    Format(
        "helpsteer",
        "preference",
        (*ASKED, "response_1", "response_2", "preference_strength", "response1", "response2", "overall_preference"),
        fits_signed,
        read_signed,
        "prompt, response_1, response_2, preference_strength; context, response1, response2, overall_preference",
    ),
    Format(
        "rewardbench-2",
        "",
        (*ASKED, "chosen", "rejected"),
        fits_rewardbench2,
        read_answer_lists,
        "prompt, chosen, rejected (lists), num_correct",
    ),
    Format("rm-bench", "", (*ASKED, "chosen", "rejected"), fits_answer_lists, read_answer_lists, "prompt, chosen, rejected (lists of one length)"),
    Format("ultrafeedback", "binarized", SCORED, _fits_scored, read_explicit, "prompt, chosen, rejected, score_chosen, score_rejected"),
    Format("hh-rlhf", "dialogues", PAIR, fits_hh, read_hh, "chosen, rejected (Human: and Assistant: turns)"),
    Format("hh-rlhf", "prompt apart", PAIR, fits_hh_apart, read_hh, "prompt (Human: and Assistant: turns), chosen, rejected"),
    Format("llama-factory", "sharegpt ranking", PAIR, _fits_ranking, read_explicit, "conversations, system, chosen, rejected"),
    Format(
        "rewardbench",
        "",
        PAIR,
        lambda row: _has("prompt", "chosen", "rejected", "subset")(row) and fits_explicit(row),
        read_explicit,
        "prompt, chosen, rejected, subset",
    ),
    Format("llama-factory", "alpaca", PAIR, _fits_alpaca, read_explicit, "instruction, input, system, history, chosen, rejected"),
    Format("orca", "", PAIR, _fits_orca, read_explicit, "system, question, chosen, rejected"),
    Format("trl", "explicit prompt", PAIR, fits_explicit, read_explicit, "prompt, chosen, rejected"),
    Format("trl", "implicit prompt", PAIR, lambda row: sides_of(row) is not None, read_implicit, "chosen, rejected (messages)"),
    Format("llama-factory", "two outputs", (*ASKED, "output"), _fits_output_list, read_output_list, "instruction, input, output (a list of two)"),
    Format("swift", "", ("messages", "rejected_response", "rejected_messages", *SYSTEMS), _fits_swift, read_swift, "messages, rejected_response"),
    Format("a-b", "", JUDGED, fits_two_answers, read_two_answers, "input, output_1, output_2, label; prompt, response_a, response_b, winner"),
    Format(
        "ultrafeedback",
        "generations",
        (*ASKED, "generations", "ratings", "rating"),
        fits_generations,
        read_generations,
        "instruction, generations, ratings",
    ),
    Format("kto", "", (*ASKED, "completion", "output", "label", "kto_tag"), fits_kto, read_kto, "prompt, completion, label", whole_pairs=False),
    Format(
        "helpsteer",
        "ratings",
        (*ASKED, "response", "helpfulness"),
        fits_rated,
        read_rated,
        "prompt, response, helpfulness",
        whole_pairs=False,
    ),
)
RECORDS = ("data", "fields")  # objects that hold the texts of a Label Studio task or of an Argilla record
# Formats that read the same chosen and rejected columns, so a row that fits several of them carries one judgement only.
CHOSEN_REJECTED = frozenset(f.title for f in FORMATS if f.read in (read_explicit, read_implicit, read_hh, read_answer_lists, read_openai))


def candidates_of(row: Mapping[str, Any], formats: Sequence[Format]) -> list[Format]:
    """The formats that a row fits, the most specific first. Empty columns count only if no format fits without them."""
    filled = {name: value for name, value in row.items() if not is_blank(value)}
    fitting = [candidate for candidate in formats if candidate.fits(filled)]
    if fitting or len(filled) == len(row):
        return fitting
    return [candidate for candidate in formats if candidate.fits(row)]


def named(name: str) -> tuple[Format, ...]:
    """The formats of this name; all of them for `auto`."""
    return tuple(f for f in FORMATS if name in ("auto", f.name))


def nested_place(row: Mapping[str, Any], name: str) -> tuple[str, str] | None:
    """Column and field of a name like `data.text`; None if the row has a column of the whole name, or no such object."""
    parent, _, key = name.partition(".")
    inside = row.get(parent)
    return (parent, key) if name not in row and isinstance(inside, dict) and key in inside else None


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the user's columns (the values of `columns`) under the names of our fields (its keys).

    A name like `data.text` is a field of an object. In the object of a Label Studio task or an Argilla record the field
    is renamed inside it, since it is read there; elsewhere it becomes a column.
    """
    for target, column in columns.items():
        if place := nested_place(row, column):
            parent, key = place
            fields = {name: value for name, value in row[parent].items() if name not in (key, target)} | {target: row[parent][key]}
            row = {**row, parent: fields} if parent in RECORDS else {**row, target: row[parent][key]}
    mapped = {target: row[column] for target, column in columns.items() if column in row}
    return {name: value for name, value in row.items() if name not in columns.values()} | mapped


def check_mapping(columns: Mapping[str, str]) -> None:
    """Raises ConfigError if a column mapping names a field that no format has."""
    known = sorted({"id", *(name for f in FORMATS for name in f.uses)})
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ConfigError(f"no format has a field {', '.join(unknown)}", expected=" | ".join(known), remedy="--columns FIELD=YOUR_COLUMN")


def meta_of(row: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """The pair's meta: numbers, truth values and short texts of the columns that the format does not read."""
    return {
        name: value for name, value in row.items() if name not in used and name != "id" and keeps(name) and keeps(value) and not is_missing(value)
    }

"""Reads rows that name a chosen and a rejected answer: TRL, hh-rlhf, RewardBench, binarized UltraFeedback,
LLaMA-Factory, OpenAI, Orca, ms-swift.

Answers are texts, messages, or whole dialogues. The prompt is made of the row's columns (`prompt_columns.py`) and of
the messages with which both dialogues begin; a prompt that stands in both places is used once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.config import DataConfig
from core.data.messages import is_message, messages_of, user_prompt
from core.data.pair_drafts import Draft, Readings
from core.data.prompt_columns import asked, check_media, conversation_of, no_prompt, prompt_columns, question_of, with_context, with_question
from core.data.text_dialogues import begins_as_dialogue, dialogue_turns, has_single_line_breaks, is_dialogue, merged
from core.data.texts import Refused, is_blank, is_missing, number_of, text_of
from core.types import Message

Row = Mapping[str, Any]
Messages = tuple[Message, ...]
DEFAULTS = DataConfig()  # for functions that look at columns only
# Column names of the chosen and the rejected answer. The first pair of which a row has both is read.
SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_answer", "rejected_answer"),
    ("text_chosen", "text_rejected"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "non_preferred"),
    ("response_j", "response_k"),
    ("chosen", "reject"),
)

# Column names of the scores by which an answer was chosen. Rewards of a model are left out, since they may contradict
# the choice (`scores_chosen` in results of RewardBench and of ours, `chosen_reward`).
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
RANK_COLUMNS = (("rank_chosen", "rank_rejected"), ("chosen_rank", "rejected_rank"))  # 1 is the best


def sides_of(row: Row) -> tuple[str, str] | None:
    """The columns of the chosen and the rejected answer; of several such pairs the first that holds values.

    None without any.
    """
    present = [pair for pair in SIDES if pair[0] in row and pair[1] in row]
    filled = [pair for pair in present if not is_blank(row[pair[0]]) and not is_blank(row[pair[1]])]
    return next(iter(filled or present), None)


def read_explicit(row: Row, config: DataConfig) -> Readings:
    """A pair whose prompt has columns of its own."""
    names = sides_of(row)
    assert names is not None
    chosen, rejected = (_as_list(row[name]) for name in names)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return [_of_dialogues(row, config, messages_of(chosen, names[0]), messages_of(rejected, names[1]))]
    if not _has_prompt(row, config):
        raise no_prompt(row, config)
    prompt = asked(row, config)
    better, worse = (text_of(value, name) for value, name in zip((chosen, rejected), names, strict=True))
    _check_conversation(conversation_of(row), question_of(row, config), better)
    prompt = _without_answer(prompt, better) if conversation_of(row) else prompt
    return [_scored(row, Draft(prompt, better, worse))]


def read_implicit(row: Row, config: DataConfig) -> Readings:
    """A pair whose prompt is the messages (or, with `implicit_prompt="text"`, the words) with which both sides begin."""
    names = sides_of(row)
    assert names is not None
    chosen, rejected = (_as_list(row[name]) for name in names)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return [_of_dialogues(row, config, messages_of(chosen, names[0]), messages_of(rejected, names[1]))]
    texts = [text_of(value, name) for value, name in zip((chosen, rejected), names, strict=True)]
    if config.implicit_prompt != "text":
        raise no_prompt(row, config)
    draft = common_beginning(*texts)
    return [_scored(row, draft._replace(prompt=with_context(row, draft.prompt)))]


def _has_prompt(row: Row, config: DataConfig) -> bool:
    return bool(conversation_of(row)) or any(not is_blank(row.get(name)) for name in prompt_columns(config))


def _as_list(value: Any) -> Any:
    return [value] if is_message(value) else value


def _check_conversation(conversation: Messages, question: Messages, chosen: str) -> None:
    """Raises Refused if a conversation ends with the chosen answer and does not contain the question."""
    if conversation and question and conversation[-1]["content"] == chosen and question[-1] not in conversation:
        raise Refused("prompt", "different prompts: not a message of the conversation")


def _without_answer(prompt: Messages, chosen: str) -> Messages:
    """The prompt without a last message that is the chosen answer, which conversation columns may include."""
    ends = prompt[-1]["role"] == "assistant" and prompt[-1]["content"] == chosen
    return prompt[:-1] if ends else prompt


def _scored(row: Row, draft: Draft) -> Draft:
    """The pair with its scores in `extra`. Raises Refused if they contradict the choice."""
    return draft._replace(extra={**draft.extra, **check_scores(row)})


def check_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores of chosen and rejected; empty if a row has no such columns or both are empty.

    Raises Refused if scores or ranks are tied or contradict the choice.
    """
    for chosen, rejected in SCORE_COLUMNS:
        if chosen in row and rejected in row and not (_absent(row[chosen]) and _absent(row[rejected])):
            better, worse = number_of(row[chosen], chosen), number_of(row[rejected], rejected)
            if better <= worse:
                raise Refused(chosen, "a tie: both scores are equal" if better == worse else "below the score of rejected")
            return {"score_chosen": better, "score_rejected": worse}
    for chosen, rejected in RANK_COLUMNS:
        if not _absent(row.get(chosen)) and not _absent(row.get(rejected)) and number_of(row[chosen], chosen) >= number_of(row[rejected], rejected):
            raise Refused(chosen, "no better than the rank of rejected")
    return {}


def _absent(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())


def _of_dialogues(row: Row, config: DataConfig, chosen: Messages, rejected: Messages) -> Draft:
    """The pair of two message lists.

    The prompt is that of the row's columns, then the messages that both lists share.
    """
    if not chosen or not rejected:
        raise Refused("rejected" if chosen else "chosen", "empty")
    question, conversation = question_of(row, config), conversation_of(row)
    given = with_question(conversation, question)
    _check_conversation(conversation, question, chosen[-1]["content"])
    if conversation and conversation[: len(chosen)] == chosen:  # UltraFeedback's `messages` repeats the chosen dialogue
        given = chosen[:-1]
    elif given and len(chosen) == 1 and given[-1] == chosen[0]:
        given = given[:-1]
    if given and chosen[: len(given)] == given == rejected[: len(given)]:
        chosen, rejected = chosen[len(given) :], rejected[len(given) :]
        if not chosen or not rejected:
            raise Refused("rejected" if chosen else "chosen", "empty: nothing follows the prompt")
    shared = _common(chosen, rejected)
    before = chosen[:shared]
    answers = _answer(chosen[shared:], "chosen"), _answer(rejected[shared:], "rejected")
    return _scored(row, Draft(with_context(row, _joined_prompts(given, before)), *answers))


def _joined_prompts(given: Messages, before: Messages) -> Messages:
    """The prompt of the columns (`given`) and the messages that both dialogues share (`before`) as one prompt."""
    if not given or not before:
        return given or before
    plain = tuple(message for message in given if message["role"] != "system")
    if all(message in before for message in plain) and plain[-1:] != ():
        if given[0]["role"] == "system" and before[0]["role"] != "system":
            return (given[0], *before)
        if given[0]["role"] == "system" and given[0] != before[0]:
            raise Refused("prompt", "its system message differs from that of the dialogues")
        return before
    if plain and before[0]["role"] != "assistant":
        raise Refused("prompt", "different prompts: not a message of the dialogues")
    return given + before


def _common(a: Sequence[Message], b: Sequence[Message]) -> int:
    """The number of leading messages that both share; the last message of each side does not count."""
    last = min(len(a), len(b)) - 1
    return next((i for i in range(last) if a[i] != b[i]), max(last, 0))


def _answer(rest: Sequence[Message], field: str) -> str:
    if len(rest) != 1:
        raise Refused("rejected", "different prompts: the dialogues differ before their last message")
    if rest[0]["role"] != "assistant":
        raise Refused(field, "the last message is not the assistant's")
    return rest[0]["content"]


def pair_of_dialogues(chosen: Messages, rejected: Messages, row: Row | None = None, config: DataConfig = DEFAULTS) -> Draft:
    """The pair of two dialogues that differ in their last message only.

    They continue or repeat the row's prompt. Raises Refused.
    """
    return _of_dialogues(row or {}, config, chosen, rejected)


def common_beginning(chosen: str, rejected: str) -> Draft:
    """The pair of two texts that begin with their prompt, which ends at the last white space up to which both agree."""
    shared = chosen[: next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))]
    ends = [m.end() for m in re.finditer(r"\s+", shared) if m.end() < min(len(chosen), len(rejected))]
    if not ends:
        raise Refused("prompt", "missing, and the answers do not begin with the same words")
    return Draft(user_prompt(shared[: ends[-1]]), chosen[ends[-1] :], rejected[ends[-1] :])


def read_hh(row: Row, config: DataConfig) -> Readings:
    """A pair of Anthropic's dialogues, which share every turn but the assistant's last one.

    The column `prompt` may hold the earlier turns, or one question, which must then be a turn of both dialogues.
    """
    names = sides_of(row)
    assert names is not None
    before = next((row[name] for name in prompt_columns(config) if not is_blank(row.get(name))), None)
    apart = before if isinstance(before, str) and begins_as_dialogue(before) else ""
    chosen, rejected = (dialogue_turns(_joined(apart, text_of(row.get(name), name)), name) for name in names)
    if chosen[:-1] != rejected[:-1]:
        raise Refused("rejected", "different prompts: the dialogues differ before their last turn")
    for name, turns in zip(names, (chosen, rejected), strict=True):
        if turns[-1]["role"] != "assistant":
            raise Refused(name, "the last turn is not the assistant's")
        text_of(turns[-1]["content"], name)
    if before is not None and not apart and user_prompt(before)[-1] not in chosen[:-1]:
        raise Refused("prompt", "different prompts: not a turn of the dialogues")
    draft = Draft(merged(chosen[:-1]), chosen[-1]["content"], rejected[-1]["content"])
    return [_scored(row, draft._replace(prompt=with_context(row, draft.prompt)))]


def _joined(before: str, text: str) -> str:
    """The whole dialogue: the text appended to the earlier turns, unless it includes them itself."""
    if not before or re.match(r"(?:### ?)?(?:Human|User):", text):
        return text
    gap = "\n" if has_single_line_breaks(before) else "\n\n"
    open_turn = re.search(r"(?:\A|\n)\s*(?:### ?)?Assistant:\s*\Z", before)
    if re.match(r"(?:### ?)?Assistant:", text):
        return f"{before[: open_turn.start()] if open_turn else before}{gap}{text}"
    return f"{before.rstrip()} {text}" if open_turn else f"{before.rstrip()}{gap}Assistant: {text}"


def fits_hh(row: Row) -> bool:
    """Whether the answers are dialogues written as text, with or without their prompt in a column."""
    names = sides_of(row)
    if names is None:
        return False
    chosen, rejected = (row[name] for name in names)
    if not isinstance(chosen, str) or not isinstance(rejected, (str, type(None))):
        return False
    prompts = [row[name] for name in prompt_columns(DEFAULTS) if not is_blank(row.get(name))]
    if not prompts and not conversation_of(row):
        return begins_as_dialogue(chosen) or begins_as_dialogue(rejected)
    dialogues = [text for text in (chosen, rejected) if isinstance(text, str) and is_dialogue(text)]
    holds_prompt = any(isinstance(prompt, str) and prompt.strip() in text for prompt in prompts for text in dialogues)
    return len(dialogues) == 2 or holds_prompt


def fits_hh_apart(row: Row) -> bool:
    """Whether the prompt is a dialogue written as text and the answers are texts."""
    names = sides_of(row)
    prompt = next((row[name] for name in prompt_columns(DEFAULTS) if not is_blank(row.get(name))), None)
    if names is None or not all(isinstance(row[name], str) for name in names):
        return False
    return is_dialogue(prompt) or (begins_as_dialogue(prompt) and all(begins_as_dialogue(row[name]) for name in names))


def fits_explicit(row: Row) -> bool:
    """Whether a row has both answers and a prompt."""
    return sides_of(row) is not None and _has_prompt(row, DEFAULTS)


def read_openai(row: Row, config: DataConfig) -> Readings:
    """OpenAI's preference format: the prompt in `input.messages`, and two outputs that are lists of messages."""
    given = row["input"]
    if not isinstance(given, dict):
        raise Refused("input", "not an object {messages}")
    check_media(given)
    return read_explicit(row, config)


def read_swift(row: Row, config: DataConfig) -> Readings:
    """ms-swift:

    `messages` ends with the chosen answer, `rejected_response` or `rejected_messages` with the rejected one.
    """
    messages = messages_of(row.get("messages"), "messages")
    other = row.get("rejected_response") if not is_blank(row.get("rejected_response")) else row.get("rejected_messages")
    if messages[-1]["role"] != "assistant":
        raise Refused("messages", "the last message is not the assistant's")
    rejected = messages_of(other, "rejected_messages") if isinstance(other, list) else None
    if rejected is None:
        rejected = (*messages[:-1], {"role": "assistant", "content": text_of(other, "rejected_response")})
    draft = pair_of_dialogues(messages, rejected)
    return [draft._replace(prompt=with_context(row, draft.prompt))]


def read_output_list(row: Row, config: DataConfig) -> Readings:
    """LLaMA-Factory's older ranking form: `output` is a list of two answers, the chosen one first."""
    answers = row["output"]
    if len(answers) != 2:
        raise Refused("output", f"a list of {len(answers)} answers, not of two (chosen, rejected)")
    chosen, rejected = (text_of(text, "output") for text in answers)
    return [Draft(asked(row, config), chosen, rejected)]

"""From rows to preference pairs: what the columns of the well-known data sets mean.

| format | columns | pairs |
|---|---|---|
| `trl` | `prompt`, `chosen`, `rejected`: text, or lists of messages `{role, content}` | one a row |
| `trl`, implicit prompt | `chosen`, `rejected`: the prompt is the messages, or the words, with which both begin | one a row |
| `hh-rlhf` | `chosen`, `rejected`: whole dialogues, turns begin with `Human:` or `Assistant:` after an empty line | one a row |
| `hh-rlhf`, prompt apart | the same with the dialogue so far in `prompt`, which ends with `Assistant:` | one a row |
| `safe-rlhf` | `prompt`, `response_0`, `response_1`, `safer_response_id`, `better_response_id` (0 or 1; `preference`: which decides) | one a row |
| `truthfulqa` | `Question`, `Correct Answers`, `Incorrect Answers` (`;` between answers, or lists) | several a row, see `read_truthfulqa` |
| `rewardbench` | `prompt`, `chosen`, `rejected`, `subset` (kept, as is `chosen_model` ...) | one a row |
| `ultrafeedback` | `instruction` (or `prompt`), `completions`: list of `{response, overall_score}` | several a row, see `read_completions` |
| `ultrafeedback`, binarized | `chosen`, `rejected` (messages or text), `score_chosen`, `score_rejected`, mostly `prompt` | one a row |

In every format: a prompt given as text is one user message; outer white space of every text is cut (as Gemma's and Llama's templates do; elsewhere a
leading space would tell which model wrote an answer); an empty system message is as none; a prompt ends with a user message; an answer is one
assistant message. Other columns that hold a number, a truth value or a text of at most 200 characters go to the pair's `meta`, with the `row`.
What can't be used raises `Refused`, with field and reason (`texts.py` says what a usable text is).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from core.config import DataConfig
from core.data.texts import Refused, is_missing, keeps, messages_of, text_of, user_prompt
from core.errors import ConfigError
from core.types import Message

SCORES = ("overall_score", "fine-grained_score", "score", "rating")  # of a completion; the first that all of a row's completions have
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Draft(NamedTuple):
    """A pair before it has an id. `extra` goes to its meta."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    extra: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Format:
    """One shape of rows. `fits` looks at a row's columns, `read` makes drafts of pairs from it or raises Refused; `uses` are the columns it reads."""

    name: str
    uses: tuple[str, ...]
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], DataConfig], list[Draft]]
    variant: str = ""


def detect(rows: Iterable[Mapping[str, Any]], name: str = "auto") -> Format | None:
    """The format that most rows fit, the more special one where two have as many. `name` narrows the choice; then one is always found."""
    candidates = [f for f in FORMATS if name in ("auto", f.name)]
    fits = (next((number for number, candidate in enumerate(candidates) if candidate.fits(row)), None) for row in rows)
    votes = Counter(number for number in fits if number is not None)
    if not votes:
        return None if name == "auto" else candidates[0]
    return candidates[min(votes, key=lambda number: (-votes[number], number))]


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the user's columns (values of `columns`) under our names (its keys)."""
    named = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    return {name: value for name, value in row.items() if name not in columns.values()} | named


def check_mapping(columns: Mapping[str, str]) -> None:
    """Raises ConfigError where a column mapping names a field that no format has."""
    known = sorted({"id", *(name for f in FORMATS for name in f.uses)})
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ConfigError(f"no format has a field {', '.join(unknown)}", expected=" | ".join(known), remedy="--columns FIELD=YOUR_COLUMN")


def meta_of(row: Mapping[str, Any], used: Sequence[str]) -> dict[str, Any]:
    """What the source says beside the pair: numbers, truth values and short texts of columns that the format does not read."""
    return {name: value for name, value in row.items() if name not in used and name != "id" and keeps(name) and keeps(value)}


def _common(a: Sequence[Message], b: Sequence[Message]) -> int:
    """Number of leading messages that both share, each side's last message left out."""
    last = min(len(a), len(b)) - 1
    return next((i for i in range(last) if a[i] != b[i]), max(last, 0))


def _answer(rest: Sequence[Message], field: str) -> str:
    if len(rest) != 1:
        raise Refused("rejected", "different prompts: the dialogues part before the last message")
    if rest[0]["role"] != "assistant":
        raise Refused(field, "the last message is not the assistant's")
    return rest[0]["content"]


def _from_dialogues(prompt: Any, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Draft:
    """The pair of two message lists. The prompt is what is given, then what both share; a prompt told twice counts once."""
    if not chosen or not rejected:
        raise Refused("rejected" if chosen else "chosen", "empty")
    given = () if is_missing(prompt) else user_prompt(prompt)
    repeats = given and isinstance(prompt, list) and chosen[: len(given)] == given == rejected[: len(given)]
    if repeats:
        chosen, rejected = chosen[len(given) :], rejected[len(given) :]
    shared = _common(chosen, rejected)
    before = chosen[:shared]
    answers = _answer(chosen[shared:], "chosen"), _answer(rejected[shared:], "rejected")
    if isinstance(prompt, str) and before:
        if given[0] not in before:
            raise Refused("prompt", "different prompts: not a message of the dialogues")
        given = ()
    return Draft(given + before, *answers)


def _implicit_text(chosen: str, rejected: str) -> Draft:
    """The pair of two texts that begin with their prompt: it ends at the last white space up to which both agree."""
    shared = chosen[: next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))]
    ends = [m.end() for m in re.finditer(r"\s+", shared) if m.end() < min(len(chosen), len(rejected))]
    if not ends:
        raise Refused("prompt", "missing, and the answers do not begin with the same words")
    return Draft(user_prompt(shared[: ends[-1]]), chosen[ends[-1] :], rejected[ends[-1] :])


def read_trl(row: Mapping[str, Any], config: DataConfig) -> list[Draft]:
    """TRL's preference format with a prompt. Answers are texts or message lists, the prompt either."""
    if is_missing(row.get("prompt")):
        raise Refused("prompt", "missing")
    return _read_answers(row)


def read_trl_implicit(row: Mapping[str, Any], config: DataConfig) -> list[Draft]:
    """TRL's preference format without a prompt: both sides begin with it."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list) or isinstance(rejected, list):
        return _read_answers(row)
    return [_implicit_text(text_of(chosen, "chosen"), text_of(rejected, "rejected"))]


def _read_answers(row: Mapping[str, Any]) -> list[Draft]:
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        return [_from_dialogues(prompt, messages_of(chosen, "chosen"), messages_of(rejected, "rejected"))]
    return [Draft(user_prompt(prompt), text_of(chosen, "chosen"), text_of(rejected, "rejected"))]


def dialogue_turns(text: str, field: str) -> tuple[Message, ...]:
    """The turns of an hh-rlhf dialogue, which starts with `Human:`; the last may be empty. Raises Refused."""
    parts = TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise Refused(field, "not a dialogue of Human: and Assistant: turns")
    return tuple({"role": SPEAKERS[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True))


def read_hh(row: Mapping[str, Any], config: DataConfig) -> list[Draft]:
    """Anthropic's dialogues: both sides share every turn but the last, the assistant's. Turns of one speaker in a row become one message,
    so that templates which demand alternation accept the prompt."""
    before = "" if is_missing(row.get("prompt")) else text_of(row["prompt"], "prompt")
    texts = [text_of(row.get(name), name) for name in ("chosen", "rejected")]
    chosen, rejected = (dialogue_turns(_joined(before, text), name) for text, name in zip(texts, ("chosen", "rejected"), strict=True))
    if chosen[:-1] != rejected[:-1]:
        raise Refused("rejected", "different prompts: the dialogues part before the last turn")
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            raise Refused(name, "the last turn is not the assistant's")
        text_of(turns[-1]["content"], name)
    return [Draft(_merged(chosen[:-1]), chosen[-1]["content"], rejected[-1]["content"])]


def _joined(before: str, text: str) -> str:
    return text if not before or text.startswith("Human:") else f"{before} {text}"


def _merged(turns: Sequence[Message]) -> tuple[Message, ...]:
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = {"role": turn["role"], "content": f"{merged[-1]['content']}\n\n{turn['content']}".strip()}
        else:
            merged.append(turn)
    return tuple(merged)


def read_safe_rlhf(row: Mapping[str, Any], config: DataConfig) -> list[Draft]:
    """PKU-SafeRLHF: `preference` (safer or better) says which column names the chosen response."""
    column = f"{config.preference}_response_id"
    given = row.get(column)
    if is_missing(given) or given == "":
        raise Refused(column, "missing")
    winner = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}.get(str(given).strip())
    if winner is None:
        raise Refused(column, "neither 0 nor 1: a tie, or no judgement")
    responses = [text_of(row.get(name), name) for name in ("response_0", "response_1")]
    extra = {"preference": config.preference, "chosen_response": winner}
    return [Draft(user_prompt(row.get("prompt")), responses[winner], responses[1 - winner], extra)]


def _answers(row: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Distinct answers of a cell, keyed by their text without case and spacing.

    Each is closed with a full stop where it lacks one, as TruthfulQA's own evaluation does (its `split_multi_answer`): the last token is what we
    read, and a text that just breaks off is read as unfinished.
    """
    value = next((row[name] for name in names if not is_missing(row.get(name))), None)
    texts = value if isinstance(value, list) else text_of(value, names[-1]).split(";")
    found: dict[str, str] = {}
    for text in texts:
        answer = text_of(text, names[-1], may_be_empty=True)
        if answer:
            closed = answer if answer.endswith((".", "!", "?", '"', "”")) else answer + "."
            found.setdefault(" ".join(closed.casefold().split()), closed)
    if not found:
        raise Refused(names[-1], "empty")
    return found


def read_truthfulqa(row: Mapping[str, Any], config: DataConfig) -> list[Draft]:
    """TruthfulQA: the i-th correct with the i-th incorrect answer, in the order listed, each answer once: min(correct, incorrect,
    `max_pairs_per_prompt`) pairs a question (METHOD.md section 3: no response twice). An answer listed twice counts once; one listed on both
    sides has no label and is left out. 817 questions give 2,364 pairs at 4."""
    prompt = user_prompt(next((row[name] for name in ("question", "Question") if not is_missing(row.get(name))), None), "Question")
    correct = _answers(row, "correct_answers", "Correct Answers")
    incorrect = _answers(row, "incorrect_answers", "Incorrect Answers")
    sides = [[answer for key, answer in own.items() if key not in other] for own, other in ((correct, incorrect), (incorrect, correct))]
    if not all(sides):
        raise Refused("Incorrect Answers", "each answer of one side is also listed on the other")
    return [Draft(prompt, *answers) for answers in zip(*sides, strict=False)][: config.max_pairs_per_prompt]


def _number(value: Any, field: str) -> float:
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused(field, "not a number") from None
    if not math.isfinite(number):
        raise Refused(field, "missing" if is_missing(value) else "not a number")
    return number


def read_completions(row: Mapping[str, Any], config: DataConfig) -> list[Draft]:
    """UltraFeedback: the best completion with the worst, the second best with the second worst and so on, while their scores differ: each
    completion once, at most `max_pairs_per_prompt` pairs. Scores: the first of SCORES that all completions of the row have."""
    items = row.get("completions")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Refused("completions", "missing" if is_missing(items) else "not a list of objects {response, overall_score}")
    name = next((name for name in SCORES if items and all(not is_missing(item.get(name)) for item in items)), None)
    if len(items) < 2 or name is None:
        raise Refused("completions", "fewer than two" if len(items) < 2 else "a score is missing")
    scored = sorted(((_number(item[name], "completions"), text_of(item.get("response"), "completions")) for item in items), key=lambda s: -s[0])
    if scored[0][0] == scored[-1][0]:
        raise Refused("completions", "a tie: all scores are equal")
    prompt = user_prompt(row.get("prompt", row.get("instruction")), "instruction")
    pairs = zip(scored[: len(scored) // 2], reversed(scored), strict=False)
    drafts = [Draft(prompt, best[1], worst[1], {"score_chosen": best[0], "score_rejected": worst[0]}) for best, worst in pairs if best[0] > worst[0]]
    different = [d for d in drafts if d.chosen != d.rejected]
    return (different or drafts)[: config.max_pairs_per_prompt]


def read_scored(row: Mapping[str, Any], config: DataConfig) -> list[Draft]:
    """UltraFeedback binarized: chosen and rejected are given, with a score each; a tie or a contradiction is refused."""
    chosen, rejected = (_number(row.get(name), name) for name in ("score_chosen", "score_rejected"))
    if chosen <= rejected:
        raise Refused("score_chosen", "a tie: both scores are equal" if chosen == rejected else "below the score of rejected")
    return [d._replace(extra={"score_chosen": chosen, "score_rejected": rejected}) for d in _read_answers(row)]


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(name in row for name in names)


def _is_hh(row: Mapping[str, Any]) -> bool:
    text = row.get("chosen")
    return (
        "rejected" in row
        and is_missing(row.get("prompt"))
        and isinstance(text, str)
        and bool(re.match(r"\s*Human:.*\n\nAssistant:", text, re.DOTALL))
    )


def _is_hh_apart(row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    return _has("chosen", "rejected")(row) and isinstance(prompt, str) and bool(re.match(r"\s*Human:.*\n\nAssistant:\s*\Z", prompt, re.DOTALL))


def _is_safe(row: Mapping[str, Any]) -> bool:
    return _has("response_0", "response_1")(row) and ("safer_response_id" in row or "better_response_id" in row)


def _is_truthfulqa(row: Mapping[str, Any]) -> bool:
    return _has("Correct Answers", "Incorrect Answers")(row) or _has("correct_answers", "incorrect_answers")(row)


def _is_explicit(row: Mapping[str, Any]) -> bool:
    return _has("chosen", "rejected")(row) and not is_missing(row.get("prompt"))


PAIR = ("prompt", "chosen", "rejected")
SAFE = ("prompt", "response_0", "response_1", "safer_response_id", "better_response_id")
RATED = ("instruction", "prompt", "completions")
TRUTHFUL = ("question", "Question", "correct_answers", "Correct Answers", "incorrect_answers", "Incorrect Answers", "Best Answer", "best_answer")
SCORED = (*PAIR, "score_chosen", "score_rejected")
FORMATS = (  # the more special before the more general
    Format(name="safe-rlhf", uses=SAFE, fits=_is_safe, read=read_safe_rlhf),
    Format(name="truthfulqa", uses=TRUTHFUL, fits=_is_truthfulqa, read=read_truthfulqa),
    Format(name="ultrafeedback", variant="completions", uses=RATED, fits=_has("completions"), read=read_completions),
    Format(name="ultrafeedback", variant="binarized", uses=SCORED, fits=_has(*SCORED[1:]), read=read_scored),
    Format(name="hh-rlhf", variant="dialogues", uses=PAIR, fits=_is_hh, read=read_hh),
    Format(name="hh-rlhf", variant="prompt apart", uses=PAIR, fits=_is_hh_apart, read=read_hh),
    Format(name="rewardbench", uses=PAIR, fits=_has(*PAIR, "subset"), read=read_trl),
    Format(name="trl", variant="explicit prompt", uses=PAIR, fits=_is_explicit, read=read_trl),
    Format(name="trl", variant="implicit prompt", uses=PAIR, fits=_has("chosen", "rejected"), read=read_trl_implicit),
)

"""Reads rows with several answers to one prompt: scores (UltraFeedback), ranks (Nectar), lists of right and wrong
answers (TruthfulQA, RewardBench 2, RM-Bench).

Of scored or ranked answers the best is paired with the worst, the second best with the second worst and so on, as long
as their scores differ. Each answer is used once, and a prompt gives at most `max_pairs_per_prompt` pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.config import DataConfig
from core.data.messages import user_prompt
from core.data.pair_drafts import Draft, Readings
from core.data.prompt_columns import asked, with_context
from core.data.texts import Refused, is_missing, number_of, text_of
from core.types import Message

Row = Mapping[str, Any]
CHOICES = ("mc2_targets", "mc1_targets")  # mc1_targets has a single correct answer
SCORES = ("overall_score", "fine-grained_score", "score", "rating")  # the first that all completions of a row have is used


def best_with_worst(prompt: tuple[Message, ...], scored: Sequence[tuple[float, str]], config: DataConfig, names: Sequence[str] = ()) -> list[Draft]:
    """Pairs of answers, best with worst first. `names` are the names of the two scores in the pair's meta.

    Pairs of equal texts are left out, unless there are no others.
    """
    ordered = sorted(scored, key=lambda item: -item[0])
    pairs = zip(ordered[: len(ordered) // 2], reversed(ordered), strict=False)
    drafts = [Draft(prompt, best[1], worst[1], dict(zip(names, (best[0], worst[0]), strict=False))) for best, worst in pairs if best[0] > worst[0]]
    different = [draft for draft in drafts if draft.chosen != draft.rejected]
    return (different or drafts)[: config.max_pairs_per_prompt]


def read_completions(row: Row, config: DataConfig) -> Readings:
    """UltraFeedback: `completions` with a score each, the first of SCORES that all completions of the row have."""
    items = row.get("completions")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Refused("completions", "missing" if is_missing(items) else "not a list of objects {response, overall_score}")
    name = next((name for name in SCORES if items and all(not is_missing(item.get(name)) for item in items)), None)
    if len(items) < 2 or name is None:
        raise Refused("completions", "fewer than two" if len(items) < 2 else "a score is missing")
    scored = [(number_of(item[name], "completions"), text_of(item.get("response"), "completions")) for item in items]
    if len({score for score, _ in scored}) == 1:
        raise Refused("completions", "a tie: all scores are equal")
    return best_with_worst(asked(row, config), scored, config, ("score_chosen", "score_rejected"))


def read_generations(row: Row, config: DataConfig) -> Readings:
    """distilabel's UltraFeedback: `generations`, a list of texts, and `ratings` (or `rating`), a number for each."""
    texts = row["generations"]
    name = "ratings" if isinstance(row.get("ratings"), list) else "rating"
    ratings = row[name]
    if len(texts) != len(ratings) or len(texts) < 2:
        raise Refused(name, f"{len(ratings)} for {len(texts)} generations")
    scored = [(number_of(rating, name), text_of(text, "generations")) for rating, text in zip(ratings, texts, strict=True)]
    if len({score for score, _ in scored}) == 1:
        raise Refused(name, "a tie: all ratings are equal")
    return best_with_worst(asked(row, config), scored, config, ("score_chosen", "score_rejected"))


def fits_generations(row: Row) -> bool:
    """Whether a row has generations with ratings beside them."""
    return isinstance(row.get("generations"), list) and any(isinstance(row.get(name), list) for name in ("ratings", "rating"))


def read_nectar(row: Row, config: DataConfig) -> Readings:
    """Nectar: `answers` with a rank each; rank 1 is the best."""
    items = row["answers"]
    if len(items) < 2:
        raise Refused("answers", "fewer than two")
    ranked = [(-number_of(item.get("rank"), "answers"), text_of(item.get("answer"), "answers")) for item in items]
    if len({rank for rank, _ in ranked}) == 1:
        raise Refused("answers", "a tie: all ranks are equal")
    pairs = best_with_worst(asked(row, config), ranked, config, ("rank_chosen", "rank_rejected"))
    return [pair._replace(extra={name: int(-rank) for name, rank in pair.extra.items()}) for pair in pairs]


def fits_nectar(row: Row) -> bool:
    """Whether a row has answers with ranks."""
    items = row.get("answers")
    return isinstance(items, list) and bool(items) and all(isinstance(item, dict) and "rank" in item and "answer" in item for item in items)


def read_answer_lists(row: Row, config: DataConfig) -> Readings:
    """Lists of right and of wrong answers.

    A single right answer is paired with each wrong one (RewardBench 2), a single wrong answer with each right one.
    Otherwise the i-th right answer is paired with the i-th wrong one, each once (RM-Bench: answers of one style).
    """
    chosen, rejected = ([text_of(text, name) for text in row[name]] for name in ("chosen", "rejected"))
    one_side = len(chosen) == 1 or len(rejected) == 1
    pairs = [(a, b) for a in chosen for b in rejected] if one_side else list(zip(chosen, rejected, strict=False))
    prompt = asked(row, config)
    return [Draft(prompt, *pair) for pair in pairs][: config.max_pairs_per_prompt]


def fits_answer_lists(row: Row) -> bool:
    """Whether both sides are lists of texts."""
    sides = [row.get(name) for name in ("chosen", "rejected")]
    return all(isinstance(side, list) and side and all(isinstance(text, str) for text in side) for side in sides)


def fits_rewardbench2(row: Row) -> bool:
    """Whether both sides are lists of texts as in RewardBench 2, where mostly one answer is right."""
    return fits_answer_lists(row) and ("num_correct" in row or len(row["chosen"]) == 1)


def _answers(row: Row, *names: str) -> dict[str, str]:
    """The distinct answers of a cell, by their text in lower case with single spaces. Raises Refused.

    An answer without a final full stop gets one, as in TruthfulQA's own evaluation (its `split_multi_answer`): hidden
    states are read at the last token, and a text that just breaks off would look unfinished there.
    """
    value = next((row[name] for name in names if not is_missing(row.get(name))), None)
    if isinstance(value, str) and value.lstrip().startswith(("['", '["')):
        raise Refused(names[-1], "a list written as text that can't be read")
    texts = value if isinstance(value, list) else text_of(value, names[-1]).split(";")
    answers: dict[str, str] = {}
    for text in texts:
        answer = text_of(text, names[-1], may_be_empty=True)
        if answer:
            closed = answer if answer.endswith((".", "!", "?", '"', "”")) else answer + "."
            answers.setdefault(" ".join(closed.casefold().split()), closed)
    if not answers:
        raise Refused(names[-1], "empty")
    return answers


def _choices(row: Row) -> dict[str, list[str]]:
    """The answers of TruthfulQA's multiple choices, {choices, labels} with label 1 for each correct one.

    Empty if the row has none. Raises Refused.
    """
    name = next((name for name in CHOICES if isinstance(row.get(name), dict)), None)
    if name is None:
        return {}
    choices, labels = (row[name].get(key) for key in ("choices", "labels"))
    if not isinstance(choices, list) or not isinstance(labels, list) or len(choices) != len(labels) or not {0, 1}.issuperset(labels):
        raise Refused(name, "not an object {choices, labels} with a label of 0 or 1 for each choice")
    return {
        side: [text for text, label in zip(choices, labels, strict=True) if label == wanted]
        for side, wanted in (("correct_answers", 1), ("incorrect_answers", 0))
    }


def read_truthfulqa(row: Row, config: DataConfig) -> Readings:
    """TruthfulQA: the i-th correct answer is paired with the i-th incorrect one, in the order listed.

    Each answer is used once (METHOD.md section 3: no response twice), so a question gives min(correct, incorrect,
    `max_pairs_per_prompt`) pairs. An answer that is listed twice counts once, one that is listed on both sides is left
    out. 817 questions give 2,364 pairs at 4 pairs a prompt. Raises Refused.
    """
    question = next((row[name] for name in ("question", "Question") if not is_missing(row.get(name))), None)
    prompt = with_context(row, user_prompt(question, "Question"))
    row = {**row, **_choices(row)}
    correct = _answers(row, "correct_answers", "Correct Answers")
    incorrect = _answers(row, "incorrect_answers", "Incorrect Answers")
    sides = [[answer for key, answer in side.items() if key not in other] for side, other in ((correct, incorrect), (incorrect, correct))]
    if not all(sides):
        raise Refused("Incorrect Answers", "each answer of one side is also listed on the other")
    return [Draft(prompt, *answers) for answers in zip(*sides, strict=False)][: config.max_pairs_per_prompt]


def fits_truthfulqa(row: Row) -> bool:
    """Whether a row has a question with correct and incorrect answers, or with multiple choices.

    The question is required because UltraFeedback has the two lists as well, beside `instruction`.
    """
    both = (("Correct Answers", "Incorrect Answers"), ("correct_answers", "incorrect_answers"))
    lists = any(correct in row and incorrect in row for correct, incorrect in both)
    choices = any(isinstance(row.get(name), dict) for name in CHOICES)
    return (lists or choices) and ("question" in row or "Question" in row)

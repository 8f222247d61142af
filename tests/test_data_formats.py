"""What the columns of each format mean, and what is refused, with the words that are first_turn. Cases by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_helpers import csv_bytes, load, load_rows, refusals, trl_row, trl_rows

from core.config import DataConfig
from core.data.formats import FORMATS, candidates_of
from core.data.several_answers import read_completions, read_truthfulqa
from core.errors import ConfigError, DataError
from core.types import Message


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def only_pair(folder: Path, row: dict[str, Any], **config: Any) -> tuple[tuple[Message, ...], str, str]:
    pairs, _ = load_rows(folder, [row], **config)
    (pair,) = pairs
    return pair.prompt, pair.chosen, pair.rejected


def refused(folder: Path, row: dict[str, Any], good: dict[str, Any] | None = None, **config: Any) -> tuple[str, str]:
    """Field and reason for which a row is refused, a good one beside it."""
    good = good or trl_row(1)
    _, report = load_rows(folder, [good, row, good], **config)
    ((number, field, reason),) = refusals(report)
    assert number == 2
    assert report.n_used == 2
    return field, reason


# --- TRL


@pytest.mark.parametrize("prompt", ["Q?", [user("Q?")]], ids=["text", "messages"])
@pytest.mark.parametrize("answer", [lambda t: t, lambda t: [assistant(t)]], ids=["text", "messages"])
def test_trl_prompts_and_answers_are_texts_or_messages(prompt: Any, answer: Any, tmp_path: Path) -> None:
    assert only_pair(tmp_path, {"prompt": prompt, "chosen": answer(" yes\n"), "rejected": answer("no")}) == ((user("Q?"),), "yes", "no")


def test_trl_keeps_system_messages_and_former_turns(tmp_path: Path) -> None:
    prompt = [system("Be brief."), user("a"), assistant("b"), user("c")]
    assert only_pair(tmp_path, {"prompt": prompt, "chosen": "yes", "rejected": "no"})[0] == tuple(prompt)
    assert only_pair(tmp_path, {"prompt": [system(" "), user("c")], "chosen": "yes", "rejected": "no"})[0] == (user("c"),)


def test_trl_prompt_repeated_in_the_answers_counts_once(tmp_path: Path) -> None:
    asked = [user("a"), assistant("b"), user("c")]
    row = {"prompt": asked, "chosen": [*asked, assistant("yes")], "rejected": [*asked, assistant("no")]}
    assert only_pair(tmp_path, row) == (tuple(asked), "yes", "no")
    row["prompt"] = "c"
    assert only_pair(tmp_path, row) == (tuple(asked), "yes", "no")
    row["prompt"] = "another"
    assert refused(tmp_path, row) == ("prompt", "different prompts: not a message of the dialogues")


def test_trl_answers_of_several_turns_share_all_but_the_last(tmp_path: Path) -> None:
    row = {"prompt": [user("a")], "chosen": [assistant("b"), user("c"), assistant("yes")], "rejected": [assistant("b"), user("c"), assistant("no")]}
    assert only_pair(tmp_path, row) == ((user("a"), assistant("b"), user("c")), "yes", "no")
    row["rejected"] = [assistant("B"), user("c"), assistant("no")]
    assert refused(tmp_path, row) == ("rejected", "different prompts: the dialogues differ before their last message")
    row["rejected"] = [assistant("b"), user("no")]
    assert refused(tmp_path, row)[0] == "rejected"


def test_trl_implicit_prompt_of_messages(tmp_path: Path) -> None:
    shared = [system("s"), user("a")]
    row = {"chosen": [*shared, assistant("yes")], "rejected": [*shared, assistant("no")]}
    pairs, report = load_rows(tmp_path, [row])
    assert (pairs[0].prompt, pairs[0].chosen, report.variant) == (tuple(shared), "yes", "implicit prompt")
    assert refused(tmp_path, {"chosen": [assistant("yes")], "rejected": [assistant("no")]}, row) == (
        "prompt",
        "missing, and the dialogues share no message before their last",
    )
    ends = {"chosen": [user("a"), assistant("b"), assistant("c")], "rejected": [user("a"), assistant("b"), assistant("d")]}
    assert refused(tmp_path, ends, row) == ("prompt", "ends with a message of role assistant, not with the user's")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", "blue.", "green.")),
        ("Q: sky? blue", "Q: sky? black", ("Q: sky?", "blue", "black")),  # never cut within a word
        ("What?\nYes", "What?\nYes and no", ("What?", "Yes", "Yes and no")),  # neither side is left empty
    ],
)
def test_trl_implicit_prompt_of_texts(chosen: str, rejected: str, expected: tuple[str, str, str], tmp_path: Path) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    assert only_pair(tmp_path, row, implicit_prompt="text") == ((user(expected[0]),), *expected[1:])
    with pytest.raises(DataError, match=r"(?s)1 x prompt: missing.*--implicit-prompt text"):
        load_rows(tmp_path, [row])


def test_trl_texts_that_share_no_word_have_no_implicit_prompt(tmp_path: Path) -> None:
    good = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    words = ("prompt", "missing, and the answers do not begin with the same words")
    assert refused(tmp_path, {"chosen": "Yes.", "rejected": "Yet no."}, good, implicit_prompt="text") == words
    assert refused(tmp_path, good) == ("prompt", "missing")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": None}, ("chosen", "missing")),
        ({"rejected": " \n"}, ("rejected", "empty")),
        ({"prompt": ""}, ("prompt", "empty")),
        ({"prompt": None}, ("prompt", "missing")),
        ({"prompt": []}, ("prompt", "empty")),
        ({"chosen": float("nan")}, ("chosen", "missing")),
        ({"chosen": 5}, ("chosen", "not text but a number")),
        ({"chosen": True}, ("chosen", "not text but a truth value")),
        ({"rejected": {"a": 1}}, ("rejected", "not text but an object")),
        ({"rejected": [assistant("x")]}, ("rejected", "not text but a list")),
        ({"chosen": [assistant("x")], "rejected": ["x"]}, ("rejected", "not a list of messages {role, content}")),
        ({"prompt": ["x"]}, ("prompt", "not a list of messages {role, content}")),
        ({"prompt": [{"role": "tool", "content": "x"}]}, ("prompt", "a tool call (a message of role tool): only texts are read")),
        ({"prompt": [{"role": "judge", "content": "x"}]}, ("prompt", "a message whose role is not system, user or assistant but judge")),
        ({"prompt": [{"role": ["user"], "content": "x"}]}, ("prompt", "a message whose role is not system, user or assistant but ['user']")),
        ({"prompt": [user("a"), {"role": "user"}]}, ("prompt", "missing")),
        ({"prompt": [user("a"), {"role": "user", "content": [{"type": "image"}]}]}, ("prompt", "holds an image: only texts are read")),
        ({"prompt": [user("a"), assistant("b")]}, ("prompt", "ends with a message of role assistant, not with the user's")),
        ({"prompt": [system("a")]}, ("prompt", "ends with a message of role system, not with the user's")),
        ({"prompt": [system("")]}, ("prompt", "empty")),
        ({"chosen": "same", "rejected": " same\n"}, ("rejected", "identical answers")),
        ({"chosen": "a\0b"}, ("chosen", "holds a null character")),
        ({"chosen": "half \ud83d"}, ("chosen", "not valid Unicode: bytes that are not UTF-8, or half a surrogate pair")),
        ({"chosen": "x" * 1_000_001}, ("chosen", "longer than 1,000,000 characters")),
    ],
)
def test_what_is_refused_and_why(change: dict[str, Any], expected: tuple[str, str], tmp_path: Path) -> None:
    assert refused(tmp_path, trl_row(2) | change) == expected


# --- Anthropic hh-rlhf


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{who}: {text}" for who, text in zip(("Human", "Assistant") * len(turns), turns, strict=False))


HH = {"chosen": dialogue("a", "b", "c", "yes"), "rejected": dialogue("a", "b", "c", "no")}


def test_hh_dialogues(tmp_path: Path) -> None:
    pairs, report = load_rows(tmp_path, [HH])
    assert (report.format, report.variant) == ("hh-rlhf", "dialogues")
    assert (pairs[0].prompt, pairs[0].chosen, pairs[0].rejected) == ((user("a"), assistant("b"), user("c")), "yes", "no")


def test_hh_colons_within_a_turn_do_not_begin_one(tmp_path: Path) -> None:
    first_turn = "one\nHuman: not a turn\n\nHumans: neither"
    row = {"chosen": dialogue(first_turn, "yes"), "rejected": dialogue(first_turn, "no")}
    assert only_pair(tmp_path, row)[0] == (user(first_turn),)


def test_hh_turns_of_one_speaker_in_a_row_become_one_message(tmp_path: Path) -> None:
    asked = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nHuman:\n\nHuman: d\n\nAssistant:"
    row = {"chosen": asked + " yes", "rejected": asked + " no"}
    assert only_pair(tmp_path, row)[0] == (user("a\n\nb"), assistant("c"), user("d"))


def test_hh_with_the_prompt_apart(tmp_path: Path) -> None:
    row = {"prompt": dialogue("a", "b", "c") + "\n\nAssistant:", "chosen": " yes", "rejected": " no"}
    pairs, report = load_rows(tmp_path, [row])
    assert (report.format, report.variant) == ("hh-rlhf", "prompt apart")
    assert (pairs[0].prompt, pairs[0].chosen) == ((user("a"), assistant("b"), user("c")), "yes")
    assert only_pair(tmp_path, row | HH)[0] == (user("a"), assistant("b"), user("c"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rejected": dialogue("a", "B", "c", "no")}, ("rejected", "different prompts: the dialogues differ before their last turn")),
        ({"rejected": dialogue("a", "no")}, ("rejected", "different prompts: the dialogues differ before their last turn")),
        ({"chosen": dialogue("a", "b", "c", "")}, ("chosen", "empty")),
        ({"chosen": dialogue("a", "b", "c"), "rejected": dialogue("a", "b", "d")}, ("chosen", "the last turn is not the assistant's")),
        ({"chosen": "no turns"}, ("chosen", "not a dialogue of Human: and Assistant: turns")),
        ({"chosen": "before" + HH["chosen"]}, ("chosen", "not a dialogue of Human: and Assistant: turns")),
        ({"chosen": HH["rejected"]}, ("rejected", "identical answers")),
        ({"rejected": None}, ("rejected", "missing")),
        (
            {"chosen": "\n\nAssistant: yes", "rejected": "\n\nAssistant: no"},
            ("prompt", "missing, and the dialogues share no message before their last"),
        ),
    ],
)
def test_hh_what_is_refused(change: dict[str, Any], expected: tuple[str, str], tmp_path: Path) -> None:
    assert refused(tmp_path, HH | change, HH) == expected


# --- PKU-SafeRLHF

SAFE = {"prompt": "Q?", "response_0": "zero", "response_1": "one", "safer_response_id": 1, "better_response_id": 0, "is_response_0_safe": False}


def test_safe_rlhf_the_preference_is_chosen_by_config(tmp_path: Path) -> None:
    assert only_pair(tmp_path, SAFE) == ((user("Q?"),), "one", "zero")
    assert only_pair(tmp_path, SAFE, preference="better") == ((user("Q?"),), "zero", "one")
    pairs, report = load(tmp_path, "x.csv", csv_bytes([SAFE]))
    assert (pairs[0].chosen, report.format) == ("one", "safe-rlhf")
    assert pairs[0].meta == {"is_response_0_safe": "False", "row": 2, "preference": "safer", "chosen_response": 1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"safer_response_id": None}, ("safer_response_id", "missing")),
        ({"safer_response_id": -1}, ("safer_response_id", "neither 0 nor 1: a tie, or no judgement")),
        ({"safer_response_id": True}, ("safer_response_id", "neither 0 nor 1: a tie, or no judgement")),
        ({"response_0": "one"}, ("rejected", "identical answers")),
        ({"response_1": ""}, ("response_1", "empty")),
    ],
)
def test_safe_rlhf_what_is_refused(change: dict[str, Any], expected: tuple[str, str], tmp_path: Path) -> None:
    assert refused(tmp_path, SAFE | change, SAFE) == expected


# --- TruthfulQA


def truthful(correct: str, incorrect: str) -> dict[str, Any]:
    return {"Type": "T", "Question": "Q?", "Best Answer": "a", "Correct Answers": correct, "Incorrect Answers": incorrect}


@pytest.mark.parametrize(
    ("correct", "incorrect", "limit", "expected"),
    [
        ("a; b; c", "x; y; z", 4, [("a", "x"), ("b", "y"), ("c", "z")]),
        ("a; b; c", "x; y; z", 2, [("a", "x"), ("b", "y")]),
        ("a; b; c", "x", 4, [("a", "x")]),  # never an answer twice
        ("a; a ; A; b", "x; y", 4, [("a", "x"), ("b", "y")]),  # an answer listed twice counts once
        ("a; u; b", "x; U; y", 4, [("a", "x"), ("b", "y")]),  # an answer on both sides has no label
        ("a;; b; ", ";x", 4, [("a", "x")]),
    ],
)
def test_truthfulqa_pairs(correct: str, incorrect: str, limit: int, expected: list[tuple[str, str]]) -> None:
    drafts = read_truthfulqa(truthful(correct, incorrect), DataConfig(max_pairs_per_prompt=limit))
    assert [(d.chosen, d.rejected) for d in drafts] == [(f"{a}.", f"{b}.") for a, b in expected]


def test_truthfulqa_answers_end_as_sentences() -> None:
    drafts = read_truthfulqa(truthful("Yes; No, it can't.; Why?", "A; B!; C"), DataConfig())
    assert [(d.chosen, d.rejected) for d in drafts] == [("Yes.", "A."), ("No, it can't.", "B!"), ("Why?", "C.")]


def test_truthfulqa_ids_meta_and_the_hub_columns(tmp_path: Path) -> None:
    hub = {"id": "q7", "question": "Q?", "correct_answers": ["a", "b"], "incorrect_answers": ["x", "y"], "category": "C", "best_answer": "a"}
    pairs, report = load_rows(tmp_path, [hub])
    assert report.format == "truthfulqa"
    assert [(p.pair_id, p.chosen, p.rejected) for p in pairs] == [("q7-1", "a.", "x."), ("q7-2", "b.", "y.")]
    assert pairs[0].meta == {"category": "C", "row": 1}


def test_truthfulqa_what_is_refused(tmp_path: Path) -> None:
    good = truthful("a", "x")
    assert refused(tmp_path, truthful("a", " ; "), good) == ("Incorrect Answers", "empty")
    assert refused(tmp_path, truthful("a; b", "B"), good) == ("Incorrect Answers", "each answer of one side is also listed on the other")
    assert refused(tmp_path, truthful("a", "x") | {"Question": " "}, good) == ("Question", "empty")
    assert refused(tmp_path, truthful("a", "x") | {"Correct Answers": None}, good) == ("Correct Answers", "missing")


# --- RewardBench


def test_rewardbench_keeps_the_subset(tmp_path: Path) -> None:
    row = trl_row(0) | {"subset": "refusals-dangerous", "chosen_model": "m1", "rejected_model": "m2", "id": 30, "long": "x" * 201, "none": None}
    pairs, report = load_rows(tmp_path, [row])
    assert report.format == "rewardbench"
    assert pairs[0].pair_id == "30"
    assert pairs[0].meta == {"subset": "refusals-dangerous", "chosen_model": "m1", "rejected_model": "m2", "row": 1}


# --- UltraFeedback


def completions(*scored: tuple[str, Any], name: str = "overall_score") -> dict[str, Any]:
    return {"instruction": "Q?", "completions": [{"model": "m", "response": text, name: score} for text, score in scored]}


@pytest.mark.parametrize(
    ("scored", "limit", "expected"),
    [
        ([("a", 3.0), ("b", 9.0), ("c", 5.0), ("d", 1.0)], 4, [("b", "d"), ("c", "a")]),  # best with worst, second with second worst
        ([("a", 3.0), ("b", 9.0), ("c", 5.0), ("d", 1.0)], 1, [("b", "d")]),
        ([("a", 3), ("b", 9), ("c", 3)], 4, [("b", "c")]),
        ([("a", 5), ("b", 9), ("c", 5), ("d", 1)], 4, [("b", "d")]),  # a tie within gives no pair
        ([("a", "3"), ("b", "10")], 4, [("b", "a")]),  # numbers, not texts, are compared
        ([("same", 9), ("same", 1), ("x", 5), ("y", 4)], 4, [("x", "y")]),
    ],
)
def test_ultrafeedback_completions(scored: list[tuple[str, Any]], limit: int, expected: list[tuple[str, str]]) -> None:
    drafts = read_completions(completions(*scored), DataConfig(max_pairs_per_prompt=limit))
    assert [(d.chosen, d.rejected) for d in drafts] == expected


def test_ultrafeedback_scores_are_kept(tmp_path: Path) -> None:
    pairs, report = load_rows(tmp_path, [completions(("a", 1.5), ("b", 4), name="fine-grained_score") | {"source": "evol"}])
    assert (report.format, report.variant) == ("ultrafeedback", "completions")
    assert pairs[0].meta == {"source": "evol", "row": 1, "score_chosen": 4.0, "score_rejected": 1.5}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (completions(("a", 2), ("b", 2)), "a tie: all scores are equal"),
        (completions(("a", 2)), "fewer than two"),
        (completions(), "fewer than two"),
        (completions(("a", 2), ("b", None)), "a score is missing"),
        (completions(("a", 2), ("b", "N/A")), "not a number"),
        (completions(("a", 2), ("b", float("inf"))), "not a number"),
        (completions(("a", 2), ("b", True)), "not a number"),
        (completions(("a", 2), ("", 3)), "empty"),
        ({"instruction": "Q?", "completions": ["a"]}, "not a list of objects {response, overall_score}"),
        ({"instruction": "Q?", "completions": None}, "missing"),
    ],
)
def test_ultrafeedback_what_is_refused(row: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert refused(tmp_path, row, completions(("a", 1), ("b", 2))) == ("completions", expected)


def test_ultrafeedback_binarized(tmp_path: Path) -> None:
    row = {
        "prompt": "Q?",
        "chosen": [user("Q?"), assistant("yes")],
        "rejected": [user("Q?"), assistant("no")],
        "score_chosen": 8,
        "score_rejected": 6.5,
    }
    pairs, report = load_rows(tmp_path, [row])
    assert (report.format, report.variant) == ("ultrafeedback", "binarized")
    assert (pairs[0].prompt, pairs[0].chosen, pairs[0].rejected) == ((user("Q?"),), "yes", "no")
    assert pairs[0].meta == {"row": 1, "score_chosen": 8.0, "score_rejected": 6.5}
    assert only_pair(tmp_path, {k: v for k, v in row.items() if k != "prompt"})[0] == (user("Q?"),)
    assert refused(tmp_path, row | {"score_rejected": 8}, row) == ("score_chosen", "a tie: both scores are equal")
    assert refused(tmp_path, row | {"score_rejected": 9}, row) == ("score_chosen", "below the score of rejected")
    assert refused(tmp_path, row | {"score_rejected": None}, row) == ("score_rejected", "missing")


# --- detection and mapping


def test_each_row_is_read_by_its_own_columns(tmp_path: Path) -> None:
    pairs, report = load_rows(tmp_path, [SAFE, *trl_rows(3), HH, {"text": "neither", "label": 1}])
    assert [p.chosen for p in pairs] == ["one", *(row["chosen"] for row in trl_rows(3)), "yes"]
    assert (report.format, report.variant) == ("trl", "explicit prompt")
    assert report.n_read_as == {"trl (explicit prompt)": 3, "safe-rlhf": 1, "hh-rlhf (dialogues)": 1}
    assert "3 rows read as trl (explicit prompt)" in report.notes
    assert refusals(report) == [(6, "row", "no format has these columns: text, label")]


def test_the_format_is_found_after_a_long_run_of_other_rows(tmp_path: Path) -> None:
    _, report = load_rows(tmp_path, [{"a": 1}] * 350 + trl_rows(3))
    assert (report.format, report.n_used, len(report.refused)) == ("trl", 3, 350)


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    row = SAFE | trl_row(0)
    assert load_rows(tmp_path, [row])[1].format == "safe-rlhf"
    pairs, report = load_rows(tmp_path, [row], format="trl")
    assert (report.format, pairs[0].chosen) == ("trl", trl_row(0)["chosen"])
    with pytest.raises(DataError, match=r"(?s)no usable row.*expected: format hh-rlhf.*1 x chosen: not a dialogue .* \(first in row 1\)"):
        load_rows(tmp_path, [trl_row(0)], format="hh-rlhf")


def test_every_format_of_the_config_can_be_detected() -> None:
    (choices,) = [f.metadata["choices"] for f in DataConfig.__dataclass_fields__.values() if f.name == "format"]
    assert set(choices) == {"auto", *(f.name for f in FORMATS)}
    assert candidates_of({"something": 1}, FORMATS) == []


def test_an_unknown_format_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path, [{"question": "a", "answer": "b"}, {"question": "c", "score": 1}])
    assert "format of" in caught.value.problem
    assert caught.value.found == "columns question, answer, score"
    assert "--columns prompt=YOURS" in caught.value.remedy
    with pytest.raises(DataError, match="and 60 more"):
        load_rows(tmp_path, [{f"column {i}": 1 for i in range(100)}])


def test_a_column_mapping(tmp_path: Path) -> None:
    row = {"id": "a", "question": "Q?", "good": "yes", "bad": "no", "prompt": "decoy"}
    mapping = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert only_pair(tmp_path, row, columns=mapping) == ((user("Q?"),), "yes", "no")
    pairs, _ = load_rows(tmp_path, [trl_row(0) | {"key": "k7"}], columns={"id": "key"})
    assert pairs[0].pair_id == "k7"
    with pytest.raises(DataError, match=r"(?s)has no column questoin\n  found: columns id, question, good"):
        load_rows(tmp_path, [row], columns={"prompt": "questoin"})
    with pytest.raises(ConfigError, match="no format has a field answer"):
        load_rows(tmp_path, [row], columns={"answer": "good"})

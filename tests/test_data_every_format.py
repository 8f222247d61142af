"""Every kind of preference file that docs/FORMATS.md lists, as a small file of our own: the pairs that must come out, worked out by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from data_helpers import load_rows, refusals

from core.data.formats import FORMATS
from core.types import Message

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"u": "user", "a": "assistant", "s": "system"}


def messages(*texts: str) -> list[Message]:
    """Messages from texts such as `u:Hi`, `a:Hello`, `s:Be brief`."""
    return [{"role": NAMES[text[0]], "content": text[2:]} for text in texts]  # type: ignore[typeddict-item]


def shared(*texts: str) -> list[dict[str, str]]:
    """The same as ShareGPT writes them."""
    return [{"from": {"u": "human", "a": "gpt", "s": "system"}[text[0]], "value": text[2:]} for text in texts]


@dataclass(frozen=True)
class Example:
    """Rows of a file, the pairs they must give as (prompt, chosen, rejected), and for each row that is refused what its reason holds."""

    rows: list[dict[str, Any]]
    pairs: list[tuple[list[Message], str, str]]
    refused: dict[int, str] = field(default_factory=dict)


ASK = messages("u:Why?")
STUDIO = {"prompt": "Why?", "answer1": "good", "answer2": "bad"}
RECORD = {"prompt": "Why?", "response_1": "bad", "response_2": "good"}


def studio(*selected: str, **task: Any) -> dict[str, Any]:
    annotations = [
        {"was_cancelled": False, "result": [{"type": "pairwise", "from_name": "pw", "to_name": "answer1,answer2", "value": {"selected": side}}]}
        for side in selected
    ]
    return {"id": 1, "data": STUDIO, "annotations": annotations, **task}


EXAMPLES: dict[str, Example] = {
    "trl (explicit prompt)": Example(
        [
            {"prompt": "Why?", "chosen": "good", "rejected": "bad"},
            {"prompt": messages("s:Brief.", "u:Why?"), "chosen": messages("a:good"), "rejected": messages("a:bad")},
            {"query": "Why?", "chosen_response": "good", "rejected_response": "bad"},
            {"prompt": "Why?", "question": "Another?", "chosen": "good", "rejected": "bad"},
        ],
        [(ASK, "good", "bad"), (messages("s:Brief.", "u:Why?"), "good", "bad"), (ASK, "good", "bad")],
        {4: "the columns prompt and question hold different prompts"},
    ),
    "trl (implicit prompt)": Example(
        [
            {"chosen": messages("u:Why?", "a:good"), "rejected": messages("u:Why?", "a:bad")},
            {"chosen": "Because it is good", "rejected": "Because it is bad"},
        ],
        [(ASK, "good", "bad")],
        {2: "missing"},
    ),
    "hh-rlhf (dialogues)": Example(
        [
            {"chosen": "\n\nHuman: Why?\n\nAssistant: good", "rejected": "\n\nHuman: Why?\n\nAssistant: bad"},
            {
                "chosen": "Human: Hi\nAssistant: Yes?\nHuman: Why?\nAssistant: good",
                "rejected": "Human: Hi\nAssistant: Yes?\nHuman: Why?\nAssistant: bad",
            },
            {
                "chosen": "Human: Hi\n\nAssistant: Yes?\nHuman: Why?\nAssistant: good",
                "rejected": "Human: Hi\n\nAssistant: Yes?\nHuman: Why?\nAssistant: bad",
            },
            {"prompt": "Why?", "chosen": "Human: Why?\n\nAssistant: good", "rejected": "Human: Why?\n\nAssistant: bad"},
        ],
        [(ASK, "good", "bad"), (messages("u:Hi", "a:Yes?", "u:Why?"), "good", "bad"), (ASK, "good", "bad")],
        {3: "begins as the other speaker's turns do"},
    ),
    "hh-rlhf (prompt apart)": Example(
        [
            {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " good", "rejected": " bad"},
            {"prompt": "Human: Hi\n\nAssistant: Yes?\n\nHuman: Why?", "chosen": "good", "rejected": "bad"},
            {"prompt": "Human: Why?", "chosen": "Assistant: good", "rejected": "Assistant: bad"},
        ],
        [(ASK, "good", "bad"), (messages("u:Hi", "a:Yes?", "u:Why?"), "good", "bad"), (ASK, "good", "bad")],
    ),
    "safe-rlhf": Example(
        [
            {"prompt": "Why?", "response_0": "bad", "response_1": "good", "safer_response_id": 1, "better_response_id": 0},
            {"prompt": "Why?", "response_0": "bad", "response_1": "good", "safer_response_id": -1, "better_response_id": 0},
        ],
        [(ASK, "good", "bad")],
        {2: "neither 0 nor 1"},
    ),
    "truthfulqa": Example(
        [
            {"Question": "Why?", "Correct Answers": "Good; Fine", "Incorrect Answers": "Bad"},
            {"question": "Why?", "correct_answers": ["Good"], "incorrect_answers": ["good."]},
        ],
        [(ASK, "Good.", "Bad.")],
        {2: "each answer of one side is also listed on the other"},
    ),
    "rewardbench": Example(
        [
            {"prompt": "Why?", "chosen": "good", "rejected": "bad", "subset": "refusals"},
            {"prompt": "Why?", "chosen": "good", "rejected": " ", "subset": "refusals"},
        ],
        [(ASK, "good", "bad")],
        {2: "empty"},
    ),
    "rewardbench-2": Example(
        [
            {"prompt": "Why?", "chosen": ["good"], "rejected": ["bad", "worse", "worst"], "num_correct": 1},
            {"prompt": "Name one.", "chosen": ["A", "B"], "rejected": ["X", "Y"], "num_correct": 2},
            {"prompt": "Why?", "chosen": ["good"], "rejected": ["bad", ""], "num_correct": 1},
        ],
        [(ASK, "good", other) for other in ("bad", "worse", "worst")] + [(messages("u:Name one."), "A", "X"), (messages("u:Name one."), "B", "Y")],
        {3: "empty"},
    ),
    "rm-bench": Example(
        [
            {"id": "m1", "prompt": "Why?", "chosen": ["g1", "g2", "g3"], "rejected": ["b1", "b2", "b3"], "domain": "chat"},
            {"prompt": "Why?", "chosen": ["g1", "same"], "rejected": ["b1", "same"]},
        ],
        [(ASK, f"g{i}", f"b{i}") for i in (1, 2, 3)],
        {2: "identical answers"},
    ),
    "ultrafeedback (completions)": Example(
        [
            {
                "instruction": "Why?",
                "completions": [{"response": text, "overall_score": score} for text, score in (("mid", 5), ("good", 9), ("bad", 1))],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            },
            {"instruction": "Why?", "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 1}]},
        ],
        [(ASK, "good", "bad")],
        {2: "a tie"},
    ),
    "ultrafeedback (binarized)": Example(
        [
            {
                "prompt": "Why?",
                "chosen": messages("u:Why?", "a:good"),
                "rejected": messages("u:Why?", "a:bad"),
                "score_chosen": 9,
                "score_rejected": 2,
                "messages": messages("u:Why?", "a:good"),
            },
            {"prompt": "Why?", "chosen": "good", "chosen-rating": 2, "rejected": "bad", "rejected-rating": 4},
            {"instruction": "Why?", "chosen_response": "good", "rejected_response": "bad", "chosen_avg_rating": 5, "rejected_avg_rating": 5},
        ],
        [(ASK, "good", "bad")],
        {2: "below the score of rejected", 3: "a tie"},
    ),
    "ultrafeedback (generations)": Example(
        [
            {"instruction": "Why?", "generations": ["bad", "good", "mid"], "ratings": [1, 5, 3]},
            {"instruction": "Why?", "generations": ["a", "b"], "ratings": [4, 4]},
        ],
        [(ASK, "good", "bad")],
        {2: "a tie"},
    ),
    "helpsteer (preference)": Example(
        [
            {"prompt": "Why?", "response_1": "good", "response_2": "bad", "preference_strength": -2, "preference_statement": "@1 is good"},
            {"prompt": "Hi<extra_id_1>Assistant\nYes?\n<extra_id_1>User\nWhy?", "response_1": "bad", "response_2": "good", "preference_strength": 1},
            {"context": messages("u:Hi", "a:Yes?", "u:Why?"), "response1": "bad", "response2": "good", "overall_preference": 3, "domain": "general"},
            {"prompt": "Why?", "response_1": "a", "response_2": "b", "preference_strength": 0},
        ],
        [(ASK, "good", "bad"), *[(messages("u:Hi", "a:Yes?", "u:Why?"), "good", "bad")] * 2],
        {4: "a tie"},
    ),
    "helpsteer (ratings)": Example(
        [
            {"prompt": "Why?", "response": "bad", "helpfulness": 1, "correctness": 4, "verbosity": 4},
            {"prompt": "Why?", "response": "good", "helpfulness": 3, "correctness": 1, "verbosity": 0},
            {"prompt": "How?", "response": "x", "helpfulness": 3, "correctness": 1, "verbosity": 0},
            {"prompt": "How?", "response": "y", "helpfulness": 3, "correctness": 4, "verbosity": 0},
            {"prompt": "When?", "response": "y", "helpfulness": 3, "correctness": 4, "verbosity": 0},
        ],
        [(ASK, "good", "bad")],
        {3: "a tie", 4: "a tie", 5: "the only answer"},
    ),
    "nectar": Example(
        [
            {
                "prompt": "\n\nHuman: Why? \n\nAssistant: ",
                "answers": [{"answer": text, "model": "m", "rank": rank} for text, rank in (("worst", 4), ("good", 2), ("best", 1), ("bad", 3))],
            },
            {"prompt": "Why?", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": None}]},
        ],
        [(ASK, "best", "worst"), (ASK, "good", "bad")],
        {2: "missing"},
    ),
    "arena": Example(
        [
            {
                "conversation_a": messages("u:Why?", "a:bad"),
                "conversation_b": messages("u:Why?", "a:good"),
                "model_a": "m1",
                "model_b": "m2",
                "winner": "model_b",
                "turn": 1,
            },
            {
                "conversation_a": messages("u:Why?", "a:good", "u:And?", "a:x"),
                "conversation_b": messages("u:Why?", "a:bad", "u:And?", "a:y"),
                "winner": "model_a",
                "turn": 1,
            },
            {
                "conversation_a": messages("u:Why?", "a:good", "u:And?", "a:x"),
                "conversation_b": messages("u:Why?", "a:bad", "u:And?", "a:y"),
                "winner": "model_a",
                "turn": 2,
            },
            {"conversation_a": messages("u:Why?", "a:x"), "conversation_b": messages("u:Why?", "a:y"), "winner": "tie (bothbad)", "turn": 1},
            {"conversation_a": messages("u:Why?", "a:x"), "conversation_b": messages("u:Why?", "a:y"), "winner": "somebody", "turn": 1},
        ],
        [(ASK, "good", "bad"), (ASK, "good", "bad")],
        {3: "different prompts", 4: "a tie", 5: "names neither side"},
    ),
    "a-b": Example(
        [
            {"input": "Why?", "output_1": "good", "output_2": "bad", "label": 1},
            {"input": "Why?", "output_1": "bad", "output_2": "good", "label": 2},
            {"prompt": "Why?", "response_a": "bad", "response_b": "good", "winner": "B"},
            {"prompt": '["Why?"]', "response_a": '["good"]', "response_b": '["bad"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
            {"prompt": "Why?", "answer_0": "bad", "answer_1": "good", "score_0": -0.5, "score_1": 0.5},
            {"prompt": "Why?", "response_a": "x", "response_b": "y", "winner": "tie"},
            {"prompt": "Why?", "response_A": "x", "response_B": "y", "label": 1},
        ],
        [(ASK, "good", "bad")] * 5,
        {6: "a tie", 7: "--label-values"},
    ),
    "llama-factory (alpaca)": Example(
        [
            {
                "instruction": "Say why",
                "input": "The sky is blue.",
                "system": "Brief.",
                "history": [["Hi", "Yes?"]],
                "chosen": "good",
                "rejected": "bad",
            },
            {"instruction": "Say why", "input": "", "chosen": "good", "rejected": "bad", "history": [], "system": ""},
            {"instruction": "Say why", "history": "We spoke of the sky.", "chosen": "good", "rejected": "bad"},
        ],
        [(messages("s:Brief.", "u:Hi", "a:Yes?", "u:Say why\n\nThe sky is blue."), "good", "bad"), (messages("u:Say why"), "good", "bad")],
        {3: "neither a list of [user, assistant] pairs nor a list of messages"},
    ),
    "llama-factory (sharegpt ranking)": Example(
        [
            {"conversations": shared("u:Hi", "a:Yes?", "u:Why?"), "chosen": shared("a:good")[0], "rejected": shared("a:bad")[0]},
            {"conversations": shared("u:Why?"), "system": "Brief.", "chosen": "good", "rejected": "bad"},
            {"conversations": [{"from": "narrator", "value": "Why?"}], "chosen": shared("a:good")[0], "rejected": shared("a:bad")[0]},
            {"conversations": shared("u:Why?"), "tools": [{"name": "weather"}], "chosen": shared("a:good")[0], "rejected": shared("a:bad")[0]},
            {"conversations": [*shared("u:Why?"), {"from": "function_call", "value": "{}"}], "chosen": "good", "rejected": "bad"},
        ],
        [(messages("u:Hi", "a:Yes?", "u:Why?"), "good", "bad"), (messages("s:Brief.", "u:Why?"), "good", "bad")],
        {3: "but narrator", 4: "tool call", 5: "a tool call (a message of role function_call)"},
    ),
    "llama-factory (two outputs)": Example(
        [
            {"instruction": "Why", "input": "blue", "output": ["good", "bad"]},
            {"instruction": "Why", "input": "blue", "output": ["good", "bad", "worse"]},
        ],
        [(messages("u:Why\n\nblue"), "good", "bad")],
        {2: "a list of 3 answers"},
    ),
    "openai": Example(
        [
            {
                "input": {"messages": messages("s:Brief.", "u:Why?"), "tools": []},
                "preferred_output": messages("a:good"),
                "non_preferred_output": messages("a:bad"),
            },
            {
                "input": {"messages": messages("u:Why?"), "tools": [{"type": "function"}]},
                "preferred_output": messages("a:x"),
                "non_preferred_output": messages("a:y"),
            },
        ],
        [(messages("s:Brief.", "u:Why?"), "good", "bad")],
        {2: "tools"},
    ),
    "orca": Example(
        [
            {"system": "Brief.", "question": "Why?", "chosen": "good", "rejected": "bad"},
            {"question": "Why?", "response_j": "good", "response_k": "bad"},
            {"system": "Brief.", "question": messages("s:At length.", "u:Why?"), "chosen": "good", "rejected": "bad"},
        ],
        [(messages("s:Brief.", "u:Why?"), "good", "bad"), (ASK, "good", "bad")],
        {3: "differs from the system message"},
    ),
    "swift": Example(
        [
            {"messages": messages("s:Brief.", "u:Why?", "a:good"), "rejected_response": "bad"},
            {"messages": messages("u:Why?", "a:good"), "rejected_messages": messages("u:Why?", "a:bad")},
            {"messages": messages("u:Why?"), "rejected_response": "bad"},
        ],
        [(messages("s:Brief.", "u:Why?"), "good", "bad"), (ASK, "good", "bad")],
        {3: "the last message is not the assistant's"},
    ),
    "kto": Example(
        [
            {"prompt": "Why?", "completion": "bad", "label": False},
            {"prompt": "How?", "completion": "alone", "label": True},
            {"prompt": messages("u:Why?"), "completion": messages("a:good"), "label": "True"},
            {"prompt": "Why?", "completion": "fine", "label": True},
            {"prompt": "When?", "completion": "x", "label": True},
            {"prompt": "When?", "completion": "y", "label": True},
            {"prompt": "When?", "completion": "z", "label": "maybe"},
            {"instruction": "Where?", "input": "", "output": "good", "kto_tag": True},
            {"instruction": "Where?", "input": "", "output": "bad", "kto_tag": False},
            {"messages": messages("u:Who?", "a:good"), "label": True},
            {"messages": messages("u:Who?", "a:bad"), "label": False},
        ],
        [(ASK, "good", "bad"), (messages("u:Where?"), "good", "bad"), (messages("u:Who?"), "good", "bad")],
        {2: "the only answer", 4: "no partner is left", 5: "all answers to its prompt", 6: "all answers to its prompt", 7: "neither true nor false"},
    ),
    "argilla": Example(
        [
            {
                "fields": RECORD,
                "responses": {"ranking": [{"value": [{"rank": 1, "value": "response_2"}, {"rank": 2, "value": "response_1"}], "user_id": "x"}]},
            },
            {**RECORD, "ranking.responses": [["response_2", "response_1"]], "ranking.responses.status": ["submitted"], "_server_id": "x"},
            {**RECORD, "preference": [{"user_id": "x", "value": "response_2", "status": "submitted"}]},
            {
                "fields": {"instruction": "Why?", "generation-0": "bad", "generation-1": "good"},
                "responses": {"generation-0-rating": [{"value": 1}], "generation-1-rating": [{"value": 4}]},
            },
            {
                **RECORD,
                "ranking.responses": [["response_2", "response_1"], ["response_1", "response_2"]],
                "ranking.responses.status": ["submitted"] * 2,
            },
            {
                **RECORD,
                "ranking.responses": [["response_2", "response_1"], ["response_1", "response_2"]],
                "ranking.responses.status": ["submitted", "draft"],
            },
            {"fields": RECORD, "responses": {}, "suggestions": {"ranking": {"value": ["response_2", "response_1"]}}},
        ],
        [(ASK, "good", "bad")] * 5,
        {5: "do not agree", 7: "only a suggestion"},
    ),
    "label-studio": Example(
        [
            studio("left"),
            studio("left", "right"),
            studio(),
            {
                "data": {"prompt": "Why?", "text1": "bad", "text2": "good"},
                "annotations": [{"result": [{"type": "pairwise", "to_name": "txt-1,txt-2", "value": {"selected": "right"}}]}],
            },
            {"data": STUDIO, "annotations": [{"was_cancelled": True, "result": studio("left")["annotations"][0]["result"]}]},
        ],
        [(ASK, "good", "bad")] * 2,
        {2: "do not agree", 3: "nothing was selected", 5: "nothing was selected"},
    ),
}


@pytest.mark.parametrize("title", EXAMPLES)
def test_a_file_of_each_format(title: str, tmp_path: Path) -> None:
    example = EXAMPLES[title]
    pairs, report = load_rows(tmp_path, example.rows)
    assert [(list(p.prompt), p.chosen, p.rejected) for p in pairs] == example.pairs
    reasons = {row: f"{name}: {reason}" for row, name, reason in refusals(report)}
    assert set(reasons) == set(example.refused), reasons
    for row, words in example.refused.items():
        assert words in reasons[row], reasons[row]
    assert title in report.n_read_as
    assert report.n_used == len(example.rows) - len(example.refused)


@pytest.mark.parametrize("title", EXAMPLES)
def test_columns_of_any_format_can_be_mapped(title: str, tmp_path: Path) -> None:
    """The same file under foreign column names, mapped back, gives the same pairs."""
    originals = [row for row in EXAMPLES[title].rows if "instruction" not in row.get("fields", {})]  # the mapping says that `prompt` is the question
    uses = {name for f in FORMATS for name in f.uses}
    present = {name for row in originals for name in row if name in uses}
    rows = [{f"their {name}" if name in present else name: value for name, value in row.items()} for row in originals]
    pairs, report = load_rows(tmp_path, rows, columns={name: f"their {name}" for name in present})
    expected, original = load_rows(tmp_path, originals)
    if title != "trl (explicit prompt)":  # a mapping says which of two prompts is meant, so none is refused there
        assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [(p.prompt, p.chosen, p.rejected) for p in expected]
        assert [row[0] for row in refusals(report)] == [row[0] for row in refusals(original)]


def test_each_format_has_a_name_of_its_own_and_an_example() -> None:
    titles = [f.title for f in FORMATS]
    assert len(set(titles)) == len(titles)
    assert set(EXAMPLES) == set(titles)


def test_docs_list_each_format_once() -> None:
    text = (ROOT / "docs" / "FORMATS.md").read_text(encoding="utf-8")
    lines = text.partition("## Formats\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]
    listed = [re.sub(r"`", "", row[0]) for row in rows]
    assert listed == sorted(listed) and set(listed) == {f.title for f in FORMATS}
    columns = {f.title: set(f.uses) for f in FORMATS}
    for title, row in zip(listed, rows, strict=True):
        assert len(row) == 5 and all(row[:4]), row
        named = set(re.findall(r"`([^`]+)`", row[2]))
        assert named & columns[title], f"{title}: no column that it reads is named"

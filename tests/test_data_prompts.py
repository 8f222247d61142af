"""What a row is asked: columns that make up the prompt, those that are not read and said to be, mappings, and lists written as text."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import csv_bytes, load, load_rows, parquet_bytes, refusals, trl_row, trl_rows

from core.data.literals import MAX_DEPTH, parse_literal
from core.data.messages import messages_of, unpack_messages
from core.data.texts import Refused
from core.errors import DataError
from core.types import no_progress

ASK = {"role": "user", "content": "Why?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))

ANSWERS = {"chosen": "The best way is slow", "rejected": "The best way is fast"}


def prompts(folder: Path, row: dict[str, Any], **config: Any) -> list[tuple[str, str]]:
    pairs, _ = load_rows(folder, [row], **config)
    return [(message["role"], message["content"]) for message in pairs[0].prompt]


# --- A: no prompt is made up


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Why?"}, [("user", "Why?")]),
        ({"query": "Why?"}, [("user", "Why?")]),
        ({"input": "Why?"}, [("user", "Why?")]),
        ({"instruction": "Say", "input": "why"}, [("user", "Say\n\nwhy")]),
        ({"instruction": "Say", "input": None}, [("user", "Say")]),
        ({"system": "Brief.", "question": "Why?"}, [("system", "Brief."), ("user", "Why?")]),
        ({"system_prompt": "Brief.", "prompt": [ASK]}, [("system", "Brief."), ("user", "Why?")]),
        ({"history": [["Hi", "Yes?"]], "prompt": "Why?"}, [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]),
        ({"history": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}], "prompt": "Why?"},
         [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]),
        ({"history": [["Hi", "Yes?"]], "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, ASK]},
         [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}], "prompt": "Why?", "tools": "null"},
         [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]),
        ({"prompt": "Why?", "question": " Why? "}, [("user", "Why?")]),
        ({"prompt": "", "question": "Why?"}, [("user", "Why?")]),
        ({"prompt": "Human: Why?"}, [("user", "Why?")]),
        ({"prompt": "human: Hi\nassistant: Yes?\nhuman: Why?"}, [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]),
        ({"prompt": [{"role": "system", "content": "Brief."}, ASK], "question": "Why?"}, [("system", "Brief."), ("user", "Why?")]),
        ({"prompt": "User: Hi\nAssistant: Yes?\nUser: Why?"}, [("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]),
    ],
)  # fmt: skip
def test_the_prompt_is_what_the_columns_ask(row: dict[str, Any], expected: list[tuple[str, str]], tmp_path: Path) -> None:
    assert prompts(tmp_path, row | ANSWERS) == expected


def test_a_column_that_may_hold_the_prompt_is_named(tmp_path: Path) -> None:
    rows = [{"frage": f"What is thing {i}?", "topic": "things", **ANSWERS} for i in range(3)]
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path, rows)
    assert caught.value.remedy == "name the column of the prompt: --columns prompt=frage"
    pairs, report = load_rows(tmp_path, rows + trl_rows(1))
    assert len(pairs) == 1
    assert {reason for _, _, reason in refusals(report)} == {"missing; the column frage may hold it: --columns prompt=frage"}
    assert len(load_rows(tmp_path, rows, columns={"prompt": "frage"})[0]) == 3
    alone = [{"frage": f"What is thing {i}?", "chosen": [GOOD], "rejected": [BAD]} for i in range(3)]
    with pytest.raises(DataError, match="--columns prompt=frage"):
        load_rows(tmp_path, alone)
    short = [{"user_query": "Why?", **ANSWERS}] * 2
    with pytest.raises(DataError, match="--columns prompt=user_query"):
        load_rows(tmp_path, short)


def test_answers_that_repeat_the_prompt_are_announced(tmp_path: Path) -> None:
    row = {"prompt": "Why is it so?", "chosen": "Why is it so? Because.", "rejected": "Why is it so? No."}
    assert load_rows(tmp_path, [row, trl_row(1)])[1].notes == (
        "1 row where both answers begin with the whole prompt, which is read as a part of them",
    )


def test_a_label_is_not_taken_for_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path, [{"topic": "things", "source_id": "a1", **ANSWERS}] * 3)
    assert "--implicit-prompt text" in caught.value.remedy


def test_columns_that_differ_have_to_be_chosen_between(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "query": "How?", **ANSWERS}
    _, report = load_rows(tmp_path, [row, trl_row(1)])
    ((number, field, reason),) = refusals(report)
    assert (number, field) == (1, "prompt") and "--columns prompt=prompt or prompt=query" in reason
    pairs, report = load_rows(tmp_path, [row], columns={"prompt": "query"})
    assert pairs[0].prompt[0]["content"] == "How?"
    assert report.notes == ("1 row whose column prompt is not read: the mapping reads query in its place",)


# --- B: nothing that could change the prompt is dropped in silence


def test_texts_that_nobody_reads_are_announced(tmp_path: Path) -> None:
    rows = [
        trl_row(i) | {"persona": "You are a patient teacher.", "topic": "things", "chosen_model": "m", "group": trl_row(i)["prompt"]}
        for i in range(3)
    ]
    (note,) = load_rows(tmp_path, rows)[1].notes
    assert "persona (3 rows)" in note and "--columns system=persona" in note
    assert not any(name in note for name in ("topic", "chosen_model", "group"))
    assert load_rows(tmp_path, rows, columns={"system": "persona"})[0][0].prompt[0] == {"role": "system", "content": "You are a patient teacher."}
    (note,) = load_rows(tmp_path, [{"question": "Why?", "x": "How?", **ANSWERS}], columns={"prompt": "x"})[1].notes
    assert "question (1 row)" in note
    for name, value in (("dialogue", [ASK]), ("chat", [["Hi", "Yes?"]]), ("documents", ["A page."])):
        (note,) = load_rows(tmp_path, [{"prompt": "Why?", name: value, **ANSWERS}])[1].notes
        assert f"{name} (1 row)" in note


def test_the_report_says_which_columns_made_the_pairs(tmp_path: Path) -> None:
    row = {"frage": "Why?", "query": "How?", "gut": "x", "schlecht": "y", "topic": "z", "history": None}
    _, report = load_rows(tmp_path, [row], columns={"prompt": "frage", "chosen": "gut", "rejected": "schlecht"})
    assert set(report.columns_read) == {"frage", "gut", "schlecht"} and report.to_json()["columns_read"] == list(report.columns_read)
    assert len(report.notes) == 1 and "query (1 row)" in report.notes[0]


def test_one_question_under_two_system_texts_is_two_prompts(tmp_path: Path) -> None:
    rows = [{"system": name, "prompt": "Why?", "chosen": a, "rejected": b} for name, a, b in (("In French.", "x", "y"), ("In German.", "y", "x"))]
    pairs, report = load_rows(tmp_path, rows)
    assert report.n_prompts == 2 and report.duplicates.contradictory == ()
    assert [p.prompt[0]["content"] for p in pairs] == ["In French.", "In German."]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"system": "Brief.", "prompt": [{"role": "system", "content": "Long."}, ASK]}, ("system", "differs from the system message of the prompt")),
        ({"prompt": "Why?", "history": "We spoke."}, ("history", "neither a list of [user, assistant] pairs nor a list of messages")),
        ({"prompt": "Why?", "history": [["Hi", ""]]}, ("history", "empty")),
        ({"prompt": "Why?", "messages": [{"role": "user", "content": "How?"}]}, ("prompt", "different prompts: not a message of the conversation")),
        (
            {"prompt": "Why?", "messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": ANSWERS["chosen"]}]},
            ("prompt", "different prompts: not a message of the conversation"),
        ),
        ({"prompt": "Why?", "images": ["cat.png"]}, ("images", "holds an image: only texts are read")),
        ({"prompt": "Why?", "audio": {"path": "a.wav"}}, ("audio", "holds audio: only texts are read")),
    ],
)
def test_a_prompt_that_contradicts_itself_is_refused(row: dict[str, Any], expected: tuple[str, str], tmp_path: Path) -> None:
    _, report = load_rows(tmp_path, [row | ANSWERS, trl_row(1)])
    assert refusals(report) == [(1, *expected)]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"role": "assistant", "content": [{"type": "text", "text": "a", "image": None}]}, "a"),
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "holds an image"),
        ({"role": "assistant", "content": [{"type": "input_audio", "input_audio": {}}]}, "holds audio"),
        ({"role": "assistant", "content": [{"type": "file"}]}, "holds a part of type file"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "a tool call (tool_calls)"),
        ({"role": "assistant", "content": "a", "tool_calls": None}, "a"),
        ({"role": "assistant", "content": "a", "reasoning_content": "hm"}, "reasoning beside the content"),
        ({"role": "tool", "content": "rain"}, "a tool call (a message of role tool)"),
        ({"from": "observation", "value": "rain"}, "a tool call"),
        ({"from": "gpt", "value": "a"}, "a"),
    ],
)  # fmt: skip
def test_parts_of_a_message(message: dict[str, Any], reason: str) -> None:
    try:
        assert messages_of([message], "chosen")[0] == {"role": "assistant", "content": reason}
    except Refused as refused:
        assert refused.field == "chosen" and reason in refused.reason and "missing" not in refused.reason


def test_two_judgements_of_one_row(tmp_path: Path) -> None:
    both = {"prompt": "Why?", "chosen": "x", "rejected": "y", "response_a": "x", "response_b": "y", "winner": "b"}
    _, report = load_rows(tmp_path, [both, both | {"winner": "a"}, both | {"response_a": "other"}, trl_row(1)])
    assert refusals(report) == [(1, "row", "its columns contradict each other: read as a-b the other answer is the chosen one")]
    assert "1 row read as trl (explicit prompt), with the columns of a-b as well" in report.notes
    swapped = {"prompt": "Why?", "chosen": "x", "rejected": "y", "chosen_response": "y", "rejected_response": "x"}
    _, report = load_rows(tmp_path, [swapped, trl_row(1)])
    assert refusals(report) == [(1, "chosen_response", "contradicts chosen: it holds the answer of rejected")]
    ranks = {"prompt": "Why?", "chosen": "x", "rejected": "y", "chosen_rank": 3, "rejected_rank": 1}
    _, report = load_rows(tmp_path, [ranks, trl_row(1), ranks | {"chosen_rank": 0}])
    assert refusals(report) == [(1, "chosen_rank", "no better than the rank of rejected")]
    labels = {"prompt": "Why?", "response_a": "x", "response_b": "y", "winner": "a", "preference": "b"}
    _, report = load_rows(tmp_path, [labels, trl_row(1)])
    assert refusals(report) == [(1, "preference", "contradicts winner")]


def test_a_message_that_gives_one_key_twice_is_refused(tmp_path: Path) -> None:
    twice = b'{"prompt": [{"role": "user", "content": "a", "content": "b"}], "chosen": "x", "rejected": "y"}\n'
    _, report = load(tmp_path, "x.jsonl", twice + json.dumps(trl_row(1)).encode())
    assert refusals(report) == [(1, "prompt", "a message that gives one key twice")]


# --- labels


def judged(first: str, second: str, label: Any, name: str = "label", **more: Any) -> dict[str, Any]:
    return {"prompt": f"Why {label}?", first: "first", second: "second", name: label, **more}


@pytest.mark.parametrize(
    ("columns", "labels", "expected"),
    [
        (("output_1", "output_2"), [1, 2], ["first", "second"]),
        (("output_1", "output_2"), ["1", "2"], ["first", "second"]),
        (("output_1", "output_2"), [1.0, 2.0], ["first", "second"]),
        (("output_1", "output_2"), [0, 1, 2], [None, "first", "second"]),
        (("output_1", "output_2"), [0, 1], [None, None]),
        (("output_1", "output_2"), [True, False], [None, None]),
        (("output_1", "output_2"), ["output_2", "output_1"], ["second", "first"]),
        (("response_0", "response_1"), [0, 1], ["first", "second"]),
        (("response_0", "response_1"), [1, 2], ["first", "second"]),
        (("response_a", "response_b"), ["a", "B"], ["first", "second"]),
        (("response_a", "response_b"), ["model_b", "[[A]]", "B>A", "A=B"], ["second", "first", "second", None]),
        (("response_A", "response_B"), [1, 2], ["first", "second"]),
        (("response_a", "response_b"), [0, 1], [None, None]),
        (("response_a", "response_b"), [-1, 1], [None, None]),
        (("answer1", "answer2"), ["left", "right", "neither"], ["first", "second", None]),
        (("answer1", "answer2"), ["first", "second"], ["first", "second"]),
    ],
)
def test_what_labels_mean(columns: tuple[str, str], labels: list[Any], expected: list[str | None], tmp_path: Path) -> None:
    pairs, report = load_rows(tmp_path, [*(judged(*columns, label) for label in labels), trl_row(1)])
    chosen = {pair.meta["row"]: pair.chosen for pair in pairs}
    assert [chosen.get(row) for row in range(1, len(labels) + 1)] == expected
    assert all("a tie" in reason or "--label-values" in reason for _, _, reason in refusals(report))


def test_a_label_that_could_be_read_two_ways_can_be_told(tmp_path: Path) -> None:
    rows = [judged("response_a", "response_b", label) for label in (0, 1, 2)]
    pairs, report = load_rows(tmp_path, rows, label_values={"first": "1", "second": "0"})
    assert [(pair.meta["row"], pair.chosen) for pair in pairs] == [(1, "second"), (2, "first")]
    assert refusals(report)[0][:2] == (3, "label")
    with pytest.raises(DataError, match=r"--label-values first=\.\.\.,second="):
        load_rows(tmp_path, rows)
    ours = [{"prompt": "Why?", "x": "first", "y": "second", "z": "b"}]
    pairs, _ = load_rows(tmp_path, ours, columns={"output_1": "x", "output_2": "y", "label": "z"})
    assert pairs[0].chosen == "second"


def test_scores_tell_what_a_number_means_and_must_agree(tmp_path: Path) -> None:
    rows = [judged("human_ref_A", "human_ref_B", label, "labels", score_A=a, score_B=b) for label, a, b in ((1, 9, 2), (0, 3, 8))]
    assert [pair.chosen for pair in load_rows(tmp_path, rows)[0]] == ["first", "second"]
    _, report = load_rows(tmp_path, [judged("response_a", "response_b", "a", score_a=1, score_b=2), trl_row(1)])
    assert refusals(report) == [(1, "label", "contradicts the scores")]


# --- C: lists written as text


def as_numpy(items: list[Any]) -> str:
    array = np.empty(len(items), object)
    array[:] = items
    return str(array)


TRICKY = [{"role": "user", "content": 'it\'s "so" }\n{ ,, [x] array( dtype=object'}, {"role": "assistant", "content": "yes\\n, 'no'"}]
NOTATIONS = {
    "json": json.dumps,
    "python": str,
    "numpy": as_numpy,
    "array": lambda items: repr(np.array([*items, None], object)[:-1]),
    "json in json": lambda items: json.dumps(json.dumps(items)),
}


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_message_lists_written_as_text(notation: str, kind: str, tmp_path: Path) -> None:
    write = NOTATIONS[notation]
    rows = [{"prompt": write([TRICKY[0]]), "chosen": write([*TRICKY]), "rejected": write([TRICKY[0], BAD])}]
    if kind == "csv":
        sink = io.StringIO(newline="")
        writer = csv.DictWriter(sink, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        pairs, report = load(tmp_path, "x.csv", sink.getvalue().encode())
    else:
        pairs, report = load(tmp_path, "x.parquet", parquet_bytes(rows)) if kind == "parquet" else load_rows(tmp_path, rows)
    assert (list(pairs[0].prompt), pairs[0].chosen, pairs[0].rejected) == ([TRICKY[0]], TRICKY[1]["content"], "bad")
    assert kind == "csv" or any("written as text" in note for note in report.notes)


@pytest.mark.parametrize(
    "text",
    [
        "[1] See below",
        "[laughs] No.",
        "[1, 2, 3]",
        "['a', 'b']",
        '[{"name": "x"}]',
        '[{"role": "user", "content": "Hi"}] is the body',
        "[{'role': 'admin'}, {'role': 'guest'}]",
        "{'a': 1}",
        "array([1, 2])",
        "[x for x in y]",
        "- role: nginx\n  become: yes",
        "print(content='x')",
        "[__import__('os').getcwd()]",
    ],
)
def test_a_text_that_is_no_message_list_stays_a_text(text: str, tmp_path: Path) -> None:
    pairs, _ = load_rows(tmp_path, [{"prompt": "Why?", "chosen": text, "rejected": "bad"}])
    assert pairs[0].chosen == text


@pytest.mark.parametrize(
    "cut", ["[{'role': 'assistant', 'content': 'good", '[{"role": "assistant", "content": "good"', "[{'content': f(x), 'role': 'user'}]"]
)
def test_a_damaged_message_list_is_refused(cut: str, tmp_path: Path) -> None:
    _, report = load_rows(tmp_path, [{"prompt": "Why?", "chosen": cut, "rejected": "bad"}, trl_row(1)])
    assert [row[:2] for row in refusals(report)] == [(1, "chosen")] and "can't be read" in report.refused[0].reason


@pytest.mark.parametrize(
    "text",
    [
        "[ChatMessage(role='user', content='Why?'), ChatMessage(role='assistant', content='good')]",
        "[Message(id=1, content='good', role='assistant')]",
        "- role: assistant\n  content: good",
        "[{'speaker': 'bot', 'text': 'good'}]",
        '[{"role": "model", "parts": [{"text": "good"}]}]',
        '{"role": "user", "content": "Why?"}\n{"role": "assistant", "content": "good"}',
    ],
)
def test_messages_in_other_notations_are_refused(text: str, tmp_path: Path) -> None:
    _, report = load_rows(tmp_path, [{"prompt": "Why?", "chosen": text, "rejected": "bad"}, trl_row(1)])
    assert [row[:2] for row in refusals(report)] == [(1, "chosen")] and "written as text" in report.refused[0].reason


def test_unread_texts_of_nested_fields_are_announced(tmp_path: Path) -> None:
    task = {"data": {"prompt": "Why?", "answer1": "x", "answer2": "y", "scene": "In a garden at night"}}
    task["annotations"] = [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}]  # type: ignore[assignment]
    (note,) = load_rows(tmp_path, [task])[1].notes
    assert "data.scene (1 row)" in note
    rated = {
        "instruction": "Why?",
        "completions": [{"response": r, "overall_score": s, "custom_system_prompt": "Be kind."} for r, s in (("x", 1), ("y", 2))],
    }
    (note,) = load_rows(tmp_path, [rated])[1].notes
    assert "completion's custom_system_prompt" in note


def test_other_shapes_of_message_lists(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "chosen": [json.dumps(ASK), json.dumps(GOOD)], "rejected": [json.dumps(ASK), json.dumps(BAD)]},
        {
            "prompt": "Why?",
            "chosen": {"role": ["user", "assistant"], "content": ["Why?", "good"]},
            "rejected": {"role": ["assistant"], "content": ["bad"]},
        },
        {"prompt": str(ASK), "chosen": str(GOOD), "rejected": str(BAD)},
    ]
    pairs, _ = load_rows(tmp_path, [rows[0], rows[2]])
    assert [(pair.prompt[0], pair.chosen, pair.rejected) for pair in pairs] == [(ASK, "good", "bad")] * 2
    rows[1]["rejected"] = {"role": ["user", "assistant"], "content": ["Why?", "bad"]}
    pairs, _ = load_rows(tmp_path, [rows[1]])
    assert [(pair.prompt[0], pair.chosen, pair.rejected) for pair in pairs] == [(ASK, "good", "bad")]


def test_literals_are_bounded_and_never_executed() -> None:
    assert parse_literal("[" * (MAX_DEPTH + 1) + "'a'" + "]" * (MAX_DEPTH + 1)) is None
    assert parse_literal("[" * 100_000) is None
    assert parse_literal("[" + "-" * 100_000 + "1]") is None
    assert parse_literal("[" + "9" * 10_000 + "]") is None
    assert parse_literal("['" + "a" * 1_000_001 + "']") is None
    assert parse_literal("[print('x')]") is None and parse_literal("[lambda: 1]") is None
    assert parse_literal("['a' 'b']") == ["a", "b"]  # Python would glue them
    assert parse_literal("[nan, None, True, -1.5e3, ('a', 'b')]") == [None, None, True, -1500.0, ("a", "b")]
    assert unpack_messages("plain", "chosen") == "plain"


def test_unpaired_dialogues_that_repeat_the_prompt_ask_it_once(tmp_path: Path) -> None:
    """Capybara-KTO: `completion` is the whole dialogue, `prompt` its first turn."""
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "And when?"}]
    rows = [
        {"prompt": "Where?", "completion": [*turns, {"role": "assistant", "content": answer}], "label": answer == "Now.", "system": "Be brief."}
        for answer in ("Now.", "Never.")
    ]
    (pair,), report = load_rows(tmp_path, rows)
    assert pair.prompt == ({"role": "system", "content": "Be brief."}, *turns)
    assert (pair.chosen, pair.rejected, report.n_used) == ("Now.", "Never.", 2)


def test_lists_of_answers_in_a_csv(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "['good']", "rejected": "['bad' 'worse']", "num_correct": "1"}]
    pairs, _ = load_rows(tmp_path, rows)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("good", "bad"), ("good", "worse")]
    _, report = load_rows(tmp_path, [{"prompt": "Why?", "chosen": "['good']", "rejected": "['bad', 'worse']"}])
    assert report.notes == ("1 row where the prompt or both answers are lists of texts written as text, each read as one text",)
    pairs, _ = load_rows(tmp_path, [{"question": "Why?", "correct_answers": "['Good' 'Fine']", "incorrect_answers": '["Bad"]'}])
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("Good.", "Bad.")]


def test_rm_bench_and_multiple_choices_in_a_csv(tmp_path: Path) -> None:
    sides = {"chosen": str(["a", "b", "c"]), "rejected": str(["x", "y", "z"])}
    pairs, report = load(tmp_path, "rm.csv", csv_bytes([{"id": "1", "prompt": "Why?", **sides, "domain": "chat"}]))
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "x"), ("b", "y"), ("c", "z")] and report.format == "rm-bench"
    targets = {"choices": ["Good", "Fine", "Bad", "Worse"], "labels": [1, 1, 0, 0]}
    for value in (targets, str(targets), "{'choices': array(['Good', 'Fine', 'Bad', 'Worse'], dtype=object), 'labels': array([1, 1, 0, 0])}"):
        row = {"question": "Why?", "mc1_targets": {"choices": ["Good", "Bad"], "labels": [1, 0]}, "mc2_targets": value}
        pairs, report = load_rows(tmp_path, [row])
        assert [(pair.chosen, pair.rejected) for pair in pairs] == [("Good.", "Bad."), ("Fine.", "Worse.")]
        assert len(report.notes) == isinstance(value, str), "a list written as text is said"
    _, report = load_rows(tmp_path, [row, {"question": "How?", "mc2_targets": {"choices": ["Good", "Bad"], "labels": [1]}}])
    assert refusals(report)[0][:2] == (2, "mc2_targets")


@pytest.mark.parametrize("value", [{"selected": "right"}, '{"selected": "right"}', "right"])
def test_label_studios_exports_without_annotations(value: Any, tmp_path: Path) -> None:
    (pair,), _ = load_rows(tmp_path, [{"id": 1, "prompt": "Why?", "answer1": "one", "answer2": "two", "comparison": value}])
    assert (pair.chosen, pair.rejected) == ("two", "one")


def test_a_field_of_an_object_is_mapped_as_the_remedy_names_it(tmp_path: Path) -> None:
    answers = {"text": "Why is the sky blue?", "answer-1": "one", "answer-2": "two"}
    ranking = {"preference": {"value": [{"rank": 2, "value": "answer-1"}, {"rank": 1, "value": "answer-2"}]}}
    picked = {"result": [{"type": "pairwise", "value": {"selected": "right"}}]}
    rows: dict[str, dict[str, Any]] = {
        "data.text": {"data": {**answers}, "annotations": [picked]},
        "fields.text": {"fields": {**answers}, "responses": [{"status": "submitted", "values": ranking}]},
        "question.full_text": {
            "question": {"full_text": "Why is the sky blue?", "id": "x"},
            "answer_0": "one",
            "answer_1": "two",
            "score_0": -1,
            "score_1": 1,
        },
    }
    for name, row in rows.items():
        (pair,), _ = load_rows(tmp_path, [row], columns={"prompt": name})
        assert (pair.prompt, pair.chosen, pair.rejected) == (({"role": "user", "content": "Why is the sky blue?"},), "two", "one"), name
    for name in ("data.text", "fields.text"):
        with pytest.raises(DataError, match=f"to do: name the column of the prompt: --columns prompt={name}"):
            load_rows(tmp_path, [rows[name]])
    with pytest.raises(DataError, match=r"has no column data\.words"):
        load_rows(tmp_path, [rows["data.text"]], columns={"prompt": "data.words"})


def test_ratings_that_say_a_tie_contradict_chosen_and_rejected(tmp_path: Path) -> None:
    """Argilla's Orca pairs: `status: tie` rows have a chosen and a rejected answer, rated alike."""
    rows = [
        {"input": f"Why {n}?", "chosen": "a", "rejected": "b", "generations": ["a", "b"], "rating": [9.0, other]}
        for n, other in enumerate((1.0, 9.0))
    ]
    pairs, report = load_rows(tmp_path, rows)
    assert [pair.meta["row"] for pair in pairs] == [1]
    assert refusals(report) == [(2, "row", "its columns contradict each other: read as ultrafeedback (generations) it is a tie")]


def test_a_label_that_says_a_tie_contradicts_chosen_and_rejected(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": "good", "rejected": "bad", "response_a": "good", "response_b": "bad"}
    pairs, report = load_rows(tmp_path, [{**row, "winner": winner} for winner in ("a", "tie", "b")])
    assert [pair.meta["row"] for pair in pairs] == [1]
    contrary = "its columns contradict each other: read as a-b "
    assert refusals(report) == [(2, "row", contrary + "it is a tie"), (3, "row", contrary + "the other answer is the chosen one")]


@pytest.mark.parametrize("text", ["\u200b", "\u200d \ufeff\u2060", "\u202e\u00ad"])
def test_an_answer_of_nothing_that_is_seen_is_empty(text: str, tmp_path: Path) -> None:
    good, bad = trl_row(1), {**trl_row(2), "rejected": text}
    asked = {**trl_row(3), "prompt": text}
    _, report = load_rows(tmp_path, [good, bad, asked])
    reason = "empty: only characters that are not seen"
    assert refusals(report) == [(2, "rejected", reason), (3, "prompt", reason)]


# --- where it is said


def test_a_fit_and_the_pairs_command_say_what_was_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.cli.main import main
    from core.config import DataConfig, FitConfig
    from core.fit.steps import Steps
    from core.runs.store import Store

    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(trl_row(i) | {"persona": f"You are teacher {i}."}) + "\n" for i in range(12)))
    note = "columns with texts that are not read: persona (12 rows)"
    store = Store(tmp_path / "cache")
    monkeypatch.setattr(logging.getLogger("core"), "propagate", True)
    for _ in range(2):  # also where the pairs are found in the cache
        caplog.clear()
        Steps(config=FitConfig(data=DataConfig(pairs=str(source))), store=store, progress=no_progress).pairs()
        assert any(note in record.getMessage() for record in caplog.records)
    assert main(["pairs", "--pairs", str(source)]) == 0
    assert note in capsys.readouterr().out


def test_a_table_whose_rows_have_columns_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "chosen": "x", "rejected": "y", "question": "", "output_1": "", "output_2": "", "label": ""},
        {"prompt": "", "chosen": "", "rejected": "", "question": "How?", "output_1": "x", "output_2": "y", "label": "2"},
        {"prompt": "", "chosen": "x", "rejected": "", "question": "When?", "output_1": "", "output_2": "", "label": ""},
    ]
    for name, data in (("x.csv", csv_bytes(rows)), ("x.parquet", parquet_bytes([{k: v or None for k, v in row.items()} for row in rows]))):
        pairs, report = load(tmp_path, name, data)
        assert [(pair.prompt[0]["content"], pair.chosen, pair.rejected) for pair in pairs] == [("Why?", "x", "y"), ("How?", "y", "x")]
        assert [row[1] for row in refusals(report)] == ["rejected"]

"""What public reports say goes wrong in files of pairs: each kind as a small file of our own, and, where they are, the shared cases themselves.

Cases that concern a tokenizer or a template (control tokens, thinking, roles that a template forbids) are read whole here; what becomes of them
later is tested in test_backbone_template.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import csv_bytes, load, load_rows
from real_data import shared_cases

from core.cli.main import main
from core.config import DataConfig
from core.data.pairs import load_pairs
from core.errors import DataError

TASKS = ("press a shirt", "dry herbs", "oil a hinge")


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def answers(task: str) -> dict[str, str]:
    return {"chosen": f"Take your time and {task} with care.", "rejected": f"Take what you like and {task} anyhow."}


def dialogue(task: str, answer: str) -> list[dict[str, Any]]:
    return [message("user", f"How do I {task}?"), message("assistant", answer)]


def test_questions_are_never_made_of_the_answers(tmp_path: Path) -> None:
    for name in ("question", "query", "instruction", "input", "prompt"):
        pairs, _ = load_rows(tmp_path, [{name: f"How do I {task}?", **answers(task)} for task in TASKS])
        assert [p.prompt[0]["content"] for p in pairs] == [f"How do I {task}?" for task in TASKS]
        assert [p.chosen for p in pairs] == [answers(task)["chosen"] for task in TASKS]


def test_rows_of_three_shapes_in_one_file(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"How do I {task}?", **answers(task)} for task in TASKS]
    rows += [{side: dialogue(task, answer) for side, answer in answers(task).items()} for task in TASKS]
    rows += [{"prompt": [message("user", f"How do I {task}?")], **answers(task)} for task in TASKS]
    pairs, report = load_rows(tmp_path, rows)
    assert [p.prompt[0]["content"] for p in pairs] == [f"How do I {task}?" for task in TASKS] * 3
    assert report.n_read_as == {"trl (explicit prompt)": 6, "trl (implicit prompt)": 3} and report.refused == ()


def test_rows_without_a_prompt_do_not_turn_the_others(tmp_path: Path) -> None:
    without: list[dict[str, Any]] = [dict(answers(task)) for task in TASKS] * 50
    rows = [*without, {"prompt": "And then?", **answers("wait")}]
    pairs, report = load_rows(tmp_path, rows)
    assert [(p.prompt[0]["content"], p.chosen) for p in pairs] == [("And then?", answers("wait")["chosen"])]
    assert report.refused_by_reason() == {"prompt: missing": 150}
    pairs, report = load_rows(tmp_path, rows, implicit_prompt="text")
    assert len(pairs) == 151 and pairs[0].prompt[0]["content"] == "Take" and pairs[-1].prompt[0]["content"] == "And then?"


def test_one_image_among_text_parts(tmp_path: Path) -> None:
    rows = [{"prompt": [message("user", [{"type": "text", "text": task}])], **answers(task)} for task in TASKS]
    rows[1]["prompt"][0]["content"].append({"type": "image"})  # type: ignore[index,union-attr]
    pairs, report = load_rows(tmp_path, rows)
    assert [p.prompt[0]["content"] for p in pairs] == [TASKS[0], TASKS[2]]
    assert report.refused_by_reason() == {"prompt: holds an image: only texts are read": 1}


def test_pandas_csv_of_message_lists(tmp_path: Path) -> None:
    rows = [{"prompt": f"How do I {task}?", **{side: str(dialogue(task, answer)) for side, answer in answers(task).items()}} for task in TASKS]
    pairs, _ = load(tmp_path, "x.csv", csv_bytes(rows))
    assert [p.chosen for p in pairs] == [answers(task)["chosen"] for task in TASKS]


def test_a_check_shows_pairs_that_are_too_few_to_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"history": [["Hi", "Yes?"]], "prompt": "And then?", **answers(task)} for task in TASKS]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["pairs", "--pairs", str(tmp_path / "x.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "too few prompts to split (at least 3, found 1)" in shown and "n_pairs" in shown
    assert main(["fit", "--preset", "tiny", "--pairs", str(tmp_path / "x.jsonl")]) == DataError.exit_code


# file of the shared cases -> rows used, pairs, prompts, whose content a prompt has; or words of the error
HOW = "How do I boil rice?"
READ: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "prompt_in_instruction_and_input.json": (12, 12, 12, ("Explain how to boil rice.\n\nAnswer in one sentence.",)),
    "prompt_in_question_and_system.jsonl": (12, 12, 12, ("You are a patient teacher.", HOW)),
    "question_mixed.jsonl": (12, 12, 12, ("You are kind.", HOW)),
    "prompt_in_query.jsonl": (12, 12, 12, (HOW,)),
    "implicit_then_explicit.jsonl": (4, 4, 4, ("Which tea is best?",)),
    "rows_of_mixed_shape.jsonl": (36, 36, 36, (HOW,)),
    "system_column.jsonl": (12, 12, 12, ("Answer only in German.", HOW)),
    "history_column.jsonl": (12, 12, 1, ("Hi", "Hello", "Which tool?", "A saw", "And then?")),
    "sharegpt_ranking.json": (12, 12, 12, (HOW,)),
    "message_lists_as_text.csv": (12, 12, 12, (HOW,)),
    "message_lists_all_text.csv": (12, 12, 12, (HOW,)),
    "json_strings.jsonl": (12, 12, 12, (HOW,)),
    "parts_text.jsonl": (12, 12, 12, (HOW,)),
    "parts_image.jsonl": (11, 11, 11, ("How do I mend a kite?",)),
    "hh_single_newline.jsonl": (12, 12, 12, (HOW,)),
    "rewardbench2.jsonl": (12, 36, 12, (HOW,)),
    "openai_preference.jsonl": (12, 12, 12, (HOW,)),
    "semicolon.csv": (12, 12, 12, (HOW,)),
    "tabs.tsv": (12, 12, 12, (HOW,)),
    "cp1252.csv": (6, 6, 6, ("Où est read a map?",)),  # the other rows hold commas outside quotes
    "cr_only.csv": (6, 6, 6, ("How do I read a map?",)),
    "mid_system.jsonl": (12, 12, 12, (HOW, "From now on be rude.", "go on")),
    "already_templated.jsonl": (12, 12, 12, ()),
    "templated_prompt.jsonl": (100, 100, 60, ()),
    "ends_with_eos.jsonl": (100, 100, 60, ()),
    "one_think.jsonl": (100, 100, 60, ()),
    "one_double_user.jsonl": (100, 100, 61, ()),
}
ERRORS = {
    "tool_calls.jsonl": "12 x chosen: a tool call",
    "kto.jsonl": "12 x label: the only answer to its prompt",
    "foreign_labels.jsonl": "the format of",
}
MADE_OF_ANSWERS = {"", "The best way is:", "You should know this:", "The", "First,", "The answer:", "I think the"}


@pytest.mark.parametrize("name", READ)
def test_a_shared_case_comes_out_right(name: str) -> None:
    n_used, n_pairs, n_prompts, first = READ[name]
    pairs, report = load_pairs(DataConfig(pairs=str(shared_cases(name))))
    assert (report.n_used, report.n_pairs, report.n_prompts) == (n_used, n_pairs, n_prompts)
    assert report.n_rows == n_used + len(report.refused)
    if first:
        assert tuple(message["content"] for message in pairs[0].prompt) == first
    for pair in pairs:
        assert pair.prompt[-1]["content"] not in MADE_OF_ANSWERS
        texts = [*(message["content"] for message in pair.prompt), pair.chosen, pair.rejected]
        assert not any(text.startswith(("[", "{", "Human:", "Assistant:")) or "\nAssistant:" in text for text in texts)


@pytest.mark.parametrize("name", ERRORS)
def test_a_shared_case_without_pairs_says_why(name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_pairs(DataConfig(pairs=str(shared_cases(name))))
    assert ERRORS[name] in f"{caught.value.problem} {caught.value.found}"


def test_every_shared_case_is_looked_at() -> None:
    assert {path.name for path in shared_cases().iterdir()} == set(READ) | set(ERRORS) | {"README.md"}

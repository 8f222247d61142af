"""`sparserm score` on single responses in other columns, on files that mix them with pairs, and what it refuses by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_helpers import FakeReader, make_parts

from core.cli.tables import score_lines
from core.errors import DataError
from core.reward.model import SparseRM
from core.reward.scoring import score_rows

USER = {"role": "user", "content": "Is it late?"}
SYSTEM = {"role": "system", "content": "Be brief."}
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
NO = {"role": "assistant", "content": "No."}


def reward_model() -> SparseRM:
    return SparseRM(make_parts(), FakeReader(6))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "Is it late?", "response": "No."}, [USER]),
        ({"query": "Is it late?", "answer": "No."}, [USER]),
        ({"instruction": "Is it late?", "input": "", "output": "No."}, [USER]),
        (
            {"instruction": "Read the clock.", "input": "Is it late?", "output": "No."},
            [{"role": "user", "content": "Read the clock.\n\nIs it late?"}],
        ),
        ({"system": "Be brief.", "prompt": "Is it late?", "completion": "No."}, [SYSTEM, USER]),
        ({"system": "Be brief.", "history": [["Hi", "Hello"]], "question": "Is it late?", "response": "No."}, [SYSTEM, HI, HELLO, USER]),
        ({"messages": [HI, HELLO, USER], "response": "No."}, [HI, HELLO, USER]),
        ({"prompt": [USER], "completion": [NO]}, [USER]),
        ({"prompt": str([USER]), "response": str([NO])}, [USER]),
        ({"prompt": json.dumps([USER]), "response": json.dumps(NO)}, [USER]),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Is it late?"}]}], "response": "No."}, [USER]),
        ({"conversations": [{"from": "human", "value": "Is it late?"}], "response": "No."}, [USER]),
        ({"prompt": "Is it late?", "completion": "No.", "label": True}, [USER]),
        ({"prompt": "Is it late?", "response": "No.", "output": None, "answer": ""}, [USER]),
        ({"prompt": "Is it late?", "responses": "['No.']"}, [USER]),
    ],
)
def test_columns_of_single_responses(row: dict[str, Any], prompt: list[dict[str, str]], tmp_path: Path) -> None:
    rows, report = score_rows(reward_model(), jsonl(tmp_path / "x.jsonl", [row]))
    assert (report.kind, report.n_scored, report.refused) == ("responses", 1, ())
    assert rows[0]["text"] == "No." and rows[0]["prompt"] == (prompt[0]["content"] if len(prompt) == 1 else prompt)
    np.testing.assert_allclose(rows[0]["score"], reward_model().score([prompt], ["No."])[0], atol=1e-12)


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"user_request": "Is it very late by now?", "response": "No."}, "prompt", "missing; the column user_request may hold it: name it prompt"),
        ({"response": "No."}, "prompt", "missing"),
        ({"prompt": "a", "question": "b", "response": "No."}, "prompt", "the columns prompt and question hold different prompts"),
        ({"prompt": "a", "response": "No.", "output": "Yes."}, "response", "the columns response and output hold different responses"),
        ({"prompt": "a", "response": None}, "response", "missing"),
        ({"prompt": "a", "response": 7}, "response", "not text but a number"),
        ({"prompt": "a", "response": ["No.", "Yes."]}, "response", "not a list of messages"),
        ({"prompt": "a", "response": "[{'role': 'assistant', 'content': 'No"}, "response", "a message list written as text that can't be read"),
        ({"prompt": "a", "response": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, "response", "a tool call"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "response": "x"}, "prompt", "holds an image"),
        ({"prompt": "a", "response": "x", "images": ["cat.png"]}, "images", "holds an image"),
        ({"prompt": "a", "system": "\ud800", "response": "x"}, "system", "not valid Unicode"),
        ({"prompt": "a"}, "response", "missing"),
    ],
)
def test_a_bad_response_is_refused_and_the_others_go_on(row: dict[str, Any], field: str, reason: str, tmp_path: Path) -> None:
    good = [{"prompt": "Is it late?", "response": f"No {number}."} for number in range(3)]
    rows, report = score_rows(reward_model(), jsonl(tmp_path / "x.jsonl", [*good[:2], row, good[2]]))
    assert [row["row"] for row in rows] == [1, 2, 4] and [row["text"] for row in rows] == ["No 0.", "No 1.", "No 2."]
    assert [(refused.row, refused.field) for refused in report.refused] == [(3, field)]
    assert report.refused[0].reason.startswith(reason)
    said = report.to_json()
    assert (said["n_rows"], said["n_scored"], said["n_refused"]) == (4, 3, 1)
    assert any("left out: 1 rows that can't be used" in line for line in score_lines(said))


def test_a_text_column_that_is_not_read_is_announced(tmp_path: Path) -> None:
    given = [{"prompt": "Is it late?", "passage": f"It is ten past {number} by the church clock.", "response": "No."} for number in range(3)]
    _, report = score_rows(reward_model(), jsonl(tmp_path / "x.jsonl", given))
    assert report.notes == ("columns with texts that are not read: passage (3 rows). If one belongs to the prompt, name it system or prompt",)
    assert report.notes[0] in score_lines(report.to_json())


PAIR = {"id": "p", "prompt": "Is it late?", "chosen": "No.", "rejected": "Yes."}
SINGLE = {"id": "s", "prompt": "Is it late?", "response": "Never."}


def test_a_mixed_file_scores_each_row_by_its_kind(tmp_path: Path) -> None:
    given = [PAIR, *[{**SINGLE, "id": f"s{n}"} for n in range(150)], "{broken\n", {**PAIR, "id": "q", "rejected": ""}, {**PAIR, "id": "r"}]
    rows, report = score_rows(reward_model(), jsonl(tmp_path / "x.jsonl", given))
    assert [row["id"] for row in rows] == ["p", *(f"s{n}" for n in range(150)), "r"]
    scores = reward_model().score(["Is it late?"] * 3, ["No.", "Yes.", "Never."])
    np.testing.assert_allclose([rows[-1]["scores_chosen"], rows[-1]["scores_rejected"], rows[1]["score"]], scores, atol=1e-12)
    assert [(refused.row, refused.field) for refused in report.refused] == [(152, "row"), (153, "rejected")]
    assert (report.kind, report.n_rows, report.n_items, report.n_scored) == ("pairs and responses", 154, 152, 152)
    assert report.accuracy is not None and report.accuracy.n == 2
    assert report.notes[0] == "3 rows hold pairs and 150 hold single responses: each is scored as what it is"


def test_one_bad_pair_among_responses_does_not_end_the_run(tmp_path: Path) -> None:
    rows, report = score_rows(reward_model(), jsonl(tmp_path / "x.jsonl", [SINGLE, {**PAIR, "rejected": "No."}, SINGLE]))
    assert [row["row"] for row in rows] == [1, 3]
    assert [(refused.row, refused.field, refused.reason) for refused in report.refused] == [(2, "rejected", "identical answers")]


def test_pairs_whose_first_rows_are_broken_are_still_pairs(tmp_path: Path) -> None:
    given = ["{broken\n"] * 120 + [PAIR]
    rows, report = score_rows(reward_model(), jsonl(tmp_path / "x.jsonl", given))
    assert (report.kind, len(rows), len(report.refused)) == ("pairs", 1, 120)


def test_no_row_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable row"):
        score_rows(reward_model(), jsonl(tmp_path / "x.jsonl", ["{broken\n"]))

"""Generated files over formats and faults: rows of every format with faulty rows between them. Each good row comes out, each faulty one is refused.

What must come out is known when a row is made: its texts carry its number.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import load
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from core.data.formats import FORMATS
from core.errors import DataError

EXAMPLES = 16  # of each format: 26 formats give 416 files
Row = dict[str, Any]


def message(role: str, text: str) -> Row:
    return {"role": role, "content": text}


def asked(n: int) -> str:
    return f"Why is it so, number {n}?"


def good(n: int) -> str:
    return f"Because it is good, {n}."


def bad(n: int) -> str:
    return f"Never mind it, {n}."


def dialogue(n: int, answer: str) -> str:
    return f"\n\nHuman: {asked(n)}\n\nAssistant: {answer}"


def turns(n: int, answer: str) -> list[Row]:
    return [message("user", asked(n)), message("assistant", answer)]


MAKERS: dict[str, Callable[[int], list[Row]]] = {
    "trl (explicit prompt)": lambda n: [{"prompt": asked(n), "chosen": good(n), "rejected": bad(n)}],
    "trl (implicit prompt)": lambda n: [{"chosen": turns(n, good(n)), "rejected": turns(n, bad(n))}],
    "hh-rlhf (dialogues)": lambda n: [{"chosen": dialogue(n, good(n)), "rejected": dialogue(n, bad(n))}],
    "hh-rlhf (prompt apart)": lambda n: [{"prompt": dialogue(n, ""), "chosen": good(n), "rejected": bad(n)}],
    "safe-rlhf": lambda n: [{"prompt": asked(n), "response_0": bad(n), "response_1": good(n), "safer_response_id": 1}],
    "truthfulqa": lambda n: [{"question": asked(n), "correct_answers": [good(n)], "incorrect_answers": [bad(n)]}],
    "rewardbench": lambda n: [{"prompt": asked(n), "chosen": good(n), "rejected": bad(n), "subset": "s"}],
    "rewardbench-2": lambda n: [{"prompt": asked(n), "chosen": [good(n)], "rejected": [bad(n)], "num_correct": 1}],
    "rm-bench": lambda n: [{"prompt": asked(n), "chosen": [good(n), good(n + 5000)], "rejected": [bad(n), bad(n + 5000)]}],
    "ultrafeedback (completions)": lambda n: [
        {"instruction": asked(n), "completions": [{"response": bad(n), "overall_score": 1}, {"response": good(n), "overall_score": 2}]}
    ],
    "ultrafeedback (binarized)": lambda n: [{"prompt": asked(n), "chosen": good(n), "rejected": bad(n), "score_chosen": 2, "score_rejected": 1}],
    "ultrafeedback (generations)": lambda n: [{"instruction": asked(n), "generations": [bad(n), good(n)], "ratings": [1, 2]}],
    "helpsteer (preference)": lambda n: [{"prompt": asked(n), "response_1": good(n), "response_2": bad(n), "preference_strength": -1}],
    "helpsteer (ratings)": lambda n: [
        {"prompt": asked(n), "response": good(n), "helpfulness": 4, "verbosity": 1},
        {"prompt": asked(n), "response": bad(n), "helpfulness": 0, "verbosity": 1},
    ],
    "nectar": lambda n: [{"prompt": asked(n), "answers": [{"answer": bad(n), "rank": 2}, {"answer": good(n), "rank": 1}]}],
    "arena": lambda n: [{"conversation_a": turns(n, bad(n)), "conversation_b": turns(n, good(n)), "winner": "model_b"}],
    "a-b": lambda n: [{"input": asked(n), "output_1": good(n), "output_2": bad(n), "label": 1}],
    "llama-factory (alpaca)": lambda n: [{"instruction": asked(n), "input": "", "chosen": good(n), "rejected": bad(n)}],
    "llama-factory (sharegpt ranking)": lambda n: [
        {
            "conversations": [{"from": "human", "value": asked(n)}],
            "chosen": {"from": "gpt", "value": good(n)},
            "rejected": {"from": "gpt", "value": bad(n)},
        }
    ],
    "llama-factory (two outputs)": lambda n: [{"instruction": asked(n), "output": [good(n), bad(n)]}],
    "openai": lambda n: [
        {
            "input": {"messages": [message("user", asked(n))]},
            "preferred_output": [message("assistant", good(n))],
            "non_preferred_output": [message("assistant", bad(n))],
        }
    ],
    "orca": lambda n: [{"question": asked(n), "chosen": good(n), "rejected": bad(n)}],
    "swift": lambda n: [{"messages": turns(n, good(n)), "rejected_response": bad(n)}],
    "kto": lambda n: [
        {"prompt": asked(n), "completion": bad(n), "label": False},
        {"prompt": asked(n), "completion": good(n), "label": True},
    ],
    "argilla": lambda n: [
        {
            "fields": {"prompt": asked(n), "response_1": good(n), "response_2": bad(n)},
            "responses": {"ranking": [{"value": ["response_1", "response_2"]}]},
        }
    ],
    "label-studio": lambda n: [
        {
            "data": {"prompt": asked(n), "answer1": good(n), "answer2": bad(n)},
            "annotations": [{"result": [{"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "left"}}]}],
        }
    ],
}


def replaced(value: Any, old: str, new: Any) -> Any:
    """The value with `new` in place of every text that is (or, where `new` is a text, holds) `old`."""
    if isinstance(value, str):
        if value == old:
            return new
        return value.replace(old, new) if isinstance(new, str) else value
    if isinstance(value, list):
        return [replaced(item, old, new) for item in value]
    return {key: replaced(item, old, new) for key, item in value.items()} if isinstance(value, dict) else value


def fault_of(name: str) -> Callable[[int, list[Row]], list[Row]]:
    """A change that leaves a row without a pair."""
    changes: dict[str, Callable[[int, Row], Any]] = {
        "empty answer": lambda n, row: replaced(row, good(n), ""),
        "blank answer": lambda n, row: replaced(row, bad(n), " \n"),
        "null character": lambda n, row: replaced(row, bad(n), "a\0b"),
        "broken Unicode": lambda n, row: replaced(row, good(n), "half \ud83d"),
        "empty prompt": lambda n, row: replaced(row, asked(n), " "),
        "no prompt": lambda n, row: replaced(row, asked(n), ""),
        "same answers": lambda n, row: replaced(row, bad(n), good(n)),
        "an image beside": lambda n, row: {**row, "image": "cat.png"},
        "tools beside": lambda n, row: {**row, "tools": [{"name": "weather"}]},
        "cut list": lambda n, row: replaced(row, good(n), "[{'role': 'assistant', 'content': 'Because"),
    }
    return lambda n, rows: [changes[name](n, copy.deepcopy(row)) for row in rows]


FAULTS = (
    "empty answer",
    "blank answer",
    "null character",
    "broken Unicode",
    "empty prompt",
    "no prompt",
    "same answers",
    "an image beside",
    "tools beside",
    "cut list",
)


@st.composite
def files(draw: Callable[[st.SearchStrategy[Any]], Any], title: str) -> tuple[list[Row], list[int], set[int]]:
    """Rows, the numbers of the good ones, and the places (from 1) of the rows that must be refused."""
    kinds = draw(st.lists(st.sampled_from(["good", "good", "bad"]), min_size=2, max_size=6))
    rows: list[Row] = []
    numbers, faulty = [], set()
    for n, kind in enumerate(["good", *kinds]):
        new_rows = MAKERS[title](n)
        if kind == "bad":
            new_rows = fault_of(draw(st.sampled_from(FAULTS)))(n, new_rows)
            faulty |= set(range(len(rows) + 1, len(rows) + len(new_rows) + 1))
        else:
            numbers.append(n)
        rows += new_rows
    return rows, numbers, faulty


@pytest.mark.parametrize("title", MAKERS)
def test_good_rows_come_out_and_faulty_ones_are_refused(title: str) -> None:
    @seed(0)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(files(title))
    def run(drawn: tuple[list[Row], list[int], set[int]]) -> None:
        rows, numbers, faulty = drawn
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with tempfile.TemporaryDirectory() as folder:
            pairs, report = load(Path(folder), "x.jsonl", data)
        expected = [(asked(n), good(m), bad(m)) for n in numbers for m in ((n, n + 5000) if title == "rm-bench" else (n,))]
        assert [(p.prompt[-1]["content"], p.chosen, p.rejected) for p in pairs] == expected
        assert {refused.row for refused in report.refused} == faulty
        assert all(refused.field and refused.reason for refused in report.refused)
        assert title in report.n_read_as

    run()


def test_a_file_of_faulty_rows_only_is_an_error(tmp_path: Path) -> None:
    for title, maker in MAKERS.items():
        rows = [row for n in range(3) for row in fault_of("empty answer")(n, maker(n))]
        with pytest.raises(DataError, match="no usable row"):
            load(tmp_path, f"{abs(hash(title))}.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def test_every_format_is_generated() -> None:
    assert set(MAKERS) == {f.title for f in FORMATS}
    assert len(MAKERS) * EXAMPLES >= 400

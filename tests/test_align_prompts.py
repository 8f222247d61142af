"""Prompts of a file, each row read by its own columns, and rows that can't be asked."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from core.align.prompts import choose_prompts
from core.errors import DataError
from core.types import PreferencePairs

NO_PAIRS = PreferencePairs(pairs=(), source="none")
USER = {"role": "user", "content": "Is it late?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Is it late?"}, (USER,)),
        ({"question": "Is it late?", "answerKey": "B"}, (USER,)),
        ({"instruction": "Is it late?", "input": "", "output": "No."}, (USER,)),
        ({"system": "Be brief.", "query": "Is it late?"}, (SYSTEM, USER)),
        ({"messages": [SYSTEM, USER]}, (SYSTEM, USER)),
        ({"prompt": str([SYSTEM, USER])}, (SYSTEM, USER)),
        ({"prompt": "Is it late?", "chosen": "No.", "rejected": "Yes."}, (USER,)),
        ({"chosen": [USER, {"role": "assistant", "content": "No."}], "rejected": [USER, {"role": "assistant", "content": "Yes."}]}, (USER,)),
    ],
)
def test_a_row_asks_what_its_columns_ask(row: dict[str, Any], messages: tuple[Any, ...], tmp_path: Path) -> None:
    others = [{"prompt": f"Question {number}?"} for number in range(120)]
    chosen = choose_prompts(jsonl(tmp_path / "p.jsonl", [*others, row]), NO_PAIRS, limit=0, seed=0)
    assert [prompt.messages[-1]["content"] for prompt in chosen.prompts[:-1]] == [f"Question {number}?" for number in range(120)]
    assert (chosen.prompts[-1].messages, chosen.n_refused) == (messages, 0)


def test_what_can_not_be_asked_is_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [{"prompt": None}, {"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "{broken\n", {"prompt": "a", "question": "b"}]
    with caplog.at_level(logging.WARNING):
        chosen = choose_prompts(jsonl(tmp_path / "p.jsonl", [{"prompt": "x"}, *bad]), NO_PAIRS, limit=0, seed=0)
    assert [prompt.messages[0]["content"] for prompt in chosen.prompts] == ["x"] and chosen.n_refused == 4
    assert "4 of 5 rows" in caplog.text and "holds an image" in caplog.text and "not JSON" in caplog.text
    with pytest.raises(DataError, match="holds no prompt"):
        choose_prompts(jsonl(tmp_path / "n.jsonl", bad), NO_PAIRS, limit=0, seed=0)

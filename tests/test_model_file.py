"""`sparserm score`'s engine: rows in, RewardBench-shaped rows out, refused ones counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_helpers import FakeReader, make_parts

from core.errors import ConfigError, DataError, StoreError
from core.reward import model as model_module
from core.reward import scoring
from core.reward.model import SparseRM
from core.reward.scoring import score_file, score_rows
from core.types import RefusedRow


def reward_model() -> SparseRM:
    return SparseRM(make_parts(), FakeReader(6))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


PAIRS = [
    {"id": 7, "subset": "chat", "prompt": "Is it late?", "chosen": "No.", "rejected": "Yes.", "chosen_model": "a", "score": 3},
    {"id": 8, "subset": "chat", "prompt": "Who are you?", "chosen": "A model.", "rejected": ""},
    "{not json",
    {"id": 9, "subset": "safety", "prompt": "Who are you?", "chosen": "A model.", "rejected": "A king."},
    {"id": 10, "subset": "safety", "prompt": "Is it late?", "chosen": "Never.", "rejected": "Yes."},
]


def test_pairs_in_rewardbench_shape(tmp_path: Path) -> None:
    rows, report = score_rows(reward_model(), jsonl(tmp_path / "pairs.jsonl", PAIRS))
    assert [row["id"] for row in rows] == ["7", "9", "10"] and [row["row"] for row in rows] == [1, 4, 5]
    for row in rows:
        chosen, rejected = reward_model().score([row["prompt"]] * 2, [row["text_chosen"], row["text_rejected"]])
        assert row["scores_chosen"] == pytest.approx(chosen, abs=1e-12) and row["scores_rejected"] == pytest.approx(rejected, abs=1e-12)
        assert row["results"] == (1 if chosen > rejected else 0)
    # The columns of RewardBench's own output file, its data's columns among them.
    assert {"prompt", "results", "scores_chosen", "scores_rejected", "text_chosen", "text_rejected", "subset", "id", "chosen_model"} <= set(rows[0])
    assert (rows[0]["subset"], rows[0]["chosen_model"], rows[0]["score"], rows[0]["prompt"]) == ("chat", "a", 3, "Is it late?")
    right = [row["results"] for row in rows]
    said = report.to_json()
    assert (said["kind"], said["n_rows"], said["n_scored"]) == ("pairs", 5, 3)
    assert (said["n_rows_refused"], said["n_items"], said["n_items_refused"], said["n_refused"]) == (2, 3, 0, 2)
    assert said["subset_counts"] == {"field": "subset", "n_kinds": 2, "n_named": 3, "n_unnamed": 0, "shown": True}
    assert (
        said["pairs"]["accuracy"] == pytest.approx(np.mean(right))
        and said["pairs"]["n"] == 3
        and set(said["pairs"]) == {"accuracy", "low", "high", "n"}
    )
    assert said["subsets"]["safety"]["accuracy"] == pytest.approx(np.mean(right[1:])) and said["subsets"]["chat"]["n"] == 1
    assert [(refused["row"], refused["field"]) for refused in said["refused"]] == [(2, "rejected"), (3, "row")]
    json.dumps(said, allow_nan=False)


def test_a_tie_is_wrong(tmp_path: Path) -> None:
    flat = make_parts(directions=np.zeros((4, 6), dtype=np.float32))
    rows, report = score_rows(SparseRM(flat, FakeReader(6)), jsonl(tmp_path / "pairs.jsonl", PAIRS[:1]))
    assert rows[0]["scores_chosen"] == rows[0]["scores_rejected"] and rows[0]["results"] == 0
    assert report.accuracy is not None and report.accuracy.accuracy == 0.0


def test_single_responses(tmp_path: Path) -> None:
    given = [
        {"id": "a", "prompt": "Is it late?", "response": "No."},
        {"prompt": [{"role": "user", "content": "Is it late?"}], "responses": ["Yes.", " ", [{"role": "assistant", "content": "Never."}], 4]},
        {"prompt": "", "response": "x"},
        {"prompt": "x"},
        {"prompt": "x", "responses": []},
        {"prompt": [{"role": "assistant", "content": "Hm."}], "response": "x"},
    ]
    rows, report = score_rows(reward_model(), jsonl(tmp_path / "one.jsonl", given))
    assert [(row["id"], row["row"], row["prompt"], row["text"]) for row in rows] == [
        ("a", 1, "Is it late?", "No."), ("2", 2, "Is it late?", "Yes."), ("2", 2, "Is it late?", "Never."),
    ]  # fmt: skip
    np.testing.assert_allclose([row["score"] for row in rows], reward_model().score(["Is it late?"] * 3, ["No.", "Yes.", "Never."]), atol=1e-12)
    assert all(row["results"] == row["score"] for row in rows)
    assert report.refused == (
        RefusedRow(row=2, field="responses", reason="empty"),
        RefusedRow(row=2, field="responses", reason="not text but a number"),
        RefusedRow(row=3, field="prompt", reason="empty"),
        RefusedRow(row=4, field="response", reason="missing"),
        RefusedRow(row=5, field="responses", reason="not a list of responses, or an empty one"),
        RefusedRow(row=6, field="prompt", reason="does not end with a message of the user"),
    )
    assert (report.kind, report.n_rows, report.n_scored) == ("responses", 6, 3) and "pairs" not in report.to_json()
    assert (report.n_rows_refused, report.n_items, report.n_items_refused) == (6, 3, 0)


def test_prompts_of_several_turns_stay_messages(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Late?"}]
    rows, _ = score_rows(reward_model(), jsonl(tmp_path / "p.jsonl", [PAIRS[0], {"prompt": turns, "chosen": "No", "rejected": "Yes"}]))
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": "Is it late?"}], turns]


def test_what_the_backbone_cannot_read_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(FakeReader):
        def __call__(self, items: Any) -> Any:
            refused = {n: "9 tokens, at most 4 are read" for n, item in enumerate(items) if item[1] == "Yes."}
            return super().__call__([item for n, item in enumerate(items) if n not in refused])[0], refused

    monkeypatch.setattr(scoring, "CHUNK", 2)
    rows, report = score_rows(SparseRM(make_parts(), Short(6)), jsonl(tmp_path / "pairs.jsonl", PAIRS))
    assert [row["id"] for row in rows] == ["9"]
    assert [(r.row, r.field, r.reason) for r in report.refused if "tokens" in r.reason] == [
        (1, "rejected", "9 tokens, at most 4 are read"), (5, "rejected", "9 tokens, at most 4 are read")
    ]  # fmt: skip
    said = report.to_json()
    assert (said["n_rows"], said["n_rows_refused"], said["n_items"], said["n_items_refused"], said["n_scored"]) == (5, 2, 3, 2, 1)
    assert said["n_refused"] == 4 and said["by_reason"]["rejected: more than 4 tokens"] == 2 and said["pairs"]["n"] == 1
    with pytest.raises(DataError, match=r"no row of .*few.jsonl can be scored\n  found: 1 refused; row 1: rejected: 9 tokens, at most 4 are read"):
        score_rows(SparseRM(make_parts(), Short(6)), jsonl(tmp_path / "few.jsonl", PAIRS[:1]))


def test_no_usable_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row of .* can be scored\n  found: 1 refused; row 1: prompt: missing"):
        score_rows(reward_model(), jsonl(tmp_path / "bad.jsonl", [{"response": "x"}]))
    with pytest.raises(DataError, match="there is no file"):
        score_rows(reward_model(), tmp_path / "none.jsonl")


def test_score_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model_module, "BackboneReader", lambda parts, *_given: FakeReader(parts.d_model))
    reward_model().save(tmp_path / "rm")
    source, seen = jsonl(tmp_path / "pairs.jsonl", PAIRS), []
    report = score_file(
        tmp_path / "rm", source, tmp_path / "out.jsonl", progress=lambda step, done, total, **figures: seen.append((step, done, total))
    )
    assert report["n_scored"] == 3 and ("score", 6, 6) in seen
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written == score_rows(reward_model(), source)[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl", "rm"]
    score_file(str(tmp_path / "rm"), source, None)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written


def test_score_file_refuses_before_it_works(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(ConfigError, match=r"can't be written\n  expected: a file in a folder that stands\n  found: a folder"):
        score_file(tmp_path / "rm", source, tmp_path)
    with pytest.raises(ConfigError, match=r"found: no folder .*nowhere"):
        score_file(tmp_path / "rm", source, tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(StoreError, match="there is no reward model at"):
        score_file(tmp_path / "rm", source, tmp_path / "out.jsonl")

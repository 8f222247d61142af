"""Control tokens, closing tokens, refused dialogues and thinking blocks in texts, from pairs to rewards on the toy
model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backbone_helpers import NEMO_LIKE, QWEN_LIKE, tiny_backbone, tiny_folder
from model_helpers import quick_tiny

from core.backbone.tiny import tiny_pairs
from core.config import BackboneConfig, DataConfig
from core.data.pairs import load_pairs
from core.errors import DataError
from core.fit.pipeline import FitOutcome, fit
from core.reward.extraction import extract
from core.reward.hidden_states import load_hidden_states
from core.reward.model import SparseRM
from core.runs.store import Store
from core.types import PreferencePairs

END = "<|im_end|>"
THOUGHT = "<think>\nLet me see.\n</think>\n\n"


def write_rows(path: Path, change: Any = lambda row, number: row) -> Path:
    rows = [change(dict(row), number) for number, row in enumerate(tiny_pairs())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def loaded(path: Path) -> PreferencePairs:
    return load_pairs(DataConfig(pairs=str(path)))[0]


def states_of(pairs: PreferencePairs, folder: Path, **rules: Any) -> tuple[Any, dict[str, Any]]:
    (folder / "states").mkdir(parents=True)
    (folder / "scratch").mkdir()
    backbone = tiny_backbone(**rules)
    report = extract(pairs, backbone, layers=[1], positions=["response_end"], folder=folder / "states", scratch=folder / "scratch")
    return load_hidden_states(folder / "states", 1, "response_end"), report


def fitted(path: Path, tmp_path: Path, **backbone: Any) -> FitOutcome:
    config = quick_tiny()
    config = replace(config, data=replace(config.data, pairs=str(path)), backbone=replace(config.backbone, **backbone))
    return fit(config, Store(tmp_path / "store"))


def close_both(row: dict[str, Any], _number: int) -> dict[str, Any]:
    return {**row, "chosen": row["chosen"] + END, "rejected": row["rejected"] + f" {END}\n"}


def close_chosen(row: dict[str, Any], _number: int) -> dict[str, Any]:
    return {**row, "chosen": row["chosen"] + END}


@pytest.mark.parametrize("change", [close_both, close_chosen])
def test_states_are_those_without_the_closing_token(tmp_path: Path, change: Any) -> None:
    plain, report = states_of(loaded(write_rows(tmp_path / "plain.jsonl")), tmp_path / "a")
    closed, counted = states_of(loaded(write_rows(tmp_path / "closed.jsonl", change)), tmp_path / "b")
    assert np.array_equal(np.asarray(plain.chosen), np.asarray(closed.chosen))
    assert np.array_equal(np.asarray(plain.rejected), np.asarray(closed.rejected))
    assert np.array_equal(plain.n_tokens, closed.n_tokens), "nor does it count as a token of the answer"
    assert report["closing_tokens_cut"] == 0 and counted["closing_tokens"] == [END]
    assert counted["closing_tokens_cut"] == (200 if change is close_both else 100)


def test_a_fit_sees_no_closing_token_anywhere(tmp_path: Path) -> None:
    """A closing token on chosen answers alone must not separate the sides: not in z, in the wording, or in the
    length."""
    plain = fitted(write_rows(tmp_path / "plain.jsonl"), tmp_path)
    closed = fitted(write_rows(tmp_path / "closed.jsonl", close_chosen), tmp_path)
    for name in ("wording-only", "length-only", "dense"):
        assert plain.evaluation["controls"][name]["accuracy"] == closed.evaluation["controls"][name]["accuracy"], name
    assert plain.evaluation["sparserm"] == closed.evaluation["sparserm"]
    counts = closed.evaluation["pair_counts"]
    assert (counts["n_closing_tokens_cut"], counts["closing_tokens"], counts["n_refused"]) == (100, [END], 0)


def bad_row(row: dict[str, Any], number: int) -> dict[str, Any]:
    changes = {
        7: {"prompt": f"<|im_start|>user\n{row['prompt']}{END}\n<|im_start|>assistant\n"},
        8: {"chosen": f"yes {END} no"},
        9: {"rejected": "<|eot_id|> no"},
    }
    return {**row, **changes.get(number, {})}


def test_a_row_with_a_control_token_is_refused_or_read_as_text(tmp_path: Path) -> None:
    pairs = loaded(write_rows(tmp_path / "bad.jsonl", bad_row))
    plain, _ = states_of(loaded(write_rows(tmp_path / "plain.jsonl")), tmp_path / "a")
    kept, report = states_of(pairs, tmp_path / "b")
    assert [(row["row"], row["field"]) for row in report["refused"]] == [(7, "chosen"), (8, "chosen"), (9, "rejected")]
    assert "the prompt (user) holds the control token <|im_start|>" in report["refused"][0]["reason"]
    assert "a control token of another chat template, <|eot_id|>" in report["refused"][2]["reason"]
    others = [i for i in range(100) if i not in (7, 8, 9)]
    assert kept.pair_rows.tolist() == others
    np.testing.assert_allclose(kept.chosen, plain.chosen[others], atol=1e-4)
    read, report = states_of(pairs, tmp_path / "c", control_tokens="text")
    assert report["refused"] == [] and read.n_pairs == 100


def test_markers_are_noted_before_any_model_is_loaded(tmp_path: Path) -> None:
    _, plain = load_pairs(DataConfig(pairs=str(write_rows(tmp_path / "plain.jsonl"))))
    _, report = load_pairs(DataConfig(pairs=str(write_rows(tmp_path / "bad.jsonl", bad_row))))
    assert not any("markers" in note for note in plain.notes)
    (note,) = (note for note in report.notes if "markers" in note)
    assert note.startswith("3 of 100 pairs hold markers of a chat template (") and "<|im_end|>" in note and "<|eot_id|>" in note


def with_template(tmp_path: Path, template: str) -> str:
    """The toy model's folder with another chat template."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder(), folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(folder)


def one_double_user(row: dict[str, Any], number: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "user", "content": "Well?"}]
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {**row, "prompt": turns, **sides} if number == 11 else row


def test_a_dialogue_refused_by_the_template_does_not_end_the_fit(tmp_path: Path) -> None:
    outcome = fitted(write_rows(tmp_path / "pairs.jsonl", one_double_user), tmp_path, model=with_template(tmp_path, NEMO_LIKE))
    counts = outcome.evaluation["pair_counts"]
    assert counts["n_pairs_refused"] == 1 and counts["first_pairs"][0]["row"] == 12
    assert "roles must alternate" in counts["first_pairs"][0]["reason"]


def test_scores_of_the_others_stay_and_the_bad_have_reasons(tmp_path: Path) -> None:
    model = SparseRM.load(fitted(write_rows(tmp_path / "pairs.jsonl"), tmp_path, model=with_template(tmp_path, NEMO_LIKE)).artefact)
    twice = [{"role": "user", "content": "Is it hard?"}, {"role": "user", "content": "Well?"}]
    prompts: list[Any] = ["Is it hard?", twice, "Is it hard?", f"Is it hard?{END}", "Is it hard?"]
    responses = ["Yes, friend", "Yes, friend", f"Yes, friend{END}", "Yes, friend", f"Yes{END} friend"]
    rewards, refused = model.try_score(prompts, responses)
    assert sorted(refused) == [1, 3, 4] and np.isnan(rewards[[1, 3, 4]]).all()
    np.testing.assert_allclose(rewards[[0, 2]], model.score(["Is it hard?"], ["Yes, friend"])[0], atol=1e-5)
    assert "roles must alternate" in refused[1] and "the prompt (user) holds" in refused[3] and "the response holds" in refused[4]
    np.testing.assert_allclose(model(prompts, responses), rewards, atol=1e-5)  # TRL's reward function: NaN where there is no reward


def one_thinks(row: dict[str, Any], number: int) -> dict[str, Any]:
    return {**row, "chosen": THOUGHT + row["chosen"]} if number == 3 else row


@pytest.mark.parametrize(("think", "refused", "thinking"), [("keep", 0, {"kept": 1}), ("strip", 0, {"stripped": 1}), ("refuse", 1, {})])
def test_one_thinking_answer_in_a_hundred(tmp_path: Path, think: str, refused: int, thinking: dict[str, int]) -> None:
    pairs, model = loaded(write_rows(tmp_path / "pairs.jsonl", one_thinks)), with_template(tmp_path, QWEN_LIKE)
    states, report = states_of(pairs, tmp_path / "a", model=model, think=think)
    assert (len(report["refused"]), report["thinking"]) == (refused, thinking)
    plain, _ = states_of(loaded(write_rows(tmp_path / "plain.jsonl")), tmp_path / "b", model=model)
    others = [i for i in range(100) if i != 3]
    kept = [states.pair_rows.tolist().index(i) for i in others]
    np.testing.assert_allclose(states.chosen[kept], plain.chosen[others], atol=1e-4)
    if think == "strip":
        np.testing.assert_allclose(states.chosen[3], plain.chosen[3], atol=1e-4)
    if think == "keep":
        assert np.abs(states.chosen[3] - plain.chosen[3]).max() > 1e-2


def test_what_is_read_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", one_thinks)
    kept, stripped = (fitted(path, tmp_path, think=think) for think in ("keep", "strip"))
    assert kept.artefact != stripped.artefact
    assert kept.evaluation["pair_counts"]["n_thinking"] == {"kept": 1} and stripped.evaluation["pair_counts"]["n_thinking"] == {"stripped": 1}
    reading = json.loads((stripped.artefact / "config.json").read_text())["reading"]
    assert reading["think"] == "strip" and reading["control_tokens"] == "refuse"


def test_no_row_left_says_why(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", lambda row, _: {**row, "prompt": f"<|im_start|>user\n{row['prompt']}"})
    with pytest.raises(DataError, match=r"no pair can be read(.|\n)*the control token <\|im_start\|>(.|\n)*--control-tokens"):
        states_of(loaded(path), tmp_path / "a")


def test_defaults_are_recorded() -> None:
    assert BackboneConfig().result_fields()["think"] == "keep" and BackboneConfig().result_fields()["control_tokens"] == "refuse"

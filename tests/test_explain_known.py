"""What a fit keeps of its responses: made from states and pairs, written, read back with every claim checked, and shared no further than asked."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin as mixin
import numpy as np
import pytest
from explain_helpers import hand_made, question, tiny_explainer
from model_helpers import FakeReader, make_parts
from reward_helpers import make_hidden
from safetensors.numpy import load_file, save_file
from test_model_hub import FakeApi

from core.errors import ConfigError, StoreError
from core.explain.explainer import Explainer
from core.reward.fit_responses import FitResponses, collect_responses, prompt_id, read_responses, response_id, write_responses
from core.reward.model import SparseRM
from core.reward.recorded_files import FAITHFULNESS, KNOWN, KNOWN_TEXTS, record_files
from core.types import PreferencePair, PreferencePairs


def pairs_by_hand() -> PreferencePairs:
    """Two prompts; answer B is rejected once and chosen once."""
    rows = [("one", "A", "B"), ("one", "B", "C"), ("two", "A", "B")]
    made = tuple(PreferencePair(pair_id=str(i), prompt=question(q), chosen=w, rejected=x) for i, (q, w, x) in enumerate(rows))
    return PreferencePairs(pairs=made, split=("train", "unused", "test"))


def known_by_hand() -> FitResponses:
    """Row 3 of the states stands in no pair (its partner was refused)."""
    hidden = make_hidden(np.zeros((6, 2), dtype=np.float32), np.array([0, 1, 4]), np.array([1, 2, 5]), np.arange(6) + 10)
    v = np.arange(12, dtype=np.float32).reshape(6, 2)
    return collect_responses(hidden, pairs_by_hand(), v, v + 100)


def test_only_responses_of_pairs_are_kept_each_once() -> None:
    known = known_by_hand()
    assert len(known) == 5
    assert known.projections[:, 0].tolist() == [0, 2, 4, 8, 10] and known.activations[3, 0] == 108
    assert known.n_tokens.tolist() == [10, 11, 12, 14, 15]
    assert (known.chosen_rows.tolist(), known.rejected_rows.tolist()) == ([0, 1, 3], [1, 2, 4])
    assert known.split.tolist() == [0, 3, 2]
    expected = [("one", "A"), ("one", "B"), ("one", "C"), ("two", "A"), ("two", "B")]
    assert known.response_ids.tolist() == [response_id(question(q), text) for q, text in expected]
    assert len(set(known.response_ids.tolist())) == 5
    assert [known.texts(row) for row in range(5)] == [(question(q), text) for q, text in expected]
    assert [known.sides(row) for row in (0, 1, 2)] == [("chosen",), ("chosen", "rejected"), ("rejected",)]
    assert known.groups.tolist() in ([0, 0, 0, 1, 1], [1, 1, 1, 0, 0])


def test_rows_by_prompt_and_by_split() -> None:
    known = known_by_hand()
    assert known.rows_of_prompt(question("one")).tolist() == [0, 1, 2]
    assert known.rows_of_prompt(question("never asked")).tolist() == []
    assert known.train.tolist() == [0, 1] and known.held_out.tolist() == [3, 4]
    without_test = replace(known, split=np.array([0, 1, 3]))
    assert without_test.held_out_pairs.tolist() == [1] and without_test.held_out.tolist() == [1, 2]


def test_a_prompt_is_named_as_pairs_name_it() -> None:
    pair = pairs_by_hand()[0]
    assert prompt_id(pair.prompt) == int.from_bytes(bytes.fromhex(pair.prompt_id), "big", signed=True)
    assert -(2**63) <= prompt_id(pair.prompt) < 2**63


@pytest.mark.parametrize("texts", [True, False])
def test_written_and_read_back(tmp_path: Path, texts: bool) -> None:
    known = known_by_hand()
    write_responses(known, tmp_path, texts=texts)
    found = read_responses(tmp_path, 2)
    assert found is not None
    for spec in fields(known):
        if spec.name != "pairs":
            np.testing.assert_array_equal(getattr(found, spec.name), getattr(known, spec.name))
    assert (tmp_path / KNOWN_TEXTS).exists() is texts
    assert found.pairs == (known.pairs if texts else None)
    assert (found.texts(0) is not None) is texts
    assert read_responses(tmp_path / "elsewhere", 2) is None


def damage(path: Path, **changes: Any) -> None:
    tensors = {**load_file(path), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_tokens": None}, "found: activations, chosen_rows"),
        ({"projections": np.zeros((5, 3), dtype=np.float32)}, r"expected: projections float32 \[5, 2\]"),
        ({"activations": np.zeros((5, 2), dtype=np.float64)}, r"expected: activations float32 \[5, 2\]\n  found: float64 \[5, 2\]"),
        ({"rejected_rows": np.array([1, 2, 5])}, "expected: rejected_rows from 0 to 4"),
        ({"chosen_rows": np.array([-1, 2, 3])}, "expected: chosen_rows from 0 to 4"),
        ({"split": np.zeros(2, dtype=np.int64)}, r"expected: chosen_rows int64 \[2\]"),
        ({"split": np.array([0, 1, 4])}, "expected: split from 0 to 3"),
        ({"projections": np.full((5, 2), np.nan, np.float32)}, "expected: projections with finite values\n  found: 10 that are not"),
        ({"activations": np.full((5, 2), np.inf, np.float32)}, "expected: activations with finite values\n  found: 10 that are not"),
    ],
)
def test_damage_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_responses(known_by_hand(), tmp_path, texts=True)
    damage(tmp_path / KNOWN, **changes)
    with pytest.raises(StoreError, match=said) as caught:
        read_responses(tmp_path, 2)
    assert "known.safetensors is damaged" in str(caught.value) and "fit it again" in str(caught.value)


def test_other_damage_is_said(tmp_path: Path) -> None:
    write_responses(known_by_hand(), tmp_path, texts=True)
    lines = (tmp_path / KNOWN_TEXTS).read_text().splitlines(keepends=True)
    (tmp_path / KNOWN_TEXTS).write_text("".join(lines[:2]))
    with pytest.raises(StoreError, match=r"known\.jsonl is not of known\.safetensors\n  expected: 3 pairs\n  found: 2"):
        read_responses(tmp_path, 2)
    (tmp_path / KNOWN).write_bytes(b"no")
    with pytest.raises(StoreError, match="expected: a safetensors file"):
        read_responses(tmp_path, 2)


def kept_model(tmp_path: Path) -> SparseRM:
    """A saved and loaded model with everything beside it."""
    parts, known = hand_made()
    folder = SparseRM(parts, FakeReader(parts.d_model)).save(tmp_path / "model")
    write_responses(known, folder, texts=True)
    (folder / FAITHFULNESS).write_text("{}")
    record_files(folder)
    return SparseRM.load(folder)


def test_a_copy_keeps_everything(tmp_path: Path) -> None:
    model = kept_model(tmp_path)
    copy = SparseRM.load(model.save(tmp_path / "copy"))
    assert model.known is not None and copy.known is not None
    assert copy.known.pairs == model.known.pairs
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in (tmp_path / "model").iterdir()}
    assert SparseRM(make_parts(), FakeReader(6)).known is None


def test_texts_go_to_the_hub_only_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixin, "HfApi", FakeApi)
    model = kept_model(tmp_path)
    model.push_to_hub("me/rm")
    assert {KNOWN, FAITHFULNESS} < set(FakeApi.uploaded["files"]) and KNOWN_TEXTS not in FakeApi.uploaded["files"]
    assert not any(b"Answer 1." in content for content in FakeApi.uploaded["files"].values())
    model.push_to_hub("me/rm", texts=True)
    assert b"Answer 1." in FakeApi.uploaded["files"][KNOWN_TEXTS]
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / KNOWN).exists() and not (tmp_path / "again" / KNOWN_TEXTS).exists()


def test_a_damaged_faithfulness_is_said(tmp_path: Path) -> None:
    model = kept_model(tmp_path)
    assert model.folder is not None
    for text, problem in (("{", "expected: JSON"), ('{"error": NaN}', "found: NaN is no JSON number"), ("[]", "expected: a JSON object")):
        (model.folder / FAITHFULNESS).write_text(text)
        record_files(model.folder)
        with pytest.raises(StoreError, match=rf"faithfulness\.json is damaged\n(.|\n)*{problem}"):
            Explainer(model)


def test_a_control_without_latents_can_not_be_explained() -> None:
    for kind in ("dense", "activations", "random-isotropic"):
        with pytest.raises(ConfigError, match=f"expected: sparserm or random-rows\n  found: {kind}"):
            Explainer(SparseRM(make_parts(kind), FakeReader(6)))


def test_what_a_fit_keeps_is_what_the_model_sees_live() -> None:
    explainer = tiny_explainer()
    known, parts = explainer.known, explainer.parts
    assert known is not None and known.pairs is not None
    pairs = [int(i) for i in (known.held_out_pairs[0], known.pairs_of_split("train")[0], known.pairs_of_split("validation")[0])]
    for number in pairs:
        pair = known.pairs[number]
        for row, text in ((known.chosen_rows[number], pair.chosen), (known.rejected_rows[number], pair.rejected)):
            live = explainer.features(pair.prompt, text)
            np.testing.assert_allclose(known.projections[row], live.v, atol=2e-4)
            np.testing.assert_allclose(known.activations[row], live.f, atol=2e-4)
            assert known.response_ids[row] == live.response_id
    assert known.projections.shape == (len(known), parts.k)
    rewards = parts.head.reward(known.projections[known.held_out])
    np.testing.assert_allclose(np.quantile(rewards, np.linspace(0, 1, 101)), parts.reward_quantiles, atol=1e-5)
    evaluation = json.loads((Path(str(explainer.model.folder)) / "evaluation.json").read_text())["sparserm"]
    chosen, rejected = (parts.head.reward(known.projections[rows[known.held_out_pairs]]) for rows in (known.chosen_rows, known.rejected_rows))
    assert np.mean(chosen > rejected) == evaluation["accuracy"] and len(known.held_out_pairs) == evaluation["n"]

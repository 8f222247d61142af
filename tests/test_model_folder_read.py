"""One folder read by ModelFolder: each file once, shared while the folder is the same, and read again when it is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from explain_helpers import hand_made

from core.errors import ConfigError, MissingError, StoreError
from core.explain.from_folder import builder_of, switchboard_of
from core.reward import folder_content
from core.reward.fit_responses import write_responses
from core.reward.folder import ModelFolder
from core.reward.parts_files import read_parts, save_parts
from core.reward.recorded_files import record_files
from core.runs.store import Store


def saved(target: Path, seed: int = 0) -> Path:
    """A reward model with its responses, their texts and a table."""
    parts, responses = hand_made(seed=seed)
    save_parts(parts, target)
    write_responses(responses, target, texts=True)
    (target / "evaluation.json").write_text('{"sparserm": 1}\n')
    record_files(target)
    return target


def forget_record(folder: Path) -> None:
    """Makes it a folder of a version that recorded no hashes."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name not in ("files", "config_sha256")}))


def test_a_file_is_read_once_for_all_who_open_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = saved(tmp_path / "model"), list[Path]()
    monkeypatch.setattr(folder_content, "read_parts", lambda folder: reads.append(folder) or read_parts(folder))  # type: ignore[func-returns-value]
    first, second = ModelFolder(path), ModelFolder(path)
    assert first.parts is second.parts and first.responses is second.responses and reads == [path]
    assert builder_of(first) is builder_of(second) and switchboard_of(first) is switchboard_of(second)
    assert first == second != ModelFolder(path, Store(tmp_path)) and len({first, second}) == 1
    with pytest.raises(ValueError, match="read-only"):
        first.rewards[0] = 1.0


@pytest.mark.parametrize("recorded", [True, False])
def test_a_folder_that_was_replaced_is_read_again(tmp_path: Path, recorded: bool) -> None:
    path = saved(tmp_path / "model")
    other = saved(tmp_path / "other", seed=1)
    if not recorded:
        forget_record(path)
        forget_record(other)
    before = ModelFolder(path)
    rewards = before.rewards.copy()
    shutil.rmtree(path)
    shutil.copytree(other, path)
    after = ModelFolder(path)
    assert np.array_equal(after.rewards, ModelFolder(other).rewards) and not np.array_equal(after.rewards, rewards)
    assert np.array_equal(before.rewards, rewards)  # an open folder keeps what it has read


def test_damage_is_noticed_though_the_values_are_in_memory(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    assert len(ModelFolder(path).margins)
    content = bytearray((path / "heads.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "heads.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match=r"heads\.safetensors is damaged"):
        _ = ModelFolder(path).margins


def test_pairs_are_ranked_by_the_shipped_head(tmp_path: Path) -> None:
    folder = ModelFolder(saved(tmp_path / "model"))
    responses, head = folder.responses, folder.parts.head
    chosen, rejected = (head.reward(responses.projections[rows]) for rows in (responses.chosen_rows, responses.rejected_rows))
    np.testing.assert_array_equal(folder.margins, chosen - rejected)
    everything, held_out = folder.ranked("misranked", held_out=False), folder.ranked("worst")
    assert np.array_equal((chosen - rejected)[everything], np.sort(chosen - rejected)) and len(everything) == len(folder.pairs)
    assert set(held_out) == set(responses.held_out_pairs) == set(folder.ranked())
    assert (np.diff(np.minimum(chosen, rejected)[held_out]) >= 0).all()
    assert [folder.pair_number(folder.pair(number).pair_id) for number in (0, 3)] == [0, 3] and folder.pair_number("none") is None
    with pytest.raises(ConfigError, match="worst, misranked"):
        folder.ranked("best")
    with pytest.raises(ConfigError, match="no such pair"):
        folder.pair(len(folder.pairs))


def test_what_a_folder_does_not_hold_is_a_missing_error(tmp_path: Path) -> None:
    folder = ModelFolder(save_parts(hand_made()[0], tmp_path / "model"), Store(tmp_path / "cache"))
    assert folder.find_responses() is None and folder.faithfulness is None and not folder.has_texts
    for name in ("responses", "pairs", "rewards", "margins", "evaluation", "curve", "data_report", "frequencies"):
        with pytest.raises(MissingError):
            getattr(folder, name)
    with pytest.raises(MissingError, match="does not keep the responses"):
        folder.states()

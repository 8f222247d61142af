"""Killed by SIGKILL through the command line, in every step and amid the extraction, and started again: the same bytes as undisturbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import cache_contents, finish, kill_inside, kill_when

from core.backbone.presets import preset
from core.fit.steps import STEPS
from core.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]
# Whole shards at which the extraction is killed, spread evenly over its 18.
SHARDS = (3, 7, 11, 15)
SHORT = ["--epochs", "3", "--seeds", "2", "--random-draws", "2", "--resamples", "20", "--k", "8", "--curve", "4,8", "--dtype", "float32"]
Shards = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A fit of 720 pairs by the tiny backbone, its extraction cut into 18 shards."""
    tiny = preset("tiny")
    rows = [json.loads(line) for line in Path(tiny.data.pairs).read_text().splitlines()]
    path = tmp_path_factory.mktemp("kill") / "pairs.jsonl"
    more = [{**row, "id": f"{row['id']}-{n}", "prompt": f"{row['prompt']} Day {n}, please."} for n in range(8) for row in rows[:90]]
    path.write_text("".join(json.dumps(row) + "\n" for row in more))
    source = ["--pairs", str(path), "--model", tiny.backbone.model, "--layer", "1", "--sae", tiny.sae.path]
    return ["fit", "--json", *source, "--tokens-per-batch", "128", *SHORT]


def kill_at_shard(words: list[str], root: Path, number: int) -> Shards:
    kill_when(words, root, lambda: len(shards(root)) >= number)
    assert not (root / "artefacts/extraction").exists(), "the extraction was over before the kill"
    return shards(root)


def shards(root: Path) -> Shards:
    """The whole shards, with what would change if one were written again."""
    found = {path.name: path.stat() for path in (root / "scratch").glob("extraction-*/shard-*.safetensors")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def assert_same(disturbed: Path, undisturbed: Path) -> None:
    ours, theirs = cache_contents(disturbed), cache_contents(undisturbed)
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert [error for _, error in Store(disturbed).verify() if error] == []
    assert not (disturbed / "corrupt").exists() and list((disturbed / "tmp").iterdir()) == []


def without_times(outcome: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in outcome.items() if name not in ("seconds", "artefact")}


@pytest.fixture(scope="module")
def undisturbed(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("undisturbed") / "cache"
    return root, finish(words, root)


def test_killed_thirteen_times_in_a_row(words: list[str], undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """One work, killed inside each step and four times within the extraction, each start going on from the last."""
    root = tmp_path / "cache"
    kill_inside(words, root, "pairs")
    kept: Shards = {}
    for number in SHARDS:
        now = kill_at_shard(words, root, number)
        assert kept.items() <= now.items(), "a whole shard was computed again"
        kept = now
    for step in STEPS[1:]:
        if step == "extraction":
            kill_when(words, root, (root / "held-extraction").exists, hold="extraction")
            assert kept.items() <= shards(root).items() and len(shards(root)) == 18
        kill_inside(words, root, step)
    assert without_times(finish(words, root)) == without_times(undisturbed[1])
    assert_same(root, undisturbed[0])


@pytest.mark.slow
@pytest.mark.parametrize("moment", [*STEPS, *SHARDS])
def test_killed_once(words: list[str], undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, moment: str | int) -> None:
    """Each moment for itself: killed there once, then run to the end."""
    root = tmp_path / "cache"
    if isinstance(moment, int):
        kept = kill_at_shard(words, root, moment)
        kill_when(words, root, (root / "held-extraction").exists, hold="extraction")
        again = [name for name, stamp in shards(root).items() if name in kept and stamp != kept[name]]
        assert again == [] and len(kept) >= moment
    else:
        kill_inside(words, root, moment)
    assert without_times(finish(words, root)) == without_times(undisturbed[1])
    assert_same(root, undisturbed[0])

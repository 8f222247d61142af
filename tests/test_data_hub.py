"""Hub ids, by a stand-in for `datasets` that is calls what to do, and once by the real one on a local folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from data_helpers import jsonl_bytes, trl_row, trl_rows

from core.config import DataConfig
from core.data.pairs import load_pairs
from core.errors import DataError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A `datasets` whose load_dataset notes its arguments in the list, then gives or raises the list's first element."""
    calls: list[Any] = [None]

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        if isinstance(calls[0], Exception):
            raise calls[0]
        return calls[0]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_id_configuration_split_and_revision_are_handed_on(hub: list[Any]) -> None:
    hub[0] = [*trl_rows(2), trl_row(3) | {"chosen": None}]
    config = DataConfig(pairs="someone/some-pairs", hub_config="helpful", hub_split="test", hub_revision="abc123")
    pairs, report = load_pairs(config)
    assert hub[1] == (("someone/some-pairs", "helpful"), {"split": "test", "revision": "abc123"})
    assert report.source == pairs.source == "someone/some-pairs (helpful)@abc123 [test]"
    assert [p.meta["row"] for p in pairs] == [1, 2]
    assert [(r.row, r.field, r.reason) for r in report.refused] == [(3, "chosen", "missing")]


def test_defaults_are_left_to_the_hub(hub: list[Any]) -> None:
    hub[0] = trl_rows(1)
    assert load_pairs(DataConfig(pairs="plain-id"))[1].source == "plain-id [train]"
    assert hub[1] == (("plain-id", None), {"split": "train", "revision": None})


def test_an_existing_path_goes_before_a_hub_id(hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "pairs").write_bytes(b"some bytes")
    with pytest.raises(DataError, match="is of no known kind"):
        load_pairs(DataConfig(pairs="someone/pairs"))
    with pytest.raises(DataError, match="there is no file"):
        load_pairs(DataConfig(pairs="someone/pairs.jsonl"))
    assert len(hub) == 1


class GatedRepoError(Exception):
    pass


class OfflineModeIsEnabled(ConnectionError):
    pass


class DatasetNotFoundError(FileNotFoundError):
    pass


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (GatedRepoError("403 Client Error"), "accept its terms"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. Visit the page to ask for access."), "accept its terms"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), "check the id"),
        (DatasetNotFoundError("Revision 'abc' doesn't exist for dataset 'a/b' on the Hub."), "check hub_revision"),
        (PermissionError("401 Client Error: Unauthorized"), "hf auth login"),
        (OfflineModeIsEnabled("Cannot reach it: offline mode is enabled."), "go online (HF_HUB_OFFLINE unset), or give a downloaded file"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectTimeout)"), "go online"),
        (ValueError("BuilderConfig 'x' not found. Available: ['helpful', 'harmless']"), "give hub_config"),
        (ValueError("Config name is missing. Please pick one among ['a', 'b']"), "give hub_config"),
        (ValueError("Unknown split \"dev\". Should be one of ['train', 'test']."), "give hub_split"),
        (RuntimeError("Dataset scripts are no longer supported, but found hh.py"), "refs/convert/parquet"),
        (MemoryError("?"), "check id, configuration, split and revision"),
        (ImportError("No module named 'datasets'"), "pip install datasets"),
    ],
)
def test_what_can_go_wrong_says_what_to_do(error: Exception, remedy: str, hub: list[Any]) -> None:
    hub[0] = error
    with pytest.raises(DataError) as caught:
        load_pairs(DataConfig(pairs="a/b"))
    assert remedy in caught.value.remedy
    assert str(error)[:30] in caught.value.found


def test_several_splits_are_named(hub: list[Any]) -> None:
    hub[0] = {"train": [], "test": []}
    with pytest.raises(DataError, match=r"(?s)several splits.*found: train, test.*give hub_split"):
        load_pairs(DataConfig(pairs="a/b"))


def test_an_empty_split_has_no_usable_row(hub: list[Any]) -> None:
    hub[0] = []
    with pytest.raises(DataError, match="no usable row"):
        load_pairs(DataConfig(pairs="a/b"))


REAL = """
import sys
from core.config import DataConfig
from core.data.pairs import load_pairs
from core.errors import DataError
pairs, report = load_pairs(DataConfig(pairs=sys.argv[1], hub_split="train"))
print(len(pairs), report.source.endswith("[train]"), report.format)
for config in (DataConfig(pairs=sys.argv[1], hub_split="nope"), DataConfig(pairs="someone/not-there")):
    try:
        load_pairs(config)
    except DataError as error:
        print(error.remedy)
"""


def test_the_real_datasets_on_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(jsonl_bytes(trl_rows(3)))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))  # read when datasets is imported: hence a process of its own
    done = subprocess.run([sys.executable, "-c", REAL, str(tmp_path / "set")], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    first, split, offline = done.stdout.splitlines()
    assert first == "3 True trl"
    assert split.startswith("give hub_split")
    assert offline.startswith("go online")

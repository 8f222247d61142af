"""Files that appear whole or not at all, JSON in them, and values as JSON has them."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core import files
from core.errors import StoreError
from core.files import json_line, read_json, read_json_lines, whole_file, write_bytes, write_json, write_json_lines, write_lines, write_text
from core.types import JsonFields, json_value

VALUES: list[Any] = [{"b": 1, "a": "é\u2028\u202e"}, [1, 2.5, None], "text", 0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", VALUES)
    write_json_lines(tmp_path / "rows.jsonl", VALUES)
    assert read_json(tmp_path / "value.json") == VALUES == read_json_lines(tmp_path / "rows.jsonl")
    assert names(tmp_path) == ["rows.jsonl", "value.json"]


def test_equal_rows_give_equal_bytes_with_sorted_keys(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "a", [{"a": 1, "b": 2}], sort_keys=True)
    write_json_lines(tmp_path / "b", [{"b": 2, "a": 1}], sort_keys=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b'{"a": 1, "b": 2}\n'


def test_half_a_surrogate_pair_in_lines_comes_back(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "rows.jsonl", [{"text": "a\ud800"}])
    assert read_json_lines(tmp_path / "rows.jsonl") == [{"text": "a\ud800"}]


def test_line_ends_are_line_feeds(tmp_path: Path) -> None:
    write_lines(tmp_path / "lines", ["a\n", "b\r\n"])
    write_text(tmp_path / "text", "a\nb\r\n")
    assert (tmp_path / "lines").read_bytes() == (tmp_path / "text").read_bytes() == b"a\nb\r\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_what_json_lacks_is_refused_and_the_old_file_stays(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, "old")
    with pytest.raises((TypeError, ValueError)):
        write_json(path, [value])
    with pytest.raises((TypeError, ValueError)):
        write_json_lines(path, ["new", value])
    with pytest.raises((TypeError, ValueError)):
        json_line(value)
    assert read_json(path) == "old" and names(tmp_path) == ["value.json"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "x") as temporary:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert (tmp_path / "x").read_bytes() == b"old" and names(tmp_path) == ["x"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_only_the_owner_reads_a_private_file(tmp_path: Path) -> None:
    write_text(tmp_path / "secret", "old")
    write_text(tmp_path / "secret", "new", private=True)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600 and (tmp_path / "secret").read_text() == "new"


@pytest.mark.parametrize("content", [b"", b"{", b"NaN", b"[1e999]", b"\xff", b"[" * 100_000])
def test_a_file_without_json_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"value\.json is damaged\n  expected: JSON\n(.|\n)*sparserm cache verify"):
        read_json(path)
    if content:
        with pytest.raises(StoreError, match=r"value\.json is damaged"):
            read_json_lines(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for read in (read_json, read_json_lines):
        with pytest.raises(StoreError, match="can't be read"):
            read(tmp_path / "nothing")


@pytest.mark.parametrize("times", [1, 5])
def test_windows_is_asked_again_while_another_process_holds_it(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, left = os.replace, [times]

    def busy(source: Path, target: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise PermissionError
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", busy)
    with pytest.raises(PermissionError):
        write_json(tmp_path / "x", "refused on POSIX, where this means that the folder is closed")
    left[0] = times
    monkeypatch.setattr(files, "WAIT", 0.0)
    monkeypatch.setattr(files, "RETRIES_ON", (os.name,))
    write_json(tmp_path / "x", "new")
    assert read_json(tmp_path / "x") == "new"


# --- values as JSON ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner(JsonFields):
    share: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer(JsonFields):
    inner: Inner
    rows: np.ndarray
    more: dict[Any, Any]

    @cached_property
    def total(self) -> float:
        return float(self.rows.sum())


@dataclass(frozen=True)
class Bare:
    a: int


def test_dataclasses_are_objects_of_their_fields_in_order() -> None:
    more: dict[Any, Any] = {1: Bare(2), "n": np.int64(3), "b": np.bool_(True)}
    outer = Outer(inner=Inner(share=float("nan"), names=("a",)), rows=np.array([[1.5, np.inf]]), more=more)
    assert outer.total == np.inf, "what is remembered of a computation is no field"
    assert json.dumps(outer.to_json(), allow_nan=False) == (
        '{"inner": {"share": null, "names": ["a"]}, "rows": [[1.5, null]], "more": {"1": {"a": 2}, "n": 3, "b": true}}'
    )


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [1, [2]], {"a": {"b": None}}])
def test_json_values_stay_what_they_are(value: Any) -> None:
    assert json_value(value) == value and type(json_value(value)) is type(value)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), Bare])
def test_what_is_no_json_value_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="is no JSON value"):
        json_value([value])

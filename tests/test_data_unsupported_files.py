"""Files and folders that hold no rows we read are named for what they are; a folder says which of its files it reads."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from data_helpers import csv_bytes, jsonl_bytes, load, parquet_bytes, trl_rows

from core.config import DataConfig
from core.data.pairs import load_pairs
from core.errors import DataError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345678\n"


def archive(*names: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive_file:
        for name in names:
            archive_file.writestr(name, "x")
    return sink.getvalue()


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive_file:
        archive_file.addfile(tarfile.TarInfo("a.jsonl"))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "words", "remedy"),
    [
        ("x.jsonl", LFS, r"a Git LFS pointer: .* \(they have 12,345,678 bytes\)", "git lfs pull"),
        ("x.parquet", LFS, "a Git LFS pointer", "git lfs pull"),
        ("x.csv", b"<!DOCTYPE html><html>", "a web page", "/resolve/"),
        ("x.jsonl", b"\n <html><head>", "a web page", "/resolve/"),
        ("x.jsonl", b"Entry not found", "an error message of the Hub", "/resolve/"),
        ("x.zip", archive("a.jsonl", "b.jsonl"), "a zip archive of a.jsonl, b.jsonl", "unpack"),
        ("x.jsonl", archive("a.jsonl"), "a zip archive of a.jsonl", "unpack"),
        ("x.xlsx", archive("xl/workbook.xml"), "a spreadsheet's own file", "csv"),
        ("x.pt", archive("m/data.pkl"), "a PyTorch file, which is pickled", "trust"),
        ("x.tar", tar(), "a tar archive", "unpack"),
        ("x.tar.gz", gzip.compress(tar(), mtime=0), "a tar archive", "unpack"),
        ("x.pkl", pickle.dumps([1]), "a pickled file", "trust"),
        ("x.jsonl", pickle.dumps([1]), "a pickled file", "trust"),
        ("x.gguf", b"GGUF\3\0\0\0", "a language model", "--model"),
        ("x.safetensors", (16).to_bytes(8, "little") + b'{"a": 1}', "a model's weights", "--model"),
        ("x.jsonl", parquet_bytes(trl_rows(2)), "a parquet file under another name", ".parquet"),
        ("x.parquet", jsonl_bytes(trl_rows(2)), "JSON under another name", ".jsonl"),
        ("x.csv", jsonl_bytes(trl_rows(2)), "holds JSON, not a table", ".jsonl"),
        ("x.parquet", parquet_bytes(trl_rows(50))[:-20], "cut off or damaged", "fetch it again"),
        ("x.xlsx", b"hm", r"of no known kind\n.*\n.*a spreadsheet's own file", "csv"),
        ("x.jsonl.gz", gzip.compress(jsonl_bytes(trl_rows(9)), mtime=0)[:12], "breaks off or is damaged|no usable row", ""),
        ("x.jsonl.zst", b"(\xb5/\xfd1234", "a zstandard archive", "zstd -d"),
    ],
)
def test_a_foreign_file_is_named(name: str, data: bytes, words: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path, name, data)
    assert remedy in str(caught.value) and "bug" not in str(caught.value)


def folder(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no data file\n.*\n  found: an empty folder"),
        ({"README.md": b"#"}, "holds no data file"),
        ({"x.pkl": b"\x80\x04"}, "holds no data file\n.*\n.*x.pkl is a pickled file"),
        ({"config.json": b'{"format": "sparserm-reward-model"}', "known.jsonl": b"{}"}, "a reward model's folder"),
        ({"config.json": b'{"model_type": "llama"}'}, "a language model's folder"),
        ({"adapter_config.json": b"{}"}, "an adapter's folder"),
        ({"cfg.json": b"{}", "sae_weights.safetensors": b""}, "a sparse autoencoder's folder"),
        ({"a.jsonl": jsonl_bytes(trl_rows(1)), "b.jsonl": jsonl_bytes([{"question": "a", "answer": "b"}])}, "have different columns"),
        ({"a.jsonl": jsonl_bytes(trl_rows(1)), "a.csv": csv_bytes(trl_rows(1))}, "data files of several kinds"),
        ({"test.jsonl": jsonl_bytes(trl_rows(1))}, "has no file of split train\n.*\n  found: splits test"),
        ({"a.jsonl": LFS, "b.jsonl": LFS}, "a Git LFS pointer"),
    ],
)
def test_a_foreign_folder_is_named(files: dict[str, bytes], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load_pairs(DataConfig(pairs=folder(tmp_path, files)))


def test_files_of_a_folder_are_read_one_after_the_other(tmp_path: Path) -> None:
    rows = trl_rows(6)
    bad = b"{broken\n"
    files = {
        "data/train-00000-of-00002.jsonl": jsonl_bytes(rows[:2]),
        "data/train-00001-of-00002.jsonl": bad + jsonl_bytes(rows[2:4]),
        "data/test-00000-of-00001.jsonl": jsonl_bytes(rows[4:]),
        "README.md": b"#",
    }
    pairs, report = load_pairs(DataConfig(pairs=folder(tmp_path, files)))
    assert [pair.chosen for pair in pairs] == [row["chosen"] for row in rows[:4]]
    assert [pair.meta["row"] for pair in pairs] == [1, 2, 4, 5] and [refused.row for refused in report.refused] == [3]
    assert report.notes[0].endswith("not read: data/test-00000-of-00001.jsonl")
    assert "rows 3 to 5: train-00001-of-00002.jsonl" in report.notes
    other, _ = load_pairs(DataConfig(pairs=str(tmp_path), hub_split="test"))
    assert [pair.chosen for pair in other] == [row["chosen"] for row in rows[4:]]


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    datasets: Any = pytest.importorskip("datasets")
    rows = trl_rows(4)
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(str(tmp_path / "one"))
    pairs, report = load_pairs(DataConfig(pairs=str(tmp_path / "one")))
    assert [pair.chosen for pair in pairs] == [row["chosen"] for row in rows] and "save_to_disk" in report.notes[0]
    datasets.DatasetDict(train=whole.select([0, 1]), test=whole.select([2, 3])).save_to_disk(str(tmp_path / "two"))
    pairs, report = load_pairs(DataConfig(pairs=str(tmp_path / "two")))
    assert [pair.chosen for pair in pairs] == [row["chosen"] for row in rows[:2]] and "read: split train; not read: test" in report.notes
    with pytest.raises(DataError, match=r"has no split dev\n.*\n  found: train, test"):
        load_pairs(DataConfig(pairs=str(tmp_path / "two"), hub_split="dev"))
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="saved by `save_to_disk`, but it can't be read"):
        load_pairs(DataConfig(pairs=str(tmp_path / "one")))


def test_a_pipe_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        load_pairs(DataConfig(pairs=str(tmp_path / "pipe")))


def test_our_own_artefact_names_its_pairs(tmp_path: Path) -> None:
    files = {"manifest.json": json.dumps({"step": "pairs", "fingerprint": "ab"}).encode(), "pairs.jsonl": jsonl_bytes(trl_rows(1))}
    with pytest.raises(DataError, match=r"an artefact of the cache \(step pairs\)") as caught:
        load_pairs(DataConfig(pairs=folder(tmp_path, files)))
    assert caught.value.remedy.endswith("pairs.jsonl")

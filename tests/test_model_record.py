"""The record of a reward model's files in `config.json`: what stands in it, when it is checked, and what keeps it valid."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin as mixin
import pytest
from explain_helpers import hand_made
from model_helpers import FakeReader, make_parts
from test_model_folder import assert_same, edit_config, forget_record
from test_model_hub import FakeApi

from core.errors import StoreError
from core.reward import model as model_module
from core.reward import recorded_files
from core.reward.fit_responses import write_responses
from core.reward.model import SparseRM
from core.reward.parts_files import read_parts, save_parts, write_parts
from core.reward.recorded_files import read_config, record_files, sha256_of_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved reward model with its responses, their texts and the fit's tables."""
    parts, known = hand_made()
    target = save_parts(parts, tmp_path / "model")
    write_responses(known, target, texts=True)
    for name in ("faithfulness.json", "evaluation.json", "curve.json"):
        (target / name).write_text('{"error": 0.25}\n')
    record_files(target)
    return target


def by_hand(folder: Path) -> tuple[dict[str, Any], str]:
    """The two fields, by hashlib and json alone."""
    raw = json.loads((folder / "config.json").read_text())
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in ("config.json", "README.md")}
    files = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in contents.items()}
    rest = {name: value for name, value in raw.items() if name != "config_sha256"}
    text = json.dumps({**rest, "files": files}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return files, hashlib.sha256(text.encode()).hexdigest()


def test_every_file_stands_in_the_record(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    files, digest = by_hand(folder)
    assert raw["files"] == files and len(files) == 8 and raw["config_sha256"] == digest


@pytest.mark.parametrize("kind", ["sparserm", "dense"])
def test_a_control_is_recorded_as_well(tmp_path: Path, kind: str) -> None:
    folder = save_parts(make_parts(kind), tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    assert (raw["files"], raw["config_sha256"]) == by_hand(folder) and len(raw["files"]) == 3


@pytest.mark.parametrize(
    ("at", "value"), [(("layer",), 3), (("method", "loss"), "bce"), (("evaluation", "test", "accuracy"), 0.7500000000000001), (("seeds", 1), 2)]
)
def test_a_changed_value_of_the_config_is_noticed(folder: Path, at: tuple[Any, ...], value: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    part = raw
    for name in at[:-1]:
        part = part[name]
    assert part[at[-1]] != value
    part[at[-1]] = value
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(StoreError, match=r"config\.json is damaged.*\n  expected: content of sha256 \w+ \(config_sha256\)\n  found: sha256 \w+\n"):
        read_parts(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: edit_config(f, files=...), r"config\.json is damaged"),
        (lambda f: edit_config(f, config_sha256=...), r"config\.json is damaged"),
        (lambda f: (f / "known.jsonl").unlink(), r"known\.jsonl is damaged(.|\n)*no such file\n  to do: fit it again, or fetch.*push_to_hub"),
        (lambda f: (f / "curve.json").write_bytes(b""), r"curve\.json is damaged.*\n  expected: 16 bytes\n  found: an empty file"),
        (lambda f: (f / "curve.json").write_bytes(b"{}"), r"curve\.json is damaged.*\n  expected: 16 bytes\n  found: 2 bytes"),
        (
            lambda f: (f / "curve.json").write_text('{"error": 0.35}\n'),
            r"curve\.json is damaged.*\n  expected: sha256 \w+.*\n  found: sha256 \w+",
        ),
        (lambda f: ((f / "curve.json").unlink(), (f / "curve.json").mkdir()), r"curve\.json is damaged(.|\n)*no such file"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, change: Callable[[Path], Any], problem: str) -> None:
    change(folder)
    with pytest.raises(StoreError, match=problem):
        read_config(folder)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname", "a/b", "..\\elsewhere"])
def test_the_record_can_not_lead_out_of_the_folder(folder: Path, name: str) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    rest = {key: value for key, value in raw.items() if key != "config_sha256"}
    raw["config_sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(StoreError, match="names of files in this folder"):
        read_config(folder)


def test_a_file_that_nobody_recorded_is_not_read(tmp_path: Path) -> None:
    """Texts of another model, left in a folder that was saved over: they would be explained as this model's."""
    parts, known = hand_made()
    write_parts(parts, tmp_path)
    assert SparseRM.load(tmp_path).known is None
    write_responses(known, tmp_path, texts=False)
    with pytest.raises(StoreError, match=r"known\.safetensors is not of this reward model(.|\n)*to do: remove it"):
        SparseRM.load(tmp_path)


def test_what_people_write_beside_is_not_covered(folder: Path) -> None:
    for name in ("README.md", "notes.txt", ".gitattributes"):
        (folder / name).write_text("mine")
    read_config(folder)
    (folder / "README.md").write_text("changed")
    read_config(folder)


def test_an_older_folder_is_read_and_that_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(recorded_files.log, "warning", lambda text, *values: warned.append(text % values))
    parts = read_parts(folder)
    assert not warned
    forget_record(folder)
    assert_same(read_parts(folder), parts)
    read_parts(folder)
    assert len(warned) == 1 and "records no hashes of its files" in warned[0] and str(folder) in warned[0]
    record_files(folder)
    assert json.loads((folder / "config.json").read_text())["files"].keys() == by_hand(folder)[0].keys()


# --- how often a file is read --------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed, as that happens."""
    names: list[str] = []
    real = recorded_files.file_sha256
    monkeypatch.setattr(recorded_files, "file_sha256", lambda path: (names.append(path.name), real(path))[1])
    return names


def test_a_file_is_hashed_once(folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_files, "JUST_WRITTEN", 0)
    read_config(folder)
    assert sorted(hashed) == sorted(by_hand(folder)[0])
    hashed.clear()
    for _ in range(3):
        read_config(folder)
    assert hashed == []
    os.utime(folder / "known.jsonl")
    read_config(folder)
    assert hashed == ["known.jsonl"]


def test_a_change_that_keeps_size_and_time_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_files, "JUST_WRITTEN", 0)
    read_config(folder)
    path = folder / "heads.safetensors"
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StoreError, match=r"heads\.safetensors is damaged"):
        read_config(folder)


def test_a_file_that_was_just_written_is_hashed_again(folder: Path, hashed: list[str]) -> None:
    """Two changes within a tick of the clock leave the same time."""
    first = sha256_of_file(folder / "curve.json")
    assert sha256_of_file(folder / "curve.json") == first and hashed == ["curve.json"] * 2


# --- copies --------------------------------------------------------------------------------------------------------


def zipped(folder: Path, target: Path) -> None:
    shutil.unpack_archive(shutil.make_archive(str(target.with_name("packed")), "zip", folder), target)


def cloned(folder: Path, target: Path) -> None:
    def git(*argv: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *argv], check=True, capture_output=True)

    git("init", "-q", str(folder))
    git("-C", str(folder), "add", "-A")
    git("-C", str(folder), "commit", "-q", "-m", "a model")
    git("clone", "-q", str(folder), str(target))


def linked(folder: Path, target: Path) -> None:
    """As the Hub's cache lays a snapshot out."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).symlink_to(file)


@pytest.mark.parametrize("copy", [lambda folder, target: shutil.copytree(folder, target), zipped, cloned, linked])
def test_a_copy_is_as_whole_as_the_folder(folder: Path, tmp_path: Path, copy: Callable[[Path, Path], Any]) -> None:
    parts = read_parts(folder)
    copy(folder, tmp_path / "copy")
    assert_same(read_parts(tmp_path / "copy"), parts)
    assert SparseRM.load(tmp_path / "copy").known is not None


def test_no_text_file_has_line_ends_of_another_system(folder: Path) -> None:
    """git would change them on the way, and with them the hash."""
    for path in folder.iterdir():
        assert path.suffix == ".safetensors" or b"\r" not in path.read_bytes()


def test_line_ends_of_the_config_do_not_count(folder: Path) -> None:
    content = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(content.replace(b"\n", b"\r\n"))
    read_config(folder)


def model_of(folder: Path) -> SparseRM:
    parts = read_parts(folder)
    model = SparseRM(parts, FakeReader(parts.d_model))
    model.folder = folder
    return model


def test_saving_records_what_is_saved(folder: Path, tmp_path: Path) -> None:
    model_of(folder).save(tmp_path / "saved")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "saved" / path.name).read_bytes()


@pytest.mark.parametrize("texts", [True, False])
def test_what_is_pushed_can_be_fetched(folder: Path, tmp_path: Path, texts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixin, "HfApi", FakeApi)
    model_of(folder).push_to_hub("me/rm", texts=texts)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name, content in FakeApi.uploaded["files"].items():
        (snapshot / name).write_bytes(content)
    assert set(json.loads((snapshot / "config.json").read_text())["files"]) == by_hand(folder)[0].keys() - (set() if texts else {"known.jsonl"})

    def download(_repo: str, *, allow_patterns: list[str], **_given: Any) -> str:
        for path in snapshot.iterdir():
            if path.name not in allow_patterns:
                path.unlink()
        return str(snapshot)

    monkeypatch.setattr(mixin, "hf_hub_download", lambda **given: str(snapshot / given["filename"]))
    monkeypatch.setattr(model_module, "snapshot_download", download)
    fetched = SparseRM.from_pretrained("me/rm")
    assert fetched.known is not None and (fetched.known.pairs is not None) is texts
    (snapshot / "curve.json").write_text('{"error": 0.35}\n')
    with pytest.raises(StoreError, match=r"curve\.json is damaged"):
        SparseRM.from_pretrained("me/rm")


def test_a_damaged_file_is_not_recorded_anew(folder: Path, tmp_path: Path) -> None:
    """A copy would carry a valid record of damaged responses."""
    model = model_of(folder)
    content = (folder / "known.safetensors").read_bytes()
    (folder / "known.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for save in (lambda: model.save(tmp_path / "saved"), lambda: model.save_pretrained(tmp_path / "saved"), lambda: model.known):
        with pytest.raises(StoreError, match=r"known\.safetensors is damaged"):
            save()

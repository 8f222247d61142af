"""GGUF files: a whole one gives the hidden states of its safetensors; any other is an error and leaves no cache
entry."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import weights_helpers
from backbone_helpers import tiny_folder
from weights_helpers import config_for, states_of, write_gguf

from core.backbone import source
from core.backbone.model import load_backbone
from core.errors import BackboneError, error_to_dict

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tiny_folder()  # made in the session's cache, before this test sets another
    monkeypatch.setattr("weights_helpers.tiny_folder", lambda: folder)
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copies(cache: Path) -> list[str]:
    """The cache's models, without lock files."""
    return sorted(path.name for path in (cache / "models").glob("*") if path.is_dir())


def refused(file: Path, cache: Path) -> BackboneError:
    """The error of two attempts, which must be the same and leave nothing in the cache."""
    errors = []
    for _ in range(2):
        with pytest.raises(BackboneError) as error:
            load_backbone(config_for(file), depth=2)
        errors.append(str(error.value))
        assert copies(cache) == [], "nothing is kept"
        assert error.value.remedy and "bug" not in error_to_dict(error.value)["remedy"]
    assert errors[0] == errors[1]
    return error.value


def lacking(*parts: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name: array for name, array in arrays.items() if not any(part in name for part in parts)}


def adding(name: str, array: np.ndarray) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: array}


def test_a_whole_file_gives_the_same_states(tmp_path: Path, cache: Path) -> None:
    clean = states_of(weights_helpers.tiny_folder())
    file = write_gguf(tmp_path / "tiny.gguf")
    for _ in range(2):
        assert torch.equal(states_of(file), clean)
    (copy,) = copies(cache)
    assert json.loads((cache / "models" / copy / source.SOURCE_NOTE).read_text())["checked"] == source.CHECKED
    untied = write_gguf(tmp_path / "untied.gguf", lambda arrays: {**arrays, "output.weight": 2 * arrays["token_embd.weight"]})
    assert torch.equal(states_of(untied), clean)
    ones = write_gguf(tmp_path / "ones.gguf", adding("rope_freqs.weight", np.ones(8)))
    assert torch.equal(states_of(ones), clean), "factors of one change nothing"


@pytest.mark.parametrize(
    ("edit", "fields", "words"),
    [
        (lacking("blk.1."), {}, r"not a whole model(.|\n)*missing: blk.1.\*"),
        (lacking("blk.0."), {}, r"missing: blk.0.\*"),
        (lacking("token_embd"), {}, r"missing: token_embd.weight"),
        (lacking("output_norm"), {}, r"missing: output_norm.weight"),
        (lacking("blk.1.ffn_up"), {}, r"missing: model.layers.1.mlp.up_proj.weight"),
        (lacking("blk.0.attn_norm"), {}, r"missing: model.layers.0.input_layernorm.weight"),
        (adding("blk.0.attn_q.bias", np.zeros(64)), {}, r"layer 0: 61,632 in the file, 61,568 in the model"),
        (adding("cls.weight", np.zeros((2, 64))), {}, r"outside the layers: 40,832 in the file, 40,704 in the model"),
        (adding("blk.0.ffn_up.weight", np.zeros((32, 64))), {}, r"layers.0.mlp.up_proj.weight is \(32, 64\)"),
        (adding("blk.0.ffn_up.weight", np.full((256, 64), np.nan)), {}, r"16,384 of 16,384 in model.layers.0.mlp.up_proj.weight"),
        (adding("rope_freqs.weight", np.linspace(1, 8, 8)), {}, r"scales its rotary positions(.|\n)*rope_freqs.weight, with factors up to 8"),
        (None, {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0}, r"rope.scaling.type yarn, factor 4.0"),
        (None, {"block_count": 3}, r"missing: blk.2.\*"),
        (None, {"block_count": 1}, r"too many: blk.1.\*"),
        (None, {"split__count": 2}, r"one of 2 parts(.|\n)*llama-gguf-split --merge"),
        (None, {"general__type": "adapter"}, r"of the type 'adapter'"),
        (None, {"architecture": "clip"}, r"a vision tower"),
        (None, {"architecture": "nonsense"}, r"architecture nonsense is not supported(.|\n)*as safetensors"),
    ],
)
def test_files_that_are_not_whole(edit: Any, fields: dict[str, Any], words: str, tmp_path: Path, cache: Path) -> None:
    refusal = refused(write_gguf(tmp_path / "tiny.gguf", edit, **fields), cache)
    assert re.search(words, str(refusal)), str(refusal)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-5000], r"is cut or damaged(.|\n)*bytes"),
        (lambda data: data[:3000], r"is cut or damaged"),
        (lambda data: data[:6], r"is cut or damaged"),
        (lambda data: b"", r"is empty"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", r"is a Git LFS pointer"),
        (lambda data: b"<!DOCTYPE html>", r"is a web page"),
        (lambda data: b"plain text" * 50, r"is no GGUF file(.|\n)*b'plai'"),
        (lambda data: b"ggjt" + data[4:], r"is no GGUF file"),
    ],
)
def test_files_that_are_damaged(change: Callable[[bytes], bytes], words: str, tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(change(file.read_bytes()))
    refusal = refused(file, cache)
    assert re.search(words, str(refusal)), str(refusal)


def test_copies_of_an_older_version_are_checked_once(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    folder = source.find_model(config_for(file)).folder
    note = json.loads((folder / source.SOURCE_NOTE).read_text())
    older = {name: value for name, value in note.items() if name != "checked"}
    (folder / source.SOURCE_NOTE).write_text(json.dumps(older))
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert source.find_model(config_for(file)).folder == folder
    assert json.loads((folder / source.SOURCE_NOTE).read_text()) == note, "checked, and said to be"
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp, "a good copy is not made again"

    # The copy that an older version made of a file without a block holds random numbers for it.
    lost = write_gguf(tmp_path / "lost.gguf", lacking("blk.1."))
    wrong = cache / "models" / f"gguf-{source.file_sha256(lost)[:16]}"
    shutil.copytree(folder, wrong)
    (wrong / source.SOURCE_NOTE).write_text(json.dumps({**older, "name": lost.name}))
    with pytest.raises(BackboneError, match=r"missing: blk.1"):
        load_backbone(config_for(lost), depth=2)
    assert not wrong.exists() and "is made again" in caplog.text
    # A damaged copy of a good file is made again.
    (folder / source.SOURCE_NOTE).write_text(json.dumps(older))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    assert torch.equal(states_of(file), states_of(weights_helpers.tiny_folder()))

"""Reads the files of an SAE (JSON, safetensors, numpy archives, never a pickle); damaged and foreign files are named.
Every reader raises SAEError that names the file, the tensor if one is at fault, and a remedy."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import SAEError

FETCH_AGAIN = "fetch the file again and whole, for instance: hf download REPOSITORY --include FOLDER/*"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HEAD = 4096  # bytes that `kind_of_file` reads


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    _check_there(path, "a configuration in JSON")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, "a JSON object", str(error) or type(error).__name__) from error
    if not isinstance(value, dict):
        raise SAEError(f"{path} holds no configuration", expected="a JSON object", found=type(value).__name__, remedy=FETCH_AGAIN)
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in float32."""
    _check_there(path, "a safetensors file")
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: _as_float32(handle.get_tensor(name), name, path) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise _unreadable(path, "a safetensors file", str(error)) from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of a numpy archive, in float32. Pickled objects in it are refused, never opened."""
    _check_there(path, "a numpy archive (.npz)")
    name = ""
    tensors: dict[str, Tensor] = {}
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            for name in arrays:
                tensors[name] = _as_tensor(arrays[name], name, path)
        return tensors
    except SAEError:
        raise
    # TypeError: a single array and no archive; the others: damaged or encrypted members, and headers that promise
    # impossible shapes.
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError, OverflowError) as error:
        if name and "allow_pickle" in str(error):
            raise SAEError(
                f"tensor {name} of {path} can't be read: it is pickled Python objects, which are not opened: a pickle can run code",
                expected="an array of numbers",
                found="an array of Python objects",
                remedy="save the arrays as float32 with numpy.savez and give that file",
            ) from error
        raise _unreadable(path, "a numpy archive of W_enc, W_dec, b_enc, b_dec, threshold", str(error), tensor=name) from error


def kind_of_file(path: Path) -> str:
    """What a file is by its first bytes, where that explains why it can't be read; else empty."""
    try:
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
    except OSError:
        return ""
    if not head:
        return "an empty file"
    if head.startswith(LFS_POINTER):
        return "a Git LFS pointer: a note of a few lines in place of the file itself"
    if head.lstrip()[:14].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, as a failed download leaves it"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "a pickle, which is not opened: a pickle can run code"
    if head.startswith(b"PK\x03\x04") and b"data.pkl" in head:
        return "a PyTorch file (a pickle), which is not opened: a pickle can run code"
    return ""


def _check_there(path: Path, expected: str) -> None:
    if path.is_file():
        return
    folder = path.parent
    names = sorted(file.name for file in folder.iterdir())[:8] if folder.is_dir() else []
    raise SAEError(
        f"{path} can't be read: there is no such file",
        expected=expected,
        found=f"in that folder: {', '.join(names)}" if names else "nothing there",
        remedy=FETCH_AGAIN,
    )


def _unreadable(path: Path, expected: str, reason: str, *, tensor: str = "") -> SAEError:
    kind = kind_of_file(path)
    remedy = FETCH_AGAIN
    if "LFS" in kind:
        remedy = "fetch the file itself: `git lfs pull` in that repository, or `hf download REPOSITORY`"
    elif "pickle" in kind:
        remedy = "convert it to a sae-lens folder: cfg.json, and the tensors in sae_weights.safetensors"
    where = f"tensor {tensor} of {path}" if tensor else str(path)
    content = kind or _cut_off(path) or f"{reason.strip().splitlines()[0] if reason.strip() else 'damaged bytes'}"[:200]
    return SAEError(f"{where} can't be read", expected=expected, found=content, remedy=remedy)


def _cut_off(path: Path) -> str:
    """How much of a safetensors file is missing, by its header; empty where it is whole or no such file."""
    if path.suffix != ".safetensors":
        return ""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > size - 8:
                return f"a file that breaks off in its header after {size:,} bytes"
            header = json.loads(handle.read(length))
        whole = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return f"a file that breaks off: {size:,} of {whole:,} bytes" if size < whole else ""


def _as_tensor(array: Any, name: str, path: Path) -> Tensor:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = str(getattr(array, "dtype", type(array).__name__))
        raise _no_float(name, path, kind)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and infinite weights are refused later
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _as_float32(tensor: Tensor, name: str, path: Path) -> Tensor:
    if tensor.dtype not in FLOATS:
        raise _no_float(name, path, str(tensor.dtype).removeprefix("torch."))
    return tensor.float()


def _no_float(name: str, path: Path, kind: str) -> SAEError:
    return SAEError(
        f"tensor {name} of {path} can't be read as weights",
        expected="float32, bfloat16, float16 or float64",
        found=f"{kind}: a quantised tensor needs a scale that the file does not hold" if "int" in kind or "float8" in kind else kind,
        remedy="save it as float32",
    )

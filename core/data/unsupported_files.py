"""Recognises files and folders that hold no rows (archives, models, web pages, Git LFS pointers ...), and raises an
error that names what they are and what to do.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.text_safety import printable

HEAD = 1024  # bytes that `check_head` needs; a tar archive is recognised at byte 257
CONVERT = "open it where you trust it and save the table as csv, .jsonl or parquet"
UNPACK = "unpack it, and give the data file in it"
LFS = "git lfs install, then git lfs pull in that folder; or hf download ID --repo-type dataset"
PICKLE = (
    "a pickled file: opening one runs code, so it is never opened",
    "read it where you trust it, with pandas: " + ('read_pickle(...).to_json("pairs.jsonl", orient="records", lines=True)'),
)
WEIGHTS = "give preference pairs here; a model goes to --model, a sparse autoencoder to --sae"
PAGE = "fetch the file itself: on the Hub the address with /resolve/ in place of /blob/, or hf download (hf auth login where it is private)"
# The first bytes of a file, what it is, and what to do.
MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: the data themselves were not fetched", LFS),
    (b"/annex/objects/", "a git-annex pointer: the data themselves were not fetched", "git annex get, in that folder"),
    (b"\xd0\xcf\x11\xe0", "an old Office file (.xls, .doc)", "save the sheet as csv"),
    (b"(\xb5/\xfd", "a zstandard archive", "unpack it: zstd -d FILE"),
    (b"BZh91AY", "a bzip2 archive", "unpack it: bunzip2 FILE"),
    (b"\xfd7zXZ\0", "an xz archive", "unpack it: unxz FILE"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"GGUF", "a language model (GGUF)", WEIGHTS),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"\x89HDF", "an HDF5 file", CONVERT),
    (b"SQLite format 3", "a SQLite database", CONVERT),
    (b"FEA1", "a feather file of the old version 1", "save it again with a pandas of today: to_feather or to_parquet"),
    (b"%PDF", "a PDF document", CONVERT),
)
# What a suffix means, for files that are not recognised by their content.
SUFFIXES: dict[str, tuple[str, str]] = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".ckpt"), PICKLE),
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods", ".numbers"), ("a spreadsheet's own file", "save the sheet as csv")),
    **dict.fromkeys((".safetensors", ".gguf"), ("a model's weights", WEIGHTS)),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), ("an archive", UNPACK)),
    **dict.fromkeys((".zst", ".bz2", ".xz", ".lz4"), ("a compressed file of a kind that is not read", UNPACK + " (.gz is read as it is)")),
    **dict.fromkeys((".txt", ".md"), ("plain text: it has no columns", "save prompts and answers as .jsonl or csv, with a column each")),
    **dict.fromkeys((".html", ".htm"), ("a web page", PAGE)),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".xml"), ("a file of settings or markup", CONVERT)),
}
# What the Hub answers instead of a file that it does not hand out.
NOT_THE_FILE = re.compile(
    rb"\s*(Entry not found|Repository not found|Invalid username or password\.?|Access to .{0,200} is restricted.*|404: Not Found)\s*", re.DOTALL
)


def check_head(path: Path, head: bytes, kind: str) -> None:
    """Raises DataError if a file's first bytes (unpacked from gzip) show another kind of file than its suffix (`kind`)."""
    named = _by_content(path, head, kind)
    if named is not None:
        what, remedy = named
        raise DataError(f"{path} is {what}", expected=f"rows, as a {kind or 'data'} file holds them", found=_shown(head), remedy=remedy)


def by_suffix(path: Path) -> tuple[str, str] | None:
    """For a suffix of a kind that is not read: what the file is, and what to do. None for any other suffix."""
    return SUFFIXES.get(path.suffix.lower())


def _shown(head: bytes) -> str:
    text = head[:40]
    return f"it begins with “{printable(text.decode('latin-1'), 40)}”"


def _by_content(path: Path, head: bytes, kind: str) -> tuple[str, str] | None:
    for magic, what, remedy in MAGIC:
        if head.startswith(magic):
            size = re.search(rb"size (\d+)", head)
            return (f"{what} (they have {int(size[1]):,} bytes)" if size and "pointer" in what else what), remedy
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    if re.match(rb"\x80[\x02-\x05]", head):
        return PICKLE
    if re.match(rb".{8}\{\s*\"", head, re.DOTALL) and int.from_bytes(head[:8], "little") < 1 << 30:
        return "a model's weights (safetensors)", WEIGHTS
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page or markup, saved under this name", PAGE
    if NOT_THE_FILE.fullmatch(head):
        return "an error message of the Hub in place of the file", PAGE
    return _columnar(head, kind)


def _columnar(head: bytes, kind: str) -> tuple[str, str] | None:
    if head.startswith(b"PAR1") and kind != ".parquet":
        return "a parquet file under another name", "name it .parquet"
    if head.startswith(b"ARROW1") and kind not in (".arrow", ".feather"):
        return "an Arrow file under another name", "name it .arrow"
    if kind in (".parquet", ".arrow", ".feather") and head.lstrip()[:1] in (b"{", b"["):
        return "JSON under another name", "name it .jsonl (one object a line) or .json (one list)"
    return None


def _zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return "a damaged zip archive", "fetch it again, and unpack it"
    if any(name.startswith(("xl/", "content.xml")) for name in names):
        return "a spreadsheet's own file", "save the sheet as csv"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file, which is pickled: opening one runs code, so it is never opened", PICKLE[1]
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)", WEIGHTS
    shown = ", ".join(printable(name, 60) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"a zip archive of {shown or 'nothing'}", UNPACK


def check_folder(path: Path, names: Sequence[str]) -> None:
    """Raises DataError if a folder's files (paths relative to it) are those of a model, an SAE or the like."""
    named = _folder(path, set(names))
    if named is not None:
        what, remedy = named
        listing = ", ".join(printable(name, 60) for name in sorted(names)[:8]) + (" ..." if len(names) > 8 else "")
        raise DataError(f"{path} is {what}", expected="a folder of data files", found=listing or "nothing in it", remedy=remedy)


def _folder(path: Path, names: set[str]) -> tuple[str, str] | None:
    config = _json_of(path / "config.json")
    if str(config.get("format", "")).startswith("sparserm"):
        return "a reward model's folder, not preference pairs", "name it in place of MODEL: sparserm score MODEL PAIRS"
    if "adapter_config.json" in names:
        return "an adapter's folder (peft)", WEIGHTS
    if {"cfg.json", "sae_weights.safetensors", "params.npz", "ae.pt", "sae.safetensors"} & names:
        return "a sparse autoencoder's folder", WEIGHTS
    if "model_type" in config or "architectures" in config or "tokenizer.json" in names:
        return "a language model's folder", WEIGHTS
    manifest = _json_of(path / "manifest.json")
    if "step" in manifest and "fingerprint" in manifest:
        pairs = "pairs.jsonl" in names
        remedy = f"give {path / 'pairs.jsonl'}" if pairs else "give the file of the preference pairs"
        return f"an artefact of the cache (step {printable(manifest['step'], 40)})", remedy
    return None


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and path.stat().st_size < 1 << 22 else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

"""Chooses the files of a folder to read; notes tell the user which are read and which are not.

Data files are recognised by their suffix. If file or folder names contain a split's name (`train.jsonl`,
`data/train-00000-of-00002.parquet`, `test/pairs.csv`), the files of the requested split are read, otherwise all. All
files that are read must be of one kind, with the same columns in their first row. A folder that `datasets` saved
(`save_to_disk`) is read as such.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from core.data.unsupported_files import by_suffix, check_folder
from core.errors import DataError
from core.text_safety import printable

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
# JSON files that describe other files.
NO_DATA = (
    *("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json", "generation_config.json"),
    *("tokenizer_config.json", "manifest.json", "package.json", "metadata.json", "cfg.json"),
)
SHARD = re.compile(r"(?P<split>\w+?)-\d{5}-of-\d{5}")
MOST = 5000  # the most files that are looked at
SHOWN = 8  # names listed in a note


def kind_of(path: Path) -> str:
    """A file's suffix without `.gz`, if files of this kind are read; empty otherwise."""
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    return kind if kind in KINDS else ""


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of a folder that `datasets` saved; [""] for a data set without splits; None for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        try:
            content = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))
            return [str(name) for name in content["splits"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / 'dataset_dict.json'} can't be read", found=printable(error, 200), remedy="save the data set again") from error
    return [""] if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file() else None


def chosen_split(folder: Path, splits: Sequence[str], wanted: str, notes: list[str]) -> str:
    """The split to read; empty for a data set without splits. Raises DataError if there is no split of this name."""
    if splits == [""]:
        return ""
    if wanted not in splits:
        raise DataError(
            f"{folder} has no split {wanted}", expected="one of its splits", found=", ".join(splits), remedy="give hub_split: --hub-split NAME"
        )
    others = [name for name in splits if name != wanted]
    if others:
        notes.append(f"read: split {wanted}; not read: {_listed(others)}")
    return wanted


def data_files(folder: Path, split: str, subfolder: str, notes: list[str]) -> list[Path]:
    """The files to read, in the order of their names.

    Raises DataError if there are none, or if they are of several kinds.
    """
    root = folder / subfolder if subfolder else folder
    if subfolder and not root.is_dir():
        raise DataError(f"{folder} has no folder {printable(subfolder)}", found=_listed(_names(folder)), remedy="correct hub_config")
    names = _names(root)
    check_folder(root, names)
    files = [name for name in names if kind_of(Path(name)) and Path(name).name.lower() not in NO_DATA]
    if not files:
        raise DataError(
            f"{folder} holds no data file",
            expected=f"files {' '.join(KINDS)}, each also .gz",
            found=_others(root, names),
            remedy="give the file itself, or the folder that holds it",
        )
    split_of = {name: _split_of(name) for name in files}
    read = [name for name in files if split_of[name] == split]
    if any(split_of.values()) and not read:
        labels = sorted({label for label in split_of.values() if label})
        raise DataError(
            f"{folder} has no file of split {split}",
            expected="a file whose name or folder names the split",
            found=f"splits {', '.join(labels)}",
            remedy="give hub_split: --hub-split NAME, or the file itself",
        )
    read = read or files
    kinds = {_end(name) for name in read}
    if len(kinds) > 1:
        raise DataError(
            f"{folder} holds data files of several kinds, and which of them to read is not clear",
            expected="files of one kind",
            found=_listed(read),
            remedy="give one of them, or put those that are meant into a folder of their own",
        )
    left = [name for name in names if name not in read and _may_hold_data(name)]
    if len(read) > 1 or left:
        notes.append(f"read: {_listed(read)}" + (f"; not read: {_listed(left)}" if left else ""))
    return [root / name for name in read]


def _names(root: Path) -> list[str]:
    """The sorted paths of the files under a folder, relative to it, without hidden ones."""
    paths: list[str] = []
    try:
        for where, folders, files in os.walk(root, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
            inner = Path(where).relative_to(root)
            paths += [(inner / name).as_posix() for name in files if not name.startswith(".")]
            if len(paths) > MOST:
                raise DataError(f"{root} holds more than {MOST:,} files", expected="a folder of data files", remedy="give the file itself")
    except OSError as error:
        raise DataError(f"{root} can't be read", found=str(error), remedy="check its permissions") from error
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error


def _split_of(name: str) -> str:
    """The split to which a file belongs by its name, else by its folder; empty if neither names one."""
    for part in reversed(Path(name).parts):
        shard = SHARD.match(part)
        if shard:
            return SPLITS.get(shard["split"], shard["split"])
        words = re.split(r"[^a-z0-9]+", part.lower())
        split = next((SPLITS[word] for word in words if word in SPLITS), "")
        if split:
            return split
    return ""


def _end(name: str) -> str:
    return kind_of(Path(name)) + (".gz" if name.lower().endswith(".gz") else "")


def _may_hold_data(name: str) -> bool:
    """Whether a file that is not read may hold data, unlike readmes, licences and files that describe others."""
    path = Path(name)
    return path.suffix.lower() not in (".md", ".py", ".lock", ".txt", "") and path.name.lower() not in NO_DATA


def _others(root: Path, names: Sequence[str]) -> str:
    if not names:
        return "an empty folder" if not any(root.iterdir()) else "no file in it"
    known = next(((name, what) for name in names if (what := by_suffix(Path(name)))), None)
    return _listed(names) + (f" ({known[0]} is {known[1][0]}: {known[1][1]})" if known else "")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name, 80) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_columns(folder: Path, columns: dict[str, list[str]]) -> None:
    """Raises DataError if the files (by name, with the columns of their first row) have different columns."""
    groups: dict[frozenset[str], list[str]] = {}
    for name, columns_of_file in columns.items():
        groups.setdefault(frozenset(columns_of_file), []).append(name)
    if len(groups) > 1:
        listing = "; ".join(f"{_listed(names)}: {', '.join(printable(c, 40) for c in sorted(group)[:12])}" for group, names in groups.items())
        raise DataError(
            f"the files of {folder} have different columns",
            expected="files of one kind: the same columns in each",
            found=listing,
            remedy="give one file, or put those of one kind into a folder of their own (--hub-config NAME names a folder in it)",
        )

"""Keeps generated answers in a JSON Lines file by key, on the disk when `add` returns, so that they survive a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from core.files import write_bytes


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One generated answer without its end-of-turn token and white space around it. `finished`: the model ended it
    itself. `failed`: why there is no answer, else empty."""

    text: str
    n_tokens: int
    finished: bool
    failed: str = ""


class Journal:
    """The answers of one file, which only one process may write at a time. Without a path they are kept in memory only.
    Lines that can't be read are ignored, so their answers are written again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.answers: dict[str, Generated] = {}
        if path is not None and path.is_file():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:  # a kill left a part of a line, which would spoil the next one
                write_bytes(path, whole)
            self.answers.update(filter(None, map(_read, whole.splitlines())))

    def add(self, answers: Iterable[tuple[str, Generated]]) -> None:
        """Adds answers by their keys, and returns when they are on the disk."""
        answers = list(answers)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as handle:
                handle.writelines(json.dumps({"key": key, **asdict(answer)}) + "\n" for key, answer in answers)
                handle.flush()
                os.fsync(handle.fileno())
        self.answers.update(answers)

    def forget(self) -> None:
        """Removes all answers, and the file."""
        self.answers.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(line: bytes) -> tuple[str, Generated] | None:
    try:
        row = json.loads(line)
        return str(row.pop("key")), Generated(**row)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None

"""Answers kept by key in a JSON Lines file, each there for good the moment it is added: what is generated at a price survives a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One answer without its end of turn, white space around it off. `finished`: the model ended it itself. `failed` says why there is none."""

    text: str
    n_tokens: int
    finished: bool
    failed: str = ""


class Journal:
    """The answers of one file, which one process at a time writes; without a path it only remembers. What can't be read is written again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Generated] = {}
        if path is not None and path.is_file():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:  # what a kill left of a line would spoil the next one
                path.write_bytes(whole)
            self.known.update(filter(None, map(_read, whole.splitlines())))

    def add(self, answers: Iterable[tuple[str, Generated]]) -> None:
        """Keeps answers, and returns when they are on the disk."""
        answers = list(answers)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as handle:
                handle.writelines(json.dumps({"key": key, **asdict(answer)}) + "\n" for key, answer in answers)
                handle.flush()
                os.fsync(handle.fileno())
        self.known.update(answers)

    def forget(self) -> None:
        """Drops everything that was kept."""
        self.known.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(line: bytes) -> tuple[str, Generated] | None:
    try:
        row = json.loads(line)
        return str(row.pop("key")), Generated(**row)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None

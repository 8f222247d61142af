"""Texts that a person typed in, kept in the cache under ids, so that a link can name them: edits with their parents,
and pairs.

    <cache>/texts/<2 hex>/<id>.json      readable by their owner only; equal texts, equal ids

Ids are 16 hex digits made from the texts, so what a link gives is checked to be that before it becomes a path. Nothing
heavy is imported.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import MissingError, StoreError
from core.files import read_json, write_text
from core.types import Message, sha256_of

ID = re.compile(r"[0-9a-f]{16}")
LONGEST_CHAIN = 200  # edits after another


class KeptTexts:
    """The texts kept in one cache."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "texts"

    def keep_edit(self, edit_id: str, prompt: Sequence[Message], response: str, parent_id: str | None) -> None:
        """Keeps a text under `edit_id` (core.explain.edits.edit_name); None: it is the root of a chain."""
        self._write(edit_id, {"edit_id": edit_id, "parent_id": parent_id, "prompt": list(prompt), "response": response})

    def chain(self, edit_id: str) -> list[dict[str, Any]]:
        """{edit_id, parent_id, prompt (messages), response} of each edit from the root to this one.

        Raises MissingError where one is not kept here.
        """
        chain = [self._read(edit_id, "edit_id")]
        while chain[-1]["parent_id"] is not None and len(chain) < LONGEST_CHAIN:
            chain.append(self._read(chain[-1]["parent_id"], "edit_id"))
        return chain[::-1]

    def keep_pair(self, prompt: str, chosen: str, rejected: str) -> str:
        """Keeps a person's own pair (`rejected` may be empty: one response) and returns its id for links."""
        value = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        name = sha256_of(["pair", prompt, chosen, rejected])[:16]
        self._write(name, value)
        return name

    def pair(self, pair_id: str) -> dict[str, str]:
        """{prompt, chosen, rejected} of `keep_pair`. Raises MissingError where it is not kept here."""
        pair: dict[str, str] = self._read(pair_id, "chosen")
        return pair

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.json"

    def _read(self, name: str, needed: str) -> Any:
        if ID.fullmatch(name):
            with contextlib.suppress(StoreError):
                value = read_json(self._path(name))
                if isinstance(value, dict) and needed in value:
                    return value
        remedy = "open the link on the machine where it was made, or paste the text"
        raise MissingError("this text is not kept in this cache", found=name[:40], remedy=remedy)

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        path = self._path(name)
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(path, json.dumps(value), private=True)

"""A text changed step by step, and what each change did to the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from core.explain.attribution import Attribution
from core.explain.explanation import Explanation
from core.reward.dialogues import Item
from core.types import Message, json_value, sha256_of


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A prompt and response as they stand after an edit, explained, with the edit they came from.

    `change` runs from the parent's projections straight to these, so its contributions sum to the change of reward; a
    latent whose projection did not move contributes 0. None at the root. Of `n_tokens` tokens `n_computed` went through
    the language model; the others were taken over.
    """

    explanation: Explanation
    parent: Edit | None
    change: Attribution | None
    n_tokens: int
    n_computed: int

    @property
    def item(self) -> Item:
        return self.explanation.prompt, self.explanation.response

    @cached_property
    def edit_id(self) -> str:
        """16 hex digits, made of the text and of all texts before it."""
        edit_id = ""
        for edit in self.chain:
            edit_id = edit_name(edit_id, *edit.item)
        return edit_id

    @property
    def parent_id(self) -> str | None:
        return None if self.parent is None else self.parent.edit_id

    @property
    def chain(self) -> tuple[Edit, ...]:
        """All edits from the root to this one."""
        edits = [self]
        while edits[-1].parent is not None:
            edits.append(edits[-1].parent)
        return tuple(reversed(edits))

    def to_json(self) -> dict[str, Any]:
        """JSON values; the parents by their ids, root first."""
        return {
            "edit_id": self.edit_id,
            "parent_id": self.parent_id,
            "chain": [edit.edit_id for edit in self.chain],
            "n_tokens": self.n_tokens,
            "n_computed": self.n_computed,
            "change": json_value(self.change),
            "explanation": self.explanation.to_json(),
        }


def edit_name(parent_id: str, prompt: Sequence[Message], response: str) -> str:
    """The id of an edit by its parent's (empty at the root): a text can be kept and linked to before it is scored."""
    return sha256_of([parent_id, list(prompt), response])[:16]

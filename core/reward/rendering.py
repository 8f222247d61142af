"""Dialogues as tokens to read: which can be read, at which tokens, and what was changed for it (METHOD.md section 2)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from core.backbone.layout import Unreadable
from core.backbone.model import Backbone
from core.backbone.template import KEPT, STRIPPED, Rendered
from core.errors import BackboneError
from core.reward.dialogues import Item
from core.reward.hidden_states import WHOLE
from core.reward.packing import Sequences
from core.types import Message, Progress, no_progress, sha256_of

RENDER_CHUNK = 2048  # dialogues tokenised at a time


@dataclass(frozen=True, kw_only=True)
class Read:
    """Rendered responses that can be read: their tokens, and for each item its row among them or why it has none.

    `prompt_hashes` are those of the prompts that `sequences.prompts` counts, `n_tokens` the own tokens of each response.
    Counts of items: `n_shortened` lost leading turns of their prompt, `n_closing_cut` a closing control token,
    `n_thinking` by what became of a thinking block (`kept`, `stripped`). `offsets`: where whole responses are read, the
    characters (start, stop) of each own token in its response's text, response by response.
    """

    sequences: Sequences
    prompt_hashes: tuple[str, ...]
    row_of_item: Int[np.ndarray, " n_items"]
    n_tokens: Int[np.ndarray, " n_sequences"]
    refused: dict[int, str]
    n_shortened: int
    n_closing_cut: int
    n_thinking: dict[str, int]
    offsets: Int32[np.ndarray, "n_own 2"]

    def own_ids(self, row: int) -> Int32[np.ndarray, " t"]:
        """The own tokens of a response, where whole responses are read."""
        assert self.sequences.own is not None
        begin, end = self.sequences.own[row]
        return self.sequences.ids(row)[begin:end]


def read_items(backbone: Backbone, items: Sequence[Item], positions: Sequence[str], progress: Progress = no_progress) -> Read:
    """Renders items and finds the tokens to read. Unreadable items have a reason in `refused`. Over-long prompts lose
    their leading turns or are refused (config `over_length`); responses are never cut."""
    prompts: dict[str, int] = {}
    flat, facts, refused = [np.zeros(0, dtype=np.int32)], array("q"), dict[int, str]()
    offsets = [np.zeros((0, 2), dtype=np.int32)]
    counts: Counter[str] = Counter()
    rows = np.full(len(items), -1, dtype=np.int64)
    width = 4 + len(positions)  # of each sequence: length, prompt, first own token, number of own tokens, positions to read
    for at in range(0, len(items), RENDER_CHUNK):
        chunk, parts = items[at : at + RENDER_CHUNK], [np.zeros(0, dtype=np.int32)]
        progress("tokenise", at, len(items))
        for offset, rendered in enumerate(_render_chunk(backbone, chunk, positions)):
            if isinstance(rendered, str):
                refused[at + offset] = rendered
                continue
            dialogue, reads, changes = rendered
            counts.update(changes)
            rows[at + offset] = len(facts) // width
            parts.append(dialogue.ids[: max(reads) + 1])
            first, n_own = dialogue.response_starts[-1], dialogue.response_ends[-1] - dialogue.response_starts[-1] + 1
            prompt = prompts.setdefault(sha256_of(list(chunk[offset][0])), len(prompts))
            facts.extend([len(parts[-1]), prompt, first, n_own, *reads])
            if WHOLE in positions:
                offsets.append(own_offsets(dialogue))
        flat.append(np.concatenate(parts))
    table = np.array(facts, dtype=np.int64).reshape(-1, width)
    sequences = Sequences(
        flat=np.concatenate(flat),
        starts=np.concatenate([[0], np.cumsum(table[:, 0])]),
        prompts=table[:, 1],
        reads=table[:, 4:],
        own=np.stack([table[:, 2], table[:, 2] + table[:, 3]], axis=1) if WHOLE in positions else None,
    )
    return Read(
        sequences=sequences,
        prompt_hashes=tuple(prompts),
        offsets=np.concatenate(offsets),
        row_of_item=rows,
        n_tokens=table[:, 3],
        refused=refused,
        n_shortened=counts["shortened"],
        n_closing_cut=counts["closing"],
        n_thinking={name: counts[name] for name in (KEPT, STRIPPED) if counts[name]},
    )


def _render_chunk(backbone: Backbone, chunk: Sequence[Item], positions: Sequence[str]) -> Iterable[Any]:
    """For each item (dialogue, positions to read, changes made before reading), or why it is refused."""
    dialogues: list[list[Message]] = [[*prompt, {"role": "assistant", "content": response}] for prompt, response in chunk]
    for messages, rendered in zip(dialogues, backbone.render_all(dialogues), strict=True):
        readable = as_read(backbone, messages, rendered, positions)
        if isinstance(readable, str):
            yield readable
            continue
        read, shortened = readable
        changes = [*(["shortened"] if shortened else []), *(["closing"] if read.n_closing else []), *([read.thinking] if read.thinking else [])]
        yield read, [read_position(read, name) for name in positions], changes


def as_read(backbone: Backbone, messages: list[Message], rendered: Rendered | Unreadable, positions: Sequence[str]) -> tuple[Rendered, bool] | str:
    """A dialogue as the model reads it, and whether `over_length` dropped leading turns; or why it is refused."""
    limit, kept = backbone.config.max_length, messages
    while (
        isinstance(rendered, Rendered)
        and len(rendered.ids) > limit
        and backbone.config.over_length == "drop_turns"
        and (shorter := _without_first_turn(kept))
    ):
        kept = shorter
        rendered = backbone.render_all([kept])[0]
    if isinstance(rendered, Unreadable):
        return rendered.reason
    if len(rendered.ids) > limit:
        return f"{len(rendered.ids)} tokens, at most {limit} are read"
    if not rendered.answered:
        only = "a thinking block" if rendered.thinking == STRIPPED else "closing tokens" if rendered.n_closing else ""
        return f"the response holds nothing but {only}" if only else "the response has no token of its own"
    if "turn_end" in positions and rendered.turn_ends[-1] < 0:
        raise BackboneError("this model's template has no end-of-turn token", expected="position response_end", found="position turn_end")
    return rendered, len(kept) < len(messages)


def read_position(rendered: Rendered, position: str) -> int:
    """The token of the last response that is read; at `response_mean` the last one of those that are."""
    return rendered.turn_ends[-1] if position == "turn_end" else rendered.response_ends[-1]


def own_offsets(rendered: Rendered) -> Int32[np.ndarray, "n_own 2"]:
    """The characters (start, stop) of each own token of the last response in its text as it was given, closing tokens
    and stripped thinking left out. The last token of a split character has it, the others have an empty span there."""
    begin, end = rendered.response_spans[-1]
    given = rendered.messages[-1]["content"]
    shift = max(given.find(rendered.text[begin:end]), 0) - begin  # templates may strip the text
    starts = rendered.starts[rendered.response_starts[-1] : rendered.response_ends[-1] + 1]
    edges = np.clip(np.append(starts, end), begin, end) + shift
    return np.stack([edges[:-1], edges[1:]], axis=1).astype(np.int32)


def _without_first_turn(messages: list[Message]) -> list[Message]:
    """The dialogue without its first exchange, a system message kept; empty where only the last user turn is left."""
    head = messages[:1] if messages[0]["role"] == "system" else []
    rest = messages[len(head) :]
    following = next((i for i in range(1, len(rest)) if rest[i]["role"] == "user"), None)
    return [] if following is None else [*head, *rest[following:]]

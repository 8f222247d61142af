"""Mixed batches of hidden states in a planned order, as an SAE is trained on them (`Stream`).

The order of the data is a pure function of (seed, corpus): dialogues come in permuted epochs, in **rounds** of a
bounded number of tokens. A round's content tokens are shuffled as a whole and then divided into batches. So a training
goes on from its cursor: the round is computed again.

Response-final positions have a buffer of their own, the **ring**: the newest `RING` of them. A fixed number of each
batch is drawn from it. Each time a dialogue is read it contributes at most `PER_DIALOGUE`, drawn among the ends of its
answers and of the sentences in them: an answer that stops at the end of a sentence has the same state there. Without
the limit a chat of thirty short turns would count as much as thirty long answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from core.backbone.model import Backbone
from core.errors import DataError
from core.sae.corpus import Dialogue
from core.sae.documents import Document, documents, stream_states

ROUND_BATCHES = 64  # a round holds at least this many batches of content tokens
RING = 16_384  # response-final states kept
PER_DIALOGUE = 4  # of them, at most this many from one reading of a dialogue
TAKE = 32  # dialogues tokenised at a time


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The position of a training in its data, and counts of what was read before this round.

    `dialogue` is the round's first one, counted on through the epochs; `batch` is the number of the round's batches
    that are used up. Counted are content tokens and response-final positions, and the distinct ones among them (those
    of the first epoch).
    """

    round: int = 0
    dialogue: int = 0
    batch: int = 0
    tokens: int = 0
    distinct_tokens: int = 0
    ends: int = 0
    distinct_ends: int = 0
    unreadable: int = 0  # dialogues of the first epoch that the template can't render

    def after_batch(self) -> Cursor:
        """The cursor after one more batch of the same round."""
        return replace(self, batch=self.batch + 1)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: `content` [n, d_model], its shuffled `order` [n], the `ring` [m, d_model], the next round's cursor."""

    content: torch.Tensor
    ring: torch.Tensor
    order: np.ndarray
    following: Cursor


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Batches of hidden states from a list of dialogues, as a training reads them."""

    dialogues: Sequence[Dialogue]
    backbone: Backbone
    layer: int
    context: int
    batch_size: int
    ends_per_batch: int
    seed: int

    @property
    def content_per_batch(self) -> int:
        return self.batch_size - self.ends_per_batch

    def round(self, cursor: Cursor, ring: torch.Tensor) -> Round:
        """The round that begins at `cursor`; `ring` [n, d_model] holds the response-final states of earlier rounds.
        Raises DataError if the corpus has no content tokens, or no response-final position where some are to be
        drawn."""
        read, following = self._take(replace(cursor, batch=0))
        content, ends = self._states(read)
        ring = _joined(ring, ends)
        if self.ends_per_batch and not len(ring):
            raise DataError("the corpus has no answer by an assistant", remedy="--response-end-share 0, or a corpus of dialogues with answers")
        order = np.random.default_rng([self.seed, 2, cursor.round]).permutation(len(content))
        return Round(content=content, ring=ring, order=order, following=following)

    def n_batches(self, current: Round) -> int:
        """Number of batches in a round. Tokens at its end that fill no batch are not used."""
        return len(current.order) // self.content_per_batch

    def batch(self, current: Round, number: int) -> torch.Tensor:
        """Batch `number` of a round, float32 [batch_size, d_model]: content states, then response-final ones. These are
        drawn anew for every batch, without replacement while there are enough."""
        rows = current.order[number * self.content_per_batch : (number + 1) * self.content_per_batch]
        chosen = self.draw_ends(len(current.ring), current.following.round, number)
        return torch.cat([current.content[torch.as_tensor(rows)], current.ring[torch.as_tensor(chosen)]]).float()

    def draw_ends(self, n: int, round_number: int, batch: int) -> np.ndarray:
        """Indices of a batch's response ends among `n`, drawn without repetition if there are enough."""
        if not self.ends_per_batch:
            return np.zeros(0, dtype=np.int64)
        draw = np.random.default_rng([self.seed, 3, round_number, batch])
        return draw.choice(n, self.ends_per_batch, replace=n < self.ends_per_batch)

    def _take(self, cursor: Cursor) -> tuple[list[Document], Cursor]:
        """Documents from the cursor on that fill a round, and the cursor after them. No dialogue is divided."""
        read: list[Document] = []
        needed, started = cursor.tokens + ROUND_BATCHES * self.content_per_batch, cursor.dialogue
        while cursor.tokens < needed:
            numbers = range(cursor.dialogue, cursor.dialogue + TAKE)
            for number, whole in zip(numbers, documents([self.dialogue_at(n) for n in numbers], self.backbone, self.context), strict=True):
                if cursor.tokens < needed:
                    parts = self._few_ends(whole, number)
                    read.extend(parts)
                    cursor = self._past(cursor, parts)
            if cursor.tokens == 0 and cursor.dialogue - started >= len(self.dialogues):
                raise DataError("the corpus has no text an SAE could be trained on")
        return read, replace(cursor, round=cursor.round + 1)

    def _few_ends(self, parts: Sequence[Document], number: int) -> list[Document]:
        """A dialogue's documents with at most `PER_DIALOGUE` response-final positions among them."""
        ends = [(place, end) for place, part in enumerate(parts) for end in sorted({*part.ends, *part.sentences})]
        draw = np.random.default_rng([self.seed, 5, number]).permutation(len(ends))[:PER_DIALOGUE]
        kept = {ends[i] for i in draw}
        return [replace(part, ends=tuple(end for at, end in sorted(kept) if at == place)) for place, part in enumerate(parts)]

    def dialogue_at(self, number: int) -> Dialogue:
        """The dialogue at a place in the endless order: every epoch has an order of its own, fixed by the seed."""
        epoch, place = divmod(number, len(self.dialogues))
        return self.dialogues[int(np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.dialogues))[place])]

    def _past(self, cursor: Cursor, parts: Sequence[Document]) -> Cursor:
        tokens, ends = sum(int(d.content.sum()) for d in parts), sum(len(d.ends) for d in parts)
        first = cursor.dialogue < len(self.dialogues)
        return replace(
            cursor,
            dialogue=cursor.dialogue + 1,
            tokens=cursor.tokens + tokens,
            distinct_tokens=cursor.distinct_tokens + tokens * first,
            ends=cursor.ends + ends,
            distinct_ends=cursor.distinct_ends + ends * first,
            unreadable=cursor.unreadable + (first and not parts),
        )

    def _states(self, read: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor]:
        """States [n, d_model] of all content tokens, in the documents' order, and of the response-final ones."""
        content: list[torch.Tensor] = [torch.empty(0)] * len(read)
        ends: list[torch.Tensor] = [torch.empty(0)] * len(read)
        for numbers, states in stream_states(read, self.backbone, self.layer, self.backbone.config.tokens_per_batch):
            for row, i in zip(states, numbers, strict=True):
                content[i] = row[: len(read[i].ids)][torch.from_numpy(read[i].content).to(row.device)]
                ends[i] = row[torch.as_tensor(read[i].ends, dtype=torch.long, device=row.device)]
        return torch.cat(content), torch.cat(ends)


def _joined(ring: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch.cat([ring.to(ends), ends])[-RING:]

"""Runs planned rows of trees (core.reward.packing) through a backbone and reads the hidden states of their members.

A row holds the responses to a prompt as branches of one trunk, so what they have in common is computed once. Attention
masks keep the branches apart, for models that take them; the others are run plainly, one response a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import DynamicCache

from core.backbone.model import Backbone
from core.errors import BackboneError
from core.reward.packing import PackedBatch, Sequences, Tree, pack, row_size
from core.reward.whole_response import WholeResponseReader, WholeResponses


@dataclass(frozen=True, kw_only=True)
class BatchReading:
    """What a batch gave: the sequences that were read, the states of each layer at their positions, and, where whole
    responses are read, those of each layer (empty elsewhere)."""

    members: Int[np.ndarray, " m"]
    states: dict[int, Float[np.ndarray, "m n_positions d_model"]]
    whole: dict[int, WholeResponses]


class BatchRunner:
    """Runs planned rows through a backbone, caches the common prefix, and halves a batch that exceeds the memory.

    `whole` reads whole responses; the sequences must then say which tokens are the responses' own.
    """

    def __init__(
        self,
        backbone: Backbone,
        sequences: Sequences,
        layers: Sequence[int],
        *,
        prefix: int,
        share: bool,
        whole: WholeResponseReader | None = None,
    ) -> None:
        self.backbone, self.sequences, self.layers, self.prefix, self.share = backbone, sequences, list(layers), prefix, share
        self.whole = whole
        self._prefix_cache: list[tuple[Any, Any]] | None = None

    def run(self, rows: Sequence[Sequence[Tree]]) -> Iterable[BatchReading]:
        """Yields the reading of a batch, of its halves if memory runs out. BackboneError: a row is too big."""
        try:
            yield self._forward(pack(self.sequences, rows, self.prefix))
            return
        except (torch.OutOfMemoryError, MemoryError) as error:
            if len(rows) == 1:
                raise BackboneError(
                    f"one row of {row_size(rows[0])} tokens does not fit into memory",
                    found=str(error).splitlines()[0] if str(error) else "out of memory",
                    remedy="--dtype bfloat16, --quantization 8bit, or a smaller --max-length",
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(rows) // 2
        yield from self.run(rows[:middle])
        yield from self.run(rows[middle:])

    def _forward(self, batch: PackedBatch) -> BatchReading:
        tensors = [torch.from_numpy(array) for array in (batch.ids, batch.positions, batch.tree, batch.branch)]
        ids, positions, tree, branch = (t.to(self.backbone.device) for t in tensors)
        mask = tree_mask(tree, branch, self.prefix, self.backbone.dtype) if self.share else (tree >= 0).long()
        past = self._expanded_prefix(len(ids))
        states_of_layer = self.backbone.states(ids, mask, self.layers, position_ids=positions, past=past)
        row = torch.from_numpy(batch.row)[:, None].to(self.backbone.device)
        column = torch.from_numpy(batch.column).to(self.backbone.device)
        return BatchReading(
            members=batch.members,
            states={layer: states.to(row.device)[row, column].float().cpu().numpy() for layer, states in states_of_layer.items()},
            whole={layer: self.whole.read(states, batch, layer) for layer, states in states_of_layer.items()} if self.whole else {},
        )

    def _compute_prefix(self) -> list[tuple[Any, Any]]:
        cache = DynamicCache()
        ids = torch.from_numpy(self.sequences.ids(0)[: self.prefix].astype(np.int64))[None]
        self.backbone.states(ids, torch.ones_like(ids), self.layers, past=cache)
        layers: list[Any] = cache.layers
        return [(layer.keys, layer.values) for layer in layers]

    def _expanded_prefix(self, rows: int) -> Any:
        """A fresh cache that holds the prefix for each row; expanding copies nothing."""
        if not self.prefix:
            return None
        self._prefix_cache = self._prefix_cache or self._compute_prefix()
        return DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self._prefix_cache])


def tree_mask(tree: Any, branch: Any, prefix: int, dtype: Any) -> Any:
    """Additive attention mask [b, 1, t, prefix + t]: a token sees the prefix, its trunk and its own branch, up to
    itself. Padding sees itself, so that no softmax runs over nothing."""
    t = tree.shape[1]
    same = (tree[:, :, None] == tree[:, None, :]) & ((branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :]))
    visible = same & torch.ones(t, t, dtype=torch.bool, device=tree.device).tril()
    visible = torch.cat([visible.new_ones(len(tree), t, prefix), visible], dim=-1)
    mask = torch.zeros(visible.shape, dtype=dtype, device=tree.device).masked_fill_(~visible, torch.finfo(dtype).min)
    return mask[:, None]


def shares(backbone: Backbone, sequences: Sequences) -> bool:
    """Whether this model takes the attention masks of trees: tried once on a small tree against plain forwards. Not
    those with a sliding window shorter than a sequence: a tree's mask would open the window."""
    window = getattr(backbone.model.config.get_text_config(), "sliding_window", None)
    longest = int(np.diff(sequences.starts).max()) if len(sequences) else 0
    if window and longest > window:
        return False
    if not hasattr(backbone, "takes_tree_masks"):
        backbone.takes_tree_masks = _probe(backbone)  # type: ignore[attr-defined]
    return bool(backbone.takes_tree_masks)  # type: ignore[attr-defined]


def _probe(backbone: Backbone) -> bool:
    vocabulary = backbone.model.config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(3, vocabulary, size=16).astype(np.int32)
    flat = np.concatenate([ids[:12], ids[:8], ids[12:]])  # two sequences of 12 tokens with 8 in common
    sequences = Sequences(flat=flat, starts=np.array([0, 12, 24]), prompts=np.zeros(2, dtype=np.int64), reads=np.full((2, 1), 11))
    layer = len(backbone.layers) - 1
    rows = ((Tree(members=(0, 1), trunk=8, size=12),),)
    try:
        (reading,) = BatchRunner(backbone, sequences, [layer], prefix=4, share=True).run(rows)
    except (TypeError, ValueError, RuntimeError, IndexError, BackboneError):
        return False
    both = torch.from_numpy(np.stack([sequences.ids(0), sequences.ids(1)]).astype(np.int64))
    plain = backbone.states(both, torch.ones_like(both), [layer])[layer][:, 11].float().cpu().numpy()
    error = np.abs(reading.states[layer][:, 0] - plain).max() / max(float(np.abs(plain).max()), 1e-30)
    return bool(error < (1e-3 if backbone.dtype == torch.float32 else 5e-2))

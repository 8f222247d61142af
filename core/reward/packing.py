"""Planning the forward passes: no token of a shared prefix is computed twice, and no row is mostly padding.

1. What all sequences begin with (the template's system block) is computed once; its keys and values are reused.
2. Responses to one prompt form a tree: the trunk is their longest common prefix, each branch the rest of one.
3. Trees are packed into rows; by the attention mask a token sees its branch, its trunk and the common prefix alone.
4. Rows of similar length form batches under a token budget; consecutive batches form a shard, the most a kill can cost.

The plan depends on the token ids alone, so a resumed run repeats the same batches. Token ids, not texts, decide what is
shared: exact for every tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

ROW_TOKENS = 192  # rows are filled up to this; longer ones would spend more on attention than they save on padding
MIN_PREFIX = 4  # a shorter common prefix is not worth a cache
BATCHES_PER_SHARD = 8


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Token ids of many sequences in one flat array, the prompt of each, and the positions to read [n_positions].

    `own` is needed where whole responses are read: the first own token of each response, and the one behind its last.
    """

    flat: Int32[np.ndarray, " total"]
    starts: Int[np.ndarray, " n_plus_1"]
    prompts: Int[np.ndarray, " n"]
    reads: Int[np.ndarray, "n n_positions"]
    own: Int[np.ndarray, "n 2"] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def ids(self, i: int) -> Int32[np.ndarray, " t"]:
        return self.flat[self.starts[i] : self.starts[i + 1]]

    def length(self, i: int) -> int:
        return int(self.starts[i + 1] - self.starts[i])


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Sequences that share their tokens up to `trunk` (from the start); `size` tokens are computed for them."""

    members: tuple[int, ...]
    trunk: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Batches of rows of trees. `prefix` tokens are common to all sequences. `n_tokens` are computed, padding not
    counted. `share` is False where the model takes no attention mask of ours: then each row is one whole sequence."""

    share: bool
    prefix: int
    batches: tuple[tuple[tuple[Tree, ...], ...], ...]
    n_tokens: int

    @property
    def shards(self) -> list[tuple[int, int]]:
        """Ranges of batches that are saved together."""
        return [(i, min(i + BATCHES_PER_SHARD, len(self.batches))) for i in range(0, len(self.batches), BATCHES_PER_SHARD)]


def plan_batches(sequences: Sequences, *, tokens_per_batch: int, share: bool = True) -> Plan:
    """The plan for these sequences. `share=False` (attention that takes no mask of ours): one sequence a row."""
    prefix = _common_prefix(sequences, range(len(sequences))) if share else 0
    # What is computed once leaves no states behind, so it ends before the first token that is read.
    first_read = min((int(places.min()) for places in (sequences.reads, sequences.own) if places is not None and places.size), default=0)
    prefix = min(prefix, first_read)
    prefix = prefix if prefix >= MIN_PREFIX else 0
    trees = [tree for members in _by_prompt(sequences, share) for tree in _trees(sequences, members, prefix)]
    rows = _fill_rows(trees, ROW_TOKENS if share else 0)
    n_tokens = prefix + sum(tree.size for tree in trees)
    return Plan(share=share, prefix=prefix, batches=tuple(_batches(rows, tokens_per_batch)), n_tokens=n_tokens)


def _by_prompt(sequences: Sequences, share: bool) -> list[list[int]]:
    if not share:
        return [[i] for i in range(len(sequences))]
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(sequences.prompts.tolist()):
        groups.setdefault(prompt, []).append(i)
    return list(groups.values())


def _common_prefix(sequences: Sequences, members: Sequence[int]) -> int:
    """Length of the longest common prefix; every sequence keeps at least one token of its own."""
    if not members:
        return 0
    first = sequences.ids(members[0])
    common = len(first) - 1
    for i in members:
        ids = sequences.ids(i)
        common = min(common, len(ids) - 1)
        differs = np.flatnonzero(first[:common] != ids[:common])
        common = int(differs[0]) if len(differs) else common
    return max(common, 0)


def _trees(sequences: Sequences, members: list[int], prefix: int) -> list[Tree]:
    """One tree a prompt, or several where its responses don't fit into a row together."""
    trunk = max(_common_prefix(sequences, members), prefix)
    trees, current, size = [], list[int](), trunk - prefix
    for i in members:
        n_own = sequences.length(i) - trunk  # tokens behind the trunk
        if current and size + n_own > ROW_TOKENS and size >= 2 * (trunk - prefix):
            trees.append(Tree(members=tuple(current), trunk=trunk, size=size))
            current, size = [], trunk - prefix
        current.append(i)
        size += n_own
    return [*trees, Tree(members=tuple(current), trunk=trunk, size=size)]


def _fill_rows(trees: list[Tree], capacity: int) -> list[tuple[Tree, ...]]:
    """Best-fit decreasing: each tree goes where it leaves least room; one above the capacity has its own row."""
    rows: list[list[Tree]] = []
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # room[r]: rows with r tokens left
    for tree in sorted(trees, key=lambda t: (-t.size, t.members)):
        left = next((r for r in range(tree.size, capacity + 1) if room[r]), None)
        if left is None:
            rows.append([tree])
            row, left = len(rows) - 1, max(capacity, tree.size)
        else:
            row = room[left].pop()
            rows[row].append(tree)
        if left - tree.size > 0:
            room[left - tree.size].append(row)
    return [tuple(row) for row in rows]


def row_size(row: Sequence[Tree]) -> int:
    """Tokens of a row, the common prefix not counted."""
    return sum(tree.size for tree in row)


def _batches(rows: list[tuple[Tree, ...]], tokens_per_batch: int) -> list[tuple[tuple[Tree, ...], ...]]:
    """Rows of falling length, as many as the budget takes at the longest one's length."""
    batches: list[tuple[tuple[Tree, ...], ...]] = []
    current: list[tuple[Tree, ...]] = []
    for row in sorted(rows, key=lambda r: -row_size(r)):
        if current and (len(current) + 1) * row_size(current[0]) > tokens_per_batch:
            batches.append(tuple(current))
            current = []
        current.append(row)
    return [*batches, tuple(current)] if current else batches


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A batch ready for the model, the common prefix left out: ids, positions, tree (-1: padding), branch (0: trunk) of
    each token, [b, t]. `members` are the sequences read, `row` and `column[:, p]` the place of their p-th position.
    Where whole responses are read, the own tokens of `members[i]` stand at the places `own[own_starts[i] :
    own_starts[i + 1]]` of the flattened [b, t] arrays; branches of one trunk share places."""

    ids: Int[np.ndarray, "b t"]
    positions: Int[np.ndarray, "b t"]
    tree: Int[np.ndarray, "b t"]
    branch: Int[np.ndarray, "b t"]
    members: Int[np.ndarray, " m"]
    row: Int[np.ndarray, " m"]
    column: Int[np.ndarray, "m n_positions"]
    own: Int[np.ndarray, " n_own"]
    own_starts: Int[np.ndarray, " m_plus_1"]


def pack(sequences: Sequences, rows: Sequence[Sequence[Tree]], prefix: int) -> PackedBatch:
    """Lays the trees of some rows out as arrays."""
    width = max(row_size(row) for row in rows)
    shape = (len(rows), width)
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    tree_of, branch_of = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    members, row_of, columns = [], [], []
    own = [np.zeros(0, dtype=np.int64)]
    for r, row in enumerate(rows):
        at = 0
        for number, tree in enumerate(row):
            trunk_at = at
            for branch, member in enumerate(tree.members, start=1):
                begin = prefix if branch == 1 else tree.trunk  # the first response brings the trunk along
                rest = sequences.ids(member)[begin:]
                place = slice(at, at + len(rest))
                ids[r, place], positions[r, place], tree_of[r, place] = rest, np.arange(begin, begin + len(rest)), number
                branch_of[r, place] = np.where(positions[r, place] < tree.trunk, 0, branch)
                reads = sequences.reads[member]
                columns.append(np.where(reads < tree.trunk, trunk_at + reads - prefix, at + reads - begin))
                if sequences.own is not None:
                    tokens = np.arange(*sequences.own[member])
                    own.append(r * width + np.where(tokens < tree.trunk, trunk_at + tokens - prefix, at + tokens - begin))
                members.append(member)
                row_of.append(r)
                at += len(rest)
    return PackedBatch(
        ids=ids,
        positions=positions,
        tree=tree_of,
        branch=branch_of,
        members=np.array(members),
        row=np.array(row_of),
        column=np.array(columns),
        own=np.concatenate(own),
        own_starts=np.concatenate([[0], np.cumsum([len(places) for places in own[1:]], dtype=np.int64)]),
    )

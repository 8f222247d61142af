"""Finds exact and near-duplicate pairs.

- **Exact**: prompt and both answers are equal but for case and white space, chosen and rejected in either order. If the
  order differs within a group, its labels contradict each other.
- **Near**: the Jaccard similarity of the prompts and that of the answers (chosen and rejected together) are both at
  least 0.8 [C], over the sets of 5-byte sequences (shingles) of the folded text. Not all pairs are compared with all:
  1. MinHash by one permutation (Li, Owen, Zhang 2012; empty bins filled from the next one, Shrivastava and Li 2014) of
     the shingles of prompt and answers together. Their joint similarity is never below the smaller of the two, so
     joining them loses no near pair.
  2. Texts that agree in a whole band of the signature share a bucket (at similarity 0.8 this fails with probability
     0.002). Neighbours in a bucket are candidates, at most WINDOW a text and band, so that a bucket of thousands stays
     cheap.
  3. Candidates that agree in at least half of all bins, at most COMPARISONS a text, are compared exactly.

  Near groups are connected components of representatives of the exact groups: if a is near b, and b near c, all three
  are one group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from core.types import PreferencePair, PreferencePairs

THRESHOLD = 0.8
BANDS, ROWS = 16, 5  # 80 bins; a pair of similarity s agrees in some band with probability 1 - (1 - s^5)^16
PROMISING = 0.5  # share of equal bins below which a candidate is not compared exactly; 6 deviations below similarity 0.8
SHINGLE = 5  # bytes
WINDOW = 4  # the number of following texts in its bucket with which a text is compared
COMPARISONS = 8  # exact comparisons a text, with the candidates of most equal bins
BATCH_CHARACTERS = 2**16  # so that a batch's arrays stay in the processor's cache
EMPTY = np.uint32(2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Groups of two or more pair ids.

    `contradictory` are the exact groups in which an answer is chosen in one pair and rejected in another.
    """

    exact: tuple[tuple[str, ...], ...] = ()
    contradictory: tuple[tuple[str, ...], ...] = ()
    near: tuple[tuple[str, ...], ...] = ()
    threshold: float = THRESHOLD

    def to_json(self) -> dict[str, Any]:
        """Counts (groups, and pairs beyond the first of each group) and the groups."""
        kinds = {"exact": self.exact, "contradictory": self.contradictory, "near": self.near}
        counts: dict[str, Any] = {f"n_{name}_groups": len(groups) for name, groups in kinds.items()}
        counts |= {f"n_{name}_extra": sum(len(g) - 1 for g in groups) for name, groups in kinds.items()}
        return {**counts, "threshold": self.threshold, **{name: [list(g) for g in groups] for name, groups in kinds.items()}}


def fold(text: str) -> str:
    """A text in lower case, with single spaces for any white space."""
    return " ".join(text.casefold().split())


def fold_prompt(pair: PreferencePair) -> str:
    """The prompt's messages as one folded text."""
    return "\n".join(f"{message['role']}: {fold(message['content'])}" for message in pair.prompt)


def find_duplicates(pairs: PreferencePairs) -> Duplicates:
    """Groups of duplicate pairs; groups, and the ids in each, are in the order of the pairs.

    100,000 pairs of 1,000 characters take about ten seconds.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        groups[(fold_prompt(pair), *sorted((fold(pair.chosen), fold(pair.rejected))))].append(number)
    exact = [rows for rows in groups.values() if len(rows) > 1]
    contradictory = [rows for rows in exact if len({fold(pairs[i].chosen) for i in rows}) > 1]
    heads = [rows[0] for rows in groups.values()]
    near = [[heads[i] for i in group] for group in _near_groups([(key[0], "\n".join(key[1:])) for key in groups])]
    ids = [tuple(tuple(pairs[i].pair_id for i in rows) for rows in kind) for kind in (exact, contradictory, near)]
    return Duplicates(exact=ids[0], contradictory=ids[1], near=ids[2])


def _near_groups(texts: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Groups of indices of (prompt, answers) texts that are near one another."""
    parent = list(range(len(texts)))
    sets = lru_cache(maxsize=4096)(lambda i: _shingle_sets(texts[i]))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in candidate_pairs(signatures(texts)).tolist():
        if root(i) != root(j) and _similarity(sets(i), sets(j)) >= THRESHOLD:
            parent[root(j)] = root(i)
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(texts)):
        groups[root(i)].append(i)
    return [group for group in sorted(groups.values()) if len(group) > 1]


def _shingles(data: bytes) -> UInt[np.ndarray, " n_bytes"]:
    """For each byte the number that it and the next four bytes form; behind the end the bytes are zero."""
    padded = np.frombuffer(data + bytes(SHINGLE - 1), dtype=np.uint8).astype(np.uint64)
    shingles = padded[: len(data)].copy()
    for i in range(1, SHINGLE):
        shingles |= padded[i : len(data) + i] << np.uint64(8 * i)
    return shingles


def _shingle_sets(text: tuple[str, str]) -> tuple[UInt[np.ndarray, " n"], UInt[np.ndarray, " m"]]:
    prompt, answers = (np.unique(_shingles(part.encode("utf-8", "surrogatepass"))) for part in text)
    return prompt, answers


def _similarity(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """The smaller of the prompts' and the answers' Jaccard similarity."""
    return min(_jaccard(a[0], b[0]), _jaccard(a[1], b[1]))


def _jaccard(a: UInt[np.ndarray, " n"], b: UInt[np.ndarray, " m"]) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


def signatures(texts: Sequence[tuple[str, str]]) -> UInt[np.ndarray, "n bins"]:
    """MinHash signatures by one permutation: a shingle's hash chooses its bin, and a bin keeps its smallest hash."""
    bins = BANDS * ROWS
    signature = np.full((len(texts), bins), EMPTY, dtype=np.uint32)
    for first, parts in _batches(texts):
        for side in (0, 1):
            data = [part[side].encode("utf-8", "surrogatepass") + bytes(SHINGLE - 1) for part in parts]
            owner = np.repeat(np.arange(first, first + len(parts)), [len(d) for d in data])
            shingles = _shingles(b"".join(data))
            real = (shingles & np.uint64(0xFF)) != 0  # shingles that start in the padding do not count
            mixed = _mix(shingles[real] | np.uint64(side + 1 << 8 * SHINGLE))
            bin_of = ((mixed >> np.uint64(32)) * np.uint64(bins)) >> np.uint64(32)
            np.minimum.at(signature.reshape(-1), owner[real] * bins + bin_of.astype(np.int64), mixed.astype(np.uint32))
    return _filled(signature)


def _batches(texts: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Sequence[tuple[str, str]]]]:
    """Successive texts with about BATCH_CHARACTERS in all, with the index of the first text of each batch."""
    first, size = 0, 0
    for number, text in enumerate(texts, 1):
        size += len(text[0]) + len(text[1])
        if size >= BATCH_CHARACTERS or number == len(texts):
            yield first, texts[first:number]
            first, size = number, 0


def _mix(values: UInt[np.ndarray, " n"]) -> UInt[np.ndarray, " n"]:
    """A 64-bit hash (the finaliser of splitmix64)."""
    mixed: UInt[np.ndarray, " n"] = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _filled(signature: UInt[np.ndarray, "n bins"]) -> UInt[np.ndarray, "n bins"]:
    """The signatures with each empty bin filled from the next full one, changed at each step, in a circle."""
    bins = signature.shape[1]
    for column in [*reversed(range(bins))] * 2:
        following = signature[:, (column + 1) % bins]
        empty = (signature[:, column] == EMPTY) & (following != EMPTY)
        signature[empty, column] = following[empty] + np.uint32(0x9E3779B1)
    return signature


def candidate_pairs(signature: UInt[np.ndarray, "n bins"]) -> Int[np.ndarray, "m 2"]:
    """Index pairs to compare exactly, the lower index first: neighbours in some band's bucket with enough equal bins.

    Within a bucket texts are sorted by the next band, so that in a large bucket similar texts are neighbours.
    """
    keys = [_band_key(signature, band) for band in range(BANDS)]
    neighbours = [_neighbours(np.lexsort((keys[(band + 1) % BANDS], key)), key) for band, key in enumerate(keys)]
    pairs = np.unique(np.concatenate(neighbours), axis=0)
    blocks = np.array_split(pairs, len(pairs) // 10_000 + 1)
    equal = np.concatenate([np.count_nonzero(signature[block[:, 0]] == signature[block[:, 1]], axis=1) for block in blocks])
    promising = equal >= PROMISING * signature.shape[1]
    pairs, equal = pairs[promising], equal[promising]
    pairs = pairs[np.lexsort((-equal, pairs[:, 0]))]
    rank = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])
    best: Int[np.ndarray, "m 2"] = pairs[rank < COMPARISONS]
    return best


def _band_key(signature: UInt[np.ndarray, "n bins"], band: int) -> UInt[np.ndarray, " n"]:
    key = np.full(len(signature), band, dtype=np.uint64)
    for column in range(band * ROWS, (band + 1) * ROWS):
        key = _mix(key ^ signature[:, column])
    return key


def _neighbours(order: Int[np.ndarray, " n"], key: UInt[np.ndarray, " n"]) -> Int[np.ndarray, "m 2"]:
    """Pairs of equal key that are at most WINDOW steps apart in the order."""
    pairs = []
    for step in range(1, WINDOW + 1):
        a, b = order[:-step], order[step:]
        same = key[a] == key[b]
        pairs.append(np.stack([np.minimum(a[same], b[same]), np.maximum(a[same], b[same])], axis=1))
    return np.concatenate(pairs)

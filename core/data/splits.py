"""Splits pairs into train, validation, test and unused ones, by prompt, with the same result on every machine.

Prompts are ordered by the sha256 of seed and prompt id, so a split depends on the seed and the prompts alone, and not
on the order of the rows or on a library's random numbers. Shares are met in numbers of prompts, by largest remainder.
METHOD.md section 3: no prompt is on two sides; `split_by="pair"` exists to show the leak.

The paper's protocols (METHOD.md section 7):

| name | train | validation | test | the rest (`unused`) |
|---|---|---|---|---|
| `truthfulqa` | 4 in 10 prompts | 1 | 5 | none |
| `safe-rlhf`, `red-teaming` | 1,000 pairs | 1,000 pairs | 1,000 pairs | 2,000 prompts for DPO, and all others |

For a set that is too small for its protocol all four numbers are scaled down by one factor, which the report states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from core.config import DataConfig
from core.data.duplicates import Duplicates, fold_prompt
from core.errors import DataError
from core.types import SPLITS, JsonFields, PreferencePairs

UNUSED = "unused"
NAMES = (*SPLITS, UNUSED)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A split of the paper: shares of the prompts, or numbers of pairs, with `dpo_prompts` more prompts kept for DPO."""

    ratios: tuple[float, float, float] | None = None
    pairs: tuple[int, int, int] | None = None
    dpo_prompts: int = 0


PROTOCOLS: Mapping[str, Protocol] = {
    "truthfulqa": Protocol(ratios=(0.4, 0.1, 0.5)),
    "safe-rlhf": Protocol(pairs=(1000, 1000, 1000), dpo_prompts=2000),
    "red-teaming": Protocol(pairs=(1000, 1000, 1000), dpo_prompts=2000),
}


def split_pairs(pairs: PreferencePairs, config: DataConfig) -> PreferencePairs:
    """The same pairs with `split` filled: train, validation, test or unused. A protocol overrides `ratios`.

    Raises DataError if there are fewer prompts than splits to fill.
    """
    units = [pair.prompt_id if config.split_by == "prompt" else pair.pair_id for pair in pairs]
    n_pairs: dict[str, int] = {}
    for unit in units:
        n_pairs[unit] = n_pairs.get(unit, 0) + 1
    order = sorted(n_pairs, key=lambda unit: hashlib.sha256(f"{config.seed}:{unit}".encode()).digest())
    protocol = PROTOCOLS.get(config.protocol, Protocol(ratios=(config.ratios[0], config.ratios[1], config.ratios[2])))
    counts = _counts(protocol, [n_pairs[unit] for unit in order], config.split_by)
    names = [name for name, count in zip(NAMES, counts, strict=True) for _ in range(count)]
    split_of = dict(zip(order, names, strict=True))
    return PreferencePairs(pairs=pairs.pairs, split=tuple(split_of[unit] for unit in units), source=pairs.source)


def _counts(protocol: Protocol, sizes: Sequence[int], what: str) -> list[int]:
    """The numbers of ordered units (with `sizes` pairs each) that go to train, validation, test and unused."""
    wanted = protocol.pairs or protocol.ratios or (1.0, 0.0, 0.0)
    needed = sum(share > 0 for share in wanted)
    if len(sizes) < needed:
        raise DataError(f"too few {what}s to split", expected=f"at least {needed}", found=str(len(sizes)), remedy="give more data, or other ratios")
    counts = _counts_by_pairs(protocol, sizes) if protocol.pairs else apportion(len(sizes), [*wanted, max(0.0, 1.0 - sum(wanted))])
    for i, share in enumerate(wanted):
        if share > 0 and not counts[i]:  # a requested split is never empty: it gets one unit of the largest
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts


def apportion(n: int, shares: Sequence[float]) -> list[int]:
    """Divides `n` by shares that sum to 1: the floor of each, the rest by largest remainder (ties to the earlier one)."""
    exact = [round(n * share, 9) for share in shares]
    counts = [int(x) for x in exact]
    for i in sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))[: n - sum(counts)]:
        counts[i] += 1
    return counts


def protocol_scale(protocol: Protocol, n_pairs: int, n_prompts: int) -> float:
    """The factor for a protocol's numbers: 1, or less if the set is smaller than the protocol."""
    wanted = sum(protocol.pairs or ())
    return min(1.0, n_prompts / (wanted * n_prompts / n_pairs + protocol.dpo_prompts)) if wanted else 1.0


def _counts_by_pairs(protocol: Protocol, sizes: Sequence[int]) -> list[int]:
    """Fills the splits in order, prompt by prompt.

    A prompt is never divided, so a split may exceed its number by a prompt's pairs.
    """
    scale = protocol_scale(protocol, sum(sizes), len(sizes))
    limits, total = [], 0.0
    for number in protocol.pairs or ():
        total += number * scale
        limits.append(round(total))
    counts, done = [0, 0, 0, 0], 0
    for size in sizes:
        counts[next((i for i, limit in enumerate(limits) if done < limit), 3)] += 1
        done += size
    return counts


@dataclass(frozen=True, kw_only=True)
class SplitReport(JsonFields):
    """The size of each split, and what two splits share, as counts by `train/test` and so on.

    `shared_prompts` are prompts (equal but for case and white space) in both, `shared_duplicates` groups of exact or
    near-duplicate pairs in both. The split is never changed for them.
    """

    n_pairs: Mapping[str, int]
    n_prompts: Mapping[str, int]
    shared_prompts: Mapping[str, int]
    shared_duplicates: Mapping[str, int]
    notes: tuple[str, ...] = ()


def split_report(pairs: PreferencePairs, config: DataConfig, duplicates: Duplicates | None = None) -> SplitReport:
    """Describes pairs that `split_pairs` split under the same config. `duplicates` are those of the `DataReport`."""
    split_of = {pair.pair_id: name for pair, name in zip(pairs, pairs.split, strict=True)}
    prompts: dict[str, set[str]] = {}
    for pair, name in zip(pairs, pairs.split, strict=True):
        prompts.setdefault(fold_prompt(pair), set()).add(name)
    groups = [*duplicates.exact, *duplicates.near] if duplicates else []
    ids = {name: {pair.prompt_id for pair, split in zip(pairs, pairs.split, strict=True) if split == name} for name in NAMES}
    return SplitReport(
        n_pairs={name: pairs.split.count(name) for name in NAMES},
        n_prompts={name: len(ids[name]) for name in NAMES},
        shared_prompts=_shared(prompts.values()),
        shared_duplicates=_shared({split_of[pair_id] for pair_id in group} for group in groups),
        notes=_notes(pairs, config),
    )


def _shared(sides: Iterable[set[str]]) -> dict[str, int]:
    """For each two splits the number of items that are in both; zeros are left out."""
    counts: dict[str, int] = {}
    for names in sides:
        for two in combinations([name for name in NAMES if name in names], 2):
            counts["/".join(two)] = counts.get("/".join(two), 0) + 1
    return counts


def _notes(pairs: PreferencePairs, config: DataConfig) -> tuple[str, ...]:
    notes = ["split by pair: a prompt can be in two splits, so accuracies are too high"] if config.split_by == "pair" else []
    protocol = PROTOCOLS.get(config.protocol)
    if protocol and protocol.pairs:
        units = {pair.prompt_id if config.split_by == "prompt" else pair.pair_id for pair in pairs}
        scale = protocol_scale(protocol, len(pairs), len(units))
        numbers = ", ".join(f"{number * scale:,.0f}" for number in protocol.pairs)
        small = f"; the set is smaller than its protocol, whose numbers are scaled by {scale:.3f}" if scale < 1 else ""
        dpo = f"{protocol.dpo_prompts * scale:,.0f}"
        notes.append(f"protocol {config.protocol}: train, validation, test aim at {numbers} pairs; unused keeps {dpo} prompts for DPO{small}")
    return tuple(notes)

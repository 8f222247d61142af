"""How good the rewards are: accuracies with intervals, and differences over the same prompts (METHOD.md section 3).

Accuracy is the share of pairs with strict s_w > s_l; ties are wrong. Interval: Wilson where each prompt has one pair,
else a bootstrap over prompts, which is unreliable for fewer than ten prompts and impossible where all agree: there
Wilson with one trial a prompt stands in (our choice). Differences: paired bootstrap over prompts. Choices are made on
validation; the test split is read here, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.statistics.bootstrap import percentile_interval, resampled_means
from core.statistics.intervals import wilson
from core.types import Accuracy, JsonFields, PreferencePairs, json_value

FEWEST_PROMPTS = 10
# Names under which the formats keep a pair's kind, in order of preference.
SUBSET_FIELDS = ("subset", "category", "Category")
# A table of more kinds than this is a list of rows, not of kinds.
MOST_SUBSETS = 100
MEASURED_ON = "test pairs that the language model can read"


@dataclass(frozen=True, kw_only=True)
class ScoredMethod:
    """One way to score pairs: the margins s_w - s_l of each head (a seed or a draw), and which head is shipped."""

    kind: str
    margins: Float[np.ndarray, "n_heads n_pairs"]
    shipped: int
    n_parameters: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference(JsonFields):
    """Mean accuracy of SparseRM less another's on the same `n` pairs; 95 % paired bootstrap interval over prompts."""

    difference: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the table. `accuracy` is that of the shipped head, `mean` and `deviation` are over all heads (seeds or
    draws), all on test pairs. `validation` is what the shipped head was chosen by. `lead` is SparseRM's mean less this
    one's. `subsets`: means over all heads by kind of pair."""

    kind: str
    accuracy: Accuracy
    mean: Accuracy
    deviation: float | None
    heads: tuple[Accuracy, ...]
    shipped: int
    validation: Accuracy
    lead: Difference | None
    subsets: Mapping[str, Accuracy]
    n_parameters: int
    note: str

    def to_json(self) -> dict[str, Any]:
        """The shipped head's four numbers, and the rest beside them."""
        return {
            **self.accuracy.to_json(),
            "mean": json_value(self.mean),
            "deviation": self.deviation,
            "heads": json_value(self.heads),
            "shipped": self.shipped,
            "validation": json_value(self.validation),
            "sparserm_minus_this": json_value(self.lead),
            "subsets": json_value(self.subsets),
            "n_parameters": self.n_parameters,
            "note": self.note,
        }


@dataclass(frozen=True, kw_only=True)
class SubsetCounts(JsonFields):
    """The kinds of pairs behind a table by kind: `n_named` pairs name one in the meta's `field` (empty: no such field),
    `n_unnamed` do not. `shown` is False, and there is no table, for no kind or more than MOST_SUBSETS."""

    field: str
    n_kinds: int
    n_named: int
    n_unnamed: int
    shown: bool


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The table: SparseRM, its controls and the three losses, each by kind of pair too where the data names kinds.

    Every line is measured on the same pairs, `measured_on`: the test pairs that the language model could read,
    `n_pairs` of `n_prompts`. `subset_counts` says how many of them name a kind (`SubsetCounts`).
    """

    sparserm: Entry
    controls: Mapping[str, Entry]
    losses: Mapping[str, Entry]
    n_pairs: int
    n_prompts: int
    subset_counts: SubsetCounts

    def to_json(self) -> dict[str, Any]:
        """Every object with `accuracy` carries `low`, `high` and `n`: the number of pairs that it was computed on."""
        return {
            **{name: json_value(getattr(self, name)) for name in ("sparserm", "controls", "losses", "n_prompts")},
            "measured_on": {"split": "test", "which": MEASURED_ON, "n_pairs": self.n_pairs, "n_prompts": self.n_prompts},
            "subset_counts": json_value(self.subset_counts),
        }


def accuracy_of(margins: Float[np.ndarray, "n_heads n_pairs"], groups: Int[np.ndarray, " n_pairs"]) -> Accuracy:
    """Accuracy of one head, or the mean accuracy of several, with its interval. `groups` numbers each pair's prompt."""
    n = len(groups)
    if n == 0:
        return Accuracy(accuracy=float("nan"), low=0.0, high=1.0, n=0)
    right = (margins > 0).mean(axis=0)
    share, n_prompts = float(right.mean()), len(np.unique(groups))
    low, high = wilson(share * n_prompts, n_prompts)
    if n_prompts < n and n_prompts >= FEWEST_PROMPTS:
        drawn = percentile_interval(resampled_means(right, groups))
        low, high = drawn if drawn[0] < drawn[1] else (low, high)
    return Accuracy(accuracy=share, low=float(low), high=float(high), n=n)


def accuracy_difference(
    first: Float[np.ndarray, "n_first n_pairs"], second: Float[np.ndarray, "n_second n_pairs"], groups: Int[np.ndarray, " n_pairs"]
) -> Difference | None:
    """Mean accuracy of the first heads less that of the second, paired by prompt; None without pairs."""
    if not len(groups):
        return None
    gain = (first > 0).mean(axis=0) - (second > 0).mean(axis=0)
    low, high = percentile_interval(resampled_means(gain, groups))
    return Difference(difference=float(gain.mean()), low=float(low), high=float(high), n=len(groups))


def evaluate(pairs: PreferencePairs, sparserm: ScoredMethod, controls: Sequence[ScoredMethod], losses: Mapping[str, ScoredMethod]) -> Evaluation:
    """The table on the test pairs. The margins are of all pairs, in order."""
    test, validation = pairs.rows_of("test"), pairs.rows_of("validation")

    def entry(method: ScoredMethod) -> Entry:
        return _entry(method, sparserm, test, validation, pairs)

    return Evaluation(
        sparserm=entry(sparserm),
        controls={control.kind: entry(control) for control in controls},
        losses={name: entry(method) for name, method in losses.items()},
        n_pairs=len(test),
        n_prompts=len(np.unique(pairs.prompt_groups()[test])),
        subset_counts=subset_counts(pairs, test),
    )


def _entry(method: ScoredMethod, sparserm: ScoredMethod, test: np.ndarray, validation: np.ndarray, pairs: PreferencePairs) -> Entry:
    groups, margins = pairs.prompt_groups(), method.margins[:, test]
    heads = tuple(accuracy_of(head[None], groups[test]) for head in margins)
    return Entry(
        kind=method.kind,
        accuracy=heads[method.shipped],
        mean=accuracy_of(margins, groups[test]),
        deviation=float(np.std([head.accuracy for head in heads], ddof=1)) if len(heads) > 1 and len(test) else None,
        heads=heads,
        shipped=method.shipped,
        validation=accuracy_of(method.margins[[method.shipped]][:, validation], groups[validation]),
        lead=None if method is sparserm else accuracy_difference(sparserm.margins[:, test], margins, groups[test]),
        subsets=accuracy_by_subset(method.margins, pairs, test),
        n_parameters=method.n_parameters,
        note=method.note,
    )


def accuracy_by_subset(margins: Float[np.ndarray, "n_heads n_pairs"], pairs: PreferencePairs, rows: Int[np.ndarray, " n"]) -> dict[str, Accuracy]:
    """Mean accuracy of the heads by kind of pair; empty unless `subset_counts` finds kinds to show."""
    if not subset_counts(pairs, rows).shown:
        return {}
    names, groups = np.array(subset_names(pairs, rows)[1]), pairs.prompt_groups()
    kinds = sorted(set(names.tolist()) - {""})
    return {kind: accuracy_of(margins[:, rows[names == kind]], groups[rows[names == kind]]) for kind in kinds}


def subset_names(pairs: PreferencePairs, rows: Int[np.ndarray, " n"]) -> tuple[str, list[str]]:
    """The meta field that names the kinds of these pairs, and each pair's kind; empty where none is named."""
    field = next((name for name in SUBSET_FIELDS if any(name in pairs[int(i)].meta for i in rows)), "")
    return field, [str(pairs[int(i)].meta.get(field, "")) if field else "" for i in rows]


def subset_counts(pairs: PreferencePairs, rows: Int[np.ndarray, " n"]) -> SubsetCounts:
    """How many of these pairs name a kind, and how many kinds there are."""
    field, names = subset_names(pairs, rows)
    kinds = set(names) - {""}
    named = sum(name != "" for name in names)
    return SubsetCounts(field=field, n_kinds=len(kinds), n_named=named, n_unnamed=len(names) - named, shown=0 < len(kinds) <= MOST_SUBSETS)

"""Two reward models on the pairs that both folders hold: margins, accuracies, and the pairs that they rank differently.
No Streamlit here.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.explain.cues import Correlation, correlations
from core.reward.evaluation import Difference, accuracy_difference, accuracy_of
from core.types import Accuracy
from workbench.frame.models import FittedModel
from workbench.response.values import one_line

KINDS = {"any": "Largest disagreement", "second": "Only the second is right", "first": "Only the first is right"}
FEWEST = 3  # pairs that a correlation needs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Row i is a pair that both folders hold: its number in the first one's folder, margins and P(chosen wins), and its
    prompt's number.

    `margins` and `probability` are the shipped heads', `margins_by_head` those of all heads of the first and of the
    second. `split` is that of the pairs: `test` or `validation` where they are held out and so in both, `held-out`
    where that differs, else `shared`.
    """

    first: FittedModel
    second: FittedModel
    numbers: Int[np.ndarray, " n"]
    margins: Float[np.ndarray, "2 n"]
    probability: Float[np.ndarray, "2 n"]
    groups: Int[np.ndarray, " n"]
    margins_by_head: tuple[Float[np.ndarray, "n_first n"], Float[np.ndarray, "n_second n"]]
    split: str

    def __len__(self) -> int:
        return len(self.numbers)

    def only(self, pair_ids: Container[str]) -> Comparison:
        """The same of these pairs alone."""
        rows = np.array([row for row, pair_id in enumerate(self.pair_ids) if pair_id in pair_ids], dtype=np.int64)
        margins, probability = self.margins[:, rows], self.probability[:, rows]
        by_head = self.margins_by_head[0][:, rows], self.margins_by_head[1][:, rows]
        numbers, groups = self.numbers[rows], self.groups[rows]
        return replace(self, numbers=numbers, margins=margins, probability=probability, groups=groups, margins_by_head=by_head)

    @cached_property
    def accuracies(self) -> tuple[Accuracy, Accuracy]:
        """Of the first and the second, on these pairs: the shipped heads'."""
        return accuracy_of(self.margins[:1], self.groups), accuracy_of(self.margins[1:], self.groups)

    @cached_property
    def difference(self) -> Difference | None:
        """Accuracy of the second's shipped head less that of the first's, paired by prompt."""
        return accuracy_difference(self.margins[1:], self.margins[:1], self.groups)

    @cached_property
    def mean_accuracies(self) -> tuple[Accuracy, Accuracy]:
        """Mean over the heads of the first and of the second, on the same pairs."""
        first, second = self.margins_by_head
        return accuracy_of(first, self.groups), accuracy_of(second, self.groups)

    @cached_property
    def mean_difference(self) -> Difference | None:
        """Mean accuracy of the second's heads less that of the first's, paired by prompt."""
        first, second = self.margins_by_head
        return accuracy_difference(second, first, self.groups)

    @cached_property
    def agreement(self) -> Accuracy:
        """Share of the pairs on which both prefer the same response."""
        same = np.where((self.margins[0] > 0) == (self.margins[1] > 0), 1.0, -1.0)
        return accuracy_of(same[None], self.groups)

    @cached_property
    def correlation(self) -> Correlation | None:
        """Spearman correlation of the margins."""
        return None if len(self) < FEWEST else correlations(self.margins[:1].T, self.margins[1], self.groups)[0]

    def rows_of(self, kind: str) -> list[int]:
        """Rows of a kind (`any`, `first`: only the first is right, `second`), those first whose P(chosen wins) differs
        most.
        """
        right = self.margins > 0
        of_kind = {"first": right[0] & ~right[1], "second": right[1] & ~right[0]}.get(kind, np.ones(len(self), dtype=bool))
        gap = np.abs(self.probability[1] - self.probability[0])
        rows = np.flatnonzero(of_kind)
        return [int(i) for i in rows[np.argsort(-gap[rows], kind="stable")]]

    @cached_property
    def pair_ids(self) -> list[str]:
        return [self.first.pair(int(number)).pair_id for number in self.numbers]

    @cached_property
    def prompts(self) -> list[str]:
        """The last message of each prompt, on one line."""
        pairs = (self.first.pair(int(number)) for number in self.numbers)
        return [one_line(pair.prompt[-1]["content"]) if pair.prompt else "" for pair in pairs]

    def table(self, rows: list[int]) -> list[dict[str, Any]]:
        """A row a pair, for a table."""
        return [self._row(i) for i in rows]

    def _row(self, i: int) -> dict[str, Any]:
        pair = self.first.pair(int(self.numbers[i]))
        chances = {f"P(chosen wins), {name}": float(self.probability[number, i]) for number, name in enumerate(("first", "second"))}
        margins = {f"margin, {name}": float(self.margins[number, i]) for number, name in enumerate(("first", "second"))}
        texts = {"prompt": self.prompts[i], "chosen": one_line(pair.chosen), "rejected": one_line(pair.rejected)}
        return {**chances, **margins, **texts, "pair": pair.pair_id}

    @cached_property
    def shared_latents(self) -> tuple[int, int, int] | None:
        """How many latents both read, and how many each reads; None where they read different SAEs."""
        saes = [(model.parts.sae or {}).get("sha256") for model in (self.first, self.second)]
        if saes[0] is None or saes[0] != saes[1]:
            return None
        first, second = (set(model.latents) for model in (self.first, self.second))
        return len(first & second), len(first), len(second)


def compare(first: FittedModel, second: FittedModel, *, held_out: bool = True) -> Comparison:
    """The pairs with the same prompt and responses; with `held_out` those on which neither model made a choice.

    Raises StoreError where a folder is damaged.
    """
    _ = first.config, second.config  # the folders are checked again, whatever is kept in memory
    return _compare(first, second, held_out)


@lru_cache(maxsize=4)
def _compare(first: FittedModel, second: FittedModel, held_out: bool) -> Comparison:
    both = first, second
    by_texts = [_numbers_by_texts(model, held_out) for model in both]
    shared = [key for key in by_texts[0] if key in by_texts[1]]
    numbers = [np.array([of_model[key] for key in shared], dtype=np.int64) for of_model in by_texts]
    margins = np.stack([model.margins[rows] if len(rows) else np.zeros(0) for model, rows in zip(both, numbers, strict=True)])
    scale = np.array([[model.parts.margin_scale] for model in both])
    groups = np.unique([key[0] for key in shared], return_inverse=True)[1].astype(np.int64) if shared else np.zeros(0, dtype=np.int64)
    probability = 1 / (1 + np.exp(-scale * margins))
    first_heads, second_heads = (model.margins_by_head[:, rows] if shared else np.zeros((1, 0)) for model, rows in zip(both, numbers, strict=True))
    return Comparison(
        first=both[0],
        second=both[1],
        numbers=numbers[0],
        margins=margins,
        probability=probability,
        groups=groups,
        margins_by_head=(first_heads, second_heads),
        split=_split(both) if held_out else "shared",
    )


def _split(both: tuple[FittedModel, FittedModel]) -> str:
    """The split that held-out pairs are of in both folders; `held-out` where the two differ."""
    splits = {responses.held_out_split for model in both if (responses := model.find_responses()) is not None}
    return splits.pop() if len(splits) == 1 else "held-out"


def _numbers_by_texts(model: FittedModel, held_out: bool) -> dict[tuple[int, int, int], int]:
    """The number of each pair by the ids of its texts: prompt, chosen, rejected."""
    known = model.find_responses()
    if known is None or known.pairs is None:
        return {}
    numbers = known.held_out_pairs if held_out else np.arange(len(known.pairs))
    by_texts: dict[tuple[int, int, int], int] = {}
    for number in map(int, numbers):
        chosen, rejected = int(known.chosen_rows[number]), int(known.rejected_rows[number])
        key = int(known.prompt_ids[chosen]), int(known.response_ids[chosen]), int(known.response_ids[rejected])
        by_texts.setdefault(key, number)
    return by_texts

"""Do the sentences that carry a reward also cause it? (METHOD.md section 4)

The split over words says where a reward is read; a token's state carries what stood before it. So each sentence of held-out
responses is deleted and the rest scored again (core.explain.tokens): within a response the Spearman correlation of what
its sentences carry with what deleting each takes from the reward, then the mean over responses with a 95 % bootstrap
interval over prompts, beside the same with the sentences in random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from core.errors import DataError
from core.explain.explainer import Explainer
from core.explain.text_units import tiles
from core.explain.tokens import spans_of
from core.reward.dialogues import Item
from core.statistics.estimates import Estimate, mean_over_prompts
from core.types import JsonFields, Progress, no_progress

FEWEST = 3  # sentences of a response whose order is compared


@dataclass(frozen=True, kw_only=True)
class DeletionAgreement(JsonFields):
    """`agreement` of sentences' contributions with deleting them, the same in `random` order, and the `lead` over it. Of
    `n_asked` responses those with fewer than three sentences are left out. `strongest`: the share of responses whose
    sentence of largest size is the same by both (`by_chance`: expected of a random one)."""

    agreement: Estimate
    random: Estimate
    lead: Estimate
    strongest: Estimate
    by_chance: float
    n_asked: int


def deletion_agreement(
    explainer: Explainer, items: Sequence[Item], groups: Int[np.ndarray, " n"], *, seed: int = 0, progress: Progress = no_progress
) -> DeletionAgreement | None:
    """Measures these responses; `groups` gives the number of each one's prompt. None where fewer than two prompts have
    responses of three sentences. Needs the language model and a reward model that reads whole responses."""
    draw = np.random.default_rng(seed)
    rows, kept = list[tuple[float, float, float, float]](), list[int]()
    for number, item in enumerate(items):
        progress("sentences deleted", number, len(items))
        measured = _measured(explainer, item)
        if measured is None:
            continue
        carried, effect = measured
        same = float(np.abs(carried).argmax() == np.abs(effect).argmax())
        rows.append((spearman(carried, effect), spearman(draw.permutation(carried), effect), same, 1 / len(carried)))
        kept.append(int(groups[number]))
    progress("sentences deleted", len(items), len(items))
    figures, prompts = np.array(rows).reshape(-1, 4), np.array(kept, dtype=np.int64)
    columns = (figures[:, 0], figures[:, 1], figures[:, 0] - figures[:, 1], figures[:, 2])
    estimates = [mean_over_prompts(column, prompts) if len(column) else None for column in columns]
    agreement, random, lead, strongest = estimates
    if agreement is None or random is None or lead is None or strongest is None:
        return None
    by_chance = float(figures[:, 3].mean())
    return DeletionAgreement(agreement=agreement, random=random, lead=lead, strongest=strongest, by_chance=by_chance, n_asked=len(items))


def _measured(explainer: Explainer, item: Item) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None:
    """What each sentence carries, and what deleting it takes; None with too few sentences, or where a rest can't be read."""
    if len(tiles(item[1], "sentence")) < FEWEST:
        return None
    spans = list(spans_of(item[1]))
    try:
        deletions = explainer.deletions(list(item[0]), item[1], spans)
        words = explainer.builder.response(explainer.features(list(item[0]), item[1]), {}).words
    except DataError:
        return None
    effects = [deletion.effect for deletion in deletions]
    if words is None or any(effect is None for effect in effects):
        return None
    return words.over(spans).values, np.array(effects, dtype=np.float64)


def spearman(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Rank correlation; 0 where one of them is constant."""
    ranks = rankdata(np.stack([first, second]), axis=1) - (len(first) + 1) / 2
    norm = float(np.prod(np.linalg.norm(ranks, axis=1)))
    return float(ranks[0] @ ranks[1]) / norm if norm else 0.0

"""Figures that the process of the reward model reads from a text: v and f, tokens, deletions, gradients. Those of the
last texts are kept.

All functions raise SparseRMError where the text can't be read, or the process can't be started.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float

from core.explain.explanation import PairExplanation
from core.explain.features import ResponseFeatures
from core.explain.from_folder import builder_of, explain_pair
from core.explain.token_values import Deletion, Span, TokenView
from core.explain.words import PairWords
from core.latents.label_book import labels_of
from core.reward.dialogues import Item
from core.reward.hidden_states import WHOLE
from workbench.frame.model_client import live_model
from workbench.frame.models import FittedModel
from workbench.response.values import ExplainedSubject, Subject, explained_pair

READINGS = 32  # texts that stay in memory
HashableItem = tuple[tuple[tuple[str, str], ...], str]


def features_of(model: FittedModel, item: Item, parent: Item | None = None) -> ResponseFeatures:
    """v and f of any text; the tokens that it begins with like its `parent` are not computed again."""
    return _features(str(model.path), model.root, hashable(item), None if parent is None else hashable(parent))


def tokens_of(model: FittedModel, item: Item) -> TokenView:
    """Tokens, activations and running reward of any text."""
    return TokenView.from_json(_tokens(str(model.path), model.root, hashable(item)), builder_of(model).latent_ids)


def deletions_of(model: FittedModel, item: Item, spans: tuple[Span, ...] = ()) -> list[Deletion]:
    """What each span of characters adds; without spans each sentence."""
    return _deletions(str(model.path), model.root, hashable(item), spans)


def gradient_of(model: FittedModel, item: Item) -> Float[np.ndarray, " t"]:
    """Length of the reward's gradient to each token's embedding, for the tokens of `tokens_of`. The first one costs
    seconds.
    """
    return _gradient(str(model.path), model.root, hashable(item))


def explain(model: FittedModel, subject: Subject) -> ExplainedSubject:
    """Explains it: a pair of the fit at once from the folder, other texts from what the process reads, which must be
    ready.
    """
    if subject.number is not None:
        return explained_pair(subject, _kept_pair(model, subject, subject.number))
    builder, labels = builder_of(model), labels_of(model)
    features = {side: features_of(model, subject.item(side)) for side in subject.texts}
    if "response" in features:
        return ExplainedSubject(subject=subject, sides={"response": builder.response(features["response"], labels)}, pair=None)
    return explained_pair(subject, builder.pair(features["chosen"], features["rejected"], labels))


def change_of(model: FittedModel, before: Item, after: Item) -> PairWords | None:
    """The change of the reward from one text to another, split over the words of both; None where nothing is split."""
    first, second = (features_of(model, item) for item in (before, after))
    return builder_of(model).pair(second, first, labels_of(model)).words


def _kept_pair(model: FittedModel, subject: Subject, number: int) -> PairExplanation:
    """A pair of the fit from the folder; where its tokens are not kept, with those that the process reads, if it is up."""
    pair = explain_pair(model, number)
    if pair.words is not None or model.parts.position != WHOLE or not is_live(model):
        return pair
    responses, sides = model.responses, []
    for side, rows in (("chosen", responses.chosen_rows), ("rejected", responses.rejected_rows)):
        v, f = (of_all[int(rows[number])].astype(np.float64) for of_all in (responses.projections, responses.activations))
        sides.append(replace(features_of(model, subject.item(side)), v=v, f=f))
    return builder_of(model).pair(sides[0], sides[1], labels_of(model))


def is_live(model: FittedModel) -> bool:
    """Whether the process of the reward model is up; starts nothing."""
    return live_model(str(model.path), model.root).state().ready


def hashable(item: Item) -> HashableItem:
    """Prompt and response as tuples: equal for equal items."""
    return tuple((message["role"], message["content"]) for message in item[0]), item[1]


def forget() -> None:
    """Empties the memory (for tests)."""
    for cached in (_features, _tokens, _deletions, _gradient):
        cached.cache_clear()


@lru_cache(maxsize=READINGS)
def _features(folder: str, root: Path, item: HashableItem, parent: HashableItem | None) -> ResponseFeatures:
    return live_model(folder, root).features(_messages(item), item[1], parent=None if parent is None else (_messages(parent), parent[1]))


@lru_cache(maxsize=READINGS)
def _tokens(folder: str, root: Path, item: HashableItem) -> dict[str, object]:
    return live_model(folder, root).tokens(_messages(item), item[1])


@lru_cache(maxsize=READINGS)
def _deletions(folder: str, root: Path, item: HashableItem, spans: tuple[Span, ...]) -> list[Deletion]:
    return [Deletion(**row) for row in live_model(folder, root).deletions(_messages(item), item[1], spans or None)]


@lru_cache(maxsize=READINGS)
def _gradient(folder: str, root: Path, item: HashableItem) -> Float[np.ndarray, " t"]:
    return np.array(live_model(folder, root).gradient(_messages(item), item[1])["norm"])


def _messages(item: HashableItem) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in item[0]]

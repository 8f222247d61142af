"""Explains what a reward model says, at whatever depth is asked for (METHOD.md section 4).

    explainer = Explainer(reward_model)                      # or reward_model.explain(prompt, response), reward_model.explain_pair(pair)
    explainer.explain(prompt, response)                      # contributions, parts, interventions, neighbours, the sentence
    explainer.explain_pair(pair)                             # both responses and their margin
    explainer.explain_known(number)                          # a pair the model was fitted on: from what is kept, no language model needed
    explainer.tokens / deletions / gradient(prompt, response)
    explainer.edit(prompt, response, parent=...)             # a changed text, computed from its first changed token on

`labels` (latent id -> Label) names latents in the sentence: by default the best that this machine has of the SAE (core.latents.label_book), as they
stand when something is explained. The language model and the SAE are loaded when something needs them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from core.backbone.model import Backbone
from core.errors import ConfigError, DataError, SparseRMError
from core.explain.edits import Edit
from core.explain.explanation import Explanation, PairExplanation
from core.explain.explanation_builder import ExplanationBuilder, ResponseFeatures
from core.explain.kept import explain_known, read_faithfulness
from core.explain.readings import Reading, read_tokens
from core.explain.tokens import Deletion, Gradients, Span, TokenGradient, TokenView, deletions, token_view
from core.latents.label_book import labels_of
from core.latents.labels import Labels
from core.reward.dialogues import Dialogue, Item, items_of, key_of
from core.reward.fit_responses import FitResponses
from core.reward.model import BackboneReader, SparseRM
from core.sae.autoencoder import SparseAutoencoder
from core.types import PreferencePair

READINGS = 4  # kept with their keys and values, for edits and for what else is asked of the same text
log = logging.getLogger(__name__)


class Explainer:
    """Explains one reward model. Raises ConfigError for a control that has no latents with directions."""

    def __init__(self, model: SparseRM, *, labels: Labels | None = None) -> None:
        self.model, self.parts = model, model.parts
        self._labels, self._book = labels, labels_of(model.parts.sae)
        self.builder = ExplanationBuilder(model.parts, model.known, read_faithfulness(model.folder))
        self._readings: OrderedDict[Any, Reading] = OrderedDict()

    @property
    def labels(self) -> Labels:
        """What the latents are called."""
        if self._labels is not None:
            return self._labels
        return self._book.labels() if self._book else {}

    @cached_property
    def sae(self) -> SparseAutoencoder | None:
        """The SAE; None, with a word in the log, where it is not at hand: then nothing is said of activations and removals."""
        try:
            return self.model.sae
        except SparseRMError as error:
            log.warning("no activations and no removals are shown: %s", error)
            return None

    @property
    def backbone(self) -> Backbone:
        """The language model, loaded when it is first needed. Raises ConfigError where the model has hidden states from elsewhere."""
        if not isinstance(self.model.reader, BackboneReader):
            found = type(self.model.reader).__name__
            raise ConfigError("explaining a text needs the language model itself", expected="a SparseRM on its backbone", found=found)
        return self.model.reader.backbone

    @property
    def known(self) -> FitResponses | None:
        """The responses kept beside the model; None where there are none."""
        return self.builder.known

    # --- explanations ---

    def explain(self, prompt: Dialogue, response: Dialogue) -> Explanation:
        """One response explained. Raises DataError where prompt or response can't be read."""
        item = item_of(prompt, response)
        return self.builder.response(self.see(item, self.read(item).z), self.labels)

    def explain_pair(self, pair: PreferencePair) -> PairExplanation:
        """A pair explained; what both responses begin with is computed once."""
        items = [item_of(list(pair.prompt), text) for text in (pair.chosen, pair.rejected)]
        return self.explain_pair_states(items[0], items[1], np.stack([self.read(item).z for item in items]))

    def explain_known(self, number: int) -> PairExplanation:
        """A pair that is kept beside the model, by its number there: from its saved projections, without language model and SAE.

        Raises StoreError where no texts are kept, ConfigError where there is no such pair.
        """
        return explain_known(self.builder, number, self.labels)

    def explain_states(self, items: Sequence[Item], z: Float[np.ndarray, "n d_model"]) -> list[Explanation]:
        """Responses whose hidden states are at hand, each for itself: for whole files."""
        return [self.builder.response(self.see(item, state), self.labels) for item, state in zip(items, z, strict=True)]

    def explain_pair_states(self, chosen: Item, rejected: Item, z: Float[np.ndarray, "2 d_model"]) -> PairExplanation:
        """A pair whose hidden states are at hand."""
        return self.builder.pair(self.see(chosen, z[0]), self.see(rejected, z[1]), self.labels)

    # --- token by token ---

    def tokens(self, prompt: Dialogue, response: Dialogue) -> TokenView:
        """Activation of each latent and running reward at each token: from the same pass as the explanation."""
        return token_view(self.model, self.read(item_of(prompt, response)), self.sae)

    def deletions(self, prompt: Dialogue, response: Dialogue, spans: Sequence[Span] | None = None) -> tuple[Deletion, ...]:
        """What each sentence, or each given span of characters, adds to the reward."""
        return deletions(self.model, self.backbone, item_of(prompt, response), spans)

    def gradient(self, prompt: Dialogue, response: Dialogue) -> TokenGradient:
        """Gradient of the reward to each token's embedding, for the tokens of `tokens`."""
        return self._gradients.of(self.read(item_of(prompt, response)))

    @cached_property
    def _gradients(self) -> Gradients:
        return Gradients(self.backbone, self.parts)

    # --- edits ---

    def edit(self, prompt: Dialogue, response: Dialogue, parent: Edit | None = None) -> Edit:
        """A changed prompt or response with the change per latent against its parent; without one, the root of a chain."""
        item = item_of(prompt, response)
        lender = self._readings.get(key_of((parent.explanation.prompt, parent.explanation.response))) if parent else None
        reading = self.read(item, lender)
        explanation = self.builder.response(self.see(item, reading.z), self.labels)
        change = None if parent is None else self.builder.path(parent.explanation.attribution, explanation.attribution)
        return Edit(explanation=explanation, parent=parent, change=change, n_tokens=len(reading.ids), n_computed=reading.n_computed)

    # --- how a text is read ---

    def read(self, item: Item, lender: Reading | None = None) -> Reading:
        """The reading of a response. One made lately is found again; else `lender`, or the latest one, lends what the new one begins with."""
        key = key_of(item)
        if key not in self._readings:
            parent = lender or next(reversed(self._readings.values()), None)
            self._readings[key] = read_tokens(self.backbone, item, layer=self.parts.layer, position=self.parts.position, parent=parent)
            while len(self._readings) > READINGS:
                self._readings.popitem(last=False)
        self._readings.move_to_end(key)
        return self._readings[key]

    def forget(self) -> None:
        """Lets go of the readings that are kept, and of what gradients need."""
        self._readings.clear()
        self.__dict__.pop("_gradients", None)

    def see(self, item: Item, z: Float[np.ndarray, " d_model"]) -> ResponseFeatures:
        """A hidden state as head and SAE see it."""
        f = None
        if self.sae is not None:
            f = self.sae.encode_latents(torch.from_numpy(z[None]), self.builder.latent_ids)[0].cpu().numpy().astype(np.float64)
        return ResponseFeatures(item=item, v=z.astype(np.float64) @ self.builder.directions.T, f=f)


def item_of(prompt: Dialogue, response: Dialogue) -> Item:
    """Prompt and response as the reward model reads them. Raises DataError where one can't be used."""
    items, refused = items_of([prompt], [response])
    if refused:
        field = refused[0].partition(":")[0]
        raise DataError(f"the {field} can't be explained", expected="a text, or messages {role, content}", found=refused[0])
    return items[0]

"""Reads responses with the language model and the SAE, for figures that need them (METHOD.md section 4).

    reader = ResponseReader(reward_model)
    reader.features(prompt, response)                        # v and f: all that an explanation is made of
    reader.tokens / deletions / gradient(prompt, response)   # token by token

The process of a live reward model answers with these (core.serving); explanations are made of them by
core.explain.explanation_builder. The language model and the SAE are loaded when something needs them. The last few
readings are kept with their keys and values, so a changed text costs only what follows its first changed token.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from core.backbone.model import Backbone
from core.errors import ConfigError, SparseRMError
from core.explain.explanation_builder import check_explainable
from core.explain.features import ResponseFeatures, item_of
from core.explain.readings import Reading, read_tokens
from core.explain.token_values import Deletion, Span, TokenGradient, TokenView
from core.explain.tokens import Gradients, deletions, token_view
from core.reward.dialogues import Dialogue, Item, key_of
from core.reward.model import BackboneReader, SparseRM
from core.reward.response_tokens import ResponseTokens
from core.sae.autoencoder import SparseAutoencoder

READINGS = 4  # kept in memory
log = logging.getLogger(__name__)


class ResponseReader:
    """Reads responses for one reward model. Raises ConfigError for a control that has no latents with directions."""

    def __init__(self, model: SparseRM) -> None:
        check_explainable(model.parts)
        self.model, self.parts = model, model.parts
        self.readings: OrderedDict[Any, Reading] = OrderedDict()

    @cached_property
    def sae(self) -> SparseAutoencoder | None:
        """The SAE; None, with a warning, where it can't be loaded: activations and removals are then not shown."""
        try:
            return self.model.sae
        except SparseRMError as error:
            log.warning("no activations and no removals are shown: %s", error)
            return None

    @property
    def backbone(self) -> Backbone:
        """The language model, loaded when first needed. ConfigError: hidden states come from elsewhere."""
        if not isinstance(self.model.reader, BackboneReader):
            reader = type(self.model.reader).__name__
            raise ConfigError("explaining a text needs the language model itself", expected="a SparseRM on its backbone", found=reader)
        return self.model.reader.backbone

    def features(self, prompt: Dialogue, response: Dialogue, *, parent: Item | None = None) -> ResponseFeatures:
        """v and f of a response. `parent` is the text it was made from: what the two begin with is not computed again.
        Raises DataError where prompt or response can't be read."""
        item = item_of(prompt, response)
        reading = self.read(item, None if parent is None else self.readings.get(key_of(parent)))
        features = self.state_features(item, reading.states[reading.own], reading.offsets)
        return replace(features, n_tokens=len(reading.ids), n_computed=reading.n_computed)

    def state_features(self, item: Item, states: Float[np.ndarray, "t d_model"], offsets: Int[np.ndarray, "t 2"] | None = None) -> ResponseFeatures:
        """v and f of a response whose states are at hand: of the token that is read, or (with the tokens' `offsets`) of
        all its own tokens, whose mean is read."""
        directions = self.parts.directions
        assert directions is not None  # check_explainable
        projections = states.astype(np.float64) @ directions.astype(np.float64).T
        f = self._activations(states)
        tokens = None if offsets is None else ResponseTokens(offsets=offsets, projections=projections, activations=f)
        return ResponseFeatures(item=item, v=projections.mean(axis=0), f=None if f is None else f.mean(axis=0), tokens=tokens)

    def _activations(self, states: Float[np.ndarray, "t d_model"]) -> Float[np.ndarray, "t k"] | None:
        """f of the selected latents at each token; None where no SAE is at hand."""
        assert self.parts.latent_ids is not None  # check_explainable
        if self.sae is None:
            return None
        f: np.ndarray = self.sae.encode_latents(torch.from_numpy(states), self.parts.latent_ids).cpu().numpy().astype(np.float64)
        return f

    # --- token by token ---

    def tokens(self, prompt: Dialogue, response: Dialogue) -> TokenView:
        """Activation of each latent and running reward at each token: from the same forward pass as the features."""
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

    # --- readings ---

    def read(self, item: Item, lender: Reading | None = None) -> Reading:
        """A recent reading of a response, or a new one that reuses the beginning of `lender` (else of the latest)."""
        key = key_of(item)
        if key not in self.readings:
            parent = lender or next(reversed(self.readings.values()), None)
            self.readings[key] = read_tokens(self.backbone, item, layer=self.parts.layer, position=self.parts.position, parent=parent)
            while len(self.readings) > READINGS:
                self.readings.popitem(last=False)
        self.readings.move_to_end(key)
        return self.readings[key]

    def forget(self) -> None:
        """Frees the readings and what gradients need."""
        self.readings.clear()
        self.__dict__.pop("_gradients", None)

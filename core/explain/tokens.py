"""By token: active latents, running reward, what a span adds, sensitivity to embeddings (METHOD.md section 4).

(a) Activation of each latent at each token, by the SAE's own encode. On first and template tokens no SAE was trained:
    they are marked by their kind.
(b) Running reward: the head on each token's own z. Exploratory, since the head was trained on the last position only.
    Where the whole response is read: the reward of the response up to and with this token.
(c) Deletion: the response is scored again with a span left out. This one is causal.
(d) Gradient of the reward to the embeddings, in float32 through the backbone up to layer L.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from core.backbone.model import Backbone, decoder_layers
from core.errors import BackboneError, ConfigError
from core.explain.readings import Reading
from core.explain.text_units import tiles
from core.explain.token_values import Deletion, Span, TokenGradient, TokenView
from core.reward.dialogues import Item
from core.reward.extraction import response_states
from core.reward.model import SparseRM
from core.reward.parts import RewardParts
from core.sae.autoencoder import SparseAutoencoder

MOST_SPANS = 64


def token_view(model: SparseRM, reading: Reading, sae: SparseAutoencoder | None) -> TokenView:
    """Activations and running reward of a reading."""
    ids = model.parts.latent_ids
    assert ids is not None  # an explainer takes only kinds with latents
    activation = None if sae is None else sae.encode_latents(torch.from_numpy(reading.states), ids).cpu().numpy()
    running = model.rewards_of(_states_so_far(reading) if reading.whole else reading.states)
    return TokenView(texts=reading.texts, kinds=reading.kinds, latent_ids=ids, activation=activation, running=running, so_far=reading.whole)


def _states_so_far(reading: Reading) -> Float[np.ndarray, "t d_model"]:
    """Of each own token the mean of z up to it; of every other token its own z."""
    states = reading.states.astype(np.float64)
    own = states[reading.own]
    states[reading.own] = np.cumsum(own, axis=0) / np.arange(1, len(own) + 1)[:, None]
    return states


def deletions(model: SparseRM, backbone: Backbone, item: Item, spans: Sequence[Span] | None = None) -> tuple[Deletion, ...]:
    """Scores a response again without each of these spans (None: sentence by sentence). All go through the backbone
    together with the whole, in one plan that shares their prompt. Raises ConfigError for a span outside the response.
    """
    text = item[1]
    asked = list(spans_of(text)) if spans is None else list(spans)
    for start, stop in asked:
        if not 0 <= start < stop <= len(text):
            raise ConfigError("there is no such span in the response", expected=f"0 <= start < stop <= {len(text)}", found=f"{start}:{stop}")
    left = [(text[:start] + text[stop:]).strip() for start, stop in asked]
    kept = [number for number, rest in enumerate(left) if rest]
    variants = [item, *((item[0], left[number]) for number in kept)]
    rewards = model.rewards_of(response_states(backbone, variants, layer=model.parts.layer, position=model.parts.position))
    effect = {number: float(rewards[0] - reward) for number, reward in zip(kept, rewards[1:], strict=True)}
    return tuple(Deletion(start=a, stop=b, text=text[a:b], effect=effect.get(number)) for number, (a, b) in enumerate(asked))


def spans_of(text: str) -> Iterator[Span]:
    """Its sentences with the white space behind them; of a single one its words. At most 64: neighbours merge."""
    spans = tiles(text, "sentence")
    if len(spans) < 2:
        spans = tiles(text, "word")
    edges = np.linspace(0, len(spans), min(len(spans), MOST_SPANS) + 1).astype(int)
    return ((spans[a][0], spans[b - 1][1]) for a, b in itertools.pairwise(edges))


class Gradients:
    """Gradients through a backbone in float32, copied if need be: in bfloat16 they are mostly rounding."""

    def __init__(self, backbone: Backbone, parts: RewardParts) -> None:
        self.backbone, self.parts = backbone, parts
        quantised = backbone.identity.get("quantization", "none") != "none"
        usable = backbone.dtype == torch.float32 or quantised
        self.model = backbone.model if usable else copy.deepcopy(backbone.model).float()
        self.model.requires_grad_(False)  # the weights are frozen anyway, and their gradients would cost memory

    def of(self, reading: Reading) -> TokenGradient:
        """Of the reward to each embedding of a reading. Raises BackboneError where memory runs out."""
        ids = torch.from_numpy(reading.ids.astype(np.int64))[None].to(self.backbone.device)
        try:
            with torch.enable_grad():
                embedded = self.model.get_input_embeddings()(ids).detach().requires_grad_()
                reward = self._reward(self._states(embedded)[reading.own].mean(dim=0))
                (gradient,) = torch.autograd.grad(reward, embedded)
        except (torch.OutOfMemoryError, MemoryError) as error:
            problem = f"the gradient over {ids.shape[1]} tokens does not fit into memory"
            raise BackboneError(problem, found=str(error), remedy="shorten the text") from error
        return TokenGradient(norm=gradient[0].double().cpu().norm(dim=1).numpy(), reward=float(reward.detach()))

    def _states(self, embedded: torch.Tensor) -> torch.Tensor:
        """The state of each token, its graph attached; the model runs no further than layer L."""
        states: list[torch.Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)
            raise _StopForward

        handle = decoder_layers(self.model)[self.parts.layer].register_forward_hook(keep)
        decoder = self.model.base_model if self.model.get_output_embeddings() is not None else self.model
        try:
            decoder(inputs_embeds=embedded, use_cache=False)
        except _StopForward:
            pass
        finally:
            handle.remove()
        return states[0][0]

    def _reward(self, z: torch.Tensor) -> torch.Tensor:
        head, directions = self.parts.head, self.parts.directions
        assert directions is not None  # an explainer takes only kinds with directions
        weights = (directions, head.weight_1, head.bias_1, head.weight_2, head.bias_2)
        d, first, bias, second, last = (torch.from_numpy(w.astype(np.float64)) for w in weights)
        reward: torch.Tensor = (second @ torch.relu(first @ (d @ z.double().cpu()) + bias) + last)[0]
        return reward


class _StopForward(Exception):
    """Layer L has been computed."""

"""A response token by token, as values for terminal, pages and files; core.explain.tokens computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.errors import ConfigError
from core.types import JsonFields

# Kinds of tokens. The state of the first token is out of all proportion, and no SAE was trained on it or on the
# template's tokens.
FIRST, TEMPLATE, PROMPT, RESPONSE = "first", "template", "prompt", "response"
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """The tokens up to the one that is scored. `activation` is f of the selected latents, None where no SAE is at hand;
    `running` is the head's reward at each token: with `so_far`, where whole responses are read, that of the response up
    to the token; else of the token's own state, exploratory, since the head was trained on the last position only."""

    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    latent_ids: Int[np.ndarray, " k"]
    activation: Float[np.ndarray, "t k"] | None
    running: Float[np.ndarray, " t"]
    so_far: bool = False

    def of_latent(self, latent_id: int) -> Float[np.ndarray, " t"]:
        """Activation of one latent. Raises ConfigError where it is not selected, or no SAE is at hand."""
        columns = np.flatnonzero(self.latent_ids == latent_id)
        if not len(columns):
            latents = ", ".join(map(str, self.latent_ids[:8])) + (", ..." if len(self.latent_ids) > 8 else "")
            raise ConfigError(f"latent {latent_id} is not one of this reward model's", expected=latents)
        if self.activation is None:
            raise ConfigError("activations need the SAE, and it is not at hand")
        return self.activation[:, columns[0]]

    def to_json(self) -> dict[str, Any]:
        """Latents that are active nowhere are left out."""
        activation = {} if self.activation is None else dict(zip(self.latent_ids.tolist(), self.activation.T, strict=True))
        active = {str(latent): values.tolist() for latent, values in activation.items() if values.any()}
        return {
            "texts": list(self.texts),
            "kinds": list(self.kinds),
            "activation": active,
            "running_reward": self.running.tolist(),
            "so_far": self.so_far,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], latent_ids: Int[np.ndarray, " k"]) -> TokenView:
        """`latent_ids` are the selected latents: those that are missing in the JSON are active nowhere."""
        silent = [0.0] * len(value["texts"])
        columns = [value["activation"].get(str(latent), silent) for latent in latent_ids.tolist()]
        activation = np.array(columns, dtype=np.float64).reshape(len(columns), len(silent)).T
        running = np.array(value["running_reward"], dtype=np.float64)
        return cls(
            texts=tuple(value["texts"]),
            kinds=tuple(value["kinds"]),
            latent_ids=latent_ids,
            activation=activation,
            running=running,
            so_far=value["so_far"],
        )


@dataclass(frozen=True, kw_only=True)
class Deletion(JsonFields):
    """A span of the response (characters `start` to `stop`) and what it adds: the reward of the whole less the reward
    without it. None where nothing would be left to score."""

    start: int
    stop: int
    text: str
    effect: float | None


@dataclass(frozen=True, kw_only=True)
class TokenGradient(JsonFields):
    """How sensitive the reward is to each token's embedding e: `norm` = |ds/de|. It has no sign: what a token adds is
    measured by a deletion. The norm, not gradient times embedding (our choice): on 53 held-out answers of TruthfulQA
    its mean rank correlation with the size of each word's deletion was 0.32, that of |ds/de . e| 0.22, and the sign of
    ds/de . e did not predict the sign of the deletion (-0.04)."""

    norm: Float[np.ndarray, " t"]
    reward: float

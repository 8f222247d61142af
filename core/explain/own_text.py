"""A person's own text, token by token, and the activations of any of the SAE's latents on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from core.backbone.model import Backbone
from core.data.texts import Refused, text_of
from core.errors import ConfigError, DataError
from core.explain.readings import token_texts
from core.explain.token_values import FIRST, PROMPT, TEMPLATE
from core.sae.autoencoder import SparseAutoencoder
from core.types import Message

NUMBERS = 2**23  # activations held at a time: 32 MiB
MOST_LATENTS = 256


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """Tokens of a user's message and their states after layer L; `kinds` as core.explain.readings has them."""

    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    states: Float[np.ndarray, "t d_model"]

    @property
    def content(self) -> Bool[np.ndarray, " t"]:
        """The tokens of the text itself: on the others no SAE was trained."""
        return np.array([kind not in (FIRST, TEMPLATE) for kind in self.kinds], dtype=bool)


def read_text(backbone: Backbone, text: str, *, layer: int) -> OwnText:
    """Reads a text as a user's first message. Raises DataError where it is empty or longer than the model reads."""
    try:
        messages: list[Message] = [{"role": "user", "content": text_of(text, "text")}]
    except Refused as error:
        raise DataError("the text can't be read", found=error.reason) from error
    rendered = backbone.render(messages)
    length, longest = len(rendered.ids), backbone.config.max_length
    if length > longest:
        raise DataError(
            "the text is longer than the model reads", expected=f"at most {longest} tokens", found=f"{length} tokens", remedy="shorten it"
        )
    kinds = np.where(rendered.content, PROMPT, TEMPLATE).astype(object)
    kinds[0] = FIRST
    states = backbone.states(torch.from_numpy(rendered.ids.astype(np.int64))[None], None, [layer])[layer][0].float().cpu().numpy()
    return OwnText(texts=token_texts(rendered), kinds=tuple(map(str, kinds)), states=states)


def latents_of(text: OwnText, sae: SparseAutoencoder, latents: Sequence[int], *, top: int) -> dict[str, Any]:
    """JSON values: tokens, the activation of these latents at each token, and the `top` latents of highest activation
    on the text's own tokens. Raises ConfigError for a latent that the SAE does not have."""
    strange = sorted({int(latent) for latent in latents if not 0 <= int(latent) < sae.d_sae})
    if strange or len(latents) > MOST_LATENTS:
        asked = ", ".join(map(str, strange[:5])) if strange else f"{len(latents)} latents"
        raise ConfigError("this SAE can't show these latents", expected=f"at most {MOST_LATENTS}, from 0 to {sae.d_sae - 1}", found=asked)
    ids = np.array(list(dict.fromkeys(map(int, latents))), dtype=np.int64)
    values = sae.encode_latents(torch.from_numpy(text.states), ids).cpu().numpy() if len(ids) else np.zeros((len(text.states), 0), dtype=np.float32)
    highest = [{"latent_id": i, "activation": value, "token": at} for i, value, at in _highest(text, sae, top)]
    return {
        "texts": list(text.texts),
        "kinds": list(text.kinds),
        "activation": {str(latent): values[:, column].tolist() for column, latent in enumerate(ids.tolist())},
        "top": highest,
    }


def _highest(text: OwnText, sae: SparseAutoencoder, top: int) -> list[tuple[int, float, int]]:
    """Latents by their highest activation on the text's own tokens, and the token where it is."""
    rows_of_text: Int[np.ndarray, " n"] = np.flatnonzero(text.content)
    best, where = np.zeros(sae.d_sae, dtype=np.float32), np.zeros(sae.d_sae, dtype=np.int64)
    step = max(1, NUMBERS // sae.d_sae)
    for at in range(0, len(rows_of_text), step):
        rows = rows_of_text[at : at + step]
        values = sae.encode(torch.from_numpy(text.states[rows])).cpu().numpy()
        peak = values.max(axis=0)
        higher = peak > best
        best[higher], where[higher] = peak[higher], rows[values.argmax(axis=0)[higher]]
    order = np.argsort(-best, kind="stable")[: max(top, 0)]
    return [(int(i), float(best[i]), int(where[i])) for i in order if best[i] > 0]

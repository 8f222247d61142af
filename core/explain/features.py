"""What explaining needs to be told of one response: its projections v and its SAE activations f.

For the responses of a fit they lie in the reward model's folder (core.reward.fit_responses). For any other text only
the language model and the SAE can give them (core.explain.response_reader), which pages ask by HTTP (core.serving).
Everything else that an explanation holds follows from them (core.explain.explanation_builder). Pages import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from core.errors import DataError
from core.reward.dialogues import Dialogue, Item, items_of
from core.reward.fit_responses import response_id
from core.reward.response_tokens import ResponseTokens


@dataclass(frozen=True, kw_only=True)
class ResponseFeatures:
    """A response as the head and the SAE read it: `v` = D z, float64, and `f`, the activations of the selected latents
    (None without an SAE). Of its `n_tokens` tokens `n_computed` went through the language model; the others were taken
    over from an earlier text. Both are 0 for a response of the fit, whose figures were saved. `tokens`: where the whole
    response is read, its own tokens, whose projections have the mean v; None at other positions, and for a response of
    the fit whose tokens are not kept."""

    item: Item
    v: Float[np.ndarray, " k"]
    f: Float[np.ndarray, " k"] | None
    n_tokens: int = 0
    n_computed: int = 0
    tokens: ResponseTokens | None = None

    @cached_property
    def response_id(self) -> int:
        return response_id(*self.item)

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt": list(self.item[0]),
            "response": self.item[1],
            "v": self.v.tolist(),
            "f": None if self.f is None else self.f.tolist(),
            "n_tokens": self.n_tokens,
            "n_computed": self.n_computed,
            "tokens": None if self.tokens is None else self.tokens.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ResponseFeatures:
        f = None if value["f"] is None else np.array(value["f"], dtype=np.float64)
        item = tuple(value["prompt"]), value["response"]
        tokens = None if value["tokens"] is None else ResponseTokens.from_json(value["tokens"])
        v = np.array(value["v"], dtype=np.float64)
        return cls(item=item, v=v, f=f, n_tokens=value["n_tokens"], n_computed=value["n_computed"], tokens=tokens)


def item_of(prompt: Dialogue, response: Dialogue) -> Item:
    """Prompt and response as the reward model reads them. Raises DataError where one can't be used."""
    items, refused = items_of([prompt], [response])
    if refused:
        field = refused[0].partition(":")[0]
        raise DataError(f"the {field} can't be explained", expected="a text, or messages {role, content}", found=refused[0])
    return items[0]

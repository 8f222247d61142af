"""What a reward model sees at each token of a response, where the whole response is read (METHOD.md section 4).

At `response_mean`, v is the mean over the response's own tokens of p_t = <z_t, d_j>, so a reward splits exactly over
words and latents (core.explain.word_table). For the held-out responses of a fit the tokens' projections and activations are
kept beside the reward model, up to MOST_BYTES, so that a page shows the words without the language model:

tokens.safetensors
    rows [m]                                 int64: rows of known.safetensors, rising
    starts [m + 1]                           int64: where each response's tokens begin in the arrays below
    offsets [n_tokens, 2]                    int32: first and last character (exclusive) of each token in the response's text
    projections, activations [n_tokens, k]   float32: p_t, and f of the selected latents at each token
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from core.errors import StoreError
from core.reward.recorded_files import TOKENS, remedy_for

MOST_BYTES = 128 * 2**20  # of the two tables in a reward model's folder


@dataclass(frozen=True, kw_only=True)
class ResponseTokens:
    """The own tokens of one response: their places in its text, and at each of them p_t and f_t of the selected latents.

    `offsets` are characters of the response's text as it was read (start, stop); a token that is a part of a character
    has an empty span at it. `activations` is None where no SAE is at hand.
    """

    offsets: Int[np.ndarray, "t 2"]
    projections: Float[np.ndarray, "t k"]
    activations: Float[np.ndarray, "t k"] | None

    def __len__(self) -> int:
        return len(self.offsets)

    def texts(self, response: str) -> list[str]:
        """The characters of each token in the response's text."""
        return [response[start:stop] for start, stop in self.offsets.tolist()]

    def to_json(self) -> dict[str, Any]:
        activations = None if self.activations is None else self.activations.tolist()
        return {"offsets": self.offsets.tolist(), "projections": self.projections.tolist(), "activations": activations}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ResponseTokens:
        activations = None if value["activations"] is None else np.array(value["activations"], dtype=np.float64)
        offsets = np.array(value["offsets"], dtype=np.int64).reshape(-1, 2)
        return cls(offsets=offsets, projections=np.array(value["projections"], dtype=np.float64), activations=activations)


@dataclass(frozen=True, kw_only=True)
class KeptTokens:
    """The tokens of the responses that are kept beside a reward model (see the module's text for the arrays)."""

    rows: Int[np.ndarray, " m"]
    starts: Int[np.ndarray, " m_plus_1"]
    offsets: Int[np.ndarray, "n_tokens 2"]
    projections: Float[np.ndarray, "n_tokens k"]
    activations: Float[np.ndarray, "n_tokens k"]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {row: place for place, row in enumerate(self.rows.tolist())}

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def of(self, row: int) -> ResponseTokens | None:
        """The tokens of the known response `row`; None where they are not kept."""
        place = self._places.get(row)
        if place is None:
            return None
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return ResponseTokens(offsets=self.offsets[part], projections=self.projections[part], activations=self.activations[part])


def write_tokens(tokens: KeptTokens, path: Path) -> None:
    """Writes the file, which the caller moves to its place or records."""
    path.write_bytes(save({spec.name: np.ascontiguousarray(getattr(tokens, spec.name)) for spec in fields(tokens)}))


def read_tokens(folder: Path, k: int, n_known: int) -> KeptTokens | None:
    """What a reward model's folder holds of them; None if it holds nothing. StoreError: damaged, or not of this model."""
    path = folder / TOKENS
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, "a safetensors file", str(error)) from error
    names = {spec.name for spec in fields(KeptTokens)}
    if set(tensors) != names:
        raise _damaged(path, ", ".join(sorted(names)), ", ".join(sorted(tensors)))
    n, m = len(tensors["offsets"]), len(tensors["rows"])
    shapes = {"rows": (m,), "starts": (m + 1,), "offsets": (n, 2), "projections": (n, k), "activations": (n, k)}
    for name, shape in shapes.items():
        if tensors[name].shape != shape or not np.isfinite(tensors[name]).all():
            raise _damaged(path, f"{name} {list(shape)} with finite values", f"{list(tensors[name].shape)}")
    rows, starts = tensors["rows"], tensors["starts"]
    if ((rows < 0) | (rows >= n_known)).any() or starts[0] != 0 or starts[-1] != n or (np.diff(starts) < 1).any():
        raise _damaged(path, f"rows below {n_known} and rising starts up to {n}", "others")
    return KeptTokens(**tensors)


def _damaged(path: Path, expected: str, actual: str) -> StoreError:
    return StoreError(f"{path} is damaged", expected=expected, found=actual, remedy=remedy_for(path.parent))

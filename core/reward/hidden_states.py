"""Hidden states of a fit's responses, and what the SAE's latents do in them; loads no torch.

An extraction's folder (core.reward.extraction) holds

index.safetensors                    rows of each pair's two responses, number of own tokens of each response
L<layer>-<position>.safetensors      `states` [n_responses, d_model] float32, for each layer and position that was read

and for `response_mean`, where the mean over the response's own tokens is read (METHOD.md section 2), for each layer

L<layer>-activity.safetensors        activity of every latent in every response, sparse (LatentActivity)
L<layer>-tokens.safetensors          `states` [n_tokens, d_model] float32 of single tokens (TokenStates)
tokens.safetensors                   which responses these tokens are of, and the characters of each token
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load_file

from core.errors import StoreError

WHOLE = "response_mean"  # the position that reads all of a response's own tokens
INDEX, TOKEN_INDEX = "index.safetensors", "tokens.safetensors"
DTYPES = {"F32": "<f4", "I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True, kw_only=True)
class LatentActivity:
    """Activity of every latent in every response, by latent: the entries of latent j are those from `latent_starts[j]`
    to `latent_starts[j + 1]`, in the order of the responses. A response in which a latent is active at no token has no
    entry. The arrays are memory maps.

    `rows` are responses, `mean` the mean of f over the response's own tokens (above 0: active somewhere), `peak` the
    largest f and `peak_token` the first own token (counted from 0) that has it.
    """

    latent_starts: Int[np.ndarray, " d_sae_plus_1"]
    rows: Int[np.ndarray, " n_entries"]
    mean: Float[np.ndarray, " n_entries"]
    peak: Float[np.ndarray, " n_entries"]
    peak_token: Int[np.ndarray, " n_entries"]

    def entries(self, latent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`rows`, `mean`, `peak` and `peak_token` of one latent."""
        part = slice(int(self.latent_starts[latent]), int(self.latent_starts[latent + 1]))
        return self.rows[part], self.mean[part], self.peak[part], self.peak_token[part]

    def block(self, latents: slice, rows: Int[np.ndarray, " n"], n_responses: int, dtype: Any = np.float32) -> np.ndarray:
        """Mean activity of these responses [n, c] for a run of latents; with `dtype` bool whether they are active."""
        place = np.full(n_responses, -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        starts = self.latent_starts[latents.start : latents.stop + 1]
        part = slice(int(starts[0]), int(starts[-1]))
        columns = np.repeat(np.arange(latents.stop - latents.start), np.diff(starts))
        at = place[self.rows[part]]
        values = np.zeros((len(rows), latents.stop - latents.start), dtype=dtype)
        values[at[at >= 0], columns[at >= 0]] = self.mean[part][at >= 0]
        return values

    def columns(self, latent_ids: Int[np.ndarray, " k"], n_responses: int) -> Float[np.ndarray, "n k"]:
        """Mean activity of every response for these latents."""
        values = np.zeros((n_responses, len(latent_ids)), dtype=np.float32)
        for column, latent in enumerate(np.asarray(latent_ids).tolist()):
            rows, mean, _, _ = self.entries(latent)
            values[rows, column] = mean
        return values


@dataclass(frozen=True, kw_only=True)
class TokenStates:
    """Hidden states of the own tokens of some responses: those of response `rows[i]` are `starts[i]` to `starts[i + 1]`.

    `ids` are the tokens, `offsets` the first and last character (exclusive) of each in the response's text. `states` is a
    memory map.
    """

    rows: Int[np.ndarray, " m"]
    starts: Int[np.ndarray, " m_plus_1"]
    ids: Int[np.ndarray, " n_tokens"]
    offsets: Int[np.ndarray, "n_tokens 2"]
    states: Float[np.ndarray, "n_tokens d_model"]

    def places(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Where each response stands in `rows`; -1 where its tokens are not kept."""
        if not len(self.rows):
            return np.full(len(rows), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[at] == rows, at, -1)

    def tokens(self, place: int) -> slice:
        """The tokens of the response that stands at this place."""
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """Hidden states z after one decoder layer, each distinct (prompt, response) once (METHOD.md section 2).

    `states` may be a read-only memory map, so slice it; `chosen_rows[i]` and `rejected_rows[i]` are the rows of pair
    i's responses, and `pair_rows[i]` is the pair's index in the `PreferencePairs` it came from (over-long pairs can be
    refused). `n_tokens` counts each response's own tokens. Where the whole response is read, z is the mean over its own
    tokens, `activity` is what the latents do at them, and `tokens` holds single tokens of as many responses as are kept.
    """

    states: Float[np.ndarray, "n_responses d_model"]
    chosen_rows: Int[np.ndarray, " n_pairs"]
    rejected_rows: Int[np.ndarray, " n_pairs"]
    pair_rows: Int[np.ndarray, " n_pairs"]
    n_tokens: Int[np.ndarray, " n_responses"]
    layer: int
    position: str
    activity: LatentActivity | None = None
    tokens: TokenStates | None = None

    @property
    def n_pairs(self) -> int:
        return len(self.pair_rows)

    @property
    def d_model(self) -> int:
        return int(self.states.shape[1])

    @property
    def chosen(self) -> Float[np.ndarray, "n_pairs d_model"]:
        """z_w of every pair. Copies: for 100,000 pairs use `states` in slices."""
        return np.asarray(self.states[self.chosen_rows], dtype=np.float32)

    @property
    def rejected(self) -> Float[np.ndarray, "n_pairs d_model"]:
        """z_l of every pair."""
        return np.asarray(self.states[self.rejected_rows], dtype=np.float32)


def load_hidden_states(folder: Path, layer: int, position: str) -> HiddenStates:
    """The states of one layer and position, a read-only memory map. StoreError: not in the folder, or cut off."""
    path = folder / states_name(layer, position)
    if not path.is_file():
        held = ", ".join(sorted(file.name for file in folder.glob("*.safetensors")))
        raise StoreError(f"{folder} holds no states of layer {layer} at {position}", found=held)
    index = load_file(folder / INDEX)
    whole = position == WHOLE
    return HiddenStates(
        states=map_tensors(path)["states"],
        chosen_rows=index["chosen_rows"],
        rejected_rows=index["rejected_rows"],
        pair_rows=index["pair_rows"],
        n_tokens=index["n_tokens"],
        layer=layer,
        position=position,
        activity=LatentActivity(**map_tensors(folder / activity_name(layer))) if whole else None,
        tokens=TokenStates(**load_file(folder / TOKEN_INDEX), **map_tensors(folder / tokens_name(layer))) if whole else None,
    )


def alone_readings(config: Mapping[str, Any], layer: int) -> list[dict[str, Any]]:
    """What an extraction with this config would be called if it had read this layer alone, at each of its positions; none
    where it did not read the layer."""
    if layer not in config["layers"]:
        return []
    rules = {name: value for name, value in config.items() if name not in ("position", "also_read", "saes")}
    readings = [{**rules, "layers": [layer], "position": position} for position in (config["position"], *config.get("also_read", ()))]
    return [{**reading, "saes": {str(layer): config["saes"][str(layer)]}} if reading["position"] == WHOLE else reading for reading in readings]


def states_name(layer: int, position: str) -> str:
    """Name of the file that holds the states of a layer and a position."""
    return f"L{layer:02d}-{position}.safetensors"


def activity_name(layer: int) -> str:
    """Name of the file that holds what the latents of a layer's SAE do in each response."""
    return f"L{layer:02d}-activity.safetensors"


def tokens_name(layer: int) -> str:
    """Name of the file that holds a layer's states of single tokens."""
    return f"L{layer:02d}-tokens.safetensors"


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The file's tensors as read-only memory maps. StoreError: missing, or shorter than its header states."""
    if not path.is_file():
        raise StoreError(f"{path} is missing")
    with path.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
    expected, length = 8 + size + max(entry["data_offsets"][1] for entry in header.values()), path.stat().st_size
    if length != expected:
        raise StoreError(f"{path} is cut off", expected=f"{expected} bytes", found=str(length))
    return {name: _mapped(path, entry, 8 + size, "r") for name, entry in header.items()}


def new_tensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """A new safetensors file with room for these tensors (name -> dtype of DTYPES and shape), as memory maps to fill."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + at)
    return {name: _mapped(path, entry, 8 + len(text), "r+") for name, entry in header.items()}


def _mapped(path: Path, entry: Mapping[str, Any], begin: int, mode: Any) -> np.ndarray:
    """One tensor of a file; numpy can't map an empty one."""
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    if 0 in shape:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode=mode, offset=begin + entry["data_offsets"][0], shape=shape)

"""Reads the hidden states that an extraction saved (core.reward.extraction), without loading torch.

An extraction's folder holds `L<layer>-<position>.safetensors`, one tensor `states` [n_responses, d_model] in float32
for each layer and position that was read, and `index.safetensors` with the rows of each pair's two responses.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file

from core.errors import StoreError
from core.types import HiddenStates


def load_hidden_states(folder: Path, layer: int, position: str) -> HiddenStates:
    """The states of one layer and position, a read-only memory map. StoreError: not in the folder, or cut off."""
    path = folder / states_name(layer, position)
    if not path.is_file():
        held = ", ".join(sorted(file.name for file in folder.glob("*.safetensors")))
        raise StoreError(f"{folder} holds no states of layer {layer} at {position}", found=held)
    index = load_file(folder / "index.safetensors")
    return HiddenStates(
        states=map_tensor(path),
        chosen_rows=index["chosen_rows"],
        rejected_rows=index["rejected_rows"],
        pair_rows=index["pair_rows"],
        n_tokens=index["n_tokens"],
        layer=layer,
        position=position,
    )


def states_name(layer: int, position: str) -> str:
    """Name of the file that holds the states of a layer and a position."""
    return f"L{layer:02d}-{position}.safetensors"


def map_tensor(path: Path) -> Float[np.ndarray, "n d"]:
    """The file's tensor `states` as a read-only memory map. StoreError: the file is shorter than its header states."""
    with path.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        entry = json.loads(handle.read(size))["states"]
    expected, length = 8 + size + entry["data_offsets"][1], path.stat().st_size
    if length != expected:
        raise StoreError(f"{path} is cut off", expected=f"{expected} bytes", found=str(length))
    return np.memmap(path, dtype="<f4", mode="r", offset=8 + size, shape=tuple(entry["shape"]))

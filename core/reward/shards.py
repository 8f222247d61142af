"""The forward passes of an extraction, saved shard by shard and merged into one file for each array.

A shard is a few batches of the plan (core.reward.packing); a killed extraction goes on behind its last whole one. The
merge reads one shard at a time, so memory does not grow with the pairs: it holds a shard, and 8 bytes for each latent.
Sparse activity (core.reward.hidden_states.LatentActivity) is sorted by latent in blocks of at most SORT_ENTRIES entries.

On disk, for n responses of T tokens, each array exists twice while it is merged: 4 n d_model bytes for each layer and
position; at `response_mean` 16 bytes for each (response, active latent), and the states of single tokens, of whole
prompts in the order of their hashes, up to TOKEN_BYTES in all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from safetensors.numpy import load_file, save_file

from core.backbone.model import Backbone
from core.errors import ConfigError
from core.files import read_json, whole_file, write_json
from core.reward.forward import BatchReading, BatchRunner
from core.reward.hidden_states import TOKEN_INDEX, WHOLE, activity_name, new_tensors, states_name, tokens_name
from core.reward.packing import Plan, row_size
from core.reward.rendering import Read
from core.reward.whole_response import WholeResponseReader
from core.runs.store import HOLD
from core.sae.autoencoder import SparseAutoencoder
from core.types import Progress, sha256_of

VERSION = 1
TOKEN_BYTES = 2**30  # of all layers' states of single tokens
SORT_ENTRIES = 2**24  # entries of activity that are sorted at a time: 400 MB
ENTRY = ("rows", "latents", "mean", "peak", "peak_token")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """One extraction: what is read where, and the folder of its shards. ConfigError: a layer without its SAE at
    `response_mean`."""

    backbone: Backbone
    read: Read
    plan: Plan
    layers: Sequence[int]
    positions: Sequence[str]
    saes: Mapping[int, SparseAutoencoder]
    scratch: Path

    def __post_init__(self) -> None:
        missing = [layer for layer in self.layers if self.whole and layer not in self.saes]
        if missing:
            raise ConfigError(f"{WHOLE} reads an SAE's activity at every token", expected="an SAE for each layer", found=f"none for layers {missing}")

    @property
    def whole(self) -> bool:
        """Whether whole responses are read."""
        return WHOLE in self.positions

    @cached_property
    def kept(self) -> Bool[np.ndarray, " n"]:
        """The responses whose single tokens are kept: those of whole prompts, in the order of the prompts' hashes, as
        many as fit into TOKEN_BYTES. Neither the side nor the split plays a part."""
        prompts = self.read.sequences.prompts
        budget = TOKEN_BYTES // (4 * self.backbone.d_model * max(len(self.layers), 1))
        tokens = np.bincount(prompts, weights=self.read.n_tokens, minlength=len(self.read.prompt_hashes))
        order = np.argsort(np.array(self.read.prompt_hashes), kind="stable")
        taken = order[np.cumsum(tokens[order]) <= budget]
        return np.isin(prompts, taken)

    # --- forward passes ---

    def run(self, progress: Progress) -> None:
        """Computes and saves the shards that are not there yet."""
        self._open_scratch()
        reader = WholeResponseReader(self.saes, kept=self.kept) if self.whole else None
        runner: BatchRunner | None = None
        total, done, computed, started = self.plan.n_tokens, self.plan.prefix, 0, time.monotonic()
        for number, (begin, end) in enumerate(self.plan.shards):
            path = self._path(number)
            size = sum(row_size(row) for batch in self.plan.batches[begin:end] for row in batch)
            if not path.exists():
                runner = runner or BatchRunner(
                    self.backbone, self.read.sequences, self.layers, prefix=self.plan.prefix, share=self.plan.share, whole=reader
                )
                readings: list[BatchReading] = []
                at = done
                for batch in self.plan.batches[begin:end]:
                    readings += runner.run(batch)
                    n = sum(row_size(row) for row in batch)
                    at, computed = at + n, computed + n
                    progress("extraction", at, total, tokens_per_s=computed / max(time.monotonic() - started, 1e-9))
                save_arrays(path, self._arrays(readings))
            done += size
            progress("extraction", done, total)
            _hold_here(self.scratch, number)

    def _arrays(self, readings: Sequence[BatchReading]) -> dict[str, np.ndarray]:
        """One shard's arrays. States at `response_mean` are the means; activity is by sequence instead of by place."""
        states = [np.stack([reading.states[layer] for layer in self.layers], axis=1) for reading in readings]
        arrays = {"members": np.concatenate([reading.members for reading in readings]), "states": np.concatenate(states)}
        if not self.whole:
            return arrays
        at = self.positions.index(WHOLE)
        for i, layer in enumerate(self.layers):
            layers = [reading.whole[layer] for reading in readings]
            arrays["states"][:, i, at] = np.concatenate([whole.mean for whole in layers])
            entries: dict[str, list[np.ndarray]] = {name: [] for name in ENTRY}
            for reading, whole in zip(readings, layers, strict=True):
                assert whole.activity is not None and whole.tokens is not None  # asked for in `run`
                entries["rows"].append(reading.members[whole.activity.members].astype(np.int32))
                for name in ENTRY[1:]:
                    entries[name].append(getattr(whole.activity, name))
            arrays |= {f"L{layer}.{name}": np.concatenate(parts) for name, parts in entries.items()}
            arrays[f"L{layer}.tokens"] = np.concatenate([whole.tokens for whole in layers if whole.tokens is not None])
        return arrays

    def _open_scratch(self) -> None:
        """Keeps the shards of an earlier, killed run only if they were cut from the very same plan."""
        digest = hashlib.sha256(self.read.sequences.flat.data)
        for batch in self.plan.batches:
            digest.update(repr([[(tree.members, tree.trunk) for tree in row] for row in batch]).encode())
        whole = [[self.saes[layer].identity["sha256"] for layer in self.layers], TOKEN_BYTES] if self.whole else []
        key = sha256_of([VERSION, digest.hexdigest(), self.plan.prefix, list(self.layers), list(self.positions), *whole])
        note = self.scratch / "plan.json"
        if note.is_file() and read_json(note) == key:
            return
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        write_json(note, key)

    def _path(self, number: int) -> Path:
        return self.scratch / f"shard-{number:05d}.safetensors"

    # --- merging ---

    def merge(self, folder: Path) -> None:
        """Writes the shards' rows to one file for each layer and position, and what whole responses leave behind."""
        n, d_model = len(self.read.sequences), self.backbone.d_model
        keys = [(i, j) for i in range(len(self.layers)) for j in range(len(self.positions))]
        out = {(i, j): new_tensors(folder / states_name(self.layers[i], self.positions[j]), {"states": ("F32", (n, d_model))}) for i, j in keys}
        for number in range(len(self.plan.shards)):
            shard = load_file(self._path(number))
            for i, j in keys:
                out[i, j]["states"][shard["members"]] = shard["states"][:, i, j]
        if self.whole:
            self._merge_tokens(folder)
            for layer in self.layers:
                self._merge_activity(folder, layer)

    def _merge_tokens(self, folder: Path) -> None:
        """States of the kept responses' tokens, response by response, and the index that all layers share."""
        rows = np.flatnonzero(self.kept)
        lengths = self.read.n_tokens
        starts = np.concatenate([[0], np.cumsum(lengths[rows])]).astype(np.int64)
        begin_of_row = dict(zip(rows.tolist(), starts[:-1].tolist(), strict=True))
        own = np.concatenate([[0], np.cumsum(lengths)])
        places = [np.arange(own[row], own[row + 1]) for row in rows.tolist()]
        offsets = self.read.offsets[np.concatenate([np.zeros(0, dtype=np.int64), *places])]
        ids = np.concatenate([np.zeros(0, dtype=np.int32), *(self.read.own_ids(row) for row in rows.tolist())])
        save_arrays(folder / TOKEN_INDEX, {"rows": rows.astype(np.int64), "starts": starts, "ids": ids, "offsets": offsets})
        shape = (int(starts[-1]), self.backbone.d_model)
        out = {layer: new_tensors(folder / tokens_name(layer), {"states": ("F32", shape)})["states"] for layer in self.layers}
        for number in range(len(self.plan.shards)):
            shard = load_file(self._path(number))
            at = 0
            for member in shard["members"].tolist():
                if member in begin_of_row:
                    begin, length = begin_of_row[member], int(lengths[member])
                    for layer, states in out.items():
                        states[begin : begin + length] = shard[f"L{layer}.tokens"][at : at + length]
                    at += length

    def _merge_activity(self, folder: Path, layer: int) -> None:
        """Entries of all shards, sorted by latent and then by response: counted, laid out by blocks of latents, sorted."""
        d_sae = self.saes[layer].d_sae
        counts = np.zeros(d_sae, dtype=np.int64)
        for number in range(len(self.plan.shards)):
            counts += np.bincount(load_file(self._path(number))[f"L{layer}.latents"], minlength=d_sae)
        starts = np.concatenate([[0], np.cumsum(counts)])
        total = int(starts[-1])
        kinds = {"rows": "I32", "mean": "F32", "peak": "F32", "peak_token": "I32"}
        shapes = {"latent_starts": ("I64", (d_sae + 1,))} | {name: (kind, (total,)) for name, kind in kinds.items()}
        out = new_tensors(folder / activity_name(layer), shapes)
        out["latent_starts"][:] = starts
        latents = np.empty(total, dtype=np.int32) if total <= SORT_ENTRIES else np.memmap(self.scratch / "latents", "<i4", "w+", shape=(total,))
        block_of_latent = starts[:-1] // SORT_ENTRIES
        blocks, first = np.unique(block_of_latent, return_index=True)
        begins = starts[first]
        filled = begins.copy()
        for number in range(len(self.plan.shards)):
            shard = load_file(self._path(number))
            block = np.searchsorted(blocks, block_of_latent[shard[f"L{layer}.latents"]])
            for b in np.unique(block).tolist():
                mine = block == b
                place = slice(int(filled[b]), int(filled[b] + mine.sum()))
                latents[place] = shard[f"L{layer}.latents"][mine]
                for name in kinds:
                    out[name][place] = shard[f"L{layer}.{name}"][mine]
                filled[b] = place.stop
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), total], strict=True):
            order = np.lexsort((out["rows"][begin:end], latents[begin:end]))
            for name in kinds:
                out[name][begin:end] = out[name][begin:end][order]


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Saves arrays under their final name only when they are whole."""
    with whole_file(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)


def _hold_here(scratch: Path, number: int) -> None:
    """Where a kill test holds the extraction open: behind a shard it names."""
    if os.environ.get(HOLD) == f"extraction:{number}":
        (scratch / "held").touch()
        while True:
            time.sleep(0.05)

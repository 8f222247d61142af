"""The tokens on which each latent is active: one forward pass over a corpus, stored latent by latent on disk.

Activations are sparse: with 64 active latents of a token, a million tokens have 64 million, half a gigabyte. So all of
them are stored, and the figures of a latent are counts, not estimates from a sample. Documents are read in shards; a
shard holds, for each latent in turn, the tokens on which it is active and its activations there. A killed pass
continues after its last whole shard. Memory holds one batch and one shard.

Measured with one thread: keeping all of 4,608 latents takes 16 % of the time of SmolLM2's forward pass up to layer 16;
the pages of 9,216 latents from 62 million activations (drawn at random, over a million tokens) 42 s, 0.8 GB of memory,
and 0.7 GB on disk meanwhile.

Tokens of the messages' texts count, not the template's nor the first of a document (METHOD.md section 2).
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int, Int32
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from core.config import LatentsConfig
from core.errors import DataError
from core.files import read_json, whole_file, write_json
from core.sae.corpus import Dialogue
from core.sae.documents import Document, documents, stream_states
from core.types import JsonFields, Progress, no_progress, sha256_of

if TYPE_CHECKING:
    from torch import Tensor

    from core.backbone.model import Backbone
    from core.sae.autoencoder import SparseAutoencoder

SHARD_TOKENS = 32_768  # tokens of a shard, at least: documents are not divided
RENDER = 256  # dialogues tokenised at a time
NUMBERS = 2**24  # activations held at a time: 64 MiB
Column = tuple[np.ndarray, np.ndarray]  # of one latent: the tokens it is active on, rising, int64; its activations there, float32


@dataclass(frozen=True, kw_only=True)
class SourceCounts(JsonFields):
    """How the `n_dialogues` of a source were used: `n_read` were tokenised before there were enough tokens, of which
    the language model can't read `n_unreadable`; `n_documents_cut` documents lost `n_tokens_cut` tokens to the context.
    `left_out`: how many dialogues were left out before, by reason."""

    n_dialogues: int
    n_read: int = 0
    n_unreadable: int = 0
    n_documents_cut: int = 0
    n_tokens_cut: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TokenisedCorpus:
    """All documents in one row: token ids, which of them count, where each document begins (and the last ends), and the
    number of its source. `counts` holds for each source how much of it was read or left out."""

    ids: Int32[np.ndarray, " t"]
    counted: Bool[np.ndarray, " t"]
    starts: Int[np.ndarray, " n_documents_1"]
    source: Int[np.ndarray, " n_documents"]
    names: tuple[str, ...]
    counts: tuple[SourceCounts, ...]

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def n_counted(self) -> int:
        return int(self.counted.sum())

    @cached_property
    def bounds(self) -> tuple[Int[np.ndarray, " n_documents"], Int[np.ndarray, " n_documents"]]:
        """The first counted token of each document, and the place after its last one."""
        places = np.flatnonzero(self.counted)
        return places[np.searchsorted(places, self.starts[:-1])], places[np.searchsorted(places, self.starts[1:]) - 1] + 1

    def document_of(self, tokens: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The number of each token's document."""
        numbers: np.ndarray = np.searchsorted(self.starts, tokens, side="right") - 1
        return numbers

    def document(self, number: int) -> Document:
        begin, end = int(self.starts[number]), int(self.starts[number + 1])
        return Document(ids=self.ids[begin:end].astype(np.int64), content=self.counted[begin:end], ends=(), group="")

    def to_json(self) -> dict[str, object]:
        """The sizes of the whole and of each source, and how much was left out."""
        sizes = np.add.reduceat(self.counted, self.starts[:-1], dtype=np.int64)
        sources = [
            {"name": name, "documents": int((self.source == i).sum()), "tokens": int(sizes[self.source == i].sum()), **self.counts[i].to_json()}
            for i, name in enumerate(self.names)
        ]
        return {
            "documents": len(self),
            "tokens": self.n_counted,
            "unreadable_dialogues": sum(counts.n_unreadable for counts in self.counts),
            "sources": sources,
        }


def tokenise(
    sources: Mapping[str, Sequence[Dialogue]],
    backbone: Backbone,
    config: LatentsConfig,
    progress: Progress = no_progress,
    left_out: Mapping[str, Mapping[str, int]] | None = None,
) -> TokenisedCorpus:
    """Tokenises the sources one after the other, each in a random order, until `config.tokens` tokens count; no
    dialogue is divided. `left_out`: for each source how many dialogues its reader left out, by reason. Raises DataError
    if no token counts."""
    tokens, context, seed = config.tokens, config.context, config.seed
    kept: list[Document] = []
    source: list[int] = []
    counts: list[SourceCounts] = []
    counted = 0
    for number, (name, dialogues) in enumerate(sources.items()):
        tally: Counter[str] = Counter()
        order = np.random.default_rng([seed, number]).permutation(len(dialogues))
        for at in range(0, len(order) if counted < tokens else 0, RENDER):
            for parts in documents([dialogues[i] for i in order[at : at + RENDER]], backbone, context):
                if counted >= tokens:
                    break
                usable = [part for part in parts if part.content.any()]
                tally.update(n_read=1, n_unreadable=not parts)
                tally.update(n_documents_cut=sum(part.n_cut > 0 for part in usable), n_tokens_cut=sum(part.n_cut for part in usable))
                kept += usable
                source += [number] * len(usable)
                counted += sum(int(part.content.sum()) for part in usable)
            progress("tokenise", min(counted, tokens), tokens)
            if counted >= tokens:
                break
        counts.append(SourceCounts(n_dialogues=len(dialogues), left_out=(left_out or {}).get(name, {}), **tally))
    if not kept:
        raise DataError("the corpus has no token that counts", found=", ".join(sources) or "no source", remedy="give another --corpus")
    return TokenisedCorpus(
        ids=np.concatenate([document.ids for document in kept]).astype(np.int32),
        counted=np.concatenate([document.content for document in kept]),
        starts=np.concatenate([[0], np.cumsum([len(document.ids) for document in kept])]).astype(np.int64),
        source=np.array(source, dtype=np.int64),
        names=tuple(Path(name).name for name in sources),
        counts=tuple(counts),
    )


class Columns:
    """The activations of latents, read latent by latent from the shards of `read_columns`."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = list(shards)
        self._ends = np.stack([load_file(path)["ends"] for path in self.shards])
        self.counts: Int[np.ndarray, " n_latents"] = np.diff(self._ends, axis=1).sum(0)

    def chunks(self, most: int, entries: int) -> Iterator[tuple[int, int]]:
        """Ranges of at most `most` latents with at most `entries` activations together (a single one may exceed it)."""
        begin, inside = 0, 0
        for number, count in enumerate(self.counts.tolist()):
            if number > begin and (number - begin == most or inside + count > entries):
                yield begin, number
                begin, inside = number, 0
            inside += count
        yield begin, len(self.counts)

    def read(self, begin: int, end: int) -> list[Column]:
        """The columns of the latents `begin` to `end` (numbers among those asked for)."""
        parts: list[list[Column]] = [[] for _ in range(begin, end)]
        for path, ends in zip(self.shards, self._ends, strict=True):
            low, high = int(ends[begin]), int(ends[end])
            token, value = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
            if high > low:  # safetensors refuses to cut nothing off the end
                with safe_open(path, framework="numpy") as file:
                    token, value = (file.get_slice(name)[low:high] for name in ("token", "value"))
            for number, part in enumerate(parts):
                inside = slice(int(ends[begin + number]) - low, int(ends[begin + number + 1]) - low)
                part.append((token[inside].astype(np.int64), value[inside]))
        return [(np.concatenate([t for t, _ in part]), np.concatenate([v for _, v in part])) for part in parts]


def read_columns(
    corpus: TokenisedCorpus,
    backbone: Backbone,
    sae: SparseAutoencoder,
    *,
    layer: int,
    latents: Int[np.ndarray, " n_latents"] | None,
    scratch: Path,
    progress: Progress = no_progress,
) -> Columns:
    """Activations of these latents (None: all) on every counted token, in shards; existing shards are kept."""
    plan = _plan(corpus)
    _open_scratch(scratch, corpus, latents)
    total, fresh, started, paths = corpus.n_counted, 0, time.monotonic(), []
    for number, (begin, end) in enumerate(plan):
        path = scratch / f"shard-{number:05d}.safetensors"
        paths.append(path)
        done = int(corpus.counted[: corpus.starts[begin]].sum())
        if path.exists():
            continue
        active: list[tuple[np.ndarray, ...]] = []
        group = [corpus.document(i) for i in range(begin, end)]
        for members, states in stream_states(group, backbone, layer, backbone.config.tokens_per_batch):
            mask, places = _counted(corpus, [begin + i for i in members], states.shape[1])
            active += _active(sae, states[mask.to(states.device)], latents, places)
            done, fresh = done + len(places), fresh + len(places)
            progress("activations", done, total, tokens_per_s=fresh / max(time.monotonic() - started, 1e-9))
        _save_shard(path, active, sae.d_sae if latents is None else len(latents))
    progress("activations", total, total)
    return Columns(paths)


def _plan(corpus: TokenisedCorpus) -> list[tuple[int, int]]:
    """The first document of each shard, and the one after its last."""
    edges = [0]
    for number in range(1, len(corpus) + 1):
        if corpus.starts[number] - corpus.starts[edges[-1]] >= SHARD_TOKENS or number == len(corpus):
            edges.append(number)
    return list(itertools.pairwise(edges))


def _counted(corpus: TokenisedCorpus, members: Sequence[int], width: int) -> tuple[Tensor, Int[np.ndarray, " n"]]:
    """Mask [b, width] of the counted tokens of these documents, and their places in the corpus in the mask's order."""
    import torch

    mask = np.zeros((len(members), width), dtype=bool)
    for row, number in enumerate(members):
        counted = corpus.counted[corpus.starts[number] : corpus.starts[number + 1]]
        mask[row, : len(counted)] = counted
    rows, columns = np.nonzero(mask)
    return torch.from_numpy(mask), corpus.starts[np.array(members)[rows]] + columns


def _active(
    sae: SparseAutoencoder, z: Tensor, latents: Int[np.ndarray, " n_latents"] | None, places: Int[np.ndarray, " n"]
) -> Iterator[tuple[np.ndarray, ...]]:
    """(latent, token, activation) of everything above 0; latents by their number among those asked for."""
    step = max(1, NUMBERS // sae.d_sae)
    for at in range(0, len(z), step):
        rows = z[at : at + step].to(sae.device)
        f = sae.encode(rows) if latents is None else sae.encode_latents(rows, latents)
        row, latent = f.nonzero(as_tuple=True)
        value = f[row, latent].float().cpu().numpy()
        yield latent.cpu().numpy().astype(np.int32), places[at + row.cpu().numpy()].astype(np.int32), value


def _save_shard(path: Path, active: Sequence[tuple[np.ndarray, ...]], n_latents: int) -> None:
    """Sorted by latent, then token; `ends[i]` to `ends[i + 1]` is latent i's part. Written whole or not at all."""
    latent, token, value = (np.concatenate(part) for part in zip(*active, strict=True))
    order = np.lexsort((token, latent))
    ends = np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=n_latents))]).astype(np.int64)
    with whole_file(path) as temporary:
        save_file({"ends": ends, "token": token[order], "value": value[order]}, temporary)


def _open_scratch(scratch: Path, corpus: TokenisedCorpus, latents: Int[np.ndarray, " n_latents"] | None) -> None:
    """Keeps the shards of an earlier, killed pass only if it read the same tokens for the same latents."""
    digest = hashlib.sha256()
    for part in (corpus.ids, corpus.counted, corpus.starts):
        digest.update(part.tobytes())
    key = sha256_of([digest.hexdigest(), None if latents is None else latents.tolist()])
    note = scratch / "plan.json"
    if note.is_file() and read_json(note) == key:
        return
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_json(note, key)

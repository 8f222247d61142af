"""A page a latent, in Neuronpedia's field names: texts on which it is active, tokens it promotes (METHOD.md section 4).

`build` makes the pages from a corpus: one forward pass stores every activation (core.latents.columns), then the pages
are written latent by latent from complete counts. `load_pages(folder)` reads one page at a time, without torch.

features.jsonl, one row a latent, rising
    modelId, layer, index               language model, source (layer and SAE), latent (a string, as at Neuronpedia)
    pos_str, pos_values                 the ten tokens whose logits the decoder row raises most, and by how much
    neg_str, neg_values                 the ten it lowers most, lowest first
    logits_hist_data_bar_values, _heights   histogram of its effect on all tokens: centres of 40 equal bars, counts
    frac_nonzero, maxActApprox          share of counted tokens it is active on; its highest activation there
    freq_hist_data_bar_values, _heights activations above 0: 40 equal bars from 0 to maxActApprox
    topkCosSimIndices, topkCosSimValues the ten other latents whose decoder rows have the highest cosine with this one's
    activations                         texts (core.latents.windows): first the highest (binMin, binContains -1), binMax
                                        the highest activation; then by interval binMin < maximum <= binMax, which holds
                                        the share binContains of all activations above 0. `tokens`, `values` (0 where it
                                        is not active or the token does not count), `minValue`, `maxValue`,
                                        `maxValueTokenIndex`, `dataIndex` (number of the document in the corpus),
                                        `dataSource` (its source), and our field `template`: the places of tokens that
                                        belong to the chat template
    inactive                            our field: rows of snippets.jsonl in which the latent is nowhere active
snippets.jsonl    windows of the same length around random tokens: `tokens`, `dataIndex`, `dataSource`, `template`
corpus.json       documents and counted tokens that were read, in all and of each source (with its counts of dialogues:
                  core.latents.columns.SourceCounts); how many latents have pages, how many are active anywhere
index.safetensors latent ids, and where their rows begin in features.jsonl (the last number is its end)
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from core.config import LatentsConfig
from core.errors import MissingError, StoreError
from core.files import read_json, read_json_lines, write_bytes, write_json, write_json_lines
from core.latents.columns import Columns, TokenisedCorpus, read_columns
from core.latents.page_maker import Feature as Feature
from core.latents.page_maker import PageMaker, Snippet
from core.types import Progress, no_progress

if TYPE_CHECKING:
    from core.backbone.model import Backbone
    from core.backbone.unembedding import Unembedding
    from core.sae.autoencoder import SparseAutoencoder

FEATURES, SNIPPETS, CORPUS, INDEX = "features.jsonl", "snippets.jsonl", "corpus.json", "index.safetensors"
PAGES, ENTRIES = 64, 2**23  # latents whose pages are made at a time, and their activations in memory


class LatentPages(Mapping[int, Feature]):
    """Pages by latent id, read when needed; `snippets` and `corpus` as documented above. StoreError without them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = load_file(folder / INDEX)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{folder} holds no pages of latents", expected=INDEX, found=str(error), remedy="sparserm latents MODEL") from error
        self.latents: Int[np.ndarray, " n"] = index["latent"]
        self._rows = dict(zip(self.latents.tolist(), itertools.pairwise(index["offset"].tolist()), strict=True))

    def __getitem__(self, latent: int) -> Feature:
        begin, end = self._rows[latent]
        with (self.folder / FEATURES).open("rb") as file:
            file.seek(begin)
            feature: Feature = json.loads(file.read(end - begin))
        return feature

    def __contains__(self, latent: object) -> bool:
        return latent in self._rows

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def page(self, latent: int) -> Feature:
        """As `pages[latent]`, but raises MissingError with a remedy if there is no such page."""
        if latent not in self:
            held = f"pages of {len(self):,} latents, from {self.corpus['tokens']:,} tokens"
            remedy = (
                "it is active on none of these tokens: give more, or another --corpus" if self.corpus["every"] else f"--latent {latent}, or --all"
            )
            raise MissingError(f"there is no page of latent {latent}", found=held, remedy=remedy)
        return self[latent]

    @cached_property
    def snippets(self) -> list[Snippet]:
        return read_json_lines(self.folder / SNIPPETS)

    @cached_property
    def corpus(self) -> Mapping[str, Any]:
        content: Mapping[str, Any] = read_json(self.folder / CORPUS)
        return content


def load_pages(folder: Path) -> LatentPages:
    """The pages that `build` wrote. Raises StoreError if there are none."""
    return LatentPages(folder)


def build(
    corpus: TokenisedCorpus,
    backbone: Backbone,
    sae: SparseAutoencoder,
    unembedding: Unembedding,
    config: LatentsConfig,
    *,
    layer: int,
    latents: Sequence[int],
    every: bool = False,
    names: tuple[str, str],
    folder: Path,
    scratch: Path,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Writes the pages of these latents, and with `every` of all others that are active anywhere in the corpus, into
    `folder`. Resumes from `scratch`. `names`: modelId, source id. Returns the manifest's facts."""
    chosen = np.unique(np.asarray(latents, dtype=np.int64))
    read = np.arange(sae.d_sae) if every else chosen
    columns = read_columns(corpus, backbone, sae, layer=layer, latents=None if every else chosen, scratch=scratch, progress=progress)
    maker = PageMaker(corpus=corpus, tokenizer=backbone.tokenizer, sae=sae, unembedding=unembedding, config=config, names=names)
    shown = (columns.counts > 0) | np.isin(read, chosen)
    return write_pages(maker, columns, read, shown, folder, scratch, every=every, progress=progress)


def write_pages(
    maker: PageMaker,
    columns: Columns,
    latents: Int[np.ndarray, " n"],
    shown: Bool[np.ndarray, " n"],
    folder: Path,
    scratch: Path,
    *,
    every: bool,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Writes the pages of the `shown` ones of these latents, whose columns these are, and all other files of the folder.
    Returns the manifest's facts."""
    offsets = _write_features(maker, columns, latents, shown, folder, scratch, progress)
    write_json_lines(folder / SNIPPETS, [maker.snippet(*span) for span in maker.windows.snippets])
    facts = {**maker.corpus.to_json(), "latents": int(shown.sum()), "live": int((columns.counts > 0).sum()), "every": every}
    write_json(folder / CORPUS, facts)
    index = {"latent": latents[shown].astype(np.int64), "offset": np.array(offsets, dtype=np.int64)}
    write_bytes(folder / INDEX, save(index))
    return facts


def _write_features(
    maker: PageMaker, columns: Columns, latents: Int[np.ndarray, " n"], shown: Bool[np.ndarray, " n"], folder: Path, scratch: Path, progress: Progress
) -> list[int]:
    """Makes the pages part by part, joins the parts, and returns where each row begins, and the end."""
    parts = []
    for begin, end in columns.chunks(PAGES, ENTRIES):
        parts.append(scratch / f"pages-{begin:06d}-{end:06d}.jsonl")
        progress("pages", begin, len(latents))
        kept = np.flatnonzero(shown[begin:end])
        if not parts[-1].exists():
            read = columns.read(begin, end)
            write_json_lines(parts[-1], list(maker.pages(latents[begin:end][kept], [read[i] for i in kept])))
    progress("pages", len(latents), len(latents))
    offsets = [0]
    with (folder / FEATURES).open("wb") as file:
        for part in parts:
            for line in part.read_bytes().splitlines(keepends=True):
                offsets.append(offsets[-1] + file.write(line))
    return offsets

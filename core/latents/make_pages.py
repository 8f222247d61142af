"""Makes the pages of a model's latents that the cache lacks: loads language model, SAE and unembedding.

`core.latents.find_pages` finds them again, `core.latents.pages` describes their content.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.backbone.estimate import check_disk, estimate_latents
from core.backbone.model import Backbone
from core.backbone.presets import source_names
from core.backbone.source import find_model
from core.backbone.unembedding import load_unembedding
from core.config import LatentsConfig
from core.data.pairs_file import read_pairs
from core.errors import BackboneError, DataError, MissingError
from core.latents.columns import tokenise
from core.latents.find_pages import PAIRS, STEP, corpora, corpus_inputs, find_pages, request
from core.latents.pages import LatentPages, build, load_pages
from core.reward.folder import ModelFolder
from core.reward.model import BackboneReader, SparseRM, check_same_sae
from core.reward.recorded_files import KNOWN_TEXTS
from core.runs.versions import VERSIONS
from core.sae.autoencoder import SparseAutoencoder, load_sae
from core.sae.corpus import Dialogue, load_corpus, pair_dialogues
from core.types import Progress, no_progress, sha256_of

USUAL_L0 = 64.0  # active latents of a token, for the estimate, where the SAE's identity gives none
Source = tuple[Sequence[Dialogue], Mapping[str, int]]  # dialogues, and how many were left out for each reason
log = logging.getLogger(__name__)


def make_pages(
    folder: ModelFolder,
    config: LatentsConfig,
    latents: Sequence[int] = (),
    *,
    every: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
) -> LatentPages:
    """As `find_pages`, but makes the pages if the cache does not hold them.

    Raises ConfigError for a latent that the SAE does not have and for a model without an SAE, MissingError where the
    corpus names pairs and none are kept, DataError or BackboneError for another corpus that can't be had, and what
    loading backbone and SAE raises.
    """
    pages = find_pages(folder, config, latents, every=every)
    if pages is not None:
        return pages
    sources = _sources(folder, config, progress)
    inputs, asked = corpus_inputs(folder, tuple(sources)), request(folder, config, tuple(sources), latents, every=every)
    assert inputs is not None  # all of the sources have just been read

    def make(target: Path, scratch: Path) -> Mapping[str, Any]:
        return _build(folder, config, sources, asked, device, target, scratch, progress)

    return load_pages(folder.store.get_or_make(STEP, VERSIONS[STEP], asked, inputs, make).path)


def _sources(folder: ModelFolder, config: LatentsConfig, progress: Progress) -> dict[str, Source]:
    """The dialogues of each part of the corpus; a warning for each default part that can't be had and is left out."""
    names = corpora(config)[0]
    if len(corpora(config)) == 1:
        return {name: _dialogues(folder, name, progress) for name in names}
    sources: dict[str, Source] = {}
    for name in names:
        try:
            sources[name] = _dialogues(folder, name, progress)
        except (BackboneError, DataError, MissingError) as error:  # BackboneError: a wheel that can't be fetched
            log.warning("the latents' pages are made without %s: %s", name, error.problem)
    if not sources:
        raise MissingError("there is no text to read latents on", remedy="--corpus FILE")
    return sources


def _dialogues(folder: ModelFolder, name: str, progress: Progress) -> Source:
    if name != PAIRS:
        corpus = load_corpus(name, root=folder.root, progress=progress)
        ((_, counts),) = corpus.report.items()
        return corpus.dialogues, {why: n for why, n in counts.items() if why not in ("read", "kept")}
    path = folder.path / KNOWN_TEXTS
    if not path.is_file():
        raise MissingError("the pairs of this reward model are not kept beside it", expected=str(path), remedy="--corpus chitchat, or files")
    dialogues = list(pair_dialogues(read_pairs(path)))
    distinct = {sha256_of(list(dialogue.messages)): dialogue for dialogue in dialogues}
    repeated = len(dialogues) - len(distinct)
    return list(distinct.values()), {"duplicate": repeated} if repeated else {}


def _build(
    folder: ModelFolder,
    config: LatentsConfig,
    sources: Mapping[str, Source],
    asked: Mapping[str, Any],
    device: str,
    target: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    model = SparseRM.load(folder.path, device=device)
    assert isinstance(model.reader, BackboneReader) and model.parts.sae_config is not None  # as every model with latents that comes from a folder
    backbone = model.reader.backbone
    sae = load_sae(model.parts.sae_config, device=str(backbone.device), progress=progress)
    check_same_sae(model.parts.sae or {}, sae.identity)
    dialogues = {name: read for name, (read, _) in sources.items()}
    left_out = {name: counts for name, (_, counts) in sources.items()}
    corpus = tokenise(dialogues, backbone, config, progress, left_out)
    _check_estimate(folder, backbone, sae, len(corpus.ids), sae.d_sae if asked["every"] else len(asked["latents"]))
    return build(
        corpus,
        backbone,
        sae,
        load_unembedding(backbone.config, progress=progress),
        config,
        layer=model.parts.layer,
        latents=asked["latents"],
        every=asked["every"],
        names=source_names(sae.identity),
        folder=target,
        scratch=scratch,
        progress=progress,
    )


def _check_estimate(folder: ModelFolder, backbone: Backbone, sae: SparseAutoencoder, n_tokens: int, n_latents: int) -> None:
    """Logs what making the pages will take. Raises where the disk has too little space for them."""
    estimate = estimate_latents(
        backbone.config,
        find_model(backbone.config),
        backbone.identity,
        depth=folder.parts.layer + 1,
        d_sae=sae.d_sae,
        l0=float(sae.identity.get("expected_l0") or sae.k or USUAL_L0),
        n_latents=n_latents,
        n_tokens=n_tokens,
    )
    log.info("pages of %d latents over %d tokens: %s", n_latents, n_tokens, estimate)
    check_disk(estimate, folder.root)

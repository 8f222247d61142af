"""Pages of the selected latents from the training responses that a fit read whole: no language model runs again.

The extraction keeps the states of single tokens (core.reward.hidden_states.TokenStates). The SAE's activity on those of
training responses makes the same pages as a corpus does (core.latents.pages): the strongest contexts of each latent, and
some of each part of its range. They stand in the cache as soon as a fit is done; pages from a larger corpus
(`sparserm latents`) go before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.numpy import save_file

from core.backbone.loading import load_tokenizer
from core.backbone.presets import source_names
from core.backbone.source import find_model
from core.backbone.unembedding import load_unembedding
from core.config import BackboneConfig, LatentsConfig
from core.latents.columns import Columns, SourceCounts, TokenisedCorpus
from core.latents.find_pages import FIT, identities_of
from core.latents.page_maker import PageMaker
from core.latents.pages import write_pages
from core.reward.hidden_states import HiddenStates, TokenStates
from core.sae.autoencoder import SparseAutoencoder, row_chunks
from core.types import PreferencePairs, Progress, no_progress

CORPUS = "training responses"
NOT_KEPT = "its tokens were not kept"  # why a training response is left out


def evidence_inputs(sae: Mapping[str, Any], backbone: Mapping[str, Any], extraction: str, pairs: str) -> list[str]:
    """What the pages follow from: SAE, language model, the fingerprints of the extraction and of the split pairs."""
    return [*identities_of(sae, backbone), extraction, pairs]


def evidence_config(config: LatentsConfig, layer: int, latents: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """The artefact's config fields, as `core.latents.find_pages.request` gives them for a corpus."""
    return {**config.result_fields(), "corpus": [FIT], "layer": layer, "latents": sorted(set(latents.tolist())), "every": False}


def make_evidence(
    hidden: HiddenStates,
    pairs: PreferencePairs,
    sae: SparseAutoencoder,
    backbone: BackboneConfig,
    config: LatentsConfig,
    latents: Int[np.ndarray, " n"],
    folder: Path,
    scratch: Path,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Writes the pages of these latents into `folder`. `pairs[i]` is the pair of `hidden.chosen_rows[i]`. Returns the
    manifest's facts. Raises BackboneError where the language model's head or tokenizer can't be had."""
    assert hidden.tokens is not None  # the whole response is read
    train = pairs.rows_of("train")
    rows = np.unique(np.concatenate([hidden.chosen_rows[train], hidden.rejected_rows[train]]))
    corpus, tokens = _corpus(hidden.tokens, rows)
    chosen = np.unique(latents)
    columns = _columns(hidden.tokens, tokens, sae, chosen, scratch, progress)
    source = find_model(backbone)
    tokenizer = load_tokenizer(source.folder, source.name)
    unembedding = load_unembedding(backbone, progress=progress)
    maker = PageMaker(corpus=corpus, tokenizer=tokenizer, sae=sae, unembedding=unembedding, config=config, names=source_names(sae.identity))
    return write_pages(maker, columns, chosen, np.ones(len(chosen), dtype=bool), folder, scratch, every=False, progress=progress)


def _corpus(kept: TokenStates, rows: Int[np.ndarray, " n"]) -> tuple[TokenisedCorpus, Int[np.ndarray, " t"]]:
    """The kept ones of these responses as documents, all of whose tokens count; and their tokens' places."""
    places = kept.places(rows)
    parts = [kept.tokens(place) for place in places[places >= 0].tolist()]
    tokens = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(part.start, part.stop) for part in parts)])
    corpus = TokenisedCorpus(
        ids=kept.ids[tokens],
        counted=np.ones(len(tokens), dtype=bool),
        starts=np.concatenate([[0], np.cumsum([part.stop - part.start for part in parts])]).astype(np.int64),
        source=np.zeros(len(parts), dtype=np.int64),
        names=(CORPUS,),
        counts=(
            SourceCounts(n_dialogues=len(parts), n_read=len(parts), left_out={NOT_KEPT: len(rows) - len(parts)} if len(parts) < len(rows) else {}),
        ),
    )
    return corpus, tokens


def _columns(
    kept: TokenStates, tokens: Int[np.ndarray, " t"], sae: SparseAutoencoder, latents: Int[np.ndarray, " n"], scratch: Path, progress: Progress
) -> Columns:
    """The activity of these latents on these tokens, as `core.latents.columns.read_columns` stores it."""
    active: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    at = 0
    for rows in row_chunks(sae, torch.from_numpy(np.asarray(kept.states[tokens], dtype=np.float32))):
        f = sae.encode_latents(rows, latents)
        token, latent = (part.cpu().numpy() for part in f.nonzero(as_tuple=True))
        active.append((latent, token + at, f.cpu().numpy()[token, latent]))
        at += len(rows)
        progress("evidence", at, len(tokens))
    latent, token, value = (np.concatenate(part) for part in zip(*active, strict=True))
    order = np.lexsort((token, latent))
    ends = np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=len(latents)))]).astype(np.int64)
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "evidence.safetensors"
    save_file({"ends": ends, "token": token[order].astype(np.int32), "value": value[order]}, path)
    return Columns([path])

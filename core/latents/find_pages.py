"""Finds the pages of a model's latents in the cache, by SAE, language model, corpus and config; loads no engine.

Pages are not part of a fit, which they would make several times as long, and they serve every fit with the same SAE,
language model and text. Pages of more latents than are asked for serve too, so `--all`, once made, serves every reward
model of the same SAE on the same pairs. `core.latents.make_pages` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.config import LatentsConfig
from core.errors import ConfigError
from core.latents.pages import LatentPages, load_pages
from core.reward.folder import ModelFolder
from core.reward.recorded_files import KNOWN_TEXTS, sha256_of_file
from core.runs.store import Artefact
from core.runs.versions import VERSIONS
from core.sae.corpus import CHITCHAT_SHA256
from core.types import sha256_of

STEP = "latents"
# Parts of a corpus: the texts kept beside the reward model, the embedded dialogues; and what a fit leaves by itself, the
# training responses that it read whole (core.latents.fit_evidence).
PAIRS, CHITCHAT, FIT = "pairs", "chitchat", "fit"


def selected_latents(folder: ModelFolder) -> list[int]:
    """The latents that the reward model reads, rising. Raises ConfigError where it has none."""
    parts = folder.parts
    if parts.latent_ids is None or parts.sae is None:
        raise ConfigError(f"this reward model ({parts.kind}) has no latents", expected="a SparseRM, or a control that reads an SAE's latents")
    return sorted(set(parts.latent_ids.tolist()))


def find_pages(folder: ModelFolder, config: LatentsConfig, latents: Sequence[int] = (), *, every: bool = False) -> LatentPages | None:
    """The pages of the selected latents and these (with `every`, of all live ones) that were made with this config;
    None without. Where the config leaves the corpus open, pages from pairs and chitchat are preferred to pages from one
    of them."""
    selected = selected_latents(folder)
    for names in corpora(config):
        inputs, asked = corpus_inputs(folder, names), request(folder, config, names, latents, every=every)
        for _, artefact in folder.store.all(STEP):
            if isinstance(artefact, Artefact) and inputs and _serves(artefact, asked, inputs):
                pages = load_pages(artefact.path)
                if all(latent in pages for latent in selected):  # a latent that is active nowhere may have no page among all live ones
                    return pages
    return None


def find_any_pages(folder: ModelFolder, latents: Sequence[int] = ()) -> LatentPages | None:
    """The newest pages of the selected latents and these, from whatever text they were made, those of a fit's own
    responses last; None without."""
    wanted, identities = {*selected_latents(folder), *latents}, identities_of(folder.parts.sae or {}, folder.parts.backbone)
    artefacts = [artefact for _, artefact in folder.store.all(STEP) if isinstance(artefact, Artefact)]
    same = [artefact for artefact in artefacts if artefact.manifest["inputs"][:2] == identities]

    def rank(artefact: Artefact) -> tuple[bool, float]:
        return artefact.manifest["config"]["corpus"] != [FIT], float(artefact.manifest["time_created"])

    for artefact in sorted(same, key=rank, reverse=True):
        held = artefact.manifest["config"]
        if artefact.manifest["version"] == VERSIONS[STEP] and (held["every"] or set(held["latents"]) >= wanted):
            return load_pages(artefact.path)
    return None


# --- what identifies them ---


def corpora(config: LatentsConfig) -> list[tuple[str, ...]]:
    """The corpora that the config may mean, the preferred one first; one where the config names it."""
    names = tuple(name.strip() for name in config.corpus.split(",") if name.strip())
    return [names] if names else [(PAIRS, CHITCHAT), (PAIRS,), (CHITCHAT,)]


def request(folder: ModelFolder, config: LatentsConfig, names: Sequence[str], latents: Sequence[int], *, every: bool) -> dict[str, Any]:
    """The config fields of the artefact that is asked for. Raises ConfigError for a latent beyond the SAE."""
    wanted = sorted({*selected_latents(folder), *latents})
    width = int((folder.parts.sae or {})["d_sae"])
    unknown = [latent for latent in wanted if not 0 <= latent < width]
    if unknown:
        raise ConfigError(f"the SAE has no latent {unknown[0]}", expected=f"0 to {width - 1}")
    return {**config.result_fields(), "corpus": [Path(name).name for name in names], "layer": folder.parts.layer, "latents": wanted, "every": every}


def corpus_inputs(folder: ModelFolder, names: Sequence[str]) -> list[str] | None:
    """The artefact's inputs: SAE, language model, each part of the corpus. None where a part is missing."""
    files = {name: folder.path / KNOWN_TEXTS if name == PAIRS else Path(name).expanduser() for name in names if name != CHITCHAT}
    if not all(file.is_file() for file in files.values()):
        return None
    return [
        *identities_of(folder.parts.sae or {}, folder.parts.backbone),
        *(sha256_of_file(files[name]) if name in files else CHITCHAT_SHA256 for name in names),
    ]


def identities_of(sae: Mapping[str, Any], backbone: Mapping[str, Any]) -> list[str]:
    """SAE and language model, as the first inputs of the artefact name them."""
    return [str(sae.get("sha256")), sha256_of(dict(backbone))]


def _serves(artefact: Artefact, asked: Mapping[str, Any], inputs: list[str]) -> bool:
    """Whether these pages hold what is asked for; a dead latent needs none where all live ones have theirs."""
    manifest, held = artefact.manifest, artefact.manifest["config"]
    same = (manifest["version"], manifest["inputs"]) == (VERSIONS[STEP], inputs)
    same = same and {**held, "latents": 0, "every": 0} == {**asked, "latents": 0, "every": 0}
    return same and (held["every"] or (not asked["every"] and set(held["latents"]) >= set(asked["latents"])))

"""The pages of a reward model's latents as artefacts: found again by SAE, language model, corpus and config, whichever fit they were made for.

They are not part of a fit, which they would make several times as long. Pages of more latents than are asked for serve too, so `--all`, once made,
serves every reward model of the same SAE on the same pairs.

Nothing heavy is imported before something is computed, so a page finds and reads them without an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import LatentsConfig
from core.errors import BackboneError, ConfigError, DataError, MissingError
from core.latents.pages import LatentPages, load_pages
from core.reward.recorded_files import KNOWN_TEXTS, sha256_of_file
from core.runs.store import Artefact, Store
from core.types import Progress, no_progress, sha256_of

if TYPE_CHECKING:
    from core.backbone.model import Backbone
    from core.reward.parts import RewardParts
    from core.sae.autoencoder import SparseAutoencoder
    from core.sae.corpus import Dialogue

STEP, VERSION = "latents", 2  # the version is raised by hand when something else is computed from the same inputs
USUAL_L0 = 64.0  # active latents a token, where nothing says how many; only an estimate hangs on it
PAIRS, CHITCHAT = "pairs", "chitchat"
Source = tuple["Sequence[Dialogue]", Mapping[str, int]]  # dialogues, and how many were left out for what
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FittedLatents:
    """A reward model's folder, and the cache that its latents' pages lie in."""

    folder: Path
    store: Store

    def find(self, config: LatentsConfig, latents: Sequence[int] = (), *, every: bool = False) -> LatentPages | None:
        """The pages of the selected latents and these (with `every`, of all live ones), if they were made with this config. Loads no engine.

        Where the config leaves the corpus open, pages from pairs and chitchat are preferred to pages from one of them.
        """
        for names in self._corpora(config):
            inputs, asked = self._inputs(names), self._asked(config, names, latents, every=every)
            for _, found in self.store.all(STEP):
                if isinstance(found, Artefact) and inputs and self._serves(found, asked, inputs):
                    pages = load_pages(found.path)
                    if all(latent in pages for latent in self.selected()):  # one that is active nowhere may have no page among all live ones
                        return pages
        return None

    def find_any(self, latents: Sequence[int] = ()) -> LatentPages | None:
        """The newest pages of the selected latents and these, whatever text they were made from. Loads no engine."""
        wanted = {*self.selected(), *latents}
        ours = [str((self.parts.sae or {}).get("sha256")), sha256_of(dict(self.parts.backbone))]
        made = [found for _, found in self.store.all(STEP) if isinstance(found, Artefact) and found.manifest["inputs"][:2] == ours]
        for found in sorted(made, key=lambda artefact: artefact.manifest["time_created"], reverse=True):
            held = found.manifest["config"]
            if found.manifest["version"] == VERSION and (held["every"] or set(held["latents"]) >= wanted):
                return load_pages(found.path)
        return None

    def pages(
        self, config: LatentsConfig, latents: Sequence[int] = (), *, every: bool = False, device: str = "auto", progress: Progress = no_progress
    ) -> LatentPages:
        """As `find`, made where they do not stand.

        Raises ConfigError for a latent that the SAE does not have and for a model without an SAE, MissingError where the corpus names pairs and none
        are kept, DataError or BackboneError for another corpus that can't be had, and what loading backbone and SAE raises.
        """
        found = self.find(config, latents, every=every)
        if found is not None:
            return found
        sources = self._sources(config, progress)
        names = tuple(sources)
        inputs = self._inputs(names)
        assert inputs is not None  # all of the sources have just been read
        asked = self._asked(config, names, latents, every=every)

        def make(folder: Path, scratch: Path) -> Mapping[str, Any]:
            return self._make(config, sources, asked, device, folder, scratch, progress)

        return load_pages(self.store.get_or_make(STEP, VERSION, asked, inputs, make).path)

    def selected(self) -> list[int]:
        """The latents that the reward model reads, rising. Raises ConfigError where it has none."""
        if self.parts.latent_ids is None or self.parts.sae is None:
            raise ConfigError(
                f"this reward model ({self.parts.kind}) has no latents", expected="a SparseRM, or a control that reads an SAE's latents"
            )
        return sorted(set(self.parts.latent_ids.tolist()))

    @cached_property
    def parts(self) -> RewardParts:
        from core.reward.folder import read_parts

        return read_parts(self.folder)

    # --- what names them ---

    def _asked(self, config: LatentsConfig, names: Sequence[str], latents: Sequence[int], *, every: bool) -> dict[str, Any]:
        wanted = sorted({*self.selected(), *latents})
        width = int((self.parts.sae or {})["d_sae"])
        unknown = [latent for latent in wanted if not 0 <= latent < width]
        if unknown:
            raise ConfigError(f"the SAE has no latent {unknown[0]}", expected=f"0 to {width - 1}")
        return {**config.result_fields(), "corpus": [Path(name).name for name in names], "layer": self.parts.layer, "latents": wanted, "every": every}

    def _inputs(self, names: Sequence[str]) -> list[str] | None:
        """What SAE, language model and corpus are. None where a part of the corpus is not at hand."""
        from core.sae.corpus import CHITCHAT_SHA256

        files = {name: self.folder / KNOWN_TEXTS if name == PAIRS else Path(name).expanduser() for name in names if name != CHITCHAT}
        if not all(file.is_file() for file in files.values()):
            return None
        corpus = [sha256_of_file(files[name]) if name in files else CHITCHAT_SHA256 for name in names]
        return [str((self.parts.sae or {}).get("sha256")), sha256_of(dict(self.parts.backbone)), *corpus]

    def _serves(self, found: Artefact, asked: Mapping[str, Any], inputs: list[str]) -> bool:
        """Whether these pages hold what is asked; a latent that is active nowhere needs none where all live ones have theirs."""
        manifest, held = found.manifest, found.manifest["config"]
        same = (manifest["version"], manifest["inputs"]) == (VERSION, inputs)
        same = same and {**held, "latents": 0, "every": 0} == {**asked, "latents": 0, "every": 0}
        return same and (held["every"] or (not asked["every"] and set(held["latents"]) >= set(asked["latents"])))

    # --- what they are made from ---

    def _corpora(self, config: LatentsConfig) -> list[tuple[str, ...]]:
        """The corpora that the config may mean, the first one the best."""
        names = tuple(name.strip() for name in config.corpus.split(",") if name.strip())
        return [names] if names else [(PAIRS, CHITCHAT), (PAIRS,), (CHITCHAT,)]

    def _sources(self, config: LatentsConfig, progress: Progress) -> dict[str, Source]:
        """The dialogues of each part of the corpus, and how many of them were left out for what. What the config leaves open and can't be had is left
        out with a word."""
        given = self._corpora(config)
        if len(given) == 1:
            return {name: self._dialogues(name, progress) for name in given[0]}
        found: dict[str, Source] = {}
        for name in given[0]:
            try:
                found[name] = self._dialogues(name, progress)
            except (BackboneError, DataError, MissingError) as error:  # BackboneError: a wheel that can't be fetched
                log.warning("the latents' pages are made without %s: %s", name, error.problem)
        if not found:
            raise MissingError("there is no text to read latents on", remedy="--corpus FILE")
        return found

    def _dialogues(self, name: str, progress: Progress) -> Source:
        from core.data.pairs_file import read_pairs
        from core.sae.corpus import load_corpus, pair_dialogues

        if name != PAIRS:
            corpus = load_corpus(name, root=self.store.root, progress=progress)
            ((_, counts),) = corpus.report.items()
            return corpus.dialogues, {why: n for why, n in counts.items() if why not in ("read", "kept")}
        path = self.folder / KNOWN_TEXTS
        if not path.is_file():
            raise MissingError("the pairs of this reward model are not kept beside it", expected=str(path), remedy="--corpus chitchat, or files")
        dialogues = list(pair_dialogues(read_pairs(path)))
        distinct = {sha256_of(list(dialogue.messages)): dialogue for dialogue in dialogues}
        repeated = len(dialogues) - len(distinct)
        return list(distinct.values()), {"duplicate": repeated} if repeated else {}

    def _make(
        self,
        config: LatentsConfig,
        sources: Mapping[str, Source],
        asked: Mapping[str, Any],
        device: str,
        folder: Path,
        scratch: Path,
        progress: Progress,
    ) -> dict[str, Any]:
        from core.backbone.presets import source_names
        from core.backbone.unembedding import load_unembedding
        from core.latents.columns import tokenise
        from core.latents.pages import build
        from core.reward.model import BackboneReader, SparseRM, check_same_sae
        from core.sae.autoencoder import load_sae

        model = SparseRM.load(self.folder, device=device)
        assert isinstance(model.reader, BackboneReader) and self.parts.sae_config is not None  # as every model with latents that comes from a folder
        backbone = model.reader.backbone
        sae = load_sae(self.parts.sae_config, device=str(backbone.device), progress=progress)
        check_same_sae(self.parts.sae or {}, sae.identity)
        dialogues = {name: read for name, (read, _) in sources.items()}
        left_out = {name: counts for name, (_, counts) in sources.items()}
        corpus = tokenise(dialogues, backbone, config, progress, left_out)
        self._say_estimate(backbone, sae, len(corpus.ids), sae.d_sae if asked["every"] else len(asked["latents"]))
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
            folder=folder,
            scratch=scratch,
            progress=progress,
        )

    def _say_estimate(self, backbone: Backbone, sae: SparseAutoencoder, n_tokens: int, n_latents: int) -> None:
        """Says what it will take, and refuses to start on a full disk."""
        from core.backbone.estimate import check_disk, estimate_latents
        from core.backbone.source import find_model

        config, l0 = backbone.config, float(sae.identity.get("expected_l0") or sae.k or USUAL_L0)
        estimate = estimate_latents(
            config,
            find_model(config),
            backbone.identity,
            depth=self.parts.layer + 1,
            d_sae=sae.d_sae,
            l0=l0,
            n_latents=n_latents,
            n_tokens=n_tokens,
        )
        log.info("pages of %d latents over %d tokens: %s", n_latents, n_tokens, estimate)
        check_disk(estimate, self.store.root)

"""What is made of a fit afterwards: the doctor's report, and the pictures of dense and sparse space. Artefacts, found again by the fit's content.

Neither belongs to `fit` itself: t-SNE of 5,000 responses takes half a minute on one core, the doctor a minute, and no reward depends on them. Both
read what the fit kept: its folder, and the hidden states in the cache it was made in.

Nothing heavy is imported before something is computed, so a page finds and reads both without an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.config import Config, DoctorConfig, SpacesConfig
from core.errors import MissingError, StoreError
from core.reward.recorded_files import EVALUATION, read_config, sha256_of_file
from core.runs.store import Artefact, Store
from core.types import Progress, no_progress, strict_json

if TYPE_CHECKING:
    from core.doctor.report import Report
    from core.explain.spaces import Spaces
    from core.reward.fit_responses import FitResponses
    from core.reward.model import SparseRM
    from core.reward.pair_counts import LostPair
    from core.reward.parts import RewardParts
    from core.types import LatentFrequencies

# Bumped by hand when something else is computed from the same inputs.
VERSIONS = {"spaces": 1, "doctor": 3}
CONTENT = ("config.json", "model.safetensors", "heads.safetensors", "selection.jsonl", "known.safetensors", "known.jsonl", "evaluation.json")
FIT_AGAIN = "fit it again with this cache (SPARSERM_CACHE); finished steps are found"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A reward model's folder, and the cache that holds the hidden states it was fitted on."""

    folder: Path
    store: Store

    # --- what was made of it ---

    def find_report(self, config: DoctorConfig) -> Report | None:
        """The doctor's report, if it was made with this config. Loads no engine."""
        from core.doctor.report import load_report

        found = self._find("doctor", config)
        return None if found is None else load_report(found.path)

    def find_spaces(self, config: SpacesConfig) -> Spaces | None:
        """The pictures and figures, if they were made with this config. Loads no engine."""
        from core.explain.spaces import load_spaces

        found = self._find("spaces", config)
        return None if found is None else load_spaces(found.path)

    def made(self, step: str) -> list[Artefact]:
        """Every report (`doctor`) or picture (`spaces`) that was made of this model, with whatever config, newest first. Loads no engine."""
        inputs, found = self._inputs(), [one for _, one in self.store.all(step) if isinstance(one, Artefact)]
        ours = [one for one in found if (one.manifest["version"], one.manifest["inputs"]) == (VERSIONS[step], inputs)]
        return sorted(ours, key=lambda one: float(one.manifest["time_created"]), reverse=True)

    def report(self, config: DoctorConfig, *, device: str = "auto", progress: Progress = no_progress) -> tuple[Report, Path]:
        """The doctor's report and its artefact's folder, found or made.

        Raises MissingError where this cache does not hold the fit's hidden states, and what loading backbone and SAE raises.
        """
        from core.doctor.doctor import Doctor
        from core.doctor.report import load_report, save_report

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            model, known = self._model(device)
            states, left_out = self._states(model, known), self.left_out(model.parts)
            examined = Doctor(model=model, z=states, table=self._table(), left_out=left_out, config=config, progress=progress).examine()
            save_report(folder, examined)
            return {"status": examined.status, "counts": examined.counts, **examined.about}

        path = self._get_or_make("doctor", config, make).path
        return load_report(path), path

    def spaces(self, config: SpacesConfig, *, progress: Progress = no_progress) -> tuple[Spaces, Path]:
        """The pictures and figures and their artefact's folder, found or made. Raises as `report`; the language model is not loaded."""
        from core.explain.spaces import compare_spaces, load_spaces, save_spaces

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            model, known = self._model("auto")
            found = compare_spaces(known, self._states(model, known), self._random(model, config), config, progress)
            save_spaces(folder, found)
            return {"n_points": len(found.rows), **found.made}

        path = self._get_or_make("spaces", config, make).path
        return load_spaces(path), path

    # --- what the fit left in the cache ---

    def states(self, model: SparseRM) -> np.ndarray:
        """z of each response that is kept beside the model, in their order; may be a memory map. Raises MissingError as `report`."""
        if model.known is None:
            raise MissingError(f"{self.folder} does not keep the responses it was fitted on", expected="known.safetensors", remedy=FIT_AGAIN)
        return self._states(model, model.known)

    def frequencies(self, model: SparseRM) -> LatentFrequencies | None:
        """How often each latent is active in the training responses; None, with a word in the log, where the cache does not hold it any more."""
        from core.runs.values import load_value
        from core.types import LatentFrequencies

        kept = self.store.find("frequencies", model.parts.method.get("fingerprints", {}).get("frequencies", "none"))
        if kept is None:
            log.warning("no random decoder rows stand beside: this cache does not hold the fit's latent frequencies any more")
            return None
        found: LatentFrequencies = load_value(kept.path, "frequencies", LatentFrequencies)
        return found

    def left_out(self, parts: RewardParts) -> tuple[LostPair, ...] | None:
        """The pairs that the fit could not read; None where this cache does not hold them any more, or an older version did not note enough."""
        from core.data.pairs_file import read_pairs
        from core.reward.pair_counts import lost_pairs

        kept = self.store.find("pairs", parts.method.get("fingerprints", {}).get("pairs", "none"))
        report = self._extraction(parts.method, parts.layer).facts
        if kept is None or "refused_sides" not in report:
            return None
        return lost_pairs(read_pairs(kept.file("pairs.jsonl")), report)

    # --- where it is kept ---

    def _inputs(self) -> list[str]:
        """The content of the folder: a copy of it has the same reports. Raises StoreError where it is no reward model's, or not whole."""
        read_config(self.folder)
        return [f"{name} {sha256_of_file(self.folder / name)}" for name in CONTENT if (self.folder / name).is_file()]

    def _find(self, step: str, config: Config) -> Artefact | None:
        return self.store.find(step, self.store.fingerprint(step, VERSIONS[step], config.result_fields(), self._inputs()))

    def _get_or_make(self, step: str, config: Config, make: Callable[[Path, Path], Mapping[str, Any]]) -> Artefact:
        return self.store.get_or_make(step, VERSIONS[step], config.result_fields(), self._inputs(), make)

    # --- what it is made from ---

    def _model(self, device: str) -> tuple[SparseRM, FitResponses]:
        from core.reward.model import SparseRM

        model = SparseRM.load(self.folder, device=device)
        if model.known is None or model.known.pairs is None:
            raise MissingError(f"{self.folder} does not keep the pairs it was fitted on", expected="known.safetensors, known.jsonl", remedy=FIT_AGAIN)
        return model, model.known

    def _table(self) -> Mapping[str, Any]:
        path = self.folder / EVALUATION
        if not path.is_file():
            raise MissingError(f"{self.folder} holds no table of controls", expected=path.name, remedy=FIT_AGAIN)
        try:
            table: Mapping[str, Any] = strict_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{path} is damaged", expected="JSON", found=str(error), remedy=FIT_AGAIN) from error
        return table

    def _states(self, model: SparseRM, known: FitResponses) -> np.ndarray:
        """z of each known response, in their order: a memory map of the fit's extraction where that has just these."""
        from core.reward.extraction import load_hidden_states

        parts = model.parts
        hidden = load_hidden_states(self._extraction(parts.method, parts.layer).path, parts.layer, parts.position)
        if hidden.n_pairs != len(known.chosen_rows):
            raise MissingError(
                "the hidden states in this cache are not of this reward model's pairs", found=f"{hidden.n_pairs} pairs", remedy=FIT_AGAIN
            )
        rows = np.zeros(len(known), dtype=np.int64)
        rows[known.chosen_rows], rows[known.rejected_rows] = hidden.chosen_rows, hidden.rejected_rows
        return hidden.states if np.array_equal(rows, np.arange(len(hidden.states))) else hidden.states[rows]

    def _extraction(self, method: Mapping[str, Any], layer: int) -> Artefact:
        """The extraction that holds the fit's layer, whichever other layers it holds."""
        wanted = method.get("fingerprints", {}).get("extraction")
        for _, found in self.store.all("extraction"):
            if isinstance(found, Artefact) and layer in found.manifest["config"]["layers"]:
                alone = {**found.manifest["config"], "layers": [layer]}
                if self.store.fingerprint("extraction", found.manifest["version"], alone, found.manifest["inputs"]) == wanted:
                    return found
        raise MissingError("the hidden states this reward model was fitted on are not in this cache", found=str(self.store.root), remedy=FIT_AGAIN)

    def _random(self, model: SparseRM, config: SpacesConfig) -> dict[str, list[np.ndarray]]:
        """Directions of each draw of the random controls: as many as were selected, draw i with seed i, as a fit's own."""
        from core.reward.projection import isotropic_directions, random_live_latents

        k, width = model.parts.k, model.parts.d_model
        found = {"random-isotropic": [isotropic_directions(k, width, seed) for seed in range(config.random_draws)]}
        frequencies = self.frequencies(model)
        if frequencies is None:
            return found
        rows = [model.sae.directions(random_live_latents(frequencies, k, seed)) for seed in range(config.random_draws)]
        return {**found, "random-rows": rows}

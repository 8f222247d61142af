"""The fitted reward models of the cache, and what a page reads of one without an engine: no torch, no language model, no SAE is loaded.

    models()                     newest first                      find("a1b2c3d4e5f6")       by its id
    model.evaluation, .curve, .selection, .faithfulness            the tables as JSON values; wherever `accuracy` stands, low, high and n do
    model.known, .pairs, .rewards, .margins                        the responses it was fitted and measured on
    model.frequencies                                              mu_w, mu_l, q-values of every latent
    model.parts                                                    heads, directions, quantiles (imports scipy: a second, once)

An artefact never changes, so what is read is kept in memory, for the last few models, and shared by all sessions: never write into it.
No Streamlit here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import MissingError, SparseRMError
from core.files import read_json, read_json_lines
from core.reward.recorded_files import CONFIG, CURVE, EVALUATION, FAITHFULNESS, SELECTION, read_config
from core.runs.store import Artefact, Store, cache_root
from core.runs.values import load_value
from core.types import SPLITS, LatentFrequencies, PreferencePair, PreferencePairs
from workbench.frame import uploads

if TYPE_CHECKING:
    from core.reward.fit_responses import FitResponses
    from core.reward.parts import RewardParts

ID_LENGTH = 12
OWN = "own-"  # begins the id of a pair that a person typed in
DEMO = Path("core/data/demo/pairs.jsonl")
KEPT = 6  # models whose values stay in memory


@dataclass(frozen=True, kw_only=True)
class FittedModel:
    """A reward model of the cache. `id` is the beginning of its fingerprint, `folder` what every `sparserm` command takes as MODEL."""

    id: str
    folder: Path
    root: Path
    manifest: Mapping[str, Any] = field(compare=False, repr=False)

    # --- what it is ---

    @property
    def created(self) -> float:
        """Seconds since 1970."""
        return float(self.manifest["time_created"])

    @property
    def about(self) -> Mapping[str, Any]:
        """data, backbone, sae (names), layer, position, selection (a summary), n_prompts."""
        return Artefact(path=self.folder, manifest=self.manifest).facts

    @property
    def data_name(self) -> str:
        """The pairs it was fitted on, in a word."""
        source = Path(str(self.about["data"]))
        if source.parts[-len(DEMO.parts) :] == DEMO.parts:
            return "Demo pairs"
        return source.parent.name if source.stem == "pairs" else Path(uploads.name_of(source)).stem

    @property
    def backbone_name(self) -> str:
        """The language model's; a folder called `model` goes by the folder around it."""
        name, path = str(self.about["backbone"]), Path(self._model_path)
        return path.parent.name if name == "model" and path.name == name else name

    @property
    def _model_path(self) -> str:
        """Where the language model was read; empty where config.json is damaged: a damaged model still has its name in the list of all."""
        try:
            return str(_json(self.folder / CONFIG)["reading"].get("model", ""))
        except (SparseRMError, KeyError, TypeError, AttributeError):
            return ""

    @property
    def name(self) -> str:
        """For a person. Two models can have one name; `title` tells them apart."""
        about = self.about
        return f"{self.data_name} · {self.backbone_name} · layer {about['layer']} · K {about['selection']['k']}"

    @property
    def title(self) -> str:
        return f"{self.name} · {self.id[:4]}"

    # --- its tables ---

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json of core.reward.model, once the folder was found whole. Raises StoreError, naming the file, where it is damaged."""
        read_config(self.folder)
        return _json(self.folder / CONFIG)

    def _file(self, name: str) -> Path:
        """A file of the folder, which is whole."""
        _ = self.config
        return self.folder / name

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """`Evaluation.to_json`: sparserm, controls, losses, subsets, n_prompts, on test pairs. Raises MissingError."""
        return _json(self._file(EVALUATION))

    @property
    def curve(self) -> Sequence[Mapping[str, Any]]:
        """`CurvePoint.to_json` of each K and kind of direction, on validation pairs."""
        return _json(self._file(CURVE))

    @property
    def faithfulness(self) -> Mapping[str, Any]:
        """How well its explanations predict interventions (core.explain.faithfulness)."""
        return _json(self._file(FAITHFULNESS))

    @property
    def selection(self) -> Sequence[Mapping[str, Any]]:
        """One row a selected latent (core.reward.parts.selection_table)."""
        return _rows(self._file(SELECTION))

    @property
    def latents(self) -> tuple[int, ...]:
        """The selected latents, in the order of the directions."""
        return tuple(int(row["latent_id"]) for row in self.selection)

    @property
    def data_report(self) -> Mapping[str, Any]:
        """`data` (DataReport.to_json: rows, refused, duplicates) and `split` (SplitReport.to_json). Raises MissingError."""
        return _json(self._made("pairs").path / "report.json")

    @property
    def frequencies(self) -> LatentFrequencies:
        """Of every latent of the SAE. Raises MissingError where the cache does not hold them any more."""
        return _frequencies(self._made("frequencies").path)

    def _made(self, step: str) -> Artefact:
        """What the fit made on the way."""
        fingerprint = self.config["method"].get("fingerprints", {}).get(step, "none")
        found = Store(self.root).find(step, fingerprint)
        if found is None:
            raise MissingError(
                f"the {step} of this reward model are not in the cache any more",
                found=str(self.root),
                remedy="fit it again; finished steps are found",
            )
        return found

    # --- its responses ---

    @property
    def parts(self) -> RewardParts:
        _ = self.config  # what is kept in memory was whole when it was read; the folder is looked at again
        return _parts(self.folder)

    @property
    def known(self) -> FitResponses:
        """Projections, activations and texts of the responses. Raises MissingError where the folder keeps none."""
        found = _known(self.folder, int(self.config["k"]))
        if found is None:
            raise MissingError("this reward model does not keep the responses it was fitted on", remedy="fit it again")
        return found

    @property
    def pairs(self) -> PreferencePairs:
        """The pairs with texts and splits, row i being pair i of `known`. Raises MissingError where texts were not kept."""
        if self.known.pairs is None:
            raise MissingError("this reward model does not keep the texts it was fitted on", remedy="fit it again")
        return self.known.pairs

    def pair_row(self, pair_id: str) -> int | None:
        """The row of a pair, by its id; None for a stranger."""
        return _pair_rows(self.folder, int(self.config["k"])).get(pair_id)

    def pair(self, pair_id: str) -> PreferencePair | None:
        row = self.pair_row(pair_id)
        return None if row is None else self.pairs[row]

    @property
    def rewards(self) -> np.ndarray:
        """float64 [n_responses]: the shipped head's reward of each known response."""
        return _rewards(self.folder, int(self.config["k"]))

    @property
    def margins(self) -> np.ndarray:
        """float64 [n_pairs]: reward of chosen less reward of rejected."""
        known, rewards = self.known, self.rewards
        return rewards[known.chosen_rows] - rewards[known.rejected_rows]

    @property
    def splits(self) -> list[str]:
        """The split of each pair: train, validation, test or unused."""
        names = (*SPLITS, "unused")
        return [names[int(number)] for number in self.known.split]


def models(root: Path | None = None) -> list[FittedModel]:
    """The reward models in the cache, newest first. Damaged ones are left out (`sparserm cache verify` tells)."""
    store = Store((root or cache_root()).resolve())
    found = [artefact for _, artefact in store.all("reward_model") if isinstance(artefact, Artefact)]
    made = [FittedModel(id=a.fingerprint[:ID_LENGTH], folder=a.path, root=store.root, manifest=a.manifest) for a in found]
    return sorted(made, key=lambda model: model.created, reverse=True)


def find(name: str, root: Path | None = None) -> FittedModel | None:
    """The reward model with this id; None if the cache holds none."""
    return next((model for model in models(root) if model.id == name), None) if name else None


def not_shared(first: str, second: str, pair_id: str) -> list[str]:
    """Which of pair, latent and filter, chosen for the first reward model, can't be of the second. Both by id; `pair_id` is what is chosen."""
    model, other = find(first), find(second)
    if model is None or other is None:
        return ["pair", "latent", "filter"]
    gone = []
    try:
        if (model.config["sae"] or {}).get("sha256") != (other.config["sae"] or {}).get("sha256"):
            gone.append("latent")
        if model.config["method"].get("data", {}).get("texts") != other.config["method"].get("data", {}).get("texts"):
            gone += ["filter"] if pair_id.startswith(OWN) else ["pair", "filter"]  # any model can read a person's own texts
    except (SparseRMError, KeyError):
        return ["pair", "latent", "filter"]
    return gone


# --- reading, once ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _json(path: Path) -> Any:
    if not path.is_file():
        raise MissingError(f"{path.parent} holds no {path.name}", remedy="fit it again")
    return read_json(path)


@lru_cache(maxsize=16)
def _rows(path: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(read_json_lines(path))


@lru_cache(maxsize=KEPT)
def _known(folder: Path, k: int) -> FitResponses | None:
    from core.reward.fit_responses import read_responses

    return read_responses(folder, k)


@lru_cache(maxsize=KEPT)
def _pair_rows(folder: Path, k: int) -> dict[str, int]:
    known = _known(folder, k)
    return {} if known is None or known.pairs is None else {pair.pair_id: row for row, pair in enumerate(known.pairs)}


@lru_cache(maxsize=KEPT)
def _parts(folder: Path) -> RewardParts:
    from core.reward.folder import read_parts

    return read_parts(folder)


@lru_cache(maxsize=KEPT)
def _rewards(folder: Path, k: int) -> np.ndarray:
    known = _known(folder, k)
    rewards = np.zeros(0) if known is None else _parts(folder).head.reward(known.projections)
    rewards.flags.writeable = False
    return rewards


@lru_cache(maxsize=KEPT)
def _frequencies(folder: Path) -> LatentFrequencies:
    found: LatentFrequencies = load_value(folder, "frequencies", LatentFrequencies)
    return found

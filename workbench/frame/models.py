"""The fitted reward models of the cache, newest first, by id, and what people call them. What a page reads of one is `ModelFolder`'s.

    models()                     newest first                      find("a1b2c3d4e5f6")       by its id
    model.name, .title, .about   for people and for lists
    model.evaluation, .responses, .pairs, .margins, .parts, ...    core.reward.folder

An artefact never changes, so what is read is kept in memory, for the last few models, and shared by all sessions: never write
into it. No engine is loaded, and no Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import SparseRMError
from core.files import read_json
from core.reward.folder import ModelFolder
from core.reward.hidden_states import WHOLE
from core.reward.recorded_files import CONFIG
from core.runs.store import Artefact, Store, cache_root
from workbench.frame import uploads

ID_LENGTH = 12
OWN = "own-"  # begins the id of a pair that a person typed in
DEMO = Path("core/data/demo/pairs.jsonl")


class FittedModel(ModelFolder):
    """A reward model of the cache. `id` is the beginning of its fingerprint, `path` what every `sparserm` command takes as MODEL."""

    def __init__(self, artefact: Artefact, store: Store) -> None:
        super().__init__(artefact.path, store)
        self.artefact, self.id = artefact, artefact.fingerprint[:ID_LENGTH]

    @property
    def created(self) -> float:
        """Seconds since 1970."""
        return float(self.artefact.manifest["time_created"])

    @property
    def about(self) -> Mapping[str, Any]:
        """data, backbone, sae (names), layer, position, selection (a summary), n_prompts."""
        return self.artefact.facts

    @property
    def data_name(self) -> str:
        """A short name of the pairs that it was fitted on."""
        source = Path(str(self.about["data"]))
        if source.parts[-len(DEMO.parts) :] == DEMO.parts:
            return "Demo pairs"
        return source.parent.name if source.stem == "pairs" else Path(uploads.name_of(source)).stem

    @property
    def backbone_name(self) -> str:
        """Name of the language model; a folder called `model` goes by the name of the folder around it."""
        name, path = str(self.about["backbone"]), Path(_backbone_path(self.path))
        return path.parent.name if name == "model" and path.name == name else name

    @property
    def name(self) -> str:
        """For a person. Two models can have one name; `title` tells them apart."""
        about = self.about
        whole = " · whole" if about["position"] == WHOLE else ""
        return f"{self.data_name} · {self.backbone_name} · layer {about['layer']} · K {about['selection']['k']}{whole}"

    @property
    def title(self) -> str:
        """The name and the first digits of the id."""
        return f"{self.name} · {self.id[:4]}"


def models(root: Path | None = None) -> list[FittedModel]:
    """The reward models in the cache, newest first. Damaged ones are left out (`sparserm cache verify` lists them)."""
    store = Store((root or cache_root()).resolve())
    artefacts = [artefact for _, artefact in store.all("reward_model") if isinstance(artefact, Artefact)]
    return sorted((FittedModel(artefact, store) for artefact in artefacts), key=lambda model: model.created, reverse=True)


def find(name: str, root: Path | None = None) -> FittedModel | None:
    """The reward model with this id; None if the cache holds none."""
    return next((model for model in models(root) if model.id == name), None) if name else None


def not_shared(first: str, second: str, pair_id: str) -> list[str]:
    """Which of pair, latent and filter, chosen for the first reward model, can't be of the second. Both by id; `pair_id` is the chosen pair's."""
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


@lru_cache(maxsize=64)
def _backbone_path(folder: Path) -> str:
    """Where the language model was read; empty where config.json is damaged, since a damaged model is listed by its name too."""
    try:
        return str(read_json(folder / CONFIG)["reading"].get("model", ""))
    except (SparseRMError, KeyError, TypeError, AttributeError):
        return ""

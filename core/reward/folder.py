"""The folder of one reward model, read: its config, tables, heads and responses, and what its fit left in the cache.

    folder = ModelFolder("cache/artefacts/reward_model/ab/ab12...")
    folder.config, .evaluation, .curve, .selection, .faithfulness     JSON values of its files
    folder.parts                                                      heads, directions, quantiles (RewardParts)
    folder.responses, .pairs, .rewards, .pair_rewards, .margins       the responses it was fitted and measured on
    folder.data_report, .frequencies, .states(), .lost_pairs()        results of earlier steps of its fit
    folder.find_result(step, config), .results(step), .result(...)    results that are computed of it afterwards

Each file is read when it is first asked for, by one reader, and only after all recorded files were checked
(core.reward.recorded_files). What was read stays in memory for the last few models and is shared by everybody who opens
the same folder with the same record, such as all sessions of the pages: never write into it. A folder that was replaced
has another record, so it is read again. A ModelFolder itself checks once; open a new one for a new look.

Pages import this module: it loads neither torch nor transformers nor scikit-learn. What scores texts is
`core.reward.model.SparseRM`; `core.reward.parts_files` describes the files' contents and writes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.config import Config
from core.data.pairs_file import read_pairs
from core.errors import ConfigError, MissingError
from core.files import read_json
from core.reward.fit_responses import FitResponses
from core.reward.folder_content import FIT_AGAIN, FolderContent
from core.reward.hidden_states import HiddenStates, alone_readings, load_hidden_states
from core.reward.pair_counts import LostPair, lost_pairs
from core.reward.parts import RewardParts
from core.reward.ranking import Resamples
from core.reward.recorded_files import (
    CONFIG,
    CURVE,
    EVALUATION,
    HEADS,
    KNOWN,
    KNOWN_TEXTS,
    SELECTION,
    TENSORS,
    read_config,
    record_of,
    sha256_of_file,
)
from core.reward.response_tokens import KeptTokens
from core.runs.store import Artefact, Store
from core.runs.values import load_value
from core.runs.versions import VERSIONS
from core.types import SPLITS, LatentFrequencies, PreferencePair, PreferencePairs

# The files whose content identifies what is computed from a model later: a copy of the folder has the same results.
CONTENT = (CONFIG, TENSORS, HEADS, SELECTION, KNOWN, KNOWN_TEXTS, EVALUATION)
KEPT = 6  # models whose values stay in memory
log = logging.getLogger(__name__)
Make = Callable[[Path, Path], Mapping[str, Any]]


class ModelFolder:
    """One reward model's folder, and the store (by default the cache, `SPARSERM_CACHE`) that holds the other results of
    its fit. Opening it reads nothing. Every property raises StoreError, naming the file, where the folder is damaged or
    holds no reward model, and MissingError where the folder or the cache does not hold what is asked for."""

    def __init__(self, path: str | Path, store: Store | None = None) -> None:
        self.path, self.store = Path(path), store or Store()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelFolder) and (self.path, self.root) == (other.path, other.root)

    def __hash__(self) -> int:
        return hash((self.path, self.root))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def root(self) -> Path:
        """The cache's folder."""
        return self.store.root

    # --- its tables ---

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json (core.reward.model documents it), read after every recorded file was checked."""
        return read_config(self.path)

    @cached_property
    def content(self) -> FolderContent:
        """The shared values of the folder as recorded now; functions of higher rooms cache by this object."""
        return _content(self.path.absolute(), record_of(self.path, self.config), int(self.config["k"]))

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """`Evaluation.to_json`: sparserm, controls, losses, subsets, n_prompts, on test pairs; with `pair_counts`."""
        table: Mapping[str, Any] = self.content.json(EVALUATION)
        return table

    @property
    def curve(self) -> Sequence[Mapping[str, Any]]:
        """`CurvePoint.to_json` of each K and kind of direction, on validation pairs."""
        points: Sequence[Mapping[str, Any]] = self.content.json(CURVE)
        return points

    @property
    def faithfulness(self) -> Mapping[str, Any] | None:
        """How well explanations predict interventions (core.explain.faithfulness); None where it was not measured."""
        return self.content.faithfulness

    @property
    def selection(self) -> Sequence[Mapping[str, Any]]:
        """One row for each selected latent, in the order of the directions (core.reward.parts.selection_table)."""
        return self.content.selection

    @property
    def latents(self) -> tuple[int, ...]:
        """The selected latents, in the order of the directions."""
        return tuple(int(row["latent_id"]) for row in self.selection)

    @property
    def parts(self) -> RewardParts:
        """Heads, directions and quantiles."""
        return self.content.parts

    # --- its responses ---

    def find_responses(self) -> FitResponses | None:
        """As `responses`; None where the folder keeps none."""
        return self.content.responses

    @property
    def tokens(self) -> KeptTokens | None:
        """Projections and activations at each token of held-out responses; None where the end of a response is read."""
        return self.content.tokens

    @property
    def responses(self) -> FitResponses:
        """Features and ids of the responses that the model was fitted and measured on; with texts if they were kept."""
        responses = self.find_responses()
        if responses is None:
            raise MissingError(f"{self.path} does not keep the responses it was fitted on", expected=KNOWN, remedy=FIT_AGAIN)
        return responses

    @property
    def has_texts(self) -> bool:
        """Whether the texts of the pairs are kept beside the model."""
        responses = self.find_responses()
        return responses is not None and responses.pairs is not None

    @property
    def pairs(self) -> PreferencePairs:
        """The pairs with texts and splits; pair i is pair i of `responses`."""
        pairs = self.responses_with_texts.pairs
        assert pairs is not None  # has_texts has looked
        return pairs

    @property
    def responses_with_texts(self) -> FitResponses:
        """As `responses`. Raises MissingError also where their texts were not kept."""
        if not self.has_texts:
            problem = f"{self.path} does not keep the pairs it was fitted on"
            raise MissingError(problem, expected=f"{KNOWN}, {KNOWN_TEXTS}", remedy=FIT_AGAIN)
        return self.responses

    def pair_number(self, pair_id: str) -> int | None:
        """The number of the pair with this id; None where it is not kept."""
        return self.content.numbers.get(pair_id)

    def pair(self, number: int) -> PreferencePair:
        """A pair with its texts, by its number. Raises ConfigError where there is no such pair."""
        if not 0 <= number < len(self.pairs):
            raise ConfigError("there is no such pair in this fit", expected=f"0 to {len(self.pairs) - 1}", found=str(number))
        return self.pairs[number]

    @property
    def splits(self) -> list[str]:
        """The split of each pair: train, validation, test or unused."""
        names = (*SPLITS, "unused")
        return [names[int(number)] for number in self.responses.split]

    # --- its rewards ---

    @property
    def rewards(self) -> Float[np.ndarray, " n_responses"]:
        """The shipped head's reward of each response, float64."""
        return self._with_responses.rewards

    @property
    def pair_rewards(self) -> Float[np.ndarray, "n_pairs 2"]:
        """Rewards of each pair's chosen and rejected response."""
        return self._with_responses.pair_rewards

    @property
    def margins(self) -> Float[np.ndarray, " n_pairs"]:
        """s_w - s_l of each pair: reward of the chosen less reward of the rejected response."""
        return self.pair_rewards[:, 0] - self.pair_rewards[:, 1]

    @property
    def margins_by_head(self) -> Float[np.ndarray, "n_heads n_pairs"]:
        """s_w - s_l of each pair by each head that is kept; `margins` are the shipped head's."""
        return self._with_responses.margins_by_head

    @property
    def _with_responses(self) -> FolderContent:
        _ = self.responses
        return self.content

    def ranked(self, by: str = "", *, held_out: bool = True) -> Int[np.ndarray, " m"]:
        """Numbers of the held-out pairs (or of all) in the order of the file, or `worst` (lowest reward) or `misranked`
        (lowest margin) first. Raises ConfigError for another order."""
        numbers = self.responses.held_out_pairs if held_out else np.arange(len(self.responses.split))
        keys = {"": np.arange(len(numbers)), "worst": self.pair_rewards[numbers].min(axis=1), "misranked": self.margins[numbers]}
        if by not in keys:
            raise ConfigError("pairs can't be ordered so", expected=", ".join(filter(None, keys)), found=by)
        return numbers[np.argsort(keys[by], kind="stable")]

    # --- what the fit left in the cache ---

    @property
    def data_report(self) -> Mapping[str, Any]:
        """`data` (DataReport.to_json: rows, refused, duplicates) and `split` (SplitReport.to_json)."""
        report: Mapping[str, Any] = _report(self._step("pairs").path)
        return report

    @property
    def frequencies(self) -> LatentFrequencies:
        """How often each latent of the SAE is active in the training responses."""
        return _frequencies(self._step("frequencies").path)

    @property
    def resamples(self) -> Resamples:
        """The bootstrap over prompts of the latents' separations, for the stability of a selection."""
        return _resamples(self._step("frequencies").path)

    def find_frequencies(self) -> LatentFrequencies | None:
        """As `frequencies`; None, with a warning in the log, where the cache does not hold them any more."""
        if self.store.find("frequencies", self._fingerprint("frequencies")) is None:
            log.warning("no random decoder rows stand beside: this cache does not hold the fit's latent frequencies any more")
            return None
        return self.frequencies

    def hidden_states(self) -> HiddenStates:
        """The extraction that the fit was made from, with its own rows (`states` has those of `responses`)."""
        return load_hidden_states(self._extraction().path, self.config["layer"], self.config["position"])

    def states(self) -> Float[np.ndarray, "n_responses d_model"]:
        """z of each response of `responses`, in their order: a memory map where the extraction has just these."""
        responses, hidden = self.responses, self.hidden_states()
        if hidden.n_pairs != len(responses.chosen_rows):
            problem = "the hidden states in this cache are not of this reward model's pairs"
            raise MissingError(problem, found=f"{hidden.n_pairs} pairs", remedy=FIT_AGAIN)
        rows = np.zeros(len(responses), dtype=np.int64)
        rows[responses.chosen_rows], rows[responses.rejected_rows] = hidden.chosen_rows, hidden.rejected_rows
        return hidden.states if np.array_equal(rows, np.arange(len(hidden.states))) else hidden.states[rows]

    def lost_pairs(self) -> tuple[LostPair, ...] | None:
        """The pairs that the model could not read; None if this cache lacks them or an older version left them out."""
        pairs, report = self.store.find("pairs", self._fingerprint("pairs")), self._extraction().facts
        if pairs is None or "refused_sides" not in report:
            return None
        return lost_pairs(read_pairs(pairs.file("pairs.jsonl")), report)

    def _fingerprint(self, step: str) -> str:
        return str(self.config["method"].get("fingerprints", {}).get(step, "none"))

    def _step(self, step: str) -> Artefact:
        """The artefact of an earlier step of the fit."""
        artefact = self.store.find(step, self._fingerprint(step))
        if artefact is None:
            raise MissingError(f"the {step} of this reward model are not in the cache any more", found=str(self.root), remedy=FIT_AGAIN)
        return artefact

    def _extraction(self) -> Artefact:
        """The extraction that holds the fit's layer, whichever other layers it holds."""
        layer = self.config["layer"]
        for _, artefact in self.store.all("extraction"):
            if isinstance(artefact, Artefact):
                for alone in alone_readings(artefact.manifest["config"], layer):
                    inputs = artefact.manifest["inputs"]
                    if self.store.fingerprint("extraction", artefact.manifest["version"], alone, inputs) == self._fingerprint("extraction"):
                        return artefact
        raise MissingError("the hidden states this reward model was fitted on are not in this cache", found=str(self.root), remedy=FIT_AGAIN)

    # --- what is computed of it afterwards ---

    def find_result(self, step: str, config: Config) -> Artefact | None:
        """The result of a step (`doctor`, `spaces`) with this config; None where it has not been computed."""
        return self.store.find(step, self.store.fingerprint(step, VERSIONS[step], config.result_fields(), self._inputs()))

    def results(self, step: str) -> list[Artefact]:
        """Every result of a step, whichever its config, newest first."""
        asked = (VERSIONS[step], self._inputs())
        artefacts = [artefact for _, artefact in self.store.all(step) if isinstance(artefact, Artefact)]
        results = [artefact for artefact in artefacts if (artefact.manifest["version"], artefact.manifest["inputs"]) == asked]
        return sorted(results, key=lambda artefact: float(artefact.manifest["time_created"]), reverse=True)

    def result(self, step: str, config: Config, make: Make) -> Artefact:
        """The result of a step with this config, computed by `make(folder, scratch)` if the store lacks it."""
        return self.store.get_or_make(step, VERSIONS[step], config.result_fields(), self._inputs(), make)

    def _inputs(self) -> list[str]:
        """Name and hash of each file of CONTENT, of a folder that is whole now."""
        read_config(self.path)
        return [f"{name} {sha256_of_file(self.path / name)}" for name in CONTENT if (self.path / name).is_file()]


@lru_cache(maxsize=KEPT)
def _content(path: Path, record: str, k: int) -> FolderContent:
    return FolderContent(path, k)


@lru_cache(maxsize=KEPT)
def _report(folder: Path) -> Any:
    return read_json(folder / "report.json")


@lru_cache(maxsize=KEPT)
def _resamples(folder: Path) -> Resamples:
    resamples: Resamples = load_value(folder, "resamples", Resamples)
    return resamples


@lru_cache(maxsize=KEPT)
def _frequencies(folder: Path) -> LatentFrequencies:
    frequencies: LatentFrequencies = load_value(folder, "frequencies", LatentFrequencies)
    return frequencies

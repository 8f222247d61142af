"""The alignments of the cache, as the pages Align and Shift show them: which exist, how far each is, and its reward
models.

    entries()          every alignment, the newest first: its record on disk, and the runs that make it
    find("1f0c…")      the alignment with this key, or which the run of this id makes

No Streamlit here; no engine is loaded. The pairs of a round are in workbench/align/pairs.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.align.filtering import NONE, RANDOM, SPARSERM
from core.align.records import FILTER, FOLDER, LEDGER, STEPS, AlignmentRecord, RoundRecord, alignments, key_of
from core.config import AlignConfig
from core.errors import SparseRMError
from core.files import read_json
from core.jobs.kinds import config_of, resolved_config
from core.runs.registry import Run, all_runs
from core.runs.store import cache_root
from workbench.frame import models
from workbench.frame.accuracy import METHODS, method_name
from workbench.frame.models import FittedModel

KIND = "align"
ARM_WORDS = {SPARSERM: "SparseRM filter", NONE: "No filter", RANDOM: "Random drop"}
MODE_WORDS = {"two_prompts": "two prompts", "contrastive": "contrastive prompt", "best_of_n": "best of n"}
STEP_WORDS = dict(zip(STEPS, ("Candidates", "Rewards", "Filter", "DPO", "Evaluation", "Shift"), strict=True))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One alignment: its record on disk, and the runs that make it, oldest first.

    The record is None before the first step; there is no run if it was made under `accelerate launch`.
    """

    id: str
    config: AlignConfig
    record: AlignmentRecord | None
    runs: tuple[Run, ...] = ()

    @property
    def run(self) -> Run | None:
        """The newest run that makes it."""
        return self.runs[-1] if self.runs else None

    @property
    def live(self) -> bool:
        """Whether a run is working on it."""
        return self.run is not None and self.run.live()

    @property
    def rounds(self) -> list[RoundRecord]:
        """Every round that has begun; empty before the first."""
        return [] if self.record is None else self.record.rounds

    @property
    def arm(self) -> str:
        return arm_words(self.config.arm)

    @property
    def title(self) -> str:
        """A name that distinguishes it from other alignments. Holds names of files and models."""
        config = self.config
        model = f"reward model {Path(config.model).name[:4]}" if config.model else _model_name(Path(config.fit.backbone.model))
        extra = "" if config.seed == config.dpo.seed == config.candidates.seed == 0 else f" · seed {config.seed}"
        rounds = f"{config.rounds} round{'s' * (config.rounds != 1)}"
        return f"{self.arm} · {model} · {rounds} · {MODE_WORDS[config.candidates.mode]}{extra} · {short(self.id)}"


def _model_name(path: Path) -> str:
    """The folder's name, or its parent's where the folder is called `model`."""
    return path.parent.name if path.name == "model" else path.name


def short(name: str) -> str:
    """The short form of an alignment's or a run's id that pages show."""
    return name.rpartition("_")[2][:6] if "_" in name else name[:4]


def arm_words(arm: str) -> str:
    """The filter of an arm as pages show it; a reward model's folder by its name."""
    return ARM_WORDS.get(arm) or (f"{method_name(arm)} as filter" if arm in METHODS else f"{Path(arm).name} as filter")


@dataclass(frozen=True, kw_only=True)
class OpenAlignment:
    """What a section of the Align page draws: the chosen alignment, all of the cache, and the rounds that have begun."""

    entry: Entry
    known: list[Entry]
    rounds: list[RoundRecord]

    @property
    def filtered(self) -> list[RoundRecord]:
        """The rounds whose pairs were filtered."""
        return [round for round in self.rounds if FILTER in round.steps]


# --- which there are -------------------------------------------------------------------------------------------------


def entries(root: Path | None = None) -> list[Entry]:
    """Every alignment of the cache that can be read, the newest first."""
    root = (root or cache_root()).resolve()
    by_key: dict[str, list[Run]] = {}
    fresh: list[Entry] = []
    for run in _runs(root):
        key = _key(run)
        if key:
            by_key.setdefault(key, []).append(run)
        else:
            fresh.extend(_of_run(run.id, run))
    dated = [(record.written, entry) for record in alignments(root) for entry in _of_record(record, by_key.pop(record.key, []))]
    fresh += [entry for key, runs in by_key.items() for entry in _of_run(key, *runs)]
    dated += [(float(entry.runs[-1].asked["created"]), entry) for entry in fresh]
    return [entry for _, entry in sorted(dated, key=lambda pair: pair[0], reverse=True)]


def find(name: str, known: Sequence[Entry]) -> Entry | None:
    """The alignment with this key, or which the run of this id makes; None where there is none."""
    return next((entry for entry in known if name and (entry.id == name or any(run.id == name for run in entry.runs))), None)


def _runs(root: Path) -> Iterator[Run]:
    for run in all_runs(root):
        try:
            if run.kind == KIND:
                yield run
        except SparseRMError:  # unreadable
            continue


def _of_record(record: AlignmentRecord, runs: Sequence[Run]) -> list[Entry]:
    try:
        return [Entry(id=record.key, config=record.config, record=record, runs=tuple(runs))]
    except (SparseRMError, TypeError, KeyError):  # of another version
        return []


def _of_run(name: str, *runs: Run) -> list[Entry]:
    try:
        config = config_of(runs[-1])
        assert isinstance(config, AlignConfig)
        return [Entry(id=name, config=config, record=None, runs=runs)]
    except (SparseRMError, TypeError, KeyError):
        return []


_keys: dict[Path, str] = {}


def _key(run: Run) -> str:
    """The key of the alignment that a run makes; empty until its worker has written the whole config, which never
    changes.
    """
    if run.path not in _keys:
        try:
            config = resolved_config(run)
        except (SparseRMError, TypeError, KeyError):
            return ""
        if not isinstance(config, AlignConfig):
            return ""
        _keys[run.path] = key_of(config)
    return _keys[run.path]


def signature(entry: Entry) -> str:
    """A text that changes whenever the page has to be drawn anew: when a step is done, and when a run begins or ends."""
    state, key = ("", entry.id) if entry.run is None else (entry.run.status().state, _key(entry.run))
    root = entry.run.root if entry.run is not None else cache_root()
    ledger = root / FOLDER / key / LEDGER
    return f"{state} {key} {ledger.stat().st_mtime_ns if key and ledger.is_file() else 0}"


# --- the reward models of an alignment -------------------------------------------------------------------------------


def judge_model(entry: Entry) -> FittedModel | None:
    """The cached reward model that filters and explains its drops; None where the arm has none or the cache lost it."""
    return None if entry.record is None else _fitted(entry.record.judge)


def measuring_model(entry: Entry) -> FittedModel | None:
    """The cached reward model that measures the policy's answers; None where the cache lost it."""
    return None if entry.record is None else _fitted(entry.record.model)


def _fitted(folder: Path | None) -> FittedModel | None:
    return None if folder is None else next((model for model in models.models() if model.path.resolve() == folder.resolve()), None)


# --- steps -----------------------------------------------------------------------------------------------------------


def seconds_of(folder: Path) -> float:
    """How many seconds the artefact in this folder took to compute."""
    return _seconds(folder)


@lru_cache(maxsize=512)
def _seconds(folder: Path) -> float:
    return float(read_json(folder / "manifest.json")["time_seconds"])

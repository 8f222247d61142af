"""What the pages Align and Shift know of the alignments in the cache: which there are, how far each is, and what became of every pair. Values only:
nothing is drawn here, and no engine is loaded.

    entries()                   every alignment, the newest first: what is on disk of it, and the runs that make it
    find("1f0c…")               one of them, by its key or by the id of one of its runs
    pairs_of(round)             every generated pair with its rewards and what the filter decided

Artefacts never change, so what is read of them is kept: never write into it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.align.filtering import MARGIN, NONE, RANDOM, SPARSERM
from core.align.records import FOLDER, LEDGER, STEPS, AlignmentRecord, RoundRecord, alignments, key_of
from core.align.values import Candidate, Decision
from core.config import AlignConfig
from core.errors import SparseRMError
from core.files import read_json, read_json_lines
from core.runs.locks import is_held
from core.runs.registry import Run, all_runs
from core.runs.store import cache_root
from core.statistics.estimates import Estimate, mean_over_prompts
from core.statistics.intervals import wilson
from core.types import Accuracy, Message
from workbench.frame import models
from workbench.frame.accuracy import METHODS, method_name
from workbench.frame.models import FittedModel

KIND = "align"
ARM_WORDS = {SPARSERM: "SparseRM filter", NONE: "No filter", RANDOM: "Random drop"}
MODE_WORDS = {"two_prompts": "two prompts", "contrastive": "contrastive prompt", "best_of_n": "best of n"}
STEP_WORDS = dict(zip(STEPS, ("Candidates", "Rewards", "Filter", "DPO", "Evaluation", "Shift"), strict=True))
REASON_WORDS = {MARGIN: "intended winner scores lower", "at random": "dropped at random", "not parsed": "not parsed"}
UNPARSED = "not parsed"
BETWEEN_STEPS = 10.0  # seconds after a step in which the next one begins, or nobody works on the alignment any more


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One alignment: what is on disk of it, and the runs that make it, oldest first. Either may be missing: of a command, or before a step."""

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
        """Whether somebody works on it: a run, or a command in the foreground."""
        return (self.run is not None and self.run.live()) or in_foreground(self)

    @property
    def rounds(self) -> list[RoundRecord]:
        """Every round that has begun; empty before the first."""
        return [] if self.record is None else self.record.rounds

    @property
    def arm(self) -> str:
        return arm_words(self.config.arm)

    @property
    def title(self) -> str:
        """What tells it from others. Holds names of files and models."""
        config = self.config
        model = f"reward model {Path(config.model).name[:4]}" if config.model else _model_name(Path(config.fit.backbone.model))
        extra = "" if config.seed == config.dpo.seed == config.candidates.seed == 0 else f" · seed {config.seed}"
        rounds = f"{config.rounds} round{'s' * (config.rounds != 1)}"
        return f"{self.arm} · {model} · {rounds} · {MODE_WORDS[config.candidates.mode]}{extra} · {short(self.id)}"


def _model_name(path: Path) -> str:
    """A folder called `model` goes by the folder around it."""
    return path.parent.name if path.name == "model" else path.name


def short(name: str) -> str:
    """The part of an alignment's or run's id that a person can tell it by."""
    return name.rpartition("_")[2][:6] if "_" in name else name[:4]


def arm_words(arm: str) -> str:
    """What filters, for people. A folder goes by its name."""
    return ARM_WORDS.get(arm) or (f"{method_name(arm)} as filter" if arm in METHODS else f"{Path(arm).name} as filter")


def reason_words(reason: str) -> str:
    """Why a pair was dropped, for people; what stands after the colon is the engine's."""
    kind, colon, more = reason.partition(":")
    return REASON_WORDS.get(kind, kind) + colon + more


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
    found = [(record.written, entry) for record in alignments(root) for entry in _of_record(record, by_key.pop(record.key, []))]
    fresh += [entry for key, runs in by_key.items() for entry in _of_run(key, *runs)]
    found += [(float(entry.runs[-1].asked["created"]), entry) for entry in fresh]
    return [entry for _, entry in sorted(found, key=lambda one: one[0], reverse=True)]


def find(name: str, known: Sequence[Entry]) -> Entry | None:
    """The alignment with this key, or which this run makes; None for a stranger."""
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
    except (SparseRMError, TypeError, KeyError):  # another version's
        return []


def _of_run(name: str, *runs: Run) -> list[Entry]:
    try:
        config = runs[-1].resolved() or runs[-1].config()
        assert isinstance(config, AlignConfig)
        return [Entry(id=name, config=config, record=None, runs=runs)]
    except (SparseRMError, TypeError, KeyError):
        return []


_keys: dict[Path, str] = {}


def _key(run: Run) -> str:
    """The key of the alignment that a run makes; empty until its worker has filled in the config, which never changes then."""
    if run.path not in _keys:
        try:
            config = run.resolved()
        except (SparseRMError, TypeError, KeyError):
            return ""
        if not isinstance(config, AlignConfig):
            return ""
        _keys[run.path] = key_of(config)
    return _keys[run.path]


def signature(entry: Entry) -> str:
    """Changes whenever a page would show something else: a step done (also the first, of a run that had none), a run begun or ended."""
    state, key = ("", entry.id) if entry.run is None else (entry.run.status().state, _key(entry.run))
    root = entry.run.root if entry.run is not None else cache_root()
    ledger = root / FOLDER / key / LEDGER
    return f"{state} {key} {ledger.stat().st_mtime_ns if key and ledger.is_file() else 0}"


def in_foreground(entry: Entry) -> bool:
    """Whether a command works on it that is no run. Such a command leaves no status: it is told by the locks of alignments' steps, which last as long
    as their holders, and between two steps by the ledger, which was just written. Of several unfinished alignments it is the one written last.
    """
    record = entry.record
    if record is None or record.result is not None or any(run.live() for run in _runs(_root(record))):
        return False
    just_now = entry.run is None and time.time() - record.written < BETWEEN_STEPS  # else its run, which has just ended, wrote it
    at_work = just_now or any(map(is_held, (_root(record) / "locks").glob("align-*.lock")))
    return at_work and record.key == next((one.key for one in alignments(_root(record)) if one.result is None), "")


def _root(record: AlignmentRecord) -> Path:
    return record.folder.parent.parent


# --- the reward models of an alignment -------------------------------------------------------------------------------


def judge_model(entry: Entry) -> FittedModel | None:
    """The cached reward model whose latents the drops are explained by; None where the filter has none, or it is gone."""
    return None if entry.record is None else _fitted(entry.record.judge)


def measuring_model(entry: Entry) -> FittedModel | None:
    """The cached reward model that measures."""
    return None if entry.record is None else _fitted(entry.record.model)


def _fitted(folder: Path | None) -> FittedModel | None:
    return None if folder is None else next((model for model in models.models() if model.path.resolve() == folder.resolve()), None)


# --- the pairs of a round --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A generated pair: its two rewards where it was scored, and the decision where it was parsed and filtered."""

    candidate: Candidate
    rewards: tuple[float, float] | None
    decision: Decision | None

    @property
    def fate(self) -> str:
        """kept, the kind of its reason, `not parsed`, or empty before the filter."""
        if not self.candidate.parsed:
            return UNPARSED
        return "" if self.decision is None else "kept" if self.decision.kept else self.decision.reason.partition(":")[0]

    @property
    def why(self) -> str:
        """The whole reason of a pair that DPO does not learn from."""
        said = self.candidate.refused or ("" if self.decision is None else self.decision.reason)
        return f"{UNPARSED}: {said}" if self.candidate.refused else said

    @property
    def margin(self) -> float | None:
        """Reward of the intended winner less that of the other; None where one can't be read."""
        return None if self.rewards is None or not np.isfinite(self.rewards).all() else self.rewards[0] - self.rewards[1]


def pairs_of(round: RoundRecord) -> tuple[Generated, ...]:
    """Every pair that was generated in a round, in order."""
    folders = tuple(round.steps.get(step) for step in STEPS[:3])
    return () if folders[0] is None else _pairs(folders[0], *folders[1:])


@lru_cache(maxsize=24)
def _pairs(candidates: Path, rewards: Path | None, filtered: Path | None) -> tuple[Generated, ...]:
    scored = {row["candidate_id"]: (_number(row["reward_chosen"]), _number(row["reward_rejected"])) for row in _rows(rewards, "rewards.jsonl")}
    decided = {row["candidate_id"]: Decision(**row) for row in _rows(filtered, "decisions.jsonl")}
    made = (Candidate.from_json(row) for row in _rows(candidates, "candidates.jsonl"))
    return tuple(Generated(candidate=one, rewards=scored.get(one.candidate_id), decision=decided.get(one.candidate_id)) for one in made)


def _rows(folder: Path | None, name: str) -> list[Any]:
    return [] if folder is None else read_json_lines(folder / name)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def groups(pairs: Sequence[Generated]) -> np.ndarray:
    """The number of each pair's prompt."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(json.dumps(one.candidate.prompt), len(numbers)) for one in pairs], dtype=np.int64)


def mean_of(values: Sequence[float | None], pairs: Sequence[Generated]) -> Estimate | None:
    """The mean over pairs with its bootstrap over prompts; None for fewer than two prompts."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    return mean_over_prompts(numbers, groups(pairs)) if len(numbers) else None


def share_kept(counts: Mapping[str, Any]) -> Accuracy | None:
    """The share of the parsed pairs that was kept; None before the filter."""
    if "kept" not in counts:
        return None
    n, kept = int(counts["parsed"]), int(counts["kept"])
    low, high = wilson(kept, n)
    return Accuracy(accuracy=kept / n if n else float("nan"), low=low, high=high, n=n)


def flow(round: RoundRecord) -> dict[str, Any]:
    """What became of a round's pairs, in numbers of pairs: kept, each reason, unparsed; before the filter what is known."""
    counts = round.counts or {}
    generated, parsed = int(counts.get("generated", 0)), int(counts.get("parsed", 0))
    known = {"round": round.round, "generated": generated, "parsed": parsed, UNPARSED: generated - parsed}
    return {**known, "kept": counts.get("kept"), "dropped": counts.get("dropped"), "reasons": dict(counts.get("reasons") or {})}


def prompt_text(prompt: Sequence[Message]) -> str:
    """The last message of a prompt, and how many stand before it."""
    before = len(prompt) - 1
    last = prompt[-1]["content"] if prompt else ""
    return f"[{before} before] {last}" if before > 0 else last


# --- steps -----------------------------------------------------------------------------------------------------------


def seconds_of(folder: Path) -> float:
    """What an artefact took when it was made."""
    return _seconds(folder)


@lru_cache(maxsize=512)
def _seconds(folder: Path) -> float:
    return float(read_json(folder / "manifest.json")["time_seconds"])

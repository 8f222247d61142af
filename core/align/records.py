"""Alignments on disk, running and finished, as a page or a terminal reads them: no engine is loaded.

    <cache>/alignments/<key>/ledger.json    which artefacts belong to which round, written anew after every step
    <cache>/alignments/<key>/audit.jsonl    what people said of dropped pairs (core.align.audit)
    <cache>/artefacts/align-*/              the steps' artefacts: what is in them says core.align.steps

The key is a hash over the completed config: a run and its resumption have the same, and a page finds a run's alignment by `key_of(run.resolved())`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.align.values import Candidate, Decision
from core.config import AlignConfig, from_dict
from core.errors import StoreError
from core.files import read_json, read_json_lines, write_json
from core.runs.store import Store
from core.types import sha256_of

LEDGER, FOLDER = "ledger.json", "alignments"
CANDIDATES, REWARDS, FILTER, DPO, EVALUATION, SHIFT = STEPS = (
    "align-candidates",
    "align-rewards",
    "align-filter",
    "align-dpo",
    "align-evaluation",
    "align-shift",
)
ROUND, ALIGNMENT = "align-round", "alignment"
SCHEMA = 1


def key_of(config: AlignConfig) -> str:
    """The name of the alignment that this completed config describes: 16 hex digits."""
    return sha256_of(config.result_fields())[:16]


class Ledger:
    """The writer of an alignment's `ledger.json`. A step is noted when its artefact stands."""

    def __init__(self, root: Path, config: AlignConfig) -> None:
        self.folder = root / FOLDER / key_of(config)
        self._said: dict[str, Any] = {"schema": SCHEMA, "key": key_of(config), "config": config.to_dict(), "rounds": {}, "alignment": None}

    def about(self, **said: Any) -> None:
        """Notes what holds for the whole alignment: `model` and `judge`, folders of the reward models that measure and that filter."""
        self._said |= said
        self._write()

    def step(self, round: int, step: str, fingerprint: str) -> None:
        """Notes an artefact of a round."""
        self._said["rounds"].setdefault(str(round), {})[step] = fingerprint
        self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / LEDGER, {**self._said, "time_written": time.time()})


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What is there of a round: `steps` names the folder of each artefact that stands. Round 0 is the evaluation of the base model."""

    round: int
    steps: Mapping[str, Path]

    @property
    def finished(self) -> bool:
        return ROUND in self.steps

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """`round.json` (core.align.round); None before the round's end."""
        return self._json(ROUND, "round.json")

    @property
    def counts(self) -> Mapping[str, Any] | None:
        """Pairs generated, parsed, kept, dropped, and `reasons`; before the filter only the first two."""
        return self._json(FILTER, "counts.json") or self._json(CANDIDATES, "counts.json")

    @property
    def candidates(self) -> list[Candidate]:
        """Every generated pair, unparsed ones too; empty before they stand."""
        return [Candidate.from_json(row) for row in self._rows(CANDIDATES, "candidates.jsonl")]

    @property
    def beside(self) -> list[Candidate]:
        """Answers to training prompts that the shift is about where the prompts are others: the candidates that its points name then."""
        return [Candidate.from_json(row) for row in self._rows(CANDIDATES, "beside.jsonl")]

    @property
    def rewards(self) -> list[Mapping[str, Any]]:
        """`candidate_id`, `reward_chosen`, `reward_rejected` (null: can't be read) of each parsed pair."""
        return self._rows(REWARDS, "rewards.jsonl")

    @property
    def decisions(self) -> list[Decision]:
        """What the filter did with each parsed pair."""
        return [Decision(**row) for row in self._rows(FILTER, "decisions.jsonl")]

    @property
    def dpo(self) -> Mapping[str, Any] | None:
        """`dpo.json`: loss curve, epochs, adapter's hashes (core.align.dpo.DPOOutcome)."""
        return self._json(DPO, "dpo.json")

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """`evaluation.json` (core.align.evaluation)."""
        return self._json(EVALUATION, "evaluation.json")

    def _json(self, step: str, name: str) -> Mapping[str, Any] | None:
        path = self.steps.get(step)
        return None if path is None else read_json(path / name)

    def _rows(self, step: str, name: str) -> list[Any]:
        path = self.steps.get(step)
        return [] if path is None else read_json_lines(path / name)


@dataclass(frozen=True, kw_only=True)
class AlignmentRecord:
    """One alignment, finished or not. `rounds` is read anew whenever it is asked for."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> AlignConfig:
        """The completed config. Raises StoreError if the ledger is damaged or another version's."""
        found: AlignConfig = from_dict(AlignConfig, self._ledger["config"])
        return found

    @property
    def model(self) -> Path | None:
        """The reward model that measures (SparseRM), once it stands."""
        return _path(self._ledger.get("model"))

    @property
    def judge(self) -> Path | None:
        """The reward model that filters, or whose drops are counted; the same but for arms of another."""
        return _path(self._ledger.get("judge"))

    @property
    def rounds(self) -> list[RoundRecord]:
        """Every round that has begun, from 0 on. Artefacts that were removed since are left out."""
        said = self._ledger["rounds"]
        return [RoundRecord(round=number, steps=self._steps(said[str(number)])) for number in sorted(map(int, said))]

    @property
    def result(self) -> Path | None:
        """The finished alignment's artefact: `alignment.json`, and `adapter/` of the chosen round. None while it runs."""
        fingerprint = self._ledger.get("alignment")
        folder = self._store.folder(ALIGNMENT, fingerprint) if fingerprint else None
        return folder if folder and folder.is_dir() else None

    @property
    def written(self) -> float:
        """When the ledger was last written, in seconds since 1970."""
        return float(self._ledger["time_written"])

    @property
    def _store(self) -> Store:
        return Store(self.folder.parent.parent)

    @property
    def _ledger(self) -> Mapping[str, Any]:
        found = read_json(self.folder / LEDGER)
        if found.get("schema") != SCHEMA:
            raise StoreError(f"{self.folder} holds no alignment that this version reads", expected=f"{LEDGER} of schema {SCHEMA}")
        return found

    def _steps(self, said: Mapping[str, str]) -> dict[str, Path]:
        folders = {step: self._store.folder(step, fingerprint) for step, fingerprint in said.items()}
        return {step: folder for step, folder in folders.items() if folder.is_dir()}


def alignments(root: Path) -> list[AlignmentRecord]:
    """Every alignment of a cache that can be read, the one written last first."""
    found = []
    for path in (root / FOLDER).glob(f"*/{LEDGER}"):
        record = AlignmentRecord(folder=path.parent)
        try:
            found.append((record.written, record))
        except (StoreError, KeyError):  # another version's
            continue
    return [record for _, record in sorted(found, key=lambda one: one[0], reverse=True)]


def find_alignment(root: Path, key: str) -> AlignmentRecord | None:
    """The alignment of this key, if it has begun."""
    folder = root / FOLDER / key
    return AlignmentRecord(folder=folder) if (folder / LEDGER).is_file() else None


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None

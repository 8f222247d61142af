"""Alignments on disk, running and finished, as pages and terminals read them; neither torch nor a model is loaded.

    <cache>/alignments/<key>/ledger.json    which artefacts belong to which round, written again after every step
    <cache>/alignments/<key>/audit.jsonl    people's judgements of dropped pairs (core.align.audit)
    <cache>/artefacts/align-*/              the steps' artefacts; core.align.steps lists their files

The key is a hash over the completed config, so a run and its resumption have the same key, and a page finds the
alignment of a run by `key_of(run.resolved())`.
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
    """Writes an alignment's `ledger.json`. A step is entered after its artefact has been published."""

    def __init__(self, root: Path, config: AlignConfig) -> None:
        self.folder = root / FOLDER / key_of(config)
        self._content: dict[str, Any] = {"schema": SCHEMA, "key": key_of(config), "config": config.to_dict(), "rounds": {}, "alignment": None}

    def add_facts(self, **facts: Any) -> None:
        """Enters `model` and `judge`, the folders of the two reward models, or `alignment`, its fingerprint."""
        self._content |= facts
        self._write()

    def add_step(self, round: int, step: str, fingerprint: str) -> None:
        """Enters an artefact of a round."""
        self._content["rounds"].setdefault(str(round), {})[step] = fingerprint
        self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / LEDGER, {**self._content, "time_written": time.time()})


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """A round's artefacts so far, their folders by step in `steps`. Round 0 is the evaluation of the base model."""

    round: int
    steps: Mapping[str, Path]

    @property
    def finished(self) -> bool:
        return ROUND in self.steps

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """`round.json` (core.align.round); None until the round is finished."""
        return self._json(ROUND, "round.json")

    @property
    def counts(self) -> Mapping[str, Any] | None:
        """Numbers of pairs generated, parsed, kept and dropped, and `reasons`; before the filter only the first two."""
        return self._json(FILTER, "counts.json") or self._json(CANDIDATES, "counts.json")

    @property
    def candidates(self) -> list[Candidate]:
        """Every generated pair, including unparsed ones; empty before the step has run."""
        return [Candidate.from_json(row) for row in self._rows(CANDIDATES, "candidates.jsonl")]

    @property
    def rewards(self) -> list[Mapping[str, Any]]:
        """`candidate_id`, `reward_chosen` and `reward_rejected` (null for an unreadable text) of each parsed pair."""
        return self._rows(REWARDS, "rewards.jsonl")

    @property
    def decisions(self) -> list[Decision]:
        """The filter's decision on each parsed pair."""
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
    """One alignment, finished or not. Every property but `config` reads the files again."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    @cached_property
    def config(self) -> AlignConfig:
        """The completed config. Raises StoreError if the ledger is damaged or has another version."""
        config: AlignConfig = from_dict(AlignConfig, self._ledger["config"])
        return config

    @property
    def model(self) -> Path | None:
        """The folder of the reward model that measures; None before it exists."""
        return self._folder("model")

    @property
    def judge(self) -> Path | None:
        """The folder of the reward model that filters: `model`, unless the arm names another one."""
        return self._folder("judge")

    @property
    def rounds(self) -> list[RoundRecord]:
        """Every round that has begun, from 0 on. Artefacts that have been removed are left out."""
        rounds = self._ledger["rounds"]
        return [RoundRecord(round=number, steps=self._steps(rounds[str(number)])) for number in sorted(map(int, rounds))]

    @property
    def result(self) -> Path | None:
        """The finished alignment (`alignment.json`, the chosen round's `adapter/`); None while it runs."""
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
        ledger = read_json(self.folder / LEDGER)
        if ledger.get("schema") != SCHEMA:
            raise StoreError(f"{self.folder} holds no alignment that this version reads", expected=f"{LEDGER} of schema {SCHEMA}")
        return ledger

    def _folder(self, name: str) -> Path | None:
        path = self._ledger.get(name)
        return Path(path) if path else None

    def _steps(self, fingerprints: Mapping[str, str]) -> dict[str, Path]:
        folders = {step: self._store.folder(step, fingerprint) for step, fingerprint in fingerprints.items()}
        return {step: folder for step, folder in folders.items() if folder.is_dir()}


def alignments(root: Path) -> list[AlignmentRecord]:
    """Every readable alignment of a cache, the most recently written first."""
    dated = []
    for path in (root / FOLDER).glob(f"*/{LEDGER}"):
        record = AlignmentRecord(folder=path.parent)
        try:
            dated.append((record.written, record))
        except (StoreError, KeyError):  # written by another version
            continue
    return [record for _, record in sorted(dated, key=lambda pair: pair[0], reverse=True)]

"""Online iterative alignment: the rounds and their steps in order (METHOD.md section 5). Read this file first.

    round 0: the base model is evaluated
    round t: candidates   policy_t answers every prompt twice             core.align.candidates, generation, endpoint
             rewards      the reward model scores both answers            core.align.filtering
             filter       pairs whose intended winner scores lower are dropped
             dpo          the kept pairs train policy_{t+1}               core.align.dpo
             evaluation   policy_{t+1} on held-out data                    core.align.evaluation, mc
             shift        generated against training representations      core.explain.shift

Each step is an artefact (core.align.steps), so a killed run goes on inside its round. A round that keeps no pair is the
last one. The round is chosen on validation pairs and reported on test pairs. A rule stated beforehand warns where
reward rose and other figures got worse (core.align.overoptimisation).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.align.evaluation import load_evaluation
from core.align.inputs import PolicyRef
from core.align.overoptimisation import CHOICE, RULE, choose_round
from core.align.policy import merge_and_save
from core.align.records import ALIGNMENT, CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, ROUND, SHIFT, key_of
from core.align.round import NO_PAIR, round_manifest
from core.align.steps import AlignSteps
from core.config import BackboneConfig
from core.errors import MissingError
from core.files import read_json, write_json
from core.reward.pair_counts import brief
from core.runs.store import Artefact, Store, publish_folder
from core.runs.versions import VERSIONS
from core.types import Progress, no_progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AlignOutcome:
    """A finished alignment: its artefact, the content of `alignment.json` (`summary`), the policy's base model."""

    artefact: Path
    summary: Mapping[str, Any]
    base: BackboneConfig
    store: Store

    @property
    def adapter(self) -> Path | None:
        """The folder of the chosen round's adapter, as PEFT saves it; None where the base model was chosen."""
        folder = self.artefact / "adapter"
        return folder if folder.is_dir() else None

    def to_json(self) -> dict[str, Any]:
        """The summary as one JSON object; each round also has `seconds` (when computed) and its `adapter` folder."""
        rounds = [
            {**manifest, "seconds": manifest["time_seconds"]["total"], "adapter": self._adapter_of(manifest)} for manifest in self.summary["rounds"]
        ]
        folders = {"artefact": str(self.artefact), "adapter": None if self.adapter is None else str(self.adapter)}
        return {**folders, **self.summary, "rounds": rounds}

    def _adapter_of(self, manifest: Mapping[str, Any]) -> str | None:
        fingerprint = manifest["steps"].get(DPO)
        return str(self.store.folder(DPO, fingerprint) / "adapter") if fingerprint else None

    def save(self, target: Path, *, merge: bool = False, progress: Progress = no_progress) -> None:
        """Copies the adapter, or with `merge` writes the model with it in its weights. MissingError: no adapter."""
        adapter = self.adapter
        if adapter is None:
            of_rounds = ", ".join(filter(None, map(self._adapter_of, self.summary["rounds"])))
            problem = "no round was better than the base model, so no adapter was chosen to be saved"
            raise MissingError(problem, expected=str(self.summary["choice"]), remedy=f"copy a round's own: {of_rounds}" if of_rounds else "")
        if merge:
            merge_and_save(self.base, adapter, target, progress=progress)
        else:

            def copy(folder: Path) -> None:
                shutil.copytree(adapter, folder, dirs_exist_ok=True)

            publish_folder(target, copy)


def align(work: AlignSteps) -> AlignOutcome:
    """Runs all rounds and chooses one. Raises the errors of core.errors, and what `progress` raises to cancel."""
    work.ledger.add_facts(model=str(work.model.folder), judge=str(work.judge.folder))
    policy, total = work.start, work.config.rounds
    first = work.evaluation(0, policy, None)
    finished = [_finish(work, 0, {EVALUATION: first})]
    for round in range(1, total + 1):
        work.progress("rounds", round - 1, total)
        steps, policy = _round(work, round, policy, first)
        finished.append(_finish(work, round, steps))
        if DPO not in steps:
            log.warning("round %d is the last: %s", round, NO_PAIR)
            break
    work.progress("rounds", total, total)
    return _outcome(work, finished)


def _round(work: AlignSteps, round: int, policy: PolicyRef, first: Artefact) -> tuple[dict[str, Artefact], PolicyRef]:
    """A round's artefacts by step, and the policy after it: the same, without `align-dpo`, where no pair was kept."""
    candidates = work.candidates(round, policy)
    rewards = work.rewards(round, candidates)
    kept = work.filter(round, candidates, rewards)
    steps = {CANDIDATES: candidates, REWARDS: rewards, FILTER: kept}
    if kept.facts["kept"]:
        steps[DPO] = work.dpo(round, kept, policy)
        policy = PolicyRef(fingerprint=steps[DPO].fingerprint, adapter=steps[DPO].path / "adapter")
    steps[EVALUATION] = work.evaluation(round, policy, first)
    steps[SHIFT] = work.shift(round, candidates, rewards)
    return steps, policy


def _finish(work: AlignSteps, round: int, steps: dict[str, Artefact]) -> Artefact:
    """The artefact `align-round` with the round's manifest, `round.json`."""

    def make(folder: Path, _scratch: Path, _progress: Progress) -> dict[str, Any]:
        manifest = round_manifest(work, round, steps)
        write_json(folder / "round.json", manifest)
        return {name: manifest[name] for name in ("generated", "parsed", "kept", "dropped", "adapter_after")}

    inputs = [artefact.fingerprint for artefact in steps.values()]
    return work.step(round, ROUND, {"round": round, "alignment": key_of(work.config)}, inputs, make)


def _outcome(work: AlignSteps, finished: Sequence[Artefact]) -> AlignOutcome:
    """Chooses a round and writes the artefact `alignment` with the manifests of all rounds."""

    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        rounds = [read_json(artefact.path / "round.json") for artefact in finished]
        evaluations = [work.store.folder(EVALUATION, manifest["steps"][EVALUATION]) for manifest in rounds]
        chosen = choose_round([load_evaluation(evaluation).figures for evaluation in evaluations])
        trained = [manifest["steps"][DPO] for manifest in rounds[: chosen + 1] if DPO in manifest["steps"]]
        if trained:
            shutil.copytree(work.store.folder(DPO, trained[-1]) / "adapter", folder / "adapter")
        warnings = [{"round": manifest["round"], **warning} for manifest in rounds for warning in manifest["evaluation"]["warnings"]]
        # Of the fit: pairs that it could not read are missing in these figures too.
        counts = work.model.parts.method.get("pair_counts")
        stopped = next((manifest["stopped"] for manifest in rounds if manifest["stopped"]), "")
        summary = {"arm": work.config.arm, "chosen_round": chosen, "choice": CHOICE, "warnings": warnings, "rule": RULE, "stopped": stopped}
        summary |= {"base": rounds[0], "rounds": rounds[1:], "pair_counts": counts and brief(counts), "config": work.config.to_dict()}
        write_json(folder / "alignment.json", summary)
        return {"arm": work.config.arm, "rounds": len(rounds) - 1, "chosen_round": chosen}

    inputs = [artefact.fingerprint for artefact in finished]
    artefact = work.store.get_or_make(ALIGNMENT, VERSIONS[ALIGNMENT], {"alignment": key_of(work.config)}, inputs, make)
    work.ledger.add_facts(alignment=artefact.fingerprint)
    return AlignOutcome(artefact=artefact.path, summary=read_json(artefact.path / "alignment.json"), base=work.base, store=work.store)

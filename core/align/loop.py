"""Online iterative alignment, the steps in order (METHOD.md section 5). A newcomer to core.align reads this file first.

    round 0: the base model is evaluated
    round t: candidates   policy_t answers every prompt twice                 core.align.candidates, generation, endpoint
             rewards      the reward model scores both answers                core.align.filtering
             filter       a pair whose intended winner scores lower is dropped
             dpo          the kept pairs make policy_{t+1}                    core.align.dpo
             evaluation   policy_{t+1} on held-out pairs, prompts, questions  core.align.evaluation, mc
             shift        generated against training representations          core.explain.shift

Each step is an artefact (core.align.steps), so a killed run goes on inside its round. A round that keeps no pair is the last one. The round is chosen
on validation and reported on test; a rule stated beforehand says where reward was won at the price of something else (core.align.overoptimisation).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.align.evaluation import load_evaluation
from core.align.inputs import PolicyAt
from core.align.overoptimisation import CHOICE, RULE, choose_round
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
    """A finished alignment: `alignment.json` as values, where it lies, and what the policy is made on."""

    artefact: Path
    said: Mapping[str, Any]
    base: BackboneConfig
    store: Store

    @property
    def adapter(self) -> Path | None:
        """The chosen round's adapter, as PEFT saves it; None where the base model was chosen."""
        folder = self.artefact / "adapter"
        return folder if folder.is_dir() else None

    def to_json(self) -> dict[str, Any]:
        """One object for machines; `seconds` is what a round took when it was computed, `adapter` where its adapter lies."""
        rounds = [{**one, "seconds": one["time_seconds"]["total"], "adapter": self._adapter_of(one)} for one in self.said["rounds"]]
        place = {"artefact": str(self.artefact), "adapter": None if self.adapter is None else str(self.adapter)}
        return {**place, **self.said, "rounds": rounds}

    def _adapter_of(self, one: Mapping[str, Any]) -> str | None:
        made = one["steps"].get(DPO)
        return str(self.store.folder(DPO, made) / "adapter") if made else None

    def save(self, target: Path, *, merge: bool = False, progress: Progress = no_progress) -> None:
        """A copy of the adapter, or the whole model with it merged, as a new folder. Raises MissingError where there is no adapter."""
        from core.align.policy import merge_and_save

        if self.adapter is None:
            remedy = ", ".join(one["adapter"] for one in self.to_json()["rounds"] if one["adapter"])
            said = "no round was better than the base model, so no adapter was chosen to be saved"
            raise MissingError(said, expected=str(self.said["choice"]), remedy=f"copy a round's own: {remedy}" if remedy else "")
        if merge:
            merge_and_save(self.base, self.adapter, target, progress=progress)
        else:
            _copy(self.adapter, target)


def _copy(adapter: Path, target: Path) -> None:
    def copy(folder: Path) -> None:
        shutil.copytree(adapter, folder, dirs_exist_ok=True)

    publish_folder(target, copy)


def align(work: AlignSteps) -> AlignOutcome:
    """All rounds, and the choice among them. Raises the errors of core.errors, and what `progress` raises to cancel."""
    work.ledger.about(model=str(work.model.folder), judge=str(work.judge.folder))
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


def _round(work: AlignSteps, round: int, policy: PolicyAt, first: Artefact) -> tuple[dict[str, Artefact], PolicyAt]:
    """The artefacts of a round by step, and the policy after it: the same one, and no `align-dpo`, where no pair was kept."""
    candidates = work.candidates(round, policy)
    rewards = work.rewards(round, candidates)
    kept = work.filter(round, candidates, rewards)
    steps = {CANDIDATES: candidates, REWARDS: rewards, FILTER: kept}
    if kept.facts["kept"]:
        steps[DPO] = work.dpo(round, kept, policy)
        policy = PolicyAt(fingerprint=steps[DPO].fingerprint, adapter=steps[DPO].path / "adapter")
    steps[EVALUATION] = work.evaluation(round, policy, first)
    steps[SHIFT] = work.shift(round, candidates, rewards)
    return steps, policy


def _finish(work: AlignSteps, round: int, steps: dict[str, Artefact]) -> Artefact:
    """The round's manifest, `round.json`, as an artefact of its own."""

    def make(folder: Path, _scratch: Path, _progress: Progress) -> dict[str, Any]:
        manifest = round_manifest(work, round, steps)
        write_json(folder / "round.json", manifest)
        return {name: manifest[name] for name in ("generated", "parsed", "kept", "dropped", "adapter_after")}

    return work.step(round, ROUND, {"round": round, "alignment": key_of(work.config)}, [one.fingerprint for one in steps.values()], make)


def _outcome(work: AlignSteps, finished: Sequence[Artefact]) -> AlignOutcome:
    """The choice of the round and everything that was found, as the artefact `alignment`."""

    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        rounds = [read_json(one.path / "round.json") for one in finished]
        chosen = choose_round([load_evaluation(work.store.folder(EVALUATION, one["steps"][EVALUATION])).figures for one in rounds])
        trained = [one["steps"][DPO] for one in rounds[: chosen + 1] if DPO in one["steps"]]
        if trained:
            shutil.copytree(work.store.folder(DPO, trained[-1]) / "adapter", folder / "adapter")
        warnings = [{"round": one["round"], **said} for one in rounds for said in one["evaluation"]["warnings"]]
        counts = work.model.parts.method.get("pair_counts")  # of the fit: pairs it could not read are in no figure here either
        rest = {"pair_counts": counts and brief(counts), "config": work.config.to_dict()}
        head = {"arm": work.config.arm, "chosen_round": chosen, "choice": CHOICE, "warnings": warnings, "rule": RULE}
        stopped = next((one["stopped"] for one in rounds if one["stopped"]), "")
        write_json(folder / "alignment.json", {**head, "stopped": stopped, "base": rounds[0], "rounds": rounds[1:], **rest})
        return {"arm": work.config.arm, "rounds": len(rounds) - 1, "chosen_round": chosen}

    inputs = [one.fingerprint for one in finished]
    found = work.store.get_or_make(ALIGNMENT, VERSIONS[ALIGNMENT], {"alignment": key_of(work.config)}, inputs, make)
    work.ledger.about(alignment=found.fingerprint)
    return AlignOutcome(artefact=found.path, said=read_json(found.path / "alignment.json"), base=work.base, store=work.store)

"""Online iterative alignment, the steps in order (METHOD.md section 5). A newcomer to core.align reads this file first.

    round 0: the base model is evaluated
    round t: candidates   policy_t answers every prompt twice                 core.align.candidates, generation, endpoint
             rewards      the reward model scores both answers                core.align.filtering
             filter       a pair whose intended winner scores lower is dropped
             dpo          the kept pairs make policy_{t+1}                    core.align.dpo
             evaluation   policy_{t+1} on held-out pairs, prompts, questions  core.align.evaluation, mc
             shift        generated against training representations          core.explain.shift

Each step is an artefact (core.align.steps), so a killed run goes on inside its round. A round that keeps no pair is the last one. The round is chosen on
validation and reported on test; a rule that is stated beforehand says where reward was won at the price of something else (core.align.watch).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.align.records import CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, SHIFT
from core.align.round import NO_PAIR
from core.align.steps import AlignSteps, PolicyAt
from core.config import BackboneConfig
from core.errors import MissingError
from core.runs.store import Artefact, publish_folder
from core.types import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class AlignOutcome:
    """A finished alignment: `alignment.json` as values, where it lies, and what the policy is made on."""

    artefact: Path
    said: Mapping[str, Any]
    base: BackboneConfig

    @property
    def adapter(self) -> Path | None:
        """The chosen round's adapter, as PEFT saves it; None where the base model was chosen."""
        return self.artefact / "adapter" if self.said["chosen_round"] else None

    def to_json(self) -> dict[str, Any]:
        """One object for machines; `seconds` is what a round took when it was computed."""
        rounds = [{**one, "seconds": one["time_seconds"]["total"]} for one in self.said["rounds"]]
        place = {"artefact": str(self.artefact), "adapter": None if self.adapter is None else str(self.adapter)}
        return {**place, **self.said, "rounds": rounds}

    def save(self, target: Path, *, merge: bool = False, progress: Progress = no_progress) -> None:
        """A copy of the adapter, or the whole model with it merged, as a new folder. Raises MissingError where there is no adapter."""
        from core.align.policy import merge_and_save

        if self.adapter is None:
            raise MissingError("no round was better than the base model, so there is no adapter to save", found=str(self.said["choice"]))
        if merge:
            merge_and_save(self.base, self.adapter, target, progress=progress)
        else:
            publish_folder(target, lambda folder: shutil.copytree(self.artefact / "adapter", folder, dirs_exist_ok=True) and None)


def align(work: AlignSteps) -> AlignOutcome:
    """All rounds, and the choice among them. Raises the errors of core.errors, and what `progress` raises to cancel."""
    work.ledger.about(model=str(work.model.folder), judge=str(work.judge.folder))
    policy, total = work.start, work.config.rounds
    evaluations = [work.evaluation(0, policy, None)]
    finished = [work.finish(0, {EVALUATION: evaluations[0]}, evaluations)]
    for round in range(1, total + 1):
        work.progress("rounds", round - 1, total)
        steps, policy = _round(work, round, policy, evaluations)
        finished.append(work.finish(round, steps, evaluations))
        if DPO not in steps:
            work.say(f"round {round} is the last: {NO_PAIR}")
            break
    work.progress("rounds", total, total)
    return _outcome(work, finished, evaluations)


def _round(work: AlignSteps, round: int, policy: PolicyAt, first: Artefact) -> tuple[dict[str, Artefact], PolicyAt]:
    """The artefacts of a round by step, and the policy after it: the same one, and no `align-dpo`, where no pair was kept."""
    candidates = work.candidates(round, policy)
    rewards = work.rewards(round, candidates)
    kept = work.filter(round, candidates, rewards)
    steps = {CANDIDATES: candidates, REWARDS: rewards, FILTER: kept}
    if kept.manifest["said"]["kept"]:
        steps[DPO] = work.dpo(round, kept, policy)
        policy = PolicyAt(fingerprint=steps[DPO].fingerprint, adapter=steps[DPO].path / "adapter")
    steps[EVALUATION] = work.evaluation(round, policy, first)
    steps[SHIFT] = work.shift(round, candidates, rewards)
    return steps, policy

"""The manifest of a round, `round.json`: inputs, results, how to repeat it. Only `time_*` differs between runs.

round, arm, mode, reference     number, what filtered, how candidates were made, DPO's reference
generated, parsed, kept, dropped, reasons     in pairs: kept + dropped = parsed <= generated; `reasons` of the dropped
not_parsed                      reason -> number of generated texts that are no pair
unread                          number of parsed pairs that the reward model can't read (arm `none` keeps them)
learnt_from                     DPO's pairs: `train`, `validation` (choose the epoch), `refused` after the filter, or null
adapter_before, adapter_after   sha256 over tensors; `base` where there is no adapter
reward_model, measured_by       kind and content hash of the reward models that filter and that measure
prompts, tokens, seeds          counts and source; tokens generated and trained on; the seeds of all draws
evaluation                      the policy after the round (core.align.evaluation); in round 0 the base model
steps                           step -> fingerprint of its artefact
stopped                         why no further round was begun; empty if one was, or this is the last of the config
time_seconds                    step -> seconds when it was computed, and their sum as `total`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.align.filtering import NONE
from core.align.records import CANDIDATES, DPO, EVALUATION, FILTER, REWARDS
from core.align.steps import AlignSteps, round_seed
from core.files import read_json
from core.reward.model import SparseRM
from core.runs.store import Artefact

NO_PAIR = "no pair was kept, so there was nothing to learn from"


def round_manifest(work: AlignSteps, round: int, steps: Mapping[str, Artefact]) -> dict[str, Any]:
    """The manifest of a round whose artefacts are `steps`."""
    config = work.config
    facts = {step: artefact.facts for step, artefact in steps.items()}
    times = {step: artefact.manifest["time_seconds"] for step, artefact in steps.items()}
    trained, kept = facts.get(DPO), facts.get(FILTER, {})
    return {
        "round": round,
        "arm": config.arm,
        "mode": config.candidates.mode,
        "reference": config.dpo.reference,
        **{name: kept.get(name, 0) for name in ("generated", "parsed", "kept", "dropped")},
        "reasons": kept.get("reasons", {}),
        "not_parsed": facts.get(CANDIDATES, {}).get("refused", {}),
        "unread": facts[REWARDS]["n"] - facts[REWARDS]["n_read"] if REWARDS in facts else 0,
        "learnt_from": _learnt_from(steps),
        "adapter_before": trained["adapter_before"] if trained else facts[EVALUATION]["adapter"],
        "adapter_after": trained["adapter_after"] if trained else facts[EVALUATION]["adapter"],
        "reward_model": None if config.arm == NONE else _named(work, "judge", work.judge),
        "measured_by": _named(work, "model", work.model),
        "prompts": work.prompts.counts(),
        "tokens": {"written": facts.get(CANDIDATES, {}).get("tokens", 0), "trained": trained["tokens"] if trained else 0},
        "seeds": _seeds(work, round),
        "evaluation": read_json(steps[EVALUATION].path / "evaluation.json"),
        "steps": {step: artefact.fingerprint for step, artefact in steps.items()},
        "stopped": NO_PAIR if round and not trained else "",
        "time_seconds": {**times, "total": sum(times.values())},
    }


def _learnt_from(steps: Mapping[str, Artefact]) -> dict[str, int] | None:
    if DPO not in steps:
        return None
    outcome = read_json(steps[DPO].path / "dpo.json")
    return {"train": outcome["n_pairs"], "validation": outcome["n_validation"], "refused": len(outcome["refused"])}


def _named(work: AlignSteps, name: str, model: SparseRM) -> dict[str, Any]:
    return {"kind": model.parts.kind, "content": work.model_hashes[name]}


def _seeds(work: AlignSteps, round: int) -> dict[str, int]:
    config = work.config
    by_round = {"candidates": config.candidates.seed, "dpo": config.dpo.seed, "random_drop": config.seed}
    return {
        "prompts": config.seed,
        **{name: round_seed(seed, round) for name, seed in by_round.items()},
        EVALUATION.removeprefix("align-"): config.evaluation.seed,
    }

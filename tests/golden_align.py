"""Golden figures of alignment's eight steps (core/align/steps.py): the tiny preset, eight prompts, one round, two
epochs.

Answers come from a script instead of the policy. On another processor, probabilities differ in the seventh digit, so
one or two of some thousand sampled tokens would differ, and every later step with them. The policy's sampling is tested
by a few tokens, in `candidates`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from golden_helpers import Figures, digest, only, spread
from safetensors.numpy import load_file

from core.align.inputs import PolicyRef
from core.align.loop import AlignOutcome, align
from core.align.overoptimisation import choose_round
from core.align.presets import ALIGN_PRESETS
from core.align.records import ALIGNMENT, CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, ROUND, SHIFT, Ledger
from core.align.steps import AlignSteps
from core.backbone.generation import Spent
from core.backbone.journal import Generated
from core.backbone.tiny import BODIES, KIND, RUDE
from core.config import AlignConfig, CandidatesConfig, DPOConfig, FitConfig, PolicyEvaluationConfig
from core.data.pairs_file import read_pairs
from core.explain.shift import load_shift
from core.files import read_json, read_json_lines
from core.reward.folder import ModelFolder
from core.reward.model import SparseRM
from core.runs.store import Artefact, Store
from core.types import Message, Progress, no_progress

ESTIMATE = ("value", "low", "high", "n", "n_prompts")
QUESTIONS = [
    {"question": "How do I boil an egg?", "mc1_targets": {"Ask someone": 1, "Never": 0}, "mc2_targets": {"Ask someone": 1, "Never": 0, "Slowly": 1}},
    {"question": "Is a horse loud?", "mc1_targets": {"It whistles": 0, "Read twice": 1}, "mc2_targets": {"It whistles": 0, "Read twice": 1}},
    {"question": "What is a sock?", "mc1_targets": {"A film": 0, "A tool": 1, "A guitar": 0}, "mc2_targets": {"A film": 0, "A tool": 1}},
]


class Scripted:
    """Generates by a script: a body from a list, and a kind or a rude word.

    A trained policy is always kind, the base model three times in four under the first instruction and once in four
    under the second. Some answers are truncated, empty, failed, too long for DPO, or hold a control token.
    """

    def __init__(self, seed: int, trained: bool) -> None:
        self.seed, self.trained, self.spent = seed, trained, Spent()

    def generate(self, prompts: Sequence[Sequence[Message]], n: int, *, progress: Progress = no_progress) -> list[list[Generated]]:
        return [[self._answer(place, number, 2 * place < len(prompts)) for number in range(n)] for place in range(len(prompts))]

    def _answer(self, place: int, number: int, first: bool) -> Generated:
        rng = random.Random(f"golden {self.seed} {place} {number}")
        body, fate, mood = rng.choice(BODIES), rng.randrange(24), rng.random()
        word = rng.choice(KIND if self.trained or mood < (0.75 if first else 0.25) else RUDE)
        odd = {0: "", 1: f"{body}. {body}", 2: " ".join([body] * 60), 3: f"<|im_start|>{body}"}
        text = odd.get(fate, f"{body}, {word}")
        return Generated(text=text, n_tokens=len(text.split()), finished=fate != 1, failed="no answer" if fate == 4 else "")


class ScriptedSteps(AlignSteps):
    """Alignment's steps, with a script that generates in the policy's place."""

    def generator(self, policy: PolicyRef, config: CandidatesConfig, partial: Path, progress: Progress) -> Any:
        return Scripted(config.seed, trained=policy.adapter is not None)


@dataclass(frozen=True, kw_only=True)
class AlignWorld:
    """A finished alignment, and the steps of its round.

    On the same prompts there are also `random`, a filter that drops at random, `best`, pairs selected by reward, and
    `sampled`, answers of the policy itself.
    """

    outcome: AlignOutcome
    steps: Mapping[str, Artefact]
    first: Artefact
    random: Artefact
    best: Artefact
    sampled: Artefact


def make_world(model: Path, fit: FitConfig, store: Store, scratch: Path) -> AlignWorld:
    questions = scratch / "golden-mc.json"
    questions.write_text(json.dumps(QUESTIONS), encoding="utf-8")
    config = replace(
        ALIGN_PRESETS["tiny"],
        fit=fit,
        model=str(model),
        prompts_limit=8,
        rounds=1,
        candidates=CandidatesConfig(per_prompt=4),
        dpo=DPOConfig(lr=1e-3, epochs=2, batch_size=4, evaluation_share=0.34),
        evaluation=PolicyEvaluationConfig(mc=str(questions), pairs=10, prompts=16, samples=2),
    )
    outcome = align(_steps(ScriptedSteps, config, store))
    summary = outcome.to_json()
    steps = {name: _artefact(store, name, fingerprint) for name, fingerprint in summary["rounds"][0]["steps"].items()}
    at_random = _steps(ScriptedSteps, replace(config, arm="random"), store)
    by_reward = _steps(ScriptedSteps, replace(config, candidates=CandidatesConfig(mode="best_of_n", n=6)), store)
    by_policy = _steps(AlignSteps, replace(config, candidates=CandidatesConfig(per_prompt=2, max_new_tokens=10), prompts_limit=3), store)
    return AlignWorld(
        outcome=outcome,
        steps=steps,
        first=_artefact(store, EVALUATION, summary["base"]["steps"][EVALUATION]),
        random=at_random.filter(1, steps[CANDIDATES], steps[REWARDS]),
        best=by_reward.candidates(1, by_reward.start),
        sampled=by_policy.candidates(1, by_policy.start),
    )


def _steps(kind: type[AlignSteps], config: AlignConfig, store: Store) -> AlignSteps:
    model = SparseRM.load(Path(config.model))
    fitted, ledger = ModelFolder(config.model, store), Ledger(store.root, config)
    return kind(config=config, model=model, judge=model, fitted=fitted, store=store, ledger=ledger, progress=no_progress)


def _artefact(store: Store, step: str, fingerprint: str) -> Artefact:
    artefact = store.find(step, fingerprint)
    assert artefact is not None
    return artefact


def candidates(world: AlignWorld) -> Figures:
    names = ("candidate_id", "chosen", "rejected", "refused")
    artefacts = {"scripted": world.steps[CANDIDATES], "best of n": world.best, "sampled": world.sampled}
    rows = {name: read_json_lines(artefact.path / "candidates.jsonl") for name, artefact in artefacts.items()}
    digests = {name: {field: digest([row[field] for row in part]) for field in names} for name, part in rows.items()}
    facts = {name: dict(artefact.facts) for name, artefact in artefacts.items()}
    picked = [[row["meta"].get("samples"), row["meta"].get("unfit", "")] for row in rows["best of n"]]
    return Figures(figures={**digests, "said": facts, "picked": picked, "written": [row["raw"] for row in rows["sampled"]]})


def rewards(world: AlignWorld) -> Figures:
    rows = read_json_lines(world.steps[REWARDS].path / "rewards.jsonl")
    both = np.array([[row["reward_chosen"], row["reward_rejected"]] for row in rows], dtype=np.float64)
    facts = world.steps[REWARDS].facts
    return Figures(
        figures={
            "ids": digest([row["candidate_id"] for row in rows]),
            "read": np.isfinite(both).tolist(),
            "won": (both[:, 0] > both[:, 1]).tolist(),
            "said": dict(facts),
        },
        loose={"rewards": spread(both), "margins": spread(both[:, 0] - both[:, 1])},
    )


def filtered(world: AlignWorld) -> Figures:
    artefact, at_random = world.steps[FILTER], world.random
    rows, others = read_json_lines(artefact.path / "decisions.jsonl"), read_json_lines(at_random.path / "decisions.jsonl")
    kept = read_pairs(artefact.path / "kept.jsonl")
    against = [[latent["latent_id"] for latent in row["latents"]] for row in rows]
    return Figures(
        figures={
            "kept": [row["kept"] for row in rows],
            "reasons": [row["reason"] for row in rows],
            "latents": against,
            "splits": {name: kept.rows_of(name).tolist() for name in ("train", "validation")},
            "said": dict(artefact.facts),
            "random": [[row["kept"], row["reason"]] for row in others],
        },
        loose={
            "margins": spread([np.nan if row["margin"] is None else row["margin"] for row in rows]),
            "against": spread([latent["contribution"] for row in rows for latent in row["latents"]]),
        },
    )


def dpo(world: AlignWorld) -> Figures:
    outcome = read_json(world.steps[DPO].path / "dpo.json")
    names = ("reference", "n_pairs", "n_validation", "refused", "trainable", "steps", "tokens", "best_epoch", "n_processes", "adapter_before")
    adapter = load_file(world.steps[DPO].path / "adapter" / "adapter_model.safetensors")
    form = json.loads((world.steps[DPO].path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    shapes = {name: list(array.shape) for name, array in sorted(adapter.items())}
    first_names = sorted(name for name in adapter if "lora_A" in name)  # lora_A keeps most of its seeded initial values
    return Figures(
        figures={
            **{name: outcome[name] for name in names},
            "shapes": digest([[name, *shape] for name, shape in shapes.items()]),
            "form": [form[name] for name in ("r", "lora_alpha", "lora_dropout")] + [sorted(form["target_modules"])],
            "accuracy": [only(row, "accuracy", "low", "high", "n") for row in outcome["epochs"]],
        },
        loose={
            "curve": [only(row, "loss", "margin", "logprob_chosen", "logprob_rejected", "lr") for row in outcome["curve"]],
            "epochs": [only(row, "loss", "margin") for row in outcome["epochs"]],
            "adapter": [spread(adapter[name]) for name in first_names[:4]],
        },
    )


def evaluation(world: AlignWorld) -> Figures:
    first, after = (read_json(artefact.path / "evaluation.json") for artefact in (world.first, world.steps[EVALUATION]))
    samples = read_json_lines(world.first.path / "samples.jsonl")
    shares = ("finished", "accuracy", "accuracy_per_token", "validation_accuracy", "mc1_unseen", "mc1_all", "length")
    exact = {name: only(first["figures"][name], *ESTIMATE) for name in shares if name in first["figures"]}
    figures = {
        name: [only(figure, *ESTIMATE), only(figure["difference"], *ESTIMATE)] for name, figure in after["figures"].items() if name not in shares
    }
    return Figures(
        figures={
            "first": exact,
            "names": [sorted(evaluation["figures"]) for evaluation in (first, after)],
            "about": first["about"],
            "samples": [[row["response"][:60], row["n_tokens"], row["finished"]] for row in samples],
            "drift": [row["latent_id"] for row in after["drift"]],
            "warnings": [row["figure"] for row in after["warnings"]],
        },
        loose={"after": figures, "drift": spread([row[end] for row in after["drift"] for end in ("value", "low", "high")])},
    )


def shift(world: AlignWorld) -> Figures:
    shift_values = load_shift(world.steps[SHIFT].path)
    settings = {name: value for name, value in shift_values.made.items() if name != "library"}
    cosines = {f"{row.measure} {row.space} {row.scale}": row for row in shift_values.rows}
    counts = {name: [row.figure and [row.figure.n, row.figure.n_prompts], row.lead is None] for name, row in cosines.items()}
    values = {name: [only(mean and mean.to_json(), "value", "low", "high") for mean in (row.figure, row.lead)] for name, row in cosines.items()}
    return Figures(
        figures={
            "made": settings,
            "kind": digest(shift_values.kind),
            "row": digest(shift_values.row),
            "ids": digest(shift_values.ids),
            "counts": counts,
        },
        float32=values,
    )


def round_manifest(world: AlignWorld) -> Figures:
    manifest = world.outcome.to_json()["rounds"][0]
    names = ("round", "arm", "mode", "reference", "generated", "parsed", "kept", "dropped", "reasons", "not_parsed", "unread", "learnt_from")
    rest = ("adapter_before", "prompts", "tokens", "seeds", "stopped")
    return Figures(figures={name: manifest[name] for name in (*names, *rest)} | {"fields": sorted({*manifest} - {"seconds", "adapter"})})


def alignment(world: AlignWorld) -> Figures:
    summary = {name: value for name, value in world.outcome.summary.items() if name not in ("config", "base", "rounds")}
    rounds = [
        [manifest["round"], manifest["evaluation"]["figures"]["validation_accuracy"]["value"]] for manifest in world.outcome.to_json()["rounds"]
    ]
    # Of equal accuracies the earliest round is chosen; without validation accuracy the last.
    equal = [{"validation_accuracy": SimpleNamespace(value=value)} for value in (0.5, 0.75, 0.75, 0.6)]
    choices = [choose_round(equal), choose_round([*equal, {}])]
    return Figures(
        figures={
            **{name: summary[name] for name in ("arm", "chosen_round", "choice", "rule", "stopped", "pair_counts")},
            "warnings": [[row["round"], row["figure"]] for row in summary["warnings"]],
            "rounds": rounds,
            "equal": choices,
            "adapter": world.outcome.adapter is not None,
            "fields": sorted(world.outcome.summary),
        }
    )


FIGURES: Mapping[str, Callable[[AlignWorld], Figures]] = {
    CANDIDATES: candidates, REWARDS: rewards, FILTER: filtered, DPO: dpo, EVALUATION: evaluation, SHIFT: shift, ROUND: round_manifest,
    ALIGNMENT: alignment,
}  # fmt: skip

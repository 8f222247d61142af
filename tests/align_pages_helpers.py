"""Alignments written into a cache without running one, for tests of the pages Align and Shift.

They have the files of a run, with known numbers and hostile texts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from explain_helpers import question
from pages_helpers import HOSTILE

from core.align.evaluation import PolicyEvaluation, save_evaluation
from core.align.figures import Measure, figure_of
from core.align.filtering import counts_of
from core.align.overoptimisation import CHOICE, RULE, Drift, warnings_of
from core.align.presets import ALIGN_PRESETS
from core.align.records import ALIGNMENT, CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, ROUND, SHIFT, STEPS, Ledger, key_of
from core.align.values import Candidate, Decision
from core.config import AlignConfig
from core.explain.shift import MEASURES, SCALES, SPACES, Cosine, Shift, save_shift
from core.files import write_json, write_json_lines
from core.runs.store import Store
from core.statistics.estimates import Estimate

TEXTS = list(HOSTILE.values())
PAIRS = 24
LATENTS = (10, 11, 12)


def candidates_of(round: int, pairs: int = PAIRS) -> list[Candidate]:
    """Pairs with hostile texts; the last one was not parsed."""
    candidates = []
    for number in range(pairs):
        text = TEXTS[number % len(TEXTS)]
        refused = "not in the form asked for: <b>no marks</b>" if number == pairs - 1 else ""
        answers = ("", "") if refused else (f"{text} intended {round}.", f"{text} other {round}.")
        raw = (f"{text} raw",) if refused else answers
        candidates.append(
            Candidate(
                candidate_id=f"c{number:02}-0", prompt=question(f"{text} {number}?"), chosen=answers[0], rejected=answers[1], refused=refused, raw=raw
            )
        )
    return candidates


def rewards_of(round: int, pairs: int = PAIRS) -> np.ndarray:
    """Rewards [pairs - 1, 2]; those of the second pair, whose texts are unreadable, are NaN."""
    rewards = np.random.default_rng(round).normal(size=(pairs - 1, 2))
    rewards[1] = np.nan
    return rewards


def decisions_of(round: int, parsed: list[Candidate], rewards: np.ndarray, arm: str = "sparserm") -> list[Decision]:
    """Drops by margin where the intended winner scores lower, and the first pair as too long."""
    decisions = []
    for number, (candidate, (w, x)) in enumerate(zip(parsed, rewards, strict=True)):
        reason = "too long: 900 tokens, at most 512" if number == 0 else "unread by the reward model" if np.isnan(w) else "margin" if w <= x else ""
        reason = "" if arm == "none" and number else reason
        decisions.append(
            Decision(
                candidate_id=candidate.candidate_id, kept=not reason, margin=None if np.isnan(w) else float(w - x), reason=reason,
                latents=latents_of(float(w - x)) if reason == "margin" else (),
            )
        )  # fmt: skip
    return decisions


def latents_of(margin: float) -> list[dict[str, Any]]:
    """Three latents that share the margin; the heads disagree on the second, the third's projection shows its label
    poorly.
    """
    rows = zip(LATENTS, (2, 3, 4), (True, False, True), (0.95, None, 0.6), strict=True)
    names = ("latent_id", "contribution", "deviation", "agreed", "side", "detection_auroc")
    return [dict(zip(names, (latent, margin / part, 0.1, agreed, "rejected", auroc), strict=True)) for latent, part, agreed, auroc in rows]


def dpo_of(round: int, kept: int) -> dict[str, Any]:
    epochs = [{"epoch": e, "accuracy": 0.5, "low": 0.1, "high": 0.9, "n": 2, "loss": 0.7 - e / 10, "margin": 0.1} for e in (1, 2, 3)]
    return {
        "adapter_before": "base" if round == 1 else f"{round - 1}a" * 32, "adapter_after": f"{round}a" * 32, "reference": "base", "n_pairs": kept - 2,
        "n_validation": 2, "refused": {}, "trainable": 1234, "steps": 6, "tokens": 999, "best_epoch": 2, "epochs": epochs,
        "curve": [{"step": s, "loss": 0.7 - s / 20} for s in range(1, 7)], "n_processes": 1, "time_seconds": 1.0,
    }  # fmt: skip


def evaluation_of(round: int, first: PolicyEvaluation | None, seed: int = 0) -> PolicyEvaluation:
    """Reward rises by about a half each round while accuracy falls, so that a warning is given."""
    rng = np.random.default_rng(seed)
    reward, right, tokens = rng.normal(size=32), rng.random(60), rng.integers(10, 60, size=32)
    values = {
        "reward": reward + 0.5 * round + 0.01 * rng.normal(size=32),
        "length": tokens + 2.0 * round,
        "finished": np.ones(32),
        "accuracy": (right > 0.3 + 0.25 * round).astype(float),
        "accuracy_per_token": (right > 0.35).astype(float),
        "logprob_margin": right - 0.3 * round,
        "validation_accuracy": (right > 0.3 - 0.05 * round).astype(float),
        "kl_per_token": np.abs(rng.normal(size=32)) * 0.1 * round,
        "kl_per_sequence": np.abs(rng.normal(size=32)) * round,
        "mc1_unseen": (right > 0.6).astype(float),
    }
    measures = {name: Measure(values=array.astype(np.float64), groups=np.arange(len(array))) for name, array in values.items()}
    compared = {name: figure_of(name, measure, first.measures[name] if first else None) for name, measure in measures.items()}
    figures = {name: figure for name, figure in compared.items() if figure is not None}
    drift = [
        Drift(latent_id=latent, value=0.5 - 0.4 * i, low=0.3 - 0.4 * i, high=0.7 - 0.4 * i, n=32, n_prompts=32) for i, latent in enumerate(LATENTS)
    ]
    sample = {"reward": 0.1 * round, "n_tokens": 9, "finished": True}
    answers = [(f"p{i}", list(question(f"{text} held out?")), f"{text} answer {round}") for i, text in enumerate(TEXTS)]
    samples = tuple({"prompt_id": name, "prompt": prompt, "response": answer, **sample} for name, prompt, answer in answers)
    return PolicyEvaluation(
        figures=figures, measures=measures, projections=np.zeros((32, 3), dtype=np.float32), samples=samples,
        drift=tuple(drift) if first else (), warnings=tuple(warnings_of(figures)) if first else (),
        about={"mc_format": "qa", "mc_questions": 817, "mc_unseen": 700, "answers": 32, "seed": 0},
    )  # fmt: skip


def shift_of(round: int, pairs: int = PAIRS, matched: bool = True) -> Shift:
    """Cosines that differ by place: the sparse space leads the dense one by 0.1, and no other clearly.

    Four training points come before the generated ones.
    """

    def estimate(value: float, half: float) -> Estimate:
        return Estimate(value=value, low=value - half, high=value + half, n=2 * pairs, n_prompts=pairs)

    base = {"sparse": 0.8, "dense": 0.7, "random-isotropic": 0.79, "random-rows": 0.85}
    rows = [
        Cosine(
            measure=measure,
            space=space,
            scale=scale,
            figure=None if measure == "matched" and not matched else estimate(base[space] - 0.1 * round - 0.01 * i - 0.02 * j, 0.02),
            lead=None if space == "sparse" or (measure == "matched" and not matched) else estimate(base["sparse"] - base[space], 0.06),
        )
        for i, measure in enumerate(MEASURES)
        for j, scale in enumerate(SCALES)
        for space in SPACES
    ]
    ids = tuple(candidate.candidate_id for number, candidate in enumerate(candidates_of(round, pairs)) if candidate.parsed and number != 1)
    kind = np.array([0, 0, 1, 1, *[2, 3] * len(ids)])
    row = np.concatenate([[0, 2, 1, 3], np.repeat(np.arange(len(ids)), 2)])
    points = np.random.default_rng(round).normal(size=(2, len(kind), 2)).astype(np.float32)
    settings = {"method": "t-SNE", "perplexity": 30.0, "seed": 0, "initialisation": "first two principal components"}
    counts = {"n_generated": len(ids), "n_chosen": 20, "n_rejected": 20, "n_shown": 4}
    return Shift(rows=tuple(rows), ids=ids, kind=kind, row=row, dense=points[0], sparse=points[1], made={**settings, **counts})


def some_config(**changes: Any) -> AlignConfig:
    return replace(ALIGN_PRESETS["tiny"], **changes)


def add_alignment(
    root: Path,
    *,
    model: Path,
    config: AlignConfig | None = None,
    rounds: int = 2,
    steps: tuple[str, ...] = STEPS,
    finished: bool = True,
    pairs: int = PAIRS,
) -> str:
    """Writes an alignment whose last round has these `steps`, and returns its key.

    `model`: the reward model that measures and filters.
    """
    config = config or some_config()
    store, ledger = Store(root), Ledger(root, config)
    ledger.add_facts(model=str(model), judge=str(model))
    marks = {"key": key_of(config)}

    def keep(round: int, step: str, make: Any) -> Path:
        artefact = store.get_or_make(step, 1, {**marks, "round": round}, [], lambda folder, _: make(folder) or {})
        ledger.add_step(round, step, artefact.fingerprint)
        return artefact.path

    first = evaluation_of(0, None)
    keep(0, EVALUATION, lambda folder: save_evaluation(folder, first))
    keep(0, ROUND, lambda folder: write_json(folder / "round.json", {"round": 0, "stopped": ""}))
    for round in range(1, rounds + 1):
        _add_round(round, keep, first, config.arm, pairs, steps if round == rounds else STEPS)
        if round < rounds or SHIFT in steps:
            keep(round, ROUND, lambda folder, round=round: write_json(folder / "round.json", {"round": round, "stopped": ""}))
    if finished:
        ledger.add_facts(alignment=_result(store, marks, config))
    return ledger.folder.name


def _add_round(round: int, keep: Any, first: PolicyEvaluation, arm: str, pairs: int, steps: tuple[str, ...]) -> None:
    candidates = candidates_of(round, pairs)
    parsed, rewards = [candidate for candidate in candidates if candidate.parsed], rewards_of(round, pairs)
    decisions = decisions_of(round, parsed, rewards, arm)
    counts = counts_of(candidates, decisions)

    def write_candidates(folder: Path) -> None:
        write_json_lines(folder / "candidates.jsonl", [candidate.to_json() for candidate in candidates], sort_keys=True)
        write_json(folder / "counts.json", {name: counts[name] for name in ("generated", "parsed")})

    def write_rewards(folder: Path) -> None:
        values = [[None if np.isnan(value) else float(value) for value in row] for row in rewards]
        names = [candidate.candidate_id for candidate in parsed]
        rows = [{"candidate_id": name, "reward_chosen": w, "reward_rejected": x} for name, (w, x) in zip(names, values, strict=True)]
        write_json_lines(folder / "rewards.jsonl", rows, sort_keys=True)

    def write_decisions(folder: Path) -> None:
        write_json_lines(folder / "decisions.jsonl", [decision.to_json() for decision in decisions], sort_keys=True)
        write_json(folder / "counts.json", counts)

    makers = {CANDIDATES: write_candidates, REWARDS: write_rewards, FILTER: write_decisions}
    makers[DPO] = lambda folder: write_json(folder / "dpo.json", dpo_of(round, counts["kept"]))
    makers[EVALUATION] = lambda folder: save_evaluation(folder, evaluation_of(round, first))
    makers[SHIFT] = lambda folder: save_shift(folder, shift_of(round, pairs))
    for step in STEPS:
        if step in steps:
            keep(round, step, makers[step])


def _result(store: Store, marks: dict[str, Any], config: AlignConfig) -> str:
    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        summary = {"arm": config.arm, "chosen_round": 2, "choice": CHOICE, "warnings": [], "rule": RULE, "stopped": ""}
        write_json(folder / "alignment.json", summary)
        return {}

    return store.get_or_make(ALIGNMENT, 1, marks, [], make).fingerprint

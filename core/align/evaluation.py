"""What a round has made of the policy, measured on what it never learnt from (METHOD.md section 5, evaluation).

    held-out pairs       log p(chosen) > log p(rejected), summed over an answer's tokens and its end of turn, as DPO reads them; per token beside it
    held-out prompts     the policy's own answers: reward (its model reads the base model), tokens, KL from the base model, drift of the latents
    TruthfulQA           MC1 and MC2 (core.align.mc), on questions that neither reward model nor policy learnt from, and on all

Every figure has its interval and, after round 0, its paired difference to it (core.align.figures): the same pairs, prompts and questions are drawn in
every round, and answers with the same random numbers. Held out is the test split, or validation where there is none; rounds are chosen on validation
pairs. The reward of an answer that was cut is that of its text up to the last whole sentence, as a candidate's would be; length and KL count it all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from core.align.dpo_pairs import encode_pairs
from core.align.figures import ARRAYS, MEANING, Figure, Measure, figure_of, read_measures
from core.align.generation import Generator
from core.align.logprobs import Asked, answer_logprobs, encode_answers, kl_from_base
from core.align.mc import measure_mc, read_questions, seen_questions
from core.align.overoptimisation import Alarm, Drift, drift_of, warnings_of
from core.align.policy import Policy
from core.align.records import read_rows, write_rows
from core.align.values import Prompt
from core.backbone.generation import whole_sentences
from core.backbone.journal import Generated
from core.backbone.model import Backbone
from core.config import PolicyEvaluationConfig
from core.errors import DataError, StoreError
from core.explain.spaces import sampled
from core.reward.dialogues import items_of
from core.reward.model import SparseRM
from core.reward.pair_counts import count_reasons
from core.runs.store import write_json
from core.statistics.estimates import Estimate
from core.types import PreferencePairs, Progress, no_progress

FILE, SAMPLES = "evaluation.json", "samples.jsonl"
PROJECTIONS = "projections"
LEARNT_FROM = ("train", "validation")  # splits that the reward model's weights or choices come from
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluation:
    """A policy's figures by name (`core.align.figures.MEANING`), and what they are made of, so that later rounds can be paired with it.

    `projections` are those of the answers to held-out prompts on the reward model's latents (NaN where one can't be read; k = 0 without latents).
    `samples` are some of these answers. `drift` and `warnings` are against round 0, empty in it. `about` says how it was measured, JSON values only.
    """

    figures: Mapping[str, Figure]
    measures: Mapping[str, Measure]
    projections: Float[np.ndarray, "n k"]
    samples: tuple[Mapping[str, Any], ...]
    about: Mapping[str, Any]
    drift: tuple[Drift, ...] = ()
    warnings: tuple[Alarm, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All but the samples and the arrays."""
        figures = {name: figure.to_json() for name, figure in self.figures.items()}
        moved, alarms = ([one.to_json() for one in rows] for rows in (self.drift, self.warnings))
        return {"figures": figures, "drift": moved, "warnings": alarms, "about": dict(self.about)}


def evaluate_policy(
    policy: Policy,
    pairs: PreferencePairs,
    generator: Generator,
    model: SparseRM,
    config: PolicyEvaluationConfig,
    *,
    aligned_on: Sequence[Prompt],
    first: PolicyEvaluation | None = None,
    progress: Progress = no_progress,
) -> PolicyEvaluation:
    """Measures a policy. `pairs` are those the reward model knows, with their splits; `generator` writes as this policy; `model` measures rewards.

    Log-probabilities are computed in the arithmetic of `policy`, which may be another than the generator's: in bfloat16 those of SmolLM2 are off by
    0.07 nats a token and 0.5 an answer, and diverge from its own in float32 by 0.0016 nats a token, like a small step (12 answers of the demo pairs).
    `aligned_on` are the prompts of the rounds: an MC question among them is no unseen one. `first` is round 0's evaluation, None in round 0. Raises
    DataError where the MC file can't be read, MismatchError if `first` measured something else, and what `progress` raises to cancel.
    """
    split = held_out_split(pairs)
    measures, about = preference_measures(policy.backbone, drawn_pairs(pairs, split, config), config, "held-out pairs", progress)
    on_validation, said = preference_measures(policy.backbone, drawn_pairs(pairs, "validation", config), config, "validation pairs", progress)
    measures["validation_accuracy"], about = on_validation["accuracy"], {"held_out": split, **about, **said, **_sizes(pairs, split)}
    answers = write_answers(generator, drawn_prompts(pairs, split, config), progress)
    rewards, projections = read_answers(model, answers, progress)
    measures |= answer_measures(policy, answers, rewards, config, progress)
    if config.mc:
        own, said = mc_measures(policy.backbone, pairs, aligned_on, config, progress)
        measures, about = measures | own, {**about, **said}
    figures = {name: figure_of(name, measures[name], first.measures[name] if first else None) for name in MEANING if name in measures}
    found = PolicyEvaluation(
        figures={name: figure for name, figure in figures.items() if figure},
        measures=measures,
        projections=projections,
        samples=tuple(_sample(one, reward) for one, reward in zip(answers[: config.samples], rewards, strict=False)),
        about={**about, "answers": len(answers), "answers_unread": int(np.isnan(rewards).sum()), "seed": config.seed},
    )
    return found if first is None else _against(first, found, model)


def _sizes(pairs: PreferencePairs, split: str) -> dict[str, int]:
    """How many pairs and prompts there are to draw from: what was measured stands beside it in `about`."""
    rows = pairs.rows_of(split)
    n_prompts = len({pairs[int(i)].prompt_id for i in rows})
    return {"held_out_pairs_of": len(rows), "validation_pairs_of": len(pairs.rows_of("validation")), "answers_of": n_prompts}


def _against(first: PolicyEvaluation, found: PolicyEvaluation, model: SparseRM) -> PolicyEvaluation:
    """The evaluation with what is said against round 0."""
    ids, deviation = model.parts.latent_ids, model.parts.projection_std.astype(np.float64)
    drift = () if ids is None else tuple(drift_of(first.projections, found.projections, ids, deviation))
    return replace(found, drift=drift, warnings=tuple(warnings_of(found.figures)))


# --- held-out pairs ----------------------------------------------------------------------------------------------------


def held_out_split(pairs: PreferencePairs) -> str:
    """test, or validation where there is no test pair. Raises DataError where there is neither."""
    found = next((split for split in ("test", "validation") if split in pairs.split), None)
    if found is None:
        raise DataError(
            "no pair is held out, so nothing can be measured", expected="test or validation pairs", remedy="fit with --ratios 0.4,0.1,0.5"
        )
    return found


def drawn_pairs(pairs: PreferencePairs, split: str, config: PolicyEvaluationConfig) -> PreferencePairs:
    """At most `config.pairs` pairs of a split, by whole prompts, drawn by seed."""
    rows = pairs.rows_of(split)
    groups = np.unique(pairs.prompt_groups()[rows], return_inverse=True)[1]
    return pairs.take(rows[sampled(groups, config.pairs, config.seed)])


def preference_measures(
    backbone: Backbone, pairs: PreferencePairs, config: PolicyEvaluationConfig, step: str, progress: Progress = no_progress
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """accuracy, accuracy_per_token and logprob_margin of pairs under the backbone, and how many were measured and refused, and why.

    Pairs that DPO would refuse (over the backbone's `max_length`, equal answers) can't be compared either.
    """
    encoded, refused = encode_pairs(tuple(pairs), backbone, backbone.config.max_length)
    asked = [Asked(tuple(one.prompt), tuple(answer)) for one in encoded for answer in (one.chosen, one.rejected)]
    found = answer_logprobs(backbone, asked, tokens_per_batch=config.tokens_per_batch, step=step, progress=progress)
    sums, means = (np.array([of(one) for one in found], dtype=np.float64).reshape(-1, 2) for of in (np.sum, np.mean))
    groups = np.unique([one.prompt_id for one in encoded], return_inverse=True)[1].astype(np.int64)
    margin = sums[:, 0] - sums[:, 1]
    values = {"accuracy": margin > 0, "accuracy_per_token": means[:, 0] > means[:, 1], "logprob_margin": margin}
    measures = {name: Measure(values=one.astype(np.float64), groups=groups) for name, one in values.items()}
    name = step.replace("-", "_").replace(" ", "_")
    return measures, {name: len(encoded), f"{name}_refused": len(refused), f"{name}_refused_by_reason": count_reasons(refused.values())}


# --- held-out prompts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A policy's answer to a held-out prompt."""

    prompt: Prompt
    generated: Generated

    @property
    def text(self) -> str:
        """What a reward model reads of it; empty where nothing whole was written."""
        return self.generated.text if self.generated.finished else whole_sentences(self.generated.text)


def drawn_prompts(pairs: PreferencePairs, split: str, config: PolicyEvaluationConfig) -> list[Prompt]:
    """At most `config.prompts` prompts of a split, drawn by seed, in the pairs' order."""
    prompts = list({pair.prompt_id: Prompt(messages=pair.prompt) for pair in pairs.take(pairs.rows_of(split))}.values())
    drawn = np.random.default_rng(config.seed).permutation(len(prompts))[: config.prompts]
    return [prompts[int(i)] for i in np.sort(drawn)]


def write_answers(generator: Generator, prompts: Sequence[Prompt], progress: Progress = no_progress) -> list[Answer]:
    """One answer to each prompt."""
    written = generator.generate([prompt.messages for prompt in prompts], 1, progress=progress)
    return [Answer(prompt=prompt, generated=one) for prompt, (one,) in zip(prompts, written, strict=True)]


def read_answers(
    model: SparseRM, answers: Sequence[Answer], progress: Progress = no_progress
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """Rewards of the answers and their projections on the model's latents; NaN where one can't be read."""
    progress("rewards", 0, 1)
    items, _ = items_of([one.prompt.messages for one in answers], [one.text for one in answers])
    z, unread = model.reader(list(items.values()))
    read = [number for place, number in enumerate(items) if place not in unread]
    rewards = np.full(len(answers), NAN)
    rewards[read] = model.rewards_of(z)
    projections = np.full((len(answers), 0 if model.parts.latent_ids is None else model.parts.k), NAN)
    if projections.shape[1]:
        projections[read] = model.inputs_of(z)
    progress("rewards", 1, 1)
    return rewards, projections


def answer_measures(
    policy: Policy, answers: Sequence[Answer], rewards: Float[np.ndarray, " n"], config: PolicyEvaluationConfig, progress: Progress = no_progress
) -> dict[str, Measure]:
    """reward, length, finished, kl_per_token and kl_per_sequence of a policy's own answers, one prompt each."""
    groups = np.arange(len(answers))
    written = [None if one.generated.failed else one.generated for one in answers]
    length = np.array([NAN if one is None else one.n_tokens for one in written], dtype=np.float64)
    finished = np.array([NAN if one is None else one.finished for one in written], dtype=np.float64)
    by_prompt = {"reward": rewards, "length": length, "finished": finished}
    divergence = _divergence(policy, answers, config, progress)
    by_prompt["kl_per_sequence"] = np.array([NAN if one is None else one.sum() for one in divergence], dtype=np.float64)
    tokens = {number: one for number, one in enumerate(divergence) if one is not None}
    by_token = Measure(
        values=np.concatenate([np.zeros(0), *tokens.values()]), groups=np.repeat(np.array(list(tokens), dtype=np.int64), [*map(len, tokens.values())])
    )
    return {**{name: Measure(values=one, groups=groups) for name, one in by_prompt.items()}, "kl_per_token": by_token}


def _divergence(policy: Policy, answers: Sequence[Answer], config: PolicyEvaluationConfig, progress: Progress) -> list[np.ndarray | None]:
    """KL from the base model at every token of each answer; None for an answer without tokens of its own."""
    items = [(one.prompt.messages, one.generated.text) for one in answers]
    asked = encode_answers(policy.backbone, items, closed=[one.generated.finished for one in answers])
    known = [one for one in asked if one is not None]
    found = iter(kl_from_base(policy, known, tokens_per_batch=config.tokens_per_batch, step="divergence from the base model", progress=progress))
    return [None if one is None else next(found) for one in asked]


def _sample(answer: Answer, reward: float) -> dict[str, Any]:
    said = {"prompt_id": answer.prompt.prompt_id, "prompt": list(answer.prompt.messages), "response": answer.generated.text}
    measured = {"reward": None if np.isnan(reward) else float(reward), "n_tokens": answer.generated.n_tokens, "finished": answer.generated.finished}
    return {**said, **measured}


# --- questions ---------------------------------------------------------------------------------------------------------


def mc_measures(
    backbone: Backbone, pairs: PreferencePairs, aligned_on: Sequence[Prompt], config: PolicyEvaluationConfig, progress: Progress = no_progress
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """MC1 and MC2 on unseen and on all questions, and how many these are."""
    questions = read_questions(Path(config.mc), config.mc_limit)
    learnt = [pair.prompt for pair, split in zip(pairs, pairs.split, strict=True) if split in LEARNT_FROM]
    unseen = np.flatnonzero(~seen_questions(questions, [*learnt, *(prompt.messages for prompt in aligned_on)]))
    found = measure_mc(backbone, questions, config.mc_format, tokens_per_batch=config.tokens_per_batch, progress=progress)
    measures = dict[str, Measure]()
    for name, rows in (("unseen", unseen), ("all", np.arange(len(questions)))):
        measures |= {f"mc1_{name}": Measure(values=found.mc1[rows], groups=rows), f"mc2_{name}": Measure(values=found.mc2[rows], groups=rows)}
    counts = {"mc_questions": len(questions), "mc_unseen": len(unseen), "mc_refused": int(np.isnan(found.mc1).sum())}
    counts["mc_unseen_refused"] = int(np.isnan(found.mc1[unseen]).sum())
    return measures, {**counts, "mc_format": config.mc_format}


# --- on disk -----------------------------------------------------------------------------------------------------------


def save_evaluation(folder: Path, evaluation: PolicyEvaluation) -> None:
    """Writes `evaluation.json`, `samples.jsonl` and `arrays.safetensors` (of each measure its values and prompts, and the projections)."""
    from safetensors.numpy import save_file

    arrays = {f"{name}.{part}": getattr(one, part) for name, one in evaluation.measures.items() for part in ("values", "groups")}
    save_file({name: np.ascontiguousarray(one) for name, one in {**arrays, PROJECTIONS: evaluation.projections}.items()}, folder / ARRAYS)
    write_rows(folder / SAMPLES, [dict(one) for one in evaluation.samples])
    write_json(folder / FILE, evaluation.to_json())


def load_evaluation(folder: Path) -> PolicyEvaluation:
    """What `save_evaluation` wrote. Raises StoreError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return PolicyEvaluation(
            figures={name: _figure(one) for name, one in said["figures"].items()},
            measures=read_measures(folder),
            projections=load_file(folder / ARRAYS)[PROJECTIONS],
            samples=tuple(read_rows(folder / SAMPLES)),
            about=said["about"],
            drift=tuple(Drift(**one) for one in said["drift"]),
            warnings=tuple(Alarm(**one) for one in said["warnings"]),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"{folder} holds no evaluation", found=f"{type(error).__name__}: {error}", remedy="sparserm cache verify") from error


def _figure(said: Mapping[str, Any]) -> Figure:
    return Figure(**{**said, "difference": said["difference"] and Estimate(**said["difference"])})

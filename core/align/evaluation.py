"""Evaluates the policy after a round on data that it was not trained on (METHOD.md section 5, evaluation).

    held-out pairs     share with log p(chosen) > log p(rejected), summed over the tokens that DPO reads, or their mean
    held-out prompts   the policy's answers: reward (read with the base model), tokens, KL from the base, latent drift
    TruthfulQA         MC1 and MC2 (core.align.mc), on questions that training has not seen, and on all

Every figure has an interval and, after round 0, a paired difference to round 0 (core.align.figures): every round uses
the same pairs, prompts and questions, and generates with the same random numbers. The held-out split is test, or
validation where there is no test pair; rounds are chosen on validation pairs. The reward of a truncated answer is that
of its text up to the last whole sentence, as for candidates; length and KL are over all of its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from core.align.dpo_pairs import encode_pairs
from core.align.figures import ARRAYS, MEANING, Measure, PolicyFigure, figure_of, read_measures
from core.align.filtering import score_texts
from core.align.generation import AnswerGenerator
from core.align.logprobs import AnswerTokens, answer_logprobs, encode_answers, kl_from_base
from core.align.mc import measure_mc, read_questions, seen_questions
from core.align.overoptimisation import Drift, OveroptimisationWarning, drift_of, warnings_of
from core.align.policy import Policy
from core.align.values import Prompt
from core.backbone.generation import whole_sentences
from core.backbone.journal import Generated
from core.backbone.model import Backbone
from core.config import PolicyEvaluationConfig
from core.errors import DataError, StoreError
from core.explain.spaces import sampled
from core.files import read_json, read_json_lines, write_json, write_json_lines
from core.reward.model import SparseRM
from core.reward.pair_counts import count_reasons
from core.types import PreferencePairs, Progress, json_value, no_progress

FILE, SAMPLES = "evaluation.json", "samples.jsonl"
PROJECTIONS = "projections"
LEARNT_FROM = ("train", "validation")  # splits that the reward model was fitted or selected on
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluation:
    """A policy's figures by name (`core.align.figures.MEANING`) and the measures that later rounds are compared with.

    `projections` are those of the answers to held-out prompts on the reward model's latents (NaN for an unreadable
    answer; k = 0 without latents). `samples` are some of these answers. `drift` and `warnings` compare with round 0 and
    are empty in it. `about` holds how the policy was measured, as JSON values.
    """

    figures: Mapping[str, PolicyFigure]
    measures: Mapping[str, Measure]
    projections: Float[np.ndarray, "n k"]
    samples: tuple[Mapping[str, Any], ...]
    about: Mapping[str, Any]
    drift: tuple[Drift, ...] = ()
    warnings: tuple[OveroptimisationWarning, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything but the samples and the arrays."""
        return {name: json_value(getattr(self, name)) for name in ("figures", "drift", "warnings", "about")}


def evaluate_policy(
    policy: Policy,
    pairs: PreferencePairs,
    generator: AnswerGenerator,
    model: SparseRM,
    config: PolicyEvaluationConfig,
    *,
    aligned_on: Sequence[Prompt],
    first: PolicyEvaluation | None = None,
    progress: Progress = no_progress,
) -> PolicyEvaluation:
    """Measures a policy on held-out pairs, held-out prompts and multiple-choice questions.

    `pairs` are those of the reward model's fit with their splits, `generator` generates by this policy, `model` gives
    rewards. Log-probabilities are computed in the dtype of `policy`, which may differ from the generator's: in bfloat16
    those of SmolLM2 are off by 0.07 nats a token and 0.5 an answer, and their KL divergence from float32 is 0.0016 nats
    a token, like a small training step (12 answers of the demo pairs). `aligned_on` are the prompts of the rounds; an
    MC question among them does not count as unseen. `first` is round 0's evaluation, None in round 0. Raises DataError
    where the MC file can't be read, MismatchError if `first` measured other items, and what `progress` raises to
    cancel.
    """
    split = held_out_split(pairs)
    measures, about = preference_measures(policy.backbone, sample_pairs(pairs, split, config), config, "held-out pairs", progress)
    on_validation, counts = preference_measures(policy.backbone, sample_pairs(pairs, "validation", config), config, "validation pairs", progress)
    measures["validation_accuracy"], about = on_validation["accuracy"], {"held_out": split, **about, **counts, **_sizes(pairs, split)}
    answers = generate_answers(generator, sample_prompts(pairs, split, config), progress)
    rewards, projections = score_answers(model, answers, progress)
    measures |= answer_measures(policy, answers, rewards, config, progress)
    if config.mc:
        by_question, counts = mc_measures(policy.backbone, pairs, aligned_on, config, progress)
        measures, about = measures | by_question, {**about, **counts}
    figures = {name: figure_of(name, measures[name], first.measures[name] if first else None) for name in MEANING if name in measures}
    evaluation = PolicyEvaluation(
        figures={name: figure for name, figure in figures.items() if figure},
        measures=measures,
        projections=projections,
        samples=tuple(_sample(answer, reward) for answer, reward in zip(answers[: config.samples], rewards, strict=False)),
        about={**about, "answers": len(answers), "answers_unread": int(np.isnan(rewards).sum()), "seed": config.seed},
    )
    return evaluation if first is None else _compared(first, evaluation, model)


def _sizes(pairs: PreferencePairs, split: str) -> dict[str, int]:
    """How many pairs and prompts there were to draw from; `about` holds how many were measured as well."""
    rows = pairs.rows_of(split)
    n_prompts = len({pairs[int(i)].prompt_id for i in rows})
    return {"held_out_pairs_of": len(rows), "validation_pairs_of": len(pairs.rows_of("validation")), "answers_of": n_prompts}


def _compared(first: PolicyEvaluation, evaluation: PolicyEvaluation, model: SparseRM) -> PolicyEvaluation:
    """The evaluation with its drift and warnings against round 0."""
    ids, deviation = model.parts.latent_ids, model.parts.projection_std.astype(np.float64)
    drift = () if ids is None else tuple(drift_of(first.projections, evaluation.projections, ids, deviation))
    return replace(evaluation, drift=drift, warnings=tuple(warnings_of(evaluation.figures)))


# --- held-out pairs ---------------------------------------------------------------------------------------------------


def held_out_split(pairs: PreferencePairs) -> str:
    """`test`, or `validation` where there is no test pair. Raises DataError where there is neither."""
    for split in ("test", "validation"):
        if split in pairs.split:
            return split
    raise DataError("no pair is held out, so nothing can be measured", expected="test or validation pairs", remedy="fit with --ratios 0.4,0.1,0.5")


def sample_pairs(pairs: PreferencePairs, split: str, config: PolicyEvaluationConfig) -> PreferencePairs:
    """At most `config.pairs` pairs of a split, by whole prompts, drawn by seed."""
    rows = pairs.rows_of(split)
    groups = np.unique(pairs.prompt_groups()[rows], return_inverse=True)[1]
    return pairs.take(rows[sampled(groups, config.pairs, config.seed)])


def preference_measures(
    backbone: Backbone, pairs: PreferencePairs, config: PolicyEvaluationConfig, step: str, progress: Progress = no_progress
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """accuracy, accuracy_per_token and logprob_margin of pairs, and the counts of measured and refused pairs. Pairs
    that DPO would refuse (over the backbone's `max_length`, equal answers) can't be compared either."""
    encoded, refused = encode_pairs(tuple(pairs), backbone, backbone.config.max_length)
    answers = [AnswerTokens(tuple(pair.prompt), tuple(answer)) for pair in encoded for answer in (pair.chosen, pair.rejected)]
    logprobs = answer_logprobs(backbone, answers, tokens_per_batch=config.tokens_per_batch, step=step, progress=progress)
    sums, means = (np.array([over(by_token) for by_token in logprobs], dtype=np.float64).reshape(-1, 2) for over in (np.sum, np.mean))
    groups = np.unique([pair.prompt_id for pair in encoded], return_inverse=True)[1].astype(np.int64)
    margin = sums[:, 0] - sums[:, 1]
    by_name = {"accuracy": margin > 0, "accuracy_per_token": means[:, 0] > means[:, 1], "logprob_margin": margin}
    measures = {name: Measure(values=values.astype(np.float64), groups=groups) for name, values in by_name.items()}
    name = step.replace("-", "_").replace(" ", "_")
    return measures, {name: len(encoded), f"{name}_refused": len(refused), f"{name}_refused_by_reason": count_reasons(refused.values())}


# --- held-out prompts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A policy's answer to a held-out prompt."""

    prompt: Prompt
    generated: Generated

    @property
    def text(self) -> str:
        """The text that a reward model scores; empty where there is no whole sentence."""
        return self.generated.text if self.generated.finished else whole_sentences(self.generated.text)


def sample_prompts(pairs: PreferencePairs, split: str, config: PolicyEvaluationConfig) -> list[Prompt]:
    """At most `config.prompts` prompts of a split, drawn by seed, in the pairs' order."""
    prompts = list({pair.prompt_id: Prompt(messages=pair.prompt) for pair in pairs.take(pairs.rows_of(split))}.values())
    drawn = np.random.default_rng(config.seed).permutation(len(prompts))[: config.prompts]
    return [prompts[int(i)] for i in np.sort(drawn)]


def generate_answers(generator: AnswerGenerator, prompts: Sequence[Prompt], progress: Progress = no_progress) -> list[Answer]:
    """One answer to each prompt."""
    generated = generator.generate([prompt.messages for prompt in prompts], 1, progress=progress)
    return [Answer(prompt=prompt, generated=answer) for prompt, (answer,) in zip(prompts, generated, strict=True)]


def score_answers(
    model: SparseRM, answers: Sequence[Answer], progress: Progress = no_progress
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """Rewards of the answers and their projections on the model's latents; NaN for an unreadable answer."""
    progress("rewards", 0, 1)
    rewards, z = score_texts(model, [(answer.prompt.messages, answer.text) for answer in answers])
    projections = np.full((len(answers), 0 if model.parts.latent_ids is None else model.parts.k), NAN)
    if projections.shape[1]:
        read = np.isfinite(rewards)
        projections[read] = model.inputs_of(z[read])
    progress("rewards", 1, 1)
    return rewards, projections


def answer_measures(
    policy: Policy, answers: Sequence[Answer], rewards: Float[np.ndarray, " n"], config: PolicyEvaluationConfig, progress: Progress = no_progress
) -> dict[str, Measure]:
    """reward, length, finished, kl_per_token and kl_per_sequence of answers, each to a different prompt."""
    groups = np.arange(len(answers))
    length, finished = ([NAN if a.generated.failed else getattr(a.generated, name) for a in answers] for name in ("n_tokens", "finished"))
    divergences = _divergences(policy, answers, config, progress)
    by_prompt = {"reward": rewards, "length": length, "finished": finished}
    by_prompt["kl_per_sequence"] = [NAN if by_token is None else by_token.sum() for by_token in divergences]
    measures = {name: Measure(values=np.array(values, dtype=np.float64), groups=groups) for name, values in by_prompt.items()}
    tokens = {number: by_token for number, by_token in enumerate(divergences) if by_token is not None}
    measures["kl_per_token"] = Measure(
        values=np.concatenate([np.zeros(0), *tokens.values()]), groups=np.repeat(np.array(list(tokens), dtype=np.int64), [*map(len, tokens.values())])
    )
    return measures


def _divergences(policy: Policy, answers: Sequence[Answer], config: PolicyEvaluationConfig, progress: Progress) -> list[np.ndarray | None]:
    """KL from the base model at every token of each answer; None for an answer without tokens."""
    items = [(answer.prompt.messages, answer.generated.text) for answer in answers]
    encoded = encode_answers(policy.backbone, items, closed=[answer.generated.finished for answer in answers])
    readable, step = [tokens for tokens in encoded if tokens is not None], "divergence from the base model"
    divergences = iter(kl_from_base(policy, readable, tokens_per_batch=config.tokens_per_batch, step=step, progress=progress))
    return [None if tokens is None else next(divergences) for tokens in encoded]


def _sample(answer: Answer, reward: float) -> dict[str, Any]:
    texts = {"prompt_id": answer.prompt.prompt_id, "prompt": list(answer.prompt.messages), "response": answer.generated.text}
    figures = {"reward": None if np.isnan(reward) else float(reward), "n_tokens": answer.generated.n_tokens, "finished": answer.generated.finished}
    return {**texts, **figures}


# --- questions --------------------------------------------------------------------------------------------------------


def mc_measures(
    backbone: Backbone, pairs: PreferencePairs, aligned_on: Sequence[Prompt], config: PolicyEvaluationConfig, progress: Progress = no_progress
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """MC1 and MC2 on unseen and on all questions, and the counts of these questions."""
    questions = read_questions(Path(config.mc), config.mc_limit)
    learnt = [pair.prompt for pair, split in zip(pairs, pairs.split, strict=True) if split in LEARNT_FROM]
    unseen = np.flatnonzero(~seen_questions(questions, [*learnt, *(prompt.messages for prompt in aligned_on)]))
    scores = measure_mc(backbone, questions, config.mc_format, tokens_per_batch=config.tokens_per_batch, progress=progress)
    measures = dict[str, Measure]()
    for name, rows in (("unseen", unseen), ("all", np.arange(len(questions)))):
        measures |= {f"mc1_{name}": Measure(values=scores.mc1[rows], groups=rows), f"mc2_{name}": Measure(values=scores.mc2[rows], groups=rows)}
    counts = {"mc_questions": len(questions), "mc_unseen": len(unseen), "mc_refused": int(np.isnan(scores.mc1).sum())}
    counts["mc_unseen_refused"] = int(np.isnan(scores.mc1[unseen]).sum())
    return measures, {**counts, "mc_format": config.mc_format}


# --- on disk ----------------------------------------------------------------------------------------------------------


def save_evaluation(folder: Path, evaluation: PolicyEvaluation) -> None:
    """Writes `evaluation.json`, `samples.jsonl` and `arrays.safetensors` (values and prompt numbers, projections)."""
    arrays = {f"{name}.{part}": getattr(measure, part) for name, measure in evaluation.measures.items() for part in ("values", "groups")}
    save_file({name: np.ascontiguousarray(array) for name, array in {**arrays, PROJECTIONS: evaluation.projections}.items()}, folder / ARRAYS)
    write_json_lines(folder / SAMPLES, [dict(sample) for sample in evaluation.samples], sort_keys=True)
    write_json(folder / FILE, evaluation.to_json())


def load_evaluation(folder: Path) -> PolicyEvaluation:
    """The evaluation that `save_evaluation` wrote. Raises StoreError where it is damaged."""
    try:
        content = read_json(folder / FILE)
        return PolicyEvaluation(
            figures={name: PolicyFigure.from_json(figure) for name, figure in content["figures"].items()},
            measures=read_measures(folder),
            projections=load_file(folder / ARRAYS)[PROJECTIONS],
            samples=tuple(read_json_lines(folder / SAMPLES)),
            about=content["about"],
            drift=tuple(Drift(**latent) for latent in content["drift"]),
            warnings=tuple(OveroptimisationWarning(**warning) for warning in content["warnings"]),
        )
    except (StoreError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"{folder} holds no evaluation", found=f"{type(error).__name__}: {error}", remedy="sparserm cache verify") from error

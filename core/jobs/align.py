"""`align` as a kind of run: the reward model is found or fitted, then the rounds run (core.align.loop).

Its config names everything that a fit needs as well, so one command goes from preference pairs to an aligned policy.
core.jobs.align_work does the work, so that pages can read this file without loading torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core.align.filtering import check_arm
from core.backbone.estimate import Estimate, count_parameters
from core.backbone.source import find_model
from core.by_name import by_name
from core.config import AlignConfig, BackboneConfig
from core.errors import ConfigError
from core.fit.defaults import absolute, check, complete
from core.jobs.fit import FIT
from core.jobs.job import Job, Say, backbone_of_model, check_model
from core.reward.recorded_files import read_config
from core.runs.store import Store
from core.types import Progress

# Rough figures from two cores and SmolLM2 (METHOD.md section 5), scaled by the model's size; only the estimate depends on them.
SMOLLM2_PARAMETERS, GENERATED_A_SECOND, TRAINED_A_SECOND, READ_A_SECOND = 134e6, 120.0, 75.0, 900.0
PROMPT_TOKENS, UNKNOWN_PROMPTS = 60, 200
ADAPTER_BYTES, ROW_BYTES = 20e6, 6e3


def checked(config: AlignConfig) -> AlignConfig:
    """The config itself. Raises ConfigError for settings that exclude one another, before anything is computed."""
    check_arm(config.arm, config.candidates.mode)
    if not config.dpo.evaluation_share < 1:
        raise ConfigError(
            "all kept pairs would choose the epoch and none be trained on", expected="--evaluation-share < 1", found=str(config.dpo.evaluation_share)
        )
    if config.candidates.endpoint and not config.candidates.endpoint_model:
        raise ConfigError("an endpoint needs the name of its model", remedy="--endpoint-model NAME")
    return config


def completed(config: AlignConfig, store: Store, say: Say) -> AlignConfig:
    """The fit's part filled in as `sparserm fit` does it (where no reward model is named), and paths made absolute."""
    fit = config.fit if config.model else complete(config.fit, store, say)
    evaluation = replace(config.evaluation, mc=absolute(config.evaluation.mc))
    arm = absolute(config.arm) if "/" in config.arm else config.arm
    return checked(replace(config, fit=fit, evaluation=evaluation, model=absolute(config.model), prompts=absolute(config.prompts), arm=arm))


def _check(config: AlignConfig, store: Store) -> None:
    checked(config)
    if config.model:
        check_model(config, store)
    else:
        check(config.fit, store)
    arm = Path(config.arm).expanduser()
    if arm.is_dir():
        read_config(arm)


def _backbone(config: AlignConfig) -> BackboneConfig:
    """Where it computes: the reward model's own language model, on the device that is asked for."""
    return replace(backbone_of_model(config), device=config.fit.backbone.device) if config.model else config.fit.backbone


def _disk(config: AlignConfig, root: Path) -> float:
    fit = 0.0 if config.model else FIT.disk(config.fit, root)
    return fit + config.rounds * (ADAPTER_BYTES + 2 * _pairs_a_round(config) * ROW_BYTES)


def _pairs_a_round(config: AlignConfig) -> int:
    return (config.prompts_limit or UNKNOWN_PROMPTS) * config.candidates.per_prompt


def _plan(config: AlignConfig, store: Store, progress: Progress) -> Estimate:
    """The fit's estimate and that of the rounds: generating, training and evaluating, from token counts."""
    fit = Estimate(memory=0.0, disk=0.0, seconds=0.0) if config.model else FIT.plan(config.fit, store, progress)
    parameters = count_parameters(find_model(_backbone(config), progress=progress).folder, 10_000)[0]
    seconds = config.rounds * _round_seconds(config) * parameters / SMOLLM2_PARAMETERS
    memory = 4.0 * parameters * 2  # weights of the policy in float32, and of the reward model's part beside it, as large at most
    return Estimate(memory=max(fit.memory, memory), disk=fit.disk + _disk(config, store.root), seconds=fit.seconds + seconds)


def _round_seconds(config: AlignConfig) -> float:
    """One round of SmolLM2 on two cores, half of the pairs kept."""
    pairs, mode, evaluation = _pairs_a_round(config), config.candidates, config.evaluation
    samples = pairs * (mode.n if mode.mode == "best_of_n" else 2)
    written = samples * mode.max_new_tokens + evaluation.prompts * evaluation.max_new_tokens
    trained = config.dpo.epochs * pairs / 2 * 2 * (PROMPT_TOKENS + mode.max_new_tokens)
    read = 4 * (samples + 2 * evaluation.pairs) * (PROMPT_TOKENS + mode.max_new_tokens)
    return written / GENERATED_A_SECOND + trained / TRAINED_A_SECOND + read / READ_A_SECOND


ALIGN = Job(
    complete=completed,
    backbone=_backbone,
    disk=_disk,
    inputs=lambda config: [name for name in (config.fit.data.pairs, config.prompts, config.evaluation.mc) if name],
    plan=_plan,
    run=by_name("core.jobs.align_work:run"),
    check=_check,
)

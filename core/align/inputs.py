"""What all rounds of an alignment share: prompts, base model, reward models, and the policy that is loaded at present.

A policy is identified by what it was made from: the base model's identity, then the chain of its `align-dpo` artefacts.
So arms that begin in the same way share the artefacts of their beginnings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core.align.endpoint import EndpointGenerator
from core.align.generation import AnswerGenerator, LocalGenerator
from core.align.policy import Policy, load_policy
from core.align.prompts import PromptSet, choose_prompts
from core.align.values import Prompt
from core.backbone.source import backbone_identity, find_model, resolve_dtype
from core.config import AlignConfig, BackboneConfig, CandidatesConfig
from core.errors import MissingError
from core.reward.fit_responses import FitResponses
from core.reward.folder import ModelFolder
from core.reward.model import SparseRM
from core.reward.parts import RewardParts
from core.reward.recorded_files import sha256_of_file
from core.runs.store import Store
from core.types import Message, PreferencePairs, Progress, sha256_of

# The files that determine a reward model's rewards and explanations.
MODEL_FILES = ("config.json", "model.safetensors", "heads.safetensors", "selection.jsonl", "known.safetensors", "known.jsonl")
# The fields of a backbone's identity that determine its hidden states.
STATE_FIELDS = ("name", "revision", "sha256", "template_sha256", "dtype")


@dataclass(frozen=True, kw_only=True)
class PolicyRef:
    """A policy by the hash of what it was made from; `adapter` is None for the base model."""

    fingerprint: str
    adapter: Path | None = None


@dataclass(kw_only=True)
class AlignInputs:
    """What the rounds share: configuration, reward models, what their fit left, store, and the loaded policy. `model`
    is the reward model that measures, `judge` the one that filters (often the same)."""

    config: AlignConfig
    model: SparseRM
    judge: SparseRM
    fitted: ModelFolder
    store: Store
    progress: Progress
    _policy: tuple[str, Policy] | None = None

    @cached_property
    def fit_responses(self) -> FitResponses:
        """The responses that the reward model was fitted on. MissingError: its folder lacks them or their texts."""
        responses = self.model.known
        if responses is None or responses.pairs is None:
            problem = f"{self.model.folder} does not keep the pairs it was fitted on"
            raise MissingError(problem, expected="known.safetensors, known.jsonl", remedy="fit it again with this cache")
        return responses

    @property
    def pairs(self) -> PreferencePairs:
        """The pairs that the reward model was fitted on, with their splits."""
        pairs = self.fit_responses.pairs
        assert pairs is not None  # fit_responses has checked it
        return pairs

    @cached_property
    def prompts(self) -> PromptSet:
        """The prompts that the policy answers in every round."""
        config = self.config
        return choose_prompts(config.prompts, self.pairs, limit=config.prompts_limit, seed=config.seed, progress=self.progress)

    @cached_property
    def shift_prompts(self) -> tuple[Prompt, ...]:
        """Training prompts that are answered for the shift alone; empty where `prompts` has training prompts. METHOD.md
        compares answers to the same prompts."""
        training = {pair.prompt_id for pair, split in zip(self.pairs, self.pairs.split, strict=True) if split == "train"}
        if any(prompt.prompt_id in training for prompt in self.prompts.prompts):
            return ()
        config, training_pairs = self.config.evaluation, self.pairs.take(self.pairs.rows_of("train"))
        return choose_prompts("", training_pairs, limit=config.prompts, seed=config.seed).prompts

    @cached_property
    def prompts_hash(self) -> str:
        """A hash over `prompts` and `shift_prompts`."""
        return sha256_of([[list(prompt.messages), dict(prompt.meta)] for prompt in (*self.prompts.prompts, *self.shift_prompts)])

    @cached_property
    def base(self) -> BackboneConfig:
        """The base model of policy and reward model, on the configured device."""
        configured, of_model = self.config.fit.backbone, self.model.parts.backbone_config
        return replace(of_model, device=configured.device, device_map=configured.device_map, tokens_per_batch=configured.tokens_per_batch)

    @cached_property
    def start(self) -> PolicyRef:
        """The policy before the first round."""
        return PolicyRef(fingerprint=sha256_of(backbone_identity(self.base, find_model(self.base, progress=self.progress))))

    @cached_property
    def model_hashes(self) -> dict[str, str]:
        """`model` and `judge` -> hash over the reward model's files."""
        return {name: model_hash(rm.folder) for name, rm in (("model", self.model), ("judge", self.judge)) if rm.folder}

    def policy(self, ref: PolicyRef, progress: Progress) -> Policy:
        """The policy, loaded; it stays loaded until another one or `free_policy` is called for."""
        if self._policy is None or self._policy[0] != ref.fingerprint:
            self._policy = None  # frees its memory before the next one is loaded
            self._policy = (ref.fingerprint, load_policy(self.base, ref.adapter, progress=progress))
        return self._policy[1]

    def evaluation_policy(self, ref: PolicyRef, progress: Progress) -> Policy:
        """The policy in the dtype in which log-probabilities are measured; it generates in the base model's dtype."""
        if resolve_dtype(self.base) == self.config.evaluation.dtype:
            return self.policy(ref, progress)
        return load_policy(replace(self.base, dtype=self.config.evaluation.dtype), ref.adapter, progress=progress)

    def free_policy(self) -> None:
        """Frees the loaded policy's memory, before a training."""
        self._policy = None

    def generator(self, policy: PolicyRef, config: CandidatesConfig, partial: Path, progress: Progress) -> AnswerGenerator:
        """The policy, or the configured server, as a generator. `partial` keeps answers until the step is done."""
        if config.endpoint:
            return EndpointGenerator(config, partial=partial)
        return LocalGenerator(self.policy(policy, progress).backbone, config, partial=partial)


def scorer_of(model: SparseRM) -> Callable[[Sequence[tuple[Sequence[Message], str]]], np.ndarray]:
    """A function that gives the rewards of (prompt, response) items, NaN for an unreadable one."""
    return lambda items: model.try_score([list(prompt) for prompt, _ in items], [text for _, text in items])[0]


def same_reading(a: RewardParts, b: RewardParts) -> bool:
    """Whether two reward models read the same hidden states of the same language model."""
    of_a, of_b = ([parts.layer, parts.position, *(parts.backbone.get(name) for name in STATE_FIELDS)] for parts in (a, b))
    return of_a == of_b


def model_hash(folder: Path) -> str:
    """A hash over the files that determine a reward model's rewards and explanations."""
    return sha256_of([[name, sha256_of_file(folder / name)] for name in MODEL_FILES if (folder / name).is_file()])

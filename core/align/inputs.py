"""What all rounds of an alignment share: prompts, the base model, the reward models, and the policy that is loaded now.

A policy is known by what it was made from: the base model's identity, then the chain of `align-dpo` artefacts. So arms that begin alike share their
beginnings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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

if TYPE_CHECKING:
    from core.align.generation import Generator
    from core.align.policy import Policy

CONTENT = ("config.json", "model.safetensors", "heads.safetensors", "selection.jsonl", "known.safetensors", "known.jsonl")
READING = ("name", "revision", "sha256", "template_sha256", "dtype")  # of a backbone's identity


@dataclass(frozen=True, kw_only=True)
class PolicyAt:
    """A policy by what it was made from; `adapter` is None for the base model."""

    fingerprint: str
    adapter: Path | None = None


@dataclass(kw_only=True)
class Setting:
    """What the rounds of an alignment share. `model` is the reward model that measures, `judge` the one that filters (often the same)."""

    config: AlignConfig
    model: SparseRM
    judge: SparseRM
    fitted: ModelFolder
    store: Store
    progress: Progress
    _policy: tuple[str, Policy] | None = None

    @cached_property
    def known(self) -> FitResponses:
        """The responses that the reward model was fitted on. Raises MissingError where they or their texts are not kept beside it."""
        known = self.model.known
        if known is None or known.pairs is None:
            said = f"{self.model.folder} does not keep the pairs it was fitted on"
            raise MissingError(said, expected="known.safetensors, known.jsonl", remedy="fit it again with this cache")
        return known

    @property
    def pairs(self) -> PreferencePairs:
        """The pairs that the reward model was fitted on, with their splits."""
        pairs = self.known.pairs
        assert pairs is not None  # `known` has looked
        return pairs

    @cached_property
    def prompts(self) -> PromptSet:
        config = self.config
        return choose_prompts(config.prompts, self.pairs, limit=config.prompts_limit, seed=config.seed, progress=self.progress)

    @cached_property
    def beside(self) -> tuple[Prompt, ...]:
        """Training prompts that are answered beside, for the shift alone, where no prompt is one: METHOD.md compares answers to the same prompts."""
        known = {pair.prompt_id for pair, split in zip(self.pairs, self.pairs.split, strict=True) if split == "train"}
        if any(prompt.prompt_id in known for prompt in self.prompts.prompts):
            return ()
        config = self.config.evaluation
        return choose_prompts("", self._of_split("train"), limit=config.prompts, seed=config.seed).prompts

    def _of_split(self, split: str) -> PreferencePairs:
        return self.pairs.take(self.pairs.rows_of(split))

    @cached_property
    def asked(self) -> str:
        """A hash over the prompts."""
        return sha256_of([[list(prompt.messages), dict(prompt.meta)] for prompts in (self.prompts.prompts, self.beside) for prompt in prompts])

    @cached_property
    def base(self) -> BackboneConfig:
        """The base model of policy and reward model, on the device that is asked for."""
        asked = self.config.fit.backbone
        read = self.model.parts.backbone_config
        return replace(read, device=asked.device, device_map=asked.device_map, tokens_per_batch=asked.tokens_per_batch)

    @cached_property
    def start(self) -> PolicyAt:
        """The policy before the first round."""
        return PolicyAt(fingerprint=sha256_of(backbone_identity(self.base, find_model(self.base, progress=self.progress))))

    @cached_property
    def contents(self) -> dict[str, str]:
        """What the two reward models are, by their files."""
        return {name: content_of(rm.folder) for name, rm in (("model", self.model), ("judge", self.judge)) if rm.folder}

    def policy(self, at: PolicyAt, progress: Progress) -> Policy:
        """The loaded policy; the last one is kept."""
        from core.align.policy import load_policy

        if self._policy is None or self._policy[0] != at.fingerprint:
            self._policy = None  # before the next one is loaded
            self._policy = (at.fingerprint, load_policy(self.base, at.adapter, progress=progress))
        return self._policy[1]

    def measured(self, at: PolicyAt, progress: Progress) -> Policy:
        """The policy in the arithmetic that log-probabilities are measured in; it writes in the base model's own."""
        from core.align.policy import load_policy

        if resolve_dtype(self.base) == self.config.evaluation.dtype:
            return self.policy(at, progress)
        return load_policy(replace(self.base, dtype=self.config.evaluation.dtype), at.adapter, progress=progress)

    def let_go(self) -> None:
        """Frees the policy's memory, for a training."""
        self._policy = None

    def generator(self, policy: PolicyAt, config: CandidatesConfig, partial: Path, progress: Progress) -> Generator:
        """What answers: the policy, or a server in its place. What is written is kept in `partial` until the step is done."""
        from core.align.endpoint import EndpointGenerator
        from core.align.generation import LocalGenerator

        if config.endpoint:
            return EndpointGenerator(config, partial=partial)
        return LocalGenerator(self.policy(policy, progress).backbone, config, partial=partial)


def score_by(model: SparseRM) -> Callable[[Sequence[tuple[Sequence[Message], str]]], np.ndarray]:
    """Rewards of (prompt, response) items; NaN where one can't be read."""
    return lambda items: model.try_score([list(prompt) for prompt, _ in items], [text for _, text in items])[0]


def same_reading(a: RewardParts, b: RewardParts) -> bool:
    """Whether two reward models read the same states of the same language model."""
    one, other = ((p.layer, p.position, *(p.backbone.get(name) for name in READING)) for p in (a, b))
    return tuple(one) == tuple(other)


def content_of(folder: Path) -> str:
    """A hash over the files that make a reward model what it is."""
    return sha256_of([[name, sha256_of_file(folder / name)] for name in CONTENT if (folder / name).is_file()])

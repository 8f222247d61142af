"""The interface that generates answers, by a policy in this process (core.align.endpoint: by a server)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from core.backbone.generation import Sampling, Spent, Writer
from core.backbone.journal import Generated, Journal
from core.backbone.model import Backbone
from core.config import CandidatesConfig
from core.types import Message, Progress, no_progress

STEP = "generate"


@runtime_checkable
class AnswerGenerator(Protocol):
    """Generates `n` answers to each prompt, in order; a failed answer is a `Generated` with `failed` set."""

    @property
    def spent(self) -> Spent:
        """Answers, tokens and seconds so far."""

    def generate(self, prompts: Sequence[Sequence[Message]], n: int, *, progress: Progress = no_progress) -> list[list[Generated]]: ...


class LocalGenerator:
    """A policy in this process, in batches of `config.batch_size`; answers are kept in the file `partial`, if given."""

    def __init__(self, backbone: Backbone, config: CandidatesConfig, *, partial: Path | None = None) -> None:
        sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed)
        self._writer = Writer(backbone, sampling, config.batch_size, Journal(partial))

    @property
    def spent(self) -> Spent:
        return self._writer.spent

    def generate(self, prompts: Sequence[Sequence[Message]], n: int, *, progress: Progress = no_progress) -> list[list[Generated]]:
        return self._writer.write(prompts, n, STEP, progress)

"""DPO on the kept pairs of a round: policy_t -> policy_{t+1} (METHOD.md section 5).

    loss = -log sigmoid(beta * [(log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) - log pi_ref(y_l|x))])

which is equation 7 of Rafailov et al. 2023.

Log-probabilities are summed over an answer's tokens and its end of turn; the loss is the mean over the pairs of a step.
LoRA on all linear layers; AdamW without weight decay, gradients clipped at norm 1, a learning rate that falls linearly
to zero over the round [C: TRL's defaults but for the rate]. Each epoch is measured on the validation pairs and the best
epoch's adapter is kept in memory. No checkpoint of the Trainer is written or read, so a killed training starts again
from its beginning, with the same seeds.

bfloat16 learns as much in a step (one run on SmolLM2: the mean margin of 16 pairs after six steps, computed in float32,
was 0.2705 against 0.2711); only the losses it logs are coarser. It was faster on the machine it was tried on, by a
factor that differed from run to run.

Under `accelerate launch` every process trains the same job: `train_dpo` in the first, `follow_leader` in the others
(core/align/distributed.py). The processes share a step's pairs, so their number does not change what a step computes
(where an epoch's last step has fewer pairs than processes, its first pairs count twice). Only the first process writes
files and reports progress.
"""

from __future__ import annotations

import contextlib
import gc
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from core.align.distributed import broadcast, n_processes, receive
from core.align.dpo_pairs import EncodedPair, encode_pairs
from core.align.dpo_trainer import TrainingMonitor, new_trainer, sequence_logprobs, trainable_parameters
from core.align.policy import adapter_hash, adapter_tensors, load_adapter, quiet, save_adapter, tensors_hash, training_base
from core.backbone.source import resolve_dtype
from core.config import BackboneConfig, DPOConfig, from_dict
from core.errors import BackboneError, DataError
from core.reward.evaluation import accuracy_of
from core.types import JsonFields, PreferencePair, Progress, no_progress

REFERENCE = "read reference"


@dataclass(frozen=True, kw_only=True)
class DPOOutcome(JsonFields):
    """The result of a training.

    `adapter_before` and `adapter_after` are hashes over tensors, `base` where the round began without an adapter.
    `curve` has a row for each step: loss, accuracy, margin ... of the step's `n` pairs before the step (margin: beta
    times the difference of log-ratios). `epochs` has a row for each epoch: accuracy of the validation pairs with its
    interval (null without pairs), their loss and mean margin. `refused` holds by pair id why a pair was not used,
    validation pairs included. `tokens` counts the tokens of all training steps, without padding.
    """

    adapter_before: str
    adapter_after: str
    reference: str
    n_pairs: int
    n_validation: int
    refused: Mapping[str, str]
    trainable: int
    steps: int
    tokens: int
    best_epoch: int
    epochs: Sequence[Mapping[str, Any]]
    curve: Sequence[Mapping[str, float]]
    n_processes: int
    time_seconds: float


def train_dpo(
    pairs: Sequence[PreferencePair],
    validation: Sequence[PreferencePair],
    *,
    base: BackboneConfig,
    adapter: Path | None,
    config: DPOConfig,
    out: Path,
    progress: Progress = no_progress,
) -> DPOOutcome:
    """Trains the policy `base` + `adapter` (None: a new one) and writes the best epoch's adapter to `out`.

    Raises DataError if no pair can be used, MismatchError if the adapter does not fit the configuration, BackboneError
    if the model can't be loaded, no parameter can be trained, a loss is not finite or the adapter is unchanged after
    the training, and what `progress` raises.
    """
    config = with_dtype(config, base)
    start = None if adapter is None else load_adapter(adapter, config)
    job = _TrainingJob(pairs=tuple(pairs), validation=tuple(validation), base=base, config=config, start=start)
    if n_processes() > 1:
        broadcast(*job.message())
    try:
        return _train(job, adapter_hash(adapter), out, progress)
    finally:
        # A Trainer and its callbacks refer to each other and to the model, so only the collector frees the model's
        # memory.
        gc.collect()


def with_dtype(config: DPOConfig, base: BackboneConfig) -> DPOConfig:
    """The config with `auto` resolved for the base model's device: float32 where bfloat16 is not fast."""
    dtype = resolve_dtype(replace(base, dtype=config.dtype))
    return replace(config, dtype=dtype if dtype == "bfloat16" else "float32")


def follow_leader() -> None:
    """Takes part in each training of the leader, until the leader calls `shutdown`: for every process but the first."""
    while True:
        message, blob = receive()
        if message is None:
            return
        _train(_TrainingJob.from_message(message, blob), "", None, no_progress)
        gc.collect()


@dataclass(frozen=True, kw_only=True)
class _TrainingJob:
    """A training, as the leader broadcasts it to all processes."""

    pairs: Sequence[PreferencePair]
    validation: Sequence[PreferencePair]
    base: BackboneConfig
    config: DPOConfig
    start: Mapping[str, Any] | None

    def message(self) -> tuple[dict[str, Any], bytes]:
        configs = {"base": self.base.to_dict(), "config": self.config.to_dict()}
        rows = {"pairs": [_row(pair) for pair in self.pairs], "validation": [_row(pair) for pair in self.validation]}
        return {**configs, **rows}, b"" if self.start is None else save(dict(self.start))

    @classmethod
    def from_message(cls, message: Mapping[str, Any], blob: bytes) -> _TrainingJob:
        return cls(
            pairs=tuple(_pair(row) for row in message["pairs"]),
            validation=tuple(_pair(row) for row in message["validation"]),
            base=from_dict(BackboneConfig, message["base"]),
            config=from_dict(DPOConfig, message["config"]),
            start=load(blob) if blob else None,
        )


def _row(pair: PreferencePair) -> dict[str, Any]:
    return {"pair_id": pair.pair_id, "prompt": list(pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected}


def _pair(row: Mapping[str, Any]) -> PreferencePair:
    return PreferencePair(**{**row, "prompt": tuple(row["prompt"])})


def _train(job: _TrainingJob, adapter_before: str, out: Path | None, progress: Progress) -> DPOOutcome:
    started, config = time.perf_counter(), job.config
    backbone = training_base(job.base, config, spread=n_processes() > 1, progress=progress)
    usable, refused = encode_pairs(job.pairs, backbone, config.max_length)
    validation, validation_refused = encode_pairs(job.validation, backbone, config.max_length)
    if not usable:
        reason = next(iter(refused.values()), "no pair at all")
        raise DataError(
            "no pair is left to train on", expected="at least one usable pair", found=reason, remedy="more prompts, or a longer --max-length"
        )
    with tempfile.TemporaryDirectory() as scratch, _random_state_restored():
        progress(REFERENCE, 0, 1)
        trainer = new_trainer(backbone, job.start, usable, config, scratch)
        validate = _validation(trainer, validation, config)
        monitor = TrainingMonitor(validate=validate, progress=progress, n_pairs=len(usable), batch_size=config.batch_size)
        progress(REFERENCE, 1, 1)
        before, trainable = tensors_hash(adapter_tensors(trainer.model)), trainable_parameters(trainer.model)
        trainer.add_callback(monitor.callback(trainer))
        with quiet():
            trainer.train()
        after = tensors_hash(monitor.best)
        if not all(bool(tensor.isfinite().all()) for tensor in monitor.best.values()):
            raise BackboneError("the training left an adapter that is not finite", found=f"lr {config.lr}", remedy="a smaller --lr")
        if after == before:
            raise BackboneError(
                "the training left the adapter as it was", found=f"{len(monitor.curve)} steps at lr {config.lr}", remedy="a larger --lr"
            )
        if out is not None:
            save_adapter(trainer.model, monitor.best, out)
    return DPOOutcome(
        adapter_before=adapter_before,
        adapter_after=after,
        reference=config.reference,
        n_pairs=len(usable),
        n_validation=len(validation),
        refused={**refused, **validation_refused},
        trainable=trainable,
        steps=len(monitor.curve),
        tokens=config.epochs * sum(pair.n_tokens for pair in usable),
        best_epoch=monitor.best_epoch,
        epochs=tuple(monitor.epochs),
        curve=tuple(monitor.curve),
        n_processes=n_processes(),
        time_seconds=time.perf_counter() - started,
    )


def _validation(trainer: Any, pairs: Sequence[EncodedPair], config: DPOConfig) -> Callable[[Any], Mapping[str, Any]]:
    """A function that measures a trainer's policy on these pairs: accuracy, loss and mean margin. The reference's
    log-probabilities are computed now, before the first step."""
    if not pairs:
        return lambda _: {**accuracy_of(np.zeros((1, 0)), np.zeros(0, dtype=np.int64)).to_json(), "loss": None, "margin": None}
    reference = sequence_logprobs(trainer, pairs, bare=config.reference == "base").numpy()
    numbers: dict[str, int] = {}
    prompts = np.array([numbers.setdefault(pair.prompt_id, len(numbers)) for pair in pairs], dtype=np.int64)

    def validate(trained: Any) -> Mapping[str, Any]:
        ratios = sequence_logprobs(trained, pairs, bare=False).numpy().astype(np.float64) - reference
        margins = config.beta * (ratios[:, 0] - ratios[:, 1])
        loss = float(np.logaddexp(0.0, -margins).mean())
        if not np.isfinite(loss):
            raise BackboneError("the policy's log-probabilities are not finite", found=f"validation loss {loss}", remedy="a smaller --lr")
        return {**accuracy_of(margins[None], prompts).to_json(), "loss": loss, "margin": float(margins.mean())}

    return validate


@contextlib.contextmanager
def _random_state_restored() -> Iterator[None]:
    """Restores the random generators of Python, numpy and torch afterwards, because TRL seeds them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002

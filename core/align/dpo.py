"""DPO on the kept pairs of a round: policy_t -> policy_{t+1} (METHOD.md section 5).

    loss = -log sigmoid(beta * [(log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) - log pi_ref(y_l|x))])     Rafailov et al. 2023, eq. 7

summed over an answer's tokens and its end of turn, mean over the pairs of a step. LoRA on all linear layers; AdamW without weight decay, gradients
clipped at norm 1, a learning rate that falls linearly to zero over the round [C: TRL's defaults but for the rate]. Each epoch is judged on the
validation pairs and the best one's adapter kept, in memory: no checkpoint of the Trainer is written or read, so a killed training starts again from
its beginning, with the same seeds.

bfloat16 learns as much a step (one run on SmolLM2: 16 pairs' mean margin after six steps, read in float32, 0.2705 against 0.2711), only the losses it
logs are coarser; it was faster here, by how much differed from run to run.

Under `accelerate launch` every process trains the same job: `train_dpo` in the first, `follow` in the others
(core/align/distributed.py). A step's pairs are shared out, so the number of processes does not change what a step is
(where an epoch's last step has too few pairs for all of them, its first pairs count twice); the first process alone
writes and tells progress.
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

from core.align.distributed import hear, n_processes, tell
from core.align.dpo_pairs import EncodedPair, encode_pairs
from core.align.dpo_trainer import Watch, new_trainer, sequence_logprobs, trainable_parameters
from core.align.policy import adapter_hash, adapter_tensors, load_adapter, quiet, save_adapter, tensors_hash, training_base
from core.backbone.source import resolve_dtype
from core.config import BackboneConfig, DPOConfig, from_dict
from core.errors import BackboneError, DataError
from core.reward.evaluation import accuracy_of
from core.types import PreferencePair, Progress, no_progress

REFERENCE = "read reference"


@dataclass(frozen=True, kw_only=True)
class DPOOutcome:
    """What a training did. `adapter_before` and `adapter_after` are hashes over tensors, `base` where the round began without an adapter.

    `curve` has a row for each step: loss, accuracy, margin ... of the step's `n` pairs before the step (margin: beta times the difference of
    log-ratios).
    `epochs` has one for each epoch: accuracy of the validation pairs with its interval (null without pairs), their loss and mean margin. `refused`
    says by pair why it was not used, validation pairs included. `tokens` counts what the training steps read, padding apart.
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
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it; the seconds as `time_seconds`, since they differ from run to run."""
        said = {name: value for name, value in vars(self).items() if name != "seconds"}
        parts = {"refused": dict(self.refused), "epochs": [dict(one) for one in self.epochs], "curve": [dict(row) for row in self.curve]}
        return {**said, **parts, "time_seconds": self.seconds}


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
    """Trains the policy `base` + `adapter` (None: a new one) and writes the best epoch's adapter to `out`, which plain PEFT loads.

    Raises DataError if no pair can be used, MismatchError if the adapter has another form than the configuration says, BackboneError if the model
    can't be loaded, nothing can be trained, a loss is not finite or the adapter comes out as it went in, and what `progress` raises.
    """
    config = with_dtype(config, base)
    start = None if adapter is None else load_adapter(adapter, config)
    job = _Job(pairs=tuple(pairs), validation=tuple(validation), base=base, config=config, start=start)
    if n_processes() > 1:
        tell(*job.message())
    try:
        return _train(job, adapter_hash(adapter), out, progress)
    finally:
        gc.collect()  # a Trainer and its callbacks hold each other, and with them the model, until someone looks


def with_dtype(config: DPOConfig, base: BackboneConfig) -> DPOConfig:
    """The config with `auto` resolved for the base model's device: float32 where bfloat16 is not fast."""
    found = resolve_dtype(replace(base, dtype=config.dtype))
    return replace(config, dtype=found if found == "bfloat16" else "float32")


def follow() -> None:
    """What every process but the first does under `accelerate launch`: trains along whenever the first one trains, until it is dismissed."""
    while True:
        message, blob = hear()
        if message is None:
            return
        _train(_Job.heard(message, blob), "", None, no_progress)
        gc.collect()


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A training, as it is told to all processes."""

    pairs: Sequence[PreferencePair]
    validation: Sequence[PreferencePair]
    base: BackboneConfig
    config: DPOConfig
    start: Mapping[str, Any] | None

    def message(self) -> tuple[dict[str, Any], bytes]:
        from safetensors.torch import save

        said = {"base": self.base.to_dict(), "config": self.config.to_dict()}
        rows = {"pairs": [_row(pair) for pair in self.pairs], "validation": [_row(pair) for pair in self.validation]}
        return {**said, **rows}, b"" if self.start is None else save(dict(self.start))

    @classmethod
    def heard(cls, message: Mapping[str, Any], blob: bytes) -> _Job:
        from safetensors.torch import load

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


def _train(job: _Job, adapter_before: str, out: Path | None, progress: Progress) -> DPOOutcome:
    started, config = time.perf_counter(), job.config
    backbone = training_base(job.base, config, spread=n_processes() > 1, progress=progress)
    usable, refused = encode_pairs(job.pairs, backbone, config.max_length)
    held_out, refused_too = encode_pairs(job.validation, backbone, config.max_length)
    if not usable:
        found = next(iter(refused.values()), "no pair at all")
        raise DataError(
            "no pair is left to train on", expected="at least one usable pair", found=found, remedy="more prompts, or a longer --max-length"
        )
    with tempfile.TemporaryDirectory() as scratch, _own_random_numbers():
        progress(REFERENCE, 0, 1)
        trainer = new_trainer(backbone, job.start, usable, config, scratch)
        watch = Watch(judge=_judge(trainer, held_out, config), progress=progress, n_pairs=len(usable), batch_size=config.batch_size)
        progress(REFERENCE, 1, 1)
        before, trainable = tensors_hash(adapter_tensors(trainer.model)), trainable_parameters(trainer.model)
        trainer.add_callback(watch.callback(trainer))
        with quiet():
            trainer.train()
        after = tensors_hash(watch.best)
        if not all(bool(tensor.isfinite().all()) for tensor in watch.best.values()):
            raise BackboneError("the training left an adapter that is not finite", found=f"lr {config.lr}", remedy="a smaller --lr")
        if after == before:
            raise BackboneError(
                "the training left the adapter as it was", found=f"{len(watch.curve)} steps at lr {config.lr}", remedy="a larger --lr"
            )
        if out is not None:
            save_adapter(trainer.model, watch.best, out)
    return DPOOutcome(
        adapter_before=adapter_before,
        adapter_after=after,
        reference=config.reference,
        n_pairs=len(usable),
        n_validation=len(held_out),
        refused={**refused, **refused_too},
        trainable=trainable,
        steps=len(watch.curve),
        tokens=config.epochs * sum(pair.n_tokens for pair in usable),
        best_epoch=watch.best_epoch,
        epochs=tuple(watch.epochs),
        curve=tuple(watch.curve),
        n_processes=n_processes(),
        seconds=time.perf_counter() - started,
    )


def _judge(trainer: Any, held_out: Sequence[EncodedPair], config: DPOConfig) -> Callable[[Any], Mapping[str, Any]]:
    """Accuracy, loss and mean margin of the policy on these pairs, whose reference values are computed now, before the first step."""
    if not held_out:
        return lambda _: {**accuracy_of(np.zeros((1, 0)), np.zeros(0, dtype=np.int64)).to_json(), "loss": None, "margin": None}
    reference = sequence_logprobs(trainer, held_out, bare=config.reference == "base").numpy()
    numbers: dict[str, int] = {}
    prompts = np.array([numbers.setdefault(pair.prompt_id, len(numbers)) for pair in held_out], dtype=np.int64)

    def judge(trained: Any) -> Mapping[str, Any]:
        ratios = sequence_logprobs(trained, held_out, bare=False).numpy().astype(np.float64) - reference
        margins = config.beta * (ratios[:, 0] - ratios[:, 1])
        loss = float(np.logaddexp(0.0, -margins).mean())
        if not np.isfinite(loss):
            raise BackboneError("the policy's log-probabilities are not finite", found=f"validation loss {loss}", remedy="a smaller --lr")
        return {**accuracy_of(margins[None], prompts).to_json(), "loss": loss, "margin": float(margins.mean())}

    return judge


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """TRL seeds Python's, numpy's and torch's generators; the caller's numbers go on as if it had not."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002

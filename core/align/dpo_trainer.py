"""TRL's `DPOTrainer` with an explicit reference and the project's choice of the epoch; trl is imported lazily.

How this differs from passing the policy and the pairs to TRL, and why:
1. **Reference.** Given a PeftModel, TRL 1.16 copies its present adapter to one named `ref` and trains against that:
   from round 2 on "base" would silently be "previous". Here TRL gets the base model without adapter and makes a new
   adapter, whose tensors are then replaced by those of the previous round; nothing is copied. The reference's
   log-probabilities are computed once, by `sequence_logprobs`, before the first step: with the adapter switched off for
   `base`, on for `previous` (it still is the policy the round began with), without dropout. This saves a forward pass
   in every epoch after the first.
2. **Dropout.** By default TRL switches all dropout off, including LoRA's. Here the base model has none
   (`training_base`) and LoRA keeps its dropout.
3. **Tokens** come from the project's chat template (`dpo_pairs`), so TRL prepares and truncates nothing.
4. **Epochs** are compared by exact accuracy over the validation pairs. TRL's is a mean over batches, in which a small
   last batch weighs too much.
5. **Losses** are logged unchanged: by default transformers logs an average in place of a NaN. A loss that is not finite
   ends the training.
6. **Prompts** are computed once for both answers where the model allows it (`dpo_prompts`).
7. TRL sends telemetry at every start; this is switched off.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from core.align.distributed import n_processes, trains_on_cpu
from core.align.dpo_pairs import EncodedPair
from core.align.dpo_prompts import can_share_prompts, share_prompts
from core.align.policy import adapter_tensors, new_lora, quiet, set_adapter_tensors
from core.backbone.model import Backbone
from core.config import DPOConfig
from core.errors import BackboneError, ConfigError
from core.sae.documents import plan_batches
from core.types import Progress

STEP = "train policy"
# TRL's name of a logged figure -> its name in `dpo.json`. Each is over the step's pairs, before the step changed the
# weights.
LOGGED = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen": "logprob_chosen",
    "logps/rejected": "logprob_rejected",
    "grad_norm": "gradient_norm",
    "learning_rate": "lr",
}


def new_trainer(backbone: Backbone, start: Mapping[str, torch.Tensor] | None, pairs: Sequence[EncodedPair], config: DPOConfig, scratch: str) -> Any:
    """A DPOTrainer over the base model with a new adapter, or with `start`'s tensors in it.

    Its rows hold the reference's log-probabilities. Raises ConfigError for an impossible batch size, MismatchError if
    `start` has another rank or other layers, BackboneError if no parameter would be trained.
    """
    rows: list[dict[str, Any]] = [dict(pair.trl_row()) for pair in pairs]
    with quiet():
        arguments = _arguments(backbone, config, scratch)
        trainer = _trainer_class()(
            model=backbone.model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=backbone.tokenizer,
            peft_config=new_lora(config),
        )
    trainer.remove_callback(PrinterCallback)
    if start is not None:
        set_adapter_tensors(trainer.model, start)
    if not trainable_parameters(trainer.model):
        raise BackboneError("nothing would be trained: no parameter of the policy takes a gradient", expected="LoRA on its linear layers")
    reference = sequence_logprobs(trainer, pairs, bare=config.reference == "base").tolist()
    for row, (chosen, rejected) in zip(rows, reference, strict=True):
        row |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    trainer.train_dataset, trainer.precompute_ref_logps = Dataset.from_list(rows), True
    return trainer


def trainable_parameters(model: Any) -> int:
    """The number of parameters that take a gradient."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _trainer_class() -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer

    # Overrides private methods of trl 1.16, which is pinned; tests fail when one of them is gone.
    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # the rows hold tokens already

        def _send_telemetry(self) -> None:
            pass

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: Any) -> Any:
            return super()._compute_loss(forward_of(model), inputs, return_outputs)

    return Trainer


def forward_of(model: Any) -> Any:
    """The forward pass that the trainer calls; each prompt is computed once for both answers if the model allows it."""
    return share_prompts(model) if can_share_prompts(getattr(model, "module", model).get_base_model()) else model


def _arguments(backbone: Backbone, config: DPOConfig, scratch: str) -> Any:
    from trl.trainer.dpo_config import DPOConfig as Arguments

    processes = n_processes()
    if config.batch_size % processes:
        expected = f"--batch-size in multiples of the {processes} processes"
        raise ConfigError("a step's pairs can't be shared out evenly", expected=expected, found=str(config.batch_size))
    arguments = Arguments(
        scratch,
        beta=config.beta,
        learning_rate=config.lr,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size // processes,
        max_length=config.max_length,
        disable_dropout=False,
        bf16=config.dtype == "bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        use_cpu=trains_on_cpu() if processes > 1 else backbone.device.type == "cpu",
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        logging_steps=1,
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    # Without a launcher, transformers would spread the one process over all GPUs by `DataParallel`, which TRL refuses;
    # here it takes the first GPU.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def sequence_logprobs(trainer: Any, pairs: Sequence[EncodedPair], *, bare: bool) -> torch.Tensor:
    """Summed log-probabilities of the chosen and of the rejected answers, in nats, [n, 2], float32 on the CPU.

    With `bare` they are the base model's, without the adapter. Dropout is off. Several processes share the work; each
    returns the whole result.
    """
    model, accelerator = trainer.model, trainer.accelerator
    logprobs = torch.zeros(len(pairs), 2, device=accelerator.device)
    batches = plan_batches([2 * pair.longest for pair in pairs], 2 * max(pair.longest for pair in pairs) * trainer.args.per_device_train_batch_size)
    forward, training = forward_of(model), model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter() if bare else contextlib.nullcontext(), accelerator.autocast():
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            collated = trainer.data_collator([pairs[i].trl_row() for i in batch])
            inputs = {name: tensor.to(accelerator.device) for name, tensor in collated.items()}
            labels = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
            sums = forward(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.float().sum(1)
            logprobs[batch] = torch.stack(sums.chunk(2), dim=1)
    model.train(training)
    result: torch.Tensor = accelerator.reduce(logprobs, reduction="sum").cpu()
    return result


@dataclass(kw_only=True)
class TrainingMonitor:
    """Collects a training's curve (a row for each step), each epoch's figures, and the best epoch's adapter.

    `n` in a step's row is the number of pairs behind its figures: `batch_size`, or the rest of the epoch's.
    """

    validate: Callable[[Any], Mapping[str, Any]]
    progress: Progress
    n_pairs: int
    batch_size: int
    curve: list[dict[str, float]] = field(default_factory=list)
    epochs: list[Mapping[str, Any]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def callback(self, trainer: Any) -> Any:
        """The monitor as a callback of transformers' Trainer."""
        monitor = self

        class Callback(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if "loss" in (logs or {}):
                    monitor.log(logs, state.global_step, state.max_steps)

            def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                monitor.end_epoch(trainer, round(state.epoch))

        return Callback()

    def log(self, logs: Mapping[str, float], step: int, total: int) -> None:
        """Appends a step's row to the curve. Raises BackboneError where a figure is not finite."""
        row = {name: float(logs[trl_name]) for trl_name, name in LOGGED.items() if trl_name in logs}
        if not all(math.isfinite(value) for value in row.values()):
            raise BackboneError(
                f"the training diverged at step {step}",
                expected="a finite loss and gradient",
                found=str(row),
                remedy="a smaller --lr, or --dtype float32",
            )
        # Pairs of this epoch's earlier steps.
        n_before = (step - 1) % math.ceil(self.n_pairs / self.batch_size) * self.batch_size
        self.curve.append({"step": step, **row, "n": min(self.batch_size, self.n_pairs - n_before)})
        self.progress(STEP, step, total, loss=row["loss"])

    def end_epoch(self, trainer: Any, epoch: int) -> None:
        """Validates an epoch and keeps the adapter of the best one so far.

        The best has the highest validation accuracy, then the lowest validation loss; else it is the last.
        """
        figures = {"epoch": epoch, **self.validate(trainer)}
        self.epochs.append(figures)
        if not self.best or _rank(figures) > _rank(self.epochs[self.best_epoch - 1]):
            self.best, self.best_epoch = adapter_tensors(trainer.model), epoch


def _rank(figures: Mapping[str, Any]) -> tuple[float, float]:
    return (figures["accuracy"], -figures["loss"]) if figures["n"] else (0.0, figures["epoch"])

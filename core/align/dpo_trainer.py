"""TRL's `DPOTrainer` with a stated reference and our own choice of the epoch. trl and transformers are imported inside functions only.

How this differs from handing TRL the policy and the pairs, and why:
1. **Reference.** Given a PeftModel, TRL 1.16 copies its present adapter to one named `ref` and trains against that: from round 2 on "base" would
   silently be "previous". Here TRL is given the bare base model and makes a new adapter, whose place the chained one's tensors then take; nothing is
   copied. The reference's log-probabilities are computed once, by our own call, before the first step: the adapter switched off for `base`, left on
   for `previous` (it still is the policy the round began with), dropout off in both. This saves a forward in every epoch after the first.
2. **Dropout.** By default TRL switches all dropout off, LoRA's too. Here the base has none (`training_base`) and LoRA keeps its own.
3. **Tokens** come from our chat template (`dpo_pairs`), so TRL prepares nothing, and cuts nothing.
4. **Epochs** are judged by exact accuracy over the validation pairs. TRL's is a mean over batches, in which a last small batch weighs too much.
5. **Losses** are logged as they are: by default transformers logs an average in place of a NaN. One that is not finite ends the training.
6. **Prompts** are computed once for both answers where the model allows it (`dpo_prompts`).
7. TRL reports its use to a server at every start; here it does not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.align.distributed import n_processes, on_cpu
from core.align.dpo_pairs import EncodedPair
from core.align.dpo_prompts import can_share, shared_prompts
from core.align.policy import adapter_tensors, new_lora, quiet, set_adapter_tensors
from core.backbone.model import Backbone
from core.config import DPOConfig
from core.errors import BackboneError, ConfigError
from core.sae.activations import plan_batches
from core.types import Progress

if TYPE_CHECKING:
    import torch

STEP = "train policy"
# Of what TRL logs at each step, under our names: figures over the step's pairs, before the step changed the weights.
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
    """A DPOTrainer over the base model with a new adapter, or with `start`'s tensors in it; its rows hold the reference's log-probabilities.

    Raises ConfigError for an impossible batch size, MismatchError if `start` has another form, BackboneError if nothing would be trained.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    rows = [{"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in pairs]
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
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _trainer_class() -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer

    class Trainer(DPOTrainer):  # private names of trl 1.16, which is pinned; the tests fail where one has gone
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # the rows are tokens already

        def _send_telemetry(self) -> None:
            pass

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: Any) -> Any:
            return super()._compute_loss(reader(model), inputs, return_outputs)

    return Trainer


def reader(model: Any) -> Any:
    """How the trainer calls its model: with each prompt computed once where the model allows it."""
    return shared_prompts(model) if can_share(getattr(model, "module", model).get_base_model()) else model


def _arguments(backbone: Backbone, config: DPOConfig, scratch: str) -> Any:
    from trl.trainer.dpo_config import DPOConfig as Arguments

    many = n_processes()
    if config.batch_size % many:
        expected = f"--batch-size in multiples of the {many} processes"
        raise ConfigError("a step's pairs can't be shared out evenly", expected=expected, found=str(config.batch_size))
    arguments = Arguments(
        scratch,
        beta=config.beta,
        learning_rate=config.lr,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size // many,
        max_length=config.max_length,
        disable_dropout=False,
        bf16=config.dtype == "bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        use_cpu=on_cpu() if many > 1 else backbone.device.type == "cpu",
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
    # Without a launcher one process would spread over all GPUs by `DataParallel`, which TRL refuses; it takes the first.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def sequence_logprobs(trainer: Any, pairs: Sequence[EncodedPair], *, bare: bool) -> torch.Tensor:
    """Summed log-probabilities of the chosen and of the rejected answers, [n, 2], float32 on the CPU; `bare`: of the base model without adapter.

    Dropout is off. Several processes share the work, and each gets all of the result.
    """
    import torch

    model, accelerator = trainer.model, trainer.accelerator
    found = torch.zeros(len(pairs), 2, device=accelerator.device)
    batches = plan_batches([2 * pair.longest for pair in pairs], 2 * max(pair.longest for pair in pairs) * trainer.args.per_device_train_batch_size)
    read, training = reader(model), model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter() if bare else contextlib.nullcontext(), accelerator.autocast():
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            rows = [{"prompt_ids": pairs[i].prompt, "chosen_ids": pairs[i].chosen, "rejected_ids": pairs[i].rejected} for i in batch]
            inputs = {name: tensor.to(accelerator.device) for name, tensor in trainer.data_collator(rows).items()}
            labels = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
            sums = read(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.float().sum(1)
            found[batch] = torch.stack(sums.chunk(2), dim=1)
    model.train(training)
    result: torch.Tensor = accelerator.reduce(found, reduction="sum").cpu()
    return result


@dataclass(kw_only=True)
class Watch:
    """What is noted while a policy trains: a row for each step, and after each epoch what `judge` says of it with the adapter's tensors then.

    `n` of a step's row is the number of its pairs, of which its accuracy is: `batch_size`, or what is left of the epoch's `n_pairs`.
    """

    judge: Callable[[Any], Mapping[str, Any]]
    progress: Progress
    n_pairs: int
    batch_size: int
    curve: list[dict[str, float]] = field(default_factory=list)
    epochs: list[Mapping[str, Any]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def callback(self, trainer: Any) -> Any:
        """The same as transformers' Trainer takes it."""
        from transformers import TrainerCallback

        watch = self

        class Callback(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if "loss" in (logs or {}):
                    watch.log(logs, state.global_step, state.max_steps)

            def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch.end_epoch(trainer, round(state.epoch))

        return Callback()

    def log(self, logs: Mapping[str, float], step: int, total: int) -> None:
        row = {ours: float(logs[theirs]) for theirs, ours in LOGGED.items() if theirs in logs}
        if not all(math.isfinite(value) for value in row.values()):
            raise BackboneError(
                f"the training went astray at step {step}",
                expected="a finite loss and gradient",
                found=str(row),
                remedy="a smaller --lr, or --dtype float32",
            )
        before = (step - 1) % math.ceil(self.n_pairs / self.batch_size) * self.batch_size
        self.curve.append({"step": step, **row, "n": min(self.batch_size, self.n_pairs - before)})
        self.progress(STEP, step, total, loss=row["loss"])

    def end_epoch(self, trainer: Any, epoch: int) -> None:
        """The best epoch has the highest validation accuracy, of equal ones the lower validation loss; without validation pairs it is the last."""
        said = {"epoch": epoch, **self.judge(trainer)}
        self.epochs.append(said)
        if not self.best or _rank(said) > _rank(self.epochs[self.best_epoch - 1]):
            self.best, self.best_epoch = adapter_tensors(trainer.model), epoch


def _rank(said: Mapping[str, Any]) -> tuple[float, float]:
    return (said["accuracy"], -said["loss"]) if said["n"] else (0.0, said["epoch"])

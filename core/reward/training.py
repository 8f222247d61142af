"""Trains many heads at once (METHOD.md section 3, step 3), each with the same result as alone, in a fraction of the time.

Heads of equal input width are one ensemble with weights [heads, k, hidden], so a step is a few batched matrix products
instead of hundreds of small ones. Nothing is shared between heads: each has its own stream of random numbers for
weights and order of pairs (torch's, from its seed, drawn as `nn.Linear` and `randperm` draw), its own loss, its own
early stopping and its own best epoch. AdamW works element by element, so stacking changes none of its sums. A head that
has stopped leaves the ensemble.

1. Standardise with mean and deviation over the training responses, once per pair and side.
2. Per epoch: pairs in random order, batches of 64, AdamW; then accuracy and loss on validation.
3. Keep the epoch of best validation accuracy, among equals of lower validation loss (our choice). Stop after
   `patience` epochs without a better accuracy.
4. Fold the standardisation into the first layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from core.config import HeadConfig
from core.errors import DataError
from core.reward.head import Head, TrainedHead, fold
from core.types import HeadInputs, Progress, no_progress

LOSSES = ("margin", "bradley-terry", "bce")
# Deviations are raised to this share of the median: an input that hardly moves on train must not explode elsewhere.
FLOOR = 1e-3
# Hidden activations held at once while validating, in numbers (64 MB).
HIDDEN_AT_ONCE = 2**24
ROWS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class HeadJob:
    """One head to train: what it sees, its seed, and its loss (`margin`, `bradley-terry` or `bce`)."""

    inputs: HeadInputs
    seed: int
    loss: str


@dataclass(frozen=True, kw_only=True)
class Standardisation:
    """Mean and floored deviation of every input over the training responses, each once per pair and side; float64."""

    mean: Float[np.ndarray, " k"]
    std: Float[np.ndarray, " k"]

    def apply(self, values: Float[np.ndarray, "*rows k"]) -> Float[np.ndarray, "*rows k"]:
        return (np.asarray(values, dtype=np.float32) - self.mean.astype(np.float32)) / self.std.astype(np.float32)


def standardisation(inputs: HeadInputs, train: Int[np.ndarray, " n"]) -> Standardisation:
    """Mean and deviation over both sides of training, in two streaming passes; floor: 0.001 of the median deviation."""
    rows = np.concatenate([inputs.chosen_rows[train], inputs.rejected_rows[train]])
    mean = _mean_over(inputs.values, rows, lambda part: part)
    std = np.sqrt(_mean_over(inputs.values, rows, lambda part: (part - mean) ** 2))
    typical = float(np.median(std[std > 0])) if (std > 0).any() else 1.0
    return Standardisation(mean=mean, std=np.maximum(std, FLOOR * typical))


def identical_inputs(inputs: HeadInputs, pairs: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Pairs whose responses are equal to a head, such as two without active latents: a tie, whatever rounding gives."""
    parts = [pairs[start : start + ROWS_AT_ONCE] for start in range(0, len(pairs), ROWS_AT_ONCE)]
    same = [(inputs.values[inputs.chosen_rows[part]] == inputs.values[inputs.rejected_rows[part]]).all(axis=1) for part in parts]
    return np.concatenate([np.zeros(0, dtype=np.bool_), *same])


def _mean_over(values: np.ndarray, rows: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    total = np.zeros(values.shape[1], dtype=np.float64)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        total += of(values[rows[start : start + ROWS_AT_ONCE]].astype(np.float64)).sum(axis=0)
    return total / len(rows)


def train_heads(
    jobs: Sequence[HeadJob],
    *,
    train: Int[np.ndarray, " n_train"],
    validation: Int[np.ndarray, " n_validation"],
    config: HeadConfig,
    progress: Progress = no_progress,
    step: str = "heads",
) -> list[TrainedHead]:
    """Trains every job's head on the pairs `train`, chooses its epoch on the pairs `validation`; answers in the order
    of the jobs. All jobs share the pairs, not the inputs. Raises DataError where either split is empty: seed and epoch
    are chosen on validation."""
    for name, rows in (("training", train), ("validation", validation)):
        if not len(rows):
            raise DataError(f"there are no {name} pairs to fit a head on", expected="at least one pair in each", remedy="change the split ratios")
    trained: dict[int, TrainedHead] = {}
    by_width = sorted(range(len(jobs)), key=lambda i: jobs[i].inputs.values.shape[1])
    for _, group in groupby(by_width, key=lambda i: jobs[i].inputs.values.shape[1]):
        numbers = list(group)
        ensemble = _Ensemble([jobs[i] for i in numbers], train, validation, config)
        for finished, running in ensemble.run():
            progress(step, len(trained) + finished + running, len(jobs), width=ensemble.width)
        trained.update(zip(numbers, ensemble.results(), strict=True))
    return [trained[i] for i in range(len(jobs))]


class _Ensemble:
    """Heads of one input width in training. `alive` numbers those still in the batch; results go by these numbers."""

    def __init__(self, jobs: Sequence[HeadJob], train: np.ndarray, validation: np.ndarray, config: HeadConfig) -> None:
        self.jobs, self.train, self.validation, self.config = jobs, train, validation, config
        self.width = int(jobs[0].inputs.values.shape[1])
        self.alive = np.arange(len(jobs))
        self.scales = {id(inputs): standardisation(inputs, train) for inputs in _distinct(jobs)}
        self.ties = {id(inputs): identical_inputs(inputs, validation) for inputs in _distinct(jobs)}
        self.streams = [torch.Generator().manual_seed(job.seed) for job in jobs]
        drawn = [_initial(self.width, config.hidden, stream) for stream in self.streams]
        self.weights = [torch.stack(parts).requires_grad_() for parts in zip(*drawn, strict=True)]
        self.optimizer = self._new_optimizer()
        self.best = [weight.detach().clone() for weight in self.weights]
        # Columns: validation accuracy, validation loss, epoch of the best; and the epochs that ran.
        self.best_accuracy, self.best_loss = np.full(len(jobs), -1.0), np.full(len(jobs), np.inf)
        self.best_epoch, self.last_gain, self.epochs = (np.zeros(len(jobs), dtype=np.int64) for _ in range(3))

    def run(self) -> Iterator[tuple[int, float]]:
        """Trains to the end; yields, after each epoch, the finished heads and the running heads' progress, in heads."""
        for epoch in range(1, self.config.epochs + 1):
            self._epoch()
            self._judge(epoch)
            self._drop_stopped(epoch)
            yield len(self.jobs) - len(self.alive), len(self.alive) * epoch / self.config.epochs
            if not len(self.alive):
                return

    def _epoch(self) -> None:
        orders = np.stack([torch.randperm(len(self.train), generator=self.streams[i]).numpy() for i in self.alive.tolist()])
        for start in range(0, len(self.train), self.config.batch_size):
            chosen, rejected = self._scores(self.train[orders[:, start : start + self.config.batch_size]])
            self.optimizer.zero_grad()
            self._losses(chosen, rejected).mean(dim=1).sum().backward()
            self._zero_last_bias_gradient()
            self.optimizer.step()

    def _zero_last_bias_gradient(self) -> None:
        """The last bias cancels in s_w - s_l: AdamW would blow up the rounding noise of its gradient to whole steps."""
        absolute = torch.tensor([self.jobs[i].loss == "bce" for i in self.alive.tolist()])
        gradient = self.weights[3].grad
        if gradient is not None:
            gradient *= absolute[:, None, None]

    def _scores(self, pairs: Int[np.ndarray, "heads batch"]) -> tuple[Tensor, Tensor]:
        """s_w and s_l [heads, batch] of each living head on its own batch of pairs."""
        batch = np.empty((len(self.alive), 2 * pairs.shape[1], self.width), dtype=np.float32)
        for inputs, heads in self._by_inputs():
            rows = np.concatenate([inputs.chosen_rows[pairs[heads]], inputs.rejected_rows[pairs[heads]]], axis=1)
            batch[heads] = self.scales[id(inputs)].apply(inputs.values[rows])
        weight_1, bias_1, weight_2, bias_2 = self.weights
        hidden = torch.relu(torch.baddbmm(bias_1, torch.from_numpy(batch), weight_1))
        rewards = torch.baddbmm(bias_2, hidden, weight_2)[..., 0]
        return rewards[:, : pairs.shape[1]], rewards[:, pairs.shape[1] :]

    def _by_inputs(self) -> Iterator[tuple[HeadInputs, list[int]]]:
        """Each distinct input among the living heads, with the places of the heads that see it."""
        living = [self.jobs[i] for i in self.alive.tolist()]
        for inputs in _distinct(living):
            yield inputs, [place for place, job in enumerate(living) if job.inputs is inputs]

    def _losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Loss of each pair [heads, batch], by each head's own rule (METHOD.md section 3, losses compared)."""
        rule = torch.tensor([LOSSES.index(self.jobs[i].loss) for i in self.alive.tolist()])[:, None]
        margin = torch.relu(self.config.gamma - (chosen - rejected))
        bradley_terry = functional.softplus(rejected - chosen)
        absolute = (functional.softplus(-chosen) + functional.softplus(rejected)) / 2
        return torch.where(rule == 0, margin, torch.where(rule == 1, bradley_terry, absolute))

    @torch.no_grad()
    def _judge(self, epoch: int) -> None:
        """Validation accuracy (strict, ties wrong) and loss of each living head; the best weights so far are copied."""
        right, loss = np.zeros(len(self.alive)), np.zeros(len(self.alive))
        size = max(1, HIDDEN_AT_ONCE // (2 * self.config.hidden * len(self.alive)))
        for start in range(0, len(self.validation), size):
            part = self.validation[start : start + size]
            chosen, rejected = self._scores(np.broadcast_to(part, (len(self.alive), len(part))))
            ties = np.stack([self.ties[id(self.jobs[i].inputs)][start : start + size] for i in self.alive.tolist()])
            right += ((chosen > rejected).numpy() & ~ties).sum(axis=1)
            loss += self._losses(chosen, rejected).double().sum(dim=1).numpy()
        accuracy, loss = right / len(self.validation), loss / len(self.validation)
        before = self.best_accuracy[self.alive]
        better = accuracy > before
        kept = better | ((accuracy == before) & (loss < self.best_loss[self.alive]))
        self.last_gain[self.alive[better]] = epoch
        self.epochs[self.alive] = epoch
        self._keep(kept, accuracy, loss, epoch)

    def _keep(self, kept: np.ndarray, accuracy: np.ndarray, loss: np.ndarray, epoch: int) -> None:
        names = self.alive[kept]
        self.best_accuracy[names], self.best_loss[names], self.best_epoch[names] = accuracy[kept], loss[kept], epoch
        for best, weight in zip(self.best, self.weights, strict=True):
            best[torch.from_numpy(names)] = weight.detach()[torch.from_numpy(kept)]

    def _drop_stopped(self, epoch: int) -> None:
        stays = epoch - self.last_gain[self.alive] < self.config.patience
        if stays.all():
            return
        mask, old = torch.from_numpy(stays), self.optimizer
        slices = [weight.detach()[mask].requires_grad_() for weight in self.weights]
        state = [{k: v if k == "step" else v[mask] for k, v in old.state[weight].items()} for weight in self.weights]
        self.alive, self.weights = self.alive[stays], slices
        self.optimizer = self._new_optimizer()
        self.optimizer.state.update(zip(slices, state, strict=True))

    def _new_optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.weights, lr=self.config.lr, weight_decay=self.config.weight_decay, fused=True)

    def results(self) -> list[TrainedHead]:
        return [self._result(number) for number in range(len(self.jobs))]

    def _result(self, number: int) -> TrainedHead:
        weight_1, bias_1, weight_2, bias_2 = (part[number].numpy() for part in self.best)
        scale = self.scales[id(self.jobs[number].inputs)]
        folded, bias = fold(np.ascontiguousarray(weight_1.T), bias_1[0], scale.mean, scale.std)
        return TrainedHead(
            head=Head(weight_1=folded, bias_1=bias, weight_2=np.ascontiguousarray(weight_2.T), bias_2=bias_2[0].copy()),
            seed=self.jobs[number].seed,
            loss=self.jobs[number].loss,
            epoch=int(self.best_epoch[number]),
            epochs=int(self.epochs[number]),
            validation_accuracy=float(self.best_accuracy[number]),
            validation_loss=float(self.best_loss[number]),
        )


def _distinct(jobs: Sequence[HeadJob]) -> list[HeadInputs]:
    """The different inputs among the jobs, in order."""
    return list({id(job.inputs): job.inputs for job in jobs}.values())


def _initial(width: int, hidden: int, stream: torch.Generator) -> list[Tensor]:
    """Weights as `nn.Linear(width, hidden)` and `nn.Linear(hidden, 1)` draw them, laid out for batched products."""
    drawn = []
    for n_in, n_out in ((width, hidden), (hidden, 1)):
        bound = n_in**-0.5
        drawn += [torch.empty(n_out, n_in).uniform_(-bound, bound, generator=stream).T.contiguous()]
        drawn += [torch.empty(1, n_out).uniform_(-bound, bound, generator=stream)]
    return drawn

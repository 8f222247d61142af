"""The head: a plain MLP from raw projections v to a reward s (METHOD.md section 3, step 3).

s = W2 relu(W1 v + b1) + b2. It is trained on standardised projections (core.reward.training); `fold` moves the
standardisation into W1 and b1 in float64, so what is saved needs neither mean nor deviation. Only numpy is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

# Responses scored at once: 4,096 x 512 hidden units in float64 are 16 MB.
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Head:
    """Linear(k -> hidden), ReLU, Linear(hidden -> 1) on raw inputs; float32 as saved."""

    FINITE: ClassVar[tuple[str, ...]] = ("weight_1", "bias_1", "weight_2", "bias_2")

    weight_1: Float[np.ndarray, "hidden k"]
    bias_1: Float[np.ndarray, " hidden"]
    weight_2: Float[np.ndarray, "1 hidden"]
    bias_2: Float[np.ndarray, " 1"]

    @property
    def n_parameters(self) -> int:
        return self.weight_1.size + self.bias_1.size + self.weight_2.size + self.bias_2.size

    def reward(self, inputs: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """The reward s of each row of raw inputs, in float64."""
        first, second = self.weight_1.astype(np.float64).T, self.weight_2.astype(np.float64)[0]
        rewards = np.empty(len(inputs), dtype=np.float64)
        for start in range(0, len(inputs), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            hidden = np.asarray(inputs[part], dtype=np.float64) @ first + self.bias_1
            rewards[part] = np.maximum(hidden, 0.0) @ second + float(self.bias_2[0])
        return rewards


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """A head with seed, loss, the epoch taken (1-based) of the epochs that ran, and its validation figures."""

    head: Head
    seed: int
    loss: str
    epoch: int
    epochs: int
    validation_accuracy: float
    validation_loss: float


def shipped_index(heads: Sequence[TrainedHead]) -> int:
    """The shipped head: best validation accuracy, then lower validation loss, then the earlier one (our choice)."""
    return min(range(len(heads)), key=lambda i: (-heads[i].validation_accuracy, heads[i].validation_loss, i))


def fold(
    weight: Float[np.ndarray, "hidden k"], bias: Float[np.ndarray, " hidden"], mean: Float[np.ndarray, " k"], std: Float[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, "hidden k"], Float[np.ndarray, " hidden"]]:
    """First layer on raw inputs that equals the given one on (v - mean) / std; float64, returned as float32."""
    raw = weight.astype(np.float64) / std
    return raw.astype(np.float32), (bias - raw @ mean.astype(np.float64)).astype(np.float32)


def fit_margin_scale(margins: Float[np.ndarray, " n_pairs"]) -> float:
    """a >= 0 of P(chosen wins) = sigmoid(a * margin): maximum likelihood over these (validation) pairs, no intercept
    (METHOD.md section 4). Where every margin is positive the likelihood grows for ever, so a is bounded (our choice):
    at the median |margin|, n pairs never make us surer than (n + 1) / (n + 2), the rule of succession. A model worse
    than chance, or without margins, gets 0: P = 1/2."""
    typical = float(np.median(np.abs(margins))) if len(margins) else 0.0
    if typical == 0.0:
        return 0.0
    scaled = margins / typical
    bound = float(np.log(len(margins) + 1))
    from scipy.optimize import minimize_scalar

    optimum = minimize_scalar(lambda a: float(np.logaddexp(0.0, -a * scaled).sum()), bounds=(0.0, bound), method="bounded", options={"xatol": 1e-10})
    # The bounded search never lands on an end: there the end is meant.
    best = min((0.0, bound, float(optimum.x)), key=lambda a: float(np.logaddexp(0.0, -a * scaled).sum()))
    return best / typical

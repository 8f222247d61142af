"""The controls without a head of ours: probes of z, and detectors of shortcuts in the text (METHOD.md section 3).

Each learns on training pairs, makes its choices on validation pairs, and gives the margin of every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit

from core.reward.hidden_states import HiddenStates
from core.reward.training import standardisation
from core.types import HeadInputs, PreferencePairs

Rows = Int[np.ndarray, " _"]
# Inverse strengths of L2, strongest first: of equal validation accuracies the strongest is taken (our choice).
PROBE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
WORDING_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A control without a head: the margin of every pair, how many numbers it learnt, and what it chose."""

    kind: str
    margins: Float[np.ndarray, " n_pairs"]
    n_parameters: int
    note: str


def difference_of_means(hidden: HiddenStates, train: Rows) -> Probe:
    """s = <z, mean(z_w) - mean(z_l)>, the means over training pairs."""
    direction = _mean_difference(hidden, train)
    return Probe(kind="difference-of-means", margins=_state_margins(hidden, direction), n_parameters=hidden.d_model, note="")


def linear_probe(hidden: HiddenStates, train: Rows, validation: Rows) -> Probe:
    """Logistic regression on z_w - z_l without intercept, z standardised on training, L2 chosen on validation."""
    inputs = HeadInputs(values=hidden.states, chosen_rows=hidden.chosen_rows, rejected_rows=hidden.rejected_rows)
    scale = standardisation(inputs, train).std
    differences = [_state_differences(hidden, rows) / scale.astype(np.float32) for rows in (train, validation)]
    weights, strength = _chosen_on_validation(differences[0], differences[1], PROBE_STRENGTHS)
    return Probe(kind="linear-probe", margins=_state_margins(hidden, weights / scale), n_parameters=hidden.d_model, note=f"C = {strength:g}")


def wording_only(pairs: PreferencePairs, train: Rows, validation: Rows) -> Probe:
    """Logistic regression on the difference of the responses' bags of 1- and 2-grams, L2 chosen on validation."""
    counts = _bags([pair.chosen for pair in pairs], [pair.rejected for pair in pairs], train)
    weights, strength = _chosen_on_validation(counts[train], counts[validation], WORDING_STRENGTHS)
    return Probe(kind="wording-only", margins=counts @ weights, n_parameters=len(weights), note=f"C = {strength:g}")


def length_only(hidden: HiddenStates, train: Rows) -> Probe:
    """The response of more tokens wins, or that of fewer: whichever is right more often on training pairs."""
    longer = (hidden.n_tokens[hidden.chosen_rows] - hidden.n_tokens[hidden.rejected_rows]).astype(np.float64)
    side = 1.0 if (longer[train] > 0).sum() >= (longer[train] < 0).sum() else -1.0
    return Probe(kind="length-only", margins=side * longer, n_parameters=1, note="more tokens win" if side > 0 else "fewer tokens win")


def fit_logistic(differences: Any, strength: float, start: Float[np.ndarray, " k"] | None = None) -> Float[np.ndarray, " k"]:
    """Weights w that minimise |w|^2 / 2 + C sum log(1 + exp(-<w, x_w - x_l>)): logistic regression on pair differences,
    no intercept. `differences` is an array or sparse. The label of every row is "the first wins"; without an intercept,
    turning rows round would change nothing."""

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = np.asarray(differences @ w.astype(differences.dtype), dtype=np.float64)
        pull = -strength * expit(-margins)
        return float(w @ w / 2 + strength * np.logaddexp(0.0, -margins).sum()), w + differences.T @ pull.astype(differences.dtype)

    begin = np.zeros(differences.shape[1]) if start is None else start
    return np.asarray(minimize(objective, begin, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x)


def _chosen_on_validation(train: Any, validation: Any, strengths: Sequence[float]) -> tuple[Float[np.ndarray, " k"], float]:
    """Weights and strength of best validation accuracy (ties are wrong); each fit starts from the last one."""
    best, kept, weights = -1, (np.zeros(train.shape[1]), strengths[0]), None
    for strength in strengths:
        weights = fit_logistic(train, strength, weights)
        right = int((validation @ weights > 0).sum())
        if right > best:
            best, kept = right, (weights, strength)
    return kept


def _bags(chosen: Sequence[str], rejected: Sequence[str], train: Rows) -> sparse.csr_matrix:
    """Per pair, the 1- and 2-grams of the chosen less those of the rejected response; vocabulary of training."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]", dtype=np.float64)
    vectorizer.fit([side[i] for side in (chosen, rejected) for i in train])
    return sparse.csr_matrix(vectorizer.transform(chosen) - vectorizer.transform(rejected))


def _mean_difference(hidden: HiddenStates, rows: Rows) -> Float[np.ndarray, " d_model"]:
    total = np.zeros(hidden.d_model, dtype=np.float64)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        total += _state_differences(hidden, rows[start : start + ROWS_AT_ONCE]).sum(axis=0, dtype=np.float64)
    return total / len(rows)


def _state_differences(hidden: HiddenStates, rows: Rows) -> Float[np.ndarray, "n d_model"]:
    return hidden.states[hidden.chosen_rows[rows]].astype(np.float32) - hidden.states[hidden.rejected_rows[rows]].astype(np.float32)


def _state_margins(hidden: HiddenStates, weights: Float[np.ndarray, " d_model"]) -> Float[np.ndarray, " n_pairs"]:
    """<z_w - z_l, weights> of every pair, in float64."""
    rewards = np.empty(len(hidden.states), dtype=np.float64)
    for start in range(0, len(rewards), ROWS_AT_ONCE):
        rewards[start : start + ROWS_AT_ONCE] = hidden.states[start : start + ROWS_AT_ONCE].astype(np.float64) @ weights
    return rewards[hidden.chosen_rows] - rewards[hidden.rejected_rows]

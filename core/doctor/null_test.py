"""The null: labels swapped per prompt, in all splits, must teach nothing (METHOD.md section 3, statistics).

Each swap turns chosen and rejected round for a random half of the prompts and goes through selection, projection and head as a fit does, on the
cached hidden states, with one seed. If test accuracies then differ from one half, labels of test pairs are known from training: a prompt or its twin
stands on both sides. If latents are "discovered" more often than the false discovery rate allows, the statistics do not fit the data.

METHOD.md's test takes 100 swaps: at most 10 with a discovery, mean accuracy within three standard errors. For fewer swaps the bounds are those of
the same error rates: a binomial with 5 % and Student's t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int
from scipy import stats

from core.config import HeadConfig, SelectionConfig
from core.doctor.report import FAIL, PASS, WARN, Check, judge
from core.explain.spaces import sampled
from core.reward.head_inputs import HeadTask, margins_of, sparse_task, train_tasks
from core.reward.selection import DISCOVERY, Encoder, latent_frequencies, selected_directions
from core.types import HiddenStates, PreferencePairs, Progress, no_progress

PAIRS = 3000  # pairs at most; more are thinned out by whole prompts
RESAMPLES = 10  # nothing is read off the bootstrap here
FULL = 100
SIGMAS = 3.0
RARE = 0.012  # chance of more than 10 of 100 swaps with a discovery where each has one with 5 %


@dataclass(frozen=True, kw_only=True)
class NullTest:
    """Test accuracy and number of discoveries (q < 0.05) of each swap, over `n_pairs` of the fit's `n_all` test pairs."""

    accuracies: tuple[float, ...]
    discoveries: tuple[int, ...]
    n_pairs: int
    n_all: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def reach(self) -> float:
        """How far the mean may lie from one half: three standard errors, a little more where few swaps tell the error."""
        n = len(self.accuracies)
        sigmas = SIGMAS if n >= FULL else float(stats.t.isf(stats.norm.sf(SIGMAS), n - 1))
        return sigmas * float(np.std(self.accuracies, ddof=1)) / float(np.sqrt(n))

    @property
    def n_discovering(self) -> int:
        return sum(found > 0 for found in self.discoveries)

    @property
    def most_discovering(self) -> int:
        """The most swaps with a discovery that chance explains: 10 of 100, 2 of 10."""
        return next(m for m in range(len(self.discoveries) + 1) if stats.binom.sf(m, len(self.discoveries), DISCOVERY) <= RARE)


def label_swap_null(
    hidden: HiddenStates,
    pairs: PreferencePairs,
    sae: Encoder,
    selection: SelectionConfig,
    head: HeadConfig,
    *,
    swaps: int,
    seed: int,
    progress: Progress = no_progress,
) -> NullTest | None:
    """The null on a fit's hidden states; `pairs[i]` is the pair of `hidden.chosen_rows[i]`. None without test pairs."""
    n_all = len(pairs.rows_of("test"))
    hidden, pairs = thinned(hidden, pairs, PAIRS, seed)
    test, groups = pairs.rows_of("test"), pairs.prompt_groups()
    if not len(test):
        return None
    tasks, discoveries = list[HeadTask](), list[int]()
    for number in range(swaps):
        progress("label swaps", number, swaps)
        turned = swapped(hidden, groups, [seed, number])
        frequencies, resamples = latent_frequencies(turned, pairs, sae, replace(selection, resamples=RESAMPLES), selection.k)
        tasks.append(replace(sparse_task(turned, selected_directions(frequencies, resamples, sae, selection.k)), seed=number))
        discoveries.append(int((frequencies.q_value < DISCOVERY).sum()))
    heads = train_tasks(tasks, pairs, head, [head.loss] * swaps, progress, "heads of label swaps")
    accuracies = tuple(float((margins_of(trained, task.inputs, test) > 0).mean()) for trained, task in zip(heads, tasks, strict=True))
    return NullTest(accuracies=accuracies, discoveries=tuple(discoveries), n_pairs=len(test), n_all=n_all)


def swapped(hidden: HiddenStates, groups: Int[np.ndarray, " n_pairs"], seed: int | list[int]) -> HiddenStates:
    """Chosen and rejected exchanged in all pairs of a random half of the prompts."""
    turn = np.random.default_rng(seed).integers(2, size=groups.max() + 1).astype(bool)[groups]
    chosen, rejected = hidden.chosen_rows, hidden.rejected_rows
    return replace(hidden, chosen_rows=np.where(turn, rejected, chosen), rejected_rows=np.where(turn, chosen, rejected))


def thinned(hidden: HiddenStates, pairs: PreferencePairs, most: int, seed: int) -> tuple[HiddenStates, PreferencePairs]:
    """The pairs of randomly drawn prompts, at most so many."""
    rows = sampled(pairs.prompt_groups(), most, seed)
    if len(rows) == len(pairs):
        return hidden, pairs
    named = {name: getattr(hidden, name)[rows] for name in ("chosen_rows", "rejected_rows", "pair_rows")}
    return replace(hidden, **named), pairs.take(rows)


def null_check(found: NullTest | None) -> Check:
    """The verdict of the null."""
    name, reason = "label-swap null", "swapped labels mean nothing: whoever predicts them on test pairs has seen those pairs' labels in training"
    if found is None:
        bound = "test accuracy within three standard errors of 0.5"
        return Check(name=name, status=WARN, figure="no test pairs", bound=bound, reason=reason, remedy="give the data a test split (--ratios)")
    swaps, off = len(found.accuracies), abs(found.mean - 0.5)
    status = judge((off > found.reach, FAIL), (found.n_discovering > found.most_discovering, FAIL))
    return Check(
        name=name,
        status=status,
        figure=f"test accuracy {found.mean:.3f} over {swaps} swaps (single ones {min(found.accuracies):.3f} to {max(found.accuracies):.3f}), "
        f"{found.n_discovering} with a discovery; n = {found.n_pairs:,} of {found.n_all:,} test pairs",
        bound=f"0.5 within {found.reach:.3f} (three standard errors), at most {found.most_discovering} of {swaps} swaps with a discovery",
        reason=reason,
        remedy="" if status == PASS else "see split leakage and duplicates; --swaps 100 tells more surely",
        value=found.mean,
        low=found.mean - found.reach,
        high=found.mean + found.reach,
        n=found.n_pairs,
        details={
            "accuracies": list(found.accuracies),
            "discoveries": list(found.discoveries),
            "swaps": swaps,
            "n_pairs": found.n_pairs,
            "n_all_test_pairs": found.n_all,
        },
    )

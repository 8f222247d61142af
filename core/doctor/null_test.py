"""The label-swap null test: nothing can be learnt from labels that are swapped by prompt (METHOD.md section 3,
statistics).

Each swap exchanges chosen and rejected for a random half of the prompts of all splits and repeats selection, projection
and head of a fit on the cached hidden states, with one seed. If test accuracies then differ from one half, training has
seen labels of test pairs: two splits share a prompt or a copy of it. If latents are "discovered" more often than the
false discovery rate allows, the statistics do not fit the data.

METHOD.md's test takes 100 swaps: at most 10 with a discovery, mean accuracy within three standard errors. For fewer
swaps the bounds are those of the same error rates: a binomial with 5 % and Student's t.
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
from core.reward.hidden_states import HiddenStates
from core.reward.selection import DISCOVERY, Encoder, latent_frequencies, selected_directions
from core.types import PreferencePairs, Progress, no_progress

PAIRS = 3000  # pairs at most; more are thinned out by whole prompts
RESAMPLES = 10  # as few as possible: the test does not use the bootstrap
FULL = 100
SIGMAS = 3.0
RARE = 0.012  # chance of more than 10 of 100 swaps with a discovery if each has one with a chance of 5 %


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
        """How far the mean may lie from one half: three standard errors, a little more if few swaps estimate the error."""
        n = len(self.accuracies)
        sigmas = SIGMAS if n >= FULL else float(stats.t.isf(stats.norm.sf(SIGMAS), n - 1))
        return sigmas * float(np.std(self.accuracies, ddof=1)) / float(np.sqrt(n))

    @property
    def n_discovering(self) -> int:
        return sum(count > 0 for count in self.discoveries)

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
    """The null test on a fit's hidden states; `pairs[i]` is the pair of `hidden.chosen_rows[i]`. None without test
    pairs.
    """
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


def null_check(test: NullTest | None) -> Check:
    """The verdict of the null test."""
    name, reason = "label-swap null", "swapped labels mean nothing: whoever predicts them on test pairs has seen those pairs' labels in training"
    if test is None:
        bound = "test accuracy within three standard errors of 0.5"
        return Check(name=name, status=WARN, figure="no test pairs", bound=bound, reason=reason, remedy="give the data a test split (--ratios)")
    swaps, off = len(test.accuracies), abs(test.mean - 0.5)
    status = judge((off > test.reach, FAIL), (test.n_discovering > test.most_discovering, FAIL))
    return Check(
        name=name,
        status=status,
        figure=f"test accuracy {test.mean:.3f} over {swaps} swaps (single ones {min(test.accuracies):.3f} to {max(test.accuracies):.3f}), "
        f"{test.n_discovering} with a discovery; n = {test.n_pairs:,} of {test.n_all:,} test pairs",
        bound=f"0.5 within {test.reach:.3f} (three standard errors), at most {test.most_discovering} of {swaps} swaps with a discovery",
        reason=reason,
        remedy="" if status == PASS else "see split leakage and duplicates; --swaps 100 tells more surely",
        value=test.mean,
        low=test.mean - test.reach,
        high=test.mean + test.reach,
        n=test.n_pairs,
        details={
            "accuracies": list(test.accuracies),
            "discoveries": list(test.discoveries),
            "swaps": swaps,
            "n_pairs": test.n_pairs,
            "n_all_test_pairs": test.n_all,
        },
    )

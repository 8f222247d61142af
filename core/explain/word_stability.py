"""Would another draw of the training prompts mark the same words? (METHOD.md section 4)

1. Refit: selection of directions and one head on bootstrap resamples of the training prompts; validation stays.
2. Each refit splits the rewards of held-out responses over their words (core.explain.word_table, from its own mean
   training projection).
3. Per response the mean Spearman correlation of the words' contributions over pairs of refits; then the mean over
   responses, with a 95 % bootstrap interval over prompts. 0 is chance, 1 the same order every time.

It needs the states of single tokens that an extraction keeps, neither the language model nor its tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from core.config import HeadConfig, SelectionConfig
from core.explain.attribution import rank_correlations
from core.explain.stability import spread
from core.explain.text_units import unit_spans
from core.explain.word_table import response_table, summed, units_of_tokens
from core.explain.words import token_places
from core.reward.fit_responses import FitResponses
from core.reward.head import Head
from core.reward.head_inputs import sparse_task, train_tasks
from core.reward.hidden_states import HiddenStates
from core.reward.selection import Encoder, latent_frequencies, selected_directions
from core.reward.training import standardisation
from core.statistics.estimates import Estimate, mean_over_prompts
from core.types import Message, PreferencePairs, Progress, no_progress

REFITS, RESPONSES = 10, 300
FEWEST = 3  # words of a response whose order is compared
RESAMPLES = 10  # of the selection's own bootstrap, which is not used: as few as possible


@dataclass(frozen=True, kw_only=True)
class Refit:
    """What another draw of prompts made: its head, the directions it reads and its mean training projection."""

    head: Head
    directions: Float[np.ndarray, "k d_model"]
    baseline: Float[np.ndarray, " k"]


@dataclass(frozen=True, kw_only=True)
class ReadResponse:
    """States of a response's own tokens, the word that each belongs to, and the number of its prompt."""

    states: Float[np.ndarray, "t d_model"]
    word_of_token: Int[np.ndarray, " t"]
    n_words: int
    prompt: int


def word_stability(refits: Sequence[Refit], responses: Sequence[ReadResponse]) -> Estimate | None:
    """Mean rank correlation of words' contributions over pairs of refits, over responses of three words and more. None with
    fewer than two refits, or responses to fewer than two prompts."""
    if len(refits) < 2:
        return None
    enough = [response for response in responses if response.n_words >= FEWEST]
    correlations = np.array([_correlation(refits, response) for response in enough])
    return mean_over_prompts(correlations, np.array([response.prompt for response in enough], dtype=np.int64)) if len(enough) else None


def _correlation(refits: Sequence[Refit], response: ReadResponse) -> float:
    states = response.states.astype(np.float64)
    by_refit = []
    for refit in refits:
        table = response_table(refit.head, states @ refit.directions.astype(np.float64).T, refit.baseline)
        by_refit.append(summed(table.sum(axis=1), response.word_of_token, response.n_words))
    return float(rank_correlations(np.stack(by_refit)[:, None])[0])


def refit_on_resamples(
    hidden: HiddenStates,
    pairs: PreferencePairs,
    sae: Encoder,
    selection: SelectionConfig,
    head: HeadConfig,
    *,
    refits: int = REFITS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[Refit]:
    """Selection and one head for each bootstrap resample of the training prompts; `pairs[i]` is the pair of
    `hidden.chosen_rows[i]`."""
    made = []
    for number in range(refits):
        progress("refits", number, refits)
        states, drawn = resampled(hidden, pairs, [seed, number])
        frequencies, resamples = latent_frequencies(states, drawn, sae, replace(selection, resamples=RESAMPLES), selection.k)
        selected = selected_directions(frequencies, resamples, sae, selection.k)
        task = sparse_task(states, selected)
        (trained,) = train_tasks([task], drawn, head, [head.loss], no_progress, "refit")
        baseline = standardisation(task.inputs, drawn.rows_of("train")).mean.astype(np.float64)
        made.append(Refit(head=trained.head, directions=selected.directions, baseline=baseline))
    progress("refits", refits, refits)
    return made


def resampled(hidden: HiddenStates, pairs: PreferencePairs, seed: int | list[int]) -> tuple[HiddenStates, PreferencePairs]:
    """As many training prompts drawn with replacement, with all their pairs, beside all validation pairs. A prompt that is
    drawn again counts as another prompt."""
    train = pairs.rows_of("train")
    groups = pairs.prompt_groups()[train]
    numbers = np.unique(groups)
    by_prompt = {int(number): train[groups == number] for number in numbers}
    times: dict[int, int] = {}
    rows, copies = list[int](), list[int]()
    for number in np.random.default_rng(seed).choice(numbers, size=len(numbers)).tolist():
        rows += by_prompt[number].tolist()
        copies += [times.get(number, 0)] * len(by_prompt[number])
        times[number] = times.get(number, 0) + 1
    rows += pairs.rows_of("validation").tolist()
    copies += [0] * (len(rows) - len(copies))
    drawn = pairs.take(rows)
    marked = tuple(replace(pair, prompt=(*pair.prompt, _copy(copy))) if copy else pair for pair, copy in zip(drawn, copies, strict=True))
    named = {name: getattr(hidden, name)[rows] for name in ("chosen_rows", "rejected_rows", "pair_rows")}
    return replace(hidden, **named), replace(drawn, pairs=marked)


def _copy(number: int) -> Message:
    return {"role": "system", "content": f"drawn again: {number}"}


def held_out_responses(hidden: HiddenStates, known: FitResponses, most: int = RESPONSES) -> list[ReadResponse]:
    """Held-out responses whose tokens the extraction keeps, evenly spread. `known` are the responses of the pairs of
    `hidden`, with texts."""
    return list(_held_out(hidden, known, most))


def _held_out(hidden: HiddenStates, known: FitResponses, most: int) -> Iterator[ReadResponse]:
    assert hidden.tokens is not None and known.pairs is not None  # whole responses are read; the caller has looked
    texts: dict[int, str] = {}
    for pair in known.held_out_pairs.tolist():
        texts[int(known.chosen_rows[pair])] = known.pairs[pair].chosen
        texts[int(known.rejected_rows[pair])] = known.pairs[pair].rejected
    row_in_hidden = np.unique(np.concatenate([hidden.chosen_rows, hidden.rejected_rows]))
    places = hidden.tokens.places(row_in_hidden[known.held_out])
    kept = spread(np.flatnonzero(places >= 0), most)
    for row, place in zip(known.held_out[kept].tolist(), places[kept].tolist(), strict=True):
        part = hidden.tokens.tokens(place)
        spans = unit_spans(texts[row], "word")
        of_token = units_of_tokens(token_places(texts[row], hidden.tokens.offsets[part]), [start for start, _ in spans])
        states = np.asarray(hidden.tokens.states[part], dtype=np.float32)
        yield ReadResponse(states=states, word_of_token=of_token, n_words=len(spans), prompt=int(known.groups[row]))

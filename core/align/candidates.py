"""Candidate pairs of a round, made of a policy's generated answers (METHOD.md section 5).

- two_prompts: one answer under a positive and one under a negative instruction; the first is the intended winner.
- contrastive: one text that holds both answers; texts that can't be parsed are kept and counted.
- best_of_n: n samples, that of the highest against that of the lowest reward. The reward selects the winner, so this
  mode needs `score`.

An answer that was truncated at the token limit is cut to its last whole sentence. A pair has the plain prompt: DPO
never reads an instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from core.align.generation import AnswerGenerator
from core.align.templates import instructed, parse_both, templates_of
from core.align.values import Candidate, Prompt
from core.backbone.generation import whole_sentences
from core.backbone.journal import Generated
from core.config import CandidatesConfig
from core.errors import ConfigError
from core.types import Message, Progress, no_progress

# Rewards of (prompt, response); NaN if unreadable.
Score = Callable[[Sequence[tuple[Sequence[Message], str]]], np.ndarray]
NOT_GENERATED, CUT, EMPTY, UNPARSED = "not generated", "cut before the end of a sentence", "empty answer", "not in the form asked for"
TOO_FEW, MARGIN, LENGTHS = "fewer than two readable answers", "margin below the minimum", "lengths too different"


def make_candidates(
    prompts: Sequence[Prompt], generator: AnswerGenerator, config: CandidatesConfig, *, progress: Progress = no_progress
) -> list[Candidate]:
    """`config.per_prompt` candidates of each prompt, by `two_prompts` or `contrastive`, in the prompts' order.

    A candidate's id is its prompt's id and a number. Raises ConfigError for best_of_n, which has a function of its own,
    and for instructions without marks, DataError for a prompt without a user's message.
    """
    makers = {"two_prompts": _two_prompts, "contrastive": _contrastive}
    if config.mode not in makers:
        raise ConfigError("these candidates are chosen by a reward", expected=" | ".join(makers), found=config.mode, remedy="call best_of_n")
    return makers[config.mode](prompts, generator, config, progress)


def _two_prompts(prompts: Sequence[Prompt], generator: AnswerGenerator, config: CandidatesConfig, progress: Progress) -> list[Candidate]:
    templates = templates_of(config)
    instructions = [instructed(prompt.messages, text) for text in (templates.positive, templates.negative) for prompt in prompts]
    answers = generator.generate(instructions, config.per_prompt, progress=progress)
    candidates = []
    for place, prompt in enumerate(prompts):
        for number, both in enumerate(zip(answers[place], answers[len(prompts) + place], strict=True)):
            (chosen, chosen_refused), (rejected, rejected_refused) = map(_usable, both)
            refused = chosen_refused or rejected_refused
            candidates.append(_candidate(prompt, number, "" if refused else chosen, "" if refused else rejected, refused, both))
    return candidates


def _contrastive(prompts: Sequence[Prompt], generator: AnswerGenerator, config: CandidatesConfig, progress: Progress) -> list[Candidate]:
    templates = templates_of(config)
    answers = generator.generate([instructed(prompt.messages, templates.contrastive) for prompt in prompts], config.per_prompt, progress=progress)
    candidates = []
    for prompt, row in zip(prompts, answers, strict=True):
        for number, answer in enumerate(row):
            text, refused = _usable(answer)
            both = refused or parse_both(text, templates.marks)
            if isinstance(both, tuple):
                candidates.append(_candidate(prompt, number, *both, "", [answer]))
            else:
                candidates.append(_candidate(prompt, number, "", "", refused or f"{UNPARSED}: {both}", [answer]))
    return candidates


def best_of_n(
    prompts: Sequence[Prompt], generator: AnswerGenerator, score: Score, config: CandidatesConfig, *, progress: Progress = no_progress
) -> list[Candidate]:
    """`config.per_prompt` candidates of each prompt: of `config.n` samples the highest against the lowest reward.

    Of the pairs with similar lengths (`length_ratio`, in characters, so that a reward that grows with length does not
    select by it) that with the largest margin is taken. Where there is none, or its margin is below `min_margin`,
    `meta["unfit"]` is the reason why the filter drops the pair.
    """
    answers = generator.generate([prompt.messages for prompt in prompts], config.n * config.per_prompt, progress=progress)
    groups = [
        (prompt, number, row[number * config.n : (number + 1) * config.n])
        for prompt, row in zip(prompts, answers, strict=True)
        for number in range(config.per_prompt)
    ]
    texts = [[_usable(answer)[0] for answer in group] for _, _, group in groups]
    rewards = _rewards(groups, texts, score)
    return [_selected(*group, usable, scores, config) for group, usable, scores in zip(groups, texts, rewards, strict=True)]


def _rewards(groups: Sequence[tuple[Prompt, int, Sequence[Generated]]], texts: Sequence[Sequence[str]], score: Score) -> list[np.ndarray]:
    """The reward of every sample of every group, NaN for those without a usable text."""
    places = [(row, place) for row, samples in enumerate(texts) for place, text in enumerate(samples) if text]
    rewards = [np.full(len(samples), np.nan) for samples in texts]
    if places:
        scores = score([(groups[row][0].messages, texts[row][place]) for row, place in places])
        for (row, place), value in zip(places, scores, strict=True):
            rewards[row][place] = value
    return rewards


def _selected(
    prompt: Prompt, number: int, samples: Sequence[Generated], texts: Sequence[str], rewards: np.ndarray, config: CandidatesConfig
) -> Candidate:
    """The candidate that best_of_n makes of a group of samples with their usable texts and rewards."""
    readable = [place for place in range(len(texts)) if np.isfinite(rewards[place])]
    if len(readable) < 2:
        return _candidate(prompt, number, "", "", TOO_FEW, samples)
    pairs = [(w, x) for w in readable for x in readable if w != x]
    lengths = [len(text) for text in texts]
    alike = [(w, x) for w, x in pairs if max(lengths[w], lengths[x]) / min(lengths[w], lengths[x]) <= config.length_ratio]
    best, worst = max(alike or pairs, key=lambda pair: rewards[pair[0]] - rewards[pair[1]])
    margin = float(rewards[best] - rewards[worst])
    unfit = LENGTHS if not alike else MARGIN if margin < config.min_margin else ""
    selection = {"samples": [best, worst], "rewards": [float(rewards[best]), float(rewards[worst])]}
    return _candidate(prompt, number, texts[best], texts[worst], "", samples, **selection, **({"unfit": unfit} if unfit else {}))


def _usable(answer: Generated) -> tuple[str, str]:
    """The usable text of a generated answer and "", or "" and the reason why there is none."""
    if answer.failed:
        return "", f"{NOT_GENERATED}: {answer.failed}"
    text = answer.text if answer.finished else whole_sentences(answer.text)
    return text, "" if text else EMPTY if answer.finished else CUT


def _candidate(prompt: Prompt, number: int, chosen: str, rejected: str, refused: str, answers: Sequence[Generated], **more: Any) -> Candidate:
    tokens, finished = [answer.n_tokens for answer in answers], [answer.finished for answer in answers]
    meta = {**prompt.meta, "tokens": tokens, "finished": finished, **more}
    name, raw = f"{prompt.prompt_id}-{number}", tuple(answer.text for answer in answers)
    return Candidate(candidate_id=name, prompt=prompt.messages, chosen=chosen, rejected=rejected, refused=refused, raw=raw, meta=meta)

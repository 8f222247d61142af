"""Candidate pairs of a round (METHOD.md section 5): what a policy writes under instructions or draws, made into pairs with an intended winner.

- two_prompts: one answer under a positive, one under a negative instruction; the intended winner is known without parsing.
- contrastive: one text that holds both; what can't be parsed is kept and counted.
- best_of_n: n samples, highest against lowest reward: the reward picks the winner itself, so it is a selection and needs `score`.

An answer that was cut at the token limit ends with its last whole sentence. A pair's prompt is the plain one: DPO never sees an instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from core.align.generation import Generator
from core.align.templates import instructed, parse_both, templates_of
from core.align.values import Candidate, Prompt
from core.backbone.generation import whole_sentences
from core.backbone.journal import Generated
from core.config import CandidatesConfig
from core.errors import ConfigError
from core.types import Message, Progress, no_progress

Score = Callable[[Sequence[tuple[Sequence[Message], str]]], np.ndarray]  # rewards of (prompt, response); NaN where one can't be read
NOT_GENERATED, CUT, EMPTY, UNPARSED = "not generated", "cut before the end of a sentence", "empty answer", "not in the form asked for"
TOO_FEW, MARGIN, LENGTHS = "fewer than two readable answers", "margin below the minimum", "lengths too different"


def make_candidates(
    prompts: Sequence[Prompt], generator: Generator, config: CandidatesConfig, *, progress: Progress = no_progress
) -> list[Candidate]:
    """`config.per_prompt` candidates of each prompt, by `two_prompts` or `contrastive`, in order; their ids are the prompt's and a number.

    Raises ConfigError for best_of_n (it needs a reward: see `best_of_n`) and for instructions that can't work, DataError for a prompt without a user.
    """
    makers = {"two_prompts": _two_prompts, "contrastive": _contrastive}
    if config.mode not in makers:
        raise ConfigError("these candidates are chosen by a reward", expected=" | ".join(makers), found=config.mode, remedy="call best_of_n")
    return makers[config.mode](prompts, generator, config, progress)


def _two_prompts(prompts: Sequence[Prompt], generator: Generator, config: CandidatesConfig, progress: Progress) -> list[Candidate]:
    templates = templates_of(config)
    asked = [instructed(prompt.messages, text) for text in (templates.positive, templates.negative) for prompt in prompts]
    answers = generator.generate(asked, config.per_prompt, progress=progress)
    found = []
    for place, prompt in enumerate(prompts):
        for number, both in enumerate(zip(answers[place], answers[len(prompts) + place], strict=True)):
            texts = [_usable(one) for one in both]
            refused = next((why for _, why in texts if why), "")
            found.append(_candidate(prompt, number, "" if refused else texts[0][0], "" if refused else texts[1][0], refused, both))
    return found


def _contrastive(prompts: Sequence[Prompt], generator: Generator, config: CandidatesConfig, progress: Progress) -> list[Candidate]:
    templates = templates_of(config)
    answers = generator.generate([instructed(prompt.messages, templates.contrastive) for prompt in prompts], config.per_prompt, progress=progress)
    found = []
    for prompt, row in zip(prompts, answers, strict=True):
        for number, one in enumerate(row):
            text, refused = _usable(one)
            both = refused or parse_both(text, templates.marks)
            if isinstance(both, tuple):
                found.append(_candidate(prompt, number, *both, "", [one]))
            else:
                found.append(_candidate(prompt, number, "", "", refused or f"{UNPARSED}: {both}", [one]))
    return found


def best_of_n(
    prompts: Sequence[Prompt], generator: Generator, score: Score, config: CandidatesConfig, *, progress: Progress = no_progress
) -> list[Candidate]:
    """`config.per_prompt` candidates of each prompt, each from `config.n` samples of its own: highest against lowest reward.

    Of the pairs whose lengths are alike (`length_ratio`, in characters: a reward that loves length would choose by it) the largest margin is taken.
    Where none is alike, or the margin is below `min_margin`, `meta["unfit"]` says why the pair is to be dropped.
    """
    answers = generator.generate([prompt.messages for prompt in prompts], config.n * config.per_prompt, progress=progress)
    groups = [
        (prompt, number, row[number * config.n : (number + 1) * config.n])
        for prompt, row in zip(prompts, answers, strict=True)
        for number in range(config.per_prompt)
    ]
    texts = [[_usable(one)[0] for one in group] for _, _, group in groups]
    rewards = _rewards(groups, texts, score)
    return [_selected(*group, own, reward, config) for group, own, reward in zip(groups, texts, rewards, strict=True)]


def _rewards(groups: Sequence[tuple[Prompt, int, Sequence[Generated]]], texts: Sequence[Sequence[str]], score: Score) -> list[np.ndarray]:
    """The reward of every sample, NaN for those without a usable text."""
    places = [(row, place) for row, own in enumerate(texts) for place, text in enumerate(own) if text]
    found = [np.full(len(own), np.nan) for own in texts]
    if places:
        scored = score([(groups[row][0].messages, texts[row][place]) for row, place in places])
        for (row, place), value in zip(places, scored, strict=True):
            found[row][place] = value
    return found


def _selected(
    prompt: Prompt, number: int, samples: Sequence[Generated], texts: Sequence[str], rewards: np.ndarray, config: CandidatesConfig
) -> Candidate:
    readable = [place for place in range(len(texts)) if np.isfinite(rewards[place])]
    if len(readable) < 2:
        return _candidate(prompt, number, "", "", TOO_FEW, samples)
    pairs = [(w, x) for w in readable for x in readable if w != x]
    alike = [(w, x) for w, x in pairs if _length_ratio(texts[w], texts[x]) <= config.length_ratio]
    best, worst = max(alike or pairs, key=lambda pair: rewards[pair[0]] - rewards[pair[1]])
    margin = float(rewards[best] - rewards[worst])
    unfit = LENGTHS if not alike else MARGIN if margin < config.min_margin else ""
    said = {"samples": [best, worst], "rewards": [float(rewards[best]), float(rewards[worst])]}
    return _candidate(prompt, number, texts[best], texts[worst], "", samples, **said, **({"unfit": unfit} if unfit else {}))


def _length_ratio(a: str, b: str) -> float:
    return max(len(a), len(b)) / min(len(a), len(b))


def _usable(one: Generated) -> tuple[str, str]:
    """The text that can stand as an answer, or "" and why there is none."""
    if one.failed:
        return "", f"{NOT_GENERATED}: {one.failed}"
    text = one.text if one.finished else whole_sentences(one.text)
    return text, "" if text else EMPTY if one.finished else CUT


def _candidate(prompt: Prompt, number: int, chosen: str, rejected: str, refused: str, written: Sequence[Generated], **said: Any) -> Candidate:
    meta = {**prompt.meta, "tokens": [one.n_tokens for one in written], "finished": [one.finished for one in written], **said}
    name, raw = f"{prompt.prompt_id}-{number}", tuple(one.text for one in written)
    return Candidate(candidate_id=name, prompt=prompt.messages, chosen=chosen, rejected=rejected, refused=refused, raw=raw, meta=meta)

"""Log-probabilities of given answers under a policy, and the policy's KL divergence from its base model.

Answers to one prompt share its key-value cache, which is computed once. Prompts are padded on the left, answers follow
them, and the language-model head is computed for the answers' tokens alone. Batches depend on the texts alone, so they
are the same in every round and rounding errors cancel in paired differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from core.align.policy import Policy
from core.backbone.generation import left_padded, shared_cache
from core.backbone.layout import Unreadable
from core.backbone.model import Backbone
from core.reward.dialogues import Item
from core.types import Message, Progress, no_progress

ByToken = Float[np.ndarray, " t"]


class AnswerTokens(NamedTuple):
    """A prompt of at least one token, and the tokens of an answer to it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def encode_answers(backbone: Backbone, items: Sequence[Item], *, closed: Sequence[bool]) -> list[AnswerTokens | None]:
    """Items as tokens by the chat template: the prompt, and the answer's text, with its end of turn where `closed`.
    None where a dialogue can't be read, an answer has no token, or the two are longer than the backbone's
    `max_length`."""
    dialogues = backbone.render_all([[*prompt, Message(role="assistant", content=text)] for prompt, text in items])
    encoded = list[AnswerTokens | None]()
    for (_, text), dialogue, with_end in zip(items, dialogues, closed, strict=True):
        if isinstance(dialogue, Unreadable) or not text.strip() or not dialogue.answered:
            encoded.append(None)
            continue
        last = max(dialogue.response_ends[-1], dialogue.turn_ends[-1]) if with_end else dialogue.response_ends[-1]
        start, stop, ids = dialogue.response_starts[-1], last + 1, dialogue.ids.tolist()
        encoded.append(AnswerTokens(tuple(ids[:start]), tuple(ids[start:stop])) if stop <= backbone.config.max_length else None)
    return encoded


def answer_logprobs(
    backbone: Backbone, answers: Sequence[AnswerTokens], *, tokens_per_batch: int, step: str, progress: Progress = no_progress
) -> list[ByToken]:
    """log p of every token of each answer given all tokens before it, in nats, float64, in the order of `answers`."""
    logprobs: list[ByToken] = [np.zeros(0)] * len(answers)
    for rows, logits in _batches(backbone, answers, tokens_per_batch, step, progress):
        for row, row_logits in zip(rows, logits, strict=True):
            logprobs[row] = _token_logprobs(row_logits, answers[row].answer)
    return logprobs


def kl_from_base(
    policy: Policy, answers: Sequence[AnswerTokens], *, tokens_per_batch: int, step: str, progress: Progress = no_progress
) -> list[ByToken]:
    """KL(policy || base) of the next token at every token of each answer, in nats, over the whole vocabulary.

    Over answers that the policy drew at temperature 1 from its whole distribution, the sums over tokens are an unbiased
    estimate of the KL divergence of whole answers; over answers drawn from a nucleus they are the divergence along
    these answers. For the base model itself all are zero.
    """
    if policy.is_base:
        return [np.zeros(len(tokens.answer)) for tokens in answers]
    divergences: list[ByToken] = [np.zeros(0)] * len(answers)
    for rows, logits in _batches(policy.backbone, answers, tokens_per_batch, step, progress):
        with policy.base() as base:
            base_logits = _logits(base, [answers[row] for row in rows])
        for row, of_policy, of_base in zip(rows, logits, base_logits, strict=True):
            divergences[row] = token_kl(of_policy, of_base, len(answers[row].answer))
    return divergences


def plan(answers: Sequence[AnswerTokens], tokens_per_batch: int) -> list[list[int]]:
    """Batches of rows: answers to one prompt together, and prompts whose answers have similar lengths. A batch has at
    most `tokens_per_batch` tokens, padding included; a row that has more is a batch of its own."""
    order = sorted(range(len(answers)), key=lambda i: (answers[i].prompt, i))
    by_prompt = [list(rows) for _, rows in groupby(order, key=lambda i: answers[i].prompt)]
    by_prompt.sort(key=lambda rows: (max(len(answers[i].answer) for i in rows), len(answers[rows[0]].prompt), rows[0]))
    batches: list[list[int]] = [[]]
    for row in (row for rows in by_prompt for row in sorted(rows, key=lambda i: (len(answers[i].answer), i))):
        if batches[-1] and _size([answers[i] for i in (*batches[-1], row)]) > tokens_per_batch:
            batches.append([])
        batches[-1].append(row)
    return [batch for batch in batches if batch]


def _size(batch: Sequence[AnswerTokens]) -> int:
    """The tokens that a batch keeps in memory: each row's cache and its answer, both padded."""
    return len(batch) * (max(len(row.prompt) for row in batch) + max(len(row.answer) for row in batch))


def _batches(
    backbone: Backbone, answers: Sequence[AnswerTokens], tokens_per_batch: int, step: str, progress: Progress
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Rows and logits [rows, t, vocabulary] of every batch; `progress` is called for each."""
    batches = plan(answers, tokens_per_batch)
    for number, rows in enumerate(batches):
        progress(step, number, len(batches))
        yield rows, _logits(backbone, [answers[row] for row in rows])
    progress(step, len(batches), len(batches))


def _logits(backbone: Backbone, batch: Sequence[AnswerTokens]) -> torch.Tensor:
    """Logits [rows, t, vocabulary]: those at [:, i] predict answer token i; after an answer's last token is padding."""
    prompts = list(dict.fromkeys(row.prompt for row in batch))
    ids, mask = left_padded(backbone, prompts)
    prompt_rows = torch.tensor([prompts.index(row.prompt) for row in batch], device=ids.device)
    # The model reads the last prompt token and every answer token but the last: each of them predicts the token after
    # it.
    width = max(len(row.answer) for row in batch)
    rest, rest_mask = (torch.zeros(len(batch), width - 1, dtype=torch.long) for _ in range(2))
    for number, row in enumerate(batch):
        rest[number, : len(row.answer) - 1] = torch.tensor(row.answer[:-1])
        rest_mask[number, : len(row.answer) - 1] = 1
    cache = shared_cache(backbone, ids, mask, prompt_rows) if ids.shape[1] > 1 else None
    uncached = ids[prompt_rows] if cache is None else ids[prompt_rows, -1:]
    whole_mask = torch.cat([mask[prompt_rows], rest_mask.to(ids.device)], dim=1)
    input_ids = torch.cat([uncached, rest.to(ids.device)], dim=1)
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": whole_mask}
    inputs["position_ids"] = (whole_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    with torch.no_grad():
        result: torch.Tensor = backbone.model(**inputs, past_key_values=cache, use_cache=cache is not None, logits_to_keep=width).logits
    return result


def _token_logprobs(logits: torch.Tensor, answer: Sequence[int]) -> ByToken:
    """log p of the answer's tokens from logits [t, vocabulary]."""
    logits = logits[: len(answer)].float()
    chosen = logits.gather(1, torch.tensor(answer, device=logits.device)[:, None])[:, 0]
    logprobs: ByToken = (chosen - logits.logsumexp(-1)).cpu().double().numpy()
    return logprobs


def token_kl(policy: torch.Tensor, base: torch.Tensor, n: int) -> ByToken:
    """KL divergence at the first n tokens, in float64 on the CPU: a small training step's is lost in float32."""
    log_p, log_q = (logits[:n].float().cpu().double().log_softmax(-1) for logits in (policy, base))
    divergence: ByToken = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0).numpy()
    return divergence

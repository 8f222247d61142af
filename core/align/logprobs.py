"""Log-probabilities of given answers under a policy, and how far it has moved from its base model.

Answers to one prompt share its cache, which is computed once; prompts stand at the right edge, answers behind them, and the head is computed for the
answers' tokens alone. Batches are planned from the texts, so they are the same in every round: what arithmetic adds cancels in paired differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from core.align.policy import Policy
from core.backbone.generation import left_padded, shared_cache
from core.backbone.layout import Unreadable
from core.backbone.model import Backbone
from core.reward.dialogues import Item
from core.types import Message, Progress, no_progress

if TYPE_CHECKING:
    import torch

ByToken = Float[np.ndarray, " t"]


class Asked(NamedTuple):
    """A prompt, of at least one token, and the tokens of an answer whose probability is asked for."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def encode_answers(backbone: Backbone, items: Sequence[Item], *, closed: Sequence[bool]) -> list[Asked | None]:
    """Items through the chat template: what stands before an answer's own text, and its tokens; where `closed`, its end of turn as well.

    None where a dialogue can't be read, an answer has no token of its own, or is too long for the backbone's `max_length`.
    """
    rendered = backbone.render_all([[*prompt, Message(role="assistant", content=text)] for prompt, text in items])
    found = list[Asked | None]()
    for (_, text), one, ends in zip(items, rendered, closed, strict=True):
        if isinstance(one, Unreadable) or not text.strip() or not one.answered:
            found.append(None)
            continue
        start, stop = one.response_starts[-1], (max(one.response_ends[-1], one.turn_ends[-1]) if ends else one.response_ends[-1]) + 1
        ids = one.ids.tolist()
        found.append(Asked(tuple(ids[:start]), tuple(ids[start:stop])) if stop <= backbone.config.max_length else None)
    return found


def answer_logprobs(
    backbone: Backbone, asked: Sequence[Asked], *, tokens_per_batch: int, step: str, progress: Progress = no_progress
) -> list[ByToken]:
    """log p of every token of each answer given what stands before it, in nats, float64, in the order asked."""
    found: list[ByToken] = [np.zeros(0)] * len(asked)
    for rows, logits in _batches(backbone, asked, tokens_per_batch, step, progress):
        for row, of_row in zip(rows, logits, strict=True):
            found[row] = _at(of_row, asked[row].answer)
    return found


def kl_from_base(policy: Policy, asked: Sequence[Asked], *, tokens_per_batch: int, step: str, progress: Progress = no_progress) -> list[ByToken]:
    """KL(policy || base) of the next token before every token of each answer, in nats: exact over the whole vocabulary, never below zero.

    Over answers that the policy drew at temperature 1 from its whole distribution, their sums estimate the KL divergence of whole answers without
    bias; drawn from a nucleus they are that along the answers it writes. The base model itself has zeros.
    """
    if policy.is_base:
        return [np.zeros(len(one.answer)) for one in asked]
    found: list[ByToken] = [np.zeros(0)] * len(asked)
    batches = _batches(policy.backbone, asked, tokens_per_batch, step, progress)
    for rows, logits in batches:
        with policy.base() as base:
            before = _logits(base, [asked[row] for row in rows])
        for row, own, other in zip(rows, logits, before, strict=True):
            found[row] = _kl(own, other, len(asked[row].answer))
    return found


def plan(asked: Sequence[Asked], tokens_per_batch: int) -> list[list[int]]:
    """Batches of rows: answers to one prompt together, prompts with answers of like length together.

    A batch's tokens, its padding among them, are at most so many; a row that has more goes alone.
    """
    by_prompt = [list(rows) for _, rows in groupby(sorted(range(len(asked)), key=lambda i: (asked[i].prompt, i)), key=lambda i: asked[i].prompt)]
    by_prompt.sort(key=lambda rows: (max(len(asked[i].answer) for i in rows), len(asked[rows[0]].prompt), rows[0]))
    batches: list[list[int]] = [[]]
    for row in (row for rows in by_prompt for row in sorted(rows, key=lambda i: (len(asked[i].answer), i))):
        if batches[-1] and _size([asked[i] for i in (*batches[-1], row)]) > tokens_per_batch:
            batches.append([])
        batches[-1].append(row)
    return [batch for batch in batches if batch]


def _size(batch: Sequence[Asked]) -> int:
    """Tokens that are held for a batch: each row's cache and its answer."""
    return len(batch) * (max(len(one.prompt) for one in batch) + max(len(one.answer) for one in batch))


def _batches(
    backbone: Backbone, asked: Sequence[Asked], tokens_per_batch: int, step: str, progress: Progress
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Rows and logits [rows, t, vocabulary] of every batch, told as they come."""
    batches = plan(asked, tokens_per_batch)
    for number, rows in enumerate(batches):
        progress(step, number, len(batches))
        yield rows, _logits(backbone, [asked[row] for row in rows])
    progress(step, len(batches), len(batches))


def _logits(backbone: Backbone, batch: Sequence[Asked]) -> torch.Tensor:
    """Logits [rows, t, vocabulary]: at [:, i] those that answer token i is drawn from; what stands behind an answer's last token is padding."""
    import torch

    prompts = list(dict.fromkeys(one.prompt for one in batch))
    ids, mask = left_padded(backbone, prompts)
    places = torch.tensor([prompts.index(one.prompt) for one in batch], device=ids.device)
    # The last prompt token and every answer token but the last: each of them says what comes next.
    width = max(len(one.answer) for one in batch)
    rest, rest_mask = (torch.zeros(len(batch), width - 1, dtype=torch.long) for _ in range(2))
    for row, one in enumerate(batch):
        rest[row, : len(one.answer) - 1] = torch.tensor(one.answer[:-1])
        rest_mask[row, : len(one.answer) - 1] = 1
    cache = shared_cache(backbone, ids, mask, places) if ids.shape[1] > 1 else None
    before = ids[places] if cache is None else ids[places, -1:]
    whole = torch.cat([mask[places], rest_mask.to(ids.device)], dim=1)
    given: dict[str, Any] = {"input_ids": torch.cat([before, rest.to(ids.device)], dim=1), "attention_mask": whole}
    positions = (whole.cumsum(-1) - 1).clamp(min=0)[:, -given["input_ids"].shape[1] :]
    with torch.no_grad():
        result: torch.Tensor = backbone.model(
            **given, position_ids=positions, past_key_values=cache, use_cache=cache is not None, logits_to_keep=width
        ).logits
    return result


def _at(logits: torch.Tensor, answer: Sequence[int]) -> ByToken:
    """log p of the answer's tokens from logits [t, vocabulary]."""
    import torch

    own = logits[: len(answer)].float()
    chosen = own.gather(1, torch.tensor(answer, device=own.device)[:, None])[:, 0]
    found: ByToken = (chosen - own.logsumexp(-1)).cpu().double().numpy()
    return found


def _kl(own: torch.Tensor, other: torch.Tensor, n: int) -> ByToken:
    """In float64 on the CPU: the divergence of a small step is below what float32 adds up to."""
    log_p, log_q = (logits[:n].float().cpu().double().log_softmax(-1) for logits in (own, other))
    found: ByToken = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0).numpy()
    return found

"""DPO's forward pass with each pair's prompt computed once for both answers.

TRL computes it twice and pads both sequences to the step's longest.

A pair becomes one row, `prompt, chosen, last prompt token, rejected`, each answer without its last token, whose state
predicts nothing that is used. The rejected part attends to the prompt and to itself, at the positions of a separate
sequence, so every logit equals that of two sequences up to rounding:

              positions     attends to
    prompt    0 ... p-1     all tokens before it
    chosen    p ...         all tokens before it
    rejected  p-1, p ...    the prompt without its last token (this part has a copy), and the rejected tokens before it
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

PER_TOKEN = ("log_probs", "entropy", "mean_logits", "is_top1")  # fields by answer token that TRL reads


def can_share_prompts(model: Any) -> bool:
    """Whether a model depends on positions and mask alone: rotary, no recurrent state, no loss over experts."""
    config = model.config.get_text_config()
    return bool(
        getattr(config, "rope_parameters", None)
        and config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(type(model).forward).parameters
        and model._supports_default_dynamic_cache()
        and not getattr(config, "output_router_logits", False)
    )


def share_prompts(model: Any) -> Callable[..., Any]:
    """Wraps `model` so that it computes each prompt once.

    TRL calls it with chosen above rejected sequences [2b, t] and a fused head. The wrapper returns the fields of
    `PER_TOKEN`, each [2b, t - 1], zero where there is no label.
    """
    config = getattr(model, "module", model).config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)

    def call(*, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **options: Any) -> Any:
        length = input_ids.shape[1]
        # A token outside the sliding window must not be attended to; and labels at the first token mean that there is
        # no prompt to share.
        if length > (window or length) or bool((labels[:, 0] != -100).any()):
            return model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **options)
        rows = _one_row_a_pair(input_ids, labels)
        mask = rows.mask
        if config._attn_implementation != "sdpa":  # eager attention adds the mask to its scores
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        output = model(input_ids=rows.ids, attention_mask=mask, position_ids=rows.positions, shift_labels=rows.labels, **options)
        labelled = labels[:, 1:] != -100
        by_token = {name: getattr(output, name).repeat(2, 1).gather(1, rows.source).masked_fill(~labelled, 0) for name in PER_TOKEN}
        return SimpleNamespace(**by_token)

    return call


class _Rows(NamedTuple):
    """Rows of `l` tokens, one for each of b pairs, and how the sequences' outputs are read from them."""

    ids: torch.Tensor  # [b, l]
    positions: torch.Tensor  # [b, l]
    labels: torch.Tensor  # [b, l]: the token that each place predicts
    mask: torch.Tensor  # [b, 1, l, l]: True where a token is attended to
    source: torch.Tensor  # [2b, t - 1]: the place in the row that predicts a sequence's next token


def _one_row_a_pair(ids: torch.Tensor, labels: torch.Tensor) -> _Rows:
    """Chosen above rejected sequences [2b, t] as one row a pair."""
    n_pairs, length, labelled = len(ids) // 2, ids.shape[1], labels != -100
    prompt = labelled[:n_pairs].int().argmax(1, keepdim=True)
    chosen, rejected = labelled.sum(1, keepdim=True).chunk(2)
    second = prompt + chosen - 1  # where the rejected part begins, with the last prompt token
    row = torch.arange(int((second + rejected).max()), device=ids.device)[None]
    positions = torch.where(row < second, row, row - second + prompt - 1).clamp(max=length - 1)
    next_labels = torch.nn.functional.pad(labels, (0, 1), value=-100)

    def of_both(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        of_chosen, of_rejected = values.chunk(2)
        return torch.where(row < second, of_chosen.gather(1, index), of_rejected.gather(1, index))

    hidden = (row >= second)[:, :, None] & ((row >= prompt - 1) & (row < second))[:, None, :]
    mask = (row[:, :, None] >= row[:, None, :]) & ~hidden
    token = torch.arange(length - 1, device=ids.device)[None]
    source = torch.cat([token.expand(n_pairs, -1), token + second - prompt + 1]).clamp(max=row.shape[1] - 1)
    return _Rows(of_both(ids, positions), positions, of_both(next_labels, positions + 1), mask[:, None], source)

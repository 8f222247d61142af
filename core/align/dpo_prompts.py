"""Each pair's prompt computed once for both answers in DPO, where TRL reads it twice and pads both sequences to the longest of the step.

A pair becomes one row, `prompt, chosen, last prompt token, rejected`, each answer without its last token, whose state says nothing. What follows
the chosen answer sees the prompt and itself, at the places it would have by itself; so every logit is what two sequences give, up to rounding:

              places        sees
    prompt    0 ... p-1     what stands before
    chosen    p ...         what stands before
    rejected  p-1, p ...    prompt but its last token (it has its own), itself
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

PER_TOKEN = ("log_probs", "entropy", "mean_logits", "is_top1")  # what TRL takes from an answer's tokens


def can_share(model: Any) -> bool:
    """Whether this language model goes by places and mask alone: rotary attention, no state that runs along the row, no loss over experts."""
    config = model.config.get_text_config()
    return bool(
        getattr(config, "rope_parameters", None)
        and config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(type(model).forward).parameters
        and model._supports_default_dynamic_cache()
        and not getattr(config, "output_router_logits", False)
    )


def shared_prompts(model: Any) -> Callable[..., Any]:
    """`model` to be called as TRL calls it, with chosen above rejected sequences [2b, t] and the head fused; each prompt is computed once.

    Gives the fields that TRL reads, [2b, t - 1], zero where there is no label.
    """
    config = getattr(model, "module", model).config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)

    def call(*, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **options: Any) -> Any:
        length = input_ids.shape[1]
        if length > (window or length) or bool((labels[:, 0] != -100).any()):  # what has left the window must not be seen; no prompt to share
            return model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **options)
        one = _one_row_a_pair(input_ids, labels)
        sees = one.sees if config._attn_implementation == "sdpa" else _added(one.sees)
        found = model(input_ids=one.ids, attention_mask=sees, position_ids=one.places, shift_labels=one.labels, **options)
        own = labels[:, 1:] != -100
        return SimpleNamespace(**{name: getattr(found, name).repeat(2, 1).gather(1, one.back).masked_fill(~own, 0) for name in PER_TOKEN})

    return call


class _Rows(NamedTuple):
    ids: torch.Tensor  # [b, l]
    places: torch.Tensor  # [b, l]
    labels: torch.Tensor  # [b, l], the token behind each place
    sees: torch.Tensor  # [b, 1, l, l]
    back: torch.Tensor  # [2b, t - 1]: where in its row the state stands that says a sequence's next token


def _one_row_a_pair(ids: torch.Tensor, labels: torch.Tensor) -> _Rows:
    import torch

    pairs, length, own = len(ids) // 2, ids.shape[1], labels != -100
    prompt = own[:pairs].int().argmax(1, keepdim=True)
    chosen, rejected = own.sum(1, keepdim=True).chunk(2)
    second = prompt + chosen - 1  # where the rejected answer's part begins, with the last prompt token
    row = torch.arange(int((second + rejected).max()), device=ids.device)[None]
    places = torch.where(row < second, row, row - second + prompt - 1).clamp(max=length - 1)
    following = torch.nn.functional.pad(labels, (0, 1), value=-100)

    def of_both(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        first, other = values.chunk(2)
        return torch.where(row < second, first.gather(1, at), other.gather(1, at))

    hidden = (row >= second)[:, :, None] & ((row >= prompt - 1) & (row < second))[:, None, :]
    sees = (row[:, :, None] >= row[:, None, :]) & ~hidden
    token = torch.arange(length - 1, device=ids.device)[None]
    back = torch.cat([token.expand(pairs, -1), token + second - prompt + 1]).clamp(max=row.shape[1] - 1)
    return _Rows(of_both(ids, places), places, of_both(following, places + 1), sees[:, None], back)


def _added(sees: torch.Tensor) -> torch.Tensor:
    """The mask as plain attention adds it to its scores."""
    import torch

    return torch.zeros(sees.shape, device=sees.device).masked_fill(~sees, torch.finfo(torch.float32).min)

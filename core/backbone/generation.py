"""Samples answers from a backbone (`Writer`): similar prompts in a batch, each answer with random numbers of its own.

- A batch is padded on the left; several samples of one prompt share its cache, which is computed once.
- Tokens are drawn from the plain model with temperature and nucleus; a model's own generation settings (penalties,
  top-k) are not used.
- Every (prompt, sample) has its own seed, so a draw depends on neither the rest of the batch, the batch size nor
  earlier draws. Only rounding remains: a batch's shape changes the last bits of the logits, which now and then decides
  between two tokens. So batches are planned before anything is drawn, and a call that was killed writes the same text
  again on the same machine.
- The nucleus is looked for among the likeliest tokens; the whole vocabulary is sorted only for rows whose nucleus is
  wider (sorting and drawing from 24 rows of 49,152 took two thirds as long as SmolLM2's own step; this takes a
  seventh).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList

from core.backbone.journal import Generated, Journal
from core.backbone.layout import Unreadable
from core.backbone.model import Backbone
from core.backbone.transformers_calls import quiet_transformers
from core.types import Message, Progress, no_progress, sha256_of

LIKELY = 1024  # tokens among which the nucleus is looked for first
SENTENCE_END = re.compile(r"[.!?…](?=[\s\"'”)\]]|$)")
Row = tuple[int, int]  # numbers of a prompt and of a sample


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn: `max_new_tokens` at most, from the nucleus of probability `top_p` at `temperature`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Answers written, their tokens (end-of-turn included) and seconds; answers from a journal do not count."""

    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(answers=self.answers + other.answers, tokens=self.tokens + other.tokens, seconds=self.seconds + other.seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Writer:
    """Samples answers of one backbone, `batch_size` at a time, and keeps them in a journal."""

    def __init__(self, backbone: Backbone, sampling: Sampling, batch_size: int, journal: Journal) -> None:
        self.backbone, self.sampling, self.batch_size, self.journal, self.spent = backbone, sampling, batch_size, journal, Spent()

    def write(self, prompts: Sequence[Sequence[Message]], n: int, step: str, progress: Progress = no_progress) -> list[list[Generated]]:
        """`n` answers to each prompt, in order; a prompt that leaves no room for one has `failed` answers."""
        prefixes = [answer_prefix(self.backbone, prompt) for prompt in prompts]
        room = longest_prefix(self.backbone, self.sampling.max_new_tokens)
        encoded: list[list[int]] = [[] if isinstance(prefix, Unreadable) else prefix for prefix in prefixes]
        fitting = [i for i, ids in enumerate(encoded) if 0 < len(ids) <= room]
        batches = plan_rows([len(encoded[i]) for i in fitting], n, self.batch_size)
        answers = {(i, sample): _unanswered(prefix, room) for i, prefix in enumerate(prefixes) for sample in range(n)}
        for number, batch in enumerate(batches):
            progress(step, number, len(batches), tokens_per_second=round(self.spent.tokens_per_second, 1))
            rows = [(fitting[i], sample) for i, sample in batch]
            answers.update(zip(rows, self._batch(encoded, rows), strict=True))
        progress(step, len(batches), len(batches), tokens_per_second=round(self.spent.tokens_per_second, 1))
        return [[answers[i, sample] for sample in range(n)] for i in range(len(prompts))]

    def _batch(self, encoded: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[Generated]:
        keys = [sha256_of([asdict(self.sampling), list(encoded[i]), sample])[:32] for i, sample in rows]
        if not all(key in self.journal.answers for key in keys):  # a batch is drawn whole or not at all: its shape changes the last bits
            began = time.perf_counter()
            answers = write_answers(self.backbone, encoded, rows, self.sampling)
            tokens = sum(answer.n_tokens + answer.finished for answer in answers)
            self.spent += Spent(answers=len(rows), tokens=tokens, seconds=time.perf_counter() - began)
            self.journal.add(zip(keys, answers, strict=True))
        return [self.journal.answers[key] for key in keys]


def _unanswered(prefix: list[int] | Unreadable, room: int) -> Generated:
    """A failed answer with its reason, until `write` has a real one."""
    if isinstance(prefix, Unreadable):
        return Generated(text="", n_tokens=0, finished=False, failed=prefix.reason)
    return Generated(text="", n_tokens=0, finished=False, failed=f"the prompt has {len(prefix)} tokens, at most {room} leave room for an answer")


def answer_prefix(backbone: Backbone, prompt: Sequence[Message]) -> list[int] | Unreadable:
    """The prompt's tokens up to where the answer begins (a placeholder answer is cut off), or why there are none."""
    rendered = backbone.render_all([[*prompt, Message(role="assistant", content="a")]])[0]
    if isinstance(rendered, Unreadable):
        return rendered
    return [int(i) for i in rendered.ids[: rendered.response_starts[-1]]]


def longest_prefix(backbone: Backbone, max_new_tokens: int) -> int:
    """How many tokens a prompt may have so that an answer of `max_new_tokens` fits behind it."""
    limit = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    return min(backbone.config.max_length, limit or backbone.config.max_length) - max_new_tokens


def stop_tokens(backbone: Backbone) -> list[int]:
    """The tokens that end an answer: end of text of model and tokenizer, and the chat template's closing token."""
    model_ends = backbone.model.generation_config.eos_token_id
    rendered = backbone.render([Message(role="user", content="a"), Message(role="assistant", content="a")])
    closing = int(rendered.ids[rendered.turn_ends[-1]]) if rendered.turn_ends[-1] >= 0 else None
    added = backbone.tokenizer.added_tokens_decoder
    closing = closing if closing in added and added[closing].special else None  # some templates close with plain text
    stops = {backbone.tokenizer.eos_token_id, closing, *(model_ends if isinstance(model_ends, list) else [model_ends])}
    return sorted(token for token in stops if token is not None)


def plan_rows(lengths: Sequence[int], n: int, size: int) -> list[list[Row]]:
    """Batches of at most `size` answers, `n` to each prompt; samples of a prompt and similar lengths together.
    `lengths` are the prompts' tokens. Where n is above `size`, each batch holds samples of one prompt."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    if n > size:
        return [[(i, sample) for sample in range(at, min(at + size, n))] for i in order for at in range(0, n, size)]
    at_a_time = size // n
    return [[(i, sample) for i in order[at : at + at_a_time] for sample in range(n)] for at in range(0, len(order), at_a_time)]


def write_answers(backbone: Backbone, prompts: Sequence[Sequence[int]], rows: Sequence[Row], sampling: Sampling) -> list[Generated]:
    """An answer for each of `rows`, one batch. `prompts`: the tokens of all prompts, as `answer_prefix` returns."""
    used = list(dict.fromkeys(prompt for prompt, _ in rows))
    ids, mask = left_padded(backbone, [prompts[i] for i in used])
    places = torch.tensor([used.index(prompt) for prompt, _ in rows], device=ids.device)
    cache = shared_cache(backbone, ids, mask, places) if len(rows) > len(used) and ids.shape[1] > 1 else None
    uniform = np.stack([uniform_numbers(prompts[prompt], sample, sampling) for prompt, sample in rows])
    closing = stop_tokens(backbone)
    ends = sorted({*closing, *backbone.template.control.ids})
    with torch.no_grad(), _plain_settings(backbone, ends, sampling.max_new_tokens), quiet_transformers():
        written = backbone.model.generate(
            input_ids=ids[places],
            attention_mask=mask[places],
            past_key_values=cache,
            logits_processor=LogitsProcessorList([_Draw(torch.from_numpy(uniform).to(ids.device), sampling)]),
        )[:, ids.shape[1] :]
    return [answer_of(backbone, row, closing, ends) for row in written.tolist()]


def left_padded(backbone: Backbone, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [b, t], padded on the left. Padding is masked, so its token does not matter."""
    ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, ids.shape[1] - len(prompt) :] = torch.tensor(prompt)
        mask[row, ids.shape[1] - len(prompt) :] = 1
    return ids.to(backbone.device), mask.to(backbone.device)


def shared_cache(backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> Any:
    """The cache of each prompt without its last token, computed once and repeated by `places` [rows] (row's prompt).
    None for models with a cache of another kind."""
    if not backbone.model._supports_default_dynamic_cache():
        return None
    cache, positions = DynamicCache(config=backbone.model.config.get_text_config()), (mask.cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        backbone.model(**{name: values[:, :-1] for name, values in inputs.items()}, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_select_indices(places)
    return cache


@contextlib.contextmanager
def _plain_settings(backbone: Backbone, stops: list[int], max_new_tokens: int) -> Iterator[None]:
    """While open, the model has only our generation settings: `generate` takes any that a call does not name from the
    model's own, which may include penalties."""
    pad = backbone.tokenizer.pad_token_id
    before = backbone.model.generation_config
    backbone.model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, eos_token_id=stops or None, pad_token_id=0 if pad is None else pad
    )
    try:
        yield
    finally:
        backbone.model.generation_config = before


def uniform_numbers(prompt: Sequence[int], sample: int, sampling: Sampling) -> np.ndarray:
    """The random numbers in [0, 1) of one answer, one for each token."""
    seed = int(sha256_of([sampling.seed, list(prompt), sample])[:32], 16)
    return np.random.default_rng(seed).random(sampling.max_new_tokens)


class _Draw:
    """A logits processor that draws each row's next token and rules out all others, so greedy `generate` takes it."""

    def __init__(self, uniform: torch.Tensor, sampling: Sampling) -> None:
        self.uniform, self.sampling, self.step = uniform, sampling, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = draw(scores.float() / self.sampling.temperature, self.uniform[:, self.step], self.sampling.top_p)
        self.step += 1
        return scores.new_full(scores.shape, float("-inf")).scatter_(1, drawn[:, None], 0.0)


def draw(logits: torch.Tensor, uniform: torch.Tensor, top_p: float) -> torch.Tensor:
    """One token a row [b] from logits [b, v] and numbers [b] in [0, 1), by inverting the cumulated probabilities.

    Tokens come from the nucleus: the likeliest, up to the one with which they reach `top_p` (1 and above: all).
    """
    probabilities = logits.softmax(-1)
    if top_p >= 1:
        return _inverted(probabilities, uniform, top_p)
    likely, ids = probabilities.topk(min(LIKELY, logits.shape[1]))
    drawn = ids.gather(1, _inverted(likely, uniform, top_p)[:, None])[:, 0]
    wider = likely.double().sum(-1) < top_p
    if wider.any():
        every, ids = probabilities[wider].sort(descending=True)
        drawn[wider] = ids.gather(1, _inverted(every, uniform[wider], top_p)[:, None])[:, 0]
    return drawn


def _inverted(probabilities: torch.Tensor, uniform: torch.Tensor, top_p: float) -> torch.Tensor:
    """The column drawn in each row of probabilities [b, k], which must fall along a row for a nucleus (top_p < 1)."""
    reached = probabilities.double().cumsum(-1)
    before = reached - probabilities
    size = (before < top_p).sum(-1, keepdim=True)
    mass = reached.gather(1, size - 1)
    return (reached <= uniform[:, None] * mass).sum(-1).clamp(max=size[:, 0] - 1)


def answer_of(backbone: Backbone, ids: list[int], closing: Sequence[int], ends: Sequence[int]) -> Generated:
    """The answer up to the first token of `ends`. Where that is no closing token (the policy opened another turn, for
    instance), the answer counts as unfinished, like one that was cut for its length."""
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    text = str(backbone.tokenizer.decode(ids[:end], skip_special_tokens=False)).strip()
    return Generated(text=text, n_tokens=len(ids[:end]), finished=end is not None and ids[end] in closing)


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end, empty where it has none: a cut answer does not end where answers end."""
    ends = list(SENTENCE_END.finditer(text))
    return text[: ends[-1].end()] if ends else ""

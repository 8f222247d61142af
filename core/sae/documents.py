"""Dialogues as tokenised documents (`documents`), and their hidden states batch by batch (`stream_states`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from core.backbone.template import Rendered
from core.sae.corpus import Dialogue
from core.types import Message

if TYPE_CHECKING:
    import torch

    from core.backbone.model import Backbone


@dataclass(frozen=True, kw_only=True)
class Document:
    """A dialogue, or a part of it, as the backbone reads it.

    `content` marks the tokens an SAE is trained on: message text, never the template's tokens, never the first
    position. `ends` are the last content tokens of the assistant's messages, `sentences` the last tokens of the
    sentences inside them. `group` is the dialogue's. `n_cut` tokens beyond the context were cut.
    """

    ids: Int[np.ndarray, " t"]
    content: Bool[np.ndarray, " t"]
    ends: tuple[int, ...]
    group: str
    sentences: tuple[int, ...] = ()
    n_cut: int = 0


def documents(dialogues: Sequence[Dialogue], backbone: Backbone, context: int) -> list[list[Document]]:
    """Each dialogue as documents of at most `context` tokens, cut between exchanges (a question and its answer).

    An exchange that is itself longer is cut at `context`. A dialogue that can't be read (the template refuses it, a
    control token in a text) has no document.
    """
    rendered = backbone.render_all([d.messages for d in dialogues])
    # Tokens of the shortest exchange: slightly more than what the template writes before a first exchange.
    head = len(backbone.render([Message(role="user", content="a"), Message(role="assistant", content="a")]).ids)
    parts: list[list[Sequence[Message]]] = []
    for dialogue, whole in zip(dialogues, rendered, strict=True):
        if isinstance(whole, Rendered) and len(whole.ids) > context:
            parts.append(list(_parts(dialogue.messages, whole.response_ends, head, context)))
        else:
            parts.append([])
    rendered_parts = iter(backbone.render_all([part for several in parts for part in several]))
    pieces = [[next(rendered_parts) for _ in several] or [whole] for several, whole in zip(parts, rendered, strict=True)]
    return [
        [_document(r, d.group, context, backbone) for r in several if isinstance(r, Rendered)] for several, d in zip(pieces, dialogues, strict=True)
    ]


def _document(rendered: Rendered, group: str, context: int, backbone: Backbone) -> Document:
    content = np.array(rendered.content[:context], dtype=bool)
    content[:1] = False
    ends = tuple(i for i in rendered.response_ends if i < context and content[i])
    sentences = tuple(i for i in _sentence_ends(rendered, backbone) if i < context and content[i])
    ids, n_cut = np.array(rendered.ids[:context], dtype=np.int64), max(len(rendered.ids) - context, 0)
    return Document(ids=ids, content=content, ends=ends, group=group, sentences=sentences, n_cut=n_cut)


def _sentence_ends(rendered: Rendered, backbone: Backbone) -> Iterator[int]:
    """Positions inside answers that close a sentence: the token ends with its mark, and white space follows."""
    closes, opens = backbone.sentence_marks
    for start, end in zip(rendered.response_starts, rendered.response_ends, strict=True):
        ids = rendered.ids[start : end + 1]
        yield from (start + np.flatnonzero(closes[ids[:-1]] & opens[ids[1:]])).tolist()


def _parts(messages: Sequence[Message], ends: Sequence[int], head: int, context: int) -> Iterator[Sequence[Message]]:
    """Runs of exchanges that fit into `context`: each costs its tokens in the whole dialogue; the head is added."""
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(answers) != len(ends):
        yield messages
        return
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    start, length = len(system), 0
    for number, end in enumerate(ends):
        cost = end - ends[number - 1] if number else end - head
        if length and head + length + cost > context:
            yield [*system, *messages[start : answers[number - 1] + 1]]
            start, length = answers[number - 1] + 1, 0
        length += cost
    yield [*system, *messages[start:]]


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The documents' numbers in batches of similar lengths: at most `budget` tokens, padded (one may have more)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda n: (lengths[n], n)):
        if batches and lengths[i] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def padded(batch: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [b, t], padded on the right."""
    import torch

    ids = torch.zeros(len(batch), max(len(d.ids) for d in batch), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(batch):
        ids[row, : len(document.ids)] = torch.from_numpy(document.ids)
        mask[row, : len(document.ids)] = 1
    return ids, mask


def stream_states(documents: Sequence[Document], backbone: Backbone, layer: int, budget: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Batches of (document numbers, states [b, t, d_model] after decoder layer `layer` in the backbone's dtype)."""
    for numbers in plan_batches([len(d.ids) for d in documents], budget):
        ids, mask = padded([documents[i] for i in numbers])
        yield numbers, backbone.states(ids, mask, [layer])[layer]

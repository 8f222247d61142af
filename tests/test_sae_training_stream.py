"""Batches for an SAE: the positions they are drawn from, their order, and states equal to the model's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sae_training_helpers import LAYER, dialogue, pairs_file, slow_states, whole_backbone

from core.errors import DataError
from core.sae import activations
from core.sae.activations import Cursor, Stream
from core.sae.corpus import Dialogue, load_corpus
from core.sae.documents import documents, plan_batches

NONE = torch.empty(0, 64)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> list[Dialogue]:
    return list(load_corpus(pairs_file(), root=tmp_path_factory.mktemp("corpus")).dialogues)


def stream(dialogues: list[Dialogue], **changes: Any) -> Stream:
    settings: dict[str, Any] = {"layer": LAYER, "context": 64, "batch_size": 32, "ends_per_batch": 8, "seed": 0}
    return Stream(dialogues=dialogues, backbone=whole_backbone(), **{**settings, **changes})


def nearest(rows: torch.Tensor, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the nearest known state and its distance."""
    distances = np.linalg.norm(rows.double().numpy()[:, None] - known[None], axis=2)
    return distances.argmin(1), distances.min(1)


def test_batches_hold_content_and_a_share_of_response_ends(dialogues: list[Dialogue], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "ROUND_BATCHES", 4)
    few = dialogues[:40]
    data = stream(few)
    states, kinds, tokens = [], [], []
    for (document,) in documents(few, whole_backbone(), 64):
        states.append(slow_states(whole_backbone(), document))
        ends = np.isin(np.arange(len(document.ids)), document.ends)
        kinds.append(np.where(ends, "end", np.where(document.content, "content", "left out")))
        tokens.append(document.ids)
    known, kind = np.concatenate(states), np.concatenate(kinds)
    assert (kind == "left out").sum() > (kind == "content").sum() / 4
    current = data.round(Cursor(), NONE)
    assert data.n_batches(current) >= 4
    for number in range(data.n_batches(current)):
        batch = data.batch(current, number)
        assert batch.shape == (32, 64) and batch.dtype == torch.float32
        index, distance = nearest(batch, known)
        assert distance.max() < 1e-4
        assert set(kind[index[:24]]) <= {"content", "end"}
        assert set(kind[index[24:]]) == {"end"}


def test_a_round_uses_each_token_once_by_seed_and_corpus(dialogues: list[Dialogue], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "ROUND_BATCHES", 3)
    data = stream(dialogues)
    first = data.round(Cursor(), NONE)
    assert sorted(first.order) == list(range(len(first.content)))
    second = data.round(first.following, first.ring)
    again = stream(dialogues).round(first.following, first.ring)
    assert torch.equal(second.content, again.content) and torch.equal(data.batch(second, 1), stream(dialogues).batch(again, 1))
    assert not torch.equal(data.batch(first, 0)[:, 0], data.batch(first, 1)[:, 0])
    assert not torch.equal(stream(dialogues, seed=1).round(Cursor(), NONE).content[:50], first.content[:50])
    assert second.following.dialogue > first.following.dialogue > 3 and second.following.round == 2
    assert first.following.tokens == len(first.content) >= 3 * 24


def test_the_padded_size_of_batches_changes_nothing_but_rounding(dialogues: list[Dialogue]) -> None:
    from dataclasses import replace

    data = stream(dialogues, ends_per_batch=0)
    before = data.round(Cursor(), NONE)
    backbone = whole_backbone()
    old, backbone.config = backbone.config, replace(backbone.config, tokens_per_batch=128)
    try:
        after = data.round(Cursor(), NONE)
    finally:
        backbone.config = old
    assert torch.allclose(before.content, after.content, atol=1e-5) and (before.order == after.order).all()


def test_epochs_repeat_the_corpus_in_another_order(dialogues: list[Dialogue], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "ROUND_BATCHES", 6)
    few = dialogues[:6]
    content = sum(int(p.content.sum()) for parts in documents(few, whole_backbone(), 64) for p in parts)
    data = stream(few, ends_per_batch=0)
    cursor, ring = Cursor(), NONE
    for _ in range(3):
        current = data.round(cursor, ring)
        cursor, ring = current.following, current.ring
    assert cursor.tokens > 2 * content and cursor.distinct_tokens == content
    assert cursor.distinct_ends == 6 and cursor.ends == cursor.dialogue
    assert [d.messages for d in map(data.dialogue_at, range(6))] != [d.messages for d in map(data.dialogue_at, range(6, 12))]


def test_the_ring_is_bounded_and_holds_the_newest(dialogues: list[Dialogue], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "ROUND_BATCHES", 2)
    monkeypatch.setattr(activations, "RING", 5)
    data = stream(dialogues)
    first = data.round(Cursor(), NONE)
    second = data.round(first.following, first.ring)
    new = second.following.ends - first.following.ends
    assert first.following.ends < 5 <= second.following.ends and len(second.ring) == 5
    assert torch.equal(second.ring[: 5 - new], first.ring[-(5 - new) :])


def test_a_dialogue_gives_few_ends_of_answers_or_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long chat counts little more than a single answer, all of its ends are drawn in turn, and no other position
    is."""
    monkeypatch.setattr(activations, "ROUND_BATCHES", 30)
    monkeypatch.setattr(activations, "PER_DIALOGUE", 2)
    long = dialogue("a. b", "One two. Three? Four 3.5 five", "c", "six", "d! e", "Seven. Eight!", group="long")
    few = [long, dialogue("hi", "nine ten")]
    (read,), (short,) = documents(few, whole_backbone(), 256)
    text = whole_backbone().tokenizer.decode(read.ids)
    before = [whole_backbone().tokenizer.decode(read.ids[: i + 1])[-6:] for i in read.sentences]
    assert before == ["ne two."[-6:], " Three?"[-6:], "Seven."[-6:]], text
    known = np.concatenate(
        [slow_states(whole_backbone(), read)[sorted({*read.ends, *read.sentences})], slow_states(whole_backbone(), short)[list(short.ends)]]
    )
    assert len(known) == 7
    data = stream(few, context=256)
    current = data.round(Cursor(), NONE)
    index, distance = nearest(current.ring, known)
    drawn = np.bincount(index, minlength=7)
    n = current.following.dialogue
    assert distance.max() < 1e-4 and len(index) == current.following.ends
    assert abs(drawn[:6].sum() - 2 * drawn[6]) <= 2 and abs(drawn[6] - n / 2) <= 1 and drawn.min() > 0
    assert data.round(Cursor(), NONE).ring.equal(current.ring)


def test_response_ends_are_drawn_twice_only_if_too_few(dialogues: list[Dialogue]) -> None:
    data = stream(dialogues)
    assert len(set(data.draw_ends(12, 1, 0))) == 8 and sorted(data.draw_ends(12, 1, 0)) != sorted(data.draw_ends(12, 1, 1))
    assert len(data.draw_ends(3, 1, 0)) == 8 and set(data.draw_ends(3, 1, 0)) <= {0, 1, 2}


def test_a_corpus_without_needed_answers_is_refused() -> None:
    no_answers = [dialogue("only a question", "word " * 100) for _ in range(3)]  # the answer's end lies beyond the context
    with pytest.raises(DataError, match="no answer by an assistant") as caught:
        stream(no_answers, context=32).round(Cursor(), NONE)
    assert "--response-end-share 0" in str(caught.value)
    assert len(stream(no_answers, context=32, ends_per_batch=0).round(Cursor(), NONE).ring) == 0


def test_a_corpus_without_text_is_refused() -> None:
    with pytest.raises(DataError, match="no text an SAE could be trained on"):
        stream([dialogue("q", "a")], context=4).round(Cursor(), NONE)


def test_batches_are_planned_by_length_within_the_budget() -> None:
    lengths = [5, 40, 7, 6, 40, 100, 3]
    batches = plan_batches(lengths, 80)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 80 for batch in batches if batch != [5])
    assert [5] in batches and [1, 4] in batches
    assert plan_batches(lengths, 80) == batches  # a function of lengths and budget alone

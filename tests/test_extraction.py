"""Extraction: packed trees against plain forwards, each token once, resume byte for byte, memory errors, over-long rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_helpers import save_model, tiny_backbone

from core.backbone.model import Backbone, load_backbone
from core.config import BackboneConfig
from core.errors import BackboneError, Cancelled, DataError, StoreError
from core.reward import extraction
from core.reward.dialogues import Item
from core.reward.extraction import extract, read_items, response_states
from core.reward.forward import shares
from core.reward.hidden_states import load_hidden_states
from core.reward.packing import ROW_TOKENS, Sequences, plan_batches, row_size
from core.types import Message, PreferencePair, PreferencePairs


def user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def make_pairs(n: int = 40, seed: int = 0) -> PreferencePairs:
    """Pairs of very different lengths; three of four prompts have two pairs, and one response serves two pairs."""
    rng = np.random.default_rng(seed)
    words = ["egg", "sock", "pear", "tune", "boat", "knife", "wall", "swim", "bread", "tyre", "🤷🏽", "Ask", "friend", "yes", "no"]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(words, size=int(rng.integers(low, high))))

    pairs = []
    for i in range(n):
        prompt = user(text(3, 12) if i % 9 else text(120, 260)) if i % 4 != 1 or not pairs else pairs[-1].prompt
        chosen = pairs[-1].chosen if i % 8 == 1 and pairs else text(1, 30) + " a"
        pairs.append(PreferencePair(pair_id=str(i), prompt=prompt, chosen=chosen, rejected=text(1, 30) + " b"))
    return PreferencePairs(pairs=tuple(pairs))


def plain_state(backbone: Backbone, item: Item, layer: int, position: str) -> np.ndarray:
    """One dialogue, one unpadded row, the loop that anyone would write."""
    rendered = backbone.render([*item[0], {"role": "assistant", "content": item[1]}])
    ids = torch.from_numpy(rendered.ids.astype(np.int64))[None]
    at = rendered.response_ends[-1] if position == "response_end" else rendered.turn_ends[-1]
    states: np.ndarray = backbone.states(ids, torch.ones_like(ids), [layer])[layer][0, at].float().numpy()
    return states


def run(
    pairs: PreferencePairs,
    backbone: Backbone,
    folder: Path,
    *,
    layers: tuple[int, ...] = (1,),
    positions: tuple[str, ...] = ("response_end",),
    **more: Any,
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return extract(pairs, backbone, layers=layers, positions=positions, folder=folder, scratch=folder / "scratch", **more)


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.glob("*.safetensors"))}


def test_all_layers_and_positions_equal_plain_forwards(tmp_path: Path) -> None:
    backbone, pairs = tiny_backbone(), make_pairs()
    report = run(pairs, backbone, tmp_path, layers=(0, 1), positions=("response_end", "turn_end"))
    assert report["n_pairs"] == len(pairs)
    for layer in (0, 1):
        for position in ("response_end", "turn_end"):
            hidden = load_hidden_states(tmp_path, layer, position)
            chosen, rejected = hidden.chosen, hidden.rejected
            for i, pair in enumerate(pairs):
                for states, response in ((chosen, pair.chosen), (rejected, pair.rejected)):
                    np.testing.assert_allclose(states[i], plain_state(backbone, (pair.prompt, response), layer, position), atol=2e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen2", "neox"])
def test_other_families(kind: str, tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(model=str(save_model(tmp_path / kind, kind)), layer=1, dtype="float32", device="cpu"), depth=2)
    pairs = [pair for pair in make_pairs(16, seed=2) if len(pair.prompt[0]["content"]) < 100]
    items: list[Item] = [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)]
    read = read_items(backbone, items, ["response_end"])
    assert shares(backbone, read.sequences) == (kind != "gemma2"), "a window of 64 is shorter than these dialogues: no masks of ours"
    states = response_states(backbone, items, layer=1, position="response_end")
    for item, state in zip(items, states, strict=True):
        np.testing.assert_allclose(state, plain_state(backbone, item, 1, "response_end"), atol=1e-4)


def test_short_dialogues_of_a_window_model_are_packed(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "gemma2", "gemma2")
    backbone = load_backbone(BackboneConfig(model=str(folder), layer=1, dtype="float32", device="cpu"), depth=2)
    backbone.model.config.sliding_window = 4096
    items: list[Item] = [(user("a pear"), text) for text in ("yes", "no friend", "ask a friend")]
    assert shares(backbone, read_items(backbone, items, ["response_end"]).sequences)
    states = response_states(backbone, items, layer=1, position="response_end")
    for item, state in zip(items, states, strict=True):
        np.testing.assert_allclose(state, plain_state(backbone, item, 1, "response_end"), atol=1e-4)


def test_a_model_that_ignores_our_mask_is_run_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    real = backbone.states

    def deaf(ids: Any, mask: Any, layers: Any, **more: Any) -> Any:
        return real(ids, None if mask.ndim == 4 else mask, layers, **more)

    monkeypatch.setattr(backbone, "states", deaf)
    items: list[Item] = [(user("a pear"), text) for text in ("yes", "no friend", "ask a friend")]
    assert not shares(backbone, read_items(backbone, items, ["response_end"]).sequences)
    states = response_states(backbone, items, layer=1, position="response_end")
    for item, state in zip(items, states, strict=True):
        np.testing.assert_allclose(state, plain_state(backbone, item, 1, "response_end"), atol=2e-5)


def test_each_shared_token_is_computed_once() -> None:
    """Against a brute-force count: distinct token paths of the dialogues, merged where they share the prompt's run or the common prefix."""
    backbone = tiny_backbone()
    prompt = user("How do I boil an egg?")
    items: list[Item] = [(prompt, "Ask a friend"), (prompt, "Read it twice"), (user("Is it hard to draw a horse?"), "yes")]
    read = read_items(backbone, items, ["response_end"])
    plan = plan_batches(read.sequences, tokens_per_batch=4096)
    prefixes = {tuple(read.sequences.ids(i)[:end].tolist()) for i in range(3) for end in range(1, read.sequences.length(i) + 1)}
    assert plan.n_tokens == len(prefixes)
    assert plan.prefix > 10, "the system message is common to all"


def test_plan_places_every_sequence_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 400, size=300)
    flat = rng.integers(0, 5, size=int(lengths.sum())).astype(np.int32)
    sequences = Sequences(
        flat=flat, starts=np.concatenate([[0], np.cumsum(lengths)]), prompts=rng.integers(0, 90, size=300), reads=(lengths - 1)[:, None]
    )
    plan = plan_batches(sequences, tokens_per_batch=1024)
    members = [m for batch in plan.batches for row in batch for tree in row for m in tree.members]
    assert sorted(members) == list(range(300))
    for batch in plan.batches:
        sizes = [row_size(row) for row in batch]
        assert len(batch) == 1 or max(sizes) * len(batch) <= 1024
        assert all(len(row) == 1 or row_size(row) <= ROW_TOKENS for row in batch)


def test_no_item_gives_no_state() -> None:
    for position in ("response_end", "response_mean"):
        assert response_states(tiny_backbone(), [], layer=1, position=position).shape == (0, tiny_backbone().d_model)


def test_a_response_does_not_feel_its_neighbours() -> None:
    backbone, pairs = tiny_backbone(), make_pairs(30, seed=5)
    items: list[Item] = [(pair.prompt, pair.chosen) for pair in pairs]
    together = response_states(backbone, items, layer=1, position="response_end")
    order = np.random.default_rng(1).permutation(len(items))
    shuffled = response_states(backbone, [items[i] for i in order], layer=1, position="response_end")
    alone = np.concatenate([response_states(backbone, [item], layer=1, position="response_end") for item in items])
    np.testing.assert_allclose(shuffled, together[order], atol=2e-5)
    np.testing.assert_allclose(alone, together, atol=2e-5)


def test_bfloat16_moves_states_little_whatever_the_batch() -> None:
    backbone, reference = tiny_backbone(dtype="bfloat16"), tiny_backbone()
    items: list[Item] = [(pair.prompt, pair.rejected) for pair in make_pairs(30, seed=6)]
    together = response_states(backbone, items, layer=1, position="response_end")
    alone = np.concatenate([response_states(backbone, [item], layer=1, position="response_end") for item in items])
    scale = response_states(reference, items, layer=1, position="response_end").std()
    assert 0 < np.sqrt(np.mean((together - alone) ** 2)) < 0.02 * scale


def test_equal_responses_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = extraction.plan_batches

    def spy(sequences: Sequences, **more: Any) -> Any:
        seen.append(len(sequences))
        return real(sequences, **more)

    monkeypatch.setattr(extraction, "plan_batches", spy)
    backbone = tiny_backbone()
    items: list[Item] = [(user("a"), "yes"), (user("b"), "yes"), (user("a"), "yes")]
    states = response_states(backbone, items, layer=1, position="response_end")
    assert seen == [2]
    np.testing.assert_array_equal(states[0], states[2])
    assert not np.allclose(states[0], states[1])


class Stop:
    """A progress callable that cancels at its n-th call."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, step: str, done: float, total: float, **figures: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Cancelled(step)


def test_resume_gives_the_same_bytes_and_loses_one_shard_at_most(tmp_path: Path) -> None:
    backbone, pairs = tiny_backbone(tokens_per_batch=128), make_pairs(100)
    run(pairs, backbone, tmp_path / "whole")
    shards = len(list((tmp_path / "whole" / "scratch").glob("shard-*")))
    assert shards >= 5
    ran: list[int] = []
    real = backbone.states

    def count(ids: Any, *args: Any, **more: Any) -> Any:
        ran.append(1)
        return real(ids, *args, **more)

    backbone.states = count  # type: ignore[method-assign]
    run(pairs, backbone, tmp_path / "counted")
    undisturbed = len(ran)
    ran.clear()
    target, stops = tmp_path / "stopped", 0
    for at in (3, 9, 12, 15, 18):
        try:
            run(pairs, backbone, target, progress=Stop(at))
        except Cancelled:
            stops += 1
    assert stops >= 3
    run(pairs, backbone, target)
    assert digests(target) == digests(tmp_path / "whole")
    per_stop = 8 + 2  # one shard of batches, and the common prefix and the probe once more
    assert len(ran) <= undisturbed + stops * per_stop


def test_shards_of_other_data_are_not_reused(tmp_path: Path) -> None:
    backbone = tiny_backbone(tokens_per_batch=128)
    run(make_pairs(30, seed=1), backbone, tmp_path / "a")
    run(make_pairs(30, seed=2), backbone, tmp_path / "reference")
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "scratch").rename(tmp_path / "b" / "scratch")
    run(make_pairs(30, seed=2), backbone, tmp_path / "b")
    assert digests(tmp_path / "b") == digests(tmp_path / "reference")


def limited(backbone: Backbone, rows: int) -> Callable[..., Any]:
    real = backbone.states

    def states(ids: Any, *args: Any, **more: Any) -> Any:
        if len(ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return real(ids, *args, **more)

    return states


def test_out_of_memory_halves_the_batch(tmp_path: Path) -> None:
    backbone, pairs = tiny_backbone(), make_pairs(30)
    run(pairs, backbone, tmp_path / "free")
    backbone.states = limited(backbone, 1)  # type: ignore[method-assign]
    run(pairs, backbone, tmp_path / "tight")
    free, tight = (load_hidden_states(tmp_path / name, 1, "response_end") for name in ("free", "tight"))
    np.testing.assert_allclose(tight.states, free.states, atol=2e-5)
    backbone.states = limited(backbone, 0)  # type: ignore[method-assign]
    with pytest.raises(BackboneError, match=r"one row of \d+ tokens does not fit(.|\n)*--max-length"):
        run(pairs, backbone, tmp_path / "none")


def test_over_long_prompts_lose_turns_or_are_refused(tmp_path: Path) -> None:
    turns: list[Message] = [{"role": "system", "content": "Be kind."}]
    for i in range(6):
        turns += [{"role": "user", "content": f"question {i} " + "egg " * 10}, {"role": "assistant", "content": "pear " * 10}]
    turns.append({"role": "user", "content": "last question"})
    pairs = PreferencePairs(
        pairs=(
            PreferencePair(pair_id="long", prompt=tuple(turns), chosen="yes", rejected="no"),
            PreferencePair(pair_id="hopeless", prompt=user("egg"), chosen="pear " * 200, rejected="no"),
            PreferencePair(pair_id="short", prompt=user("egg"), chosen="yes", rejected="no"),
        )
    )
    backbone = tiny_backbone(max_length=80)
    report = run(pairs, backbone, tmp_path / "drop")
    assert (report["n_pairs"], report["dialogues_shortened"]) == (2, 2)
    assert [(r["row"], r["field"]) for r in report["refused"]] == [(1, "chosen")] and "at most 80" in report["refused"][0]["reason"]
    hidden = load_hidden_states(tmp_path / "drop", 1, "response_end")
    assert hidden.pair_rows.tolist() == [0, 2]
    kept = next(
        tail for i in range(1, 14, 2) if len(backbone.render([*(tail := [turns[0], *turns[i:]]), {"role": "assistant", "content": "yes"}]).ids) <= 80
    )
    np.testing.assert_allclose(hidden.chosen[0], plain_state(backbone, (kept, "yes"), 1, "response_end"), atol=2e-5)
    report = run(pairs, tiny_backbone(max_length=80, over_length="refuse"), tmp_path / "refuse")
    assert (report["n_pairs"], report["dialogues_shortened"]) == (1, 0)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    pairs = PreferencePairs(pairs=(PreferencePair(pair_id="a", prompt=user("egg"), chosen="pear " * 50, rejected="no"),))
    with pytest.raises(DataError, match=r"no pair can be read(.|\n)*--max-length"):
        run(pairs, tiny_backbone(max_length=40), tmp_path)
    with pytest.raises(DataError, match="response 1 can't be read"):
        response_states(tiny_backbone(), [(user("a"), "yes"), (user("a"), "  ")], layer=1, position="response_end")


def test_missing_and_cut_files_are_store_errors(tmp_path: Path) -> None:
    run(make_pairs(4), tiny_backbone(), tmp_path)
    with pytest.raises(StoreError, match="no states of layer 0"):
        load_hidden_states(tmp_path, 0, "response_end")
    file = tmp_path / "L01-response_end.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(StoreError, match="cut off"):
        load_hidden_states(tmp_path, 1, "response_end")


def test_saved_states_are_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    run(make_pairs(6), tiny_backbone(), tmp_path)
    np.testing.assert_array_equal(
        load_file(tmp_path / "L01-response_end.safetensors")["states"], load_hidden_states(tmp_path, 1, "response_end").states
    )

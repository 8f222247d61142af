"""`response_mean`: means, activity, peaks and single tokens against a plain loop; resume; a prompt whose answers share their beginning."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbone_helpers import tiny_backbone
from test_extraction import digests, make_pairs, user

from core.backbone.model import Backbone
from core.backbone.presets import preset
from core.config import SAEConfig
from core.errors import Cancelled, ConfigError
from core.reward import shards
from core.reward.dialogues import Item
from core.reward.extraction import extract, response_activity, response_states
from core.reward.hidden_states import HiddenStates, load_hidden_states
from core.sae.autoencoder import SparseAutoencoder, load_sae
from core.types import PreferencePair, PreferencePairs

LAYER = 1


def tiny_sae() -> SparseAutoencoder:
    return load_sae(SAEConfig(path=preset("tiny").sae.path))


def plain_tokens(backbone: Backbone, item: Item) -> tuple[np.ndarray, list[str]]:
    """States and characters of the response's own tokens: one dialogue, one unpadded row."""
    rendered = backbone.render([*item[0], {"role": "assistant", "content": item[1]}])
    ids = torch.from_numpy(rendered.ids.astype(np.int64))[None]
    own = slice(rendered.response_starts[-1], rendered.response_ends[-1] + 1)
    states: np.ndarray = backbone.states(ids, torch.ones_like(ids), [LAYER])[LAYER][0, own].float().numpy()
    edges = [*rendered.starts[own].tolist(), rendered.response_spans[-1][1]]
    return states, [rendered.text[a:b] for a, b in pairwise(edges)]


def read(pairs: PreferencePairs, backbone: Backbone, folder: Path, **more: Any) -> HiddenStates:
    folder.mkdir(parents=True, exist_ok=True)
    rules = {"layers": [LAYER], "positions": ["response_mean", "response_end"], "saes": {LAYER: tiny_sae()}, **more}
    extract(pairs, backbone, folder=folder, scratch=folder / "scratch", **rules)
    return load_hidden_states(folder, LAYER, "response_mean")


def test_means_activity_and_tokens_equal_a_plain_loop(tmp_path: Path) -> None:
    backbone, pairs, sae = tiny_backbone(), make_pairs(), tiny_sae()
    hidden = read(pairs, backbone, tmp_path)
    assert hidden.activity is not None and hidden.tokens is not None
    dense = hidden.activity.columns(np.arange(sae.d_sae), len(hidden.states))
    for i, pair in enumerate(pairs):
        for row, text in ((hidden.chosen_rows[i], pair.chosen), (hidden.rejected_rows[i], pair.rejected)):
            states, pieces = plain_tokens(backbone, (pair.prompt, text))
            f = sae.encode(torch.from_numpy(states)).numpy()
            np.testing.assert_allclose(hidden.states[row], states.mean(axis=0), atol=2e-5)
            np.testing.assert_allclose(dense[row], f.mean(axis=0), atol=2e-4)
            for latent in np.flatnonzero(f.max(axis=0) > 1e-3)[:20].tolist():
                rows, mean, peak, token = hidden.activity.entries(latent)
                (at,) = np.flatnonzero(rows == row)
                assert peak[at] == pytest.approx(f[:, latent].max(), abs=2e-4)
                assert f[token[at], latent] == pytest.approx(f[:, latent].max(), abs=2e-4)
                assert mean[at] == pytest.approx(f[:, latent].mean(), abs=2e-4)
            part = hidden.tokens.tokens(int(hidden.tokens.places(np.array([row]))[0]))
            np.testing.assert_allclose(hidden.tokens.states[part], states, atol=2e-5)
            assert [text[a:b] for a, b in hidden.tokens.offsets[part].tolist()] == pieces, "every token has its characters"
    ends = load_hidden_states(tmp_path, LAYER, "response_end")
    np.testing.assert_allclose(ends.states[hidden.chosen_rows[0]], plain_tokens(backbone, (pairs[0].prompt, pairs[0].chosen))[0][-1], atol=2e-5)


def test_answers_that_begin_alike_keep_their_own_means() -> None:
    """Of one prompt alone, prompt and common beginning are the longest common prefix: its states must not be lost."""
    backbone, prompt = tiny_backbone(), user("How do I boil an egg?")
    items: list[Item] = [(prompt, "Ask a friend to swim"), (prompt, "Ask a friend"), (prompt, "Ask a friend to swim and read bread")]
    for asked in (items, items[:1], [items[1], items[1]]):
        states = response_states(backbone, asked, layer=LAYER, position="response_mean")
        for item, state in zip(asked, states, strict=True):
            np.testing.assert_allclose(state, plain_tokens(backbone, item)[0].mean(axis=0), atol=2e-5)


def test_latents_asked_for_by_number_are_the_means_of_all(tmp_path: Path) -> None:
    backbone, pairs, sae = tiny_backbone(), make_pairs(12, seed=3), tiny_sae()
    hidden, latents = read(pairs, backbone, tmp_path), np.array([5, 0, 31])
    assert hidden.activity is not None
    items: list[Item] = [(pair.prompt, pair.chosen) for pair in pairs]
    few = response_activity(backbone, items, layer=LAYER, sae=sae, latent_ids=latents)
    np.testing.assert_allclose(few, hidden.activity.columns(latents, len(hidden.states))[hidden.chosen_rows], atol=2e-4)


def test_a_killed_extraction_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, backbone = make_pairs(60), tiny_backbone(tokens_per_batch=128)
    read(pairs, backbone, tmp_path / "whole")
    calls = 0

    def stop_later(step: str, done: float, total: float, **_: Any) -> None:
        nonlocal calls
        calls += step == "extraction"
        if calls == 12:
            raise Cancelled

    with pytest.raises(Cancelled):
        read(pairs, backbone, tmp_path / "killed", progress=stop_later)
    assert list((tmp_path / "killed" / "scratch").glob("shard-*")), "some shards were whole"
    read(pairs, backbone, tmp_path / "killed")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_tokens_up_to_a_size_and_activity_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, backbone = make_pairs(60), tiny_backbone(tokens_per_batch=128)
    every = read(pairs, backbone, tmp_path / "all")
    monkeypatch.setattr(shards, "TOKEN_BYTES", 4 * backbone.d_model * 100)
    monkeypatch.setattr(shards, "SORT_ENTRIES", 64)
    some = read(pairs, backbone, tmp_path / "some")
    assert some.tokens is not None and every.tokens is not None and some.activity is not None and every.activity is not None
    assert 0 < len(some.tokens.states) <= 100 < len(every.tokens.states)
    for name in ("latent_starts", "rows", "mean", "peak", "peak_token"):
        np.testing.assert_array_equal(getattr(some.activity, name), getattr(every.activity, name))
    rows = some.tokens.rows
    assert set(some.tokens.places(rows).tolist()) == set(range(len(rows)))
    missing = np.setdiff1d(np.arange(len(some.states)), rows)
    assert (some.tokens.places(missing) == -1).all()


def test_the_whole_response_needs_an_sae(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SAE"):
        read(make_pairs(4), tiny_backbone(), tmp_path, saes={})


def test_two_layers_at_once_are_what_each_is_alone(tmp_path: Path) -> None:
    pairs, backbone, sae = make_pairs(16), tiny_backbone(), tiny_sae()
    read(pairs, backbone, tmp_path / "both", layers=[0, 1], saes={0: sae, 1: sae})
    alone = read(pairs, backbone, tmp_path / "alone")
    both = load_hidden_states(tmp_path / "both", LAYER, "response_mean")
    np.testing.assert_array_equal(both.states, alone.states)
    assert both.activity is not None and alone.activity is not None
    np.testing.assert_array_equal(both.activity.mean, alone.activity.mean)


def test_a_pair_of_one_word_answers(tmp_path: Path) -> None:
    pair = PreferencePair(pair_id="0", prompt=user("Is it?"), chosen="yes", rejected="no")
    hidden = read(PreferencePairs(pairs=(pair,)), tiny_backbone(), tmp_path)
    np.testing.assert_allclose(hidden.chosen[0], plain_tokens(tiny_backbone(), (pair.prompt, "yes"))[0].mean(axis=0), atol=2e-5)

"""Edits and switches: what changed, by latent; a chain that keeps its parents; latents off, and what is left."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from explain_helpers import hand_made, question, real_head, tiny_explainer
from scipy.stats import spearmanr

from core.errors import ConfigError
from core.explain.explainer import Explainer
from core.explain.features import item_of
from core.explain.readings import read_tokens
from core.explain.response_reader import READINGS
from core.explain.switch import Switchboard
from core.reward.evaluation import accuracy_of

EGG, ANSWER = "How do I boil an egg?", "Take your time. Ask someone who has done it before, thanks"


def fresh() -> Explainer:
    return Explainer(tiny_explainer().model)


def test_an_edit_says_what_changed_by_latent() -> None:
    explainer = fresh()
    root = explainer.edit(EGG, ANSWER)
    child = explainer.edit(EGG, ANSWER.replace("thanks", "fool"), root)
    assert root.change is None and root.parent_id is None and child.parent is root and child.parent_id == root.edit_id
    change = child.change
    assert change is not None
    rewards = explainer.model.score([EGG, EGG], [ANSWER, ANSWER.replace("thanks", "fool")])
    assert change.contribution.sum() == pytest.approx(rewards[1] - rewards[0], abs=2e-4) and abs(change.residual) < 1e-9
    np.testing.assert_array_equal(change.projection, child.explanation.attribution.projection)
    np.testing.assert_array_equal(change.baseline, root.explanation.attribution.projection)
    # Along the straight path a latent gets credit only for its own move.
    still = np.isclose(change.projection, change.baseline, atol=1e-12)
    assert (change.contribution[still] == 0).all()


def test_only_what_follows_the_first_changed_token_is_computed() -> None:
    explainer = fresh()
    root = explainer.edit(EGG, ANSWER)
    assert root.n_computed == root.n_tokens
    end = explainer.edit(EGG, ANSWER.replace("thanks", "fool"), root)
    assert end.n_computed < 5
    middle = explainer.edit(EGG, ANSWER.replace("someone", "anyone").replace("thanks", "fool"), end)
    assert 5 < middle.n_computed < middle.n_tokens / 2
    prompt = explainer.edit("How do I boil an onion?", ANSWER, root)
    assert middle.n_computed < prompt.n_computed < prompt.n_tokens
    for edit in (end, middle, prompt):
        item = item_of(list(edit.explanation.prompt), edit.explanation.response)
        full = read_tokens(explainer.backbone, item, layer=1, position="response_end")
        assert edit.explanation.reward == pytest.approx(explainer.model.rewards_of(full.z[None])[0], abs=1e-4)


def test_a_chain_keeps_its_parents() -> None:
    explainer = fresh()
    chain = [explainer.edit(EGG, "One, please")]
    for number in range(READINGS + 3):  # longer than readings are kept
        chain.append(explainer.edit(EGG, f"One, please, and {number} more", chain[-1]))
    assert chain[-1].chain == tuple(chain)
    said = json.loads(json.dumps(chain[-1].to_json(), allow_nan=False))
    assert said["chain"] == [edit.edit_id for edit in chain] and said["parent_id"] == chain[-2].edit_id
    assert len({edit.edit_id for edit in chain}) == len(chain)
    back = explainer.edit(EGG, "One, please", chain[1])
    assert back.edit_id != chain[0].edit_id and back.explanation.reward == pytest.approx(chain[0].explanation.reward, abs=1e-4)
    sibling = explainer.edit(EGG, "One, please, and 0 more", chain[0])
    assert sibling.edit_id == chain[1].edit_id and len(explainer.readings) == READINGS


def test_an_edit_of_a_thousand_steps_has_a_name() -> None:
    explainer = fresh()
    edit = root = explainer.edit(EGG, "One")
    for _ in range(3000):
        edit = replace(root, parent=edit)
    assert len(edit.chain) == 3001 and len(edit.edit_id) == 16


# --- switches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [(), (11,), (10, 14), (10, 11, 12, 13, 14), (12, 12)])
def test_switched_off_against_the_head_itself(off: tuple[int, ...]) -> None:
    parts, known = hand_made(n_prompts=24)
    this = np.random.default_rng(2).normal(size=5)
    found = Switchboard(parts, known).off(off, this)
    columns = [latent - 10 for latent in set(off)]
    v = known.projections.astype(np.float64)
    v[:, columns] = parts.projection_mean[columns]
    rewards, pairs = parts.head.reward(v), known.held_out_pairs
    margins = rewards[known.chosen_rows[pairs]] - rewards[known.rejected_rows[pairs]]
    if len(set(off)) < 5:
        expected = accuracy_of(margins[None], known.groups[known.chosen_rows[pairs]])
        assert (found.accuracy.accuracy, found.accuracy.n) == (expected.accuracy, len(pairs))
        assert found.accuracy.low == pytest.approx(expected.low) and found.accuracy.high == pytest.approx(expected.high)
        assert found.length.value == pytest.approx(spearmanr(rewards[known.held_out], known.n_tokens[known.held_out]).statistic)
    this[columns] = parts.projection_mean[columns]
    assert found.reward == pytest.approx(parts.head.reward(this[None])[0])
    assert found.latent_ids == off and json.loads(json.dumps(found.to_json()))["n"] == len(pairs)


def test_with_all_latents_off_nothing_is_left() -> None:
    parts, known = hand_made(n_prompts=24)
    found = Switchboard(parts, known).off(range(10, 15))
    assert found.accuracy.accuracy == 0.0, "ties are wrong"
    assert found.length.value == 0.0 and found.reward is None


def test_unknown_latents_and_models_without_known_pairs() -> None:
    parts, known = hand_made()
    with pytest.raises(ConfigError, match="no such latent\n  expected: some of 5 selected latents\n  found: 3, 99"):
        Switchboard(parts, known).off([99, 10, 3])
    for nothing in (None, replace(known, split=np.full_like(known.split, 3))):
        with pytest.raises(ConfigError, match="no held-out pairs are kept"):
            Switchboard(parts, nothing)


def test_switching_is_a_matter_of_milliseconds() -> None:
    """2,400 held-out responses and 64 latents, as TruthfulQA has. The bound is loose: what is forbidden is to do the whole head again and again."""
    rng = np.random.default_rng(0)
    parts, known = hand_made(n_prompts=1200)
    k, n = 64, len(known)
    ones = np.ones(k, dtype=np.float32)
    head = real_head(rng, k=k)
    wide = replace(
        parts, head=head, heads=(head,), seeds=(0,), latent_ids=np.arange(k), projection_mean=ones, projection_std=ones, directions=np.eye(k)
    )
    v = rng.normal(size=(n, k)).astype(np.float32)
    board = Switchboard(wide, replace(known, projections=v, activations=v))
    board.off([1])
    took = []
    for latent in range(5):
        started = time.perf_counter()
        board.off([latent, latent + 7])
        took.append(time.perf_counter() - started)
    assert min(took) < 0.1


def test_a_pair_kept_beside_the_model_needs_no_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = fresh()
    assert explainer.known is not None and explainer.known.pairs is not None
    number = int(explainer.known.held_out_pairs[0])
    pair = explainer.known.pairs[number]
    live = explainer.explain_pair(pair)
    monkeypatch.setattr("core.explain.response_reader.read_tokens", lambda *_, **__: pytest.fail("the language model ran"))
    found = fresh().explain_known(number)
    np.testing.assert_allclose(found.margin.contribution, live.margin.contribution, atol=1e-3)
    np.testing.assert_allclose(found.removed, live.removed, atol=1e-3)
    assert (
        found.chosen.prompt == pair.prompt
        and found.rejected.response == pair.rejected
        and found.why.named[0] == replace(live.why.named[0], value=found.why.named[0].value)
    )
    with pytest.raises(ConfigError, match="no such known pair"):
        fresh().explain_known(10_000)
    assert question("a")[0]["role"] == "user"

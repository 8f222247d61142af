"""The doctor: for each check a case that makes it fail and one that passes, its bounds by hand, and the whole of it on a tiny fit."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from explain_helpers import hand_made, tiny_explainer
from left_out_helpers import counts_of, lost_by_side
from reward_helpers import FakeSAE, make_hidden, make_pairs, split_names
from scipy import stats

from core.backbone.model import Backbone
from core.config import DoctorConfig, HeadConfig, SelectionConfig
from core.doctor.checks_data import duplicate_pairs, split_leakage
from core.doctor.checks_left_out import left_out_differ, pairs_left_out
from core.doctor.checks_reading import ALONE, bos_count, find_placement, invariance, layer_and_position, readings_of, template_check, ways_of_batching
from core.doctor.checks_reward import attribution_residual, faithful_explanations, length_shortcut, prompt_variance, top_k_stability, wording_shortcut
from core.doctor.checks_sae import SAEFigures, dead_latents, fvu_on_our_tokens, l0_on_our_tokens, measure_sae
from core.doctor.doctor import Doctor, doctor_report
from core.doctor.null_test import NullTest, label_swap_null, null_check, swapped
from core.doctor.report import Check, Report, find_report, load_report, save_report
from core.errors import ConfigError, MissingError, StoreError
from core.explain.cues import Correlation, LengthCue
from core.explain.faithfulness import faithfulness
from core.explain.spaces import NAME, load_spaces
from core.explain.stability import Stability, prompt_share
from core.reward.evaluation import ScoredMethod, evaluate
from core.reward.fit_responses import FitResponses
from core.reward.folder import ModelFolder
from core.reward.head import Head
from core.reward.model import SparseRM
from core.reward.parts import RewardParts
from core.runs.store import Store, cache_root
from core.sae.autoencoder import SparseAutoencoder
from core.types import PreferencePair, PreferencePairs

CONFIG = DoctorConfig(swaps=3, responses=16, dialogues=20)
TODAY = datetime.date(2031, 4, 17)


@cache
def fitted() -> ModelFolder:
    folder = tiny_explainer().model.folder
    assert folder is not None
    return ModelFolder(folder, Store(cache_root() / "explain"))


@cache
def doctor() -> Doctor:
    model = tiny_explainer().model
    assert model.known is not None
    return Doctor(model=model, z=fitted().states(), table=fitted().evaluation, config=CONFIG)


# --- reading -------------------------------------------------------------------------------------------------------


@cache
def placed() -> Any:
    """The tiny backbone's readings of a few responses: placement and states by layer and position."""
    rows, items = doctor().sample
    kept = np.asarray(doctor().z[rows], dtype=np.float32)
    placement, states = find_placement(doctor().backbone, items, readings_of(doctor().backbone, items), kept)
    return placement, states, items


def place_check(kept: Any = None, sae: Any = None, position: str = "response_end") -> Check:
    placement, states, items = placed()
    if kept is not None:
        placement = find_placement(doctor().backbone, items, readings_of(doctor().backbone, items), states[kept])[0]
    return layer_and_position(placement, sae or {"layer": 1, "trained_positions": ["response_end"]}, layer=1, position=position, exact=True)


def test_the_kept_states_are_found_at_their_layer_and_position() -> None:
    assert place_check().status == "pass"
    for wrong, said in (((0, "response_end"), "layer 0 at response_end"), ((1, "turn_end"), "layer 1 at turn_end")):
        found = place_check(kept=wrong)
        assert found.status == "fail" and f"the kept states are of {said}" in found.figure and found.remedy
    other = place_check(sae={"layer": 3, "trained_positions": []})
    assert other.status == "fail" and "the SAE is of layer 3" in other.figure


def test_what_the_sae_leaves_open_warns() -> None:
    assert place_check(sae={"layer": None}).status == "warn"
    assert place_check(kept=(1, "turn_end"), position="turn_end").status == "warn"
    assert place_check(kept=(1, "turn_end"), position="turn_end", sae={"layer": 1, "trained_positions": ["turn_end"]}).status == "pass"


def test_states_of_no_place_and_other_response_ends_fail() -> None:
    placement, states, items = placed()
    noisy = states[1, "response_end"] + np.random.default_rng(0).normal(size=states[1, "response_end"].shape).astype(np.float32) * 0.05
    tokens = readings_of(doctor().backbone, items)
    found = layer_and_position(find_placement(doctor().backbone, items, tokens, noisy)[0], {"layer": 1}, layer=1, position="response_end", exact=True)
    assert found.status == "fail" and "not of this place" in found.figure
    cut = [replace(one, tail=one.tail[:-2]) for one in tokens]
    found = layer_and_position(
        find_placement(doctor().backbone, items, cut, states[1, "response_end"])[0], {"layer": 1}, layer=1, position="response_end", exact=True
    )
    assert found.status == "fail" and f"{len(items)} of {len(items)} responses don't end on the token read" in found.figure
    assert placement.n_cut == 0


def test_placement_is_the_models_own_hidden_states() -> None:
    """Against transformers' `output_hidden_states` of the whole model: entry L + 1, at the last token of the answer."""
    from transformers import AutoModelForCausalLM

    _, states, items = placed()
    backbone = doctor().backbone
    whole = AutoModelForCausalLM.from_pretrained(doctor().parts.backbone_config.model, dtype=torch.float32).eval()
    for number in (0, 5):
        prompt, answer = items[number]
        text = backbone.tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        ids = backbone.tokenizer(text[: text.rindex(answer) + len(answer)], add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = whole(ids, output_hidden_states=True).hidden_states[1]
        np.testing.assert_allclose(states[0, "response_end"][number], hidden[0, -1].numpy(), atol=1e-5)


def sequences(*starts: Sequence[int]) -> list[np.ndarray]:
    return [np.array([*start, 7, 8, 1, 9], dtype=np.int32) for start in starts]


def test_a_doubled_bos_fails() -> None:
    assert bos_count(sequences([1], [1]), real=1, named=1).status == "pass"
    doubled = bos_count(sequences([1], [1, 1]), real=1, named=1)
    assert doubled.status == "fail" and doubled.value == 0.5 and doubled.n == 2
    assert bos_count(sequences([1], []), real=1, named=1).status == "fail", "a real BOS that is missing"
    assert bos_count(sequences([1], []), real=None, named=1).status == "pass", "SmolLM2 only names a token so"
    assert bos_count(sequences([1, 1], [1]), real=None, named=1).status == "fail"
    assert bos_count(sequences([4, 4]), real=None, named=None).status == "pass"


def test_a_template_that_moves_fails() -> None:
    same = template_check(recorded="<sys>Be kind.</sys>", now="<sys>Be kind.</sys>", has_template=True, today=TODAY)
    assert same.status == "pass"
    other = template_check(recorded="<sys>Be kind.</sys>", now="<sys>Be brief.</sys>", has_template=True, today=TODAY)
    assert other.status == "fail" and "another one than at the fit" in other.figure
    for text in ("Today Date: 17 Apr 2031", "Today is April 17, 2031.", "2031-04-17"):
        dated = template_check(recorded=text, now=text, has_template=True, today=TODAY)
        assert dated.status == "fail" and "today's date" in dated.figure
    assert template_check(recorded="Today Date: 26 Jul 2024", now="Today Date: 26 Jul 2024", has_template=True, today=TODAY).status == "pass"
    assert template_check(recorded="", now="", has_template=False, today=TODAY).status == "warn"


def test_a_backbone_with_another_template_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor().template().status == "pass"
    monkeypatch.setitem(doctor().backbone.identity, "system_message", "<|im_start|>system\nYou lie.<|im_end|>\n")
    assert doctor().template().status == "fail"


class Careless(Backbone):
    """The tiny backbone as people's loops misuse it: positions counted over the padding, which is attended to as well."""

    def __init__(self, backbone: Backbone) -> None:
        vars(self).update(vars(backbone))

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, layers: Sequence[int], **_: Any) -> dict[int, torch.Tensor]:
        return super().states(input_ids, None, layers)


def batched(backbone: Backbone) -> Check:
    _, states, items = placed()
    tokens = readings_of(doctor().backbone, items)
    ways = dict(ways_of_batching(backbone, tokens, layer=1, position="response_end", seed=0))
    rewards = {name: doctor().model.rewards_of(z) for name, z in {ALONE: states[1, "response_end"], **ways}.items()}
    return invariance(rewards, doctor().known.groups[doctor().sample[0]], deviation=float(doctor().rewards.std()), exact=True)


def test_padding_that_leaks_into_rewards_fails() -> None:
    fine, careless = batched(doctor().backbone), batched(Careless(doctor().backbone))
    assert fine.status == "pass" and fine.value is not None and fine.value < 1e-4
    assert careless.status == "fail" and "worst: padded left" in careless.figure
    assert careless.details["most"]["padded right"] < 1e-4, "a decoder never looks ahead: padding on the right does no harm"


def rewards_off_by(*share: float, n: int = 40) -> dict[str, np.ndarray]:
    alone = np.random.default_rng(0).normal(size=n)
    off = np.zeros(n)
    off[: len(share)] = share
    return {ALONE: alone, "shuffled": alone + off * 2.0}  # the deviation given below is 2


@pytest.mark.parametrize(
    ("share", "exact", "status"),
    [
        ((0.0,), True, "pass"),
        ((5e-5,), True, "pass"),
        ((2e-4,), True, "fail"),
        ((0.01,) * 40, False, "pass"),
        ((0.03,) * 40, False, "fail"),
        ((0.099, 0.099), False, "warn"),  # 0.022, two of forty responses: it may be less
        ((0.09,), False, "pass"),
        ((0.11,), False, "fail"),
        ((float("nan"),), True, "fail"),
        ((float("nan"),), False, "fail"),
    ],
)
def test_bounds_of_invariance(share: tuple[float, ...], exact: bool, status: str) -> None:
    groups = np.arange(20).repeat(2)
    assert invariance(rewards_off_by(*share), groups, deviation=2.0, exact=exact).status == status


def test_flipped_decisions_are_counted() -> None:
    alone = np.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    found = invariance({ALONE: alone, "shuffled": np.array([0.0, 0.5, 1.0, 0.0, 0.0, 1.0])}, np.array([0, 0, 1, 1, 2, 2]), deviation=1.0, exact=False)
    assert found.details["flipped"] == {"shuffled": pytest.approx(1 / 3)}
    assert found.value == pytest.approx(np.sqrt(1.25 / 6)) and found.low is not None and found.high is not None


# --- the SAE -------------------------------------------------------------------------------------------------------


def figure(value: float | None, n: int = 500) -> dict[str, Any]:
    ends = (None, None) if value is None else (value * 0.9, value * 1.1)
    return {"value": value, "low": ends[0], "high": ends[1], "n_tokens": n, "n_documents": 50}


def sae_figures(
    l0: float = 32, l0_read: float = 30, fvu: float = 0.2, fvu_read: float = 0.4, dead: float = 0.1, expected: float | None = 32
) -> SAEFigures:
    content = {"l0": figure(l0), "fvu": figure(fvu), "fvu_median_dimension": figure(fvu), "dead_share": {"value": dead, "n_tokens": 500}}
    return SAEFigures(
        content=content, read={"l0": figure(l0_read), "fvu": figure(fvu_read)}, position="response_end", expected_l0=expected, card=None
    )


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "pass"),
        ({"l0": 70}, "warn"),
        ({"l0": 0.2, "l0_read": 0.2}, "fail"),  # the threshold folded wrongly
        ({"l0": 900}, "fail"),  # ReLU in place of JumpReLU
        ({"l0_read": 100}, "warn"),
        ({"l0_read": 200}, "fail"),
        ({"expected": None}, "warn"),
        ({"expected": None, "l0": 0.5}, "fail"),
    ],
)
def test_bounds_of_l0(changes: dict[str, Any], status: str) -> None:
    assert l0_on_our_tokens(sae_figures(**changes)).status == status


@pytest.mark.parametrize(("fvu", "status"), [(0.41, "pass"), (0.76, "warn"), (1.0, "fail"), (19.0, "fail")])
def test_bounds_of_fvu(fvu: float, status: str) -> None:
    read, content = fvu_on_our_tokens(sae_figures(fvu_read=fvu)), fvu_on_our_tokens(sae_figures(fvu=fvu, fvu_read=0.1))
    assert read.status == content.status == status and read.value == fvu


@pytest.mark.parametrize(
    ("dead", "active", "status"),
    [
        (0.3, [50] * 10, "pass"),
        (0.6, [50] * 10, "warn"),
        (0.95, [50] * 10, "fail"),
        (0.3, [5] * 2 + [50] * 8, "warn"),
        (0.3, [5] * 6 + [50] * 4, "fail"),
    ],
)
def test_bounds_of_dead_latents(dead: float, active: list[int], status: str) -> None:
    assert dead_latents(sae_figures(dead=dead), [{"n_active": count} for count in active]).status == status


def tiny_sae(**changes: Any) -> SparseAutoencoder:
    """The tiny SAE, another object, with some tensors replaced."""
    from core.sae.autoencoder import load_sae

    sae = load_sae(doctor().parts.sae_config)  # type: ignore[arg-type]
    sae.tensors.update(changes)
    return sae


def measured(sae: SparseAutoencoder) -> SAEFigures:
    rows = doctor().known.held_out
    pairs, z = doctor().pairs.take(doctor().known.held_out_pairs[:10]), np.asarray(doctor().z[rows])
    card = {"measured": {"l0": figure(30.0)}}
    return measure_sae(sae, doctor().backbone, pairs, z, doctor().known.groups[rows], layer=1, position="response_end", card=card)


def test_an_sae_used_wrongly_is_seen_on_real_tokens() -> None:
    right = measured(tiny_sae())
    assert l0_on_our_tokens(right).status == "pass" and fvu_on_our_tokens(right).status == "pass"
    relu = measured(tiny_sae(threshold=torch.zeros(256)))
    assert l0_on_our_tokens(relu).status == "fail" and relu.content["l0"]["value"] > 100
    folded = measured(tiny_sae(threshold=torch.full((256,), 1e3)))
    assert l0_on_our_tokens(folded).status == fvu_on_our_tokens(folded).status == dead_latents(folded, []).status == "fail"
    strange = measured(tiny_sae(W_dec=tiny_sae().tensors["W_dec"].roll(1, dims=0)))
    assert fvu_on_our_tokens(strange).status == "fail" and l0_on_our_tokens(strange).status == "pass"


def test_figures_at_the_position_by_a_plain_loop() -> None:
    sae, z = tiny_sae(), np.asarray(doctor().z[doctor().known.held_out])
    f = sae.encode(torch.from_numpy(z)).double().numpy()
    back = f @ sae.tensors["W_dec"].double().numpy() + sae.tensors["b_dec"].double().numpy()
    found = measured(sae).read
    assert found["l0"]["value"] == pytest.approx(np.mean([(row > 0).sum() for row in f]))
    assert found["fvu"]["value"] == pytest.approx(((z - back) ** 2).sum() / ((z - z.mean(0)) ** 2).sum(), rel=1e-4)
    assert found["l0"]["low"] < found["l0"]["value"] < found["l0"]["high"]


# --- the pairs -----------------------------------------------------------------------------------------------------

PLACES = ("the harbour", "an old mill", "the northern road", "a quiet village", "the second bridge", "our garden", "the town hall", "a steep valley")


def text_pairs(n: int = 300, splits: Sequence[str] = ("train", "test")) -> list[tuple[PreferencePair, str]]:
    """Pairs that share hardly a word, each with its split, in turn."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghiklmnoprstuvw"), 7)) for _ in range(4 * n)]
    found = []
    for i in range(n):
        told = [" ".join(rng.choice(words, 14)) for _ in range(3)]
        prompt = ({"role": "user", "content": f"What about {PLACES[i % 8]}: {told[0]}?"},)
        found.append((PreferencePair(pair_id=f"id{i}", prompt=prompt, chosen=told[1], rejected=told[2]), splits[i % len(splits)]))
    return found


def as_pairs(rows: Sequence[tuple[PreferencePair, str]]) -> PreferencePairs:
    return PreferencePairs(pairs=tuple(pair for pair, _ in rows), split=tuple(split for _, split in rows))


def again(pair: PreferencePair, number: int, **changes: Any) -> PreferencePair:
    return replace(pair, pair_id=f"again{number}", **changes)


def test_a_prompt_on_two_sides_fails() -> None:
    rows = text_pairs()
    assert split_leakage(as_pairs(rows)).status == "pass"
    first = rows[0][0]
    loud = tuple({**message, "content": message["content"].upper() + " "} for message in first.prompt)
    leaked = split_leakage(as_pairs([*rows, (again(first, 0, prompt=loud, chosen="Yes, very much so.", rejected="No, never at all."), "test")]))
    assert leaked.status == "fail" and leaked.details["prompts"] == {"train/test": 1} and "1 in train/test" in leaked.figure and leaked.value == 1
    unused = split_leakage(as_pairs([*rows, (again(first, 0, prompt=loud, chosen="Yes.", rejected="No."), "unused")]))
    assert unused.status == "pass", "pairs of no split are nobody's test"


def test_near_duplicates_across_splits_warn_and_many_fail() -> None:
    rows = text_pairs()

    def near(count: int) -> Check:
        copies = [
            (again(pair, i, prompt=tuple({**m, "content": m["content"] + "?"} for m in pair.prompt), chosen=pair.chosen + "."), "test")
            for i, (pair, _) in enumerate(rows[0 : 2 * count : 2])
        ]
        return split_leakage(as_pairs([*rows, *copies]))

    assert near(1).status == "warn" and near(1).details["pairs"] == {"train/test": 1}
    many = near(4)
    assert many.status == "fail" and many.details["test_share"] == pytest.approx(4 / 154)


def test_a_split_by_pair_is_caught() -> None:
    """As `split_by=pair` leaves it: several pairs of a prompt, in whatever split."""
    pairs = make_pairs([3] * 20, ["train"] * 20)
    assert split_leakage(replace(pairs, split=tuple(split_names(60, (0.5, 0.0, 0.5), np.random.default_rng(0))))).status == "fail"
    assert split_leakage(replace(pairs, split=("train",) * 30 + ("test",) * 30)).details["prompts"] == {}


def test_contradictions_and_repeats() -> None:
    rows = text_pairs()
    assert duplicate_pairs(as_pairs(rows)).status == "pass"
    turned = [(again(pair, i, chosen=pair.rejected, rejected=pair.chosen), split) for i, (pair, split) in enumerate(rows[:3])]
    one, three = duplicate_pairs(as_pairs([*rows, *turned[:1]])), duplicate_pairs(as_pairs([*rows, *turned]))
    assert one.status == "warn" and one.value == pytest.approx(2 / 301)
    assert three.status == "fail" and three.value == pytest.approx(6 / 303) and ["id0", "again0"] in three.details["contradictory"]
    repeated = duplicate_pairs(as_pairs([*rows, *((again(pair, i), split) for i, (pair, split) in enumerate(rows[:20]))]))
    assert repeated.status == "warn" and repeated.details["extra"] == pytest.approx(20 / 320)


# --- shortcuts -----------------------------------------------------------------------------------------------------


def table_of(sparserm: float, shortcut: float, n: int = 400, splits: tuple[float, float, float] = (0.2, 0.1, 0.7)) -> dict[str, Any]:
    """A fit's table where SparseRM and both shortcuts are right with these chances."""
    rng = np.random.default_rng(0)
    pairs = make_pairs([1] * n, split_names(n, splits, rng))

    def scored_method(kind: str, chance: float) -> ScoredMethod:
        return ScoredMethod(kind=kind, margins=np.where(rng.random((1, n)) < chance, 1.0, -1.0), shipped=0, n_parameters=1)

    model = scored_method("sparserm", sparserm)
    return evaluate(pairs, model, [scored_method(kind, shortcut) for kind in ("wording-only", "length-only")], {"margin": model}).to_json()


def cue(value: float, half: float = 0.05) -> LengthCue:
    line = Correlation(value=value, low=value - half, high=value + half)
    return LengthCue(reward=line, reward_within=line, projections=(), latent_ids=(), n=400, n_prompts=200)


@pytest.mark.parametrize(("sparserm", "shortcut", "status"), [(0.9, 0.6, "pass"), (0.75, 0.75, "warn"), (0.6, 0.9, "fail")])
def test_a_shortcut_that_does_better_fails(sparserm: float, shortcut: float, status: str) -> None:
    table = table_of(sparserm, shortcut)
    for found, name in ((wording_shortcut(table), "wording-only"), (length_shortcut(table, cue(0.1)), "length-only")):
        lead = table["controls"][name]["sparserm_minus_this"]
        assert found.status == status and (found.value, found.low, found.high, found.n) == (lead["difference"], lead["low"], lead["high"], 280)


def test_a_shortcut_is_compared_mean_with_mean() -> None:
    table = table_of(0.9, 0.6)
    table["sparserm"]["heads"] *= 5
    table["sparserm"]["accuracy"] = 0.123  # the shipped head's, which the lead is not of
    found = wording_shortcut(table)
    mean = table["sparserm"]["mean"]["accuracy"]
    assert found.details["sparserm"]["accuracy"] == mean and found.details["sparserm"]["heads"] == "mean of 5 heads"
    assert found.value == pytest.approx(mean - found.details["control"]["accuracy"]) and "lead (mean of 5 heads)" in found.figure


def test_a_reward_that_goes_with_length_warns() -> None:
    table = table_of(0.9, 0.6)
    assert [length_shortcut(table, cue(value)).status for value in (0.0, 0.33, 0.5, -0.5)] == ["pass", "pass", "warn", "warn"]
    assert length_shortcut(table_of(0.6, 0.9), cue(0.5)).status == "fail"
    assert length_shortcut(table, None).status == "pass"


def test_without_test_pairs_a_shortcut_is_not_known() -> None:
    assert wording_shortcut(table_of(0.9, 0.6, splits=(0.5, 0.5, 0.0))).status == "warn"


# --- explanations --------------------------------------------------------------------------------------------------


def scaled(parts: RewardParts, factor: float) -> RewardParts:
    return replace(parts, head=replace(parts.head, weight_2=parts.head.weight_2 * np.float32(factor)))


def test_a_residual_is_seen() -> None:
    parts, known = hand_made()
    small, large = (attribution_residual(p, known, known.held_out) for p in (parts, scaled(parts, 1e12)))
    assert small.status == "pass" and small.value is not None and small.value < 1e-12
    assert large.status == "fail" and large.value is not None and large.value > 1e-9
    broken = attribution_residual(scaled(parts, float("nan")), known, known.held_out)
    assert broken.status == "fail", "no number is no small number"


def honest_world(wrong: bool) -> tuple[RewardParts, FitResponses]:
    """Orthonormal directions and projections that are the activations: what a latent contributes is what its removal takes. `wrong`: the activations
    are other latents'."""
    rng = np.random.default_rng(1)
    n, k = 240, 12
    parts, _ = hand_made()
    f = np.maximum(rng.normal(size=(n, k)), 0).astype(np.float32)
    strength = rng.choice([1, -1], size=k).astype(np.float32)
    head = Head(
        weight_1=np.stack([strength, -strength]),
        bias_1=np.zeros(2, dtype=np.float32),
        weight_2=np.array([[1, -1]], dtype=np.float32),
        bias_2=np.zeros(1, dtype=np.float32),
    )
    figures = {"projection_mean": f.mean(0), "projection_std": np.ones(k, dtype=np.float32), "latent_ids": np.arange(k)}
    parts = replace(parts, head=head, heads=(head, head), seeds=(0, 1), directions=np.eye(k, 20, dtype=np.float32), **figures)
    rows = np.arange(n).reshape(-1, 2)
    known = FitResponses(
        projections=f,
        activations=f[:, rng.permutation(k)][rng.permutation(n)] if wrong else f,
        n_tokens=np.full(n, 5),
        prompt_ids=np.arange(n // 2).repeat(2),
        response_ids=np.arange(n),
        chosen_rows=rows[:, 0],
        rejected_rows=rows[:, 1],
        split=np.full(n // 2, 2),
    )
    return parts, known


def test_unfaithful_explanations_fail() -> None:
    right, wrong = (faithful_explanations(faithfulness(*honest_world(mixed))) for mixed in (False, True))
    assert right.status == "pass" and right.low is not None and right.low > 0
    assert wrong.status == "fail" and wrong.low is not None and wrong.low <= 0


def test_poor_rank_agreement_warns_and_nothing_to_remove_warns() -> None:
    found = faithfulness(*honest_world(False))
    assert found.agreement is not None
    assert faithful_explanations(replace(found, agreement=replace(found.agreement, mean=0.3))).status == "warn"
    assert faithful_explanations(replace(found, deletion=None, insertion=None, agreement=None)).status == "warn"


@pytest.mark.parametrize(
    ("overlap", "correlation", "status"),
    [(0.94, 0.85, "pass"), (0.55, 0.85, "fail"), (0.94, 0.6, "fail"), (None, 0.85, "warn"), (None, 0.6, "fail"), (None, None, "warn")],
)
def test_the_verdict_on_stability(overlap: float | None, correlation: float | None, status: str) -> None:
    assert top_k_stability(Stability(overlap=overlap, rank_correlation=correlation, n=300)).status == status


@pytest.mark.parametrize(("between", "status"), [(0.3, "pass"), (1.5, "warn"), (5.0, "fail")])
def test_the_prompts_share_of_the_reward(between: float, status: str) -> None:
    rng = np.random.default_rng(3)
    groups = np.arange(300).repeat(4)
    rewards = between * rng.normal(size=300).repeat(4) + rng.normal(size=1200)
    found = prompt_variance(prompt_share(rewards, groups))
    assert found.status == status and found.value == pytest.approx(between**2 / (1 + between**2), abs=0.05) and found.n == 1200
    assert prompt_variance(None).status == "warn"


# --- the null ------------------------------------------------------------------------------------------------------

SELECTION, HEAD = SelectionConfig(k=16, resamples=10), HeadConfig(hidden=64)


def null_of(split_by: str, swaps: int = 12) -> NullTest:
    """Pairs of one prompt are much alike, and mean nothing: whoever has seen one of them in training knows the others' labels."""
    rng = np.random.default_rng(0)
    n_prompts, per_prompt, d_model = 60, 4, 32
    side = rng.normal(size=(n_prompts, 1, 2, d_model)) + 0.3 * rng.normal(size=(n_prompts, per_prompt, 2, d_model))
    n = n_prompts * per_prompt
    hidden = make_hidden(side.reshape(-1, d_model).astype(np.float32), np.arange(0, 2 * n, 2), np.arange(1, 2 * n, 2))
    names = split_names(n if split_by == "pair" else n_prompts, (0.4, 0.2, 0.4), rng)
    pairs = make_pairs([per_prompt] * n_prompts, names if split_by == "prompt" else ["train"] * n_prompts)
    pairs = pairs if split_by == "prompt" else replace(pairs, split=tuple(names))
    sae = FakeSAE(rng.normal(size=(150, d_model)).astype(np.float32), threshold=5.0)
    found = label_swap_null(hidden, pairs, sae, SELECTION, HEAD, swaps=swaps, seed=0)
    assert found is not None
    return found


def test_a_leak_breaks_the_null() -> None:
    clean, leaky = null_check(null_of("prompt")), null_check(null_of("pair"))
    assert clean.status == "pass" and clean.low is not None and clean.low < 0.5 < clean.high  # type: ignore[operator]
    assert leaky.status == "fail" and leaky.value is not None and leaky.value > 0.6


def test_bounds_of_the_null() -> None:
    def of(accuracies: list[float], discoveries: list[int]) -> NullTest:
        return NullTest(accuracies=tuple(accuracies), discoveries=tuple(discoveries), n_pairs=500, n_all=700)

    level = [0.48, 0.52] * 50
    assert of(level, [0] * 100).most_discovering == 10 and of(level[:10], [0] * 10).most_discovering == 2
    assert of(level, [0] * 100).reach == pytest.approx(3 * np.std(level, ddof=1) / 10)
    ten = of(level[:10], [0] * 10)
    assert 2 * stats.t.sf(ten.reach / (np.std(level[:10], ddof=1) / np.sqrt(10)), 9) == pytest.approx(2 * stats.norm.sf(3))
    assert null_check(of(level, [1] * 10 + [0] * 90)).status == "pass"
    assert null_check(of(level, [1] * 11 + [0] * 89)).status == "fail"
    assert null_check(of([a + 0.007 for a in level], [0] * 100)).status == "fail"
    assert null_check(of([a + 0.005 for a in level], [0] * 100)).status == "pass"
    assert null_check(None).status == "warn"
    found = null_check(ten)
    assert found.n == 500 and found.details["swaps"] == 10 and "n = 500 of 700 test pairs" in found.figure, "n is that of the accuracy"


def test_swaps_turn_whole_prompts() -> None:
    hidden = make_hidden(np.zeros((12, 2), dtype=np.float32), np.arange(0, 12, 2), np.arange(1, 12, 2))
    groups = np.array([0, 0, 1, 1, 2, 2])
    turned = [swapped(hidden, groups, seed).chosen_rows % 2 for seed in range(60)]
    assert all(row[0] == row[1] and row[2] == row[3] and row[4] == row[5] for row in turned)
    assert {tuple(row[::2]) for row in turned} == {(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)}


# --- the whole -----------------------------------------------------------------------------------------------------

FAILING: dict[str, Callable[[], Check]] = {
    "layer and position": lambda: place_check(kept=(0, "response_end")),
    "BOS": lambda: bos_count(sequences([1, 1]), real=1, named=1),
    "template": lambda: template_check(recorded="a", now="b", has_template=True, today=TODAY),
    "padding and batches": lambda: batched(Careless(doctor().backbone)),
    "L0 on our tokens": lambda: l0_on_our_tokens(sae_figures(l0=0.2)),
    "FVU on our tokens": lambda: fvu_on_our_tokens(sae_figures(fvu_read=19)),
    "dead latents": lambda: dead_latents(sae_figures(dead=0.95), []),
    "pairs left out": lambda: pairs_left_out(counts_of(n=100, refused=21)),
    "pairs left out differ": lambda: left_out_differ(*lost_by_side("chosen"), 0.3),
    "split leakage": lambda: split_leakage(replace(make_pairs([2], ["train"]), split=("train", "test"))),
    "duplicates": lambda: duplicate_pairs(as_pairs([(pair, "train") for pair in contradiction()])),
    "wording shortcut": lambda: wording_shortcut(table_of(0.6, 0.9)),
    "length shortcut": lambda: length_shortcut(table_of(0.6, 0.9), None),
    "attribution residual": lambda: attribution_residual(scaled(hand_made()[0], 1e12), hand_made()[1], hand_made()[1].held_out),
    "faithfulness": lambda: faithful_explanations(faithfulness(*honest_world(True))),
    "stability of the top K": lambda: top_k_stability(Stability(overlap=0.5, rank_correlation=0.9, n=9)),
    "prompt share": lambda: prompt_variance(prompt_share(np.arange(20).repeat(2) + np.tile([0.0, 0.1], 20), np.arange(20).repeat(2))),
    "label-swap null": lambda: null_check(null_of("pair")),
}


def contradiction() -> list[PreferencePair]:
    pair = text_pairs(1)[0][0]
    return [pair, again(pair, 0, chosen=pair.rejected, rejected=pair.chosen)]


@cache
def report() -> Report:
    return doctor_report(fitted(), CONFIG)[0]


def test_the_doctor_examines_a_fit() -> None:
    found = report()
    assert [check.name for check in found.checks] == list(FAILING)
    for check in found.checks:
        assert check.status in ("pass", "warn", "fail") and check.figure and check.bound and check.reason
        assert bool(check.remedy) == (check.status != "pass"), check.name
    passes = {check.name for check in found.checks if check.status == "pass"}
    assert passes >= {"layer and position", "BOS", "template", "padding and batches", "split leakage", "duplicates", "attribution residual"}
    assert set(found.seconds) == {"reading", "autoencoder", "data", "explanations", "null"} and found.about["layer"] == 1
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", list(FAILING))
def test_every_check_can_fail(name: str) -> None:
    found = FAILING[name]()
    assert (found.name, found.status) == (name, "fail") and found.remedy


def test_a_report_is_found_again_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report()
    monkeypatch.setattr(SparseRM, "load", lambda *_, **__: pytest.fail("computed again"))
    again_ = find_report(fitted(), CONFIG)
    assert again_ is not None and again_.to_json() == found.to_json() == doctor_report(fitted(), CONFIG)[0].to_json()
    assert find_report(fitted(), replace(CONFIG, seed=5)) is None


def test_a_copy_of_the_folder_has_the_same_report(tmp_path: Any) -> None:
    from core.fit.pipeline import copy_out

    report()
    copy = copy_out(fitted().path, tmp_path / "copy")
    assert find_report(replace_folder(copy), CONFIG) is not None
    (copy / "selection.jsonl").write_text("")
    with pytest.raises(StoreError, match=r"selection\.jsonl is damaged"):
        find_report(replace_folder(copy), CONFIG)


def replace_folder(folder: Any) -> ModelFolder:
    return ModelFolder(folder, fitted().store)


def test_what_can_not_be_examined_is_said(tmp_path: Any) -> None:
    with pytest.raises(StoreError, match="there is no reward model"):
        doctor_report(replace_folder(tmp_path), CONFIG)
    with pytest.raises(MissingError, match="does not keep the pairs"):
        doctor_report(replace_folder(fitted().path / "controls" / "dense"), CONFIG)
    with pytest.raises(MissingError, match="hidden states this reward model was fitted on are not in this cache"):
        doctor_report(ModelFolder(fitted().path, Store(tmp_path)), CONFIG)
    control, alone = SparseRM.load(fitted().path / "controls" / "dense"), SparseRM.from_parts(doctor().parts)
    for model, error in ((control, ConfigError), (alone, MissingError)):
        with pytest.raises(error, match="not its controls" if error is ConfigError else "not kept beside it"):
            Doctor(model=model, z=np.zeros((1, 2), dtype=np.float32), table={})


def test_reports_are_read_as_written(tmp_path: Any) -> None:
    save_report(tmp_path, report())
    assert load_report(tmp_path) == report()
    (tmp_path / "report.json").write_text('{"checks": [{}]}')
    with pytest.raises(StoreError, match="can't be read"):
        load_report(tmp_path)


def test_the_worst_status_counts() -> None:
    def of(status: str) -> Check:
        return Check(name="a", status=status, figure="f", bound="b", reason="r", remedy="")

    found = Report(checks=(of("pass"), of("fail"), of("warn")), about={})
    assert found.status == "fail" and found.counts == {"pass": 1, "warn": 1, "fail": 1} and len(found.failed()) == 1
    assert Report(checks=(of("pass"), of("warn")), about={}).status == "warn"


# --- the command line ----------------------------------------------------------------------------------------------


def test_the_command_prints_everything_and_fails_with_9(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from core.cli.main import main

    monkeypatch.setenv("SPARSERM_CACHE", str(fitted().store.root))
    words = ["doctor", str(fitted().path), "--swaps", "3", "--responses", "16", "--dialogues", "20"]
    expected = 9 if report().failed() else 0
    assert main(words) == expected
    out = capsys.readouterr().out
    for check in report().checks:
        assert check.name in out and (not check.remedy or check.remedy in out)
    assert main([*words, "--json"]) == expected
    said = json.loads(capsys.readouterr().out)
    assert said["status"] == report().status and len(said["checks"]) == len(FAILING)
    assert main(["doctor", "/nowhere"]) == StoreError.exit_code


def test_spaces_of_a_fit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from core.cli.main import main
    from core.config import SpacesConfig

    monkeypatch.setenv("SPARSERM_CACHE", str(fitted().store.root))
    config = SpacesConfig(points=80, random_draws=2)
    assert fitted().find_result(NAME, config) is None
    words = ["spaces", str(fitted().path), "--points", "80", "--random-draws", "2"]
    assert main(words) == 0
    assert "random-rows" in capsys.readouterr().out
    artefact = fitted().find_result(NAME, config)
    assert artefact is not None
    spaces = load_spaces(artefact.path)
    assert 60 < len(spaces.rows) <= 80 and spaces.made["n_left_out"] == len(doctor().known) - len(spaces.rows)
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["sparse"]["neighbours"]["n"] == spaces.n_held_out

"""The rounds of an alignment, on the tiny preset through the command line: counts, manifests, adapters, arms, the
store, and what a page reads.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import run_apart
from safetensors.numpy import load_file

from core.align import audit
from core.align.filtering import AT_RANDOM, MARGIN
from core.align.policy import adapter_hash
from core.align.presets import ALIGN_PRESETS
from core.align.records import ALIGNMENT, CANDIDATES, DPO, EVALUATION, ROUND, SHIFT, STEPS, AlignmentRecord, RoundRecord, alignments, key_of
from core.align.round import NO_PAIR
from core.align.steps import SEED_DISTANCE, round_seed, split_kept
from core.config import AlignConfig, DPOConfig, FitConfig, HeadConfig, PolicyEvaluationConfig, SelectionConfig
from core.data.pairs_file import read_pairs
from core.errors import Cancelled, ConfigError, MissingError
from core.explain.shift import load_shift
from core.files import read_json_lines
from core.jobs.align import completed
from core.jobs.align_work import run_alignment
from core.reward.model import SparseRM
from core.runs.store import MANIFEST, Artefact, Store
from core.types import PreferencePair

ROOT = Path(__file__).resolve().parents[1]
COUNTS = ("generated", "parsed", "kept", "dropped")


def quick(**changes: Any) -> AlignConfig:
    """The tiny preset with a smaller fit and evaluation."""
    tiny = ALIGN_PRESETS["tiny"]
    fit: FitConfig = replace(tiny.fit, head=HeadConfig(epochs=3, seeds=2), selection=SelectionConfig(k=8, resamples=20), curve=(4, 8), random_draws=2)
    small = {"fit": fit, "evaluation": PolicyEvaluationConfig(pairs=10, prompts=24, max_new_tokens=200), "dpo": DPOConfig(lr=1e-3, epochs=1)}
    return replace(tiny, **{**small, **changes})


def alignment_of(config: AlignConfig, store: Store) -> AlignmentRecord:
    (record,) = (record for record in alignments(store.root) if record.key == key_of(config))
    return record


class FinishedRun:
    """An alignment that has run in this process, and its files."""

    def __init__(self, config: AlignConfig, store: Store) -> None:
        self.config, self.store = completed(config, store, lambda _: None), store
        self.progress_calls: list[tuple[str, float, float, dict[str, Any]]] = []
        self.outcome = run_alignment(self.config, store, lambda *call, **figures: self.progress_calls.append((*call, figures)))
        self.summary = self.outcome.to_json()

    @property
    def record(self) -> AlignmentRecord:
        return alignment_of(self.config, self.store)

    @property
    def rounds(self) -> list[RoundRecord]:
        return self.record.rounds


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("align"))


@pytest.fixture(scope="module")
def run(store: Store) -> FinishedRun:
    return FinishedRun(quick(), store)


@pytest.fixture(scope="module")
def reward_model(run: FinishedRun) -> Path:
    assert run.record.model is not None
    return run.record.model


# --- a run ------------------------------------------------------------------------------------------------------------


def test_pairs_add_up_in_every_round(run: FinishedRun) -> None:
    assert [manifest["round"] for manifest in run.summary["rounds"]] == [1, 2] and run.summary["base"]["round"] == 0
    for manifest in run.summary["rounds"]:
        assert manifest["kept"] + manifest["dropped"] == manifest["parsed"] <= manifest["generated"] == 48 and manifest["kept"] > 0
        assert sum(manifest["reasons"].values()) == manifest["dropped"] and manifest["reasons"][MARGIN] > 0
    for record in run.rounds[1:]:
        assert record.manifest is not None and record.counts is not None
        assert {name: record.counts[name] for name in COUNTS} == {name: record.manifest[name] for name in COUNTS}
        assert Counter(decision.kept for decision in record.decisions) == {True: record.counts["kept"], False: record.counts["dropped"]}
        assert len(record.candidates) == 48 and sum(candidate.parsed for candidate in record.candidates) == record.counts["parsed"]
        assert all(candidate.raw for candidate in record.candidates), "unparsed text is kept"


def test_kept_pairs_have_the_higher_reward(run: FinishedRun, reward_model: Path) -> None:
    record = run.rounds[1]
    rewards = {row["candidate_id"]: (row["reward_chosen"], row["reward_rejected"]) for row in record.rewards}
    parsed = {candidate.candidate_id: candidate for candidate in record.candidates if candidate.parsed}
    assert [decision.candidate_id for decision in record.decisions] == list(parsed)
    model = SparseRM.load(reward_model)
    for decision in record.decisions:
        chosen, rejected = rewards[decision.candidate_id]
        if decision.kept or decision.reason == MARGIN:
            candidate = parsed[decision.candidate_id]
            alone = model.score([candidate.prompt] * 2, [candidate.chosen, candidate.rejected])
            assert (chosen, rejected) == pytest.approx(tuple(alone), abs=1e-4)
            assert decision.margin == pytest.approx(chosen - rejected) and decision.kept == (chosen > rejected)
    kept = read_pairs(record.steps["align-filter"] / "kept.jsonl")
    assert {pair.pair_id for pair in kept} == {decision.candidate_id for decision in record.decisions if decision.kept}
    for pair in kept:
        assert pair.prompt == parsed[pair.pair_id].prompt and len(pair.prompt) == 1 and "Answer in" not in pair.prompt[0]["content"]


def test_adapters_are_chained_and_load_with_plain_peft(run: FinishedRun) -> None:
    first, second = run.summary["rounds"]
    assert first["adapter_before"] == "base" and first["adapter_after"] == second["adapter_before"] != second["adapter_after"]
    for manifest, record in zip(run.summary["rounds"], run.rounds[1:], strict=True):
        assert adapter_hash(record.steps[DPO] / "adapter") == manifest["adapter_after"]
        assert record.dpo is not None and record.dpo["adapter_after"] == manifest["adapter_after"] and record.dpo["reference"] == "base"
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run.outcome.base.model)
    loaded = PeftModel.from_pretrained(base, run.summary["rounds"][1]["adapter"])
    assert any(tensor.abs().sum() > 0 for name, tensor in loaded.state_dict().items() if "lora_B" in name)


def test_the_manifest_holds_what_repeats_the_round(run: FinishedRun, reward_model: Path) -> None:
    manifest = run.rounds[2].manifest
    assert manifest is not None
    assert manifest["seeds"] == {"prompts": 0, "evaluation": 0, **dict.fromkeys(("candidates", "dpo", "random_drop"), 2 * SEED_DISTANCE)}
    assert manifest["reward_model"] == manifest["measured_by"] and manifest["reward_model"]["kind"] == "sparserm"
    left_out = dict.fromkeys(("n_refused", "n_repeated", "n_held_out", "n_over_limit"), 0)
    assert manifest["prompts"] == {"n": 24, "source": "the fit's train prompts", **left_out}
    record = run.rounds[2]
    assert sum(manifest["not_parsed"].values()) == manifest["generated"] - manifest["parsed"]
    assert manifest["unread"] == sum(None in (row["reward_chosen"], row["reward_rejected"]) for row in record.rewards)
    assert record.dpo is not None and manifest["learnt_from"] == {
        "train": record.dpo["n_pairs"], "validation": record.dpo["n_validation"], "refused": len(record.dpo["refused"])
    }  # fmt: skip
    assert manifest["kept"] == sum(manifest["learnt_from"].values())
    assert run.summary["pair_counts"]["n_pairs"] == 100, "with the pairs that the reward model's fit could not read"
    assert manifest["tokens"]["written"] > 0 and manifest["tokens"]["trained"] > 0 and manifest["stopped"] == ""
    assert set(manifest["steps"]) == set(STEPS) and manifest["time_seconds"]["total"] == pytest.approx(
        sum(seconds for step, seconds in manifest["time_seconds"].items() if step != "total")
    )
    assert run.summary["rounds"][1]["seconds"] == manifest["time_seconds"]["total"] > 0


def test_every_round_is_evaluated_against_the_base(run: FinishedRun) -> None:
    base, *after = [manifest["evaluation"]["figures"] for manifest in (run.summary["base"], *run.summary["rounds"])]
    assert base["reward"]["difference"] is None and base["kl_per_token"]["value"] == pytest.approx(0.0, abs=1e-6)
    for figures in after:
        for name in ("reward", "accuracy", "validation_accuracy", "length"):
            assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"] and figures[name]["n"] > 0
        # Measured on the same pairs, so means differ by the mean difference; answers may be unreadable in one round.
        for name in ("accuracy", "validation_accuracy", "logprob_margin"):
            assert figures[name]["difference"]["value"] == pytest.approx(figures[name]["value"] - base[name]["value"], abs=1e-6)
        assert figures["kl_per_token"]["value"] > 0
    accuracy = [figures["validation_accuracy"]["value"] for figures in (base, *after)]
    assert run.summary["chosen_round"] == int(np.argmax(accuracy))


def test_the_final_artefact_holds_the_chosen_adapter(run: FinishedRun) -> None:
    summary = json.loads((run.outcome.artefact / "alignment.json").read_text())
    assert summary["config"] == run.config.to_dict() and [manifest["round"] for manifest in summary["rounds"]] == [1, 2] and summary["stopped"] == ""
    assert run.record.result == run.outcome.artefact and run.record.config == run.config
    chosen = summary["chosen_round"]
    if chosen:
        assert adapter_hash(run.outcome.artefact / "adapter") == summary["rounds"][chosen - 1]["adapter_after"]
    else:
        assert run.outcome.adapter is None
        with pytest.raises(MissingError, match="no round was better"):
            run.outcome.save(run.store.root / "x")


def test_generated_and_training_answers_are_compared(run: FinishedRun) -> None:
    for record in run.rounds[1:]:
        shift = load_shift(record.steps[SHIFT])
        read = sum(row["reward_chosen"] is not None and row["reward_rejected"] is not None for row in record.rewards)
        assert len(shift.ids) == read and {row.space for row in shift.rows} >= {"dense", "sparse", "random-isotropic"}


def test_progress_reports_every_step_and_its_counts(run: FinishedRun) -> None:
    ends = {step: figures for step, done, total, figures in run.progress_calls if done == total}
    for round in (1, 2):
        for step in STEPS:
            assert f"round {round}: {step.removeprefix('align-')}" in ends
        assert {name: ends[f"round {round}: filter"][name] for name in COUNTS} == {name: run.summary["rounds"][round - 1][name] for name in COUNTS}
    assert [(done, total) for step, done, total, _ in run.progress_calls if step == "rounds"] == [(0, 2), (1, 2), (2, 2)]


def test_the_audit_finds_its_cases_in_a_round(run: FinishedRun) -> None:
    record = run.rounds[1]
    cases = audit.cases(1, record.candidates, record.decisions, n=3, seed=0)
    assert cases and all(case.first != case.second and case.margin <= 0 and case.latents for case in cases)
    audit.judge(run.record.folder, cases[0], "neither")
    assert audit.agreement(audit.judgements(run.record.folder)).accuracy == 1.0


# --- the store --------------------------------------------------------------------------------------------------------


def artefacts(store: Store) -> dict[str, int]:
    return dict(Counter(artefact.step for _, artefact in store.all() if isinstance(artefact, Artefact)))


def test_a_second_run_finds_everything(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.align import inputs

    monkeypatch.setattr(inputs, "load_policy", lambda *_, **__: pytest.fail("a policy was loaded"))
    before = artefacts(run.store)
    again = FinishedRun(quick(), run.store)
    assert again.summary == run.summary and artefacts(run.store) == before and set(before) >= {*STEPS, ROUND, ALIGNMENT}


def test_one_round_more_computes_one_round_more(run: FinishedRun) -> None:
    before = artefacts(run.store)
    more = FinishedRun(quick(rounds=3), run.store)
    after = artefacts(run.store)
    assert [manifest["steps"] for manifest in more.summary["rounds"][:2]] == [manifest["steps"] for manifest in run.summary["rounds"]]
    grown = {step: after[step] - before[step] for step in STEPS}
    assert grown == dict.fromkeys(STEPS, 1) and after[ALIGNMENT] == before[ALIGNMENT] + 1


def test_a_cancelled_run_goes_on(store: Store, run: FinishedRun) -> None:
    config = replace(run.config, candidates=replace(run.config.candidates, seed=1), prompts_limit=20)

    def stop(step: str, done: float, total: float, **_: Any) -> None:
        if step == "round 1: train policy" and done:
            raise Cancelled

    before = artefacts(store)
    with pytest.raises(Cancelled):
        run_alignment(config, store, stop)
    assert artefacts(store)["align-filter"] == before["align-filter"] + 1 and artefacts(store)[DPO] == before[DPO]
    record = alignment_of(config, store)
    assert [round.finished for round in record.rounds] == [True, False] and record.result is None
    assert set(record.rounds[1].steps) == {"align-candidates", "align-rewards", "align-filter"}


# --- arms -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arms(store: Store, run: FinishedRun) -> dict[str, FinishedRun]:
    return {arm: FinishedRun(quick(arm=arm, rounds=1), store) for arm in ("none", "random", "dense")} | {"sparserm": run}


def test_arms_share_their_beginning(arms: dict[str, FinishedRun]) -> None:
    """Arms share candidates, the evaluation of the base model and, with the same reward model, the rewards."""
    steps = {arm: run.summary["rounds"][0]["steps"] for arm, run in arms.items()}
    assert len({fingerprints["align-candidates"] for fingerprints in steps.values()}) == 1
    assert steps["none"]["align-rewards"] == steps["random"]["align-rewards"] == steps["sparserm"]["align-rewards"] != steps["dense"]["align-rewards"]
    assert len({run.summary["base"]["steps"][EVALUATION] for run in arms.values()}) == 1
    assert len({fingerprints["align-filter"] for fingerprints in steps.values()}) == 4


def test_each_arm_filters_in_its_way(arms: dict[str, FinishedRun]) -> None:
    first = {arm: run.summary["rounds"][0] for arm, run in arms.items()}
    assert MARGIN not in first["none"]["reasons"] and first["none"]["kept"] >= first["sparserm"]["kept"] + first["sparserm"]["reasons"][MARGIN]
    assert first["random"]["kept"] == first["sparserm"]["kept"] and first["random"]["reasons"].keys() <= {AT_RANDOM}
    assert first["none"]["reward_model"] is None and first["dense"]["reward_model"]["kind"] == "dense"
    assert {manifest["measured_by"]["kind"] for manifest in first.values()} == {"sparserm"}
    dense = [decision for decision in arms["dense"].rounds[1].decisions if decision.reason == MARGIN]
    assert dense and not any(decision.latents for decision in dense), "the dense control has no latents to name"
    assert arms["dense"].record.judge == arms["dense"].record.model / "controls" / "dense"  # type: ignore[operator]


def test_an_arm_that_keeps_nothing_stops(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "core.align.loop"):
        run = FinishedRun(quick(min_margin=1e9), store)
    (only,) = run.summary["rounds"]
    assert (only["kept"], only["dropped"]) == (0, only["parsed"]) and only["stopped"] == run.summary["stopped"] == NO_PAIR
    assert only["adapter_before"] == only["adapter_after"] == "base" and DPO not in only["steps"]
    assert run.summary["chosen_round"] == 0 and run.summary["adapter"] is None and NO_PAIR in caplog.text
    assert only["evaluation"] == run.summary["base"]["evaluation"] and run.rounds[1].evaluation == run.rounds[0].evaluation


def test_a_round_in_which_nothing_parses_stops_too(store: Store) -> None:
    config = quick()
    run = FinishedRun(replace(config, candidates=replace(config.candidates, max_new_tokens=1)), store)
    (only,) = run.summary["rounds"]
    assert only["generated"] == 48 and only["parsed"] == only["kept"] == only["dropped"] == 0 and only["stopped"] == NO_PAIR
    assert len(run.rounds[1].candidates) == 48 and load_shift(run.rounds[1].steps[SHIFT]).ids == ()


def test_best_of_n_is_filtered_by_its_own_reward(store: Store) -> None:
    config = quick(rounds=1)
    run = FinishedRun(replace(config, candidates=replace(config.candidates, mode="best_of_n", n=6, per_prompt=1)), store)
    record = run.rounds[1]
    rewards = {row["candidate_id"]: row["reward_chosen"] - row["reward_rejected"] for row in record.rewards}
    for candidate in record.candidates:
        if candidate.parsed:
            high, low = candidate.meta["rewards"]
            assert rewards[candidate.candidate_id] == pytest.approx(high - low, abs=1e-4) and high >= low
    unfit = {c.candidate_id: c.meta["unfit"] for c in record.candidates if c.meta.get("unfit")}
    assert unfit and {decision.candidate_id: decision.reason for decision in record.decisions if decision.candidate_id in unfit} == unfit
    assert any(decision.kept for decision in record.decisions)


def test_the_shift_compares_answers_to_training_prompts(store: Store, tmp_path: Path) -> None:
    """With prompts of a file, one of them held out, the shift compares answers to training prompts, which have a match."""
    run = FinishedRun(quick(min_margin=1e9), store)
    held_out = run.record.model and SparseRM.load(run.record.model).known
    assert held_out and held_out.pairs
    test = held_out.pairs[int(held_out.pairs.rows_of("test")[0])].prompt[0]["content"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("How do I grow leeks?", "Is it hard to ski?", test)))
    other = FinishedRun(quick(prompts=str(tmp_path / "p.jsonl"), min_margin=1e9, rounds=1), store)
    record = other.rounds[1]
    assert record.manifest and (record.manifest["prompts"]["n"], record.manifest["prompts"]["n_held_out"]) == (2, 1)
    assert {candidate.prompt[0]["content"] for candidate in record.candidates} == {"How do I grow leeks?", "Is it hard to ski?"}
    train = {pair.prompt_id for pair, split in zip(held_out.pairs, held_out.pairs.split, strict=True) if split == "train"}
    beside = [row["candidate_id"] for row in read_json_lines(record.steps[CANDIDATES] / "beside.jsonl")]
    assert {candidate_id[:16] for candidate_id in beside} == train and len(beside) == 48
    shift = load_shift(record.steps[SHIFT])
    assert shift.ids and set(shift.ids) <= set(beside)
    assert any(row.measure == "matched" and row.figure for row in shift.rows)
    assert read_json_lines(run.rounds[1].steps[CANDIDATES] / "beside.jsonl") == []


def test_what_cannot_go_together_is_refused_at_once(store: Store) -> None:
    for config, problem in (
        (replace(quick(arm="none"), candidates=replace(quick().candidates, mode="best_of_n")), "best_of_n selects by the reward"),
        (quick(dpo=DPOConfig(evaluation_share=1.0)), "none be trained on"),
        (replace(quick(), candidates=replace(quick().candidates, endpoint="http://localhost:1")), "needs the name of its model"),
    ):
        with pytest.raises(ConfigError, match=problem):
            completed(config, store, lambda _: None)


def test_a_reward_model_without_its_pairs(store: Store, reward_model: Path, tmp_path: Path) -> None:
    model = SparseRM.load(reward_model)
    model.folder = None  # saved without what is kept for explaining
    folder = model.save(tmp_path / "bare")
    with pytest.raises(MissingError, match=r"(?s)does not keep the pairs.*fit it again"):
        run_alignment(completed(quick(model=str(folder)), store, lambda _: None), store, lambda *_, **__: None)


# --- parts ------------------------------------------------------------------------------------------------------------


def pair(number: int, prompt: int) -> PreferencePair:
    return PreferencePair(pair_id=f"p{number}", prompt=({"role": "user", "content": f"q{prompt}"},), chosen="a", rejected="b")


def test_validation_and_training_pairs_share_no_prompt() -> None:
    pairs = [pair(n, n // 2) for n in range(40)]
    split = split_kept(pairs, share=0.1, seed=0)
    sides = {name: {split[int(i)].prompt_id for i in split.rows_of(name)} for name in ("train", "validation")}
    assert len(sides["train"]) == 18 and len(sides["validation"]) == 2 and not sides["train"] & sides["validation"]
    assert split_kept(pairs, share=0.1, seed=1).split != split.split == split_kept(pairs, share=0.1, seed=0).split
    assert set(split_kept(pairs[:2], share=0.5, seed=0).split) == set(split_kept(pairs, share=0.0, seed=0).split) == {"train"}
    assert sorted(split_kept([pair(0, 0), pair(1, 1)], share=0.1, seed=0).split) == ["train", "validation"]


def test_rounds_draw_with_different_seeds() -> None:
    seeds = {round_seed(seed, round) for seed in range(100) for round in range(10)}
    assert len(seeds) == 1000 and round_seed(7, 0) == 7


def test_the_states_kept_are_those_of_the_rewards(run: FinishedRun, reward_model: Path) -> None:
    tensors = load_file(run.rounds[1].steps["align-rewards"] / "states.safetensors")
    again = SparseRM.load(reward_model).rewards_of(tensors["z"][:, 0])
    read = np.isfinite(tensors["rewards"][:, 0])
    assert read.any() and np.allclose(again[read], tensors["rewards"][read, 0], atol=1e-6)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_tiny_preset_from_an_empty_cache(tmp_path: Path) -> None:
    done = run_apart("align", "--preset", "tiny", "--json", SPARSERM_CACHE=tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert len(summary["rounds"]) == 2
    for manifest in summary["rounds"]:
        assert {*COUNTS, "adapter_before", "adapter_after", "seconds", "evaluation"} <= set(manifest)
        assert (
            manifest["kept"] > 0 and manifest["kept"] + manifest["dropped"] == manifest["parsed"] <= manifest["generated"] and manifest["seconds"] > 0
        )
        assert manifest["adapter_before"] != manifest["adapter_after"]
    times = [json.loads(path.read_text())["time_seconds"] for path in (tmp_path / "cache/artefacts").rglob(MANIFEST)]
    assert sum(times) < 60, "two rounds and the fit must take less than a minute"
    assert [path.name for path in (tmp_path / "cache/artefacts").iterdir() if path.name == ROUND] == [ROUND]

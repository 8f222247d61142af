"""The pages Align and Shift in their four states: what they say against what lies on disk, the form against the command line, and the audit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from align_pages_helpers import PAIRS, add_alignment, candidates_of, decisions_of, evaluation_of, rewards_of, shift_of, some_config
from pages_helpers import HOSTILE, ROOT, add_model, open_page, words
from scipy.stats import binomtest
from streamlit.testing.v1 import AppTest

from core.align import audit
from core.align.figures import MEANING, read_measures
from core.align.overoptimisation import RULE
from core.align.presets import ALIGN_PRESETS
from core.align.records import CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, STEPS, alignments, key_of
from core.cli.equal_command import equal_command
from core.cli.main import build_parser
from core.cli.run_command import config_from
from core.config import AlignConfig
from core.explain.drop_reasons import drop_caveats
from core.files import write_json
from core.jobs import start as launching
from core.jobs.kinds import KINDS
from core.runs.events import EventLog
from core.runs.launch import new_run
from core.runs.registry import Run, Status
from core.text_safety import visible
from workbench.align import compare as align_compare
from workbench.align import figures as align_figures
from workbench.align import values as align
from workbench.align.pairs import pairs_of
from workbench.align.samples import change_text
from workbench.frame import estimates, models, state
from workbench.frame.forms import Draft
from workbench.shift import values as shift

UNSURE_OF = {"first": "First is better", "second": "Second is better", "neither": "Neither is better", "unsure": "Unsure"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a reward model by hand, and two finished alignments by it, with and without its filter."""
    root = tmp_path_factory.mktemp("aligned").resolve()
    add_model(root, seed=3)
    folder = models.models(root)[0].path
    add_alignment(root, model=folder, config=some_config(arm="none"))
    add_alignment(root, model=folder)
    return root


@pytest.fixture
def cache(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSERM_CACHE", str(made))
    return made


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path.resolve()))
    return tmp_path.resolve()


@pytest.fixture
def unfinished(empty: Path) -> Iterator[Any]:
    """Makes a run of an alignment whose last round came through some steps: alive, though nobody works on it, or ended."""
    held = []

    def make(state_: str, steps: tuple[str, ...] = STEPS[:3], *, begun: bool = True, said: str = "the disk is full") -> Run:
        add_model(empty, seed=3)
        config = some_config()
        if begun:
            add_alignment(empty, model=models.models(empty)[0].path, config=config, rounds=1, steps=steps, finished=False)
        run, lock = new_run("align", config.to_dict(), empty, None)
        if begun:
            write_json(run.path / "resolved.json", config.to_dict())
        if state_ == "running":
            EventLog(run.events).progress("round 1: train policy", 3, 12, loss=0.654)
            run.write(Status(state="running", attempt=1, queued=1.0, started=2.0, pid=1, devices=("cpu",)))
            held.append(lock)
            return run
        error = {"problem": said, "expected": "2 GB", "found": "1 GB", "remedy": "remove something", "exit_code": 1} if state_ == "failed" else None
        run.write(Status(state=state_, attempt=1, queued=1.0, started=2.0, ended=3.0, error=error))
        lock.release()
        return run

    yield make
    for lock in held:
        lock.release()


def ready(root: Path, arm: str = "sparserm") -> align.Entry:
    return next(one for one in align.entries(root) if one.config.arm == arm)


def fine(at: AppTest) -> AppTest:
    assert not at.exception, [(error.value, error.stack_trace) for error in at.exception]
    assert not at.error, [error.value for error in at.error]
    return at


def metrics(at: AppTest) -> dict[str, tuple[str, str]]:
    return {metric.label: (metric.value, metric.delta) for metric in at.metric}


def button(at: AppTest, label: str) -> Any:
    return next(one for one in at.button if one.label == label)


def labels(at: AppTest) -> set[str]:
    return {one.label for one in at.button}


def in_url(at: AppTest, name: str) -> str:
    value = at.query_params.get(name, "")
    return value[-1] if isinstance(value, list) else value


# --- empty -----------------------------------------------------------------------------------------------------------


def test_an_empty_cache_shows_the_form_that_starts_the_demo(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = fine(open_page("align"))
    assert "see why each pair was dropped" in words(at) and not at.metric
    assert at.code[-1].value == "sparserm align --preset demo --detach"
    started: list[Any] = []
    monkeypatch.setattr(launching, "launch", lambda kind, config, **_: started.append((kind, config)) or "the-run")
    fine(button(at, "Start").click().run())
    assert started == [("align", ALIGN_PRESETS["demo"])] and in_url(at, "align_open") == "the-run"


def test_an_empty_cache_sends_shift_to_align(empty: Path) -> None:
    assert "No policy has been aligned yet" in words(fine(open_page("shift")))


def test_what_is_wrong_is_marked_and_cannot_start(empty: Path) -> None:
    at = fine(open_page("align"))
    rounds = next(box for box in at.number_input if box.label == "Rounds")
    fine(rounds.set_value(0).run())
    assert button(at, "Start").disabled and any("rounds is too small" in one.value for one in at.markdown)
    draft = state.keep(
        "draft", vars(Draft(kind="align", base=ALIGN_PRESETS["demo"].to_dict(), changes={"arm": "none", "candidates.mode": "best_of_n"}))
    )
    at = fine(open_page("align", runs_draft=draft))
    assert button(at, "Start").disabled and "best_of_n selects by the reward itself" in words(at)


@pytest.mark.parametrize("preset", ALIGN_PRESETS)
def test_a_preset_is_one_click_and_one_word(empty: Path, preset: str) -> None:
    at = fine(open_page("align"))
    fine(at.button_group(key="align preset 1").set_value(preset).run())
    words = "" if preset == KINDS["align"].default_preset else f" --preset {preset}"
    assert at.code[-1].value == f"sparserm align{words} --detach"


def test_a_click_on_the_chosen_preset_is_back_to_it(empty: Path) -> None:
    """A row of choices lets go of what is clicked twice: the browser then says that nothing is chosen."""
    at = fine(open_page("align"))
    fine(next(box for box in at.number_input if box.label == "Rounds").set_value(4).run())
    assert "--rounds 4" in at.code[-1].value
    fine(at.button_group(key="align preset 1").set_value(None).run())
    assert at.code[-1].value == "sparserm align --preset demo --detach"


@pytest.mark.parametrize(
    "config",
    [
        *ALIGN_PRESETS.values(),
        replace(ALIGN_PRESETS["demo"], arm="/tmp/a folder", rounds=3, prompts="my file.jsonl", model="/cache/a model", seed=5),
        replace(ALIGN_PRESETS["tiny"], dpo=replace(ALIGN_PRESETS["tiny"].dpo, lr=2e-4, gradient_checkpointing=True, batch_size=2)),
        replace(ALIGN_PRESETS["gemma-2-2b"], fit=replace(ALIGN_PRESETS["gemma-2-2b"].fit, sae=ALIGN_PRESETS["demo"].fit.sae)),
        replace(ALIGN_PRESETS["gemma-2-2b"], candidates=replace(ALIGN_PRESETS["demo"].candidates, mode="best_of_n", min_margin=0.5, seed=9)),
    ],
)
def test_the_command_says_what_the_form_holds(config: AlignConfig) -> None:
    """Read by the command line's own parser, it gives the same configuration."""
    for preset in ("", "demo", "llama-3.1-8b"):
        said = shlex.split(equal_command("align", config, preset))
        assert said[0] == "sparserm" and config_from(build_parser().parse_args(said[1:])) == config


def test_every_field_of_the_config_has_a_widget(empty: Path) -> None:
    at = fine(open_page("align", runs_all="1"))
    shown = len(at.text_input) + len(at.number_input) + len(at.selectbox)

    def count(values: dict[str, Any]) -> int:
        return sum(count(value) if isinstance(value, dict) and value else 1 for value in values.values())

    columns = 1  # a mapping, in one box
    assert shown >= count(ALIGN_PRESETS["demo"].to_dict()) - columns


def test_a_reward_model_of_the_cache_can_be_taken(cache: Path) -> None:
    model = models.models(cache)[0]
    at = fine(open_page("align", align_new="1", runs_all="1"))
    box = next(one for one in at.selectbox if one.label == "Reward model" and one.help)
    fine(box.set_value(str(model.path)).run())
    assert f"--reward-model {model.path}" in " ".join(one.value for one in at.code)
    assert "Reward model: head" not in words(at), "its fit is done"


# --- running, failed -------------------------------------------------------------------------------------------------


def test_a_run_that_was_just_started_is_shown(unfinished: Any) -> None:
    run = unfinished("running", begun=False)
    at = fine(open_page("align", align_open=run.id))
    assert "Cancel" in labels(at) and "Round 1 of 2: training" in next(one.proto.text for one in at.get("progress"))
    fine(open_page("shift", align_open=run.id))


def test_a_running_round_fills_in_step_by_step(unfinished: Any) -> None:
    run = unfinished("running", (CANDIDATES, REWARDS, FILTER))
    at = fine(open_page("align", align_open=run.id))
    counts = counts_of(1)
    assert {name: metrics(at)[name][0] for name in ("Generated", "Parsed", "Kept", "Dropped")} == {name: f"{n:,}" for name, n in counts.items()}
    badges = [one.value for one in at.markdown if "badge[" in one.value]
    assert any("check" in one and "Filter" in one for one in badges) and any("progress_activity" in one and "DPO" in one for one in badges)
    assert any("circle" in one and "Shift" in one for one in badges) and "So far: the base model" in words(at)
    assert "loss 0.654" in words(at) and "Cancel" in labels(at)
    assert "Shift is the last step of a round" in words(fine(open_page("shift", align_open=run.id)))


def test_a_page_is_drawn_again_when_a_step_is_done(unfinished: Any, empty: Path) -> None:
    """What the live panel looks at every second changes with every step, the first one of a fresh run, too."""
    run = unfinished("running", begun=False)
    entry = align.find(run.id, align.entries())
    assert entry is not None and entry.record is None
    seen = [align.signature(entry)]
    write_json(run.path / "resolved.json", some_config().to_dict())
    seen.append(align.signature(entry))
    for steps in ((CANDIDATES,), (CANDIDATES, REWARDS)):
        add_alignment(empty, model=models.models(empty)[0].path, rounds=1, steps=steps, finished=False)
        seen.append(align.signature(entry))
    assert len(set(seen)) == 4 and align.signature(entry) == seen[-1]
    assert align.find(run.id, align.entries()).record is not None


def test_before_the_filter_a_round_says_what_it_waits_for(unfinished: Any) -> None:
    run = unfinished("running", (CANDIDATES,))
    at = fine(open_page("align", align_open=run.id))
    assert metrics(at)["Generated"][0] == f"{PAIRS}" and "Kept" not in metrics(at) and "come with its filter" in words(at)
    for section in ("drops", "audit"):
        fine(open_page("align", align_open=run.id, align_show=section))


@pytest.mark.parametrize("page", ["align", "shift"])
@pytest.mark.parametrize("state_", ["failed", "cancelled"])
def test_a_run_that_did_not_come_through_says_why_and_goes_on(unfinished: Any, monkeypatch: pytest.MonkeyPatch, page: str, state_: str) -> None:
    run = unfinished(state_, said=f"the disk is full {HOSTILE['script']}")
    resumed: list[str] = []
    monkeypatch.setattr(launching, "resume", lambda run: resumed.append(run.id))
    at = fine(open_page(page, align_open=run.id))
    assert ("remove something" in words(at)) == (state_ == "failed")
    assert not any(HOSTILE["script"] in one.value for one in (*at.markdown, *at.caption))
    button(at, "Resume").click().run()
    assert resumed == [run.id]


def test_an_interrupted_alignment_keeps_what_it_had(unfinished: Any) -> None:
    run = unfinished("cancelled", (CANDIDATES, REWARDS, FILTER, DPO))
    at = fine(open_page("align", align_open=key_of(some_config())))
    assert metrics(at)["Kept"][0] == f"{counts_of(1)['Kept']}" and "Resume" in labels(at) and align.find(run.id, align.entries()).run.id == run.id


def test_an_alignment_is_live_while_a_run_works_on_it(unfinished: Any, empty: Path) -> None:
    """Processes of `accelerate launch` are no run: what they finished is shown, and nothing is guessed about them."""
    run = unfinished("running")
    entry = align.find(run.id, align.entries())
    assert entry is not None and entry.live
    shared: dict[str, Any] = {"model": models.models(empty)[0].path, "config": replace(some_config(), seed=9), "rounds": 1, "finished": False}
    key = add_alignment(empty, steps=(CANDIDATES,), **shared)
    other = next(entry for entry in align.entries() if entry.id == key)
    assert not other.live and other.rounds
    drawn = align.signature(other)
    add_alignment(empty, steps=(CANDIDATES, REWARDS), **shared)
    assert align.signature(other) != drawn, "the page is drawn again when a step is done"


def test_the_form_shows_its_estimate_or_why_there_is_none(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    measured: dict[str, Any] = {"seconds": 61.0, "disk": 2e9, "memory": 1e9}
    monkeypatch.setattr(estimates, "estimate", lambda words: asked.append(words) or measured)
    assert "Takes about 1 min 01 s, 2.0 GB on disk and 1.0 GB of memory;" in words(fine(open_page("align")))
    assert asked[0] == ["align", "--preset", "demo"]
    monkeypatch.setattr(estimates, "estimate", lambda words: {"problem": "no such file"})
    assert "no such file" in words(fine(open_page("align")))
    monkeypatch.setattr(estimates, "estimate", lambda words: None)
    assert "Estimating the time; " in words(fine(open_page("align")))


def test_runs_and_the_sidebar_know_alignments(unfinished: Any) -> None:
    run = unfinished("running")
    at = fine(open_page("runs", runs_open=run.id))
    progress = [one.proto.text for one in at.get("progress")]
    assert progress and all("Round 1: train policy" in text and "Downloading" not in text for text in progress)
    assert "Alignment: sparserm · tiny · 2 rounds" in words(at) and any("Alignment" in one.value for one in at.sidebar.caption)
    assert any(one.value == "sparserm align --preset tiny --detach" for one in at.code)


def test_runs_starts_an_alignment_by_the_same_form(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = fine(open_page("runs"))
    fine(at.button_group(key="runs kind 1").set_value("align").run())
    assert in_url(at, "runs_kind") == "align" and at.code[-1].value == "sparserm align --preset demo --detach"
    fine(at.button_group(key="align preset 1").set_value("tiny").run())
    started: list[Any] = []
    monkeypatch.setattr(launching, "launch", lambda kind, config, **_: started.append((kind, config)) or "the-run")
    fine(button(at, "Start").click().run())
    assert started == [("align", ALIGN_PRESETS["tiny"])] and in_url(at, "runs_open") == "the-run"
    assert not any(in_url(at, name) for name in ("runs_kind", "runs_draft", "align_open"))


def test_an_alignment_is_changed_and_run_again_from_runs(unfinished: Any) -> None:
    run = unfinished("failed")
    at = fine(open_page("runs", runs_open=run.id))
    fine(button(at, "Rerun with changes").click().run())
    assert in_url(at, "runs_kind") == "align" and "Made from" in words(at)
    assert sum(one.value == "sparserm align --preset tiny --detach" for one in at.code) == 2, "of the form, and of the run below"
    assert not button(at, "Start").disabled and any(one.label == "See its rounds" for one in at.get("page_link"))


# --- ready: rounds ---------------------------------------------------------------------------------------------------


def counts_of(round: int) -> dict[str, int]:
    """Counted again from the pairs themselves."""
    parsed = [one for one in candidates_of(round) if one.parsed]
    decisions = decisions_of(round, parsed, rewards_of(round))
    kept = sum(one.kept for one in decisions)
    return {"Generated": PAIRS, "Parsed": len(parsed), "Kept": kept, "Dropped": len(parsed) - kept}


@pytest.mark.parametrize("round", [1, 2])
def test_a_round_says_what_became_of_its_pairs(cache: Path, round: int) -> None:
    at = fine(open_page("align", align_open=ready(cache).id, align_round=str(round)))
    counts, shown = counts_of(round), metrics(at)
    assert {name: int(shown[name][0]) for name in counts} == counts
    ends = binomtest(counts["Kept"], counts["Parsed"]).proportion_ci(method="wilson")
    assert shown["Kept"][1] == f"{100 * counts['Kept'] / counts['Parsed']:.0f} ({100 * ends.low:.0f} to {100 * ends.high:.0f}) % of the parsed"


def test_the_pairs_of_a_round_carry_their_fate(cache: Path) -> None:
    record = ready(cache).rounds[1]
    pairs, rewards = pairs_of(record), rewards_of(1)
    assert len(pairs) == PAIRS and pairs[-1].fate == "not parsed" and pairs[-1].why.startswith("not parsed: not in the form")
    assert pairs[0].fate == "too long" and pairs[1].margin is None and pairs[1].fate == "unread by the reward model"
    for one, (w, x) in zip(pairs[2:-1], rewards[2:], strict=True):
        assert one.margin == pytest.approx(w - x) and one.fate == ("kept" if w > x else "margin")


def test_the_chosen_round_is_first_with_its_paired_difference(cache: Path) -> None:
    at = fine(open_page("align", align_open=ready(cache).id))
    first = evaluation_of(0, None)
    figure = evaluation_of(2, first).figures["accuracy"]
    value, delta = metrics(at)["Accuracy, test"]
    moved = figure.difference
    assert value == f"{100 * figure.value:.1f} %" and moved is not None
    assert delta.startswith(f"{100 * moved.value:+.3g} ({100 * moved.low:+.3g} to {100 * moved.high:+.3g})") and f"n = {figure.n}" in delta
    assert "Chosen: round 2 of 2" in words(at)


def test_a_link_to_an_unknown_alignment_shows_no_other(cache: Path) -> None:
    for page in ("align", "shift"):
        at = fine(open_page(page, align_open="../../etc"))
        assert "not in this cache" in words(at) and not at.metric
        assert "not in this cache" not in words(fine(button(at, "Show the newest instead").click().run()))


@pytest.mark.parametrize("asked", ["99", "-1", "x", "<b>"])
def test_wrong_choices_in_a_link_are_passed_over(cache: Path, asked: str) -> None:
    for section in ("rounds", "drops", "audit", "evaluation", "samples", "compare"):
        more = dict.fromkeys(("align_round", "align_drop", "align_case", "align_reason", "align_sample", "align_with"), asked)
        fine(open_page("align", align_open=ready(cache).id, align_show=section, **more))
    fine(open_page("shift", align_open=ready(cache).id, shift_round=asked, shift_point=asked, shift_measure=asked, shift_scale=asked))


# --- ready: drops ----------------------------------------------------------------------------------------------------


def test_drops_are_listed_the_clearest_first_with_their_latents(cache: Path) -> None:
    at = fine(open_page("align", align_open=ready(cache).id, align_show="drops", align_round="1"))
    table, rewards = at.dataframe[0].value, rewards_of(1)
    margins = sorted(w - x for w, x in rewards[2:] if w <= x)
    shown = [value for value in table["Margin"].tolist() if np.isfinite(value)]
    assert shown == pytest.approx(sorted([*margins, float(rewards[0, 0] - rewards[0, 1])])), "the one that was too long was scored, too"
    assert len(table) == counts_of(1)["Dropped"] + 1, "the unparsed one, too"
    said = words(at)
    assert f"scores {abs(margins[0]):.2f} lower" in said and "Latent 10; Latent 11; Latent 12" in said and "the heads disagree on its sign" in said


def test_a_drop_of_a_link_is_shown_in_full_and_as_plain_text(cache: Path) -> None:
    entry = ready(cache)
    for one in pairs_of(entry.rounds[1]):
        if one.fate in ("kept", ""):
            continue
        at = fine(open_page("align", align_open=entry.id, align_show="drops", align_round="1", align_drop=one.candidate.candidate_id))
        texts = [text.value for text in at.text]
        wanted = [one.candidate.chosen, one.candidate.rejected] if one.candidate.parsed else list(one.candidate.raw)
        assert all(visible(text) in texts for text in wanted)
        elsewhere = " ".join(str(each.value) for each in (*at.markdown, *at.caption)) + " ".join(labels(at))
        assert not any(HOSTILE[name] in elsewhere for name in ("script", "image", "markdown", "latex"))


def test_the_reason_can_be_narrowed(cache: Path) -> None:
    at = fine(open_page("align", align_open=ready(cache).id, align_show="drops", align_round="1", align_reason="too long"))
    assert len(at.dataframe[0].value) == 1 and "too long: 900 tokens, at most 512" in words(at)


def test_a_weak_label_is_said_to_be_weak() -> None:
    from core.latents.labels import Label

    named = {10: Label(text="talks of the sea", source="person", index=10)}
    row = {"latent_id": 10, "contribution": -1.0, "deviation": 0.1, "agreed": True, "detection_auroc": 0.79}
    assert "poorly (detection AUROC 0.79)" in drop_caveats(row, named) and drop_caveats({**row, "detection_auroc": 0.8}, named) == ""
    assert "too rare" in drop_caveats({**row, "detection_auroc": None}, named) and drop_caveats(row, {}) == "", "no label, nothing to weaken"


# --- ready: audit ----------------------------------------------------------------------------------------------------


def test_the_audit_is_blind_until_judged_and_counts_judgements(empty: Path) -> None:
    add_model(empty, seed=3)
    key = add_alignment(empty, model=models.models(empty)[0].path)
    at = fine(open_page("align", align_open=key, align_show="audit", align_round="1"))
    (record,) = (record for record in alignments(empty) if record.key == key)
    cases = audit.cases(1, record.rounds[1].candidates, record.rounds[1].decisions, n=20, seed=0)
    spoken = ("intended", "reward +", "reward -", "Latent 10")
    right = {"first": "second", "second": "first"}
    for number, better in enumerate(("first", "second", "neither", "unsure")):
        case = cases[number]
        shown = words(at).replace(visible(case.first), "").replace(visible(case.second), "")
        assert not any(word in shown for word in spoken), "nothing tells which one was to win"
        fine(button(at, UNSURE_OF[better]).click().run())
        assert any(word in words(at) for word in spoken)
        intended = "first" if case.first_is_intended else "second"
        verdict = {intended: "disagrees", right[intended]: "agrees"}.get(better, better)
        assert [one.verdict for one in audit.judgements(record.folder)][number] == {"disagrees": "intended", "agrees": "other"}.get(verdict, verdict)
        fine(button(at, "Next pair").click().run())
    said = audit.judgements(record.folder)
    agree = sum(one.verdict in ("other", "neither") for one in said)
    ends = binomtest(agree, 3).proportion_ci(method="wilson")
    assert metrics(at)["Agreement, round 1"] == (
        f"{100 * agree / 3:.1f} %",
        f"{100 * ends.low:.1f} % to {100 * ends.high:.1f} %, n = 3 judged, 1 unsure",
    )
    again = fine(open_page("align", align_open=key, align_show="audit", align_round="1"))
    assert "4 of" in words(again), "a reload loses nothing"


def test_an_arm_without_drops_by_margin_has_nothing_to_judge(cache: Path) -> None:
    at = fine(open_page("align", align_open=ready(cache, "none").id, align_show="audit"))
    assert "No pair of this round was dropped by its margin" in words(at) and not any("better" in one for one in labels(at))


# --- ready: evaluation, samples, arms --------------------------------------------------------------------------------


def test_every_figure_has_words_and_equals_the_evaluation(cache: Path) -> None:
    assert set(align_figures.FIGURES) == set(MEANING)
    found = align_figures.curves(ready(cache).rounds)
    first = evaluation_of(0, None)
    for round in (0, 1, 2):
        told = (evaluation_of(round, first if round else None)).to_json()["figures"]
        for name, figure in told.items():
            point = align_figures.point_of(found, name, round)
            assert point is not None and {part: point[part] for part in figure} == figure


def test_warnings_and_their_rule_are_shown_in_the_engines_words(cache: Path) -> None:
    at = fine(open_page("align", align_open=ready(cache).id, align_show="evaluation"))
    first = evaluation_of(0, None)
    expected = [f"Round {round}: {one.text}." for round in (1, 2) for one in evaluation_of(round, first).warnings]
    assert len(expected) >= 2 and all(any(text in one.value for one in at.warning) for text in expected)
    assert RULE in words(at) and "asked in the format qa" in words(at)


def test_samples_lie_side_by_side_and_step_on(cache: Path) -> None:
    at = fine(open_page("align", align_open=ready(cache).id, align_show="samples", align_round="1"))
    texts = [text.value for text in at.text]
    assert f"{HOSTILE['script']} answer 0" in texts and f"{HOSTILE['script']} answer 1" in texts and "1 of 8" in words(at)
    assert "Reward +0.10" in words(at)
    fine(next(one for one in at.button if one.key == "sample Next prompt").click().run())
    assert f"{HOSTILE['image']} answer 1" in [text.value for text in at.text] and in_url(at, "align_sample") == "2"


def test_an_answer_that_was_cut_is_said_to_be() -> None:
    whole, cut = ({"response": text, "reward": 0.5, "n_tokens": 9, "finished": text == "a"} for text in "ab")
    assert "Cut at the limit after" in change_text(whole, cut) and "Cut" not in change_text(whole, whole)


def test_two_arms_are_laid_side_by_side(cache: Path) -> None:
    at = fine(open_page("align", align_open=ready(cache).id, align_show="compare"))
    table = at.dataframe[-1].value
    assert set(table["Arm"]) == {"SparseRM filter", "No filter"} and "differ in more than the arm" not in words(at)
    kept = {arm: sum(counts_by_arm(round, arm)[1] for round in (1, 2)) for arm in ("sparserm", "none")}
    parsed = sum(counts_by_arm(round, "none")[0] for round in (1, 2))
    said = dict(zip(table["Arm"], table["Kept of parsed"], strict=True))
    assert said == {"SparseRM filter": f"{kept['sparserm']} of {parsed}", "No filter": f"{kept['none']} of {parsed}"}


def test_two_arms_are_paired_item_by_item(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = fine(open_page("align", align_open=ready(cache).id, align_show="compare"))
    assert "SparseRM filter" in words(at) and "after round 2" in words(at)
    table = at.dataframe[-2].value.set_index("Figure")
    own, other = ready(cache), next(one for one in align.entries(cache) if one.config.arm == "none")
    found = align_figures.leads(own.rounds[-1], other.rounds[-1])
    assert set(table.index) == {align_figures.FIGURES[name].title for name in found} and {"reward", "accuracy", "mc1_unseen"} <= set(found)
    later = align_figures.leads(own.rounds[-1], other.rounds[-2])["accuracy"]
    after, before = (read_measures(one.steps[EVALUATION])["accuracy"].values for one in (own.rounds[-1], other.rounds[-2]))
    assert later.value == pytest.approx((after - before).mean()) and later.value < 0 and later.low <= later.value <= later.high and later.n == 60
    monkeypatch.setattr(align_compare, "differ_in_arm_only", lambda *_: False)
    assert "after round 2" not in words(fine(open_page("align", align_open=own.id, align_show="compare")))


def counts_by_arm(round: int, arm: str) -> tuple[int, int]:
    parsed = [one for one in candidates_of(round) if one.parsed]
    return len(parsed), sum(one.kept for one in decisions_of(round, parsed, rewards_of(round), arm))


def test_arms_that_differ_in_more_are_said_to() -> None:
    def entry(**changes: Any) -> align.Entry:
        return align.Entry(id="a", config=some_config(**changes), record=None)

    assert align_compare.differ_in_arm_only(entry(), entry(arm="random", seed=3)) and not align_compare.differ_in_arm_only(entry(), entry(rounds=4))


def test_one_alignment_alone_offers_the_other_arm(unfinished: Any) -> None:
    unfinished("cancelled", STEPS)
    at = fine(open_page("align", align_show="compare"))
    fine(button(at, "Start the same without a filter").click().run())
    assert any(one.value == "sparserm align --preset tiny --arm none --detach" for one in at.code)


# --- ready: Shift ----------------------------------------------------------------------------------------------------


def test_shift_draws_the_rounds_own_cosines(cache: Path) -> None:
    found = shift.shifts(ready(cache).rounds)
    assert list(found) == [1, 2]
    for measure in shift.MEASURES:
        for scale in shift.SCALES:
            series = shift.series(found, measure, scale)
            leads = shift.series(found, measure, scale, lead=True)
            assert set(series) == {"sparse", "dense", "random-isotropic", "random-rows"} and set(leads) == set(series) - {"sparse"}
            rows = {(r, row.space): row for r in (1, 2) for row in shift_of(r).rows if (row.measure, row.scale) == (measure, scale)}
            assert all(point["value"] == rows[point["round"], space].figure.value for space, points in series.items() for point in points)
            assert all(point["low"] == rows[point["round"], space].lead.low for space, points in leads.items() for point in points)
    fine(open_page("shift", align_open=ready(cache).id, shift_measure="nearest", shift_scale="standardised"))


def test_shift_says_only_what_its_intervals_bear() -> None:
    """By hand: the sparse space leads dense states by 0.1 +- 0.06, directions by 0.01 +- 0.06, and trails rows by 0.05 +- 0.06."""
    assert shift.verdict({1: shift_of(1)}, "centroid", "raw") == (
        "In the sparse space the training data lie clearly nearer than in dense states, seen from the answers generated in round 1."
    )
    rows = [replace(row, lead=row.lead and replace(row.lead, low=-0.2, high=-0.1)) for row in shift_of(1).rows]
    assert "clearly further away than in dense states, random directions and random decoder rows" in shift.verdict(
        {1: replace(shift_of(1), rows=tuple(rows))}, "centroid", "raw"
    )
    level = [replace(row, lead=row.lead and replace(row.lead, low=-0.1, high=0.1)) for row in shift_of(1).rows]
    assert "neither clearly nearer" in shift.verdict({1: replace(shift_of(1), rows=tuple(level))}, "centroid", "raw")


def test_without_training_prompts_nothing_is_matched() -> None:
    found = {1: shift_of(1, matched=False)}
    assert shift.measures(found) == ["centroid", "pairwise", "nearest"] and shift.no_matched(found)
    assert shift.series(found, "matched", "raw") == {} and not shift.no_matched({1: shift_of(1)})


def test_points_stand_for_their_texts(cache: Path) -> None:
    entry = ready(cache)
    points = shift.points_of(entry, entry.rounds[2])
    model = models.models(cache)[0]
    assert points.points[0].text == model.pairs[0].chosen and points.points[2].text == model.pairs[0].rejected
    generated = [one for one in pairs_of(entry.rounds[2]) if one.candidate.parsed and one.margin is not None]
    assert [one.text for one in points.points[4:8]] == [text for one in generated[:2] for text in (one.candidate.chosen, one.candidate.rejected)]
    assert points.groups("fate")[4:6] == [f"generated, {'kept' if generated[0].fate == 'kept' else 'dropped'}"] * 2
    assert points.groups("kind")[:6] == ["training chosen"] * 2 + ["training rejected"] * 2 + ["generated intended winner", "generated other"]
    assert not any("<script" in text or "<img" in text for text in points.texts)
    at = fine(open_page("shift", align_open=entry.id, shift_point="5"))
    assert points.points[5].text in [text.value for text in at.text]
    at = fine(open_page("shift", align_open=entry.id, shift_point="0", shift_colour="fate"))
    assert model.pairs[0].chosen in [text.value for text in at.text]


# --- damage, and the process -----------------------------------------------------------------------------------------


def test_a_damaged_artefact_is_said_with_the_way_out(unfinished: Any, empty: Path) -> None:
    unfinished("cancelled", STEPS)
    entry = align.entries(empty)[0]
    (entry.rounds[1].steps[EVALUATION] / "evaluation.json").write_text("{")
    at = open_page("align")
    assert not at.exception and "is damaged" in words(at) and "cache verify" in words(at)


def test_a_reward_model_that_is_gone_leaves_the_drops_readable(empty: Path) -> None:
    key = add_alignment(empty, model=empty / "gone")
    at = fine(open_page("align", align_open=key, align_show="drops"))
    assert "Latent 10" in words(at)
    at = fine(open_page("shift", align_open=key, shift_point="0"))
    assert "not in the cache any more" in words(at)


def test_another_versions_alignment_is_in_nobodys_way(empty: Path) -> None:
    key = add_alignment(empty, model=empty / "gone")
    ledger = empty / "alignments" / key / "ledger.json"
    said = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({**said, "config": {**said["config"], "unheard_of": 1}}))
    assert align.entries(empty) == []
    fine(open_page("align"))


def test_reading_an_alignment_loads_no_engine(cache: Path) -> None:
    heavy = {"torch", "transformers", "sae_lens", "trl", "peft", "sklearn"}
    visits = [("align", {"align_show": one}) for one in ("rounds", "drops", "audit", "evaluation", "samples", "compare")]
    visits += [("align", {"align_new": "1", "runs_all": "1"}), ("shift", {"shift_point": "5"})]
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pages_helpers import open_page
for page, ids in {visits!r}:
    at = open_page(page, **ids)
    assert not at.exception and not at.error, (page, ids, [e.value for e in at.exception])
print(sorted(set(sys.modules) & {heavy!r}))
"""
    # The helper makes reward models by hand and needs torch for nothing; it must not be what loads it.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "SPARSERM_CACHE": str(cache)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"

"""Forms from configs, the equal command, progress by files, and what a run's removal frees."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import wait_for
from runs_helpers import WORKER, NapConfig, start, wait_state

from core.backbone.presets import PRESETS, preset
from core.cli.main import build_parser
from core.cli.options import options_of
from core.cli.run_command import config_from
from core.config import Config, DataConfig, FitConfig, SAETrainConfig
from core.errors import ConfigError
from core.fit.defaults import complete
from core.jobs import start as launching
from core.runs.space import disk_used, made_only_by, remove_artefacts
from core.runs.store import Store
from workbench.frame import estimates, forms, progress, run_panel, run_words, state
from workbench.frame.forms import Draft


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    monkeypatch.setattr(launching, "WORKER", WORKER)
    return tmp_path.resolve()


def parsed(command: str) -> Config:
    """The config that `sparserm` makes of a command, up to what it fills in."""
    words = shlex.split(command)
    assert words[0] == "sparserm" and words[-1] == "--detach"
    arguments = build_parser().parse_args(words[1:])
    return config_from(arguments)


CHANGES: list[tuple[str, dict[str, str]]] = [
    ("fit", {}),
    ("fit", {"selection.k": "64", "head.lr": "3e-4", "data.pairs": "my pairs; rm -rf.jsonl", "data.columns": "prompt=question, chosen=a"}),
    ("fit", {"sae.path": "/some/where", "data.seed": "3", "selection.seed": "4", "backbone.revision": "abc", "sae.format": "sae-lens"}),
    ("fit", {"curve": "4, 8", "data.ratios": "0.5,0.2,0.3", "random_draws": "2"}),
    ("sweep", {"layers": "9,16", "saes": "a,b", "ks": "8", "fit.head.hidden": "64"}),
    ("sae-train", {"width": "64", "backbone.layer": "3", "corpus": "a.jsonl,b.jsonl"}),
    ("pairs", {"data.pairs": "x.csv", "data.protocol": "truthfulqa"}),
]


@pytest.mark.parametrize(("kind", "changes"), CHANGES)
def test_the_command_makes_the_same_config(kind: str, changes: dict[str, str]) -> None:
    draft = Draft(kind=kind, changes=changes)
    config, errors = draft.built()
    assert errors == {}
    filled = forms.Filled(draft=draft, config=config, errors=errors)
    assert parsed(filled.command) == config


def test_the_command_of_another_preset_and_of_a_rerun() -> None:
    gemma = Draft(kind="fit", preset="gemma-2-2b", changes={"selection.k": "16"})
    filled = forms.Filled(draft=gemma, config=gemma.built()[0], errors={})
    assert "--preset gemma-2-2b --k 16" in filled.command and parsed(filled.command) == filled.config
    rerun = Draft(kind="fit", base=PRESETS["gemma-2-2b"].to_dict(), parent="some run")
    filled = forms.Filled(draft=rerun, config=rerun.built()[0], errors={})
    assert "--preset gemma-2-2b" in filled.command and parsed(filled.command) == PRESETS["gemma-2-2b"]


def test_the_command_names_what_differs_from_its_own_start() -> None:
    """Another model's command starts from the plain defaults or from a preset; whichever, it says the same config."""
    draft = Draft(kind="fit", changes={"backbone.model": "org/other"})
    filled = forms.Filled(draft=draft, config=draft.built()[0], errors={})
    assert filled.config.selection.k == 32 and parsed(filled.command) == filled.config
    paper = Draft(kind="fit", changes={"backbone.model": "org/other", "backbone.position": "response_end", "backbone.also_read": ""})
    filled = forms.Filled(draft=paper, config=paper.built()[0], errors={})
    assert filled.config.backbone.position == "response_end" and parsed(filled.command) == filled.config


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("selection.k", "0", "k is too small; expected >= 1"),
        ("selection.k", "many", "expected a whole number"),
        ("head.lr", "fast", "expected a number"),
        ("data.ratios", "0.9,0.9,0.9", "expected train > 0"),
        ("data.columns", "prompt", "expected a OUR=YOURS"),
        ("backbone.dtype", "int3", "expected auto | bfloat16"),
        ("nobody.knows", "1", "has no field nobody"),
    ],
)
def test_what_a_field_refuses_stands_beside_it(path: str, text: str, said: str) -> None:
    config, errors = Draft(kind="fit", changes={"head.hidden": "7", path: text}).built()
    assert said in errors[path]
    assert config == replace(PRESETS["smollm2-135m"], head=replace(PRESETS["smollm2-135m"].head, hidden=7))  # the rest counts


def test_every_field_has_a_widget() -> None:
    """A field of a kind that forms can't draw would be noticed by nobody."""
    for kind in ("fit", "sweep", "sae-train", "pairs"):
        config = Draft(kind=kind).start()
        drawn = [path for rows in forms.field_groups(config).values() for path, _, _ in rows]
        assert set(forms.kind_of(kind).first_fields) <= set(drawn) and len(drawn) == len(set(drawn))
        for path in drawn:
            owner, spec = forms.field_at(config, path)
            forms.changed(config, path.split("."), forms.as_text(getattr(owner, spec.name)))


def test_drafts_come_from_the_url_only_if_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "mine": state.keep("draft", vars(Draft(kind="fit", changes={"selection.k": "9"}))),
        "other kind": state.keep("draft", vars(Draft(kind="sweep"))),
        "other version": state.keep("draft", vars(Draft(kind="fit", base={"gone": 1}))),
        "no draft": state.keep("draft", [1]),
    }
    found = {}
    for name, kept in names.items():
        monkeypatch.setattr(forms.state, "get", lambda _, kept=kept: kept)
        found[name] = forms.draft_of("fit")
    assert found["mine"].changes == {"selection.k": "9"}
    assert [found[name] for name in ("other kind", "other version", "no draft")] == [Draft(kind="fit")] * 3


def test_the_toy_is_complete_without_its_parts(cache: Path) -> None:
    """So that a page can start it: making the parts needs torch."""
    made = complete(PRESETS["tiny"], Store(cache), print)
    assert made == complete(preset("tiny", root=cache / "models"), Store(cache), print)
    assert Path(made.data.pairs).is_file() and Path(made.sae.path).is_dir()
    assert complete(replace(PRESETS["tiny"], data=DataConfig(pairs=made.data.pairs, limit=5)), Store(cache), print).data.limit == 5


def test_options_of_what_was_not_changed() -> None:
    assert options_of(FitConfig(), FitConfig()) == []
    assert options_of(FitConfig(), PRESETS["gemma-2-2b"])[:2] == ["--model", "smollm2-135m"]  # an SAE can't be unnamed by an option


# --- runs ----------------------------------------------------------------------------------------------------------------


def test_a_follower_reads_news_and_starts_again_with_an_attempt(cache: Path) -> None:
    run = start(cache, looks=4)
    wait_state(run, "succeeded")
    follower = progress.follow(run)
    assert [step.name for step in follower.steps] == ["nap"] and follower.steps[0].done and follower.steps[0].fraction == 1.0
    lines = run.events.read_text()
    with run.events.open("a") as events:
        for line in (
            {"t": 1, "event": "state", "state": "queued", "attempt": 2},
            {"t": 2, "event": "progress", "step": "first", "fraction": 0.0, "seconds": 0.1, "left": None, "figures": {"loss": 3.0, "name": "x"}},
            {"t": 3, "event": "progress", "step": "first", "fraction": 0.2, "seconds": 0.2, "left": 4.0, "figures": {"loss": 2.0}},
            {"t": 4, "event": "progress", "step": "first", "fraction": 0.4, "seconds": 0.3, "left": 2.0, "figures": {"loss": 1.0}},
            {"t": 5, "event": "progress", "step": "second", "fraction": None, "seconds": 0.0, "left": None, "figures": {}},
        ):
            events.write(json.dumps(line) + "\n")
    assert progress.follow(run) is follower and len(lines) < run.events.stat().st_size
    assert [(step.name, step.done) for step in follower.steps] == [("first", True), ("second", False)]
    assert follower.series["first: loss"] == [(2.0, 3.0), (3.0, 2.0), (4.0, 1.0)]


def test_the_log_is_read_from_its_end(cache: Path) -> None:
    run = start(cache)
    wait_state(run, "succeeded")
    run.log.write_bytes(b"a" * 100_000 + b"\xff the end")
    tail = progress.log_tail(run)
    assert len(tail) <= 60_000 and tail.endswith("the end")


def test_a_run_is_found_by_what_was_asked(cache: Path) -> None:
    first, second = start(cache, looks=1), start(cache, looks=1)
    other = start(cache, looks=2)
    for run in (first, second, other):
        wait_state(run, "succeeded")
    found = run_panel.find("nap", NapConfig(looks=1))
    assert found is not None and found.id == second.id
    assert run_panel.find("nap", NapConfig(looks=3)) is None
    (cache / "runs" / second.id / "config.json").write_text("{}")
    damaged = run_panel.find("nap", NapConfig(looks=1))
    assert damaged is not None and damaged.id == first.id
    assert run_panel.find_id("../runs") is None and run_words.title(second) == "unreadable"


def test_artefacts_that_only_one_run_made(cache: Path) -> None:
    run, twin, other = start(cache, seed=1), start(cache, seed=1), start(cache, seed=2)
    for one in (run, twin, other):
        wait_state(one, "succeeded")
    assert made_only_by(run) == [] and [path.name for path in made_only_by(other)] == [Path(other.result()["artefact"]).name]
    result = json.loads((other.path / "result.json").read_text())
    outside = cache.parent / "outside"
    outside.mkdir()
    result["artefacts"].append({**result["artefacts"][0], "path": str(outside)})
    (other.path / "result.json").write_text(json.dumps(result))
    before = disk_used(cache)["Artefacts"]
    freed = remove_artefacts(other)
    assert outside.is_dir() and freed > 0 and disk_used(cache)["Artefacts"] == before - freed


# --- estimates -----------------------------------------------------------------------------------------------------------


def test_an_estimate_is_made_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "fake.py"
    fake.write_text("import sys\nopen(sys.argv[1], 'a').write('x')\nprint('loading')\nprint('{\"seconds\": 3.0, \"memory\": 1.0, \"disk\": 2.0}')")
    asked: list[list[str]] = []

    def run(command: list[str], **more: Any) -> Any:
        asked.append(command)
        return original([sys.executable, str(fake), str(tmp_path / "count")], **more)

    original = estimates.subprocess.run
    monkeypatch.setattr(estimates.subprocess, "run", run)
    found = wait_for(lambda: estimates.estimate(["fit", "--k", "3"]))
    assert found == {"seconds": 3.0, "memory": 1.0, "disk": 2.0} == estimates.estimate(["fit", "--k", "3"])
    assert (tmp_path / "count").read_text() == "x" and asked[0][-5:] == ["fit", "--k", "3", "--estimate", "--json"]


def test_a_failed_estimate_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    found = wait_for(lambda: estimates.estimate(["fit", "--k", "nothing"]), seconds=60)
    assert "whole number" in found["problem"]


def test_estimates_that_nobody_waits_for_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []
    monkeypatch.setattr(estimates, "measured_estimate", lambda words: made.append(words) or {"seconds": 1.0})
    monkeypatch.setattr(estimates, "WANTED", 0.05)
    with estimates.one_at_a_time:  # another one is being made
        assert estimates.estimate(["a"]) is None
        time.sleep(0.1)
    wait_for(lambda: not estimates.begun)
    assert made == []


def test_complaints_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_panel.st, "session_state", {})
    assert run_panel.start("fit", SAETrainConfig()) == ""
    said = run_panel.complaint()
    assert said is not None and "needs another config" in said["problem"] and run_panel.complaint() is None
    with pytest.raises(ConfigError):
        launching.launch("fit", SAETrainConfig())

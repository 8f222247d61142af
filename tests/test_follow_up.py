"""What follows a run by itself: in a row, once, whatever becomes of one of them; killed, cancelled and resumed; what the command line prints."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import wait_for
from runs_helpers import FOLLOWING, NAP, WORKER, NapConfig, dreamt, napping, wait_state

from core.backbone.presets import PRESETS
from core.cli.equal_command import equal_command
from core.cli.main import build_parser
from core.config import Config, DoctorRunConfig, LatentsRunConfig, SpacesRunConfig
from core.jobs import follow_up
from core.jobs import start as launching
from core.jobs.follow_up import FOLLOW_UPS, follow_up_names, follow_up_runs, follow_ups_after, preparation, seconds_after
from core.jobs.start import launch, resume
from core.runs import launch as run_launch
from core.runs.launch import cancel
from core.runs.registry import Run, all_runs
from core.runs.store import HOLD

# The naps that follow a nap: the second one fails.
NAPS: list[dict[str, Any]] = [{"seed": 11}, {"seed": 12, "deed": "refuse"}, {"seed": 13}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    monkeypatch.setenv(FOLLOWING, json.dumps(NAPS))
    monkeypatch.setattr(launching, "WORKER", WORKER)
    return tmp_path.resolve()


@pytest.fixture
def nap_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The naps of NAPS as what follows a run, in this process too."""
    monkeypatch.setattr(follow_up, "FOLLOW_UPS", tuple(napping(NapConfig(**fields)) for fields in NAPS))


def nap(cache: Path, **fields: Any) -> Run:
    return Run(cache / "runs" / launch("nap", NapConfig(**fields), root=cache, prepare_pages=True))


def ended(fit: Run, n: int = len(NAPS)) -> list[Run]:
    """The runs that follow this one, when all of them have ended."""
    runs = wait_for(lambda: runs if len(runs := follow_up_runs(fit)) == n and not any(run.live() for run in runs) else None, 60)
    return list(runs)


def seeds(runs: list[Run]) -> list[int]:
    return [run.config()["seed"] for run in runs]


# --- the worker ----------------------------------------------------------------------------------------------------


def test_they_work_in_a_row_and_one_that_fails_stops_no_other(cache: Path) -> None:
    fit = nap(cache)
    assert fit.prepares_pages and fit.prepared_for is None
    wait_state(fit, "succeeded")
    assert len(follow_up_runs(fit)) == 3, "who sees that the fit has succeeded sees what follows it"
    runs = ended(fit)
    assert seeds(runs) == [11, 12, 13]
    statuses = [run.status() for run in runs]
    assert [status.state for status in statuses] == ["succeeded", "failed", "succeeded"]
    fit_ended = fit.status().ended or 0
    assert fit_ended <= (statuses[0].started or 0) + 0.5
    assert all((before.ended or 0) <= (after.started or 0) + 0.2 for before, after in itertools.pairwise(statuses))
    assert not any(run.prepares_pages for run in runs) and all(run.summary()["prepared_for"] == fit.id for run in runs)
    figures = preparation(fit)
    assert figures["first_explanation"] == pytest.approx(fit_ended - fit.asked["created"]) and figures["all_pages"] is None
    assert [row["state"] for row in figures["runs"]] == ["succeeded", "failed", "succeeded"]
    assert "follows as run" in fit.events.read_text()


def test_nothing_is_started_twice(cache: Path) -> None:
    """What stands in the cache is not made again by the next fit; what failed is tried again."""
    ended(nap(cache))
    second = nap(cache, seed=1)
    wait_state(second, "succeeded")
    assert seeds(ended(second, 1)) == [12] and "Nap: found in the store" in second.events.read_text()


def test_what_is_being_made_is_not_started_again(cache: Path, nap_table: None) -> None:
    fit, busy = Run(cache / "runs" / launch("nap", NapConfig(), root=cache)), launch("nap", NapConfig(seed=11, looks=100_000), root=cache)
    wait_state(fit, "succeeded")
    busy_naps = (napping(NapConfig(seed=11, looks=100_000)),)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow_up, "FOLLOW_UPS", busy_naps)
        follow_up.start_follow_ups(fit, Path((fit.result() or {})["artefact"]), WORKER, lines.append, lines.append)
    assert lines == ["Nap: has been started already"] and follow_up_runs(fit) == []
    cancel(Run(cache / "runs" / busy))


def test_an_attempt_that_has_started_them_starts_none_again(cache: Path, nap_table: None) -> None:
    """As where a worker is killed between starting them and noting its end, and the fit is resumed."""
    fit = nap(cache)
    wait_state(fit, "succeeded")
    ended(fit)
    fit.write(replace(fit.written(), state="running"))
    wait_for(lambda: fit.status().state == "interrupted")
    resume(fit)
    wait_state(fit, "succeeded")
    assert seeds(follow_up_runs(fit)) == [11, 12, 13]


def test_one_that_can_not_be_launched_is_a_warning(cache: Path, nap_table: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Run(cache / "runs" / launch("nap", NapConfig(), root=cache))
    wait_state(fit, "succeeded")
    monkeypatch.setattr(run_launch, "SPARE_DISK", 1e18)
    lines: list[str] = []
    follow_up.start_follow_ups(fit, Path((fit.result() or {})["artefact"]), WORKER, lines.append, lines.append)
    assert len(lines) == 3 and all(line.startswith("Nap does not follow: the disk of") and "sparserm cache clean" in line for line in lines)


def test_a_fit_that_is_killed_starts_them_when_it_is_resumed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOLD, "nap@0.5")
    fit = nap(cache)
    wait_for(lambda: (fit.path / "held").exists(), 60)
    os.kill(fit.status().pid or 0, signal.SIGKILL)
    wait_for(lambda: fit.status().state == "interrupted")
    assert all_runs(cache) == [] or [run.id for run in all_runs(cache)] == [fit.id]
    monkeypatch.delenv(HOLD)
    resume(fit)
    wait_state(fit, "succeeded")
    assert seeds(ended(fit)) == [11, 12, 13]


def test_a_fit_that_is_cancelled_starts_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOLD, "nap@0.5")
    fit = nap(cache)
    wait_for(lambda: (fit.path / "held").exists(), 60)
    assert cancel(fit).state == "cancelled"
    assert [run.id for run in all_runs(cache)] == [fit.id]


def test_cancelling_or_killing_one_leaves_the_others(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLLOWING, json.dumps([{"seed": 21, "looks": 100_000}, {"seed": 22}, {"seed": 23, "looks": 100}, {"seed": 24}]))
    fit = nap(cache)
    wait_state(fit, "succeeded")
    runs = follow_up_runs(fit)
    wait_state(runs[0], "running")
    cancel(runs[1])
    cancel(runs[0])
    os.kill(wait_state(runs[2], "running").pid or 0, signal.SIGKILL)
    assert [run.status().state for run in ended(fit, 4)] == ["cancelled", "cancelled", "interrupted", "succeeded"]
    resume(runs[2])
    wait_state(runs[2], "succeeded")
    resume(runs[1])
    wait_state(runs[1], "succeeded")
    assert preparation(fit)["all_pages"] is None, "the first is cancelled"


def test_two_fits_queue_with_what_follows_them(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLLOWING, json.dumps([{"seed": 31}, {"seed": 32}]))
    first = nap(cache, looks=30, pause=0.05)
    monkeypatch.setenv(FOLLOWING, json.dumps([{"seed": 41}, {"seed": 42}]))
    second = nap(cache, seed=1)
    runs = [first, second]
    for fit in (first, second):
        wait_state(fit, "succeeded")
        runs += ended(fit, 2)
    order = sorted(runs, key=lambda run: run.status().started or 0)
    assert seeds(order) == [0, 1, 31, 32, 41, 42], "the second fit was asked for before what follows the first one"
    assert all((a.status().ended or 0) <= (b.status().started or 0) + 0.2 for a, b in itertools.pairwise(order))
    figures = preparation(first)
    assert figures["all_pages"] > figures["first_explanation"] > 0


# --- the table -----------------------------------------------------------------------------------------------------


def test_what_follows_every_fit() -> None:
    assert [line.kind for line in FOLLOW_UPS] == ["doctor", "spaces", "latents", "fit"]
    configs = [line.config("/model") for line in follow_ups_after(PRESETS["tiny"])]
    assert configs == [DoctorRunConfig(model="/model"), SpacesRunConfig(model="/model"), LatentsRunConfig(model="/model")]
    assert follow_up_names(PRESETS["tiny"]) == ["Doctor", "Spaces", "Latents' pages"] and seconds_after(PRESETS["tiny"]) > 60


def test_a_control_fit_follows_the_demo() -> None:
    """It follows the preset itself, and not a fit that was changed."""
    demo, control = PRESETS["smollm2-135m"], PRESETS["smollm2-135m-paper"]
    assert len(follow_ups_after(replace(demo, curve=(4, 8)))) == 3
    assert [line.kind for line in follow_ups_after(demo)] == ["doctor", "spaces", "latents", "fit"]
    assert follow_up_names(demo)[3] == "Control fit"
    assert follow_ups_after(demo)[3].config("/model") == control
    assert len(follow_ups_after(PRESETS["tiny"])) == 3 and seconds_after(demo) == seconds_after(PRESETS["tiny"])


def test_a_fit_counts_as_present_while_its_model_stands(cache: Path) -> None:
    config: Config = PRESETS["tiny"]
    run, lock = run_launch.new_run("fit", config.to_dict(), cache, None)
    lock.release()
    model = cache / "model"
    (run.path / "result.json").write_text(json.dumps({"artefact": str(model)}))
    folder: Any = type("Folder", (), {"root": cache})()
    assert not follow_up.has_fit(folder, config)
    run.write(replace(run.written(), state="succeeded"))
    assert not follow_up.has_fit(folder, config), "its model is gone"
    model.mkdir()
    assert follow_up.has_fit(folder, config) and not follow_up.has_fit(folder, PRESETS["smollm2-135m"])


def test_the_naps_of_these_tests_are_found(cache: Path) -> None:
    fit = nap(cache)
    ended(fit)
    folder: Any = type("Folder", (), {"root": cache})()
    assert [dreamt(folder, NapConfig(**fields)) for fields in NAPS] == [True, False, True] and NAP.disk(NapConfig(), cache) > 0


# --- the command line ----------------------------------------------------------------------------------------------


def test_the_option_does_not_touch_the_config(cache: Path) -> None:
    arguments = build_parser().parse_args(["fit", "--prepare-pages"])
    assert arguments.prepare_pages and not build_parser().parse_args(["fit"]).prepare_pages
    assert not build_parser().parse_args(["doctor", "M"]).prepare_pages
    command = equal_command("fit", PRESETS["smollm2-135m"], prepare_pages=True)
    assert command == "sparserm fit --prepare-pages --detach" and build_parser().parse_args(shlex.split(command)[1:]).prepare_pages


def as_naps(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Makes `sparserm fit` launch a nap instead."""
    from core.cli import run_command

    monkeypatch.setattr(run_command, "launch", lambda kind, config, **more: launch("nap", NapConfig(**fields), **more))


def test_the_command_prints_the_outcome_and_what_goes_on(cli: Any, cache: Path, nap_table: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLLOWING, json.dumps([{"seed": 11, "looks": 100_000}, {"seed": 12}]))
    as_naps(monkeypatch)
    code, out, _ = cli("fit", "--prepare-pages")
    fit = all_runs(cache)[0]
    first, second = follow_up_runs(fit)
    short = first.id.rpartition("_")[2]
    assert code == 0 and first.live() and "slept" in out, "the outcome is printed while the pages are being prepared"
    assert f"one after another: Nap ({short}), Nap ({second.id.rpartition('_')[2]})" in out
    assert f"sparserm runs follow {short}" in out and f"sparserm runs cancel {short}" in out and "sparserm runs list" in out
    assert f"prepared for {fit.id.rpartition('_')[2]}" in cli("runs", "list")[1]
    shown = cli("runs", "show", fit.id)[1]
    assert "prepares Nap" in shown and "first explanation after" in shown and "all pages after" not in shown
    assert cli("runs", "cancel", short)[0] == 0
    ended(fit, 2)
    figures = json.loads(cli("runs", "show", fit.id, "--json")[1])["preparation"]
    assert [row["state"] for row in figures["runs"]] == ["cancelled", "succeeded"] and figures["first_explanation"] > 0
    assert f"pages: Nap ({short}) cancelled, Nap (" in cli("runs", "follow", fit.id)[1]
    assert fit.id in cli("runs", "show", first.id)[1] and json.loads(cli("runs", "show", first.id, "--json")[1])["prepared_for"] == fit.id


def test_machines_get_the_ids_and_a_second_fit_starts_nothing(cli: Any, cache: Path, nap_table: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLLOWING, json.dumps([{"seed": 11}]))
    as_naps(monkeypatch)
    code, out, _ = cli("fit", "--prepare-pages", "--json")
    fit = all_runs(cache)[0]
    assert code == 0 and json.loads(out)["follow_ups"] == {"nap": follow_up_runs(fit)[0].id}
    ended(fit, 1)
    code, out, _ = cli("fit", "--prepare-pages")
    assert code == 0 and "nothing follows" in out and len(all_runs(cache)) == 3


def test_detached_and_run_again(cli: Any, cache: Path, nap_table: None, monkeypatch: pytest.MonkeyPatch) -> None:
    as_naps(monkeypatch)
    code, out, err = cli("fit", "--prepare-pages", "--detach")
    fit = Run(cache / "runs" / out.strip())
    assert code == 0 and fit.prepares_pages and "then Nap, Nap and Nap follow by themselves" in err
    ended(fit)
    monkeypatch.setattr(launching, "WORKER", ["true"])
    fits = [launch("fit", PRESETS["tiny"], root=cache, prepare_pages=True)]
    for words, prepares in ([], True), (["--no-prepare-pages"], False):
        code, out, _ = cli("runs", "rerun", fits[0], *words)
        assert code == 0 and Run(cache / "runs" / out.strip()).prepares_pages == prepares


def test_a_model_that_stands_beside_another_is_not_opened_first(cache: Path) -> None:
    fit_run, lock = run_launch.new_run("fit", PRESETS["tiny"].to_dict(), cache, None, prepares_pages=True)
    lock.release()
    control, lock = run_launch.new_run("fit", PRESETS["tiny"].to_dict(), cache, None, prepared_for=fit_run.id)
    lock.release()
    assert follow_up.models_beside() == []
    for run, name in ((fit_run, "first"), (control, "beside")):
        (run.path / "result.json").write_text(json.dumps({"artefact": str(cache / name)}))
    assert follow_up.models_beside() == [cache / "beside"]

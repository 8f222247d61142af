"""`sparserm runs` and `--detach`: what a person and a machine are told, exit codes, and that following shows what the foreground shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import COMMAND, wait_for
from runs_helpers import WORKER, NapConfig, start, wait_state

from core.cli import run_command
from core.cli import runs as runs_cli
from core.cli.options import override
from core.config import BackboneConfig, FitConfig, SAEConfig, SelectionConfig, SweepConfig
from core.errors import MissingError
from core.files import write_json
from core.jobs import job as jobs
from core.jobs import start as launching
from core.jobs.fit import FIT
from core.jobs.job import Job
from core.jobs.kinds import KINDS, asked_config, load_job
from core.jobs.sae_train import SAE_TRAIN
from core.jobs.sweep import SWEEP
from core.runs import launch as run_launch
from core.runs.registry import Run, all_runs, find_run
from core.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    monkeypatch.setattr(launching, "WORKER", WORKER)
    return tmp_path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [(), ("--detach",)])
def test_an_interrupt_during_the_launch_cancels_the_run(
    cli: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], number: signal.Signals
) -> None:
    """The run has started, and the command has not got its id yet."""

    def interrupted(kind: str, config: Any, **options: Any) -> str:
        run = start(cache, looks=2000, pause=0.05)
        signal.raise_signal(number)
        return run.id

    monkeypatch.setattr(run_command, "launch", interrupted)
    code, out, err = cli("fit", "--preset", "tiny", *words)
    assert (code, out) == (130, "") and "stopped; finished steps are kept" in err
    (run,) = all_runs(cache)
    assert run.status().state == "cancelled" and not run.live()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# --- looking -------------------------------------------------------------------------------------------------------


def test_without_runs(cli: Any) -> None:
    assert json.loads(cli("runs", "list", "--json")[1]) == {"runs": []}
    assert "0 runs" in cli("runs", "list")[1]
    code, _, err = cli("runs", "show")
    assert code == 8 and "there is no run" in err and "sparserm fit --detach" in err


def test_list_show_log(cli: Any, cache: Path) -> None:
    first = start(cache, seed=3)
    wait_state(first, "succeeded")
    second = start(cache, deed="refuse")
    wait_state(second, "failed")
    rows = json.loads(cli("runs", "list", "--json")[1])["runs"]
    assert [(row["run"], row["state"], row["kind"], row["attempt"]) for row in rows] == [
        (first.id, "succeeded", "nap", 1),
        (second.id, "failed", "nap", 1),
    ]
    assert rows[0]["artefact"] == first.result()["artefact"] and rows[1]["error"]["problem"] == "no sheep"
    text = cli("runs", "list")[1]
    assert first.id in text and "succeeded" in text and "failed" in text
    shown = json.loads(cli("runs", "show", first.id[-6:], "--json")[1])
    assert shown["config"]["seed"] == 3 and shown["result"]["outcome"] == {"slept": 2} and shown["provenance"]["seeds"] == {"seed": 3}
    text = cli("runs", "show", first.id[-6:])[1]
    assert "estimated time" in text and "3.0 s" in text and "seed" in text and "slept" in text
    text = cli("runs", "show")[1]
    assert second.id in text and "no sheep\n  expected: some\n  found: none\n  to do: count clouds" in text
    assert "Traceback" in cli("runs", "log")[1]
    assert "DataError" in json.loads(cli("runs", "log", second.id, "--json")[1])["log"]


def test_a_run_is_named_by_any_part_that_only_it_has(cache: Path) -> None:
    runs = [start(cache) for _ in range(2)]
    assert find_run(runs[0].id).id == runs[0].id
    with pytest.raises(MissingError, match=r"more than one run has nap(.|\n)*runs list"):
        find_run("nap")
    with pytest.raises(MissingError, match="there is no run xyz"):
        find_run("xyz")
    for run in runs:
        wait_state(run, "succeeded")


@pytest.mark.parametrize(("deed", "code"), [("", 0), ("refuse", 3), ("stumble", 1)])
def test_follow_ends_with_the_runs_exit_code(cli: Any, cache: Path, deed: str, code: int) -> None:
    run = start(cache, looks=20, deed=deed)
    found, out, err = cli("runs", "follow", run.id)
    assert found == code
    assert "estimate: about 3 s" in err
    if not deed:
        assert "slept" in out and "20" in out and "nap: done in" in err
    else:
        assert run.status().error["problem"] in out
        assert (f"this is a bug; sparserm runs log {run.id[-6:]} shows where" in out) == (deed == "stumble")
    assert cli("runs", "follow")[0] == code, "a run that is over is told at once"


def test_follow_for_machines(cli: Any, cache: Path) -> None:
    run = start(cache, looks=5)
    code, out, err = cli("runs", "follow", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and err == ""
    assert [event["state"] for event in events[:-1] if event["event"] == "state"] == ["queued", "running", "succeeded"]
    assert events[-1]["run"] == run.id and events[-1]["state"] == "succeeded"


def test_following_a_cancelled_run_and_one_that_waits(cli: Any, cache: Path) -> None:
    busy, waiting = start(cache, looks=100_000), start(cache)
    wait_state(busy, "running")
    following = subprocess.Popen([*COMMAND, "runs", "follow", waiting.id], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = following.stderr.readline() if following.stderr else ""
    assert line == "queued: waiting for cpu\n"
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=30)
    assert following.returncode == 130 and f"the run goes on; sparserm runs cancel {waiting.id[-6:]} ends it" in err and out == ""
    assert waiting.status().state == "queued"
    began = time.monotonic()
    assert cli("runs", "cancel", waiting.id) == (0, f"{waiting.id}: cancelled\n", "")
    assert json.loads(cli("runs", "cancel", busy.id, "--json")[1])["state"] == "cancelled"
    assert time.monotonic() - began < 4
    assert cli("runs", "follow", busy.id)[0] == 130
    code, _, err = cli("runs", "cancel", busy.id)
    assert code == 2 and "is cancelled: there is nothing to cancel" in err


# --- doing ---------------------------------------------------------------------------------------------------------


def test_resume_and_remove(cli: Any, cache: Path) -> None:
    run = start(cache, looks=50)
    os.kill(wait_state(run, "running").pid, signal.SIGKILL)
    wait_for(lambda: run.status().state == "interrupted", 2)
    code, out, err = cli("runs", "resume", run.id)
    assert code == 0 and out == f"{run.id}\n" and "sparserm runs follow" in err
    code, _, err = cli("runs", "remove", run.id)
    assert code == 2 and "live and can't be removed" in err
    assert wait_state(run, "succeeded").attempt == 2
    code, _, err = cli("runs", "resume", run.id)
    assert code == 2 and "sparserm runs rerun" in err
    assert json.loads(cli("runs", "remove", run.id, "--json")[1])["removed"] == [run.id]
    assert all_runs(cache) == []


def test_rerun_with_changes(cli: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(cache, seed=3, looks=4)
    wait_state(run, "succeeded")
    code, out, _ = cli("runs", "rerun", run.id, "--seed", "5", "--json")
    row = json.loads(out)
    again = find_run(row["run"])
    assert code == 0 and row["parent"] == run.id and asked_config(again) == NapConfig(seed=5, looks=4)
    wait_state(again, "succeeded")
    assert run.id[-6:] in cli("runs", "list")[1]
    code, _, err = cli("runs", "rerun", run.id, "--sneed", "5")
    assert code == 2 and "unrecognized arguments: --sneed 5" in err and len(all_runs(cache)) == 2


def fit_run(cache: Path, asked: FitConfig, resolved: FitConfig) -> Run:
    folder = cache / "runs" / "20260101T000000.000000Z_fit_abcdef"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"schema": 1, "kind": "fit", "config": asked.to_dict(), "parent": None, "folder": "/"})
    write_json(folder / "resolved.json", resolved.to_dict())
    return Run(folder)


def test_a_rerun_keeps_what_was_filled_in_unless_it_fits_no_more(cache: Path) -> None:
    asked = FitConfig()
    run = fit_run(cache, asked, override(asked, {"sae": "/saes/newest", "pairs": "/demo/pairs.jsonl"}))
    assert runs_cli.changed(run, {"k": 64}) == override(asked, {"sae": "/saes/newest", "pairs": "/demo/pairs.jsonl", "k": 64})
    assert runs_cli.changed(run, {"layer": 3}) == override(asked, {"layer": 3}), "the newest SAE of another layer is looked for anew"
    assert runs_cli.changed(run, {"layer": 3, "sae": "x"}).sae == SAEConfig(path="x")


def test_verify_says_what_it_found(cli: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(cache)
    wait_state(run, "succeeded")
    code, out, _ = cli("runs", "verify", run.id)
    assert code == 0 and "identical" in out
    monkeypatch.setattr("runs_helpers.dream", lambda config: '{"seed": 9}')
    code, out, err = cli("runs", "verify", run.id)
    assert code == 7 and "came out differently" in err and "nothing around it changed" in err and "dream.json seed" in out
    code, out, _ = cli("runs", "verify", run.id, "--json")
    assert code == 7 and json.loads(out)["verdict"] == "different"


@pytest.mark.parametrize(
    ("words", "kind", "config"),
    [
        (["fit", "--k", "8", "--pairs", "p.jsonl"], "fit", {"selection": {"k": 8}, "data": {"pairs": "p.jsonl"}}),
        (["sweep", "--layers", "1,2", "--k", "8"], "sweep", {"layers": [1, 2], "fit": {"selection": {"k": 8}}}),
        (["sae", "train", "--layer", "3", "--width", "64"], "sae-train", {"width": 64, "backbone": {"layer": 3}}),
    ],
)
def test_detach(cli: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], kind: str, config: dict[str, Any]) -> None:
    """The command's options arrive in the run; nothing is computed here."""
    monkeypatch.setattr(launching, "WORKER", [sys.executable, "-c", "raise SystemExit('enough')"])
    code, out, err = cli(*words, "--detach")
    run = find_run(out.strip())
    assert code == 0 and run.kind == kind and "sparserm runs follow" in err
    assert_within(config, run.config())
    code, out, _ = cli(*words, "--detach", "--json")
    assert code == 0 and json.loads(out)["kind"] == kind
    for run in all_runs():
        wait_state(run, "failed")


def assert_within(part: dict[str, Any], whole: dict[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(value, dict):
            assert_within(value, whole[name])
        else:
            assert whole[name] == value


def test_a_copy_elsewhere_does_not_go_with_detach(cli: Any, cache: Path) -> None:
    code, _, err = cli("fit", "--detach", "--out", cache / "model")
    assert code == 2 and "--out does not go with --detach" in err and all_runs(cache) == []


# --- jobs ----------------------------------------------------------------------------------------------------------


def test_every_kind_has_its_job_and_its_printing() -> None:
    found = {name: load_job(name) for name in KINDS}
    assert found["fit"] is FIT and found["sae-train"] is SAE_TRAIN and found["sweep"] is SWEEP
    assert all(isinstance(job, Job) for job in found.values())


def test_sweeps_are_completed_once_and_for_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (cache / name).mkdir()
    monkeypatch.chdir(cache)
    Path("pairs.jsonl").write_text("{}\n")
    base = FitConfig(data=override(FitConfig().data, {"pairs": "pairs.jsonl"}), selection=SelectionConfig(k=8))
    sweep = SweepConfig(fit=base, layers=(1, 2), saes=("a", "b"), ks=(4, 8))
    done = SWEEP.complete(sweep, Store(cache), print)
    assert done.saes == (str(cache / "a"), str(cache / "b")) and done.fit.data.pairs == str(cache / "pairs.jsonl") and done.ks == (4, 8)
    assert SWEEP.complete(done, Store(cache), print) == done
    monkeypatch.setattr("core.fit.defaults.known_sae", lambda backbone, store: SAEConfig(path=f"/newest-{backbone.layer}"))
    filled = SWEEP.complete(SweepConfig(fit=base, layers=(1, 2)), Store(cache), lambda _: None)
    assert filled.saes == ("/newest-1", "/newest-2")
    alone = SWEEP.complete(SweepConfig(fit=base), Store(cache), lambda _: None)
    assert (alone.saes, alone.fit.sae.path, alone.layers) == ((), "/newest-19", (19,))


def test_the_disk_that_is_needed_is_guessed_from_the_files(cache: Path) -> None:
    (cache / "model").mkdir()
    (cache / "model" / "config.json").write_text('{"hidden_size": 64}')
    (cache / "pairs.jsonl").write_text("{}\n" * 1000)
    config = override(FitConfig(), {"pairs": str(cache / "pairs.jsonl"), "model": str(cache / "model")})
    assert FIT.disk(config, cache) == 1000 * 2 * 64 * 4 * 2, "chosen and rejected, float32, shards beside the merged file"
    assert SWEEP.disk(SweepConfig(fit=config, layers=(1, 2, 3)), cache) == 3 * FIT.disk(config, cache)
    assert FIT.disk(override(config, {"pairs": "org/hub-data"}), cache) == 0
    assert FIT.disk(override(config, {"model": "org/unknown"}), cache) == 1000 * 2 * 4096 * 4 * 2


def test_a_gpu_is_named_by_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Card:
        def __init__(self, number: int) -> None:
            self.uuid = f"uuid-{number}"

    monkeypatch.setattr(torch.cuda, "get_device_properties", Card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert jobs.devices_of(BackboneConfig(device="cuda")) == jobs.devices_of(BackboneConfig(device="cuda:0")) == ("cuda-uuid-0",)
    assert jobs.devices_of(BackboneConfig(device="cuda:1")) == ("cuda-uuid-1",)
    assert jobs.devices_of(BackboneConfig(device="cuda", device_map="auto")) == ("cuda-uuid-0", "cuda-uuid-1")
    assert jobs.devices_of(BackboneConfig(device="cpu")) == ("cpu",)


def test_a_launch_with_a_full_disk_is_refused_for_real_kinds(cache: Path, monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    (cache / "pairs.jsonl").write_text("{}\n" * 100_000)
    monkeypatch.setattr(run_launch, "SPARE_DISK", 1e18)
    code, _, err = cli("fit", "--pairs", cache / "pairs.jsonl", "--detach")
    assert code == 7 and "too full for this run" in err and "sparserm runs remove" in err and all_runs(cache) == []

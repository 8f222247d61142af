"""Overview, Preferences and Runs in their four states; the lists of pairs; uploads; and that the pages' process stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import wait_for
from pages_helpers import HOSTILE, open_page, words
from runs_helpers import WORKER, start, wait_state
from streamlit.testing.v1 import AppTest

from core.backbone.presets import PRESETS, preset
from core.config import DataConfig, DoctorRunConfig, PairsRunConfig
from core.errors import DataError
from core.files import write_json
from core.fit.defaults import complete
from core.fit.pipeline import fit
from core.jobs import start as launching
from core.runs.launch import cancel, new_run
from core.runs.registry import Run, Status, all_runs
from core.runs.store import Store
from core.types import PreferencePair, PreferencePairs, no_progress
from workbench.frame import models, run_panel, uploads
from workbench.frame.models import FittedModel
from workbench.overview import values as overview
from workbench.preferences.values import PairList

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "sae_lens", "trl", "peft", "sklearn"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a fit of the tiny preset."""
    root = tmp_path_factory.mktemp("fitted").resolve()
    store = Store(root)
    fit(complete(preset("tiny", root=root / "models"), store, lambda _: None), store, no_progress)
    return root


@pytest.fixture
def model(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> FittedModel:
    monkeypatch.setenv("SPARSERM_CACHE", str(fitted))
    return models.models(fitted)[0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, whose runs can only take naps."""
    root = tmp_path.resolve() / "cache"
    monkeypatch.setenv("SPARSERM_CACHE", str(root))
    monkeypatch.setattr(launching, "WORKER", WORKER)
    yield root
    for run in all_runs(root):
        if run.live():
            cancel(run)


def fine(at: AppTest) -> AppTest:
    assert not at.exception, [(error.value, error.stack_trace) for error in at.exception]
    return at


def button(at: AppTest, label: str) -> Any:
    return next(button for button in at.button if button.label == label)


def metrics(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def in_url(at: AppTest, name: str) -> str:
    value = at.query_params.get(name, "")
    return value[-1] if isinstance(value, list) else value


# --- Overview ------------------------------------------------------------------------------------------------------------


def test_first_open_offers_the_demo_and_a_click_starts_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = fine(open_page("overview"))
    assert "See why a response scored low" in words(at) and not at.metric
    started: list[Any] = []
    monkeypatch.setattr(launching, "launch", lambda kind, config, **more: started.append((kind, config, more["prepare_pages"])) or "id")
    button(at, "Build the demo").click().run()
    assert at.checkbox[0].label == "and prepare the pages" and at.code[-1].value == "sparserm fit --prepare-pages --detach"
    fine(at.checkbox[0].uncheck().run())
    assert at.code[-1].value == "sparserm fit --detach"
    button(at, "Build a toy instead").click().run()
    assert started == [("fit", PRESETS["smollm2-135m"], True), ("fit", PRESETS["tiny"], False)]


def test_first_open_that_can_not_start_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise DataError("the disk is full", remedy="make room <b>now</b>")

    monkeypatch.setattr(launching, "launch", full)
    at = fine(button(fine(open_page("overview")), "Build the demo").click().run())
    assert "the disk is full" in words(at) and "make room <b>now</b>" in words(at) and button(at, "Build the demo")
    assert "the disk is full" not in words(at.run())


def as_fit(run: Run, state: str, **more: Any) -> None:
    """Says of a finished nap that it was a fit that stands so."""
    asked = json.loads((run.path / "config.json").read_text())
    from core.config import FitConfig

    (run.path / "config.json").write_text(json.dumps({**asked, "kind": "fit", "config": FitConfig().to_dict()}))
    (run.path / "resolved.json").unlink()
    status = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps({**status, "state": state, **more}))


@pytest.mark.parametrize("state", ["failed", "cancelled", "interrupted"])
def test_a_demo_that_did_not_come_through_can_go_on(cache: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    run = start(cache)
    wait_state(run, "succeeded")
    error = {"problem": "no network", "expected": "", "found": "<img>", "remedy": "plug it in", "exit_code": 4}
    as_fit(run, "running" if state == "interrupted" else state, error=error if state == "failed" else None)
    at = fine(open_page("overview"))
    assert button(at, "Build the demo") and ("plug it in" in words(at)) == (state == "failed")
    resumed: list[str] = []
    monkeypatch.setattr(launching, "resume", lambda run: resumed.append(run.id))
    at = fine(open_page("overview"))
    button(at, "Resume").click().run()
    assert resumed == [run.id]


def test_a_demo_that_is_being_built_shows_how_far_it_is(cache: Path) -> None:
    run = start(cache, looks=2000, pause=0.05)
    wait_state(run, "running")
    wait_for(lambda: run.progress())
    asked = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**asked, "kind": "fit"}))
    at = fine(open_page("overview"))
    assert "is being built" in words(at) and "Build the demo" not in [b.label for b in at.button]
    assert fine(button(at, "Cancel").click().run())
    assert Run(run.path).status().state == "cancelled"


def test_overview_says_what_the_tables_say(model: FittedModel) -> None:
    at = fine(open_page("overview"))
    table = model.evaluation
    shown = metrics(at)
    assert shown["Test accuracy, mean of 5 heads"] == f"{100 * np.mean([head['accuracy'] for head in table['sparserm']['heads']]):.1f} %"
    lead = table["controls"]["random-isotropic"]["sparserm_minus_this"]
    assert shown["Over random directions"] == f"{round(100 * lead['difference'], 1) + 0.0:+.1f} pts"
    said = words(at)
    shipped, seed = table["sparserm"]["heads"][table["sparserm"]["shipped"]], model.config["method"]["shipped_seed"]
    assert f"shipped head, seed {seed}: {100 * shipped['accuracy']:.1f} %" in said
    assert f"n = {table['sparserm']['mean']['n']:,} test pairs" in said and f"{lead['n']:,} test pairs" in said
    assert "17,409 parameters" in said and "tiny-1, layer 1 of 2" in said
    assert overview.seconds(model) > 0


def test_the_verdict_is_sober(model: FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_leads(low: float, wording: float) -> str:
        mean = {"accuracy": 0.8, "low": 0.7, "high": 0.9, "n": 100}
        control = {
            "mean": {**mean, "accuracy": wording, "high": wording + 0.05},
            "sparserm_minus_this": {"difference": 0.1, "low": low, "high": 0.2, "n": 100},
        }
        table = {"sparserm": {"mean": mean}, "controls": dict.fromkeys(("random-isotropic", "random-rows", "wording-only"), control)}
        monkeypatch.setattr(FittedModel, "evaluation", property(lambda _: table))
        return overview.verdict(model)

    assert "better than random directions" in with_leads(0.01, 0.6) and "Wording" not in with_leads(0.01, 0.6)
    assert "No clear lead" in with_leads(0.0, 0.6)
    assert "Wording alone comes as far" in with_leads(0.01, 0.78)


@pytest.mark.parametrize("points", [[], [{"k": 4, "kind": "sparserm", "accuracy": None, "low": 0.0, "high": 1.0, "n": 0}]])
def test_a_curve_that_was_not_measured_is_said(model: FittedModel, monkeypatch: pytest.MonkeyPatch, points: Any) -> None:
    drawn = len(fine(open_page("overview")).get("plotly_chart"))
    monkeypatch.setattr(FittedModel, "curve", points)
    at = fine(open_page("overview"))
    assert "was not measured" in words(at) and len(at.get("plotly_chart")) == drawn - 1 > 0


def test_a_link_to_a_model_that_is_gone_shows_no_other(model: FittedModel) -> None:
    at = fine(open_page("overview", model="0123456789ab"))
    assert "not in this cache" in words(at) and not at.metric
    assert metrics(fine(button(at, "Show the newest instead").click().run()))


# --- Preferences ---------------------------------------------------------------------------------------------------------


def test_preferences_without_a_model_ask_for_pairs(cache: Path) -> None:
    at = fine(open_page("preferences"))
    assert "What is understood" in words(at) and button(at, "Check these pairs")


def test_preferences_of_a_model(model: FittedModel) -> None:
    at = fine(open_page("preferences"))
    assert metrics(at)["Pairs"] == "100" and "100 of 100 pairs" in words(at)
    wording = model.evaluation["controls"]["wording-only"]["mean"]
    assert f"**{100 * wording['accuracy']:.1f} %**" in words(at)
    at = fine(open_page("preferences", preferences_split="test", preferences_ranking="wrong", preferences_order="worst"))
    tests = np.array([split == "test" for split in model.splits])
    n = int((tests & (model.margins <= 0)).sum())
    assert f"{n:,} of 100 pairs" in words(at)
    pair = model.pairs[7]
    at = fine(open_page("preferences", pair=pair.pair_id))
    assert "##### Pair 8" in [m.value for m in at.markdown]
    assert pair.chosen in words(at) and pair.rejected in words(at) and pair.prompt[-1]["content"] in words(at)


def test_every_list_keeps_to_the_chosen_pairs(model: FittedModel) -> None:
    from workbench.frame import state

    name = state.keep("filter", {"pairs": [pair.pair_id for pair in model.pairs][:9], "said": "lasso in Spaces"})
    at = fine(open_page("preferences", filter=name))
    assert "9 of 100 pairs" in words(at)
    at = fine(button(at, "9 pairs, lasso in Spaces").click().run())
    assert "100 of 100 pairs" in words(at)


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_own_pairs_are_checked_by_a_run(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: str) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SPARSERM_CACHE", str(cache))
    rows = [{"prompt": f"{text} {i}", "chosen": f"{text} yes {i}", "rejected": f"no {i}"} for i, text in enumerate([*HOSTILE.values()] * 3)]
    source = tmp_path / "own.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in [*rows, {"prompt": "x"}] if outcome == "succeeded") or '{"a": 1}')
    at = fine(open_page("preferences"))
    box = next(box for box in at.text_input if box.label == "Preference pairs")
    fine(box.set_value(str(source)).run())
    fine(button(at, "Check these pairs").click().run())
    config = PairsRunConfig(data=DataConfig(pairs=str(source)))
    run = run_panel.find("pairs", config)
    assert run is not None
    assert wait_state(run, "succeeded", "failed", seconds=120).state == outcome
    fine(at.run())
    if outcome == "failed":
        assert button(at, "Check these pairs") and button(at, "Resume") and "columns a" in words(at)
        return
    used = sum("\x00" not in row["prompt"] for row in rows)
    assert metrics(at) | {"Pairs": f"{used}", "Rows refused": f"{len(rows) + 1 - used}"} == metrics(at)
    assert "Wording only tells chosen from rejected" in words(at)
    fine(button(at, "Fit a reward model on these").click().run())
    assert in_url(at, "runs_kind") == "fit" and str(source) in at.code[0].value + at.code[1].value


def some_pairs() -> PairList:
    pairs = tuple(
        PreferencePair(
            pair_id=f"p{i}",
            prompt=({"role": "user", "content": f"Question {i}"},),
            chosen="Ja" * (i + 1),
            rejected="NEIN",
            meta={"subset": "ab"[i % 2]},
        )
        for i in range(6)
    )
    return PairList(pairs=PreferencePairs(pairs=pairs), splits=["train"] * 3 + ["test"] * 3, margins=np.array([1.0, -2.0, 0.5, 0.0, 3.0, -0.1]))


def test_lists_of_pairs() -> None:
    found = some_pairs()
    assert found.choose(split="test", kind="b").tolist() == [3, 5]
    assert found.choose(verdict="wrong").tolist() == [1, 3, 5] and found.choose(verdict="right").tolist() == [0, 2, 4]
    assert found.choose(words=" nein ").tolist() == list(range(6)) and found.choose(words="question 4").tolist() == [4]
    assert found.choose(ids={"p2", "p5"}.__contains__).tolist() == [2, 5]
    rows = np.arange(6)
    assert found.sort(rows, "worst").tolist() == [1, 5, 3, 2, 0, 4] and found.sort(rows, "close").tolist() == [3, 5, 2, 0, 1, 4]
    assert found.sort(rows, "long").tolist() == [5, 4, 3, 2, 1, 0] and found.sort(rows, "file").tolist() == list(range(6))
    table = found.table(np.array([1]))
    assert table["Pair"] == [2] and table["Margin"] == [-2.0] and table["Split"] == ["train"] and table["Kind"] == ["b"]
    assert found.rows(np.array([4]))[0]["margin"] == 3.0


def test_uploads_lie_inside_under_names_of_ours(cache: Path) -> None:
    path = uploads.keep("../../etc/<b>passwd\n.JSONL", b'{"a": 1}')
    assert path.parent == cache / "uploads" and uploads.UPLOADED.fullmatch(path.name) and path.read_bytes() == b'{"a": 1}'
    assert uploads.name_of(path) == "<b>passwd\\n.JSONL" and uploads.name_of(Path("/x/y.csv")) == "y.csv"
    assert uploads.keep("again.jsonl", b'{"a": 1}') == path
    for name, data, said in (("x.exe", b"1", "can't be read"), ("x.csv", b"", "empty")):
        with pytest.raises(DataError, match=said):
            uploads.keep(name, data)


def test_uploads_have_limits(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LARGEST", 10)
    monkeypatch.setattr(uploads, "TOGETHER", 20)
    with pytest.raises(DataError, match="too large"):
        uploads.keep("x.csv", b"x" * 11)
    kept = [uploads.keep("x.csv", bytes([65 + i]) * 9) for i in range(3)]
    assert [path.is_file() for path in kept] == [False, True, True]


# --- Runs ----------------------------------------------------------------------------------------------------------------


def test_runs_without_any_show_the_form(cache: Path) -> None:
    at = fine(open_page("runs"))
    assert "No runs yet" in words(at) and at.code[-1].value == "sparserm fit --prepare-pages --detach" and not button(at, "Start").disabled


def test_the_form_marks_what_is_wrong_and_starts_what_is_right(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = fine(open_page("runs"))

    def k() -> Any:
        return next(box for box in at.number_input if box.label == "K, latents a side")

    fine(k().set_value(0).run())
    assert button(at, "Start").disabled and any("k is too small" in m.value for m in at.markdown)
    fine(k().set_value(9).run())
    assert at.code[-1].value == "sparserm fit --k 9 --prepare-pages --detach"
    link = in_url(at, "runs_draft")
    again = fine(open_page("runs", runs_draft=link))  # a reload loses nothing
    assert again.code[-1].value == at.code[-1].value
    started: list[Any] = []
    monkeypatch.setattr(launching, "launch", lambda kind, config, **more: started.append((kind, config.selection.k, more)) or "the-run")
    fine(at.checkbox[0].uncheck().run())
    assert at.code[-1].value == "sparserm fit --k 9 --detach"
    fine(button(at, "Start").click().run())
    assert started == [("fit", 9, {"parent": None, "prepare_pages": False})] and in_url(at, "runs_open") == "the-run" and not in_url(at, "runs_draft")


def test_runs_are_listed_opened_cancelled_and_removed(cache: Path) -> None:
    done, failed = start(cache), start(cache, deed="refuse")
    wait_state(done, "succeeded")
    wait_state(failed, "failed")
    live = start(cache, looks=5000, pause=0.05)
    wait_state(live, "running")
    at = fine(open_page("runs", runs_open=live.id))
    table = at.dataframe[0].value
    assert list(table["State"]) == ["running", "failed", "succeeded"] and next(iter(table["Run"])) == live.id.rpartition("_")[2]
    fine(next(b for b in at.button if b.key == f"cancel {live.id}").click().run())
    assert Run(live.path).status().state == "cancelled"
    at = fine(open_page("runs", runs_open=failed.id))
    assert "no sheep" in words(at) and "count clouds" in words(at)
    fine(next(b for b in at.button if b.key == f"delete {failed.id}").click().run())
    assert not failed.path.exists()
    at = fine(open_page("runs", runs_open="nobody", runs_other="../.."))
    assert "nobody" not in words(at)


def test_a_form_from_a_run_prepares_pages_as_that_run_did(cache: Path) -> None:
    for prepares in (True, False):
        run, lock = new_run("fit", preset("tiny").to_dict(), cache, None, prepares_pages=prepares)
        run.write(Status(state="cancelled", attempt=1, queued=1.0, ended=3.0))
        lock.release()
        at = fine(open_page("runs", runs_open=run.id))
        fine(button(at, "Rerun with changes").click().run())
        box = next(box for box in at.checkbox if box.label == "and prepare the pages")
        assert box.value == prepares and any("--prepare-pages --detach" in code.value for code in at.code) == prepares


def test_a_run_that_follows_a_fit_says_for_which(cache: Path) -> None:
    fit_run, lock = new_run("fit", preset("tiny").to_dict(), cache, None, prepares_pages=True)
    lock.release()
    run, lock = new_run("doctor", DoctorRunConfig(model="/nowhere").to_dict(), cache, None, prepared_for=fit_run.id)
    lock.release()
    at = fine(open_page("runs", runs_open=run.id))
    short = fit_run.id.rpartition("_")[2]
    assert f"Prepared for fit {short}" in words(at) and at.dataframe[0].value.iloc[0]["Of"] == f"of nowhere, prepared for {short}"
    at = fine(open_page("runs", runs_open=fit_run.id))
    assert "Then follow by themselves: Doctor, Spaces, Latents' pages" in words(at)


def test_two_runs_beside_one_another(cache: Path) -> None:
    first, second = start(cache, looks=2), start(cache, looks=3)
    for run in (first, second):
        wait_state(run, "succeeded")
    at = fine(open_page("runs", runs_open=first.id, runs_other=second.id))
    differing = next(frame.value for frame in at.dataframe if "Setting" in frame.value.columns)
    assert list(differing["Setting"]) == ["looks"] and list(differing.iloc[0])[1:] == ["2", "3"]


def test_a_fits_accuracy_stands_with_its_interval_and_n(cache: Path) -> None:
    run, lock = new_run("fit", preset("tiny").to_dict(), cache, None)
    run.write(Status(state="succeeded", attempt=1, queued=1.0, started=2.0, ended=3.0))
    lock.release()
    mean = {"accuracy": 0.75, "low": 0.612, "high": 0.848, "n": 1234}
    write_json(run.path / "result.json", {"artefact": "/cache/a1b2", "artefacts": [], "outcome": {"sparserm": {"mean": mean, "heads": [mean] * 5}}})
    run.log.write_text("heads: done\n")
    at = fine(open_page("runs", runs_open=run.id, runs_section="log"))
    row = at.dataframe[0].value.iloc[0]
    assert (row["Test accuracy, %, mean of heads"], row["95 %, n, heads"]) == (75.0, "61.2 to 84.8, 1,234 test pairs, mean of 5 heads")
    assert "Whole log" in {one.proto.label for one in at.get("download_button")}, "what is shown can be taken away"
    at = fine(open_page("runs", runs_open=run.id, runs_section="settings"))
    assert f"settings {run.id}" in {one.proto.id.rpartition("-")[2] for one in at.get("download_button")}


def test_a_damaged_run_is_in_nobodys_way(cache: Path) -> None:
    run = start(cache)
    wait_state(run, "succeeded")
    (run.path / "status.json").write_text("{")
    at = fine(open_page("runs", runs_open=run.id))
    assert list(at.dataframe[0].value["State"]) == ["damaged"]


def test_the_ticker_tells_of_live_runs_on_every_page(cache: Path) -> None:
    run = start(cache, looks=5000, pause=0.05)
    wait_state(run, "running")
    at = fine(open_page("preferences"))
    assert any("Nap" in caption.value for caption in at.sidebar.caption)


# --- the process -----------------------------------------------------------------------------------------------------------


def test_the_pages_process_stays_light(fitted: Path) -> None:
    """Every page opened, with a fitted model, in a fresh process: no engine is loaded, and starting takes no reward model's library."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from streamlit.testing.v1 import AppTest
for page in sorted(Path({str(ROOT)!r}, "pages").glob("[a-z]*.py")):
    at = AppTest.from_file({str(ROOT / "workbench/app.py")!r}, default_timeout=120)
    at.switch_page(f"../pages/{{page.name}}").run()
    assert not at.exception, (page.name, [e.value for e in at.exception])
print(sorted(set(sys.modules) & {HEAVY!r}))
"""
    import os

    environment = {**os.environ, "SPARSERM_CACHE": str(fitted)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_no_page_speaks_html_or_asks_outside() -> None:
    """No unsafe HTML, no icon or font by a name that a browser would fetch, a server for this machine only."""
    for path in [*(ROOT / "workbench").rglob("*.py"), *(ROOT / "pages").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "unsafe_allow_html" not in text and "unsafe_allow_javascript" not in text and 'page_icon=":material' not in text, path
    import tomllib

    config = tomllib.loads((ROOT / "workbench/.streamlit/config.toml").read_text())
    assert config["server"]["address"] == "localhost" and config["server"]["allowedHosts"] == ["localhost", "127.0.0.1", "::1"]
    assert config["browser"]["gatherUsageStats"] is False and config["server"]["showEmailPrompt"] is False
    assert {"light", "dark"} <= set(config["theme"])

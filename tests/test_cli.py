"""The `sparserm` command: options from configs, one JSON line for machines, errors with a way out, steps found again in the store."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import COMMAND, run_apart, wait_for
from runs_helpers import WORKER, NapConfig, wait_state

from core.backbone.presets import PRESETS, preset
from core.cli import run_command, tables
from core.cli.main import build_parser
from core.cli.options import NAMES, SAE_FIELDS, option_name, override
from core.cli.run_command import config_from
from core.config import AlignConfig, BackboneConfig, FitConfig, SAEConfig, SAETrainConfig, SweepConfig, sae_config
from core.data.pairs_file import read_pairs
from core.errors import MissingError
from core.fit import defaults, pipeline, steps
from core.fit.steps import STEPS
from core.jobs import start as job_start
from core.reward.model import SparseRM
from core.runs import progress
from core.runs.progress import Display, duration, figures_text, size
from core.runs.registry import all_runs
from core.runs.store import HOLD, Store, cache_root

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "sklearn", "sae_lens", "datasets", "pandas", "scipy", "huggingface_hub"}


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes every command launch a nap (runs_helpers) with these fields."""
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    monkeypatch.setattr(job_start, "WORKER", WORKER)

    def launch_naps(**fields: Any) -> None:
        monkeypatch.setattr(run_command, "launch", lambda kind, config, **_: job_start.launch("nap", NapConfig(**fields)))

    return launch_naps


@pytest.fixture(scope="module")
def tiny() -> FitConfig:
    return preset("tiny")


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    """The tiny preset fitted through the command line, once for all tests of this file."""
    done = run_apart("fit", "--preset", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every command's parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child
                yield from parsers(child)


def options_of(name: str) -> dict[str, argparse.Action]:
    found = next(p for p in parsers(build_parser()) if p.prog == f"sparserm {name}")
    return {text: action for action in found._actions for text in action.option_strings}


def objects_with_accuracy(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "accuracy" in value and not isinstance(value["accuracy"], dict):
            yield value
        for part in value.values():
            yield from objects_with_accuracy(part)
    elif isinstance(value, list):
        for part in value:
            yield from objects_with_accuracy(part)


# --- help and options ----------------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    call = "import sys\nfrom core.cli.main import main\ntry: main(['fit', '--help'])\nexcept SystemExit: pass\n"
    code = call + f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_labels_check_options_before_anything_heavy_is_loaded() -> None:
    commands = [["ask", "M"], ["ask", "M", "--endpoint", "http://localhost:1/v1"], ["auto", "M", "--tokens", "0"], ["score", "M", "--tokens", "0"]]
    code = f"import sys\nfrom core.cli.main import main\nprint([main(['labels', *words]) for words in {commands!r}])\n"
    code += f"print(sorted(set(sys.modules) & {HEAVY - {'huggingface_hub'}!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[2, 2, 2, 2]", "[]"]


def test_every_command_has_an_example_that_parses() -> None:
    seen = 0
    for parser in [build_parser(), *parsers(build_parser())]:
        assert parser.epilog and parser.description, parser.prog
        for line in parser.epilog.splitlines()[1:]:
            words = shlex.split(line)
            assert words[0] == "sparserm"
            arguments = build_parser().parse_args(words[1:])
            assert callable(arguments.run)
            seen += 1
    assert seen >= 10


@pytest.mark.parametrize(
    ("name", "configs"),
    [
        ("fit", [FitConfig()]),
        ("sweep", [SweepConfig()]),
        ("sae train", [SAETrainConfig(), BackboneConfig()]),
        ("align", [AlignConfig()]),
    ],
)
def test_every_config_field_is_an_option_with_its_help(name: str, configs: list[Any]) -> None:
    options = options_of(name)
    checked = 0
    while configs:
        config = configs.pop()
        for spec in fields(config):
            value = getattr(config, spec.name)
            if is_dataclass(value):
                configs.append(value) if type(value) not in map(type, configs) else None
            elif not (isinstance(config, SAEConfig) and spec.name in SAE_FIELDS):
                action = options["--" + option_name(config, spec.name).replace("_", "-")]
                assert action.help and spec.metadata["help"].replace("%", "%%") in action.help
                assert list(action.choices or []) == list(spec.metadata["choices"])
                checked += 1
    assert checked >= (15 if name == "sae train" else 30)


def test_renamed_options_still_name_fields() -> None:
    parts = (AlignConfig(), *vars(AlignConfig()).values(), *vars(FitConfig()).values())
    known = {f"{type(c).__name__}.{spec.name}" for c in parts if is_dataclass(c) for spec in fields(c)}
    assert set(NAMES) <= known


def test_no_two_fields_of_an_alignment_have_one_option() -> None:
    """argparse would refuse them in one parser; `runs rerun` makes one of a whole config."""
    configs, names = [AlignConfig()], []
    for config in configs:
        parts = [getattr(config, spec.name) for spec in fields(config)]
        configs += [part for part in parts if is_dataclass(part)]
        names += [option_name(config, spec.name) for spec, part in zip(fields(config), parts, strict=True) if not is_dataclass(part)]
    assert len(configs) == 10 and sorted(names) == sorted(set(names))


def test_options_override_the_preset() -> None:
    words = ["--k", "7", "--split-seed", "3", "--ratios", "0.5,0.2,0.3", "--columns", "prompt=question,chosen=good", "--curve", "2,4", "--lr", "1e-4"]
    config = config_from(build_parser().parse_args(["fit", "--preset", "tiny", *words]))
    base = PRESETS["tiny"]
    assert isinstance(config, FitConfig)
    assert (config.selection.k, config.data.seed, config.selection.seed) == (7, 3, base.selection.seed)
    assert (config.data.ratios, config.data.columns) == ((0.5, 0.2, 0.3), {"prompt": "question", "chosen": "good"})
    assert (config.curve, config.head.lr) == ((2, 4), 1e-4)
    assert (config.backbone, config.sae, config.selection.resamples) == (base.backbone, base.sae, base.selection.resamples)


def test_values_of_the_embedded_model_hold_only_for_it() -> None:
    parse = build_parser().parse_args
    assert config_from(parse(["fit"])) == PRESETS["smollm2-135m"]
    assert config_from(parse(["fit", "--model", "org/other"])) == override(FitConfig(), {"model": "org/other"})
    assert config_from(parse(["fit", "--model", "org/other"])).selection.k == 128
    assert config_from(parse(["fit", "--preset", "gemma-2-9b"])).sae.release == "gemma-scope-9b-it-res-canonical"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "three"], "--k: invalid whole number value: 'three'"),
        (["--ratios", "0.4,x"], "--ratios: invalid comma-separated list value"),
        (["--columns", "prompt"], "--columns: invalid OUR=YOURS,... list value"),
        (["--dtype", "float8"], "invalid choice: 'float8'"),
        (["--preset", "nope"], "invalid choice: 'nope'"),
        (["--lay", "3"], "unrecognized arguments: --lay"),
        (["--k", "0"], "SelectionConfig.k is too small"),
        (["--ratios", "0.9,0.9,0.9"], "DataConfig.ratios is impossible"),
    ],
)
def test_a_wrong_option_is_named(cli: Any, words: list[str], said: str) -> None:
    code, out, err = cli("fit", *words)
    assert code == 2 and out == ""
    assert said in err and "Traceback" not in err


def test_an_sae_is_a_release_with_an_id_or_a_path(tmp_path: Path) -> None:
    assert sae_config("gemma-scope-2b:layer_13/width_16k") == SAEConfig(release="gemma-scope-2b", sae_id="layer_13/width_16k")
    for path in ("folder/sae", "params.npz", "C:\\saes\\one", "./a:b/c"):
        assert sae_config(path) == SAEConfig(path=path)
    (tmp_path / "a:b").mkdir()
    assert sae_config(str(tmp_path / "a:b")) == SAEConfig(path=str(tmp_path / "a:b"))


# --- fit -----------------------------------------------------------------------------------------------------------


def test_fit_json_is_one_line_with_everything(fitted: dict[str, Any]) -> None:
    assert Path(fitted["artefact"]).is_dir()
    assert set(fitted["seconds"]) == set(STEPS)
    assert all(value >= 0 for value in fitted["seconds"].values())
    assert set(fitted["losses"]) == {"margin", "bradley-terry", "bce"}
    families = {"random-isotropic", "random-rows", "activations", "dense"}
    assert set(fitted["controls"]) == families | {"difference-of-means", "linear-probe", "wording-only", "length-only"}
    found = list(objects_with_accuracy(fitted))
    assert len(found) > 50
    for entry in found:
        assert {"accuracy", "low", "high", "n"} <= set(entry)
        assert entry["low"] <= entry["accuracy"] <= entry["high"] and entry["n"] > 0
    assert fitted["sparserm"]["accuracy"] == fitted["losses"]["margin"]["accuracy"]
    assert fitted["sparserm"]["accuracy"] > 0.9 > fitted["controls"]["length-only"]["accuracy"]


def test_the_saved_models_score_what_the_table_says(fitted: dict[str, Any]) -> None:
    """The accuracies again, from the folders and the texts alone."""
    store = Store()
    fingerprints = SparseRM.load(fitted["artefact"]).parts.method["fingerprints"]
    pairs_artefact = store.find("pairs", fingerprints["pairs"])
    assert pairs_artefact
    pairs = read_pairs(pairs_artefact.file("pairs.jsonl"))
    test = pairs.take(pairs.rows_of("test"))
    kinds = {"sparserm": Path(fitted["artefact"])}
    kinds |= {kind: Path(fitted["artefact"]) / "controls" / kind for kind in ("random-isotropic", "random-rows", "activations", "dense")}
    for kind, folder in kinds.items():
        model = SparseRM.load(folder)
        assert model.parts.kind == kind
        chosen, rejected = model.score_pairs(test)
        entry = fitted["sparserm"] if kind == "sparserm" else fitted["controls"][kind]
        assert np.mean(chosen > rejected) == pytest.approx(entry["accuracy"]), kind
        assert len(test) == entry["n"] == model.parts.evaluation["test"]["n"]


def test_a_second_fit_loads_no_language_model(fitted: dict[str, Any], tiny: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the language model was loaded")

    monkeypatch.setattr(steps, "load_backbone", refuse)
    again = json.loads(json.dumps(pipeline.fit(tiny, Store()).to_json()))
    assert {name: value for name, value in again.items() if name != "seconds"} == {name: value for name, value in fitted.items() if name != "seconds"}
    assert sum(again["seconds"].values()) < 2


def _counts() -> dict[str, int]:
    root = cache_root() / "artefacts"
    return {step: len(list((root / step).glob("*/*"))) for step in STEPS}


def test_only_what_an_option_changes_is_computed_again(fitted: dict[str, Any], tiny: FitConfig) -> None:
    chain = list(STEPS)

    def changed(*words: str) -> list[str]:
        before = _counts()
        options = vars(build_parser().parse_args(["fit", *words]))
        pipeline.fit(override(tiny, options), Store())
        after = _counts()
        assert all(after[step] - before[step] in (0, 1) for step in chain)
        return [step for step in chain if after[step] > before[step]]

    assert changed("--tokens-per-batch", "512", "--device", "cpu") == []
    assert changed("--epochs", "3") == ["heads", "controls", "curve", "evaluation", "known", "reward_model"]
    assert changed("--epochs", "3", "--curve", "4,8,32") == ["curve", "reward_model"]
    assert changed("--epochs", "3", "--random-draws", "2") == ["controls", "curve", "evaluation", "reward_model"]
    assert changed("--epochs", "3", "--split-seed", "5") == [step for step in chain if step != "extraction"]
    assert changed("--epochs", "3", "--max-length", "512") == [step for step in chain if step != "pairs"]


def test_fit_for_a_person_prints_the_table(fitted: dict[str, Any], cli: Any) -> None:
    code, out, _ = cli("fit", "--preset", "tiny")
    assert code == 0
    for name in ("SparseRM", "random-isotropic", "wording-only", "loss: bce", "K = 16", "95 % interval", "seconds: pairs"):
        assert name in out
    four = fitted["controls"]["length-only"]
    line = next(line for line in out.splitlines() if "length-only" in line)
    assert f"{four['accuracy']:.3f}" in line and f"{four['low']:.3f} to {four['high']:.3f}" in line and str(four["n"]) in line
    assert out.rstrip().endswith(fitted["artefact"])


def test_out_copies_a_folder_that_stands_alone(fitted: dict[str, Any], cli: Any, tmp_path: Path) -> None:
    code, out, _ = cli("fit", "--preset", "tiny", "--out", tmp_path / "mine", "--json")
    assert code == 0 and json.loads(out)["artefact"] == str(tmp_path / "mine")
    assert not (tmp_path / "mine/manifest.json").exists() and (tmp_path / "mine/evaluation.json").is_file()
    assert SparseRM.load(tmp_path / "mine").parts.kind == "sparserm"
    code, _, err = cli("fit", "--preset", "tiny", "--out", tmp_path / "mine")
    assert code == 2 and "exists already" in err


def test_without_an_sae_fit_says_the_two_commands(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    code, out, err = cli("fit", "--layer", "7")
    assert code == 8 and out == "" and "Traceback" not in err
    assert err.startswith("missing: an SAE for layer 7 of smollm2-135m\n")
    commands = [part.strip() for part in err.split("to do:")[1].split("(")[0].split(";")]
    assert commands[0] == "sparserm sae train --layer 7" and commands[1] == f"then sparserm fit --pairs {defaults.DEMO_PAIRS} --layer 7"
    for text in commands:
        assert build_parser().parse_args(shlex.split(text.removeprefix("then ").strip())[1:]).run


def test_the_embedded_sae_goes_before_any_other(tiny: FitConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from core.backbone.source import backbone_identity, find_model

    text = json.dumps({"backbone": backbone_identity(tiny.backbone, find_model(tiny.backbone)), "training": {"layer": 1}, "time_created": 1.0})
    for folder in (tmp_path / "demo/sae", tmp_path / "saes/trained"):
        shutil.copytree(tiny.sae.path, folder)
        (folder / "card.json").write_text(text)
    monkeypatch.setattr(defaults, "DEMO", tmp_path / "demo")
    monkeypatch.setattr(defaults, "DEMO_SAE", tmp_path / "demo/sae")
    said: list[str] = []
    found = defaults.complete(override(tiny, {"sae": ""}), Store(tmp_path), said.append)
    assert found.sae.path == str(tmp_path / "demo/sae") and "embedded" in said[0]


def test_the_newest_trained_sae_of_model_and_layer_is_taken(tiny: FitConfig, tmp_path: Path) -> None:
    from core.backbone.source import backbone_identity, find_model

    store, asked = Store(tmp_path), override(tiny, {"sae": ""})
    identity = backbone_identity(tiny.backbone, find_model(tiny.backbone))
    with pytest.raises(MissingError, match="an SAE for layer 1"):
        defaults.complete(asked, store, print)

    def card(name: str, created: float, layer: int = 1, **other: Any) -> None:
        shutil.copytree(tiny.sae.path, tmp_path / "saes" / name)
        text = json.dumps({"backbone": {**identity, **other}, "training": {"layer": layer}, "time_created": created})
        (tmp_path / "saes" / name / "card.json").write_text(text)

    card("old", 10.0)
    card("new", 20.0)
    card("other-layer", 30.0, layer=0)
    card("other-model", 40.0, sha256="0" * 64)
    said: list[str] = []
    assert defaults.complete(asked, store, said.append).sae.path == str(tmp_path / "saes/new")
    assert said and "newest trained" in said[0]
    assert defaults.complete(tiny, store, said.append).sae.path == tiny.sae.path and len(said) == 1


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--pairs", "/nowhere/pairs.jsonl"], 3, "there is no file"),
        (["--model", "/nowhere/model"], 4, "there is no model"),
        (["--sae", "/nowhere/sae"], 5, "/nowhere/sae"),
        (["--layer", "0"], 6, "SAE and backbone differ in layer"),
        (["--ratios", "1,0,0"], 3, "validation"),
    ],
)
def test_errors_have_their_exit_code_and_no_traceback(cli: Any, words: list[str], code: int, said: str) -> None:
    found, out, err = cli("fit", "--preset", "tiny", *words)
    assert found == code, err
    assert said in err and "Traceback" not in err and out == ""
    assert "Traceback" in cli("fit", "--preset", "tiny", "--debug", *words)[2]


def test_a_bug_is_told_from_an_error(cli: Any, naps: Any) -> None:
    naps(deed="stumble")
    code, _, err = cli("fit", "--preset", "tiny")
    assert code == 1 and "unexpected ZeroDivisionError" in err and "a bug" in err and "this is a bug; --debug shows where" in err
    assert "Traceback" not in err and "Traceback" in cli("fit", "--preset", "tiny", "--debug")[2]


def test_a_full_disk_is_no_bug(cli: Any, naps: Any) -> None:
    naps(deed="fill")
    code, _, err = cli("fit", "--preset", "tiny")
    assert code == 1 and "\nNo space left on device\n" in err and "bug" not in err


def test_ctrl_c_cancels_the_run_and_leaves_nothing_half_done(tiny: FitConfig, tmp_path: Path) -> None:
    env = {**os.environ, "SPARSERM_CACHE": str(tmp_path), HOLD: "extraction@0.5"}
    source = ["--pairs", tiny.data.pairs, "--model", tiny.backbone.model, "--layer", "1", "--sae", tiny.sae.path]
    line = [sys.executable, "-m", "core.cli.main", "fit", *source]
    running = subprocess.Popen(line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/held")) and time.monotonic() < end:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert out == "" and "Traceback" not in err
    assert "stopped; finished steps are kept" in err.splitlines()[-1]
    (run,) = all_runs(tmp_path)
    assert run.status().state == "cancelled"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert {path.parent.parent.parent.name for path, _ in Store(tmp_path).all()} == {"artefacts"}
    assert {artefact.step for _, artefact in Store(tmp_path).all()} == {"pairs"}


@pytest.mark.parametrize(("number", "state"), [(signal.SIGTERM, "cancelled"), (signal.SIGKILL, "succeeded")])
def test_a_terminated_command_cancels_and_a_killed_one_does_not(tmp_path: Path, number: int, state: str) -> None:
    """A supervisor's SIGTERM is meant for the work; nobody can react to SIGKILL, and the run can be found."""
    code = (
        "import sys\nsys.path.insert(0, 'tests')\nimport runs_helpers\nfrom core.cli import main, run_command\n"
        "from core.jobs import start\nstart.WORKER = runs_helpers.WORKER\n"
        "run_command.launch = lambda kind, config, **_: start.launch('nap', runs_helpers.NapConfig(looks=60, pause=0.05))\n"
        "sys.exit(main.main(['fit', '--preset', 'tiny']))"
    )
    env = {**os.environ, "SPARSERM_CACHE": str(tmp_path)}
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = wait_for(lambda: next(iter(all_runs(tmp_path)), None), 60)
    wait_state(run, "running")
    running.send_signal(number)
    assert running.wait(timeout=30) == (130 if state == "cancelled" else -number)
    wait_state(run, state)


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    """Neither a reader of standard output nor one of standard error is needed."""
    code = (
        "import sys\nsys.path.insert(0, 'tests')\nimport runs_helpers\nfrom core.cli import main, run_command\n"
        "from core.jobs import start\nstart.WORKER = runs_helpers.WORKER\n"
        "run_command.launch = lambda kind, config, **_: start.launch('nap', runs_helpers.NapConfig(looks=20))\n"
        "sys.exit(main.main(['fit', '--preset', 'tiny']))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "SPARSERM_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=writing, stderr=writing, timeout=60, check=False)
    os.close(writing)
    (run,) = all_runs(tmp_path)
    assert done.returncode == 0 and run.status().state == "succeeded"


# --- score, sweep, cache -------------------------------------------------------------------------------------------


def test_score_writes_rewardbench_rows(fitted: dict[str, Any], tiny: FitConfig, cli: Any, tmp_path: Path) -> None:
    code, out, err = cli("score", fitted["artefact"], tiny.data.pairs, "--out", tmp_path / "out.jsonl", "--json")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {"id", "subset", "text_chosen", "text_rejected", "scores_chosen", "scores_rejected", "results"} <= set(rows[0])
    assert all(row["results"] == int(row["scores_chosen"] > row["scores_rejected"]) for row in rows)
    report = json.loads(out)
    assert report["n_scored"] == len(rows) == len(Path(tiny.data.pairs).read_text().splitlines())
    assert report["pairs"]["accuracy"] == pytest.approx(np.mean([row["results"] for row in rows]))
    code, out, err = cli("score", fitted["artefact"], tiny.data.pairs)
    assert code == 0 and [json.loads(line) for line in out.splitlines()] == rows
    assert f"{len(rows)} of {len(rows)} pairs scored, from {len(rows)} rows, accuracy" in err


def test_score_names_what_is_wrong(fitted: dict[str, Any], tiny: FitConfig, cli: Any, tmp_path: Path) -> None:
    assert cli("score", tmp_path, tiny.data.pairs)[0] == 7
    assert cli("score", fitted["artefact"], tmp_path / "absent.jsonl")[0] == 3
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    code, _, err = cli("score", fitted["artefact"], tmp_path / "bad.jsonl", "--out", tmp_path / "out.jsonl")
    assert code == 3 and "Traceback" not in err and not (tmp_path / "out.jsonl").exists()


def test_sweep_reads_all_layers_in_one_pass_and_a_fit_reuses_it(tiny: FitConfig, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny.sae.path, tmp_path / "sae0")
    config = json.loads((tmp_path / "sae0/cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.0.hook_resid_post"
    (tmp_path / "sae0/cfg.json").write_text(json.dumps(config))
    base = ["--pairs", tiny.data.pairs, "--model", tiny.backbone.model, "--dtype", "float32", "--epochs", "3", "--seeds", "2", "--random-draws", "2"]
    layers = ["--layers", "0,1", "--saes", f"{tmp_path / 'sae0'},{tiny.sae.path}", "--ks", "4,8"]
    code, out, err = cli("sweep", *base, *layers, "--json")
    assert code == 0, err
    outcome = json.loads(out)
    assert len(outcome["points"]) == 2 * 2 * 4
    assert {(p["layer"], p["k"]) for p in outcome["points"] if p["kind"] == "sparserm"} == {(0, 4), (0, 8), (1, 4), (1, 8)}
    assert all(point["n_heads"] == 2 and {"low", "high", "n"} <= set(point) for point in outcome["points"])
    best = max(p["accuracy"] for p in outcome["points"] if p["kind"] == "sparserm")
    assert outcome["best"]["accuracy"] == best
    assert _counts()["extraction"] == 1

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(steps, "load_backbone", refuse)
    words = [*base, "--layer", "0", "--sae", tmp_path / "sae0", "--k", "4", "--curve", "4"]
    pipeline.fit(config_from(build_parser().parse_args(["fit", *map(str, words)])), Store())
    assert _counts()["extraction"] == 1
    code, out, _ = cli("sweep", *base, *layers)
    assert code == 0 and "best validation accuracy: layer" in out
    code, _, err = cli("sweep", *base, "--layers", "0,1", "--saes", tiny.sae.path)
    assert code == 2 and "one SAE for each layer" in err


def test_cache_list_verify_clean(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))

    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        (folder / "a.bin").write_bytes(b"x" * 2000)
        return {}

    made = [Store().get_or_make("step", 1, {"n": n}, [], make) for n in range(3)]
    listed = json.loads(cli("cache", "list", "--json")[1])
    assert {row["path"] for row in listed["artefacts"]} == {str(artefact.path) for artefact in made}
    assert listed["bytes"] >= 6000 and all(row["step"] == "step" for row in listed["artefacts"])
    assert "3 artefacts" in cli("cache", "list")[1]
    assert cli("cache", "verify") == (0, "3 artefacts read, 0 damaged\n", "")
    made[1].file("a.bin").write_bytes(b"y" + b"x" * 1999)
    code, out, err = cli("cache", "verify", "--json")
    assert code == 7 and json.loads(out) == {"artefacts": 3, "damaged": [str(made[1].path)]}
    assert "the next run computes them again" in err
    assert cli("cache", "verify")[0] == 0
    assert json.loads(cli("cache", "clean", "--json")[1])["bytes"] >= 2000
    assert len(list(Store().all())) == 2
    assert cli("cache", "clean", "--everything")[1].endswith("kB freed\n")
    assert list(Store().all()) == []


@pytest.mark.slow
def test_sae_train_then_fit_finds_it(tiny: FitConfig, tmp_path: Path) -> None:
    model = ["--model", tiny.backbone.model, "--layer", "1", "--dtype", "float32"]
    train = ["--width", "64", "--k", "8", "--tokens", "20000", "--batch-size", "128", "--context", "64", "--corpus", tiny.data.pairs]
    done = run_apart("sae", "train", *model, *train, "--json", SPARSERM_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)
    assert {"fvu", "l0"} <= set(trained["card"]["measured"])
    done = run_apart("fit", "--pairs", tiny.data.pairs, *model, "--k", "8", "--curve", "4,8", "--json", SPARSERM_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["about"]["sae"] == Path(trained["artefact"]).name


# --- what is shown -------------------------------------------------------------------------------------------------


def test_progress_in_a_log_is_a_line_a_step(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Display() as display:
        for done in range(0, 101, 10):
            display("extraction", done, 100, tokens_per_s=1234.5)
            now[0] += 7.0
        display("heads", 1, 4, width=8)
        now[0] += 2.0
        display("heads", 4, 4, width=16)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "extraction: 50%, about 35 s left  1,234 tokens/s",
        "extraction: done in 1 min 10 s  1,234 tokens/s",
        "heads: done in 2.0 s  width 16",
    ]
    with Display(quiet=True) as quiet:
        quiet("extraction", 1, 1)
        quiet.say("not for machines")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [("fit", "--preset", "tiny"), ("cache", "list")])
def test_progress_on_a_terminal_never_takes_standard_output(fitted: dict[str, Any], words: tuple[str, ...]) -> None:
    """rich sends standard output to the terminal of its bars, unless told not to: a pipe stayed empty."""
    terminal, ours = os.openpty()
    line = [*COMMAND, *words, "--json"]
    running = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=ours, text=True, env={**os.environ, "TERM": "xterm"})
    out, _ = running.communicate(timeout=120)
    os.close(ours)
    assert running.returncode == 0 and out.count("\n") == 1
    assert fitted["artefact"] in out and isinstance(json.loads(out), dict)
    shown = os.read(terminal, 100_000).decode()
    assert fitted["artefact"] not in shown and ("load SAE" in shown) == (words[0] == "fit")
    os.close(terminal)


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (0.44, 9.96, 59.6, 60, 185, 7800)] == ["0.4 s", "10.0 s", "60 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"]
    assert [size(n) for n in (0, 999, 1500, 2.5e6, 1e9, 5e12)] == ["0 B", "999 B", "1.5 kB", "2.5 MB", "1.0 GB", "5000.0 GB"]
    assert figures_text({"loss": 0.12345, "dead": 1234, "tokens_per_s": 99.4, "unit": "bytes"}) == "loss 0.123  dead 1,234  99.4 tokens/s"
    assert tables.accuracy_cells({"accuracy": None, "low": 0.0, "high": 1.0, "n": 0}) == ("none", "", "0")
    assert tables.figures_of({"a": {"b": 0.123456, "c": [1]}, "d": 2}) == [("a.b", "0.1235"), ("a.c", "[1]"), ("d", "2")]

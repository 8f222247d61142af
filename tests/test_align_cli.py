"""`sparserm align`: options and presets, what it refuses, the estimate, the run in the background, what a person is shown; two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from left_out_helpers import counts_of
from runs_helpers import wait_state

from core.align.left_out import sentences
from core.align.presets import ALIGN_PRESETS
from core.backbone.presets import PRESETS, preset
from core.cli import run_command, tables
from core.cli.main import build_parser
from core.cli.options import options_of, override
from core.cli.outcomes import print_outcome
from core.cli.run_command import config_from
from core.config import AlignConfig, DataConfig, from_dict
from core.jobs import start as launching
from core.jobs.align import ALIGN, completed
from core.jobs.kinds import asked_config
from core.runs.registry import find_run
from core.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]


def asked(*words: str) -> AlignConfig:
    return config_from(build_parser().parse_args(["align", *words]))


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_reach_their_configs() -> None:
    config = asked(
        *(
            "--preset",
            "demo",
            "--reward-model",
            "rm",
            "--arm",
            "dense",
            "--rounds",
            "3",
            "--seed",
            "4",
            "--min-margin",
            "0.5",
            "--prompts",
            "p.jsonl",
        ),
        *(
            "--mode",
            "best_of_n",
            "--n",
            "6",
            "--best-of-margin",
            "0.2",
            "--candidates-seed",
            "5",
            "--max-new-tokens",
            "20",
            "--endpoint",
            "http://x/v1",
        ),
        *("--dpo-lr", "1e-4", "--dpo-epochs", "2", "--dpo-seed", "6", "--gradient-checkpointing", "true", "--reference", "previous"),
        *(
            "--mc",
            "mc.json",
            "--evaluation-pairs",
            "7",
            "--evaluation-seed",
            "8",
            "--k",
            "9",
            "--lr",
            "0.1",
            "--model",
            "org/m",
            "--dtype",
            "float16",
        ),
    )
    assert (config.model, config.arm, config.rounds, config.seed, config.min_margin, config.prompts) == ("rm", "dense", 3, 4, 0.5, "p.jsonl")
    candidates = config.candidates
    assert (candidates.mode, candidates.n, candidates.min_margin, candidates.seed, candidates.max_new_tokens) == ("best_of_n", 6, 0.2, 5, 20)
    assert candidates.endpoint == "http://x/v1"
    dpo = config.dpo
    assert (dpo.lr, dpo.epochs, dpo.seed, dpo.gradient_checkpointing, dpo.reference) == (1e-4, 2, 6, True, "previous")
    assert (config.evaluation.mc, config.evaluation.pairs, config.evaluation.seed) == ("mc.json", 7, 8)
    fit = config.fit
    assert (fit.selection.k, fit.head.lr, fit.backbone.model, fit.backbone.dtype) == (9, 0.1, "org/m", "float16")
    assert (fit.data.seed, fit.selection.seed, config.prompts_limit) == (0, 0, ALIGN_PRESETS["demo"].prompts_limit)


def test_a_config_comes_back_from_its_own_options() -> None:
    """As the form's command line and a rerun need it."""
    config = asked("--preset", "tiny", "--gradient-checkpointing", "true", "--dpo-seed", "3", "--evaluation-prompts", "5", "--arm", "none")
    words = options_of(config, ALIGN_PRESETS["tiny"])
    assert asked("--preset", "tiny", *words) == config and len(words) == 8
    assert from_dict(AlignConfig, json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("words", "said"), [(["--gradient-checkpointing", "yes"], "invalid true or false value: 'yes'"), (["--rounds", "0"], "too small")]
)
def test_a_wrong_option_is_named(cli: Any, words: list[str], said: str) -> None:
    code, out, err = cli("align", *words)
    assert code == 2 and out == "" and said in err and "Traceback" not in err


def test_values_of_the_embedded_model_hold_only_for_it() -> None:
    assert asked() == ALIGN_PRESETS["smollm2-135m"] and asked().fit == PRESETS["smollm2-135m"]
    assert asked("--model", "org/other") == override(AlignConfig(), {"model": "org/other"})


def test_the_presets_are_the_papers_and_small_ones() -> None:
    assert set(ALIGN_PRESETS) == {*PRESETS, "demo"} - {"smollm2-135m-paper"}  # a control beside the demo's fit
    for name in ("gemma-2-2b", "gemma-2-9b", "llama-3.1-8b"):
        config = ALIGN_PRESETS[name]
        assert config.fit == PRESETS[name] and (config.rounds, config.dpo.epochs, config.dpo.beta, config.dpo.reference) == (5, 3, 0.1, "base")
        assert (config.dpo.lora_r, config.dpo.lora_alpha, config.candidates.mode, config.arm) == (16, 32, "two_prompts", "sparserm")
    assert ALIGN_PRESETS["demo"].prompts_limit <= 48 and ALIGN_PRESETS["demo"].rounds == 2 and ALIGN_PRESETS["demo"].fit == PRESETS["smollm2-135m"]


# --- refused before anything is computed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "best_of_n", "--arm", "none"], "best_of_n selects by the reward itself"),
        (["--evaluation-share", "1"], "none be trained on"),
        (["--endpoint", "http://localhost:1/v1"], "--endpoint-model NAME"),
        (["--merge"], "--merge needs a folder"),
        (["--out", str(ROOT)], "exists already"),
        (["--out", "/tmp/never-made", "--detach"], "--out does not go with --detach"),
    ],
)
def test_what_cannot_be_is_refused_at_once(cli: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.setattr(run_command, "launch", lambda *_: pytest.fail("began"))
    code, out, err = cli("align", "--preset", "tiny", *words)
    assert code == 2 and out == "" and said in err


# --- completing, estimating, detaching --------------------------------------------------------------------------------


def test_completing_fills_in_the_fit_and_makes_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "cache")
    config = completed(asked("--preset", "tiny", "--prompts", "prompts.jsonl"), store, lambda _: None)
    assert config.prompts == str(tmp_path / "prompts.jsonl") and Path(config.fit.data.pairs).is_file() and Path(config.fit.sae.path).is_dir()
    assert completed(config, store, lambda _: None) == config
    (tmp_path / "rm").mkdir()
    named = completed(asked("--preset", "tiny", "--reward-model", "rm", "--arm", "./rm"), store, lambda _: None)
    assert (named.model, named.arm, named.fit.data) == (str(tmp_path / "rm"), str(tmp_path / "rm"), DataConfig())


def test_the_estimate_grows_with_the_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = {}
    for rounds, limit in ((1, 10), (2, 10), (2, 100)):
        config = completed(asked("--preset", "tiny", "--rounds", str(rounds), "--prompts-limit", str(limit)), store, lambda _: None)
        found[rounds, limit] = ALIGN.plan(config, store, lambda *_, **__: None)
        assert found[rounds, limit].memory > 0 and ALIGN.disk(config, tmp_path) > 0 and ALIGN.inputs(config) == [config.fit.data.pairs]
    assert found[1, 10].seconds < found[2, 10].seconds < found[2, 100].seconds and found[1, 10].disk < found[2, 10].disk < found[2, 100].disk


def test_the_estimate_is_said_and_nothing_else_done(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_command, "launch", lambda *_: pytest.fail("began"))
    code, out, _ = cli("align", "--preset", "tiny", "--estimate", "--json")
    assert code == 0 and set(json.loads(out)) == {"memory", "disk", "seconds"}
    code, out, _ = cli("align", "--preset", "tiny", "--estimate")
    assert code == 0 and out.startswith("about ")


def test_detach(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's options arrive in the run; nothing is computed here."""
    monkeypatch.setattr(launching, "WORKER", [sys.executable, "-c", "raise SystemExit('enough')"])
    code, out, err = cli("align", "--preset", "tiny", "--arm", "none", "--rounds", "3", "--detach")
    run = find_run(out.strip())
    assert code == 0 and run.kind == "align" and "sparserm runs follow" in err
    assert asked_config(run) == asked("--preset", "tiny", "--arm", "none", "--rounds", "3")
    wait_state(run, "failed")


# --- what is shown ----------------------------------------------------------------------------------------------------


def manifest(round: int, **more: Any) -> dict[str, Any]:
    figures = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}, "kl_per_token": {"value": 0.01 * round, "low": 0.0, "high": 0.02}}
    figures |= {"reward": {"value": 1.0, "low": 0.5, "high": 1.5}} if round < 2 else {}
    figures = {name: {**figure, "n": 12} for name, figure in figures.items()}
    counts = {"generated": 48, "parsed": 40, "kept": 30, "dropped": 10, "reasons": {"margin": 9, "too long": 1}}
    return {"round": round, **counts, "seconds": 75.0, "evaluation": {"figures": figures}, **more}


def test_a_person_sees_pairs_policy_warnings_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = {"arm": "sparserm", "base": manifest(0), "rounds": [manifest(1), manifest(2)], "chosen_round": 1, "choice": "the best", "stopped": ""}
    tables.print_align({**outcome, "warnings": [{"round": 2, "figure": "length", "text": "reward rose"}], "artefact": "/a", "adapter": "/a/adapter"})
    out = capsys.readouterr().out
    assert "9 margin, 1 too long" in out and "1 min 15 s" in out and "0.500 (0.400 to 0.600)" in out and "0.020 (0.000 to 0.020)" in out
    assert "round 2: reward rose" in out and "chosen: round 1 (the best)" in out and "adapter: /a/adapter" in out and "mc1" not in out
    print_outcome("align", {"outcome": {**outcome, "warnings": [], "stopped": "no pair was kept", "artefact": "/a", "adapter": None}}, AlignConfig())
    out = capsys.readouterr().out
    assert "no pair was kept" in out and "adapter" not in out


def test_a_person_sees_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Every place between the prompts and the figures where something leaves; where nothing was counted (older files) nothing is said."""
    about = {
        "held_out": "test", "held_out_pairs": 20, "held_out_pairs_of": 31, "held_out_pairs_refused": 3,
        "held_out_pairs_refused_by_reason": {"too long: 900 tokens, at most 512": 3},
        "validation_pairs": 9, "validation_pairs_of": 9, "validation_pairs_refused": 0, "answers": 6, "answers_of": 16, "answers_unread": 2,
        "mc_questions": 8, "mc_unseen": 5, "mc_refused": 2, "mc_unseen_refused": 1,
    }  # fmt: skip
    prompts = {"n": 10, "source": "p.jsonl", "n_refused": 1, "n_repeated": 2, "n_held_out": 3, "n_over_limit": 4}
    counts = {"prompts": prompts, "not_parsed": {"empty answer": 8}, "unread": 2, "learnt_from": {"train": 20, "validation": 8, "refused": 2}}
    rounds = [manifest(1, **counts, evaluation={"figures": manifest(1)["evaluation"]["figures"], "about": {"answers": 6, "answers_unread": 0}})]
    base = manifest(0, evaluation={"figures": manifest(0)["evaluation"]["figures"], "about": about})
    outcome = {"arm": "sparserm", "base": base, "rounds": rounds, "chosen_round": 1, "choice": "the best", "stopped": "", "warnings": []}
    tables.print_align({**outcome, "artefact": "/a", "adapter": None, "pair_counts": counts_of(n=49, refused=21)})
    out = capsys.readouterr().out
    for line in (
        "Prompts: 10 are asked (p.jsonl); left out: 3 held out for the evaluation, 2 repeated, 1 rows without a prompt that can be asked, "
        "4 beyond --prompts-limit.",
        "Round 1: generated texts that are no pair: 8 empty answer.",
        "Round 1: the reward model can't read 2 of 40 pairs.",
        "Round 1: DPO learnt from 20 pairs, 8 chose the epoch, 2 were refused.",
        "Measured on 20 of 31 test pairs; 3 can't be compared (3 too long: 900 tokens, at most 512), 8 were not drawn (--evaluation-pairs).",
        "Answers to 6 of 16 held-out prompts.",
        "2 of 8 multiple-choice questions are too long (1 of 5 unseen ones).",
        "Round 0: 2 of 6 answers can't be read, so they have no reward.",
        "Left out: the language model can't read 21 of 49 pairs (21 of 49 in test).",
    ):
        assert line in out, line
    assert "(0.400 to 0.600), 12" in out and "validation pairs;" not in out
    assert sentences({**outcome, "base": manifest(0), "rounds": [manifest(1)]}) == [], "an older file"


# --- the whole, with its adapter, by one process and by two -----------------------------------------------------------


@pytest.mark.slow
def test_the_adapter_and_the_merged_model_are_saved(tmp_path: Path) -> None:
    """Validation pairs are few, so that a random model's round 1 may well be chosen; where it is not, the way out is said."""
    words = ["align", "--preset", "tiny", "--rounds", "1", "--json"]
    env = {**os.environ, "SPARSERM_CACHE": str(tmp_path / "cache")}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "core.cli.main", *words, *more]
        return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)

    first = run("--out", str(tmp_path / "adapter"))
    if json_of(first) is None:
        assert first.returncode == 8 and "copy a round's own: " in first.stderr
        return
    assert run("--out", str(tmp_path / "merged"), "--merge").returncode == 0
    from transformers import AutoModelForCausalLM

    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").num_parameters() > 0


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


@pytest.mark.slow
def test_the_same_command_under_accelerate_launch(tmp_path: Path) -> None:
    """Two processes train what one trains; one of them writes, and prints the one line."""
    tiny = preset("tiny")
    words = ["align", "--preset", "tiny", "--rounds", "1", "--json", "--lora-dropout", "0"]
    words += ["--pairs", tiny.data.pairs, "--model", tiny.backbone.model, "--sae", tiny.sae.path]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    found = {}
    for n in (1, 2):
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(n), *plain] if n > 1 else []
        env = {**os.environ, "SPARSERM_CACHE": str(tmp_path / str(n)), "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "core.cli.main", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = done.stdout.splitlines()
        found[n] = json.loads(line)["rounds"][0]
        (folder,) = (tmp_path / str(n) / "artefacts/align-dpo").glob("*/*")
        assert json.loads((folder / "dpo.json").read_text())["n_processes"] == n
    assert all(found[1][name] == found[2][name] for name in ("generated", "parsed", "kept", "dropped"))
    accuracy = [found[n]["evaluation"]["figures"]["logprob_margin"]["value"] for n in (1, 2)]
    assert accuracy[0] == pytest.approx(accuracy[1], rel=0.05)

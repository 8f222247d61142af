"""`--config` and `--save-config`: what a file sets, what options override, and how a wrong field is named."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ROOT

from core.backbone.presets import PRESETS
from core.cli.config_file import as_toml
from core.cli.main import build_parser
from core.cli.run_command import config_from
from core.config import Config, FitConfig
from core.errors import ConfigError
from core.jobs.kinds import KINDS

# Options of each command that change texts, numbers, lists, mappings and truth values somewhere in its config.
CHANGES = {
    "fit": [
        "--k",
        "9",
        "--pairs",
        'my "pairs" \\ é.csv',
        "--columns",
        "prompt=my question,chosen=b",
        "--lr",
        "1e-05",
        "--curve",
        "4,8",
        "--sae",
        "a:b/c",
    ],
    "sae-train": ["--layer", "3", "--width", "64", "--ratios", "0.5,0.2,0.3"],
    "sweep": ["--layers", "1,2", "--saes", "a,b", "--preset", "gemma-2-2b"],
    "pairs": ["--pairs", "x.jsonl", "--label-values", "first=0,second=1"],
    "doctor": ["M", "--swaps", "3", "--device", "cpu"],
    "spaces": ["M", "--points", "50"],
    "latents": ["M", "--latent", "3", "--latent", "4,5", "--all", "--tokens", "7"],
    "align": ["--preset", "demo", "--arm", "none", "--gradient-checkpointing", "true", "--reward-model", "rm"],
}


def asked(kind: str, *words: object) -> Config:
    return config_from(build_parser().parse_args([*KINDS[kind].command, *map(str, words)]))


@pytest.mark.parametrize("kind", list(CHANGES))
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_saved_config_gives_the_same_config(cli: Any, tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"saved{suffix}"
    assert cli(*KINDS[kind].command, *CHANGES[kind], "--save-config", path)[0] == 0
    model = ["M"] if KINDS[kind].argument else []
    assert asked(kind, *model, "--config", path) == asked(kind, *CHANGES[kind])
    assert cli(*KINDS[kind].command, *model, "--save-config", path)[0] == 2, "a file that is there is kept"


def test_every_kind_is_tested() -> None:
    assert set(CHANGES) == {name for name in KINDS if name != "nap"}


def test_options_override_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('random_draws = 2\n[selection]\nk = 5\n[head]\nlr = 1\n[sae]\npath = "mine"\n')
    config = asked("fit", "--preset", "gemma-2-2b", "--config", path, "--k", "6")
    assert isinstance(config, FitConfig)
    assert (config.selection.k, config.random_draws, config.head.lr) == (6, 2, 1.0)
    assert config.backbone == PRESETS["gemma-2-2b"].backbone and (config.sae.path, config.sae.release) == ("mine", "")
    path.write_text('[backbone]\nmodel = "org/other"\n')
    other = asked("fit", "--config", path)
    assert isinstance(other, FitConfig) and other.selection.k == FitConfig().selection.k, "the embedded preset holds for its model only"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\npears = "x"', r"my.toml: there is no field data.pears(.|\n)*data.pairs\?"),
        ('pairs = "x"', r"there is no field pairs(.|\n)*data.pairs\?"),
        ("[selektion]\nk = 3", r"there is no field selektion(.|\n)*selection\?"),
        ("[selection]\nk = 3.5", r"selection.k has another type(.|\n)*a whole number(.|\n)*3.5"),
        ("[selection]\nk = true", r"selection.k has another type(.|\n)*a whole number"),
        ("[selection]\nk = 0", "SelectionConfig.k is too small"),
        ("data = 3", "data has another type(.|\n)*a table of fields"),
        ('curve = "4"', r"curve has another type(.|\n)*a list"),
        ("[data]\ncolumns = [1]", r"data.columns has another type(.|\n)*a table of texts"),
        ("k = ", "holds no valid TOML"),
        ("[data]\nseed = 1\nseed = 2", "holds no valid TOML(.|\n)*overwrite a value"),
    ],
)
def test_a_wrong_field_names_its_place_and_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        asked("fit", "--config", path)


def test_files_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read(.|\n)*No such file"):
        asked("fit", "--config", tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"a \.toml or a \.json file"):
        asked("fit", "--config", tmp_path / "my.yaml")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no table of fields"):
        asked("fit", "--config", tmp_path / "list.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"random_draws": 1, "random_draws": 2}', "the key random_draws stands twice"),
        ('{"data": {"seed": 1, "seed": 1}}', "the key seed stands twice"),
        ('{"data": {"seed": 1}, "data": {"pairs": "x"}}', "the key data stands twice"),
        ('{"head": {"lr": NaN}}', "NaN is no JSON number"),
        ('{"head": {"lr": 1e999}}', "1e999 is too large a number"),
        ('{"head": ', "Expecting value"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_json_that_is_not_strict_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"my.json holds no valid JSON(.|\n)*{message}"):
        asked("fit", "--config", path)


def test_toml_is_what_python_reads_back() -> None:
    values = {"a b": 'x"\\\n\t\x7f\x1bé', "n": -1, "x": 1e-12, "t": True, "l": [1, 2], "e": [], "s": ["a"], "in": {"deep": {"m": {"k.k": "v"}}}}
    assert tomllib.loads(as_toml(values)) == values


@pytest.mark.parametrize("kind", ["fit", "sweep", "align", "sae-train"])
def test_help_fits_on_a_screen_and_help_all_shows_the_rest(kind: str) -> None:
    words = [sys.executable, "-m", "core.cli.main", *KINDS[kind].command]
    env = {**os.environ, "COLUMNS": "80", "LINES": "45"}

    def printed(option: str) -> str:
        return subprocess.run([*words, option], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout

    short, whole = printed("--help"), printed("--help-all")
    assert len(short.splitlines()) <= 45 < len(whole.splitlines())
    assert "--help-all" in short and "--dtype" not in short and "--dtype" in whole

"""README holds: its commands parse, its Python runs, every option stands in it, and CI runs its very test command."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.backbone.presets import preset
from core.cli import build_parser
from core.pipeline import copy_out, fit
from core.runs.store import Store

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# `UPDATE_README=1 pytest tests/test_readme.py` writes the options anew.
UPDATE = "UPDATE_README"
MARKED = re.compile(r"(<!-- options:.*?-->\n)(.*?)(<!-- /options -->)", re.DOTALL)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands that do something, in order."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from commands(child)
    if parser.get_default("run"):
        yield parser


def options_text() -> str:
    """README's reference of all commands and options."""
    lines = []
    for parser in commands(build_parser()):
        words = [str(action.metavar) for action in parser._actions if not action.option_strings]
        lines += [f"<details><summary><code>{' '.join([parser.prog, *words])}</code> {parser.description}</summary>\n"]
        for action in parser._actions:
            if not isinstance(action, argparse._HelpAction):
                value = "" if action.nargs == 0 else str(action.metavar or "|".join(filter(None, map(str, action.choices or ()))))
                name = " ".join(filter(None, [*action.option_strings[:1], value])) if action.option_strings else str(action.metavar)
                lines.append(f"- `{name}` {(action.help or '').replace('%%', '%')}")
        lines.append("\n</details>\n")
    return "\n".join(lines)


def test_every_command_and_option_is_documented() -> None:
    found = MARKED.search(README)
    assert found
    if os.environ.get(UPDATE):
        (ROOT / "README.md").write_text(MARKED.sub(lambda m: f"{m[1]}\n{options_text()}\n{m[3]}", README), encoding="utf-8")
    assert found[2].strip() == options_text().strip(), f"run {UPDATE}=1 pytest tests/test_readme.py"


def test_the_commands_of_the_readme_are_commands() -> None:
    lines = [part.strip() for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    ours = [line.removeprefix(".venv/bin/") for line in lines if re.match(r"(\.venv/bin/)?sparserm ", line)]
    assert len(ours) >= 4
    for line in ours:
        assert callable(build_parser().parse_args(shlex.split(line)[1:]).run)


def test_there_are_two_commands_of_one_line_and_ci_runs_the_second() -> None:
    first, second = (block.strip() for block in blocks("bash")[:2])
    assert "\n" not in first and "\n" not in second
    assert first.endswith("streamlit run workbench/app.py") and (ROOT / "workbench/app.py").is_file()
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in ci
    assert ci[-1] == second
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    """All blocks in order, in one fresh interpreter, beside a reward model of the name that README uses."""
    outcome = fit(preset("tiny"), Store())
    copy_out(outcome.artefact, tmp_path / "my_reward_model")
    code = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for name in ("sparserm", "random-isotropic", "wording-only", "bradley-terry"):
        entry = {"sparserm": outcome.evaluation["sparserm"], **outcome.evaluation["controls"], **outcome.evaluation["losses"]}[name]
        line = f"{name:20} {entry['accuracy']:.3f}  [{entry['low']:.3f}, {entry['high']:.3f}]  n = {entry['n']}"
        assert line in done.stdout.splitlines()
    assert str(outcome.artefact) in done.stdout


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_the_documents_name_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:core|tests|benchmarks|\.ci)/[\w./]+\w)", text))
    missing = [path for path in named if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()]
    assert missing == []


def test_the_licence_is_there() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000

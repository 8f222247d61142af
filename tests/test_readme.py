"""README and docs/: their commands parse, their Python runs, docs/commands.md is current, and CI runs README's very test command."""

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
from document_helpers import COMMANDS_DOCUMENT, DOCUMENTS, ROOT, blocks, document

from core.backbone.presets import preset
from core.cli.main import build_parser
from core.fit.pipeline import copy_out, fit
from core.runs.store import Store

# `UPDATE_README=1 pytest tests/test_readme.py` writes docs/commands.md anew.
UPDATE = "UPDATE_README"
MOST_LINES = 200
HEAD = """# All commands and their options

Written by `{switch}=1 pytest tests/test_readme.py` from the command line itself; `sparserm COMMAND --help` says the same. What the commands are for
stands in [the guide](GUIDE.md). Every command takes `--json` (one JSON line on standard output, for machines; progress goes to standard error) and
`--debug` (the traceback of an error); they are left out below.
"""
EVERYWHERE = ("--json", "--debug", "--help-all")


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands that do something, in order."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from commands(child)
    if parser.get_default("run"):
        yield parser


def commands_text() -> str:
    """What docs/commands.md has to say: every command with its help, examples and options, by the groups of `--help`."""
    parts = [HEAD.format(switch=UPDATE)]
    parsers = list(commands(build_parser()))
    parts.append("\n".join(f"- [`{p.prog}`](#{p.prog.replace(' ', '-')}) {p.description}" for p in parsers) + "\n")
    for parser in parsers:
        places = [str(action.metavar) for action in parser._actions if not action.option_strings]
        examples = [line.strip() for line in str(parser.epilog or "").splitlines()[1:] if line.strip()]
        parts.append(f"## {parser.prog}\n\n`{' '.join([parser.prog, *places])}`: {parser.description}\n")
        parts.append("\n".join(["```bash", *examples, "```"]) + "\n")
        for group in parser._action_groups:
            lines = [option_line(action) for action in group._group_actions if is_listed(action)]
            if lines:
                titled = [f"**{group.title}**\n"] if group.title not in ("options", "positional arguments") else []
                parts.append("\n".join([*titled, *lines]) + "\n")
    return "\n".join(parts)


def is_listed(action: argparse.Action) -> bool:
    return not isinstance(action, argparse._HelpAction) and not set(action.option_strings) & set(EVERYWHERE)


def option_line(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else str(action.metavar or "|".join(filter(None, map(str, action.choices or ()))))
    name = " ".join(filter(None, [*action.option_strings[:1], value])) if action.option_strings else str(action.metavar)
    return f"- `{name}` {(action.help or '').replace('%%', '%')}"


def command_lines() -> list[tuple[str, str]]:
    """Every `sparserm` command line of the documents' bash blocks, with its document; a line that ends with a backslash goes on in the next."""
    found = []
    for name in DOCUMENTS:
        for block in blocks(name, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                parts = (part.strip().removeprefix(".venv/bin/") for part in line.split("&&"))
                found += [(name, part) for part in parts if part.startswith("sparserm ")]
    return found


def test_the_reference_of_commands_is_current() -> None:
    path = ROOT / COMMANDS_DOCUMENT
    if os.environ.get(UPDATE):
        path.write_text(commands_text(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == commands_text(), f"run {UPDATE}=1 pytest tests/test_readme.py"


def test_every_option_of_every_command_is_in_the_reference() -> None:
    """Told apart by the text below a command's heading, not by the functions that wrote it."""
    sections = dict(re.findall(r"^## (sparserm [a-z ]+)\n(.*?)(?=^## |\Z)", document(COMMANDS_DOCUMENT), re.DOTALL | re.MULTILINE))
    for parser in commands(build_parser()):
        options = [option for option in parser._option_string_actions if option not in ("-h", "--help", *EVERYWHERE)]
        assert [option for option in options if f"`{option}" not in sections[parser.prog]] == []
        assert str(parser.description) in sections[parser.prog]


def test_the_commands_of_the_documents_are_commands() -> None:
    lines = command_lines()
    assert len([name for name, _ in lines if name == "README.md"]) >= 4
    for name, line in lines:
        try:
            arguments = build_parser().parse_args(shlex.split(line, comments=True)[1:])
        except SystemExit:
            pytest.fail(f"{name}: {line}")
        assert callable(arguments.run)


def test_readme_is_short_and_lists_no_options() -> None:
    text = document("README.md")
    assert len(text.splitlines()) <= MOST_LINES
    assert not re.findall(r"^\s*[-*] `--", text, re.MULTILINE)


def test_there_are_two_one_line_commands_and_ci_runs_the_second() -> None:
    first, second = (block.strip() for block in blocks("README.md", "bash")[:2])
    assert "\n" not in first and "\n" not in second
    assert first.endswith("streamlit run workbench/app.py") and (ROOT / "workbench/app.py").is_file()
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in ci
    assert ci[-1] == second
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_python_of_the_documents_runs(tmp_path: Path) -> None:
    """All blocks in order, in one fresh interpreter, beside a reward model of the name that they use."""
    outcome = fit(preset("tiny"), Store())
    copy_out(outcome.artefact, tmp_path / "my_reward_model")
    code = "\n".join(block for name in DOCUMENTS for block in blocks(name, "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for name in ("sparserm", "random-isotropic", "wording-only", "bradley-terry"):
        entry = {"sparserm": outcome.evaluation["sparserm"], **outcome.evaluation["controls"], **outcome.evaluation["losses"]}[name]
        line = f"{name:20} {entry['accuracy']:.3f}  [{entry['low']:.3f}, {entry['high']:.3f}]  n = {entry['n']}"
        assert line in done.stdout.splitlines()
    assert str(outcome.artefact) in done.stdout


def test_the_licence_is_there() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000

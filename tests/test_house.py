"""Rules for the tests themselves: short names, no private names of the product, no paths of one machine, counted skips without real data."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from house import ROOT, TOPS, modules, names_of_tests
from real_data import MISSING, real_data, summary

TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_NAME = 60
# Private names of argparse and of Streamlit's AppTest that the product has as well.
OTHERS = {"parser._actions", "found._actions", "at._run"}
# Folders of one machine; /tmp, /proc and the like are on every one.
ABSOLUTE = re.compile(r"(?<![\w.}~])/(?:work|home|root|Users|mnt|data)/\w")


@cache
def private_names() -> frozenset[str]:
    """Every private name that the product defines: functions, classes, variables of modules, attributes of objects."""
    names: set[str] = set()
    for path in modules(ROOT).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return frozenset(name for name in names if re.match(r"_[a-zA-Z]", name))


def private_uses(text: str) -> Iterator[str]:
    """The private names of the product that a test's text imports, reads as an attribute, or names in a string."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in TOPS:
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr in private_names() and ast.unparse(node.value) not in ("self", "cls"):
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"[\w.]+\.(_\w+)", node.value) or re.search(r"\bimport (?:\w+, )*(_[a-z]\w*)", node.value)
            if named and named[1] in private_names():
                yield node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr", "delattr")):
            yield from (word.value for word in node.args[1:2] if isinstance(word, ast.Constant) and word.value in private_names())


def test_tests_use_no_private_names_of_the_product() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in TESTS if path != Path(__file__)}
    uses = {name: [use for use in private_uses(text) if use not in OTHERS] for name, text in texts.items()}
    assert {name: names for name, names in uses.items() if names} == {}


@pytest.mark.parametrize(
    "text",
    [
        "from core.data.sources import _open_file",
        "sources._open_file(path)",
        "monkeypatch.setattr(sources, '_open_file', None)",
        "monkeypatch.setattr('core.data.sources._open_file', None)",
        "code = 'from core.data.sources import open_source, _open_file'",
    ],
)
def test_the_use_of_a_private_name_is_seen(text: str) -> None:
    assert len(list(private_uses(text))) == 1


def test_names_of_tests_are_short() -> None:
    assert {name: len(name) for name in names_of_tests(ROOT) if len(name) > LONGEST_NAME} == {}


def test_no_test_names_a_path_of_one_machine() -> None:
    texts = {
        (path.name, node.value)
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ABSOLUTE.search(node.value)
    }
    assert texts == set()


def test_contributing_lists_the_slow_tests() -> None:
    marked = {path.name for path in TESTS if re.search(r"^(?:pytestmark = |@)pytest\.mark\.slow\b", path.read_text(encoding="utf-8"), re.MULTILINE)}
    rows = re.findall(r"^\| (test_\w+\.py) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == sorted(marked)


def test_missing_real_data_skips_and_is_counted() -> None:
    with pytest.raises(pytest.skip.Exception) as caught:
        real_data("no/such/file")
    reason = f"('tests/test_x.py', 12, 'Skipped: {caught.value}')"
    assert summary([reason, reason, "Skipped: no Chromium"]).startswith(f"2 tests were skipped because {MISSING} (")
    assert summary(["Skipped: no Chromium"]) == ""

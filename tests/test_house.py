"""Rules for the tests themselves: names up to 60 characters, no paths of one machine, and skips for missing real data that are counted."""

from __future__ import annotations

import ast
import re

import pytest
from house import ROOT, names_of_tests
from real_data import MISSING, real_data, summary

TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_NAME = 60
# Folders of one machine; /tmp, /proc and the like are on every one.
ABSOLUTE = re.compile(r"(?<![\w.}~])/(?:work|home|root|Users|mnt|data)/\w")


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


def test_missing_real_data_skips_and_is_counted() -> None:
    with pytest.raises(pytest.skip.Exception) as caught:
        real_data("no/such/file")
    reason = f"('tests/test_x.py', 12, 'Skipped: {caught.value}')"
    assert summary([reason, reason, "Skipped: no Chromium"]).startswith(f"2 tests were skipped because {MISSING} (")
    assert summary(["Skipped: no Chromium"]) == ""

"""Real data sets and shared cases, which are not part of the repository: where tests look for them, and how tests are skipped without them.

Set SPARSERM_TEST_DATA to a folder with `truthfulqa/`, `hh_rlhf/` and `arc_challenge/`; the cases are expected in `cases/` beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPARSERM_TEST_DATA") or ROOT.parent / "shared" / "data")
CASES = DATA.parent / "cases"
MISSING = "real data is missing"  # begins the reason of each such skip; conftest.py counts them by it


def real_data(name: str) -> Path:
    """A file of the real data sets, by its path in their folder. Skips the test if there is none."""
    return _existing(DATA / name)


def shared_cases(name: str = "") -> Path:
    """A file of the shared cases, or their folder. Skips the test if there is none."""
    return _existing(CASES / name)


def _existing(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{MISSING}: {path}")
    return path


def summary(reasons: list[str]) -> str:
    """The line of pytest's summary about tests that were skipped without real data; empty if there were none."""
    n_skipped = sum(MISSING in reason for reason in reasons)
    advice = "set SPARSERM_TEST_DATA to its folder (see tests/real_data.py) to run them"
    return f"{n_skipped} tests were skipped because {MISSING} ({DATA}): {advice}" if n_skipped else ""

"""Set up for all tests: shapes checked at run time, a separate cache, no network, one thread."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from functools import partial

import pytest
from jaxtyping import install_import_hook
from real_data import summary

# Set before anything imports torch or transformers. Subprocesses (the command line under test) inherit it.
_CACHE = tempfile.TemporaryDirectory(prefix="sparserm-tests-")
os.environ["SPARSERM_CACHE"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# A shell that starts pytest in the background ignores SIGINT, and child processes would inherit that, so Ctrl-C could
# not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

install_import_hook("core", "typechecker.typed")

# The files that take longest, longest first. Each file runs in one process, so a long one that began last would be waited for.
LONGEST = (
    "test_browser_choices.py",
    "test_kill.py",
    "test_align_kill.py",
    "test_align_loop.py",
    "test_pages_align.py",
    "test_browser.py",
    "test_browser_align.py",
    "test_serving.py",
    "test_explain_latents.py",
    "test_align_dpo.py",
    "test_cli.py",
    "test_explain_doctor.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of the longest files first; the order is kept otherwise."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Adds one line that states how many tests were skipped because real data is missing."""
    line = summary([str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])])
    if line:
        terminalreporter.write_line(line)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: `cli("fit", "--json", ...)` gives its exit code and what it printed."""
    from cli_helpers import run_here  # imports core, whose shapes are checked only if the hook above stands

    return partial(run_here, capsys)


@pytest.fixture(autouse=True)
def _estimates_stay_open(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test draws pages in this process, their forms wait for their estimate: each would start a command that
    loads the engine and computes for 20 s, beside the tests, and nobody would look at it.
    """
    if hasattr(request.module, "open_page"):
        monkeypatch.setattr("workbench.frame.estimates.estimate", lambda words: None)


@pytest.fixture(scope="session", autouse=True)
def _cache_folder() -> object:
    """Keeps the session's cache folder alive, and removes it at the end."""
    yield
    _CACHE.cleanup()

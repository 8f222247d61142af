"""A Hub that does not answer costs one short request, however many files are asked of it."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from core.backbone.model import load_backbone
from core.backbone.tiny import make_tiny
from core.config import BackboneConfig
from core.data import hub
from core.errors import BackboneError
from core.runs.store import cache_root

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "http://127.0.0.1:9"  # no server has this port: connections are refused at once


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every request with 404 and records its first line."""

    lines: list[str]

    def do_HEAD(self) -> None:
        self.lines.append(f"{self.command} {self.path}")
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        """No output on the terminal."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    lines: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Kept", (Handler,), {"lines": lines})) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", lines
        running.shutdown()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a process that has not asked the Hub yet; tests may not ask it (tests/conftest.py)."""
    monkeypatch.setattr(hub, "last_answer", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def endpoint_is(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: type("Api", (), {"endpoint": address})())


def test_one_request_where_nothing_answers(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    endpoint_is(monkeypatch, NOWHERE)
    started = time.monotonic()
    for _ in range(3):
        with hub.one_question() as unreachable:
            assert unreachable.startswith(f"{NOWHERE} does not answer (ConnectError")
            with pytest.raises(LocalEntryNotFoundError):
                huggingface_hub.hf_hub_download("org/name", "config.json", cache_dir=tmp_path)
            with pytest.raises(LocalEntryNotFoundError):
                huggingface_hub.snapshot_download("org/name", cache_dir=tmp_path)
    assert time.monotonic() - started < 5, "the library by itself tries for half a minute"
    assert capfd.readouterr().err == "", "and warns six times"


def test_files_in_the_local_cache_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endpoint_is(monkeypatch, NOWHERE)
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("c" * 40)
    with hub.one_question():
        assert huggingface_hub.snapshot_download("org/name", cache_dir=tmp_path) == str(snapshot)
        assert huggingface_hub.hf_hub_download("org/name", "config.json", cache_dir=tmp_path) == str(snapshot / "config.json")


def test_a_hub_that_answers_is_asked_once_and_then_used(monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[str]]) -> None:
    address, lines = server
    endpoint_is(monkeypatch, address)
    for _ in range(3):
        with hub.one_question() as unreachable:
            assert unreachable == "", "any answer will do"
            assert huggingface_hub.get_session().get(f"{address}/file").status_code == 404
    assert lines == ["HEAD /", "GET /file", "GET /file", "GET /file"]


def test_requests_go_out_again_after_the_context(monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[str]]) -> None:
    endpoint_is(monkeypatch, NOWHERE)
    with hub.one_question():
        pass
    assert huggingface_hub.get_session().get(f"{server[0]}/file").status_code == 404 and server[1] == ["GET /file"]


def test_offline_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with hub.one_question() as unreachable:
        assert unreachable == "HF_HUB_OFFLINE is set"


def test_the_error_of_a_model_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endpoint_is(monkeypatch, NOWHERE)
    with pytest.raises(BackboneError, match=r"can't be reached(.|\n)*does not answer \(ConnectError(.|\n)*--model FOLDER") as error:
        load_backbone(BackboneConfig(model="nobody/nothing-at-all"))
    assert "smollm2-135m" in error.value.remedy


@pytest.mark.parametrize("what", ["SAE", "model"])
def test_fit_says_it_once(what: str, tmp_path: Path) -> None:
    """`sparserm` in a process of its own: one error, no library's warning, no waiting between tries (16 s before)."""
    model = ["--model", "nobody/nothing-at-all", "--layer", "1", "--sae", str(make_tiny(cache_root() / "tiny").sae)]
    words = ["--preset", "gemma-2-2b"] if what == "SAE" else model
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "SPARSERM_CACHE": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": NOWHERE}
    done = subprocess.run([sys.executable, "-m", "core.cli.main", "fit", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode in (4, 5), done.stderr
    assert "thrown while requesting" not in done.stderr and "Retrying" not in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("does not answer") == 1, done.stderr

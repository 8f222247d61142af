"""Answers from OpenAI-compatible servers: a working one, ones that fail, hang or answer nonsense, and a real one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest
from backbone_helpers import tiny_backbone, tiny_folder
from labels_helpers import Request, Server, serving

from core.align.candidates import NOT_GENERATED, make_candidates
from core.align.endpoint import EndpointGenerator
from core.align.generation import STEP, LocalGenerator
from core.align.values import Prompt
from core.backbone.journal import Generated, Journal
from core.config import CandidatesConfig
from core.data import http
from core.errors import Cancelled, ConfigError, MissingError
from core.types import Message

Answer = tuple[int, bytes, dict[str, str]]
PROMPTS = [[Message(role="user", content=f"Question {i}?")] for i in range(6)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(http, "sleep", lambda seconds, _: waited.append(seconds))
    return waited


def completion(text: Any, reason: str = "stop", tokens: Any = 3) -> Answer:
    response = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}], "usage": {"completion_tokens": tokens}}
    return 200, json.dumps(response).encode(), {}


def echo(request: Request) -> Answer:
    return completion(f" On {request.body['messages'][-1]['content']} by {request.body['seed']} \n")


def config(server: Server, **changes: Any) -> CandidatesConfig:
    return replace(CandidatesConfig(endpoint=f"{server.url}/v1/", endpoint_model="org/model", concurrency=3, max_new_tokens=9), **changes)


def test_every_prompt_gets_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(http.KEY, "secret")
    reports: list[tuple[str, float, float]] = []
    with serving(echo) as server:
        generator = EndpointGenerator(config(server))
        answers = generator.generate(PROMPTS, 2, progress=lambda step, done, total, **figures: reports.append((step, done, total)))
    by_seed = {request.body["seed"]: request for request in server.requests}
    assert len(server.requests) == len(by_seed) == 12, "one request for each answer, with different seeds"
    for prompt, row in zip(PROMPTS, answers, strict=True):
        assert [(answer.finished, answer.n_tokens, answer.failed) for answer in row] == [(True, 3, "")] * 2
        for answer in row:
            text, _, seed = answer.text.rpartition(" by ")
            assert text == f"On {prompt[0]['content']}" and by_seed[int(seed)].body == {
                "model": "org/model", "messages": prompt, "max_tokens": 9, "temperature": 1.0, "top_p": 0.95, "seed": int(seed),
            }  # fmt: skip
    assert {(request.path, request.headers["Authorization"]) for request in server.requests} == {("/v1/chat/completions", "Bearer secret")}
    assert (
        reports[0] == (STEP, 0, 12) and reports[-1] == (STEP, 12, 12) and [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)
    )
    assert (generator.spent.answers, generator.spent.tokens) == (12, 36) and generator.spent.seconds > 0


def test_the_same_call_asks_alike_and_another_seed_otherwise() -> None:
    with serving(echo) as server:
        first, again = (EndpointGenerator(config(server)).generate(PROMPTS, 2) for _ in range(2))
        other = EndpointGenerator(config(server, seed=1)).generate(PROMPTS, 2)
    assert first == again and all(
        a.text != b.text for first_row, other_row in zip(first, other, strict=True) for a, b in zip(first_row, other_row, strict=True)
    )


def test_requests_run_side_by_side_but_not_more_than_asked() -> None:
    running, most, lock = [0], [0], threading.Lock()
    together = threading.Barrier(3, timeout=10)

    def answers(request: Request) -> Answer:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        together.wait()  # breaks unless three are there at once
        with lock:
            running[0] -= 1
        return echo(request)

    with serving(answers) as server:
        EndpointGenerator(config(server)).generate(PROMPTS, 1)
    assert most[0] == 3 and not together.broken


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (completion("One. And th", reason="length"), Generated(text="One. And th", n_tokens=3, finished=False)),
        (completion(None), Generated(text="", n_tokens=3, finished=True)),
        (completion("a", reason="content_filter"), Generated(text="a", n_tokens=0, finished=False, failed="the endpoint ended it by content_filter")),
        (completion("a", tokens="many"), Generated(text="a", n_tokens=0, finished=True)),
        (completion("half \ud800 a pair"), Generated(text="half ? a pair", n_tokens=3, finished=True)),
        ((200, b'{"choices": [{"message": {"content": "a"}}]}', {}), Generated(text="a", n_tokens=0, finished=True)),
    ],
)
def test_what_a_response_holds(answer: Answer, expected: Generated) -> None:
    with serving(lambda request: answer) as server:
        assert EndpointGenerator(config(server)).generate(PROMPTS[:1], 1) == [[expected]]


# --- servers that fail ------------------------------------------------------------------------------------------------


def test_what_fails_in_passing_is_asked_again(no_waiting: list[float]) -> None:
    seen: set[int] = set()

    def answers(request: Request) -> Answer:
        known = request.body["seed"] in seen
        seen.add(request.body["seed"])
        return echo(request) if known else (503, b"busy", {"Retry-After": "7"})

    with serving(answers) as server:
        generated = EndpointGenerator(config(server)).generate(PROMPTS, 1)
    assert all(row[0].text for row in generated) and len(server.requests) == 12 and no_waiting == [7.0] * 6


def test_one_refused_request_fails_alone() -> None:
    def answers(request: Request) -> Answer:
        return (400, b'{"detail": "too long"}', {}) if "3" in request.body["messages"][-1]["content"] else echo(request)

    with serving(answers) as server:
        generated = EndpointGenerator(config(server)).generate(PROMPTS, 1)
        pairs = make_candidates([Prompt(messages=tuple(prompt)) for prompt in PROMPTS], EndpointGenerator(config(server)), config(server))
    assert [bool(row[0].failed) for row in generated] == [False, False, False, True, False, False]
    assert generated[3][0].failed == 'status 400 {"detail": "too long"}' and not generated[3][0].text
    assert [pair.refused for pair in pairs if not pair.parsed] == [f"{NOT_GENERATED}: {generated[3][0].failed}"]


@pytest.mark.parametrize(
    ("answer", "problem", "most"),
    [
        ((401, b"who are you", {}), "status 401 who are you", 3),
        ((404, b"", {}), "status 404", 3),
        ((400, b"no such model", {}), "status 400 no such model", 6),
        ((200, b"<html>", {}), "can't be read", 5),
        ((200, b"[1, 2]", {}), "can't be read", 5),
        ((200, b'{"choices": []}', {}), "can't be read", 5),
        ((200, b'{"choices": [{"message": "hm"}]}', {}), "can't be read", 5),
        (completion(["not", "text"]), "can't be read", 5),
        ((200, b"[" * 100_000, {}), "can't be read", 5),
        ((200, b"x" * (2**20 + 1), {}), "larger than", 5),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), "status 302", 5),
    ],
)
def test_a_server_that_never_answers_well_is_given_up(answer: Answer, problem: str, most: int) -> None:
    """`most` requests: it is not asked on and on."""
    with serving(lambda request: answer) as server, pytest.raises(MissingError, match="did not give all answers") as error:
        EndpointGenerator(config(server)).generate(PROMPTS, 1)
    assert problem in str(error.value) and "0 of 6 answers are there" in str(error.value) and "everything is asked for again" in str(error.value)
    assert len(server.requests) <= most


def test_partial_results_are_kept_and_only_the_rest_is_asked_for(tmp_path: Path) -> None:
    broken = [True]

    def answers(request: Request) -> Answer:
        return (502, b"gone", {}) if broken[0] and request.body["messages"][-1]["content"] in ("Question 1?", "Question 4?") else echo(request)

    with serving(answers) as server:
        with pytest.raises(MissingError) as error:
            EndpointGenerator(config(server), tmp_path / "p.jsonl").generate(PROMPTS, 2)
        assert "status 502 gone; 8 of 12 answers are there" in str(error.value) and "only what is missing" in str(error.value)
        assert len(Journal(tmp_path / "p.jsonl").answers) == 8
        broken[0] = False
        server.requests.clear()
        resumed = EndpointGenerator(config(server), tmp_path / "p.jsonl").generate(PROMPTS, 2)
        assert sorted(request.body["messages"][0]["content"] for request in server.requests) == ["Question 1?"] * 2 + ["Question 4?"] * 2
        assert resumed == EndpointGenerator(config(server)).generate(PROMPTS, 2)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(MissingError, match="ConnectError"):
            EndpointGenerator(CandidatesConfig(endpoint=address, endpoint_model="m")).generate(PROMPTS, 1)


@contextmanager
def hanging() -> Iterator[Server]:
    """A server that does not answer until the test is over."""
    over = threading.Event()

    def answers(request: Request) -> Answer:
        over.wait(30)
        return echo(request)

    with serving(answers) as server:
        try:
            yield server
        finally:
            over.set()


def test_a_server_that_hangs_runs_into_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TRIES", 2)
    with hanging() as server, pytest.raises(MissingError, match="ReadTimeout"):
        generator = EndpointGenerator(config(server))
        object.__setattr__(generator.config, "endpoint_timeout", 0.2)  # below what a person may ask for
        generator.generate(PROMPTS, 1)
    assert 6 <= len(server.requests) <= 10, "each of three workers tried twice, then the call failed"


def test_cancelling_does_not_wait_for_a_server_that_hangs(tmp_path: Path) -> None:
    began = time.monotonic()

    def progress(step: str, done: float, total: float, **figures: Any) -> None:
        if time.monotonic() - began > 1.5:
            raise Cancelled

    with hanging() as server, pytest.raises(Cancelled):
        EndpointGenerator(config(server), tmp_path / "p.jsonl").generate(PROMPTS, 1, progress=progress)
    assert time.monotonic() - began < 10


def test_a_server_that_does_not_sample_is_found_out(tmp_path: Path) -> None:
    def answers(request: Request) -> Answer:
        return completion(f"On {request.body['messages'][-1]['content']}")

    with serving(answers) as server:
        with pytest.raises(MissingError, match="every sample of a prompt alike") as error:
            EndpointGenerator(config(server), tmp_path / "p.jsonl").generate(PROMPTS, 3)
        assert "do_sample" in str(error.value) and not (tmp_path / "p.jsonl").exists(), "the next call asks for all answers again"
        assert EndpointGenerator(config(server)).generate(PROMPTS, 1), "one sample of each prompt can show nothing"
        assert EndpointGenerator(config(server, temperature=0.01)).generate(PROMPTS, 3), "near temperature zero samples may be equal"
        assert EndpointGenerator(config(server)).generate(PROMPTS[:2], 3), "two prompts may have one answer each"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"endpoint": ""}, "the endpoint or its model is not named"),
        ({"endpoint_model": ""}, "the endpoint or its model is not named"),
        ({"endpoint": "ftp://127.0.0.1/v1"}, "no address of a server"),
    ],
)
def test_addresses_that_cannot_be_meant(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        EndpointGenerator(replace(CandidatesConfig(endpoint="http://127.0.0.1:9/v1", endpoint_model="m"), **changes)).generate(PROMPTS, 1)


def test_a_key_never_travels_in_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(http.KEY, "secret")
    with pytest.raises(ConfigError, match="a key would travel in the open"):
        EndpointGenerator(CandidatesConfig(endpoint="http://192.0.2.1/v1", endpoint_model="m")).generate(PROMPTS, 1)


# --- a real server ----------------------------------------------------------------------------------------------------


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    """`transformers serve` with one model, on this machine, as long as the block lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200, process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        try:
            if ready():
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"no server; exit status {process.poll()}")


needs_serve = pytest.mark.skipif(
    find_spec("fastapi") is None or find_spec("openai") is None, reason="transformers serve needs fastapi and openai: pip install -e '.[dev]'"
)


@pytest.mark.slow
@needs_serve
def test_a_real_server_answers_as_the_local_policy_does(tmp_path: Path) -> None:
    """It does not sample unless the model's files say so; its answers then are the likeliest ones.

    The local policy writes the same answers at a temperature near zero.
    """
    asked = [[Message(role="user", content=text)] for text in ("How do I fold a paper boat?", "Is it hard to keep bees?", "Hi", "Why?")]
    settings = CandidatesConfig(endpoint_model=str(tiny_folder()), max_new_tokens=10, concurrency=2, temperature=0.1, top_p=1.0)
    with transformers_serve(tiny_folder()) as address:
        generated = EndpointGenerator(replace(settings, endpoint=address)).generate(asked, 1)
        with pytest.raises(MissingError, match="every sample of a prompt alike"):
            EndpointGenerator(replace(settings, endpoint=address, temperature=1.0)).generate(asked, 2)
        with pytest.raises(MissingError, match="pinned to"):
            EndpointGenerator(replace(settings, endpoint=address, endpoint_model="another")).generate(asked, 1)
    local = LocalGenerator(tiny_backbone(depth=None), replace(settings, temperature=1e-4)).generate(asked, 1)
    assert [row[0].text for row in generated] == [row[0].text for row in local] and all(row[0].n_tokens == 10 for row in generated)


@pytest.mark.slow
@needs_serve
def test_the_embedded_model_behind_a_real_server(tmp_path: Path) -> None:
    """Two prompts end to end, sampled by SmolLM2 with `do_sample` in its files."""
    import shutil

    from core.backbone.source import find_model
    from core.config import BackboneConfig

    folder = tmp_path / "smollm2"
    shutil.copytree(find_model(BackboneConfig()).folder, folder)
    settings_of_model = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings_of_model, "do_sample": True}))
    prompts = [Prompt(messages=(Message(role="user", content=text),)) for text in ("Is the moon a star?", "What do bees eat?")]
    with transformers_serve(folder) as address:
        settings = CandidatesConfig(endpoint=address, endpoint_model=str(folder), max_new_tokens=32, concurrency=2, per_prompt=2)
        candidates = make_candidates(prompts, EndpointGenerator(settings, tmp_path / "p.jsonl"), settings)
        again = make_candidates(prompts, EndpointGenerator(settings, tmp_path / "p.jsonl"), settings)
    assert len(candidates) == 4 and candidates == again and sum(candidate.parsed for candidate in candidates) >= 1
    assert all(len(text) > 10 for candidate in candidates for text in candidate.raw) and candidates[0].raw != candidates[1].raw

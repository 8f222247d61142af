"""Shared by the tests of labels: pages of latents made by hand, and a local HTTP server with answers of the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SHA, OTHER = "ab" * 32, "cd" * 32
SAE = {"sha256": SHA, "d_sae": 4096, "layer": 7, "name": "My SAE 1", "model_name": "org/My-Model", "release": None, "sae_id": None}


def window(text: str, active: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """A window of a page: words as tokens, with the spaces before them; `active` says which are active, and how much."""
    words = text.split(" ")
    tokens = [word if number == 0 else " " + word for number, word in enumerate(words)]
    return {"tokens": tokens, "values": [active.get(word, 0.0) for word in words], "template": [], **more}


def feature(latent: int, windows: Sequence[Mapping[str, Any]], inactive: Sequence[int] = ()) -> dict[str, Any]:
    """The fields of a latent's page that labels need."""
    return {"index": str(latent), "activations": list(windows), "inactive": list(inactive), "pos_str": [" please", "ing", " "]}


def snippets(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"tokens": window(text, {})["tokens"], "template": []} for text in texts]


@dataclass
class Request:
    """A request that the server received."""

    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Server:
    """A server on the loopback address; `answers(request)` gives status, body and headers."""

    answers: Callable[[Request], tuple[int, bytes, dict[str, str]]]
    url: str = ""
    requests: list[Request] = field(default_factory=list)


@contextmanager
def serving(answers: Callable[[Request], tuple[int, bytes, dict[str, str]]]) -> Iterator[Server]:
    """Serves until the block ends."""
    served = Server(answers=answers)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            parts, length = urlsplit(self.path), int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            request = Request(parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}, body, dict(self.headers))
            served.requests.append(request)
            status, content, headers = served.answers(request)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # in some tests a client gives up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

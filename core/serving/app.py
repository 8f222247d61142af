"""The HTTP side: which requests are admitted (by secret, Host, size and waiting bytes), and errors as JSON.

Every request needs the launch's secret, as `Authorization: Bearer ...`; trainers that can't send a header put it into
the address (`?key=...`), which only /get_reward takes. The Host must be this machine's own name, or a web page from
outside could reach the server by a name that resolves to this machine.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from core.errors import DataError, SparseRMError, error_to_dict
from core.serving.answers import Answers
from core.serving.bodies import Body
from core.serving.engine import Busy, Engine

LARGEST = 16 * 2**20  # bytes of a body
MOST_BYTES = 64 * 2**20  # of all bodies that are being answered
HOSTS = ("127.0.0.1", "localhost", "[::1]")
log = logging.getLogger(__name__)


def make_app(engine: Engine, answers: Answers, *, secret: str, port: int, stop: Callable[[], None]) -> Starlette:
    """The application. `stop` ends the process in good order."""
    gate = Gate(secret, port)

    async def health(request: Request) -> Response:
        return gate.refusal(request) or JSONResponse(engine.health())

    async def end(request: Request) -> Response:
        refused = gate.refusal(request)
        if refused is None:
            stop()
        return refused or JSONResponse({"stopping": True})

    routes = [Route("/health", health, methods=["GET"]), Route("/stop", end, methods=["POST"])]
    routes += [Route(f"/{name}", _handler(gate, engine, name, answer), methods=["POST"]) for name, answer in answers.routes().items()]
    return Starlette(routes=routes)


class Gate:
    """Admits requests by secret and Host, and counts the bytes of all bodies."""

    def __init__(self, secret: str, port: int) -> None:
        self._secret = secret.encode()
        self._hosts = {f"{host}:{port}" for host in HOSTS}
        self.bytes = 0

    def refusal(self, request: Request) -> Response | None:
        """The response that refuses this request; None where it is admitted."""
        if request.headers.get("host", "").lower() not in self._hosts:
            return error_response(403, "the Host of this request is not this machine", expected=", ".join(sorted(self._hosts)))
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not given and request.url.path == "/get_reward":
            given = parse_qs(request.url.query).get("key", [""])[0]
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._secret):
            return error_response(401, "this request does not hold the server's secret", remedy="sparserm serve MODEL --json prints it")
        return None


def _handler(gate: Gate, engine: Engine, name: str, answer: Callable[[Body], Awaitable[bytes]]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        refused = gate.refusal(request)
        if refused is not None:
            return refused
        if engine.state != "ready":
            return busy("the model is not ready yet")
        taken = Taken(gate)
        try:
            body = await taken.body(request)
            return Response(await answer(_value(body)), media_type="application/json")
        except Exception as error:
            return _failed(name, error)
        finally:
            gate.bytes -= taken.bytes

    return handle


class Taken:
    """One request's share of the bytes that are being answered."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.bytes = gate, 0

    async def body(self, request: Request) -> bytes:
        """The body, read no further than allowed. Raises TooLarge, Busy."""
        parts: list[bytes] = []
        async for part in request.stream():
            self.bytes += len(part)
            self.gate.bytes += len(part)
            if self.bytes > LARGEST:
                raise TooLarge
            if self.gate.bytes > MOST_BYTES:
                raise Busy
            parts.append(part)
        return b"".join(parts)


def _value(body: bytes) -> Body:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError("the request can't be read", expected="a JSON object", found=str(error)[:100]) from error
    if not isinstance(value, dict):
        raise DataError("the request can't be read", expected="a JSON object", found=type(value).__name__)
    return value


class TooLarge(Exception):
    """A body over the limit."""


def _failed(name: str, error: Exception) -> Response:
    if isinstance(error, TooLarge):
        return error_response(413, "the request is too large", expected=f"at most {LARGEST >> 20} MB", remedy="send fewer responses at a time")
    if isinstance(error, Busy):
        return busy("too much is being asked at once")
    if isinstance(error, SparseRMError):
        return JSONResponse({"error": error_to_dict(error)}, status_code=422)
    if isinstance(error, (ClientDisconnect, asyncio.CancelledError)):
        return error_response(400, "the request was broken off")
    log.error("%s failed", name, exc_info=error)
    return JSONResponse({"error": error_to_dict(error)}, status_code=500)


def busy(problem: str) -> Response:
    """The response that asks the client to try again."""
    response = error_response(503, problem, remedy="ask again")
    response.headers["Retry-After"] = "1"
    return response


def error_response(status: int, problem: str, *, expected: str = "", remedy: str = "") -> Response:
    """An error as JSON."""
    return JSONResponse({"error": {"problem": problem, "expected": expected, "found": "", "remedy": remedy, "exit_code": 1}}, status_code=status)

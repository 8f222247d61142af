"""The HTTP clients: `Http` asks servers elsewhere, `LocalHttp` asks the process of a reward model on this machine.

Answers are limited in size and no redirection is followed. `Http` sends a request again when it failed for a passing
reason; its base address is https, or http to this machine; `plain=True` allows http elsewhere (a model server in one's
own network), but never with a key. `LocalHttp` sends each request once and ignores the environment's proxies, since a
proxy must not see the process's secret.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from core.errors import ConfigError
from core.files import whole_file

HERE = ("localhost", "127.0.0.1", "::1")
TRIES = 5  # of a request without a connection, refused for too many requests, or answered by an error of the server's
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
TIMEOUT = 120.0  # seconds without a byte
CONNECT_WITHIN = 2.0  # seconds until a process on this machine must have accepted a connection
KEY = "SPARSERM_ENDPOINT_KEY"  # environment variable with the key of a language model's endpoint, and the only place it is read from


class HttpError(Exception):
    """A request that failed for good; `status` is the server's, 0 where no server answered."""

    def __init__(self, reason: str, status: int = 0) -> None:
        self.status = status
        super().__init__(reason)


class HttpTimeout(HttpError):
    """No answer came within the time that was allowed."""


class Http:
    """Requests below one base address, from any thread. Use it in a `with`: its end also ends the waiting between
    tries.

    Raises ConfigError for an address that is not allowed, HttpError where a request fails. `timeout`: seconds without a
    byte.
    """

    def __init__(self, base: str, *, key: str = "", plain: bool = False, timeout: float = TIMEOUT) -> None:
        self.base, self._closed = base.rstrip("/"), threading.Event()
        _check_base(base, key=bool(key), plain=plain)
        self._client = _new_client(headers={"User-Agent": "sparserm-workbench", **(_bearer(key) if key else {})}, timeout=timeout)

    def __enter__(self) -> Http:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._client.close()

    def get(self, path: str, params: Mapping[str, str] | None = None, *, largest: int) -> bytes:
        """The body of an answer of at most `largest` bytes."""
        return self._tried(lambda: self._body("GET", path, largest, params=params))

    def post(self, path: str, value: Any, *, largest: int) -> bytes:
        """The body of the answer to a JSON value."""
        return self._tried(lambda: self._body("POST", path, largest, json=value))

    def download(self, path: str, target: Path, *, largest: int) -> None:
        """Puts a file at `target`, whole or not at all."""
        self._tried(lambda: self._file(path, target, largest))

    def _tried(self, ask: Callable[[], Any]) -> Any:
        httpx2 = _httpx()
        for left in reversed(range(TRIES)):
            wait = 2.0 ** (TRIES - 1 - left)
            try:
                return ask()
            except _TryAgain as again:
                if not left:
                    raise HttpError(str(again), again.status) from again
                wait = max(wait, again.wait)
            except httpx2.TransportError as error:
                if not left or isinstance(error, httpx2.UnsupportedProtocol):
                    raise HttpError(f"{type(error).__name__}: {error}") from error
            except httpx2.HTTPError as error:
                raise HttpError(f"{type(error).__name__}: {error}") from error
            sleep(min(wait, LONGEST_WAIT), self._closed)
            if self._closed.is_set():
                raise HttpError("the caller has given up")
        return None

    def _body(self, method: str, path: str, largest: int, **request: Any) -> bytes:
        with self._client.stream(method, self.base + path, **request) as answer:
            _check_status(answer)
            return b"".join(_limited(answer.iter_bytes(), largest))

    def _file(self, path: str, target: Path, largest: int) -> None:
        request = self._client.stream("GET", self.base + path, headers={"Accept-Encoding": "identity"})
        with whole_file(target) as part, part.open("wb") as handle, request as answer:
            _check_status(answer)
            handle.writelines(_limited(answer.iter_raw(), largest))


class LocalHttp:
    """Requests to processes on this machine, from any thread. `timeout`: seconds without a byte.

    `keep_open` reuses connections. A process may close one that waits at the moment a request is sent on it, so who
    sends no request twice opens a connection for each.
    """

    def __init__(self, *, timeout: float, keep_open: bool) -> None:
        self._timeout, self._keep_open = timeout, keep_open
        self._client: Any = None
        self._making = threading.Lock()

    def ask(self, method: str, url: str, *, secret: str, largest: int, value: Any = None) -> tuple[int, Any]:
        """The status of the answer to a JSON value, and the JSON value it holds (None where it holds none).

        Raises HttpTimeout where the answer takes too long, HttpError where the process can't be reached or its answer
        exceeds `largest` bytes.
        """
        httpx2 = _httpx()
        try:
            with self._opened().stream(method, url, headers=_bearer(secret), **({} if value is None else {"json": value})) as answer:
                status, content = int(answer.status_code), b"".join(_limited(answer.iter_bytes(), largest))
        except httpx2.TimeoutException as error:
            raise HttpTimeout(type(error).__name__) from error
        except httpx2.HTTPError as error:
            raise HttpError(type(error).__name__) from error
        with contextlib.suppress(ValueError, RecursionError):
            return status, json.loads(content)
        return status, None

    def _opened(self) -> Any:
        with self._making:
            if self._client is None:
                limits = _httpx().Limits(max_connections=100, max_keepalive_connections=20 if self._keep_open else 0)
                self._client = _new_client(timeout=_httpx().Timeout(self._timeout, connect=CONNECT_WITHIN), limits=limits, trust_env=False)
            return self._client


def _new_client(**settings: Any) -> Any:
    return _httpx().Client(follow_redirects=False, **settings)


def _httpx() -> Any:
    """The library, imported with the first request: most commands send none."""
    import httpx2

    return httpx2


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def sleep(seconds: float, ended: threading.Event) -> None:
    """Waits so long, or until `ended` is set."""
    ended.wait(seconds)


class _TryAgain(Exception):
    def __init__(self, reason: str, status: int, wait: float) -> None:
        self.status, self.wait = status, wait
        super().__init__(reason)


def _check_status(answer: Any) -> None:
    """Raises where the status is not 200, with the beginning of the answer."""
    status = int(answer.status_code)
    if status == 200:
        return
    content = b""
    with contextlib.suppress(HttpError):
        content = b"".join(_limited(answer.iter_bytes(), 2**16))
    text = f"status {status} {' '.join(content.decode('utf-8', 'replace').split())[:200]}".strip()
    if status == 429 or status >= 500:
        wait = answer.headers.get("Retry-After", "")
        raise _TryAgain(text, status, float(wait) if wait.isascii() and wait.isdecimal() else 0.0)
    raise HttpError(text, status)


def _limited(pieces: Iterator[bytes], largest: int) -> Iterator[bytes]:
    left = largest
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise HttpError(f"the answer is larger than {largest} bytes")
        yield piece


def _check_base(base: str, *, key: bool, plain: bool) -> None:
    parts = urlsplit(base)
    here = parts.hostname in HERE
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConfigError("this is no address of a server", expected="https://host/path", found=base)
    if parts.scheme == "http" and not here and (key or not plain):
        why = "a key would travel in the open" if key else "what comes back could be changed on the way"
        raise ConfigError(f"an address without encryption is not used: {why}", expected="https, or http to this machine", found=base)

"""workbench/app.py: the pages it serves ask for the chart library at once, and stay whole."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from streamlit.web.server.starlette import App

from workbench.app import EARLY, SCRIPTS, EarlyCharts, app

PAGE = b"<html><body></body></html>"


def served(headers: dict[str, str], status: int = 200, kind: str = "text/html; charset=utf-8") -> tuple[dict[str, str], bytes, dict[str, str]]:
    """What the middleware makes of a page in two parts: headers, body, and the headers that the page's server was asked with."""
    sent: list[Any] = []
    asked: dict[str, str] = {}

    async def page(scope: Any, receive: Any, send: Any) -> None:
        asked.update({name.decode(): value.decode() for name, value in scope["headers"]})
        about = [(b"content-type", kind.encode()), (b"content-length", str(len(PAGE)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": about})
        await send({"type": "http.response.body", "body": PAGE[:10], "more_body": True})
        await send({"type": "http.response.body", "body": PAGE[10:]})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is received")

    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(EarlyCharts(page)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return found, b"".join(one["body"] for one in sent[1:]), asked


def test_the_script_is_a_file_that_streamlit_has() -> None:
    names = re.findall(r'import\("\./static/js/([\w.-]+)"\)', EARLY.decode())
    assert names and all((SCRIPTS / name).is_file() for name in names)
    assert isinstance(app, App) and app.script_path.name == "shell.py"


def test_a_page_gets_the_script_and_its_true_length() -> None:
    headers, body, asked = served({"accept": "text/html,*/*", "accept-encoding": "gzip", "host": "localhost"})
    assert body == PAGE + EARLY and int(headers["content-length"]) == len(body)
    assert asked == {"accept": "text/html,*/*", "host": "localhost"}  # never compressed


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"accept": "*/*", "accept-encoding": "gzip"}, 200, "text/html"),
        ({"accept": "text/html"}, 200, "application/json"),
        ({"accept": "text/html"}, 404, "text/html"),
    ],
)
def test_all_else_stays_as_it_is(headers: dict[str, str], status: int, kind: str) -> None:
    about, body, asked = served(headers, status, kind)
    assert body == PAGE and int(about["content-length"]) == len(PAGE)
    assert asked.get("accept-encoding") == headers.get("accept-encoding")

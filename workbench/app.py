"""The workbench's server: `streamlit run workbench/app.py`. What a session sees is made by workbench/shell.py.

Streamlit's page asks for its chart library, 4.7 MB, when the first chart comes. Here it asks at once, while the server still runs the session's first
script: the first chart is then there 0.4 s earlier (benchmarks/workbench.py, cold start).
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPTS = Path(st.__file__).parent / "static" / "static" / "js"
# To import a module twice is to import it once. Without such a file (another Streamlit) the page stays as it is.
EARLY = "".join(f'<script type="module">import("./static/js/{file.name}")</script>' for file in SCRIPTS.glob("PlotlyChart.*.js")).encode()


class EarlyCharts:
    """Adds `EARLY` to the end of every HTML page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or b"text/html" not in dict(scope["headers"]).get(b"accept", b""):
            await self.app(scope, receive, send)
            return
        page = False

        async def sent(message: Message) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                page = message["status"] == 200 and headers.get("content-type", "").startswith("text/html")
                if page and "content-length" in headers:
                    headers["content-length"] = str(int(headers["content-length"]) + len(EARLY))
            elif page and not message.get("more_body"):
                message = {**message, "body": message.get("body", b"") + EARLY}
            await send(message)

        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]  # a compressed page could not be added to
        await self.app({**scope, "headers": plain}, receive, sent)


app = st.App(Path(__file__).with_name("shell.py"), middleware=[Middleware(EarlyCharts)])

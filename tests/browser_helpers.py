"""A workbench server in a process of its own and a real browser, for tests/test_browser.py and benchmarks/workbench.py."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120_000.0  # milliseconds: machines that test are busy
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def chromium() -> str | None:
    """The path of an installed Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


class Server:
    """`streamlit run workbench/app.py`, as a person starts it, on a port and a cache of its own; `threads` of the runs
    that it starts.
    """

    def __init__(self, cache: Path, log: Path, threads: int = 1) -> None:
        self.cache, self.log, self.threads = cache, log, threads
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def start(self, patience: float = PATIENCE / 1000) -> None:
        command = [sys.executable, "-m", "streamlit", "run", "workbench/app.py", "--server.port", str(self.port), "--server.headless", "true"]
        environment = {**os.environ, "SPARSERM_CACHE": str(self.cache), **dict.fromkeys(THREADS, str(self.threads))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + patience
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(self.log.read_text(encoding="utf-8", errors="replace")[-2000:])
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """Ends the server alone, as Ctrl-C would: the runs that it launched are in other sessions and go on."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def libraries(self) -> set[str]:
        """The heavy libraries that the server has loaded; always empty where there is no /proc."""
        maps = Path(f"/proc/{self.process.pid if self.process else 0}/maps")
        mapped = maps.read_text() if maps.is_file() else ""
        return {name for name in ("torch", "sklearn", "tokenizers", "safetensors_rust_model") if f"site-packages/{name}/" in mapped}


class Tab:
    """A browser tab that records what must not happen: dialogs, requests to other hosts, errors of scripts."""

    def __init__(self, context: BrowserContext, server: Server) -> None:
        self.server, self.page = server, context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.dialogs: list[str] = []
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self._request(request.url))
        self.page.on("websocket", lambda socket_: self._request(socket_.url.replace("ws:", "http:")))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _request(self, url: str) -> None:
        if not url.startswith((f"{self.server.url}/", "data:", "blob:", "about:")):
            self.elsewhere.append(url)

    def open(self, path: str = "", **ids: str) -> Tab:
        from urllib.parse import urlencode

        self.page.goto(f"{self.server.url}/{path}" + (f"?{urlencode(ids)}" if ids else ""))
        return self.settled()

    def settled(self) -> Tab:
        """Waits until the page has been drawn and its script has ended."""
        self.page.wait_for_selector(IDLE)
        self.page.wait_for_timeout(250)
        self.page.wait_for_selector(IDLE)
        self.no_exception()
        return self

    def no_exception(self) -> None:
        exceptions = self.page.locator('[data-testid="stException"]')
        assert not exceptions.count(), exceptions.first.inner_text()

    def menu_link(self, title: str) -> Locator:
        """The sidebar's link to a page of exactly this title."""
        return self.page.locator(".st-key-menu a").filter(has=self.page.get_by_text(title, exact=True))

    def menu(self, title: str) -> Tab:
        """Opens another page by the sidebar."""
        self.menu_link(title).click()
        self.page.wait_for_function("title => document.title.startsWith(title)", arg=f"{title} ·")
        return self.settled()

    def says(self, text: str) -> Locator:
        """Waits for a visible text."""
        return self._stands(self.page.get_by_text(text).filter(visible=True).first)

    def draws(self) -> Tab:
        """Waits for a chart."""
        self._stands(self.page.locator('[data-testid="stPlotlyChart"]').first)
        return self.settled()

    def _stands(self, wanted: Locator) -> Locator:
        try:
            wanted.wait_for()
        except TimeoutError as error:
            raise AssertionError(f"{wanted} is not on {self.page.url}:\n{self.page.inner_text('body')[:3000]}") from error
        return wanted

    def press(self, name: str) -> Tab:
        self.page.get_by_role("button", name=name, exact=True).filter(visible=True).first.click()
        return self

    def choose(self, name: str) -> Tab:
        """Clicks one of a row of choices."""
        self.page.locator('[data-testid="stButtonGroup"]').get_by_text(name, exact=True).first.click()
        return self.settled()

    def metrics(self) -> dict[str, str]:
        """The metrics of the page: label -> value."""
        values = {}
        for metric in self.page.locator('[data-testid="stMetric"]').all():
            values[metric.locator('[data-testid="stMetricLabel"]').inner_text().strip()] = (
                metric.locator('[data-testid="stMetricValue"]').inner_text().strip()
            )
        return values

    def click_mark(self, chart: int = 0) -> None:
        """Clicks a mark of a chart, the last one drawn that carries an id."""
        plot = self.page.locator('[data-testid="stPlotlyChart"] .js-plotly-plot').nth(chart)
        plot.scroll_into_view_if_needed()
        place = plot.evaluate(MARK)
        box = plot.bounding_box()
        assert place is not None and box is not None
        self.page.mouse.move(box["x"] + place[0], box["y"] + place[1])
        self.page.wait_for_timeout(400)  # plotly picks what the pointer hovers over
        self.page.mouse.click(box["x"] + place[0], box["y"] + place[1])


# The middle of a mark with an id, in pixels of the plot: a point, or the middle of a bar.
MARK = """plot => {
  for (const trace of [...plot._fullData].reverse()) {
    if (!trace.customdata || !trace.visible) continue;
    const {xaxis, yaxis} = plot._fullLayout, ids = Array.from(trace.customdata);
    for (let i = ids.length - 1; i >= 0; i--) {
      const id = Array.isArray(ids[i]) || ArrayBuffer.isView(ids[i]) ? ids[i][0] : ids[i];
      if (id === "" || id === undefined || id === null) continue;
      const base = trace.type === "bar" ? (trace.base ? trace.base[i] : 0) : 0;
      const x = trace.type === "bar" ? base + trace.x[i] / 2 : trace.x[i];
      return [xaxis._offset + xaxis.d2p(x), yaxis._offset + yaxis.d2p(trace.y[i])];
    }
  }
  return null;
}"""


@contextmanager
def browser() -> Iterator[Browser]:
    """A real Chromium without a window."""
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium(), args=["--disable-dev-shm-usage"])
        try:
            yield opened
        finally:
            opened.close()


def query(url: str) -> Mapping[str, list[str]]:
    from urllib.parse import parse_qs, urlsplit

    return parse_qs(urlsplit(url).query)

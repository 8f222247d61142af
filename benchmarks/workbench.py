"""The workbench's times in a real browser, on the newest reward model of a cache.

    SPARSERM_CACHE=... python benchmarks/workbench.py [--times 5] [--seconds 60] [--only warm]

1. Cold start: from `streamlit run` to the first figures (`text`) and the first chart (`seen`) of the Overview. The
   server must not have loaded torch.
2. Warm: a page switch, the Response page on another pair, an edit of 200 tokens scored again.
3. Latents with 16,384 latents and Spaces with 10,000 points, of a reward model made up from the newest one.
4. Eight sessions, over Streamlit's own messages, that click through all pages for a minute.

`server` is from the browser's question to the server's last message, `seen` from the click until the page is drawn; in
seconds, medians. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser_helpers import Server, Tab, browser, chromium  # noqa: E402
from playwright.sync_api import Browser, TimeoutError  # noqa: E402
from streamlit.proto.BackMsg_pb2 import BackMsg  # noqa: E402
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg  # noqa: E402
from websockets.sync.client import ClientConnection, connect  # noqa: E402
from websockets.typing import Subprotocol  # noqa: E402

from core.config import SpacesConfig  # noqa: E402
from core.explain.spaces import SpaceFigures, Spaces, save_spaces  # noqa: E402
from core.reward.fit_responses import FitResponses, write_responses  # noqa: E402
from core.reward.folder import ModelFolder  # noqa: E402
from core.reward.parts_files import write_parts  # noqa: E402
from core.reward.recorded_files import record_files  # noqa: E402
from core.runs.store import Store, cache_root  # noqa: E402
from core.runs.values import save_value  # noqa: E402
from core.statistics.estimates import Estimate  # noqa: E402
from core.types import LatentFrequencies, PreferencePairs  # noqa: E402
from workbench.frame import models  # noqa: E402
from workbench.frame.model_client import Live  # noqa: E402
from workbench.frame.models import FittedModel  # noqa: E402
from workbench.frame.page_list import pages  # noqa: E402

SESSIONS = 8
STUCK = 60_000  # milliseconds after which nothing more is waited for
LATENTS, POINTS, WORDS = 16_384, 10_000, 150  # 150 English words are about 200 tokens
PARTS = ("cold", "warm", "many", "crowd")
PAGES = ("Latents", "Response", "Overview", "Doctor", "Runs", "Preferences")
TEXT, CHART = '[data-testid="stMetric"]', '[data-testid="stPlotlyChart"] .main-svg'  # the Overview's first figures, and a drawn chart
BOUNDS = {
    "cold start": 4.0,
    "page switch": 0.5,
    "another pair": 0.3,
    "edit and score": 1.0,
    "latents 16384": 1.0,
    "spaces 10000": 2.0,
    "eight sessions p95": 2.0,
}

JUDGED = {"cold start": "seen", "page switch": "seen", "edit and score": "seen", "latents 16384": "seen", "spaces 10000": "seen"}  # else by `server`

# Notes when the page asks and when the server answers. `settled` says how long it took, once the server is quiet and
# `chart` stands.
NOTES = """(() => {
  const times = window.__times = {sent: [], got: []}, send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (data) {
    if (!this.__heard) { this.__heard = true; this.addEventListener('message', () => times.got.push(performance.now())); }
    times.sent.push(performance.now());
    return send.call(this, data);
  };
  window.__settled = (mark, title, chart, quiet) => {
    const sent = times.sent.filter(at => at >= mark);
    if (!sent.length || !document.title.startsWith(title)) return false;
    const got = times.got.filter(at => at > sent[0]), app = document.querySelector('[data-testid="stApp"]');
    if (!got.length || app?.dataset.testScriptState !== 'notRunning' || (chart && !document.querySelector(chart))) return false;
    const last = got[got.length - 1], now = performance.now();
    if (window.__for !== mark) { window.__for = mark; window.__stood = now; }
    return now - last > quiet ? {server: (last - sent[0]) / 1000, seen: (Math.max(window.__stood, last) - mark) / 1000} : false;
  };
})()"""


def main() -> None:
    options = arguments()
    if chromium() is None:
        raise SystemExit("no Chromium on this machine (apt-get install chromium)")
    root = cache_root().resolve()
    known = models.models(root)
    if not known:
        raise SystemExit(f"{root} holds no reward model; sparserm fit")
    print(f"{known[0].title}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, medians of {options.times}", flush=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, browser() as chrome:
        folder = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "cold": lambda: printed({"cold start": cold_start(root, folder, options.times)}),
            "warm": lambda: with_server(root, folder, lambda server: printed(warm(chrome, server, known[0], options.times))),
            "many": lambda: with_server(large(known[0], folder), folder, lambda server: printed(many(chrome, server, options.times))),
            "crowd": lambda: with_server(root, folder, lambda server: printed(crowd(server, options.seconds))),
        }
        for part in options.only or PARTS:
            results |= parts[part]()
        Live(known[0].path, root).stop()
    print(json.dumps({"load": os.getloadavg()[0], "times": options.times, **results}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The workbench's times in a real browser.")
    parser.add_argument("--times", type=int, default=5, help="how often each is measured")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long eight sessions click")
    parser.add_argument("--only", nargs="*", choices=PARTS, help="these parts only")
    return parser.parse_args()


def printed(results: dict[str, Any]) -> dict[str, Any]:
    """Prints figures as soon as they are measured."""
    for name, result in results.items():
        counts = "  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items())
        figure, bound = result[JUDGED.get(name, "server")], BOUNDS[name]
        print(f"{name:20} {counts}   {'kept' if figure < bound else 'MISSED'}: {figure:.2f} < {bound}", flush=True)
    return results


def median(times: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in times) for name in times[0]}


def with_server(cache: Path, folder: Path, measure: Callable[[Server], dict[str, Any]]) -> dict[str, Any]:
    server = Server(cache, folder / "server.log")
    server.start()
    try:
        results = measure(server)
        heavy = server.libraries() & {"torch", "sklearn"}
        if heavy:
            raise SystemExit(f"the server has loaded {heavy}")
        return results
    finally:
        server.stop()


def new_tab(chrome: Browser, server: Server) -> Tab:
    context = chrome.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(NOTES)
    return Tab(context, server)


def timed(tab: Tab, act: Callable[[], Any], *, title: str = "", chart: str = "") -> dict[str, float]:
    """Seconds until the page is drawn after `act`, which clicks on something."""
    mark = tab.page.evaluate("() => performance.now()")
    act()
    try:
        settled = "([mark, title, chart]) => window.__settled(mark, title, chart, 150)"
        times = tab.page.wait_for_function(settled, arg=[mark, title, chart], timeout=STUCK).json_value()
    except TimeoutError:
        raise SystemExit(f"{tab.page.url} is never done:\n{tab.page.inner_text('body')[:2000]}") from None
    tab.no_exception()
    return dict(times)


def cold_start(root: Path, folder: Path, n: int) -> dict[str, float]:
    with unwatched(folder) as bare:
        return median([cold(bare, root, folder) for _ in range(n)])


def cold(bare: Bare, root: Path, folder: Path) -> dict[str, float]:
    server = Server(root, folder / "server.log")
    started = time.perf_counter()
    server.start()
    try:
        text, chart = bare.until(server.url, TEXT, CHART)
        assert server.libraries() & {"torch", "sklearn"} == set()
        return {"text": text - started, "seen": chart - started}
    finally:
        server.stop()


class Bare:
    """A browser that only reports whether an element exists.

    Playwright listens to every script, and Chromium then parses the chart library four times
    (V8.CollectSourcePositions, 0.6 s), which no visitor waits for.
    """

    def __init__(self, socket: ClientConnection, port: int) -> None:
        self.socket, self.port = socket, port

    def until(self, url: str, *selectors: str) -> list[float]:
        """Opens the page, waits for one element after the other, closes the page. Returns when each was there, by
        time.perf_counter().
        """
        target = ask(self.socket, "Target.createTarget", url=url)["targetId"]
        with connect(f"ws://127.0.0.1:{self.port}/devtools/page/{target}", max_size=None) as page:
            end = time.monotonic() + STUCK / 1000
            times = []
            for selector in selectors:
                expression = f"!!document.querySelector({json.dumps(selector)})"
                while not ask(page, "Runtime.evaluate", expression=expression).get("result", {}).get("value"):
                    if time.monotonic() > end:
                        raise SystemExit(f"{url} does not show {selector}")
                    time.sleep(0.02)
                times.append(time.perf_counter())
        ask(self.socket, "Target.closeTarget", targetId=target)
        return times


def ask(socket: ClientConnection, method: str, **params: Any) -> dict[str, Any]:
    socket.send(json.dumps({"id": 1, "method": method, "params": params}))
    while (answer := json.loads(socket.recv())).get("id") != 1:
        pass
    return dict(answer.get("result", {}))


@contextmanager
def unwatched(folder: Path) -> Iterator[Bare]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage", "--window-size=1440,900"]
    command = [str(chromium()), *options, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening on" in line)
        try:
            with connect(address, max_size=None) as socket:
                yield Bare(socket, int(address.split(":")[2].split("/")[0]))
        finally:
            process.terminate()


def link(tab: Tab, title: str) -> Callable[[], None]:
    return lambda: tab.menu_link(title).click()


def warm(chrome: Browser, server: Server, model: FittedModel, n: int) -> dict[str, Any]:
    tab = new_tab(chrome, server).open()
    for title in PAGES:
        tab.menu(title)
    switches = [timed(tab, link(tab, title), title=title) for title in itertools.islice(itertools.cycle(PAGES), n)]
    tab.menu("Response")
    button = tab.page.get_by_role("button", name="Next", exact=True)
    pairs = [timed(tab, button.click, title="Response", chart=CHART) for _ in range(n)]
    Live(model.path, model.root).wait(120)
    tab.choose("Edit")
    edits = [timed(tab, partial(edit, tab, number), title="Response", chart=CHART) for number in range(n + 1)]
    tab.says("New reward")
    tab.page.context.close()
    # The first edit also reads the original.
    return {"page switch": median(switches), "another pair": median(pairs), "edit and score": median(edits[1:])}


def edit(tab: Tab, number: int) -> None:
    """Another word in the middle of the text, scored again."""
    words = ("this answer goes on about many things and says little of them " * 20).split()[:WORDS]
    words[WORDS // 2] = f"word{number}"
    tab.page.locator("textarea").filter(visible=True).first.fill(" ".join(words))
    tab.page.evaluate("() => { window.__times.sent.length = 0; }")
    tab.press("Score again")


def many(chrome: Browser, server: Server, n: int) -> dict[str, Any]:
    tab = new_tab(chrome, server).open()
    results: dict[str, Any] = {}
    for name, title in (("latents 16384", "Latents"), ("spaces 10000", "Spaces")):
        tab.menu(title)
        times = []
        for _ in range(n):
            tab.menu("Overview")
            times.append(timed(tab, link(tab, title), title=title, chart=CHART))
        results[name] = median(times)
    tab.page.context.close()
    return results


def crowd(server: Server, seconds: float) -> dict[str, Any]:
    """Eight sessions that click through the menu. Eight browsers would take the processors on which the server is
    measured.
    """
    with ThreadPoolExecutor(SESSIONS) as pool:
        sessions = list(pool.map(lambda seed: clicks(server, seconds, seed), range(SESSIONS)))
    times = sorted(took for visits in sessions for took, _ in visits)
    errors = [error for visits in sessions for _, errors in visits for error in errors]
    if errors:
        print(f"{len(errors)} errors among {len(times)} clicks:", *sorted(set(errors))[:5], sep="\n", flush=True)
    p95 = times[math.ceil(0.95 * len(times)) - 1] if times else float("nan")
    return {"eight sessions p95": {"server": p95, "median": statistics.median(times), "clicks": len(times), "errors": len(errors)}}


def clicks(server: Server, seconds: float, seed: int) -> list[tuple[float, list[str]]]:
    """A session that clicks through the menu for some seconds. Returns the seconds and the exceptions of each click."""
    rng, end, visits = random.Random(seed), time.perf_counter() + seconds, []
    names = [spec.name for spec in pages()]
    with connect(f"ws://localhost:{server.port}/_stcore/stream", subprotocols=[Subprotocol("streamlit")], max_size=None) as socket:
        while time.perf_counter() < end:
            visits.append(visit(socket, rng.choice(names)))
            time.sleep(rng.uniform(0.2, 0.8))
    return visits


def visit(socket: ClientConnection, name: str) -> tuple[float, list[str]]:
    """The server's seconds for a page, and the exceptions it shows."""
    question = BackMsg()
    question.rerun_script.page_name = "" if name == pages()[0].name else name
    started, begun, errors = time.perf_counter(), False, []
    socket.send(question.SerializeToString())
    while True:
        message = ForwardMsg.FromString(socket.recv(timeout=STUCK / 1000))
        kind = message.WhichOneof("type")
        if kind == "delta" and message.delta.new_element.WhichOneof("type") == "exception":
            error = message.delta.new_element.exception
            errors.append("\n".join([f"{name}: {error.type}: {error.message}", *error.stack_trace]))
        begun |= kind == "new_session"
        if kind == "script_finished" and begun:  # a fragment that runs by itself ends before
            return time.perf_counter() - started, errors


# --- a large reward model ----------------------------------------------------------------------------------------------


def large(model: FittedModel, folder: Path) -> Path:
    """A cache with a made-up reward model: frequencies of 16,384 latents, 5,000 pairs and pictures of 10,000 points."""
    root = folder / "cache"
    store, rng, config = Store(root), np.random.default_rng(0), model.config
    about = {
        "data": str(model.about["data"]),
        **{name: model.about[name] for name in ("backbone", "sae", "layer", "position", "n_prompts", "selection")},
    }
    measured = store.get_or_make("frequencies", 1, {"made": "up"}, [], lambda folder, _: save_value(folder, "frequencies", made_up(rng)) or {})
    method = {**config["method"], "fingerprints": {**config["method"].get("fingerprints", {}), "frequencies": measured.fingerprint}}
    parts = replace(model.parts, method=method, sae={**(model.parts.sae or {}), "d_sae": LATENTS})
    known = spread(model.responses, rng)

    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        write_parts(parts, folder)
        write_responses(known, folder, texts=True)
        for name in ("evaluation.json", "curve.json", "faithfulness.json"):
            shutil.copyfile(model.path / name, folder / name)
        record_files(folder)
        return about

    fitted = store.get_or_make("reward_model", 1, {"made": "up"}, [], make).path
    rows = np.arange(POINTS)
    labels = np.where(np.isin(rows, known.chosen_rows), 1, -1)
    pictures = {name: rng.normal(size=(POINTS, 2)).astype(np.float32) for name in ("dense", "sparse")}
    made = {**SpacesConfig().result_fields(), "method": "made up", "initialisation": "nothing", "library": "none", "n_left_out": 0}
    one = Estimate(value=0.6, low=0.5, high=0.7, n=POINTS, n_prompts=POINTS // 2)
    figures = {name: SpaceFigures(neighbours=one, silhouette=one) for name in ("dense", "sparse", "random-rows", "picture-dense", "picture-sparse")}
    places = {"rows": rows, "label": labels, "prompt": known.groups, "split": np.repeat(known.split, 2)}
    spaces = Spaces(**places, **pictures, figures=figures, n_held_out=POINTS, chance=0.5, made=made)
    ModelFolder(fitted, store).result("spaces", SpacesConfig(), lambda folder, _: save_spaces(folder, spaces) or {})  # type: ignore[func-returns-value]
    return root


def made_up(rng: np.random.Generator) -> LatentFrequencies:
    shares = {name: rng.beta(0.3, 6, size=LATENTS) for name in ("chosen", "rejected")}
    counts = {name: rng.integers(0, 500, size=LATENTS) for name in ("n_active", "prompts_for", "prompts_against")}
    chances = {name: rng.random(LATENTS) for name in ("p_value", "q_value")}
    rest = {"held_out": shares["chosen"] - shares["rejected"], "low": np.full(LATENTS, np.nan), "high": np.full(LATENTS, np.nan)}
    return LatentFrequencies(**shares, **counts, **chances, **rest, n_pairs=4000, n_prompts=4000, n_pairs_held_out=500)


def spread(known: FitResponses, rng: np.random.Generator) -> FitResponses:
    """10,000 responses in 5,000 pairs, each pair one of the known ones, moved a little."""
    if known.pairs is None:
        raise SystemExit("the newest reward model keeps no texts")
    n = POINTS // 2
    of = rng.integers(0, len(known.pairs), size=n)
    rows = np.stack([known.chosen_rows[of], known.rejected_rows[of]], axis=1).ravel()
    pairs = tuple(replace(known.pairs[int(number)], pair_id=f"{place}") for place, number in enumerate(of))
    noise = rng.normal(scale=0.1, size=(POINTS, known.projections.shape[1])).astype(np.float32)
    split = known.split[of]
    names = ("train", "validation", "test", "unused")
    return FitResponses(
        projections=known.projections[rows] + noise,
        activations=known.activations[rows],
        n_tokens=known.n_tokens[rows],
        prompt_ids=np.repeat(np.arange(n), 2),
        response_ids=np.arange(POINTS),
        chosen_rows=np.arange(0, POINTS, 2),
        rejected_rows=np.arange(1, POINTS, 2),
        split=split,
        pairs=PreferencePairs(pairs=pairs, split=tuple(names[int(one)] for one in split)),
    )


if __name__ == "__main__":
    main()

"""How long "Build the demo" takes from an empty cache, by the button of the workbench in a real browser: until the first explanation can be read,
and until every page is filled.

    python benchmarks/demo.py [--preset tiny] [--models CACHE] [--keep CACHE]

The figures come from the records of the runs (`core.jobs.follow_up.preparation`), in seconds since the click; `seen` is the first explanation
drawn in the browser. `--models` copies the language models of another cache, so that nothing is fetched; without it the fetching is part of the
time, and its seconds stand among the steps. `--keep` builds in this new folder and leaves it there. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser_helpers import Server, Tab, browser, chromium  # noqa: E402
from playwright.sync_api import Browser  # noqa: E402

from core.jobs.follow_up import follow_up_runs, preparation  # noqa: E402
from core.runs.registry import Run, all_runs  # noqa: E402
from workbench.frame import models, progress  # noqa: E402
from workbench.frame.first_open import DEMO, TOY  # noqa: E402
from workbench.frame.model_client import Live  # noqa: E402

BUTTONS = {DEMO: "Build the demo", TOY: "Build a toy instead"}
BOUND = 120.0  # seconds to the first explanation of the demo, on two quiet cores
PATIENCE = 3600.0  # seconds after which a run is not waited for any more
FILLED = {"doctor": "Examined in", "spaces": "Do chosen and rejected lie apart?", "latent": "Texts it is active on"}  # what a filled page says


def main() -> None:
    options = arguments()
    if chromium() is None:
        raise SystemExit("no Chromium on this machine (apt-get install chromium)")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as name, browser() as chrome:
        root = (options.keep or Path(name) / "cache").resolve()
        root.mkdir(parents=True)
        if options.models:
            shutil.copytree(options.models / "models", root / "models")
        server = Server(root, Path(name) / "server.log", threads=os.cpu_count() or 1)
        server.start()
        try:
            figures = build(chrome, server, root, options.preset)
        finally:
            server.stop()
            for model in models.models(root):
                Live(model.path, root).stop()
    report(figures, options.preset)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How long the demo takes from an empty cache.")
    parser.add_argument("--preset", choices=sorted(BUTTONS), default=DEMO)
    parser.add_argument("--models", type=Path, metavar="CACHE", help="copy the language models of this cache")
    parser.add_argument("--keep", type=Path, metavar="CACHE", help="build in this new folder, and leave it there")
    return parser.parse_args()


def build(chrome: Browser, server: Server, root: Path, preset: str) -> dict[str, Any]:
    """Clicks the button, and reads the pages when the records say that they can be filled. Raises SystemExit where a run fails."""
    context = chrome.new_context(viewport={"width": 1440, "height": 900})
    tab = Tab(context, server).open()
    tab.press(BUTTONS[preset])
    fit = first_run(root)
    until_ended(fit)
    tab.menu("Response").draws()
    seen = time.time() - fit.asked["created"]
    tab.page.goto("about:blank")  # a page that asks every second would slow down what is measured
    for run in follow_up_runs(fit):
        until_ended(run)
    for page, text in FILLED.items():
        tab.open(page).says(text)
    context.close()
    steps = {
        run.id.partition("_")[2]: {step.name: round(step.seconds, 1) for step in progress.follow(run).steps} for run in (fit, *follow_up_runs(fit))
    }
    return {**preparation(fit), "seen": seen, "steps": steps}


def first_run(root: Path) -> Run:
    end = time.monotonic() + 60
    while not (runs := all_runs(root)):
        if time.monotonic() > end:
            raise SystemExit("the button started nothing")
        time.sleep(0.05)
    return runs[0]


def until_ended(run: Run) -> None:
    end = time.monotonic() + PATIENCE
    while (status := run.status()).live:
        if time.monotonic() > end:
            raise SystemExit(f"{run.id} takes too long")
        time.sleep(0.5)
    if status.state != "succeeded":
        raise SystemExit(f"{run.id}: {status.state}\n{run.log.read_text(encoding='utf-8', errors='replace')[-2000:]}")


def report(figures: dict[str, Any], preset: str) -> None:
    first, judged = figures["first_explanation"], ""
    if preset == DEMO:
        judged = f"   {'kept' if first < BOUND else 'MISSED'}: {first:.0f} < {BOUND:.0f}"
    print(f"first explanation {first:8.1f} s, seen {figures['seen']:.1f} s{judged}")
    for row in figures["runs"]:
        print(f"{row['kind']:17} {row['seconds']:8.1f} s, {row['state']}")
    print(f"all pages filled  {figures['all_pages']:8.1f} s")
    for kind, steps in figures["steps"].items():
        print(f"{kind}: " + ", ".join(f"{name} {seconds}" for name, seconds in steps.items()))
    print(json.dumps({"load": os.getloadavg()[0], "preset": preset, **figures}))


if __name__ == "__main__":
    main()

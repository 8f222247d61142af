"""What a run would take, before it is started: the equal command with `--estimate`, in a process of its own, since it needs the engine.

One at a time, and only while a page shows it. Estimates are kept in the cache under the command's name. No Streamlit here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import read_json, write_json
from core.runs.store import cache_root
from core.types import sha256_of

PATIENCE = 180.0  # seconds that an estimate may take
WANTED = 4.0  # seconds without another call after which an estimate is not needed any more
ROOT = Path(__file__).resolve().parents[2]

one_at_a_time = threading.Semaphore(1)
_asked: dict[Path, float] = {}
begun: set[Path] = set()
_lock = threading.Lock()


def estimate(words: Sequence[str]) -> Mapping[str, Any] | None:
    """`seconds`, `memory`, `disk` (bytes), or `problem`, for a `sparserm` command without its first word; None while it is not known: ask again."""
    path = cache_root() / "workbench" / "estimate" / f"{sha256_of(list(words))[:16]}.json"
    with _lock:
        _asked[path] = time.monotonic()
        if path.is_file():
            earlier: Mapping[str, Any] = read_json(path)
            return earlier
        if path not in begun:
            begun.add(path)
            threading.Thread(target=_make, args=(path, list(words)), daemon=True, name="estimate").start()
    return None


def _make(path: Path, words: list[str]) -> None:
    try:
        with one_at_a_time:
            if time.monotonic() - _asked[path] < WANTED:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, measured_estimate(words))
    finally:
        with _lock:
            begun.discard(path)


def measured_estimate(words: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "core.cli.main", *words, "--estimate", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return {"problem": "the estimate took too long"}
    if done.returncode:
        return {"problem": "\n".join(done.stderr.strip().splitlines()[-4:]) or "no estimate could be made"}
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured

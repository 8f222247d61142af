"""The folder of a live reward model, one for each cache and model: its process writes its address and its secret here.

    <cache>/servers/<16 digits of the model folder's path>/
        server.lock    held by the process as long as it lives (core.runs.locks)
        launch.lock    held from the moment it is started until it holds server.lock
        address.json   pid, port, secret of this launch; only its owner can read it. Removed at an orderly end
        failure.json   why the last start failed; removed when another start is asked for
        starts.json    times of starts that did not end in good order: a process that crashes repeatedly is not started for ever
        load.json      seconds that each phase of loading took the last time: the estimate for the next
        log.txt        output of the process

Nothing heavy is imported: the Streamlit process reads these files.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import StoreError
from core.files import read_json, write_text
from core.runs.locks import is_held
from core.runs.store import cache_root
from core.types import sha256_of

PROTOCOL = 5  # raised when requests or answers change: a process that speaks another one is replaced
HOST = "127.0.0.1"
UNSTABLE, WITHIN = 3, 120.0  # after so many starts in so many seconds that ended in no good order it is not started again by itself
UNKNOWN: dict[str, Any] = {"pid": 0, "port": 0, "secret": "", "protocol": 0, "signature": "", "started": 0.0}
TAIL = 4096  # bytes of the log that are shown


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a process listens. `signature` names the model's files as they were when it was started."""

    pid: int
    port: int
    secret: str
    protocol: int
    signature: str
    started: float

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ServerFolder:
    """The folder of one reward model's process."""

    model: Path
    root: Path

    @property
    def path(self) -> Path:
        return self.root / "servers" / sha256_of(str(self.model))[:16]

    @property
    def lock(self) -> Path:
        return self.path / "server.lock"

    @property
    def launch_lock(self) -> Path:
        return self.path / "launch.lock"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    # --- reading ---

    def live(self) -> bool:
        """Whether the process runs or is being started."""
        return is_held(self.lock) or is_held(self.launch_lock)

    def address(self) -> Address | None:
        """Where the process listens; None while none does."""
        address = _read(self.path / "address.json")
        if not address or not is_held(self.lock):
            return None
        # Another version may have written other fields.
        return Address(**{**UNKNOWN, **{name: value for name, value in address.items() if name in UNKNOWN}})

    def failure(self) -> Mapping[str, Any] | None:
        """Why the last start failed (core.errors.error_to_dict); None where it did not, or where the model's files have
        changed since.
        """
        failure = _read(self.path / "failure.json")
        return failure["error"] if failure and failure.get("signature") == signature(self.model) else None

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase of the last loading."""
        return {str(name): float(value) for name, value in (_read(self.path / "load.json") or {}).items()}

    def unstable(self) -> bool:
        """Whether it has crashed repeatedly within the last minutes."""
        return len([start for start in self._starts() if time.time() - start < WITHIN]) >= UNSTABLE

    def log_tail(self) -> str:
        """The end of the process's output."""
        with contextlib.suppress(OSError), self.log.open("rb") as handle:
            handle.seek(max(0, self.log.stat().st_size - TAIL))
            return handle.read().decode("utf-8", "replace").strip()
        return ""

    # --- writing ---

    def announce(self, port: int) -> Address:
        """Writes down where this process listens, with a new secret."""
        address = Address(
            pid=os.getpid(), port=port, secret=secrets.token_urlsafe(32), protocol=PROTOCOL, signature=signature(self.model), started=time.time()
        )
        _write(self.path / "address.json", asdict(address))
        return address

    def fail(self, error: Mapping[str, Any]) -> None:
        _write(self.path / "failure.json", {"error": dict(error), "signature": signature(self.model), "time": time.time()})

    def note_start(self) -> None:
        _write(self.path / "starts.json", {"starts": [*self._starts()[-UNSTABLE:], time.time()]})

    def note_seconds(self, seconds: Mapping[str, float]) -> None:
        _write(self.path / "load.json", dict(seconds))

    def forget(self, *names: str) -> None:
        """Removes files (`address`, `failure`, `starts`)."""
        for name in names:
            (self.path / f"{name}.json").unlink(missing_ok=True)

    def _starts(self) -> list[float]:
        return list((_read(self.path / "starts.json") or {}).get("starts", []))


def server_folder_of(model: str | Path, root: Path | None = None) -> ServerFolder:
    """The server folder of the reward model in `model`, in the cache `root` (default: `SPARSERM_CACHE`)."""
    return ServerFolder(model=Path(model).expanduser().resolve(), root=(root or cache_root()).resolve())


def signature(model: Path) -> str:
    """Identifies the files of a reward model by size and time: another fit in the same folder has another signature."""
    files = []
    for name in ("config.json", "model.safetensors"):
        with contextlib.suppress(OSError):
            status = (model / name).stat()
            files.append([name, status.st_size, status.st_mtime_ns])
    return sha256_of(files)[:16]


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(StoreError):
        value = read_json(path)
        return value if isinstance(value, dict) else None
    return None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """The file appears whole, and only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(path, json.dumps(value), private=True)

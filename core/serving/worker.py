"""The process of a live reward model: `python -m core.serving.worker MODEL DEVICE IDLE PORT [LAUNCH_LOCK]`, or
`sparserm serve`, which calls `serve`.

1. Take `server.lock`, listen on a free port of this machine, and write down the address with a secret of this launch.
2. Load the model in a thread of its own; until it is ready, /health answers with the progress.
3. Answer until it is stopped, or has had no request for IDLE seconds (0: never stop by itself).

A model that can't be loaded is written down and ends the process. LAUNCH_LOCK is the number of an open file
(core.runs.locks.InheritedLock).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn
from filelock import Timeout

from core.errors import ConfigError, SparseRMError, error_to_dict
from core.reward.recorded_files import read_config
from core.runs.locks import LOOKING, make_lock
from core.serving.answers import Answers
from core.serving.app import make_app
from core.serving.engine import Engine
from core.serving.server_folder import HOST, Address, ServerFolder, server_folder_of

LOOK = 0.5  # seconds between two checks


Ready = Callable[[Address], None]


def serve(server_folder: ServerFolder, *, device: str, idle: float, port: int, passed_on: Sequence[int] = (), ready: Ready) -> None:
    """Serves until it ends. `ready` is called once, from another thread, when the model is loaded.

    Raises what loading raised, ConfigError where another process serves this model already or the port is taken,
    StoreError where there is no model or one that is not whole.
    """
    read_config(server_folder.model)
    try:
        lock = make_lock(server_folder.lock).acquire(timeout=LOOKING)
    except Timeout:
        raise ConfigError("another process serves this model already", remedy="sparserm serve MODEL --stop") from None
    with lock:
        for handle in passed_on:
            os.close(handle)
        server_folder.forget("address", "failure")
        try:
            with _listening(port) as listening:
                _answer(server_folder, server_folder.announce(listening.getsockname()[1]), listening, device, idle, ready)
        finally:
            server_folder.forget("address", "starts")


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise ConfigError(f"port {port} can't be had", found=error.strerror or str(error), remedy="give another --port, or none") from error


def _answer(server_folder: ServerFolder, address: Address, listening: socket.socket, device: str, idle: float, ready: Ready) -> None:
    engine = Engine(server_folder.model, device, server_folder.seconds())

    def stop() -> None:
        server.should_exit = True

    def loaded() -> None:
        if engine.error is not None:
            server_folder.fail(error_to_dict(engine.error))
            stop()
        else:
            server_folder.note_seconds(engine.loading.took)
            ready(address)

    app = make_app(engine, Answers(engine), secret=address.secret, port=address.port, stop=stop)
    # No access log: it would hold the secret of clients that send it in the address.
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    engine.start(loaded)
    threading.Thread(target=_watch, args=(engine, server, idle), name="idle", daemon=True).start()
    serving = threading.Thread(target=server.run, args=([listening],), name="http")
    with _signals_end(server):
        serving.start()
        while serving.is_alive():
            serving.join(LOOK)
    if engine.error is not None:
        raise engine.error


@contextlib.contextmanager
def _signals_end(server: uvicorn.Server) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the server in good order. uvicorn in the main thread would raise the signal again
    afterwards, before the locks and files are cleaned up."""
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(engine: Engine, server: uvicorn.Server, idle: float) -> None:
    """Ends the server after `idle` seconds without a request."""
    while not server.should_exit:
        time.sleep(LOOK)
        if idle and engine.state == "ready" and engine.idle() > idle:
            server.should_exit = True


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 after an end in good order."""
    model, device, idle, port, *passed_on = arguments
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    server_folder = server_folder_of(Path(model))
    try:
        serve(server_folder, device=device, idle=float(idle), port=int(port), passed_on=list(map(int, passed_on)), ready=lambda _address: None)
    except SparseRMError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # unloading torch can take seconds, and the lock is free already

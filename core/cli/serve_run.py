"""What `sparserm serve` does: serves a reward model in this process, starts a process that does, or ends it."""

from __future__ import annotations

import argparse
import contextlib
import time

from core.cli.options import print_json
from core.errors import ConfigError, error_from_dict
from core.runs.progress import Display
from core.serving.launch import IDLE, health, start, stop
from core.serving.server_folder import Address, ServerFolder, server_folder_of
from core.serving.worker import serve


def serve_command(arguments: argparse.Namespace, display: Display) -> int:
    if not 0 <= arguments.port < 65536 or (arguments.idle is not None and arguments.idle < 0):
        raise ConfigError("--port or --idle has an impossible value", expected="a port from 0 to 65535, seconds from 0 on")
    server_folder = server_folder_of(arguments.model)
    if arguments.stop:
        stopped = stop(server_folder)
        print_json({"stopped": stopped}) if arguments.json else print("stopped" if stopped else "nobody serves this model")
    elif arguments.detach or server_folder.live():
        _detached(server_folder, arguments, display)
    else:
        _foreground(server_folder, arguments, display)
    return 0


def _detached(server_folder: ServerFolder, arguments: argparse.Namespace, display: Display) -> None:
    """Starts it, or finds it, and waits until it is ready."""
    how = {"device": arguments.device, "idle": IDLE if arguments.idle is None else arguments.idle, "port": arguments.port}
    start(server_folder, **how, again=True)
    while True:
        address = server_folder.address()
        health_report = (health(address) if address else None) or {}
        if address is not None and health_report.get("name") == "ready":
            break
        failure = None if server_folder.live() else server_folder.failure()
        if failure is not None:
            raise error_from_dict(failure)
        display("load the model", health_report.get("fraction", 0.0), 1.0)
        time.sleep(0.1)
        start(server_folder, **how)  # where it has ended meanwhile
    display.close()
    _print_address(server_folder, address, arguments)


def _foreground(server_folder: ServerFolder, arguments: argparse.Namespace, display: Display) -> None:
    """Serves until Ctrl-C."""

    def ready(address: Address) -> None:
        display.close()
        _print_address(server_folder, address, arguments)

    server_folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    display("load the model", 0, 1)
    with contextlib.suppress(KeyboardInterrupt):
        serve(server_folder, device=arguments.device, idle=arguments.idle or 0.0, port=arguments.port, ready=ready)


def _print_address(server_folder: ServerFolder, address: Address, arguments: argparse.Namespace) -> None:
    trainer = f"{address.url}/get_reward?key={address.secret}"
    if arguments.json:
        print_json({"url": address.url, "secret": address.secret, "pid": address.pid, "model": str(server_folder.model), "openrlhf": trainer})
        return
    print(f"{server_folder.model}\n  url      {address.url}\n  secret   {address.secret}\n  OpenRLHF --remote_rm_url '{trainer}'", flush=True)

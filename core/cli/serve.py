"""`sparserm serve`: a reward model behind localhost HTTP, for trainers and for the workbench, which finds the same process."""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli.options import add_command, print_json
from core.errors import ConfigError, error_from_dict
from core.runs.progress import Display

if TYPE_CHECKING:
    from core.serving.server_folder import Address, ServerFolder

EXAMPLES = {
    "serve": "examples:\n  sparserm serve my_reward_model\n  sparserm serve my_reward_model --detach --json\n  sparserm serve my_reward_model --stop",
}


def add_serving(commands: Any) -> None:
    """Adds `serve`."""
    parser = add_command(commands, "serve", serve_command, "serve a reward model to trainers and to the workbench, on this machine only", EXAMPLES)
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a reward model or of one of its controls")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="port (default: a free one)")
    parser.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="end when nobody has asked for so long (default: never; with --detach 900)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--detach", action="store_true", help="serve in the background, and return when the model is ready")
    how.add_argument("--stop", action="store_true", help="end the process that serves this model")


def serve_command(arguments: argparse.Namespace, display: Display) -> int:
    from core.serving.launch import stop
    from core.serving.server_folder import server_folder_of

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
    from core.serving.launch import IDLE, health, start

    how = {"device": arguments.device, "idle": IDLE if arguments.idle is None else arguments.idle, "port": arguments.port}
    start(server_folder, **how, again=True)
    while True:
        address = server_folder.address()
        found = (health(address) if address else None) or {}
        if address is not None and found.get("name") == "ready":
            break
        failure = None if server_folder.live() else server_folder.failure()
        if failure is not None:
            raise error_from_dict(failure)
        display("load the model", found.get("fraction", 0.0), 1.0)
        time.sleep(0.1)
        start(server_folder, **how)  # where it has died meanwhile
    display.close()
    _tell(server_folder, address, arguments)


def _foreground(server_folder: ServerFolder, arguments: argparse.Namespace, display: Display) -> None:
    """Serves until Ctrl-C."""
    from core.serving.worker import serve

    def ready(address: Address) -> None:
        display.close()
        _tell(server_folder, address, arguments)

    server_folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    display("load the model", 0, 1)
    with contextlib.suppress(KeyboardInterrupt):
        serve(server_folder, device=arguments.device, idle=arguments.idle or 0.0, port=arguments.port, ready=ready)


def _tell(server_folder: ServerFolder, address: Address, arguments: argparse.Namespace) -> None:
    trainer = f"{address.url}/get_reward?key={address.secret}"
    if arguments.json:
        print_json({"url": address.url, "secret": address.secret, "pid": address.pid, "model": str(server_folder.model), "openrlhf": trainer})
        return
    print(f"{server_folder.model}\n  url      {address.url}\n  secret   {address.secret}\n  OpenRLHF --remote_rm_url '{trainer}'", flush=True)

"""A reward model that `sparserm serve` serves, as a reward function of TRL. An example to copy: nothing but the standard library is needed.

    sparserm serve my_reward_model --detach --json       # says url and secret
    GRPOTrainer(reward_funcs=RemoteReward(url, secret), ...)

The server listens on its own machine only. From another one: `ssh -N -L 8200:127.0.0.1:PORT machine`, and the url is http://127.0.0.1:8200 if the
server was given --port 8200 (it answers to no other name).
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

AT_ONCE = 256  # responses of a request


class RemoteReward:
    """One reward a completion; None for one that can't be read, which TRL leaves out. `prompts` are texts or messages, as TRL gives them."""

    def __init__(self, url: str, secret: str, *, patience: float = 60.0) -> None:
        self.url, self.patience = url.rstrip("/"), patience
        self.headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        self.__name__ = "sparserm"  # TRL logs rewards under it
        # Not through a proxy of the environment: the server is on this machine.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def __call__(self, prompts: list[Any], completions: list[Any], **_columns: Any) -> list[float | None]:
        rewards: list[float | None] = []
        for at in range(0, len(prompts), AT_ONCE):
            rewards += self._ask({"prompts": prompts[at : at + AT_ONCE], "responses": completions[at : at + AT_ONCE]})["rewards"]
        return rewards

    def _ask(self, value: Any) -> Any:
        """Asks again while the server is busy or still loading."""
        request = urllib.request.Request(f"{self.url}/score", json.dumps(value).encode(), self.headers)
        end = time.monotonic() + self.patience
        while True:
            try:
                with self._open(request, timeout=300) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > end:
                    raise RuntimeError(f"{error.code}: {error.read().decode('utf-8', 'replace')}") from error
            time.sleep(0.5)

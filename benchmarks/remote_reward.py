"""A reward model behind `sparserm serve` as a reward function of TRL: an example to copy, with the standard library
alone.

    sparserm serve my_reward_model --detach --json       # prints url and secret
    GRPOTrainer(reward_funcs=RemoteReward(url, secret), ...)

The server listens on its own machine only. From another machine use `ssh -N -L 8200:127.0.0.1:PORT machine`; the url is
then http://127.0.0.1:8200, for which the server must have been started with --port 8200, since it rejects other names.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

AT_ONCE = 256  # responses in a request


class RemoteReward:
    """Gives one reward for each completion, or None for an unreadable one, which TRL leaves out.

    `prompts` are texts or messages, as TRL passes them.
    """

    def __init__(self, url: str, secret: str, *, patience: float = 60.0) -> None:
        self.url, self.patience = url.rstrip("/"), patience
        self.headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        self.__name__ = "sparserm"  # the name under which TRL logs the rewards
        # The server is on this machine, so a proxy of the environment is not used.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def __call__(self, prompts: list[Any], completions: list[Any], **_columns: Any) -> list[float | None]:
        rewards: list[float | None] = []
        for at in range(0, len(prompts), AT_ONCE):
            rewards += self._ask({"prompts": prompts[at : at + AT_ONCE], "responses": completions[at : at + AT_ONCE]})["rewards"]
        return rewards

    def _ask(self, value: Any) -> Any:
        """The server's response; the request is repeated while the server is busy or still loading."""
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

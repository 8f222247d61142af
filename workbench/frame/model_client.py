"""The pages' client of the process of a live reward model (core.serving). No page loads torch.

    live = live_model(folder)                   # cheap; the same object for the same folder
    state = live.ensure()                       # starts the process if it is not there; returns at once, never waits
    if state.ready: live.features(prompt, response)
    elif state.failed: state.error["problem"], state.error["remedy"] ... and a button: live.ensure(again=True)
    else: st.progress(state.fraction, state.text)     # look again in a fragment with run_every=0.5

A prompt is a text (one user message) or a list of messages {role, content}; a response is a text. Answers are plain
dicts and lists, in the shapes of `sparserm explain --json`, but for `features`. Every call starts the process if need
be, waits for it up to `PATIENCE` seconds, and asks once more where it died meanwhile. All raise SparseRMError: DataError
for a text that can't be read, ConfigError for a latent or span that does not exist, BackboneError where the process
can't be started or crashes. Safe in threads.

Pairs of the fit need no process: their features are in the reward model's folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.data.http import HttpError, HttpTimeout, LocalHttp
from core.errors import BackboneError, SparseRMError, error_from_dict, error_to_dict
from core.explain.features import ResponseFeatures
from core.serving.launch import health, start, stop
from core.serving.server_folder import Address, ServerFolder, server_folder_of
from workbench.frame.kept_texts import KeptTexts

PATIENCE = 60.0  # seconds that a call waits for the process to be ready
ANSWER = 300.0  # seconds that it waits for an answer
LARGEST = 2**30  # bytes of an answer
Dialogue = str | Sequence[Mapping[str, str]]
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LiveState:
    """The state of the model's process: `off` (not started), `starting`, `ready` or `failed`.

    `text` names the phase of loading, `fraction` is the share of the loading that is done (0 to 1), `seconds` the time it has taken
    so far, `left` an estimate of the rest. `error` has problem, expected, found and remedy. `pid`, `rss` (bytes),
    `idle` (seconds since the last request) are known once it listens; `explains` is False for controls without
    latents, which can only score.
    """

    name: str
    text: str = ""
    fraction: float = 0.0
    seconds: float = 0.0
    left: float | None = None
    error: Mapping[str, Any] | None = None
    pid: int | None = None
    rss: int | None = None
    idle: float = 0.0
    explains: bool = True

    @property
    def ready(self) -> bool:
        return self.name == "ready"

    @property
    def failed(self) -> bool:
        return self.name == "failed"


class Live:
    """The client of one reward model's process. `root` is the cache (default: `SPARSERM_CACHE`)."""

    def __init__(self, model: str | Path, root: Path | None = None, *, patience: float = PATIENCE) -> None:
        self.server_folder: ServerFolder = server_folder_of(model, root)
        self.texts = KeptTexts(self.server_folder.root)
        self.patience = patience
        self._http = LocalHttp(timeout=ANSWER, keep_open=True)

    # --- the process ---

    def ensure(self, *, again: bool = False) -> LiveState:
        """Starts the process unless it is there, and returns its state at once. `again` retries after a failure."""
        try:
            start(self.server_folder, again=again)
        except SparseRMError as error:
            return LiveState(name="failed", error=error_to_dict(error))
        state = self.state()
        return LiveState(name="starting", text="Starting the model") if state.name == "off" else state

    def state(self) -> LiveState:
        """The state of the process; starts nothing."""
        address = self.server_folder.address()
        if address is not None:
            answer = health(address)
            if answer is not None:
                return LiveState(**{name: answer[name] for name in LiveState.__dataclass_fields__ if name in answer})
        if self.server_folder.live():
            return LiveState(name="starting", text="Starting the model")
        failure = self.server_folder.failure()
        return LiveState(name="off") if failure is None else LiveState(name="failed", error=failure)

    def wait(self, seconds: float | None = None) -> LiveState:
        """Starts it and waits until it is ready or has failed, at most `seconds`."""
        end = time.monotonic() + (self.patience if seconds is None else seconds)
        while not (state := self.ensure()).ready and not state.failed and time.monotonic() < end:
            time.sleep(0.05)
        return state

    def stop(self) -> bool:
        """Ends the process and returns whether there was one. The next call starts it again."""
        return stop(self.server_folder)

    # --- scoring ---

    def score(self, prompts: Sequence[Dialogue], responses: Sequence[Dialogue]) -> dict[str, Any]:
        """{rewards: a number or None a response, refused: {number of a response as text: why it has none},
        shortened: [numbers as text of responses read with a cut prompt]}."""
        return self._ask("score", {"prompts": _plain(prompts), "responses": _plain(responses)})

    def score_pairs(self, pairs: Sequence[tuple[Dialogue, str, str]]) -> dict[str, Any]:
        """Of (prompt, chosen, rejected): {chosen, rejected, margin, probability: a number or None a pair, refused:
        {"3.chosen": why}}.
        """
        rows = [{"prompt": _plain(prompt), "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in pairs]
        return self._ask("score_pairs", {"pairs": rows})

    # --- explaining ---

    def features(self, prompt: Dialogue, response: str, *, parent: tuple[Dialogue, str] | None = None) -> ResponseFeatures:
        """v and f of a response: all that an explanation is made of. `parent` is the prompt and response it was made
        from.
        """
        body: dict[str, Any] = {"prompt": _plain(prompt), "response": response}
        if parent is not None:
            body["parent"] = {"prompt": _plain(parent[0]), "response": parent[1]}
        return ResponseFeatures.from_json(self._ask("features", body)["features"])

    def tokens(self, prompt: Dialogue, response: str) -> dict[str, Any]:
        """{texts, kinds, activation: {latent: values}, running_reward} (core.explain.token_values.TokenView)."""
        tokens: dict[str, Any] = self._ask("features", {"prompt": _plain(prompt), "response": response, "tokens": True})["tokens"]
        return tokens

    def deletions(self, prompt: Dialogue, response: str, spans: Sequence[Span] | None = None) -> list[dict[str, Any]]:
        """What each span of characters adds ({start, stop, text, effect}); without `spans` each sentence."""
        asked = None if spans is None else [list(span) for span in spans]
        rows: list[dict[str, Any]] = self._ask("deletions", {"prompt": _plain(prompt), "response": response, "spans": asked})["deletions"]
        return rows

    def gradient(self, prompt: Dialogue, response: str) -> dict[str, Any]:
        """{norm: a number for each token of `tokens`, reward}. The first one costs seconds and memory."""
        gradient: dict[str, Any] = self._ask("gradient", {"prompt": _plain(prompt), "response": response})["gradient"]
        return gradient

    def activations(self, text: str, latents: Sequence[int] = (), *, prompt: Dialogue | None = None, top: int = 10) -> dict[str, Any]:
        """Latents of the whole SAE on any text: as a user's message, or with `prompt` as the answer to it.

        {texts, kinds, activation: {latent: values} for `latents`, top: [{latent_id, activation, token}]}: those of
        highest activation on the text.
        """
        asked = {"text": text, "latents": [int(latent) for latent in latents], "top": top}
        return self._ask("activations", asked if prompt is None else {**asked, "prompt": _plain(prompt)})

    # --- asking ---

    def _ask(self, what: str, value: Mapping[str, Any]) -> dict[str, Any]:
        end, left = time.monotonic() + self.patience, 2
        while True:
            address = self._ready(max(0.0, end - time.monotonic()))
            try:
                status, answer = self._http.ask("POST", f"{address.url}/{what}", secret=address.secret, largest=LARGEST, value=value)
            except HttpTimeout as error:
                raise BackboneError("the model takes too long over this", found=f"more than {ANSWER:.0f} s", remedy="give a shorter text") from error
            except HttpError as error:  # it crashed, or has just ended after being idle
                left -= 1
                if not left:
                    raise self._dead(error) from error
                end = time.monotonic() + self.patience
                continue
            if status in (401, 503) and time.monotonic() < end:  # it was started again with another secret, or is busy
                time.sleep(0.1)
                continue
            return _answered(status, answer)

    def _ready(self, seconds: float) -> Address:
        state = self.wait(seconds)
        address = self.server_folder.address() if state.ready else None
        if state.failed and state.error:
            raise error_from_dict(state.error)
        if address is None:
            waited = f"{state.text or state.name} for {seconds:.0f} s"
            raise BackboneError("the model is not ready yet", found=waited, remedy=f"wait a little; see {self.server_folder.log}")
        return address

    def _dead(self, error: Exception) -> BackboneError:
        last = self.server_folder.log_tail().splitlines()[-1:]
        cause = f"{error}; {''.join(last) or 'nothing in its log'}"
        return BackboneError("the model's process crashed twice over this", found=cause, remedy=f"give a shorter text; see {self.server_folder.log}")


@cache
def live_model(model: str, root: Path | None = None) -> Live:
    """The process of the reward model in this folder: the same object, with its open connections, for the same folder."""
    return Live(model, root)


def _plain(value: Any) -> Any:
    """Tuples of messages as JSON lists."""
    return value if isinstance(value, str) else [dict(item) if isinstance(item, Mapping) else _plain(item) for item in value]


def _answered(status: int, answer: Any) -> dict[str, Any]:
    """The answer, where the process gave one. Raises the error that it gave instead."""
    if status == 200 and isinstance(answer, dict):
        return answer
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, Mapping):
        raise error_from_dict(error)
    raise BackboneError("the model's process gave no answer that can be read", found=f"status {status}")

"""Answers from an OpenAI-compatible server (`POST /chat/completions`): vLLM, SGLang, TGI, `transformers serve`, here or elsewhere.

One request an answer, several at a time, each with a seed of its own; the server applies its model's chat template. What comes back is not
trusted: it is limited in size and taken as text. Every answer is kept the moment it is there. Where the server refuses one request (too long a
prompt, say), that answer failed and the others go on; where it is silent, overloaded or makes no sense, the call ends with an error, and the same
call asks only for what is missing. The key comes from the environment alone (SPARSERM_ENDPOINT_KEY).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from core.align.generation import STEP
from core.backbone.generation import Spent
from core.backbone.journal import Generated, Journal
from core.config import CandidatesConfig
from core.data.http import KEY, Http, HttpError
from core.errors import ConfigError, MissingError
from core.types import Message, Progress, no_progress, sha256_of

LARGEST = 2**20  # bytes of an answer
REFUSED = (400, 413, 422, 500)  # this request's fault, as far as the server says
LOCKED = (401, 403, 404)  # no other request will fare better
WARM, SEVERAL = 0.5, 4  # from such a temperature on, the draws of so many prompts can't all be alike
LOOK_UP = 1.0  # seconds between two words to `progress` while no answer comes


@dataclass(frozen=True, kw_only=True)
class _Request:
    key: str
    place: tuple[int, int]  # the prompt's number and the sample's
    body: dict[str, Any]


_Told = tuple[_Request, Generated | Exception]


class EndpointGenerator:
    """A model behind `config.endpoint`. `partial`: file in which it keeps what is written. Raises ConfigError where no model is named."""

    def __init__(self, config: CandidatesConfig, partial: Path | None = None) -> None:
        if not config.endpoint or not config.endpoint_model:
            expected, remedy = "an OpenAI-compatible server and a model it serves", "--endpoint http://localhost:8000/v1 --endpoint-model NAME"
            raise ConfigError("no model behind an endpoint is named", expected=expected, remedy=f"{remedy}; its key, if it needs one, in {KEY}")
        self.config, self._journal, self._spent = config, Journal(partial), Spent()

    @property
    def spent(self) -> Spent:
        """Tokens as the server counts them."""
        return self._spent

    def generate(self, prompts: Sequence[Sequence[Message]], n: int, *, progress: Progress = no_progress) -> list[list[Generated]]:
        """`n` answers to each prompt. Raises MissingError where the server gave out; the answers so far are kept."""
        requests = [self._request(prompt, i, sample) for i, prompt in enumerate(prompts) for sample in range(n)]
        missing = list({one.key: one for one in requests if one.key not in self._journal.answers}.values())
        refused = self._ask_all(missing, len(requests), progress) if missing else {}
        found = {one.place: self._journal.answers.get(one.key) or refused[one.key] for one in requests}
        answers = [[found[i, sample] for sample in range(n)] for i in range(len(prompts))]
        self._check_draws(answers)
        return answers

    def _check_draws(self, answers: Sequence[Sequence[Generated]]) -> None:
        """Raises MissingError where no two draws of any prompt differ: `transformers serve` ignores a temperature if the model's files don't say
        `do_sample`, and then n samples are one."""
        draws = [{one.text for one in row} for row in answers if sum(bool(one.text) for one in row) > 1]
        if self.config.temperature >= WARM and len(draws) >= SEVERAL and all(len(texts) == 1 for texts in draws):
            self._journal.forget()  # a server that draws is to be asked anew
            raise MissingError(
                "the endpoint answers every draw alike, so it does not sample",
                expected=f"answers drawn at temperature {self.config.temperature}",
                found=f"{len(answers[0])} equal answers to each prompt",
                remedy="let it sample (transformers serve: do_sample true in the model's generation_config.json)",
            )

    def _request(self, prompt: Sequence[Message], number: int, sample: int) -> _Request:
        config = self.config
        asked = {"model": config.endpoint_model, "messages": list(prompt), "max_tokens": config.max_new_tokens, "temperature": config.temperature}
        body = {**asked, "top_p": config.top_p, "seed": int(sha256_of([config.seed, asked, sample])[:7], 16)}
        return _Request(key=sha256_of([config.endpoint, body])[:32], place=(number, sample), body=body)

    def _ask_all(self, missing: Sequence[_Request], total: int, progress: Progress) -> dict[str, Generated]:
        """Asks for what is missing and puts it into the journal; returns what the server refused to answer."""
        refused: dict[str, Generated] = {}
        failed: list[HttpError] = []
        done, in_a_row, began = total - len(missing), 0, time.perf_counter()

        def tell() -> None:
            progress(STEP, done, total, failed=len(refused) + len(failed))

        with closing(self._answers(missing, tell)) as answers:
            for request, answer in answers:
                done += 1
                in_a_row = in_a_row + 1 if isinstance(answer, HttpError) else 0
                if isinstance(answer, Generated):
                    self._journal.add([(request.key, answer)])
                    self._spent += Spent(answers=1, tokens=answer.n_tokens)
                elif answer.status in REFUSED:
                    refused[request.key] = Generated(text="", n_tokens=0, finished=False, failed=str(answer))
                else:
                    failed.append(answer)
                    if answer.status in LOCKED or in_a_row >= self.config.concurrency:
                        break
        self._spent += Spent(seconds=time.perf_counter() - began)
        tell()
        if failed or len(refused) == len(missing):
            said = str(failed[0]) if failed else next(iter(refused.values())).failed
            kept = sum(one.key in self._journal.answers for one in missing) + total - len(missing)
            raise _gave_out(said, f"{kept} of {total} answers are there", kept=self._journal.path is not None)
        return refused

    def _answers(self, missing: Sequence[_Request], tell: Callable[[], None]) -> Generator[tuple[_Request, Generated | HttpError], None, None]:
        """Answers and failures as they come, from threads that nobody has to wait for; a next request goes out when its answer is asked for."""
        left, found, waiting = SimpleQueue[_Request | None](), SimpleQueue[_Told](), iter(missing)
        config, workers = self.config, min(self.config.concurrency, len(missing))
        with Http(config.endpoint, key=os.environ.get(KEY, ""), plain=True, timeout=config.endpoint_timeout) as http:
            for _ in range(workers):
                left.put(next(waiting))
                threading.Thread(target=_work, args=(http, left, found), daemon=True).start()
            try:
                for _ in missing:
                    request, answer = _next(found, tell)
                    if isinstance(answer, Exception) and not isinstance(answer, HttpError):
                        raise answer
                    yield request, answer
                    left.put(next(waiting, None))
            finally:
                for _ in range(workers):
                    left.put(None)


def _work(http: Http, left: SimpleQueue[_Request | None], found: SimpleQueue[_Told]) -> None:
    """Asks until there is nothing to ask; what goes wrong is told to who waits."""
    while (request := left.get()) is not None:
        try:
            found.put((request, _ask(http, request.body)))
        except Exception as error:
            found.put((request, error))


def _next(found: SimpleQueue[_Told], tell: Callable[[], None]) -> _Told:
    """What comes next; `tell`, which may end it all, is called now and then while nothing does."""
    while True:
        tell()
        with suppress(Empty):
            return found.get(timeout=LOOK_UP)


def _ask(http: Http, body: dict[str, Any]) -> Generated:
    """One answer. Raises HttpError; with status 0 where none came or what came can't be read."""
    try:
        said = json.loads(http.post("/chat/completions", body, largest=LARGEST))
        choice, usage = said["choices"][0], said.get("usage")
        text, why = choice["message"]["content"] or "", choice.get("finish_reason")
        if not isinstance(text, str):
            raise TypeError(f"content is {type(text).__name__}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise HttpError(f"the answer can't be read, expected choices[0].message.content: {type(error).__name__}") from error
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    whole = text.encode("utf-8", "replace").decode().strip()  # half a surrogate pair is no text
    if why in ("content_filter", "tool_calls", "function_call"):
        return Generated(text=whole, n_tokens=0, finished=False, failed=f"the endpoint ended it by {why}")
    return Generated(text=whole, n_tokens=tokens if type(tokens) is int else 0, finished=why != "length")


def _gave_out(said: str, so_far: str, *, kept: bool) -> MissingError:
    return MissingError(
        "the endpoint did not give all answers",
        expected="a model's answer to each request",
        found=f"{' '.join(said.split())[:300]}; {so_far}",
        remedy=f"check its address (it usually ends in /v1), the model's name and {KEY}; then start again: "
        + ("only what is missing is asked for" if kept else "everything is asked for again"),
    )

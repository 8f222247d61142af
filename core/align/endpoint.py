"""Answers from an OpenAI-compatible server (`POST /chat/completions`): vLLM, SGLang, TGI, `transformers serve`.

Each answer is one request with a separate seed; several requests run at a time, and the server applies its model's chat
template. Responses are not trusted: their size is limited and they are only read as text. Every answer is kept as soon
as it arrives. Where the server refuses one request (because the prompt is too long, say), that answer has failed and
the others go on. Where it is silent, overloaded or answers nonsense, the call ends with an error, and the same call
again asks only for the missing answers. The key comes from the environment alone (SPARSERM_ENDPOINT_KEY).
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

LARGEST = 2**20  # bytes of a response
REFUSED = (400, 413, 422, 500)  # statuses by which a server refuses this request alone
LOCKED = (401, 403, 404)  # statuses that any other request would get too
WARM, SEVERAL = 0.5, 4  # at such a temperature or above, the samples of so many prompts can't all be equal
POLL_SECONDS = 1.0  # between two calls of `progress` while no answer arrives


@dataclass(frozen=True, kw_only=True)
class _Request:
    key: str  # of its answer in the journal
    place: tuple[int, int]  # the numbers of the prompt and of the sample
    body: dict[str, Any]


_Result = tuple[_Request, Generated | Exception]


class EndpointGenerator:
    """The model behind `config.endpoint`; answers are kept in `partial`, if given. ConfigError: no model is named."""

    def __init__(self, config: CandidatesConfig, partial: Path | None = None) -> None:
        if not config.endpoint or not config.endpoint_model:
            expected, remedy = "an OpenAI-compatible server and a model it serves", "--endpoint http://localhost:8000/v1 --endpoint-model NAME"
            raise ConfigError("the endpoint or its model is not named", expected=expected, remedy=f"{remedy}; its key, if it needs one, in {KEY}")
        self.config, self._journal, self._spent = config, Journal(partial), Spent()

    @property
    def spent(self) -> Spent:
        """Answers, tokens (as the server counts them) and seconds so far."""
        return self._spent

    def generate(self, prompts: Sequence[Sequence[Message]], n: int, *, progress: Progress = no_progress) -> list[list[Generated]]:
        """`n` answers to each prompt. Raises MissingError where the server fails; the answers so far are kept."""
        requests = [self._request(prompt, i, sample) for i, prompt in enumerate(prompts) for sample in range(n)]
        missing = list({request.key: request for request in requests if request.key not in self._journal.answers}.values())
        refused = self._ask_all(missing, len(requests), progress) if missing else {}
        by_place = {request.place: self._journal.answers.get(request.key) or refused[request.key] for request in requests}
        answers = [[by_place[i, sample] for sample in range(n)] for i in range(len(prompts))]
        self._check_draws(answers)
        return answers

    def _check_draws(self, answers: Sequence[Sequence[Generated]]) -> None:
        """Raises MissingError where the samples of every prompt are equal, which means that the server does not sample.
        `transformers serve` ignores the temperature unless the model's generation_config.json sets `do_sample`."""
        draws = [{answer.text for answer in row} for row in answers if sum(bool(answer.text) for answer in row) > 1]
        if self.config.temperature >= WARM and len(draws) >= SEVERAL and all(len(texts) == 1 for texts in draws):
            self._journal.forget()  # so that the next call asks for all answers again
            raise MissingError(
                "the endpoint answers every sample of a prompt alike, so it does not sample",
                expected=f"answers drawn at temperature {self.config.temperature}",
                found=f"{len(answers[0])} equal answers to each prompt",
                remedy="let it sample (transformers serve: do_sample true in the model's generation_config.json)",
            )

    def _request(self, prompt: Sequence[Message], number: int, sample: int) -> _Request:
        config = self.config
        content = {"model": config.endpoint_model, "messages": list(prompt), "max_tokens": config.max_new_tokens, "temperature": config.temperature}
        body = {**content, "top_p": config.top_p, "seed": int(sha256_of([config.seed, content, sample])[:7], 16)}
        return _Request(key=sha256_of([config.endpoint, body])[:32], place=(number, sample), body=body)

    def _ask_all(self, missing: Sequence[_Request], total: int, progress: Progress) -> dict[str, Generated]:
        """Requests the missing answers and adds them to the journal; returns the refused ones by key. Raises
        MissingError where all requests are refused, or the server fails."""
        refused: dict[str, Generated] = {}
        failed: list[HttpError] = []
        done, errors_in_a_row, began = total - len(missing), 0, time.perf_counter()

        def report() -> None:
            progress(STEP, done, total, failed=len(refused) + len(failed))

        with closing(self._answers(missing, report)) as answers:
            for request, answer in answers:
                done += 1
                errors_in_a_row = errors_in_a_row + 1 if isinstance(answer, HttpError) else 0
                if isinstance(answer, Generated):
                    self._journal.add([(request.key, answer)])
                    self._spent += Spent(answers=1, tokens=answer.n_tokens)
                elif answer.status in REFUSED:
                    refused[request.key] = Generated(text="", n_tokens=0, finished=False, failed=str(answer))
                else:
                    failed.append(answer)
                    if answer.status in LOCKED or errors_in_a_row >= self.config.concurrency:
                        break
        self._spent += Spent(seconds=time.perf_counter() - began)
        report()
        if failed or len(refused) == len(missing):
            reason = str(failed[0]) if failed else next(iter(refused.values())).failed
            n_kept = sum(request.key in self._journal.answers for request in missing) + total - len(missing)
            raise _failure(reason, f"{n_kept} of {total} answers are there", kept=self._journal.path is not None)
        return refused

    def _answers(self, missing: Sequence[_Request], report: Callable[[], None]) -> Generator[tuple[_Request, Generated | HttpError], None, None]:
        """Answers and errors as they arrive from threads, which request again when the consumer takes an answer."""
        left, results, waiting = SimpleQueue[_Request | None](), SimpleQueue[_Result](), iter(missing)
        config, workers = self.config, min(self.config.concurrency, len(missing))
        with Http(config.endpoint, key=os.environ.get(KEY, ""), plain=True, timeout=config.endpoint_timeout) as http:
            for _ in range(workers):
                left.put(next(waiting))
                threading.Thread(target=_work, args=(http, left, results), daemon=True).start()
            try:
                for _ in missing:
                    request, answer = _next(results, report)
                    if isinstance(answer, Exception) and not isinstance(answer, HttpError):
                        raise answer
                    yield request, answer
                    left.put(next(waiting, None))
            finally:
                for _ in range(workers):
                    left.put(None)


def _work(http: Http, left: SimpleQueue[_Request | None], results: SimpleQueue[_Result]) -> None:
    """A thread: sends requests until the queue gives None; exceptions are passed to the consumer."""
    while (request := left.get()) is not None:
        try:
            results.put((request, _ask(http, request.body)))
        except Exception as error:
            results.put((request, error))


def _next(results: SimpleQueue[_Result], report: Callable[[], None]) -> _Result:
    """The next result. `report` is called before and while it is waited for, and may raise to cancel."""
    while True:
        report()
        with suppress(Empty):
            return results.get(timeout=POLL_SECONDS)


def _ask(http: Http, body: dict[str, Any]) -> Generated:
    """One answer. Raises HttpError, with status 0 where no response arrived or it can't be read."""
    try:
        response = json.loads(http.post("/chat/completions", body, largest=LARGEST))
        choice, usage = response["choices"][0], response.get("usage")
        text, reason = choice["message"]["content"] or "", choice.get("finish_reason")
        if not isinstance(text, str):
            raise TypeError(f"content is {type(text).__name__}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise HttpError(f"the answer can't be read, expected choices[0].message.content: {type(error).__name__}") from error
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    whole = text.encode("utf-8", "replace").decode().strip()  # half a surrogate pair is no text
    if reason in ("content_filter", "tool_calls", "function_call"):
        return Generated(text=whole, n_tokens=0, finished=False, failed=f"the endpoint ended it by {reason}")
    return Generated(text=whole, n_tokens=tokens if type(tokens) is int else 0, finished=reason != "length")


def _failure(reason: str, so_far: str, *, kept: bool) -> MissingError:
    return MissingError(
        "the endpoint did not give all answers",
        expected="a model's answer to each request",
        found=f"{' '.join(reason.split())[:300]}; {so_far}",
        remedy=f"check its address (it usually ends in /v1), the model's name and {KEY}; then start again: "
        + ("only what is missing is asked for" if kept else "everything is asked for again"),
    )

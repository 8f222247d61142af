"""The thread of the model: it loads the reward model, and then does one piece of work after the other.

Requests of pages go before scoring. Scoring is cut into pieces of `PIECE` responses, so that a request for thousands
does not hold up the others. Pieces that wait together are scored together: eight requests of one response cost one
forward pass. The number of waiting pieces is bounded: further requests are refused as busy, and the client asks again.

Memory is capped where the system can (Linux, models on the CPU): once the model is loaded, requests may take `HEADROOM`
and twice the model's size more (a gradient needs it in float32). A request that needs more fails with an error, and the
process goes on.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import BackboneError, SparseRMError, error_to_dict
from core.runs.events import memory

if TYPE_CHECKING:
    from core.explain.explainer import Explainer
    from core.reward.model import SparseRM

PIECE, TOGETHER = 32, 128  # responses of a piece, and of pieces that are scored together
MOST_WAITING = 512  # pieces of work
HEADROOM = 2 * 2**30  # bytes
# Seconds of each phase of loading, used where this model has not been loaded before: SmolLM2-135M on two cores.
PHASES = {"Loading libraries": 3.0, "Reading the reward model": 0.3, "Loading the language model": 3.0, "Loading the SAE": 0.5, "Trying it once": 1.0}
log = logging.getLogger(__name__)


class Busy(Exception):
    """As much work waits as is allowed."""


@dataclass(order=True)
class Work:
    """A piece of work. Lower ranks come first, equal ones in the order of their requests; pieces with `items` may be
    scored together.
    """

    rank: int
    number: int
    do: Callable[[], Any] | None = field(compare=False)
    items: tuple[list[Any], list[Any]] | None = field(compare=False, default=None)
    future: Future[Any] = field(compare=False, default_factory=Future)


class Loading:
    """The progress of loading: the phases that are over, and in the current one the time so far against the time it
    took before.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self.expected = {phase: max(0.05, expected.get(phase, usual)) for phase, usual in PHASES.items()}
        self.took: dict[str, float] = {}
        self.phase, self.began, self.started = "", time.monotonic(), time.monotonic()

    def enter(self, phase: str) -> None:
        """Begins a phase, which ends the one before."""
        now = time.monotonic()
        if self.phase:
            self.took[self.phase] = round(now - self.began, 3)
        self.phase, self.began = phase, now

    def to_json(self) -> dict[str, Any]:
        """{text, fraction, seconds, left}."""
        now, total = time.monotonic(), sum(self.expected.values())
        past, usual = now - self.began, self.expected.get(self.phase, 0.0)
        done = sum(self.expected[phase] for phase in self.took)
        # In a phase that takes longer than the last time the fraction still grows, ever slower; at least a quarter of
        # the time it has taken is left.
        left = total - done - usual + max(usual - past, past / 4) if self.phase else 0.0
        done += usual * past / (past + usual / 3) if usual else 0.0
        return {"text": self.phase, "fraction": min(done / total, 1.0), "seconds": round(now - self.started, 1), "left": round(max(left, 0.0), 1)}


class Engine:
    """A reward model in a thread of its own. `state` is `starting`, `ready` or `failed`; `error` is then the exception."""

    def __init__(self, model: Path, device: str, expected: Mapping[str, float]) -> None:
        self.folder, self.device = model, device
        self.loading = Loading(expected)
        self.state = "starting"
        self.error: Exception | None = None
        self.asked = time.monotonic()
        self.served = self.batches = 0
        self.model: SparseRM
        self.explainer: Explainer | None = None
        self._waiting: list[Work] = []
        self._numbers = itertools.count()
        self._more = threading.Condition()
        self._working = False

    def start(self, ended: Callable[[], None]) -> None:
        """Starts loading; `ended` is called when it has succeeded or failed."""
        threading.Thread(target=self._run, args=(ended,), name="model", daemon=True).start()

    # --- from other threads ---

    def submit(self, do: Callable[[], Any], *, rank: int = 0) -> Future[Any]:
        """The result of `do`, called in the model's thread. Raises Busy."""
        return self._add([Work(rank, next(self._numbers), do)])[0]

    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[Future[Any]]:
        """For each piece of `PIECE` responses its (rewards, reasons) as `SparseRM.try_score`. Raises Busy."""
        at = range(0, len(prompts), PIECE)
        pieces = [(list(prompts[i : i + PIECE]), list(responses[i : i + PIECE])) for i in at]
        return self._add([Work(1 + (number > 0), next(self._numbers), None, piece) for number, piece in enumerate(pieces)])

    def idle(self) -> float:
        """Seconds since the last piece of work; 0 while there is some."""
        return 0.0 if self._working or self._waiting else time.monotonic() - self.asked

    def health(self) -> dict[str, Any]:
        """The fields of workbench.frame.model_client.LiveState."""
        loaded = {"text": "Ready", "fraction": 1.0, "left": 0.0} if self.state == "ready" else {}
        process = {"name": self.state, "pid": os.getpid(), "rss": memory().get("rss"), "idle": round(self.idle(), 1), "served": self.served}
        error = None if self.error is None else error_to_dict(self.error)
        return {**self.loading.to_json(), **loaded, **process, "batches": self.batches, "explains": self.explainer is not None, "error": error}

    def _add(self, works: list[Work]) -> list[Future[Any]]:
        with self._more:
            if len(self._waiting) + len(works) > MOST_WAITING:
                raise Busy
            for work in works:
                heapq.heappush(self._waiting, work)
            self.asked = time.monotonic()
            self._more.notify()
        return [work.future for work in works]

    # --- the model's thread ---

    def _run(self, ended: Callable[[], None]) -> None:
        try:
            self._load()
            self.state = "ready"
        except Exception as error:
            log.exception("the model could not be loaded")
            self.error, self.state = error, "failed"
        self.asked = time.monotonic()
        ended()
        while self.state == "ready":
            self.do(self.next_works())

    def _load(self) -> None:
        enter = self.loading.enter
        enter("Loading libraries")
        import transformers  # noqa: F401

        from core.serving import text_answers

        enter("Reading the reward model")
        self.model = text_answers.load_model(self.folder, self.device)
        enter("Loading the language model")
        backbone = text_answers.backbone_of(self.model)
        enter("Loading the SAE")
        with contextlib.suppress(SparseRMError):  # a control without latents can only score; Answers raises the error when one is asked for more
            self.explainer = self.model.explainer
            _ = self.explainer.sae
        enter("Trying it once")
        self.model.score(["Hello."], ["Hello."])
        if self.explainer is not None:
            self.explainer.features("Hello.", "Hello.")
        enter("")
        if backbone.device.type == "cpu":
            cap_memory(HEADROOM + 2 * sum(weight.numel() * weight.element_size() for weight in backbone.model.parameters()))

    def next_works(self) -> list[Work]:
        """Waits for the next work: one piece of work, or several pieces of scoring that wait together. `do` must
        follow.
        """
        with self._more:
            while not self._waiting:
                self._more.wait()
            self._working = True
            works = [heapq.heappop(self._waiting)]
            n = len(works[0].items[0]) if works[0].items else 0
            while n and self._waiting and (other := self._waiting[0].items) and n + len(other[0]) <= TOGETHER:
                works.append(heapq.heappop(self._waiting))
                n += len(other[0])
        return [work for work in works if work.future.set_running_or_notify_cancel()]

    def do(self, works: list[Work]) -> None:
        """Does what `next_works` returned and resolves its futures."""
        try:
            if not works:
                return
            if works[0].do is not None:
                works[0].future.set_result(works[0].do())
            else:
                self._score(works)
        except BaseException as error:
            for work in works:
                if not work.future.done():
                    work.future.set_exception(readable_error(error))
            if isinstance(error, (MemoryError, RuntimeError)):
                self._drop_readings()
        finally:
            with self._more:
                self.asked, self._working = time.monotonic(), False
        self.served += len(works)
        self.batches += 1

    def _score(self, works: list[Work]) -> None:
        """Scores all pieces in one call. Where that fails, each for itself, so that an error reaches only its own
        request.
        """
        pieces = [work.items for work in works if work.items]
        if len(works) > 1:
            with contextlib.suppress(SparseRMError):
                answers = self._together(pieces)
                for work, answer in zip(works, answers, strict=True):
                    work.future.set_result(answer)
                return
        for work, piece in zip(works, pieces, strict=True):
            try:
                work.future.set_result(self.model.try_score(*piece))
            except SparseRMError as error:
                work.future.set_exception(error)

    def _together(self, pieces: Sequence[tuple[list[Any], list[Any]]]) -> list[Any]:
        rewards, refused = self.model.try_score([p for prompts, _ in pieces for p in prompts], [r for _, responses in pieces for r in responses])
        answers, at = [], 0
        for prompts, _ in pieces:
            stop = at + len(prompts)
            answers.append((rewards[at:stop], {number - at: reason for number, reason in refused.items() if at <= number < stop}))
            at = stop
        return answers

    def _drop_readings(self) -> None:
        if self.explainer is not None:
            self.explainer.forget()


def readable_error(error: BaseException) -> BaseException:
    """The error itself; for one of memory a BackboneError that states this and what to do."""
    out = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    if not out:
        return error
    readable = BackboneError(
        "this does not fit into the memory that the model's process may use", found=str(error)[:200], remedy="give a shorter text"
    )
    readable.__cause__ = error
    return readable


def cap_memory(more: int) -> None:
    """Caps this process at so many bytes more than it has now. Only Linux can limit the memory of data and stack."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])  # data and stack
    limit = pages * os.sysconf("SC_PAGE_SIZE") + more
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

"""Whether the Hugging Face Hub answers, asked once with one short request.

Without it, every library that wants a file of the Hub tries six times over half a minute and prints a warning for each
try. Inside `one_question` a Hub that does not answer is not asked again: each request of this process fails at once,
and libraries turn to their local cache as they do under HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

SECONDS_TO_ANSWER = 5.0
SECONDS_REMEMBERED = 60.0

_lock = threading.Lock()
last_answer: tuple[str, float, str] | None = None  # endpoint, when it was asked, why it can't be reached


@contextlib.contextmanager
def one_question() -> Iterator[str]:
    """Yields why the Hub can't be reached, "" where it can. While the context lasts, nothing is sent to a Hub that
    can't be reached.
    """
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    reason = _unreachable()
    if not reason:
        yield ""
        return

    def refuse(_request: Any) -> None:
        raise OfflineModeIsEnabled(reason)

    session = get_session()
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "request": [refuse, *hooks.get("request", [])]}
    try:
        yield reason
    finally:
        session.event_hooks = hooks


def _unreachable() -> str:
    """The reason why the Hub can't be reached, "" if it can; remembered for a minute."""
    global last_answer
    from huggingface_hub import HfApi, get_session, is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    endpoint = HfApi().endpoint
    with _lock:
        if last_answer is None or last_answer[0] != endpoint or time.monotonic() - last_answer[1] > SECONDS_REMEMBERED:
            reason = ""
            try:
                get_session().head(endpoint, timeout=SECONDS_TO_ANSWER)  # any answer will do
            except Exception as error:  # no connection, no name, no certificate, a proxy that refuses
                reason = f"{endpoint} does not answer ({type(error).__name__}: {error})"
            last_answer = endpoint, time.monotonic(), reason
        return last_answer[2]

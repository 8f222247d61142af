"""How a running command or run is shown to a person: `Display` draws progress on standard error; sizes, times and figures as words.

Machines get one JSON line on standard output; progress never mixes with it. rich is imported when bars are drawn for the first time.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from core.text_safety import for_terminal

# Where standard error is no terminal (a log file), a running step says something this often, in seconds.
LOG_EVERY = 30.0


class Display:
    """A progress callable: bars with the time left on a terminal, a line a step in a log, nothing if `quiet` and no terminal looks on."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.live = sys.stderr.isatty()
        self.quiet = quiet and not self.live
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._step, self._started, self._line_shown = "", 0.0, 0.0
        self._last = (False, 0.0, "")

    def __enter__(self) -> Display:
        if self.live:
            self._bars = _bars()
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()
        else:
            self._finish()

    def close(self) -> None:
        """All steps are done: bars stand still and full, so that results can be printed below them."""
        if self._bars:
            self._complete()
            self._bars.stop()

    def __call__(self, step: str, done: float, total: float, **figures: Any) -> None:
        if self._bars:
            self._bar(step, done, total, figures)
        elif not self.quiet:
            self._line(step, done, total, figures)

    def _bar(self, step: str, done: float, total: float, figures: Mapping[str, Any]) -> None:
        if step not in self._tasks:
            self._complete()
            self._tasks[step] = self._bars.add_task(step, total=total, figures="")
        self._bars.update(self._tasks[step], completed=done, total=total, figures=figures_text(figures))

    def _complete(self) -> None:
        """The steps so far are over, whether or not they said so."""
        for task in self._bars.tasks:
            self._bars.update(task.id, completed=task.total)

    def _line(self, step: str, done: float, total: float, figures: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if step != self._step:
            self._finish()
            self._step, self._started, self._line_shown = step, now, now
        self._last = (done >= total, now, figures_text(figures))
        if now - self._line_shown >= LOG_EVERY and 0 < done < total:
            self._line_shown = now
            left = duration((now - self._started) * (total - done) / done)
            self.say(f"{step}: {done / total:.0%}, about {left} left  {figures_text(figures)}".rstrip())

    def _finish(self) -> None:
        """Says that the step before is done, with its last figures: only now is it sure that it reports nothing more."""
        finished, ended, figures = self._last
        if finished:
            self.say(f"{self._step}: done in {duration(ended - self._started)}  {figures}".rstrip())
        self._last = (False, 0.0, "")

    def say(self, text: str) -> None:
        """A line for the person, above the bars."""
        if self._bars:
            self._bars.console.print(for_terminal(text), markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(for_terminal(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A line that must be seen by who asked for JSON alone too: it goes to standard error, the JSON to standard output."""
        if self.quiet and not self._bars:
            print(for_terminal(text), file=sys.stderr, flush=True)
        else:
            self.say(text)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    ]
    # rich would send what is printed to standard output meanwhile to standard error, and a pipe would stay empty.
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=4, redirect_stdout=False, redirect_stderr=False)


def log_to(say: Callable[[str], None], warn: Callable[[str], None] | None = None) -> None:
    """What the engine says goes where the progress goes, and what it warns of to `warn` (default: `say`), without file names and line numbers."""
    caution = warn or say

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        is_ours = Path(filename).is_relative_to(Path(__file__).parents[1])
        caution(f"warning: {message}" if is_ours else warnings.formatwarning(message, category, filename, lineno))

    warnings.showwarning = show

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            (caution if record.levelno >= logging.WARNING else say)(self.format(record))

    logger = logging.getLogger("core")
    logger.handlers[:] = [Handler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def figures_text(figures: Mapping[str, Any]) -> str:
    """`tokens_per_s=1234.5, dead=3` becomes `1,234 tokens/s  dead 3`."""
    shown = ((name, _number(value)) for name, value in figures.items() if name != "unit")
    return "  ".join(f"{text} {name.replace('_per_', '/')}" if "_per_" in name else f"{name.replace('_', ' ')} {text}" for name, text in shown)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: float) -> str:
    """`512 B`, `1.5 MB`, `2.0 GB`."""
    for unit in ("B", "kB", "MB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def date(seconds: float) -> str:
    """A point in time, to the minute, in this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))

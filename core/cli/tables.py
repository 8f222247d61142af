"""What the `sparserm` command shows to a person: progress with an estimate on standard error, tables on standard output.

Machines get one JSON line on standard output instead of tables; progress never mixes with it. rich is imported on first use.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from core.reward.head_words import mean_of
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
        self._step, self._started, self._said = "", 0.0, 0.0
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
            self._step, self._started, self._said = step, now, now
        self._last = (done >= total, now, figures_text(figures))
        if now - self._said >= LOG_EVERY and 0 < done < total:
            self._said = now
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
        ours = Path(filename).is_relative_to(Path(__file__).parents[1])
        caution(f"warning: {message}" if ours else warnings.formatwarning(message, category, filename, lineno))

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


def accuracy_cells(value: Mapping[str, Any]) -> tuple[str, str, str]:
    """An accuracy with its interval and number of pairs, as three cells."""
    if value["accuracy"] is None:
        return "none", "", "0"
    return f"{value['accuracy']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}", f"{value['n']:,}"


def print_outcome(kind: str, result: Mapping[str, Any]) -> None:
    """What a finished run of this kind found (`result.json`)."""
    printers = {"fit": print_fit, "sweep": print_sweep, "sae-train": print_training, "align": print_align}
    if kind in printers:
        printers[kind](result["outcome"])
    else:
        table(kind, ("what", "value"), figures_of(result["outcome"]))


def print_training(outcome: Mapping[str, Any]) -> None:
    """An SAE's card, and where it lies."""
    table("Sparse autoencoder", ("figure", "value"), figures_of(outcome["card"]["measured"]))
    print(f"SAE: {outcome['artefact']}")


def print_sweep(outcome: Mapping[str, Any]) -> None:
    """`SweepOutcome.to_json`: accuracy against layer and K, the best of them, and the pairs that are not among them."""
    print_curve("Validation accuracy", outcome["points"])
    best = outcome["best"]
    print(f"best validation accuracy: layer {best['layer']}, K = {best['k']}, {mean_of(best['n_heads'])}: {' '.join(accuracy_cells(best))} pairs")
    print_pair_counts(outcome.get("pair_counts"))


def print_pair_counts(counts: Mapping[str, Any] | None) -> None:
    """The foot of a table of figures: the pairs that are not in it (core.reward.pair_counts). `counts` is None where an older version made it."""
    from core.reward.pair_counts import sentences

    lines = ["Pairs that were left out have not been counted: fit again with this version."] if counts is None else sentences(counts)
    print("\n".join(lines))


def score_lines(report: Mapping[str, Any]) -> list[str]:
    """The foot of `sparserm score`: how many of how many were scored, and why the others were not (`ScoreReport.to_json`)."""
    kind = str(report["kind"])
    accuracy = f", accuracy {' '.join(accuracy_cells(report['pairs']))} pairs" if "pairs" in report else ""
    lines = [f"{report['n_scored']:,} of {report['n_items']:,} {kind} scored, from {report['n_rows']:,} rows{accuracy}"]
    if report["n_refused"]:
        reasons = "; ".join(f"{n:,} x {reason}" for reason, n in report["by_reason"].items())
        counts = f"{report['n_rows_refused']:,} rows that can't be used, {report['n_items_refused']:,} {kind} that can't be read"
        lines.append(f"left out: {counts}: {reasons}")
    if report["n_shortened"]:
        lines.append(f"cut: the prompts of {report['n_shortened']:,} {kind} lost their leading turns, to fit {report['max_length']:,} tokens")
    return [*report["notes"], *lines]


def print_fit(outcome: Mapping[str, Any]) -> None:
    """`FitOutcome.to_json`: the table of a fit, the pairs that are not in it, the curve, the seconds, and where the reward model lies."""
    about, table_ = outcome["about"], outcome
    what = f"{about['backbone']}, layer {about['layer']}, {about['selection']['k']} latents a side, {Path(about['data']).name}"
    lines = [("SparseRM", table_["sparserm"])]
    lines += [(name, entry) for name, entry in table_["controls"].items()]
    lines += [(f"loss: {name}", entry) for name, entry in table_["losses"].items()]
    columns = ("test accuracy", "shipped head", "95 % interval", "test pairs", "mean of heads (n)", "deviation", "lead of SparseRM's mean")
    table(what, columns, [(name, *accuracy_cells(entry), *_spread_cells(entry)) for name, entry in lines])
    if kinds := list(table_["sparserm"]["subsets"]):
        by_kind = [(name, *(" ".join(accuracy_cells(entry["subsets"][kind])[:2]) for kind in kinds)) for name, entry in lines]
        sizes = [f"{kind} ({table_['sparserm']['subsets'][kind]['n']:,} pairs)" for kind in kinds]
        table("Test accuracy by kind of pair, mean of heads", ("test pairs", *sizes), by_kind)
    _print_subset_counts(table_.get("subset_counts"))
    print_curve("Validation accuracy by K", outcome["curve"])
    print_pair_counts(table_.get("pair_counts"))
    if about["selection"]["note"]:
        print(about["selection"]["note"])
    print("seconds: " + ", ".join(f"{step} {seconds:.1f}" for step, seconds in outcome["seconds"].items()))
    print(f"reward model: {outcome['artefact']}")


def _print_subset_counts(counts: Mapping[str, Any] | None) -> None:
    """The pairs that stand in no line of a table by kind; nothing where no kind is named."""
    if not counts or not counts["n_kinds"]:
        return
    if not counts["shown"]:
        print(f"No table by kind: `{counts['field']}` names {counts['n_kinds']:,} kinds.")
    elif counts["n_unnamed"]:
        print(f"{counts['n_unnamed']:,} of {counts['n_named'] + counts['n_unnamed']:,} test pairs name no `{counts['field']}`.")


def _spread_cells(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    if not entry.get("mean") or entry["mean"]["accuracy"] is None:
        return "", "", ""
    lead, deviation = entry["sparserm_minus_this"], entry["deviation"]
    said = "" if lead is None else f"{lead['difference']:+.3f} ({lead['low']:+.3f} to {lead['high']:+.3f})"
    return f"{entry['mean']['accuracy']:.3f} ({len(entry['heads'])})", "" if deviation is None else f"{deviation:.3f}", said


def print_curve(title: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy against K: a line for each kind of direction (and layer), a column for each K."""
    ks = sorted({point["k"] for point in points})
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    for point in points:
        name = (point["kind"], *((str(point["layer"]),) if "layer" in point else ()))
        cells.setdefault(name, {})[point["k"]] = "{} ({})".format(*accuracy_cells(point)[:2])
    named = ("directions", "layer")[: max(map(len, cells), default=1)]
    pairs = f"{points[0]['n']:,} validation pairs" if points else "no pairs"
    heads = sorted({point["n_heads"] for point in points})
    of = f", {' or '.join(mean_of(n) for n in heads)}" if heads else ""
    table(f"{title}{of}, {pairs}", (*named, *(f"K = {k}" for k in ks)), [(*name, *(row.get(k, "") for k in ks)) for name, row in cells.items()])


ALIGN_FIGURES = ("validation_accuracy", "accuracy", "reward", "length", "kl_per_token", "mc1_unseen", "mc2_unseen")


def print_align(outcome: Mapping[str, Any]) -> None:
    """`AlignOutcome.to_json`: the pairs of each round and why some were dropped, the policy after it, what is in no figure, what was chosen."""
    from core.align.left_out import sentences

    counts = ("generated", "parsed", "kept", "dropped")
    rows = [
        (
            str(one["round"]),
            *(str(one[name]) for name in counts),
            ", ".join(f"{n} {why}" for why, n in one["reasons"].items()),
            duration(one["seconds"]),
        )
        for one in outcome["rounds"]
    ]
    table(f"Pairs, arm {outcome['arm']}", ("round", *counts, "dropped for", "time"), rows)
    every = [outcome["base"], *outcome["rounds"]]
    shown = [name for name in ALIGN_FIGURES if name in outcome["base"]["evaluation"]["figures"]]
    columns = ("round", *(name.replace("_", " ") for name in shown))
    table("Policy after each round (0: the base model), 95 % intervals, number measured", columns, [_policy_cells(one, shown) for one in every])
    for line in sentences(outcome):
        print(line)
    if "pair_counts" in outcome:
        print("Of the reward model's own pairs:")
        print_pair_counts(outcome["pair_counts"])
    for warning in outcome["warnings"]:
        print(f"round {warning['round']}: {warning['text']}")
    for said in filter(None, (outcome["stopped"], f"chosen: round {outcome['chosen_round']} ({outcome['choice']})")):
        print(said)
    print(f"alignment: {outcome['artefact']}" + (f"\nadapter: {outcome['adapter']}" if outcome["adapter"] else ""))


def _policy_cells(one: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Each figure with its interval and the number of pairs, answers or questions it is of."""
    figures = [one["evaluation"]["figures"].get(name) for name in names]
    return (str(one["round"]), *("" if figure is None else "{value:.3f} ({low:.3f} to {high:.3f}), {n}".format(**figure) for figure in figures))


def figures_of(card: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    """A nested card as lines of name and value."""
    lines: list[tuple[str, str]] = []
    for name, value in card.items():
        inner = f"{path}.{name}" if path else name
        lines += figures_of(value, inner) if isinstance(value, Mapping) else [(inner, f"{value:.4g}" if isinstance(value, float) else str(value))]
    return lines


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Prints a table to standard output; the first `left` columns to the left, the others to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=for_terminal(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(for_terminal(column), justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(for_terminal(cell)) for cell in row))
    # In a pipe or a file rich would guess 80 columns and fold.
    Console(width=None if sys.stdout.isatty() else 160).print(shown)

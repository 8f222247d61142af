"""The tables that the `sparserm` command prints for a person on standard output. rich is imported when the first one is printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.align import left_out
from core.by_name import load
from core.reward.head_words import mean_of
from core.runs.progress import duration
from core.runs.versions import VERSIONS
from core.text_safety import for_terminal


def accuracy_cells(value: Mapping[str, Any]) -> tuple[str, str, str]:
    """An accuracy with its interval and number of pairs, as three cells."""
    if value["accuracy"] is None:
        return "none", "", "0"
    return f"{value['accuracy']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}", f"{value['n']:,}"


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
    lines = (
        ["Pairs that were left out have not been counted: fit again with this version."]
        if counts is None
        else load("core.reward.pair_counts:sentences")(counts)
    )
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
    seconds = sorted(outcome["seconds"].items(), key=lambda item: list(VERSIONS).index(item[0]))
    print("seconds: " + ", ".join(f"{step} {value:.1f}" for step, value in seconds))
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
    lead_cell = "" if lead is None else f"{lead['difference']:+.3f} ({lead['low']:+.3f} to {lead['high']:+.3f})"
    return f"{entry['mean']['accuracy']:.3f} ({len(entry['heads'])})", "" if deviation is None else f"{deviation:.3f}", lead_cell


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
    counts = ("generated", "parsed", "kept", "dropped")
    rows = [
        (
            str(round_["round"]),
            *(str(round_[name]) for name in counts),
            ", ".join(f"{n} {why}" for why, n in round_["reasons"].items()),
            duration(round_["seconds"]),
        )
        for round_ in outcome["rounds"]
    ]
    table(f"Pairs, arm {outcome['arm']}", ("round", *counts, "dropped for", "time"), rows)
    every = [outcome["base"], *outcome["rounds"]]
    shown = [name for name in ALIGN_FIGURES if name in outcome["base"]["evaluation"]["figures"]]
    columns = ("round", *(name.replace("_", " ") for name in shown))
    table("Policy after each round (0: the base model), 95 % intervals, number measured", columns, [_policy_cells(round_, shown) for round_ in every])
    for line in left_out.sentences(outcome):
        print(line)
    if "pair_counts" in outcome:
        print("Of the reward model's own pairs:")
        print_pair_counts(outcome["pair_counts"])
    for warning in outcome["warnings"]:
        print(f"round {warning['round']}: {warning['text']}")
    for line in filter(None, (outcome["stopped"], f"chosen: round {outcome['chosen_round']} ({outcome['choice']})")):
        print(line)
    print(f"alignment: {outcome['artefact']}" + (f"\nadapter: {outcome['adapter']}" if outcome["adapter"] else ""))


def _policy_cells(round_: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """Each figure with its interval and the number of pairs, answers or questions it is of."""
    figures = [round_["evaluation"]["figures"].get(name) for name in names]
    return (str(round_["round"]), *("" if figure is None else "{value:.3f} ({low:.3f} to {high:.3f}), {n}".format(**figure) for figure in figures))


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
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.on_broken_pipe = _raise_broken_pipe  # type: ignore[method-assign]  # rich would end the process with exit code 1
    console.print(shown)


def _raise_broken_pipe() -> None:
    raise BrokenPipeError

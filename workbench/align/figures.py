"""The policy's figures round by round, read from the rounds' evaluations, with their titles and units. No Streamlit
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.align.figures import MEANING, difference_of, read_measures
from core.align.records import EVALUATION, RoundRecord
from core.errors import MismatchError
from core.files import read_json, read_json_lines
from core.statistics.estimates import Estimate
from workbench.align.values import Entry
from workbench.frame.chart_base import interval, number

Point = Mapping[str, Any]  # round, value, low, high, n, n_prompts, difference


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """How a figure of the policy is shown. `of`: what its n counts; `scale`: 100 for a share that is shown in per cent."""

    title: str
    short: str
    unit: str
    of: str
    scale: float = 1.0

    def value_text(self, point: Mapping[str, Any]) -> str:
        """The value alone."""
        return f"{self.scale * point['value']:.1f} %" if self.scale == 100 else number(point["value"], ".3g")

    def interval_text(self, point: Mapping[str, Any], form: str = "") -> str:
        """The value with its interval."""
        value, low, high = (self.scale * point[end] for end in ("value", "low", "high"))
        return interval(value, low, high, form or (".1f" if self.scale == 100 else ".3g"))


def _share(title: str, short: str, of: str) -> FigureSpec:
    return FigureSpec(title=title, short=short, unit=f"% of {of}", of=of, scale=100.0)


FIGURES: Mapping[str, FigureSpec] = {
    "reward": FigureSpec(title="Reward of its own answers", short="Reward", unit="Mean reward", of="answers"),
    "accuracy": _share("Preference accuracy", "Accuracy, test", "test pairs"),
    "mc1_unseen": _share("MC1, unseen questions", "MC1, unseen", "questions"),
    "mc2_unseen": FigureSpec(title="MC2, unseen questions", short="MC2, unseen", unit="% of probability", of="questions", scale=100.0),
    "length": FigureSpec(title="Length of its answers", short="Length", unit="Tokens an answer", of="answers"),
    "kl_per_token": FigureSpec(title="KL from the base model", short="KL a token", unit="Nats a token", of="tokens"),
    "finished": _share("Answers that end by themselves", "Ended", "answers"),
    "logprob_margin": FigureSpec(title="Log-probability margin", short="Margin", unit="Nats", of="test pairs"),
    "validation_accuracy": _share("Validation accuracy, which chooses", "Accuracy, validation", "validation pairs"),
    "accuracy_per_token": _share("Preference accuracy per token", "Accuracy per token", "test pairs"),
    "kl_per_sequence": FigureSpec(title="KL from the base model, whole answers", short="KL an answer", unit="Nats an answer", of="answers"),
    "mc1_all": _share("MC1, seen questions too", "MC1, all", "questions"),
    "mc2_all": FigureSpec(title="MC2, seen questions too", short="MC2, all", unit="% of probability", of="questions", scale=100.0),
}
SHOWN_FIRST = ("reward", "accuracy", "mc1_unseen", "mc2_unseen", "length", "kl_per_token", "finished", "logprob_margin", "validation_accuracy")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished alignment: the chosen round, the rule of the choice, and why it ended early (empty where it did not)."""

    chosen: int
    choice: str
    stopped: str
    folder: Path

    @property
    def adapter(self) -> Path | None:
        """The chosen round's adapter; None where the base model was chosen."""
        return self.folder / "adapter" if self.chosen else None


def result_of(entry: Entry) -> Result | None:
    """The result of an alignment; None while it is not finished."""
    folder = None if entry.record is None else entry.record.result
    if folder is None:
        return None
    outcome = _json(folder / "alignment.json")
    return Result(chosen=int(outcome["chosen_round"]), choice=str(outcome["choice"]), stopped=str(outcome["stopped"]), folder=folder)


def evaluated(rounds: Sequence[RoundRecord]) -> list[RoundRecord]:
    """The rounds whose policy has been evaluated; round 0 is the base model."""
    return [round for round in rounds if EVALUATION in round.steps]


@lru_cache(maxsize=64)
def _json(path: Path) -> Any:
    return read_json(path)


def evaluation_of(round: RoundRecord) -> Mapping[str, Any]:
    """`evaluation.json` of a round that has one."""
    evaluation: Mapping[str, Any] = _json(round.steps[EVALUATION] / "evaluation.json")
    return evaluation


def curves(rounds: Sequence[RoundRecord]) -> dict[str, list[Point]]:
    """Each figure's points over these evaluated rounds, in the order of `FIGURES`, without figures that were never
    measured.
    """
    measured = {round.round: evaluation_of(round)["figures"] for round in rounds}
    points: dict[str, list[Point]] = {
        name: [{"round": round, **figures[name]} for round, figures in measured.items() if name in figures] for name in FIGURES
    }
    return {name: curve for name, curve in points.items() if curve}


def point_of(curves: Mapping[str, Sequence[Point]], name: str, round: int) -> Point | None:
    """The point of a figure after a round; None where it was not measured."""
    return next((point for point in curves.get(name, ()) if point["round"] == round), None)


def leads(first: RoundRecord, second: RoundRecord) -> dict[str, Estimate]:
    """How far the first policy's figures are above the second's, paired by pair, prompt or question.

    A figure is absent where the two policies were not measured on the same items.
    """
    return _leads(first.steps[EVALUATION], second.steps[EVALUATION])


@lru_cache(maxsize=32)
def _leads(first: Path, second: Path) -> dict[str, Estimate]:
    of_first, of_second = read_measures(first), read_measures(second)
    differences = dict[str, Estimate]()
    for name in (name for name in FIGURES if name in of_first and name in of_second):
        try:
            difference = difference_of(name, of_first[name], of_second[name])
        except MismatchError:
            continue
        if difference is not None:
            differences[name] = difference
    return differences


def rows(curves: Mapping[str, Sequence[Point]]) -> list[dict[str, Any]]:
    """All figures of all rounds as a table."""
    names = ("value", "low", "high", "n", "n_prompts")
    table = []
    for name, points in curves.items():
        for point in points:
            difference = point["difference"] or {}
            row = {"round": point["round"], "figure": name, "meaning": MEANING[name], **{part: point[part] for part in names}}
            table.append(row | {f"difference {part}": difference.get(part) for part in names})
    return table


def warnings_of(rounds: Sequence[RoundRecord]) -> list[str]:
    """The warnings that core.align.overoptimisation.RULE gives for these rounds."""
    return [f"Round {round.round}: {warning['text']}." for round in rounds for warning in evaluation_of(round)["warnings"]]


def drift_of(round: RoundRecord) -> list[Mapping[str, Any]]:
    """The latents that moved most against the base model, the furthest first."""
    return list(evaluation_of(round)["drift"])


def mc_note(first: RoundRecord) -> str:
    """How the multiple-choice questions of MC1 and MC2 were asked, or why the two were not measured."""
    about = evaluation_of(first)["about"]
    if not about.get("mc_format"):
        return "MC1 and MC2 were not measured: no file of questions was given (mc, under All settings)."
    counts = f"{about.get('mc_unseen', 0):,} of {about.get('mc_questions', 0):,} questions are unseen by reward model and policy"
    return f"MC1 and MC2 are asked in the format {about['mc_format']}, without examples before; {counts}."


def samples_of(round: RoundRecord) -> dict[str, Mapping[str, Any]]:
    """The answers that were saved for reading, by the id of their prompt."""
    return _samples(round.steps[EVALUATION])


@lru_cache(maxsize=32)
def _samples(folder: Path) -> dict[str, Mapping[str, Any]]:
    return {row["prompt_id"]: row for row in read_json_lines(folder / "samples.jsonl")}

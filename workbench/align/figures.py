"""The policy's figures, round by round, as the pages draw them: read from the rounds' evaluations, with words and units. No Streamlit here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.align.figures import MEANING, difference_of, read_measures
from core.align.overoptimisation import DRIFT, RULE  # for the pages
from core.align.records import EVALUATION, RoundRecord
from core.errors import MismatchError
from core.files import read_json, read_json_lines
from core.statistics.estimates import Estimate
from workbench.align.values import Entry
from workbench.frame.chart_base import interval, number

__all__ = ["DRIFT", "RULE"]

Point = Mapping[str, Any]  # round, value, low, high, n, n_prompts, difference


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the policy for people. `of`: what its n counts; `scale` turns a share into per cent."""

    title: str
    short: str
    unit: str
    of: str
    scale: float = 1.0

    def said(self, one: Mapping[str, Any]) -> str:
        """The value alone."""
        return f"{self.scale * one['value']:.1f} %" if self.scale == 100 else number(one["value"], ".3g")

    def within(self, one: Mapping[str, Any], form: str = "") -> str:
        """The value with its interval."""
        value, low, high = (self.scale * one[end] for end in ("value", "low", "high"))
        return interval(value, low, high, form or (".1f" if self.scale == 100 else ".3g"))


def _share(title: str, short: str, of: str) -> Figure:
    return Figure(title=title, short=short, unit=f"% of {of}", of=of, scale=100.0)


FIGURES: Mapping[str, Figure] = {
    "reward": Figure(title="Reward of its own answers", short="Reward", unit="Mean reward", of="answers"),
    "accuracy": _share("Preference accuracy", "Accuracy, test", "test pairs"),
    "mc1_unseen": _share("MC1, unseen questions", "MC1, unseen", "questions"),
    "mc2_unseen": Figure(title="MC2, unseen questions", short="MC2, unseen", unit="% of probability", of="questions", scale=100.0),
    "length": Figure(title="Length of its answers", short="Length", unit="Tokens an answer", of="answers"),
    "kl_per_token": Figure(title="KL from the base model", short="KL a token", unit="Nats a token", of="tokens"),
    "finished": _share("Answers that end by themselves", "Ended", "answers"),
    "logprob_margin": Figure(title="Log-probability margin", short="Margin", unit="Nats", of="test pairs"),
    "validation_accuracy": _share("Validation accuracy, which chooses", "Accuracy, validation", "validation pairs"),
    "accuracy_per_token": _share("Preference accuracy per token", "Accuracy per token", "test pairs"),
    "kl_per_sequence": Figure(title="KL from the base model, whole answers", short="KL an answer", unit="Nats an answer", of="answers"),
    "mc1_all": _share("MC1, seen questions too", "MC1, all", "questions"),
    "mc2_all": Figure(title="MC2, seen questions too", short="MC2, all", unit="% of probability", of="questions", scale=100.0),
}
FIRST = ("reward", "accuracy", "mc1_unseen", "mc2_unseen", "length", "kl_per_token", "finished", "logprob_margin", "validation_accuracy")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished alignment: the round that was chosen on validation, by which rule, and why it ended early (empty: it did not)."""

    chosen: int
    choice: str
    stopped: str
    folder: Path

    @property
    def adapter(self) -> Path | None:
        """The chosen round's adapter; None where the base model was chosen."""
        return self.folder / "adapter" if self.chosen else None


def result_of(entry: Entry) -> Result | None:
    """What came of an alignment; None while it is not finished."""
    folder = None if entry.record is None else entry.record.result
    if folder is None:
        return None
    said = _json(folder / "alignment.json")
    return Result(chosen=int(said["chosen_round"]), choice=str(said["choice"]), stopped=str(said["stopped"]), folder=folder)


@lru_cache(maxsize=64)
def _json(path: Path) -> Any:
    return read_json(path)


def evaluation_of(round: RoundRecord) -> Mapping[str, Any]:
    """`evaluation.json` of a round that has one."""
    figures: Mapping[str, Any] = _json(round.steps[EVALUATION] / "evaluation.json")
    return figures


def curves(rounds: Sequence[RoundRecord]) -> dict[str, list[Point]]:
    """Each figure's points over these evaluated rounds, in the order of `FIGURES`; a figure that was never measured is absent."""
    said = {one.round: evaluation_of(one)["figures"] for one in rounds}
    found: dict[str, list[Point]] = {
        name: [{"round": round, **figures[name]} for round, figures in said.items() if name in figures] for name in FIGURES
    }
    return {name: points for name, points in found.items() if points}


def point_of(found: Mapping[str, Sequence[Point]], name: str, round: int) -> Point | None:
    """A figure after a round."""
    return next((one for one in found.get(name, ()) if one["round"] == round), None)


def leads(one: RoundRecord, other: RoundRecord) -> dict[str, Estimate]:
    """How far the first policy's figures lie above the second's, each pair, prompt and question against itself; what was not the same is absent."""
    return _leads(one.steps[EVALUATION], other.steps[EVALUATION])


@lru_cache(maxsize=32)
def _leads(one: Path, other: Path) -> dict[str, Estimate]:
    own, theirs = read_measures(one), read_measures(other)
    found = dict[str, Estimate]()
    for name in (name for name in FIGURES if name in own and name in theirs):
        try:
            lead = difference_of(name, own[name], theirs[name])
        except MismatchError:
            continue
        if lead is not None:
            found[name] = lead
    return found


def rows(found: Mapping[str, Sequence[Point]]) -> list[dict[str, Any]]:
    """All figures of all rounds as a table."""
    names = ("value", "low", "high", "n", "n_prompts")
    table = []
    for name, points in found.items():
        for one in points:
            moved = one["difference"] or {}
            own = {"round": one["round"], "figure": name, "meaning": MEANING[name], **{part: one[part] for part in names}}
            table.append(own | {f"difference {part}": moved.get(part) for part in names})
    return table


def warnings_of(rounds: Sequence[RoundRecord]) -> list[str]:
    """What `RULE` says of each round."""
    return [f"Round {one.round}: {said['text']}." for one in rounds for said in evaluation_of(one)["warnings"]]


def drift_of(round: RoundRecord) -> list[Mapping[str, Any]]:
    """The latents that moved most against the base model, the furthest first."""
    return list(evaluation_of(round)["drift"])


def how(first: RoundRecord) -> str:
    """How MC was asked, which is printed with its number; empty where it was not."""
    about = evaluation_of(first)["about"]
    if not about.get("mc_format"):
        return "MC1 and MC2 were not measured: no file of questions was given (mc, under All settings)."
    counts = f"{about.get('mc_unseen', 0):,} of {about.get('mc_questions', 0):,} questions are unseen by reward model and policy"
    return f"MC1 and MC2 are asked in the format {about['mc_format']}, without examples before; {counts}."


def samples_of(round: RoundRecord) -> dict[str, Mapping[str, Any]]:
    """The answers that were kept to be read, by prompt."""
    return _samples(round.steps[EVALUATION])


@lru_cache(maxsize=32)
def _samples(folder: Path) -> dict[str, Mapping[str, Any]]:
    return {row["prompt_id"]: row for row in read_json_lines(folder / "samples.jsonl")}

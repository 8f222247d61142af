"""Explains a file into a table (a row a pair or response); finds the worst response and the most mis-ranked pair.

Each row names the latents of its sentence. Files are read as `sparserm score` reads them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.config import DataConfig
from core.data.pairs import load_pairs
from core.errors import ConfigError, DataError
from core.explain.explainer import Explainer
from core.explain.explanation import Explanation, PairExplanation
from core.explain.features import ResponseFeatures
from core.explain.sentence import MOST_NAMED, Why
from core.reward.dialogues import Item
from core.reward.fit_responses import FitResponses
from core.reward.hidden_states import WHOLE
from core.reward.parts import RewardParts
from core.reward.responses import read_responses
from core.reward.scoring import check_target, write_table
from core.types import Message, PreferencePair, Progress, RefusedRow, no_progress

CHUNK = 512  # rows whose hidden states are read at once
SUFFIXES = (".jsonl", ".csv")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The content of a file: pairs, or single responses as (id, row number, item); and the rows that can't be used."""

    pairs: tuple[PreferencePair, ...]
    responses: tuple[tuple[str, int, Item], ...]
    refused: tuple[RefusedRow, ...]

    def items(self) -> list[Item]:
        """All responses in order, a pair's chosen before its rejected one."""
        return [(pair.prompt, text) for pair in self.pairs for text in (pair.chosen, pair.rejected)] or [item for _, _, item in self.responses]

    def at(self, row: int) -> PreferencePair | Item:
        """The first pair or response of a row. Raises DataError where the row holds none."""
        numbers = [pair.meta["row"] for pair in self.pairs] or [number for _, number, _ in self.responses]
        if row not in numbers:
            reason = next((f"{refused.field}: {refused.reason}" for refused in self.refused if refused.row == row), "no such row")
            raise DataError(f"row {row} can't be explained", expected=f"a row from {min(numbers)} to {max(numbers)} that can be used", found=reason)
        number = numbers.index(row)
        return self.pairs[number] if self.pairs else self.responses[number][2]


def read_rows(source: Path, progress: Progress = no_progress) -> Rows:
    """The pairs or responses of a file. Raises DataError where no row can be used."""
    responses = read_responses(source)
    if not responses.only_responses:  # a row without a pair among pairs is refused
        pairs, report = load_pairs(DataConfig(pairs=str(source)), progress)
        return Rows(pairs=pairs.pairs, responses=(), refused=report.refused)
    singles, refused = responses.singles, responses.refused
    if not singles:
        raise DataError(f"no row of {source} can be explained", found=f"row {refused[0].row}: {refused[0].reason}" if refused else "an empty file")
    return Rows(pairs=(), responses=tuple((str(single.id), single.row, (single.prompt, single.text)) for single in singles), refused=refused)


def states_of(explainer: Explainer, items: Sequence[Item], progress: Progress = no_progress) -> tuple[np.ndarray, dict[int, str]]:
    """z of each response, and a reason under the number of each that can't be read (its row is NaN)."""
    states = np.full((len(items), explainer.parts.d_model), np.nan, dtype=np.float32)
    reasons: dict[int, str] = {}
    for at in range(0, len(items), CHUNK):
        progress("read", at, len(items))
        chunk = items[at : at + CHUNK]
        z, refused = explainer.model.reader(chunk)
        states[[at + i for i in range(len(chunk)) if i not in refused]] = z
        reasons |= {at + number: reason for number, reason in refused.items()}
    progress("read", len(items), len(items))
    return states, reasons


def pick(explainer: Explainer, rows: Rows, which: str, progress: Progress = no_progress) -> PreferencePair | Item:
    """`worst`: the response of lowest reward; `misranked`: the pair of lowest margin. DataError: there are no pairs."""
    items = rows.items()
    z, _ = states_of(explainer, items, progress)
    rewards = explainer.model.rewards_of(np.nan_to_num(z))
    rewards[np.isnan(z).any(axis=1)] = np.nan
    if np.isnan(rewards).all():
        raise DataError("no row of the file can be read by this model")
    if which == "worst":
        return items[int(np.nanargmin(rewards))]
    if not rows.pairs:
        raise DataError("a mis-ranked pair can only be found among pairs", found="a file of single responses")
    return rows.pairs[int(np.nanargmin(rewards[0::2] - rewards[1::2]))]


def pick_known(parts: RewardParts, known: FitResponses | None, which: str) -> tuple[int, int]:
    """The number of the held-out pair that holds the worst-scored response, or is most mis-ranked, and the side in
    question (0 chosen, 1 rejected). From the responses that the fit saved, without the language model. Raises
    ConfigError where none were saved."""
    if known is None or known.pairs is None or not len(known.held_out_pairs):
        raise ConfigError("no held-out pairs with texts are kept beside this reward model", remedy="give a file with --pairs")
    pairs = known.held_out_pairs
    rewards = np.stack([parts.head.reward(known.projections[rows[pairs]]) for rows in (known.chosen_rows, known.rejected_rows)], axis=1)
    if which == "worst":
        number, side = divmod(int(rewards.argmin()), 2)
        return int(pairs[number]), side
    return int(pairs[(rewards[:, 0] - rewards[:, 1]).argmin()]), 0


def explain_file(explainer: Explainer, source: Path, target: Path, progress: Progress = no_progress) -> dict[str, Any]:
    """Writes a table of a whole file, whole or not at all. Returns path, number of rows, and rows left out. Raises
    ConfigError where `target` is neither .jsonl nor .csv or can't be written, DataError where no row can be used."""
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError("the ending of the table's name must give its format", expected=" or ".join(SUFFIXES), found=target.name)
    check_target(target)
    rows = read_rows(source, progress)
    reasons: dict[int, str] = {}
    table = list((_pair_rows if rows.pairs else _response_rows)(explainer, rows, _features(explainer, rows.items(), reasons, progress), progress))
    late = [_refused(rows, number, reason) for number, reason in sorted(reasons.items())]
    if not table:
        raise DataError(f"no row of {source} can be explained", found=late[0]["reason"] if late else "nothing")
    json_lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in table)
    write_table(_csv(table) if target.suffix.lower() == ".csv" else json_lines, target)
    refused = [*(vars(row) for row in rows.refused), *late]
    return {"table": str(target), "n_explained": len(table), "refused": sorted(refused, key=lambda row: row["row"])}


def _features(explainer: Explainer, items: Sequence[Item], reasons: dict[int, str], progress: Progress) -> Iterator[ResponseFeatures | None]:
    """v and f of each response in turn; None, with a reason under its number, for each that can't be read. Where whole
    responses are read their tokens are needed as well, and each is read for itself."""
    whole = explainer.parts.position == WHOLE
    z, unreadable = (np.zeros((0, 0)), dict[int, str]()) if whole else states_of(explainer, items, progress)
    reasons.update(unreadable)
    for number, item in enumerate(items):
        if not whole:
            yield None if number in reasons else explainer.state_features(item, z[number : number + 1])
            continue
        try:
            yield explainer.features(*item)
        except DataError as error:
            reasons[number] = error.found or error.problem
            yield None


def _pair_rows(explainer: Explainer, rows: Rows, features: Iterator[ResponseFeatures | None], progress: Progress) -> Iterator[dict[str, Any]]:
    for number, (pair, chosen, rejected) in enumerate(zip(rows.pairs, features, features, strict=True)):
        progress("explain", number, len(rows.pairs))
        if chosen is not None and rejected is not None:
            yield {"id": pair.pair_id, "row": pair.meta["row"], **_pair_row(explainer.builder.pair(chosen, rejected, explainer.labels))}
    progress("explain", len(rows.pairs), len(rows.pairs))


def _response_rows(explainer: Explainer, rows: Rows, features: Iterator[ResponseFeatures | None], progress: Progress) -> Iterator[dict[str, Any]]:
    for number, ((name, row, _), response) in enumerate(zip(rows.responses, features, strict=True)):
        progress("explain", number, len(rows.responses))
        if response is not None:
            yield {"id": name, "row": row, **_response_row(explainer.builder.response(response, explainer.labels))}
    progress("explain", len(rows.responses), len(rows.responses))


def _pair_row(pair: PairExplanation) -> dict[str, Any]:
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {
        "prompt": prompt_text(pair.chosen.prompt),
        **{name: side.response for name, side in sides.items()},
        **{f"reward_{name}": side.reward for name, side in sides.items()},
        **{f"percentile_{name}": side.percentile for name, side in sides.items()},
        "margin": pair.margin.reward - pair.margin.baseline_reward,
        "probability": pair.probability,
        "residual": pair.margin.residual,
        "rank_correlation": pair.margin.rank_correlation,
        **_named(pair.why),
    }


def _response_row(explanation: Explanation) -> dict[str, Any]:
    return {
        "prompt": prompt_text(explanation.prompt),
        "response": explanation.response,
        "reward": explanation.reward,
        "percentile": explanation.percentile,
        "prompt_part": float(explanation.prompt_part.sum()),
        "response_part": float(explanation.response_part.sum()),
        "n_known": explanation.n_known,
        "residual": explanation.attribution.residual,
        "rank_correlation": explanation.attribution.rank_correlation,
        **_named(explanation.why),
    }


def _named(why: Why) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for number in range(MOST_NAMED):
        named = why.named[number] if number < len(why.named) else None
        cells[f"latent_{number + 1}"] = named and named.latent_id
        cells[f"name_{number + 1}"] = named and named.name
        cells[f"value_{number + 1}"] = named and named.value
    return {**cells, "why": why.text, "weaknesses": " ".join(why.weaknesses)}


def prompt_text(prompt: Sequence[Message]) -> str:
    """A prompt as one text: the user's message alone, or each message under its role."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _refused(rows: Rows, number: int, reason: str) -> dict[str, Any]:
    if rows.pairs:
        return {"row": rows.pairs[number // 2].meta["row"], "field": ("chosen", "rejected")[number % 2], "reason": reason}
    return {"row": rows.responses[number][1], "field": "response", "reason": reason}


def _csv(table: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow(row)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()

"""What the Response page looks at, as values: the pairs of the fit and own texts of the person, and their figures in
the folder of the reward model. No Streamlit here. workbench.response.readings holds what needs the model's process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import MissingError
from core.explain.attribution import Attribution
from core.explain.explanation import Explanation, PairExplanation
from core.explain.from_folder import switchboard_of
from core.explain.switch import SwitchedOff
from core.explain.word_table import running_rewards
from core.reward.dialogues import Item
from core.reward.folder import ModelFolder
from core.reward.response_tokens import ResponseTokens
from core.types import Message, PreferencePair
from workbench.frame.model_client import live_model
from workbench.frame.models import OWN, FittedModel

SIDES = ("chosen", "rejected")
RANKED = ("worst", "misranked")
ORDERS = {"worst": "Worst scored", "misranked": "Most mis-ranked", "listed": "As they stand"}


# --- lists of pairs -------------------------------------------------------------------------------------------------


def listed(
    model: ModelFolder, *, order: str = "worst", held_out: bool = True, search: str = "", only: Sequence[str] | frozenset[str] | None = None
) -> list[int]:
    """Numbers of the kept pairs in this order: `worst` by the lower of their two rewards, `misranked` by margin, or as
    they stand. Held to those whose texts hold `search` (any case), and whose ids are in `only`.
    """
    if not model.has_texts:
        return []
    pairs, wanted = model.pairs, search.casefold()
    numbers = map(int, model.ranked(order if order in RANKED else "", held_out=held_out))
    return [i for i in numbers if (only is None or pairs[i].pair_id in only) and (not wanted or wanted in _texts(pairs[i]))]


def _texts(pair: PreferencePair) -> str:
    return "\n".join([*(message["content"] for message in pair.prompt), pair.chosen, pair.rejected]).casefold()


def pair_rows(model: ModelFolder, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """A row a pair, for a table."""
    rows = []
    for number in numbers:
        pair, (chosen, rejected) = model.pair(number), model.pair_rewards[number].tolist()
        asked = pair.prompt[-1]["content"] if pair.prompt else ""
        row = {"margin": chosen - rejected, "chosen reward": chosen, "rejected reward": rejected, "prompt": one_line(asked)}
        rows.append({**row, "chosen": one_line(pair.chosen), "rejected": one_line(pair.rejected), "pair": pair.pair_id})
    return rows


def one_line(text: str, longest: int = 160) -> str:
    """A text cut to a line, for a table's cell."""
    flat = " ".join(text[: 4 * longest].split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


# --- what is looked at -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A prompt and its answers: `texts` by side, `chosen` and `rejected`, or `response` alone. `number` is that of a
    kept pair, or None.
    """

    pair_id: str
    number: int | None
    prompt: tuple[Message, ...]
    texts: Mapping[str, str]

    def item(self, side: str) -> Item:
        return self.prompt, self.texts[side]


def subject_of(model: FittedModel, pair_id: str) -> Subject | None:
    """The pair of the fit, or the own pair of the person, with this id; None for an unknown id."""
    if pair_id.startswith(OWN):
        try:
            pair = live_model(str(model.path), model.root).texts.pair(pair_id.removeprefix(OWN))
        except MissingError:
            return None
        texts = {"response": pair["chosen"]} if not pair["rejected"] else {side: pair[side] for side in SIDES}
        return Subject(pair_id=pair_id, number=None, prompt=({"role": "user", "content": pair["prompt"]},), texts=texts)
    number = model.pair_number(pair_id)
    return None if number is None else kept_subject(model, number)


def kept_subject(model: FittedModel, number: int) -> Subject:
    pair = model.pair(number)
    return Subject(pair_id=pair.pair_id, number=number, prompt=pair.prompt, texts={"chosen": pair.chosen, "rejected": pair.rejected})


@dataclass(frozen=True, kw_only=True)
class ExplainedSubject:
    """A subject explained: each side, and the margin between them where there are two."""

    subject: Subject
    sides: Mapping[str, Explanation]
    pair: PairExplanation | None

    @property
    def lowest(self) -> str:
        """The side of the lower reward, which people ask about first."""
        return min(self.sides, key=lambda side: self.sides[side].reward)

    def asked(self, order: str) -> str:
        """What the list that led here asks about: the worst scored response, else the margin of the pair."""
        return self.lowest if self.pair is None or (self.subject.number is not None and order == "worst") else "margin"


def kept_tokens(model: ModelFolder, subject: Subject, side: str) -> ResponseTokens | None:
    """What is kept of the tokens of a side of a pair of the fit; None for other texts, and where they are not kept."""
    tokens = model.tokens
    if subject.number is None or side not in SIDES or tokens is None:
        return None
    return tokens.of(int(getattr(model.responses, f"{side}_rows")[subject.number]))


def kept_running(model: ModelFolder, subject: Subject, side: str) -> tuple[list[str], list[float]] | None:
    """Texts of the kept tokens of a side, and the reward if the response stopped there; None where they are not kept."""
    tokens = kept_tokens(model, subject, side)
    if tokens is None:
        return None
    return tokens.texts(subject.texts[side]), running_rewards(model.parts.head, tokens.projections).tolist()


def explained_pair(subject: Subject, pair: PairExplanation) -> ExplainedSubject:
    return ExplainedSubject(subject=subject, sides={"chosen": pair.chosen, "rejected": pair.rejected}, pair=pair)


def ranked_latents(attribution: Attribution) -> list[str]:
    """The selected latents by the size of their contribution, the largest first."""
    return [str(latent) for latent in attribution.latent_ids[np.argsort(-np.abs(attribution.contribution), kind="stable")].tolist()]


# --- a latent's evidence, latents switched off -----------------------------------------------------------------------


def row_of(explanation: Explanation, latent: int) -> Mapping[str, Any]:
    """What this latent did in one response (a row of `Explanation.latents`); empty for a latent that the reward model
    does not read.
    """
    return next((row for row in explanation.latents if row["latent_id"] == latent), {})


def latent_row(model: ModelFolder, latent: int) -> Mapping[str, Any]:
    """A latent's row of the selection; empty where it is not selected."""
    return next((row for row in model.selection if int(row.get("latent_id", -1)) == latent), {})


def switch_off(model: FittedModel, latents: Sequence[int], explanation: Explanation) -> tuple[SwitchedOff, SwitchedOff]:
    """With these latents at their training means, and with none; needs no language model. Raises ConfigError."""
    board, v = switchboard_of(model), explanation.attribution.projection
    return board.off(latents, v), board.off((), v)

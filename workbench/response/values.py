"""What the Response page shows, as values: which pairs there are, why one scored as it did, and the bars of its waterfall. No Streamlit here.

A pair that is kept beside the reward model is explained from its folder alone (core.explain.kept). Of any other text the model's process says v and
f, and everything else follows from those, here: so both kinds are explained by the same code, and an explanation object is all that a page needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from core.errors import MissingError
from core.explain.edits import edit_name
from core.explain.explanation import Explanation, PairExplanation
from core.explain.features import ResponseFeatures
from core.explain.kept import Kept
from core.explain.switch import Switchboard, SwitchedOff
from core.explain.waterfall import Bar, change_steps
from core.types import Message
from workbench.frame.model_client import live_model
from workbench.frame.models import OWN, FittedModel

SIDES = ("chosen", "rejected")
ORDERS = {"worst": "Worst scored", "misranked": "Most mis-ranked", "listed": "As they stand"}
MODELS, READINGS = 6, 32  # that stay in memory
Item = tuple[tuple[Message, ...], str]


@lru_cache(maxsize=MODELS)
def kept_of(folder: Path, root: Path) -> Kept:
    """The folder of a reward model, read once. Raises as `Kept`."""
    return Kept(folder, root=root)


def kept(model: FittedModel) -> Kept:
    _ = model.config  # the folder is looked at again, whatever is kept in memory
    return kept_of(model.path, model.root)


# --- which pairs there are -------------------------------------------------------------------------------------------


def listed(
    of: Kept, *, order: str = "worst", held_out: bool = True, search: str = "", only: Sequence[str] | frozenset[str] | None = None
) -> list[int]:
    """Numbers of the kept pairs in this order: `worst` by the lower of their two rewards, `misranked` by margin, or as they stand. Held to those
    whose texts hold `search` (any case), and whose ids are in `only`.
    """
    if of.known is None or of.known.pairs is None:
        return []
    pairs = of.known.pairs
    numbers = of.known.held_out_pairs if held_out else np.arange(len(pairs))
    keys = {"worst": of.rewards.min(axis=1), "misranked": of.margins}.get(order)
    if keys is not None:
        numbers = numbers[np.argsort(keys[numbers], kind="stable")]
    wanted = search.casefold()
    return [int(i) for i in numbers if (only is None or pairs[int(i)].pair_id in only) and (not wanted or wanted in _texts(of, int(i)))]


def _texts(of: Kept, number: int) -> str:
    pair = of.pair(number)
    return "\n".join([*(message["content"] for message in pair.prompt), pair.chosen, pair.rejected]).casefold()


def pair_rows(of: Kept, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """A row a pair, for a table."""
    found = []
    for number in numbers:
        pair, (chosen, rejected) = of.pair(number), of.rewards[number].tolist()
        asked = pair.prompt[-1]["content"] if pair.prompt else ""
        row = {"margin": chosen - rejected, "chosen reward": chosen, "rejected reward": rejected, "prompt": one_line(asked)}
        found.append({**row, "chosen": one_line(pair.chosen), "rejected": one_line(pair.rejected), "pair": pair.pair_id})
    return found


def one_line(text: str, longest: int = 160) -> str:
    """A text cut to a line, for a table's cell."""
    flat = " ".join(text[: 4 * longest].split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


# --- what is looked at -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A prompt and its answers: `texts` by side, `chosen` and `rejected`, or `response` alone. `number` is that of a kept pair, or None."""

    pair_id: str
    number: int | None
    prompt: tuple[Message, ...]
    texts: Mapping[str, str]

    def item(self, side: str) -> Item:
        return self.prompt, self.texts[side]


def subject_of(model: FittedModel, pair_id: str) -> Subject | None:
    """The kept pair, or the pair of one's own, with this id; None for a stranger."""
    if pair_id.startswith(OWN):
        try:
            own = live_model(str(model.path), model.root).kept_pair(pair_id.removeprefix(OWN))
        except MissingError:
            return None
        texts = {"response": own["chosen"]} if not own["rejected"] else {side: own[side] for side in SIDES}
        return Subject(pair_id=pair_id, number=None, prompt=({"role": "user", "content": own["prompt"]},), texts=texts)
    number = kept(model).number_of(pair_id)
    return None if number is None else kept_subject(model, number)


def kept_subject(model: FittedModel, number: int) -> Subject:
    pair = kept(model).pair(number)
    return Subject(pair_id=pair.pair_id, number=number, prompt=pair.prompt, texts={"chosen": pair.chosen, "rejected": pair.rejected})


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A subject explained: each side, and the margin between them where there are two."""

    subject: Subject
    sides: Mapping[str, Explanation]
    pair: PairExplanation | None

    @property
    def lowest(self) -> str:
        """The side of the lower reward: what people ask about first."""
        return min(self.sides, key=lambda side: self.sides[side].reward)


def explain(model: FittedModel, subject: Subject) -> Explained:
    """Explains it: a kept pair from the folder, at once; own texts by the model's process, which must be ready. Raises SparseRMError."""
    of = kept(model)
    if subject.number is not None:
        found = of.explain(subject.number)
        return Explained(subject=subject, sides={"chosen": found.chosen, "rejected": found.rejected}, pair=found)
    seen = {side: seen_of(model, subject.item(side)) for side in subject.texts}
    if "response" in seen:
        return Explained(subject=subject, sides={"response": of.builder.response(seen["response"], of.labels)}, pair=None)
    pair = of.builder.pair(seen["chosen"], seen["rejected"], of.labels)
    return Explained(subject=subject, sides={"chosen": pair.chosen, "rejected": pair.rejected}, pair=pair)


# --- what the model's process says, asked once -----------------------------------------------------------------------


Frozen = tuple[tuple[tuple[str, str], ...], str]


def seen_of(model: FittedModel, item: Item) -> ResponseFeatures:
    """v and f of any text."""
    return _seen(item, _read(str(model.path), model.root, _frozen(item))["explanation"])


def tokens_of(model: FittedModel, item: Item) -> dict[str, Any]:
    """{texts, kinds, activation: {latent: values}, running_reward} of any text."""
    return _tokens(str(model.path), model.root, _frozen(item))


def deletions_of(model: FittedModel, item: Item, spans: tuple[tuple[int, int], ...] = ()) -> list[dict[str, Any]]:
    """What each span adds ({start, stop, text, effect}); without spans each sentence."""
    return _deletions(str(model.path), model.root, _frozen(item), spans)


def gradient_of(model: FittedModel, item: Item) -> list[float]:
    """Length of the reward's gradient to each token's embedding, for the tokens of `tokens_of`. The first one costs seconds."""
    return _gradient(str(model.path), model.root, _frozen(item))


@lru_cache(maxsize=READINGS)
def _gradient(folder: str, root: Path, item: Frozen) -> list[float]:
    norm: list[float] = live_model(folder, root).gradient(_thawed(item), item[1])["norm"]
    return norm


@lru_cache(maxsize=READINGS)
def _read(folder: str, root: Path, item: Frozen) -> dict[str, Any]:
    return live_model(folder, root).explain(_thawed(item), item[1], tokens=False)


@lru_cache(maxsize=READINGS)
def _tokens(folder: str, root: Path, item: Frozen) -> dict[str, Any]:
    return live_model(folder, root).tokens(_thawed(item), item[1])


@lru_cache(maxsize=READINGS)
def _deletions(folder: str, root: Path, item: Frozen, spans: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    return live_model(folder, root).deletions(_thawed(item), item[1], spans or None)


def _frozen(item: Item) -> Frozen:
    return tuple((message["role"], message["content"]) for message in item[0]), item[1]


def _thawed(item: Frozen) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in item[0]]


def _seen(item: Item, explanation: Mapping[str, Any]) -> ResponseFeatures:
    latents = explanation["latents"]
    v = np.array([one["projection"] for one in latents])
    f = np.array([one["activation"] for one in latents]) if latents and "activation" in latents[0] else None
    return ResponseFeatures(item=item, v=v, f=f)


# --- edits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EditStep:
    """A text of a chain of edits, explained."""

    edit_id: str
    response: str
    explanation: Explanation
    tokens: Mapping[str, Any]
    n_tokens: int
    n_computed: int


def keep_edit(model: FittedModel, item: Item, response: str, parent_id: str) -> str:
    """Keeps an edit of `item`, after `parent_id` (empty: the first one), and returns its id; scored when it is looked at. Needs no process.

    As the reward model will read it, without outer white space: the id is made of the text.
    """
    texts = live_model(str(model.path), model.root).texts
    prompt, response = list(item[0]), response.strip()
    if not parent_id:
        parent_id = edit_name("", prompt, item[1])
        texts.keep_edit(parent_id, prompt, item[1], None)
    name = edit_name(parent_id, prompt, response)
    texts.keep_edit(name, prompt, response, parent_id)
    return name


def edit_root(model: FittedModel, edit_id: str) -> tuple[list[dict[str, Any]], str]:
    """The chain of an edit (root first, texts only), and the root's response; an empty chain where it is not kept here."""
    try:
        chain = live_model(str(model.path), model.root).edit_texts(edit_id) if edit_id else []
    except MissingError:
        chain = []
    return chain, chain[0]["response"] if chain else ""


def edited_side(model: FittedModel, subject: Subject, edit_id: str) -> str:
    """The side of the subject that this edit began with; empty where it is an edit of something else."""
    chain, root = edit_root(model, edit_id)
    if not chain or _frozen((tuple(chain[0]["prompt"]), "")) != _frozen((subject.prompt, "")):
        return ""
    return next((side for side, text in subject.texts.items() if text == root), "")


def edit_steps(model: FittedModel, edit_id: str) -> list[EditStep]:
    """The chain explained, root first; the process must be ready. Raises SparseRMError."""
    chain, _ = edit_root(model, edit_id)
    of = kept(model)
    return [_step(model, of, text) for text in chain]


def _step(model: FittedModel, of: Kept, text: Mapping[str, Any]) -> EditStep:
    said = _edit(str(model.path), model.root, text["edit_id"], text["parent_id"] or "")
    explanation = of.builder.response(_seen((tuple(text["prompt"]), text["response"]), said["explanation"]), of.labels)
    counts = {name: int(said[name]) for name in ("n_tokens", "n_computed")}
    return EditStep(edit_id=text["edit_id"], response=text["response"], explanation=explanation, tokens=said["tokens"], **counts)


@lru_cache(maxsize=READINGS)
def _edit(folder: str, root: Path, edit_id: str, parent_id: str) -> dict[str, Any]:
    live = live_model(folder, root)
    text = live.edit_texts(edit_id)[-1]
    return live.edit(text["prompt"], text["response"], parent_id or None)


def change_bars(of: Kept, before: Explanation, after: Explanation) -> list[Bar]:
    """What each latent did to the reward between two texts: the bars sum to the change."""
    change = of.builder.path(before.attribution, after.attribution)
    return change_steps(change, of.builder.figures.groups, of.labels)


def ranked_latents(of: Kept, value: Float[np.ndarray, " k"]) -> list[str]:
    """The selected latents, those that did most first."""
    return [str(int(of.builder.latent_ids[i])) for i in np.argsort(-np.abs(value), kind="stable")]


# --- a latent's evidence, latents switched off -----------------------------------------------------------------------


def row_of(explanation: Explanation, latent: int) -> Mapping[str, Any]:
    """What this latent did in one response (a row of `Explanation.latents`); empty for a latent that the reward model does not read."""
    return next((row for row in explanation.latents if row["latent_id"] == latent), {})


def latent_row(of: Kept, latent: int) -> Mapping[str, Any]:
    """Its row of the selection; empty where there is none."""
    return next((row for row in of.parts.selection if int(row.get("latent_id", -1)) == latent), {})


@lru_cache(maxsize=MODELS)
def _switches(folder: Path, root: Path) -> Switchboard:
    of = kept_of(folder, root)
    return Switchboard(of.parts, of.known)


def switched(model: FittedModel, latents: Sequence[int], one: Explanation) -> tuple[SwitchedOff, SwitchedOff]:
    """With these latents at their training means, and with none; needs no language model. Raises ConfigError."""
    board, v = _switches(model.path, model.root), one.attribution.projection
    return board.off(latents, v), board.off((), v)


# --- tokens ----------------------------------------------------------------------------------------------------------


def response_tokens(tokens: Mapping[str, Any]) -> list[int]:
    """Places of the response's own tokens."""
    return [i for i, kind in enumerate(tokens["kinds"]) if kind == "response"]


def span_of(tokens: Mapping[str, Any], response: str, first: int, last: int) -> tuple[int, int] | None:
    """Characters of the response that its own tokens `first` to `last` cover; None where tokens and text do not meet (a normaliser changed it)."""
    own = [tokens["texts"][i] for i in response_tokens(tokens)]
    begin = response.find("".join(own).strip())
    lead = len("".join(own)) - len("".join(own).lstrip())
    start = begin - lead + sum(map(len, own[:first]))
    stop = begin - lead + sum(map(len, own[: last + 1]))
    start, stop = max(0, start), min(len(response), stop)
    return (start, stop) if begin >= 0 and start < stop else None

"""Everything that `sparserm explain` prints of one response or one pair, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import ConfigError
from core.explain.edits import Edit
from core.explain.explainer import Explainer
from core.explain.explanation import Explanation, PairExplanation
from core.explain.switch import Switchboard, SwitchedOff
from core.explain.token_values import Deletion, Span, TokenGradient, TokenView
from core.reward.dialogues import Item
from core.types import PreferencePair, json_value


@dataclass(frozen=True, kw_only=True)
class ResponseDetail:
    """A response token by token."""

    name: str
    tokens: TokenView
    deletions: tuple[Deletion, ...]
    gradient: TokenGradient

    def to_json(self) -> dict[str, Any]:
        return {name: json_value(getattr(self, name)) for name in ("tokens", "deletions", "gradient")}


@dataclass(frozen=True, kw_only=True)
class FullExplanation:
    """An explanation, its texts by token (`response`, or `chosen` and `rejected`), edits, latents switched off."""

    explanation: Explanation | PairExplanation
    sides: tuple[ResponseDetail, ...]
    edits: tuple[Edit, ...]
    off: SwitchedOff | None
    plain: SwitchedOff | None

    def to_json(self) -> dict[str, Any]:
        """JSON values; `kind` is `response` or `pair`."""
        return {
            "kind": "pair" if isinstance(self.explanation, PairExplanation) else "response",
            "explanation": json_value(self.explanation),
            **{side.name: json_value(side) for side in self.sides},
            "edits": json_value(self.edits),
            "off": json_value(self.off),
            "all_on": json_value(self.plain),
        }


def explain_fully(
    explainer: Explainer,
    subject: PreferencePair | Item,
    *,
    spans: Sequence[Span] = (),
    edits: Sequence[str] = (),
    off: Sequence[int] = (),
) -> FullExplanation:
    """Explains a response or a pair. `spans` (of the response, instead of its sentences) are deleted, `edits` are tried
    one after the other in its place, `off` are latents to hold at their training means. Raises ConfigError where spans
    or edits are given for a pair, and as Explainer and Switchboard do."""
    if isinstance(subject, PreferencePair):
        if spans or edits:
            raise ConfigError("spans and edits belong to one response", found="a pair", remedy="give --prompt and --response without --rejected")
        pair = explainer.explain_pair(subject)
        texts = {"chosen": (subject.prompt, subject.chosen), "rejected": (subject.prompt, subject.rejected)}
        sides = tuple(_side(explainer, name, item, ()) for name, item in texts.items())
        return FullExplanation(explanation=pair, sides=sides, edits=(), **_switches(explainer, off, pair.chosen))
    explanation = explainer.explain(list(subject[0]), subject[1])
    side = _side(explainer, "response", subject, spans)
    return FullExplanation(explanation=explanation, sides=(side,), edits=_chain(explainer, subject, edits), **_switches(explainer, off, explanation))


def _side(explainer: Explainer, name: str, item: Item, spans: Sequence[Span]) -> ResponseDetail:
    prompt, response = list(item[0]), item[1]
    return ResponseDetail(
        name=name,
        tokens=explainer.tokens(prompt, response),
        deletions=explainer.deletions(prompt, response, spans or None),
        gradient=explainer.gradient(prompt, response),
    )


def _chain(explainer: Explainer, item: Item, edits: Sequence[str]) -> tuple[Edit, ...]:
    if not edits:
        return ()
    chain = [explainer.edit(list(item[0]), item[1])]
    for text in edits:
        chain.append(explainer.edit(list(item[0]), text, chain[-1]))
    return tuple(chain)


def _switches(explainer: Explainer, off: Sequence[int], explanation: Explanation) -> dict[str, SwitchedOff | None]:
    if not off:
        return {"off": None, "plain": None}
    board, v = Switchboard(explainer.parts, explainer.known), explanation.attribution.projection
    return {"off": board.off(off, v), "plain": board.off((), v)}

"""The texts of a latent's page (core.latents.pages) from which labels are written and on which they are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 10  # windows of highest activation from which a label is written; it is scored on the others if there are `ENOUGH`
ENOUGH = 10

Feature = Mapping[str, Any]
Window = Mapping[str, Any]


def shown_windows(feature: Feature) -> list[Window]:
    """The windows that a label is written from: those of highest activation, highest first."""
    return _ranked(feature)[:SHOWN]


def measured_windows(feature: Feature) -> tuple[list[Window], str]:
    """The windows that score a label, and their name: those it was not written from, or all if too few are left."""
    ranked = _ranked(feature)
    return (ranked[SHOWN:], f"beyond the top {SHOWN}") if len(ranked) >= SHOWN + ENOUGH else (ranked, "all")


def text_of(window: Window) -> str:
    """A window's text on one line, without the tokens of the chat template."""
    template = set(window.get("template", ()))
    return " ".join("".join("\n" if place in template else token for place, token in enumerate(window["tokens"])).split())


def strong_tokens(window: Window) -> list[str]:
    """The tokens that reach half of the window's largest activation."""
    return [window["tokens"][place] for place in _strong(window)]


def marked_text(window: Window) -> str:
    """As `text_of`, with «» around the tokens that reach half of the largest activation, one pair around neighbours."""
    strong, template = set(_strong(window)), set(window.get("template", ()))
    text, inside = "", False
    for place, token in enumerate(window["tokens"]):
        shown, high = "\n" if place in template else token, place in strong
        space = shown[: len(shown) - len(shown.lstrip())]
        text += ("»" if inside and not high else "") + space + ("«" if high and not inside else "") + shown[len(space) :]
        inside = high
    return " ".join((text + "»" * inside).split())


def _strong(window: Window) -> list[int]:
    bound = max(window["values"], default=0.0) / 2
    return [place for place, value in enumerate(window["values"]) if value > 0 and value >= bound]


def promoted(feature: Feature, most: int, *, words: bool = False) -> list[str]:
    """Tokens that the latent's direction raises most, stripped, each once; with `words` only those that begin words."""
    tokens = (str(token) for token in feature["pos_str"])
    kept = (token.strip() for token in tokens if not words or (token[:1].isspace() and token.strip().isalpha()))
    return list({token.casefold(): token for token in kept if token}.values())[:most]


def _ranked(feature: Feature) -> list[Window]:
    """Distinct texts that the latent is active in, by falling maximum."""
    by_text: dict[str, Window] = {}
    for window in sorted(feature["activations"], key=lambda window: -max(window["values"], default=0.0)):
        if max(window["values"], default=0.0) > 0:
            by_text.setdefault(text_of(window), window)
    return list(by_text.values())


def snippet_texts(feature: Feature, snippets: Sequence[Any]) -> list[str]:
    """The texts in which the latent is nowhere active."""
    return [text_of(snippets[number]) for number in feature["inactive"]]

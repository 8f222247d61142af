"""What a latent is called in a sentence, and as a bar, row or choice; both mark a label made for another SAE."""

from __future__ import annotations

from core.latents.labels import Label

LONGEST_NAMED, LONGEST_LISTED = 80, 40


def name_in_sentence(latent: int, label: Label | None) -> str:
    """`latent 12`, or its label in quotes, on one line and cut where it is long."""
    return f'"{_cut(label.text, LONGEST_NAMED)}"{label.mark}' if label and label.text.strip() else f"latent {latent}"


def name_in_list(latent: int, label: Label | None) -> str:
    """`Latent 12`, or `12 talks of the sea`."""
    return f"{latent} {_cut(label.text, LONGEST_LISTED)}{label.mark}" if label and label.text.strip() else f"Latent {latent}"


def _cut(text: str, longest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"

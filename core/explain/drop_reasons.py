"""Why a reward model dropped a generated pair: the latents of the filter's decision, as a sentence and as bars.

Each latent is a mapping with `latent_id`, `contribution` to the margin, `deviation` over the heads, `agreed` (all heads
give its sign) and `detection_auroc`; the one that lowered the margin most comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.explain.latent_names import name_in_list
from core.explain.sentence import DETECTION, MOST_NAMED
from core.explain.waterfall import Bar
from core.latents.labels import Labels


def why_dropped(margin: float, latents: Sequence[Mapping[str, Any]], labels: Labels) -> str:
    """The sentence of a pair whose intended winner scored lower than the other answer; `margin` is below 0."""
    names = [drop_latent_name(latent, labels) for latent in latents[:MOST_NAMED]]
    because = f" Most against it: {'; '.join(names)}." if names else ""
    return f"Dropped: the intended winner scores {abs(margin):.2f} lower than the other answer.{because}"


def drop_bars(latents: Sequence[Mapping[str, Any]], labels: Labels) -> list[Bar]:
    """A bar a latent: its contribution to the margin, with `drop_caveats` as note."""
    return [
        Bar(
            label=drop_latent_name(latent, labels),
            value=latent["contribution"],
            kind="latents",
            latent_ids=(int(latent["latent_id"]),),
            deviation=latent["deviation"],
            agreed=latent["agreed"],
            note=drop_caveats(latent, labels),
        )
        for latent in latents
    ]


def drop_latent_name(latent: Mapping[str, Any], labels: Labels) -> str:
    """The name of a latent of a decision, as lists show it."""
    latent_id = int(latent["latent_id"])
    return name_in_list(latent_id, labels.get(latent_id))


def drop_caveats(latent: Mapping[str, Any], labels: Labels) -> str:
    """What weakens a bar: heads that disagree, and a label that the projection does not show (METHOD.md section 1)."""
    auroc = latent.get("detection_auroc")
    notes = [] if latent["agreed"] else ["the heads disagree on its sign"]
    if int(latent["latent_id"]) not in labels:
        return "; ".join(notes)
    if auroc is None:
        notes.append("too rare to say whether its projection shows its label")
    elif auroc < DETECTION:
        notes.append(f"its projection shows its label poorly (detection AUROC {auroc:.2f})")
    return "; ".join(notes)

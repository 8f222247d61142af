"""Which sides of pairs can't be read, and which prompts are cut: what an extraction's report leaves open.

The dialogues in question are rendered again with the loaded language model's template; no forward pass is made. The
counts that are made of it stand in core.reward.pair_counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.backbone.model import Backbone
from core.reward.dialogues import Item
from core.reward.pair_counts import BOTH, SIDES
from core.reward.rendering import read_items
from core.types import PreferencePairs, Progress, no_progress


def reading_details(
    pairs: PreferencePairs, backbone: Backbone, positions: Sequence[str], report: Mapping[str, Any], progress: Progress = no_progress
) -> dict[str, list[Any]]:
    """What an extraction's report (`core.reward.extraction.extract`) leaves open, as more of its fields.

    `refused_sides`: for each entry of `refused` which side of the pair can't be read; `shortened_pairs`: indices of the
    pairs that were read, one of whose dialogues at least lost leading turns. Only refused pairs, and (where any
    dialogue was shortened) those with several turns, are rendered again; no forward pass.
    """
    refused = [int(row["row"]) for row in report["refused"]]
    read = [i for i in range(len(pairs)) if len(pairs[i].prompt) > 1] if report["dialogues_shortened"] else []
    again = [*refused, *sorted(set(read) - set(refused))]
    sides, shortened = [], []
    for number, index in enumerate(again):
        progress("count pairs", number, len(again))
        pair = pairs[index]
        sides_read = read_items(backbone, [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)], positions)
        if number < len(refused):
            sides.append(BOTH if len(sides_read.refused) > 1 else SIDES[next(iter(sides_read.refused))])
        elif sides_read.n_shortened:
            shortened.append(index)
    return {"refused_sides": sides, "shortened_pairs": shortened}


def shortened_items(backbone: Backbone, items: Sequence[Item], position: str) -> list[int]:
    """Numbers of the (prompt, response) items that this language model reads without leading turns of their prompt."""
    several = [number for number, (prompt, _) in enumerate(items) if len(prompt) > 1]
    if not several or not read_items(backbone, [items[number] for number in several], [position]).n_shortened:
        return []
    return [number for number in several if read_items(backbone, [items[number]], [position]).n_shortened]

"""What the policy is asked in every round: prompts of a file, or those that the fit kept free for this or trained on.

A prompt that is held out for the evaluation (validation or test pairs of the reward model) is never trained on: it is left out, and counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.align.values import Prompt
from core.config import DataConfig
from core.data.formats import detect
from core.data.pairs import SAMPLE, load_pairs
from core.data.readers import open_source
from core.data.rows import Row
from core.data.splits import UNUSED
from core.data.texts import Refused, keeps, user_prompt
from core.errors import DataError
from core.types import PreferencePairs, Progress, no_progress

HELD_OUT = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The prompts of a round, each once; `source` says where they are from.

    Not among them: `n_refused` rows that hold no prompt that can be asked, `n_repeated` prompts that stand before already, `n_held_out` that the
    evaluation is measured on, and `n_over_limit` that the limit leaves out.
    """

    prompts: tuple[Prompt, ...]
    source: str
    n_refused: int = 0
    n_repeated: int = 0
    n_held_out: int = 0
    n_over_limit: int = 0

    def counts(self) -> dict[str, Any]:
        """How many there are, from where, and how many are not among them."""
        names = ("source", "n_refused", "n_repeated", "n_held_out", "n_over_limit")
        return {"n": len(self.prompts), **{name: getattr(self, name) for name in names}}


def choose_prompts(path: str, pairs: PreferencePairs, *, limit: int, seed: int, progress: Progress = no_progress) -> PromptSet:
    """The prompts of the file `path`, or (empty) those of `pairs` that are for DPO; at most `limit` of them (0: all), drawn by seed, in their order.

    Raises DataError where none is left.
    """
    every, source, refused = _of_file(path, progress) if path else _of_pairs(pairs)
    distinct = _distinct(every)
    held_out = {pair.prompt_id for pair, split in zip(pairs, pairs.split, strict=True) if split in HELD_OUT}
    free = [prompt for prompt in distinct if prompt.prompt_id not in held_out]
    if not free:
        said = "no prompt is left to align on"
        raise DataError(
            said, expected="prompts that are not held out for the evaluation", found=f"{len(distinct)} in {source}", remedy="--prompts FILE"
        )
    drawn = np.sort(np.random.default_rng(seed).permutation(len(free))[: limit or len(free)])
    return PromptSet(
        prompts=tuple(free[int(i)] for i in drawn),
        source=source,
        n_refused=refused,
        n_repeated=len(every) - len(distinct),
        n_held_out=len(distinct) - len(free),
        n_over_limit=len(free) - len(drawn),
    )


def _of_pairs(pairs: PreferencePairs) -> tuple[list[Prompt], str, int]:
    """The prompts that the paper's protocols keep free for DPO, else those that the reward model was trained on."""
    split = UNUSED if UNUSED in pairs.split else "train"
    ours = (Prompt(messages=pair.prompt) for pair, own in zip(pairs, pairs.split, strict=True) if own == split)
    return _distinct(ours), f"the fit's {split} prompts", 0  # pairs of one prompt repeat it by their nature: that is no loss


def _of_file(path: str, progress: Progress) -> tuple[list[Prompt], str, int]:
    if _holds_pairs(path):
        pairs, report = load_pairs(DataConfig(pairs=path), progress)
        distinct = _distinct(Prompt(messages=pair.prompt) for pair in pairs)
        return distinct, report.source, len(report.refused)
    with closing(open_source(DataConfig(pairs=path))) as source:
        rows = [_prompt(row) for row in source.rows]
    prompts = [row for row in rows if row is not None]
    if not prompts:
        raise DataError(f"{path} holds no prompt", expected="preference pairs, or rows with `prompt`", found=f"{len(rows)} rows without")
    return prompts, source.name, len(rows) - len(prompts)


def _holds_pairs(path: str) -> bool:
    with closing(open_source(DataConfig(pairs=path))) as source:
        first = [row.values for row in itertools.islice(source.rows, SAMPLE) if isinstance(row, Row)]
    return bool(first) and detect(first, "auto") is not None


def _prompt(row: object) -> Prompt | None:
    """A row's prompt; None where it has none that can be asked."""
    if not isinstance(row, Row):
        return None
    try:
        messages = user_prompt(row.values.get("prompt"))
    except Refused:
        return None
    own = row.values.get("id")
    return Prompt(messages=messages, meta={"id": own} if keeps(own) else {}) if messages[-1]["role"] == "user" else None


def _distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Each prompt once, where it first stands."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(prompt.prompt_id, prompt)
    return list(found.values())

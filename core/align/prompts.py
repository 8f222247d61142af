"""The prompts that the policy answers in every round: those of a file, or the fit's unused or training prompts.

A prompt that is held out for the evaluation (of the reward model's validation or test pairs) is never trained on: it is
left out, and counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.align.values import Prompt
from core.config import DataConfig
from core.data.messages import unpack_row
from core.data.pair_reader import PairReader
from core.data.prompt_columns import asked, check_media
from core.data.rows import Row
from core.data.sources import open_source
from core.data.splits import UNUSED
from core.data.texts import Refused, keeps
from core.errors import DataError
from core.reward.responses import PAIR, kind_of_row
from core.types import PreferencePairs, Progress, no_progress

HELD_OUT = ("validation", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The distinct prompts of a round; `source` is the name of their file or split.

    Left out and counted: `n_refused` rows without a usable prompt, `n_repeated` repeated prompts, `n_held_out` prompts
    that the evaluation is measured on, and `n_over_limit` prompts beyond the limit.
    """

    prompts: tuple[Prompt, ...]
    source: str
    n_refused: int = 0
    n_repeated: int = 0
    n_held_out: int = 0
    n_over_limit: int = 0

    def counts(self) -> dict[str, Any]:
        """The number of prompts, their source, and the counts of those left out."""
        names = ("source", "n_refused", "n_repeated", "n_held_out", "n_over_limit")
        return {"n": len(self.prompts), **{name: getattr(self, name) for name in names}}


def choose_prompts(path: str, pairs: PreferencePairs, *, limit: int, seed: int, progress: Progress = no_progress) -> PromptSet:
    """The prompts of the file `path`, or for an empty path those of `pairs` that are meant for DPO. At most `limit` of
    them (0: all) are drawn by seed; they keep their order. Raises DataError where none is left."""
    every, source, refused = _of_file(path, progress) if path else _of_pairs(pairs)
    distinct = _distinct(every)
    held_out = {pair.prompt_id for pair, split in zip(pairs, pairs.split, strict=True) if split in HELD_OUT}
    free = [prompt for prompt in distinct if prompt.prompt_id not in held_out]
    if not free:
        problem, expected = "no prompt is left to align on", "prompts that are not held out for the evaluation"
        raise DataError(problem, expected=expected, found=f"{len(distinct)} in {source}", remedy="--prompts FILE")
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
    """The prompts that the paper's protocols reserve for DPO, or else those that the reward model was trained on."""
    source = UNUSED if UNUSED in pairs.split else "train"
    prompts = (Prompt(messages=pair.prompt) for pair, split in zip(pairs, pairs.split, strict=True) if split == source)
    # Several pairs share a prompt as a rule, so repeated ones are not counted as left out.
    return _distinct(prompts), f"the fit's {source} prompts", 0


def _of_file(path: str, progress: Progress) -> tuple[list[Prompt], str, int]:
    """The prompts of a file's rows in order, the file's name, and the number of rows without a usable prompt.

    Rows may differ in kind: a preference pair of any format gives its prompt (pairs that share a prompt give it once),
    any other row the text of its prompt columns.
    """
    config = DataConfig(pairs=path)
    reader = PairReader(config)
    by_row: dict[int, list[Prompt]] = {}
    reasons: Counter[str] = Counter()
    n_rows = 0
    with closing(open_source(config)) as source:
        for row in source.rows:
            if n_rows % 1000 == 0:
                progress("read prompts", *source.position(), rows=n_rows)
            n_rows += 1
            if isinstance(row, Row) and kind_of_row(row.values) != PAIR:
                try:
                    by_row[row.number] = [_prompt(row)]
                except Refused as refused:
                    reasons[str(refused)] += 1
            else:
                reader.take(row)
        reader.finish()
    reasons.update(f"{refused.field}: {refused.reason}" for refused in reader.refused)
    of_pairs = {Prompt(messages=item.draft.prompt).prompt_id: item for item in reversed(reader.drafts)}
    for item in of_pairs.values():
        by_row.setdefault(item.row, []).append(Prompt(messages=item.draft.prompt))
    shown = "; ".join(f"{n:,} x {reason}" for reason, n in reasons.most_common(5))
    if not by_row:
        raise DataError(
            f"{path} holds no prompt",
            expected="preference pairs, or rows with `prompt` (question, instruction, messages ...)",
            found=f"{n_rows:,} rows without" + (f": {shown}" if shown else ""),
            remedy="name the prompts' column `prompt`",
        )
    if shown:
        log.warning("%d of %d rows of %s have no prompt that can be asked: %s", sum(reasons.values()), n_rows, path, shown)
    for note in source.notes:
        log.info("%s", note)
    return [prompt for number in sorted(by_row) for prompt in by_row[number]], source.name, sum(reasons.values())


def _prompt(row: Row) -> Prompt:
    """A row's prompt. Raises Refused where it has no usable one."""
    values, _ = unpack_row(row.values)
    check_media(values)
    messages = asked(values, DataConfig())
    if messages[-1]["role"] != "user":
        raise Refused("prompt", "does not end with a message of the user")
    name = values.get("id")
    return Prompt(messages=messages, meta={"id": name} if keeps(name) else {})


def _distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Each prompt once, at its first place."""
    by_id: dict[str, Prompt] = {}
    for prompt in prompts:
        by_id.setdefault(prompt.prompt_id, prompt)
    return list(by_id.values())

"""Preference pairs as the tokens that DPO reads, rendered by the project's chat template.

An answer's tokens are those of its text and of the end of turn behind it, so the policy also learns where to stop;
white space that the template adds after that is left out. A pair that can't be used whole is refused with a reason; it
is never truncated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from core.backbone.layout import Unreadable
from core.backbone.model import Backbone
from core.backbone.template import Rendered
from core.types import Message, PreferencePair

NO_TOKEN = "an answer has no token of its own"
EQUAL = "answers equal"


@dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """A pair in tokens: `prompt + chosen` and `prompt + rejected` are the two sequences."""

    pair_id: str
    prompt_id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def n_tokens(self) -> int:
        """The number of tokens of both sequences."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """The number of tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def trl_row(self) -> dict[str, list[int]]:
        """The pair under the column names of TRL's DPOTrainer."""
        return {"prompt_ids": self.prompt, "chosen_ids": self.chosen, "rejected_ids": self.rejected}


def encode_pairs(pairs: Sequence[PreferencePair], backbone: Backbone, max_length: int) -> tuple[list[EncodedPair], dict[str, str]]:
    """The pairs that DPO can train on, in order, and pair id -> reason of the refused ones."""
    dialogues = [dialogue for pair in pairs for dialogue in _dialogues(pair)]
    rendered = backbone.render_all(dialogues)
    encoded, refused = list[EncodedPair](), dict[str, str]()
    for pair, chosen, rejected in zip(pairs, rendered[::2], rendered[1::2], strict=True):
        encoded_pair = _encode(pair, chosen, rejected, max_length)
        if isinstance(encoded_pair, str):
            refused[pair.pair_id] = encoded_pair
        else:
            encoded.append(encoded_pair)
    return encoded, refused


def _dialogues(pair: PreferencePair) -> Iterator[list[Message]]:
    for text in (pair.chosen, pair.rejected):
        yield [*pair.prompt, Message(role="assistant", content=text)]


def _encode(pair: PreferencePair, chosen: Rendered | Unreadable, rejected: Rendered | Unreadable, max_length: int) -> EncodedPair | str:
    """The pair in tokens, or the reason why DPO can't use it."""
    if isinstance(chosen, Unreadable):
        return chosen.reason
    if isinstance(rejected, Unreadable):
        return rejected.reason
    answers = [side.messages[-1]["content"].strip() for side in (chosen, rejected)]
    if answers[0] == answers[1]:
        return EQUAL
    if not (all(answers) and chosen.answered and rejected.answered):
        return NO_TOKEN
    ids = [side.ids[: max(side.response_ends[-1], side.turn_ends[-1]) + 1].tolist() for side in (chosen, rejected)]
    # Both sequences normally share the whole prompt. A tokenizer that merges tokens over the border makes the prompt's
    # last token part of the answers.
    n_shared = sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], zip(*ids, strict=False)))
    n_prompt = min(n_shared, chosen.response_starts[-1], rejected.response_starts[-1])
    encoded_pair = EncodedPair(
        pair_id=pair.pair_id, prompt_id=pair.prompt_id, prompt=ids[0][:n_prompt], chosen=ids[0][n_prompt:], rejected=ids[1][n_prompt:]
    )
    if encoded_pair.longest > max_length:
        return f"too long: {encoded_pair.longest} tokens, at most {max_length}"
    return encoded_pair

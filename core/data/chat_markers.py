"""Finds turn markers of well-known chat templates in texts, and a note for the data's report that counts them.

A text with such a marker has been through a template already, or would open a turn of its own. Which markers are
control tokens of a language model is decided by its tokenizer (core.backbone.control_tokens); no tokenizer is needed
here.
"""

from __future__ import annotations

import re
from collections import Counter

from core.types import PreferencePairs

# ChatML, Llama-3, Phi, Zephyr, Harmony <|...|>; DeepSeek with wide bars; Gemma; Llama-2, Mistral.
MARKERS = (
    r"<\|[A-Za-z][A-Za-z0-9_]{1,40}\|>",
    r"<｜[^｜<>\n]{2,40}｜>",
    r"</?(?:start|end)_of_turn>",
    r"\[/?INST\]",
    r"<</?SYS>>",
    r"\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]",
)
_PATTERN = re.compile("|".join(MARKERS))
# Marks of a sequence's two ends. Elsewhere in a text they are no markers: a text may mention them, and <s>...</s> is
# HTML.
_AT_START = re.compile(r"\s*(<s>|<bos>)")
_AT_END = re.compile(r"(</s>|<eos>|<pad>|\[PAD\])\s*\Z")


def sequence_mark(text: str) -> str:
    """The mark of a sequence's start or end with which a text begins or ends; empty if there is none."""
    start, end = _AT_START.match(text), _AT_END.search(text)
    if end and (end[1] != "</s>" or start or text.count("<s>") < text.count("</s>")):
        return end[1]
    return start[1] if start and "</s>" not in text else ""


def marker_notes(pairs: PreferencePairs) -> tuple[str, ...]:
    """A note if texts hold such markers: how many pairs, which markers, and what a fit does with them."""
    counts: Counter[str] = Counter()
    holding = 0
    for pair in pairs:
        texts = (*(message["content"] for message in pair.prompt), pair.chosen, pair.rejected)
        markers = {match[0] for text in texts for match in _PATTERN.finditer(text)} | {mark for text in texts if (mark := sequence_mark(text))}
        holding += bool(markers)
        counts.update(markers)
    if not holding:
        return ()
    most = ", ".join(marker for marker, _ in counts.most_common(4))
    return (
        f"{holding} of {len(pairs)} pairs hold markers of a chat template ({most}): a fit cuts closing ones at an answer's very end "
        f"and refuses pairs with any other (--control-tokens text reads them as characters)",
    )

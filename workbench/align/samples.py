"""The section "Before and after": the answers of the base model and of a later policy to the same held-out prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from workbench.align import figures as align_figures
from workbench.align.choice import choose_round
from workbench.align.figures import evaluated
from workbench.align.pair_view import show_answers, show_prompt
from workbench.align.values import OpenAlignment
from workbench.frame import state
from workbench.frame.downloads import download_rows
from workbench.preferences.values import excerpt, prompt_text

Sample = Mapping[str, Any]  # a row of samples.jsonl: prompt, response, reward, n_tokens, finished


def draw(opened: OpenAlignment) -> None:
    """The whole section. Both answers were drawn with the same random numbers."""
    rounds = evaluated(opened.rounds)
    later = [round for round in rounds if round.round]
    if not later:
        st.caption("Answers after round 1 are laid beside the base model's as soon as round 1 is evaluated.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        round = choose_round(later)
        before, after = align_figures.samples_of(rounds[0]), align_figures.samples_of(round)
        pairs = [(before[prompt_id], after[prompt_id]) for prompt_id in before if prompt_id in after]
        if not pairs:
            st.caption("No answers were kept of this round.")
            return
        number = _choose_prompt(len(pairs))
    first, second = pairs[number]
    with st.container(border=True, key="sample"):
        show_prompt(first["prompt"])
        show_answers([_side("Base model", "gray", first), _side(f"After round {round.round}", "blue", second)])
        st.caption(change_text(first, second))
    rows = [_row(*pair) for pair in pairs]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{len(rows):,} held-out prompts whose answers were kept", width="content")
        download_rows(rows, name=opened.entry.id, what=f"samples-round-{round.round}", key="align samples")


def _choose_prompt(n: int) -> int:
    """Buttons to the previous and the next of `n` prompts. Returns the place of the chosen one, from 0."""
    asked = state.get("align_sample")
    at = int(asked) - 1 if asked.isascii() and asked.isdecimal() and len(asked) < 6 and 0 < int(asked) <= n else 0
    with st.container(horizontal=True, wrap=False, width="content", gap="xsmall", vertical_alignment="center"):
        steps: Any = ((-1, "chevron_left", "Previous prompt"), (1, "chevron_right", "Next prompt"))
        for step, icon, words in steps:
            to: Any = {"on_click": state.choose, "kwargs": {"align_sample": str(at + 1 + step)}}
            st.button("", key=f"sample {words}", icon=f":material/{icon}:", help=words, disabled=not 0 <= at + step < n, **to)
        st.caption(f"{at + 1} of {n}", width="content")
    return at


def _side(name: str, colour: str, sample: Sample) -> tuple[str, str, str, float | None]:
    return name, colour, sample["response"], sample.get("reward")


def change_text(first: Sample, second: Sample) -> str:
    """How the second answer differs from the first in reward and length, and which of them were cut."""
    cut = [name for name, sample in (("before", first), ("after", second)) if not sample.get("finished", True)]
    unended = f" Cut at the limit {' and '.join(cut)}: the reward reads up to the last whole sentence." if cut else ""
    if first["response"] == second["response"]:
        return f"The same answer, word by word.{unended}"
    rewards = [sample.get("reward") for sample in (first, second)]
    moved = "" if None in rewards else f"Reward {rewards[1] - rewards[0]:+.2f}. "  # type: ignore[operator]
    return f"{moved}{first['n_tokens']:,} tokens before, {second['n_tokens']:,} after.{unended}"


def _row(first: Sample, second: Sample) -> dict[str, Any]:
    fields = ("response", "reward", "n_tokens")
    return {
        "prompt": list(first["prompt"]),
        "excerpt": excerpt(prompt_text(first["prompt"])),
        **{f"{name} {field}": sample.get(field) for name, sample in (("before", first), ("after", second)) for field in fields},
    }

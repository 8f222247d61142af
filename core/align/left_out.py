"""Sentences about what an alignment left out, from its prompts to its multiple-choice questions. They are made from
`AlignOutcome.to_json` or `alignment.json`. Counts that an older version did not write are skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.text_safety import printable

PROMPTS = {
    "n_held_out": "held out for the evaluation",
    "n_repeated": "repeated",
    "n_refused": "rows without a prompt that can be asked",
    "n_over_limit": "beyond --prompts-limit",
}


def sentences(outcome: Mapping[str, Any]) -> list[str]:
    """Sentences to be printed below the tables; empty where nothing was left out."""
    rounds = outcome["rounds"]
    return [
        *_prompts(rounds[:1]),
        *(sentence for manifest in rounds for sentence in _round(manifest)),
        *_measured([outcome["base"], *rounds]),
    ]


def _prompts(first: list[Mapping[str, Any]]) -> Iterator[str]:
    for prompts in (manifest["prompts"] for manifest in first if "prompts" in manifest):
        left_out = [f"{prompts[name]:,} {what}" for name, what in PROMPTS.items() if prompts.get(name)]
        if left_out:
            yield f"Prompts: {prompts['n']:,} are asked ({printable(prompts['source'])}); left out: {', '.join(left_out)}."


def _round(manifest: Mapping[str, Any]) -> Iterator[str]:
    if reasons := manifest.get("not_parsed"):
        yield f"Round {manifest['round']}: generated texts that are no pair: {_reasons(reasons)}."
    if manifest.get("unread"):
        yield f"Round {manifest['round']}: the reward model can't read {manifest['unread']:,} of {manifest['parsed']:,} pairs."
    learnt = manifest.get("learnt_from")
    if learnt and learnt["refused"]:
        counts = f"{learnt['train']:,} pairs, {learnt['validation']:,} chose the epoch, {learnt['refused']:,} were refused"
        yield f"Round {manifest['round']}: DPO learnt from {counts}."


def _measured(manifests: list[Mapping[str, Any]]) -> Iterator[str]:
    """Pairs and questions are the same in every round, so those of the first are counted; answers differ by round."""
    about = manifests[0]["evaluation"].get("about", {})
    for name, what in (("held_out_pairs", f"{about.get('held_out', 'held-out')} pairs"), ("validation_pairs", "validation pairs")):
        total, refused = about.get(f"{name}_of"), about.get(f"{name}_refused", 0)
        if total is not None and total > about[name]:
            beyond = total - about[name] - refused
            parts = [f"{refused:,} can't be compared ({_reasons(about.get(f'{name}_refused_by_reason', {}))})"] if refused else []
            parts += [f"{beyond:,} were not drawn (--evaluation-pairs)"] if beyond else []
            yield f"Measured on {about[name]:,} of {total:,} {what}; {', '.join(parts)}."
    if about.get("answers_of", 0) > about.get("answers", 0):
        yield f"Answers to {about['answers']:,} of {about['answers_of']:,} held-out prompts."
    if about.get("mc_refused"):
        unseen = f"{about['mc_unseen_refused']:,} of {about['mc_unseen']:,} unseen ones" if "mc_unseen_refused" in about else "unseen ones among them"
        yield f"{about['mc_refused']:,} of {about['mc_questions']:,} multiple-choice questions are too long ({unseen})."
    for manifest in manifests:
        about = manifest["evaluation"].get("about", {})
        if about.get("answers_unread"):
            yield f"Round {manifest['round']}: {about['answers_unread']:,} of {about['answers']:,} answers can't be read, so they have no reward."


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {printable(why, 120)}" for why, n in reasons.items())

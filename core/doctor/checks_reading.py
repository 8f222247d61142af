"""Checks of how the language model reads texts: layer and position, BOS, template, padding and batches (METHOD.md
section 2).

The reference reads each dialogue alone, without padding and without a shared prefix. The states that the fit kept, and
every way of batching, are compared with it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int32

from core.backbone.model import Backbone
from core.doctor.report import FAIL, PASS, WARN, Check, interval_text, judge, listed
from core.errors import DataError
from core.reward.dialogues import Item
from core.reward.hidden_states import WHOLE
from core.reward.rendering import as_read, read_position
from core.statistics.estimates import mean_over_prompts
from core.types import Message, Progress, no_progress

POSITIONS = ("response_end", "turn_end", WHOLE)
ROWS = 8  # responses a padded batch
ALONE = "alone"
# METHOD.md section 2: in units of the reward's standard deviation.
EXACT_MOST, ROUGH_RMS, ROUGH_MOST = 1e-4, 0.02, 0.10
# [C] The distance of kept states to states read again, as a share of their spread. SmolLM2 in bfloat16: 0.03, the layer
# before 0.72.
EXACT_STATES, ROUGH_STATES = 1e-3, 0.1
TAIL = 20  # characters of a response that the token read must end on
DATES = ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A dialogue's tokens up to its last end of turn, the tokens (first, last) that each position reads among them (-1:
    none), and the response's text up to `response_end`.
    """

    ids: Int32[np.ndarray, " t"]
    at: Mapping[str, tuple[int, int]]
    tail: str


def readings_of(backbone: Backbone, items: Sequence[Item]) -> list[Tokens]:
    """The tokens of these responses. Raises DataError if one that the fit has read is refused now."""
    return [_reading(backbone, item) for item in items]


def _reading(backbone: Backbone, item: Item) -> Tokens:
    messages: list[Message] = [*item[0], {"role": "assistant", "content": item[1]}]
    read = as_read(backbone, messages, backbone.render_all([messages])[0], ["response_end"])
    if isinstance(read, str):
        raise DataError("a response of the fit can't be read any more", found=read, remedy="read it with the fit's own --max-length")
    rendered, _ = read
    last = {name: read_position(rendered, name) for name in POSITIONS}
    start = rendered.response_starts[-1]
    at = {name: (start if name == WHOLE else place, place) for name, place in last.items()}
    response_ids = rendered.ids[start : last["response_end"] + 1]
    return Tokens(ids=rendered.ids[: max(last.values()) + 1], at=at, tail=str(backbone.tokenizer.decode(response_ids.tolist())))


# --- layer and position --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The distance of the kept states to those of each (layer, position), as a share of their spread; `n_cut` responses
    don't end on the token read.
    """

    distance: Mapping[tuple[int, str], float]
    n: int
    n_cut: int


def find_placement(
    backbone: Backbone,
    items: Sequence[Item],
    readings: Sequence[Tokens],
    kept: Float[np.ndarray, "n d_model"],
    progress: Progress = no_progress,
) -> tuple[Placement, dict[tuple[int, str], Float[np.ndarray, "n d_model"]]]:
    """Reads each response alone, at every loaded layer and position; also returns these states, NaN where a
    template lacks the position.
    """
    layers = range(len(backbone.layers))
    states = {(layer, name): np.full(kept.shape, np.nan, dtype=np.float32) for layer in layers for name in POSITIONS}
    for number, reading in enumerate(readings):
        progress("read alone", number, len(readings))
        by_layer = backbone.states(torch.from_numpy(reading.ids.astype(np.int64))[None], None, list(layers))
        for (layer, name), rows in states.items():
            first, last = reading.at[name]
            if last >= 0:
                rows[number] = by_layer[layer][0, first : last + 1].float().mean(dim=0).cpu().numpy()
    spread = float(np.sqrt(np.square(kept - kept.mean(axis=0)).sum())) or float(np.sqrt(np.square(kept).sum())) or 1.0
    distance = {key: float(np.sqrt(np.square(rows.astype(np.float64) - kept).sum())) / spread for key, rows in states.items()}
    cut = sum(_folded(reading.tail) != _folded(item[1]) for item, reading in zip(items, readings, strict=True))
    return Placement(distance={key: d for key, d in distance.items() if np.isfinite(d)}, n=len(readings), n_cut=cut), states


def _folded(text: str) -> str:
    return "".join(text.split())[-TAIL:]


def layer_and_position(placement: Placement, sae: Mapping[str, Any], *, layer: int, position: str, exact: bool) -> Check:
    """Whether the kept states and the SAE are of this layer and position. `sae`: its identity."""
    bound = EXACT_STATES if exact else ROUGH_STATES
    distance_here = placement.distance.get((layer, position), float("inf"))
    rest = {key: value for key, value in placement.distance.items() if key != (layer, position)}
    nearest = min(rest, key=lambda key: rest[key]) if rest else None
    elsewhere = nearest is not None and rest[nearest] < distance_here
    of_layer, seen = sae.get("layer"), sae.get("trained_positions") or []
    unseen = position == "turn_end" and "turn_end" not in seen
    problems = {
        "the kept states are of " + (f"layer {nearest[0]} at {nearest[1]}" if nearest else "another place"): elsewhere,
        "the kept states are not of this place": not elsewhere and not distance_here <= bound,
        f"{placement.n_cut} of {placement.n} responses don't end on the token read": placement.n_cut > 0 and position in ("response_end", WHOLE),
        f"the SAE is of layer {of_layer}": of_layer is not None and of_layer != layer,
        "the SAE never saw end-of-turn tokens": unseen,
        "the SAE does not say its layer": of_layer is None,
    }
    wrong = [text for text, holds in problems.items() if holds]
    mild = [unseen, of_layer is None]
    status = judge((any(mild), WARN), (len(wrong) > sum(mild), FAIL))
    beside = "" if nearest is None else f"; the next best, layer {nearest[0]} at {nearest[1]}, by {rest[nearest]:.2g}"
    return Check(
        name="layer and position",
        status=status,
        figure=listed([f"kept states differ from layer {layer} at {position} by {distance_here:.2g} of their spread{beside}", *wrong])
        + f"; n = {placement.n} responses",
        bound=f"nearest to their own layer and position, within {bound:g}; the SAE of the same layer, trained on such positions",
        reason="directions of one layer or position mean nothing at another, and nothing crashes when they are mixed up",
        remedy=""
        if status == PASS
        else "fit again with --layer and --position as the SAE's card says (--position response_end where it says nothing)",
        value=distance_here if np.isfinite(distance_here) else None,
        n=placement.n,
        details={"distance": {f"{at[0]}/{at[1]}": value for at, value in placement.distance.items()}, "responses_cut": placement.n_cut},
    )


# --- BOS and template ----------------------------------------------------------------------------------------------


def bos_count(sequences: Sequence[Int32[np.ndarray, " _"]], *, real: int | None, named: int | None) -> Check:
    """Whether sequences begin with exactly one BOS, if the tokenizer adds one (`real`), and with at most one of a token
    that it only names BOS (`named`).
    """
    token = real if real is not None else named
    counts = [0 if token is None else _leading(ids, token) for ids in sequences]
    wrong = sum(count != 1 if real is not None else count > 1 for count in counts)
    shown = ", ".join(f"{counts.count(count)} begin with {count} of it" for count in sorted(set(counts)))
    kind = "a real BOS" if real is not None else "no BOS of its own" + ("" if named is None else f" (it calls token {named} so, but puts none)")
    status = FAIL if wrong else PASS
    return Check(
        name="BOS",
        status=status,
        figure=f"the tokenizer has {kind}; of {len(counts)} sequences {shown}",
        bound="exactly one in front of every sequence" if real is not None else "none twice in front",
        reason="a doubled BOS, from template and tokenizer together, moves every hidden state, and nothing crashes",
        remedy="" if status == PASS else "render with the template alone: add_special_tokens=False, or take bos_token out of the chat template",
        value=wrong / max(len(counts), 1),
        n=len(counts),
    )


def _leading(ids: Int32[np.ndarray, " t"], token: int) -> int:
    other = np.flatnonzero(ids != token)
    return int(other[0]) if len(other) else len(ids)


def template_check(*, recorded: str | None, now: str, has_template: bool, today: datetime.date) -> Check:
    """Whether the template puts the same text before a first user message as at the fit, without today's date.

    `recorded` is None if the fit did not record that text.
    """
    dated = [text for form in DATES if (text := today.strftime(form)) in now]
    changed = recorded is not None and recorded != now
    wrong = ["it is another one than at the fit"] * changed + [f"it prints today's date, {text}" for text in dated[:1]]
    wrong += ["the model has no chat template: plain concatenation is read"] * (not has_template)
    status = judge((not has_template, WARN), (bool(dated), FAIL), (changed, FAIL))
    shown = f"{len(now)} characters stand before a first user message" + (f": {now[:160]!r}" if now else "")
    return Check(
        name="template",
        status=status,
        figure=listed([shown, *wrong]),
        bound="the same text as at the fit, and no date that moves",
        reason="a template that injects something else today gives every prompt other tokens, so rewards stop being comparable with the fit's",
        remedy="" if status == PASS else "pin the tokenizer's revision and the template's date (--template-date), or fit again with what is read now",
        value=float(len(wrong)),
        n=1,
        details={"recorded": recorded, "now": now},
    )


# --- padding and batches -------------------------------------------------------------------------------------------


def padded_states(
    backbone: Backbone, readings: Sequence[Tokens], *, layer: int, position: str, side: str, order: Sequence[int]
) -> Float[np.ndarray, "n d_model"]:
    """z of each response from batches of 8 in this order, padded on the `left` or `right`: as a simple loop would do
    it.
    """
    z = np.zeros((len(readings), backbone.d_model), dtype=np.float32)
    for rows in (list(order[at : at + ROWS]) for at in range(0, len(order), ROWS)):
        lengths = [readings[i].at[position][1] + 1 for i in rows]
        width = max(lengths)
        ids = torch.full((len(rows), width), int(backbone.tokenizer.pad_token_id or 0))
        mask, read = torch.zeros_like(ids), []
        for row, (i, length) in enumerate(zip(rows, lengths, strict=True)):
            place = slice(width - length, width) if side == "left" else slice(0, length)
            ids[row, place] = torch.from_numpy(readings[i].ids[:length].astype(np.int64))
            mask[row, place] = 1
            read.append(slice(place.start + readings[i].at[position][0], place.stop))
        states = backbone.states(ids, mask, [layer])[layer]
        z[rows] = torch.stack([states[row, tokens].float().mean(dim=0) for row, tokens in enumerate(read)]).cpu().numpy()
    return z


def ways_of_batching(
    backbone: Backbone, readings: Sequence[Tokens], *, layer: int, position: str, seed: int, progress: Progress = no_progress
) -> Iterator[tuple[str, Float[np.ndarray, "n d_model"]]]:
    """The same responses in batches: padded right, padded left, shuffled."""
    as_given = list(range(len(readings)))
    shuffled = np.random.default_rng(seed).permutation(len(readings)).tolist()
    ways = (("padded right", "right", as_given), ("padded left", "left", as_given), ("shuffled", "right", shuffled))
    for number, (name, side, order) in enumerate(ways):
        progress("read in batches", number, len(ways))
        yield name, padded_states(backbone, readings, layer=layer, position=position, side=side, order=order)
    progress("read in batches", len(ways), len(ways))


def invariance(rewards: Mapping[str, Float[np.ndarray, " n"]], groups: Int[np.ndarray, " n"], *, deviation: float, exact: bool) -> Check:
    """Compares rewards of the same responses, read in several ways, with those read `alone`; chosen and rejected
    responses alternate.

    `deviation` is the standard deviation of the reward.
    """
    alone = rewards[ALONE]
    off = {name: np.abs(moved - alone) / max(deviation, 1e-30) for name, moved in rewards.items() if name != ALONE}
    rms = {name: float(np.sqrt(np.square(values).mean())) for name, values in off.items()}
    most = {name: float(values.max()) for name, values in off.items()}
    flips = {name: float(((moved[0::2] > moved[1::2]) != (alone[0::2] > alone[1::2])).mean()) for name, moved in rewards.items() if name != ALONE}
    worst = max(off, key=lambda name: most[name] if exact else rms[name])
    squares = mean_over_prompts(np.square(off[worst]), groups)
    low, high = (None, None) if squares is None else (float(np.sqrt(squares.low)), float(np.sqrt(squares.high)))
    # `not <=`, so that a reward that is NaN fails. If the interval of the root mean square reaches below the bound, it
    # warns only.
    beyond = not max(most.values()) <= (EXACT_MOST if exact else ROUGH_MOST)
    shaky = not exact and not rms[worst] <= ROUGH_RMS
    status = judge((shaky, WARN), (shaky and not (low is not None and low <= ROUGH_RMS), FAIL), (beyond, FAIL))
    return Check(
        name="padding and batches",
        status=status,
        figure=f"rewards move by {rms[worst]:.2g}{interval_text(low, high, '.2g')} of their deviation (root mean square), at most "
        f"{max(most.values()):.2g} (worst: {worst}); {max(flips.values()):.1%} of pair decisions flip; n = {len(alone)} responses",
        bound=f"{EXACT_MOST:g} at most (float32)"
        if exact
        else f"{ROUGH_RMS:.0%} as root mean square (warns while its interval reaches below), {ROUGH_MOST:.0%} at most (half precision)",
        reason="a reward must not depend on what else is in its batch: wrong masks or positions under padding shift it without an error",
        remedy="" if status == PASS else "--dtype float32; if it stays, another --attention; then this model's padding is not understood: report it",
        value=most[worst] if exact else rms[worst],
        low=None if exact else low,
        high=None if exact else high,
        n=len(alone),
        details={"rms": rms, "most": most, "flipped": flips},
    )

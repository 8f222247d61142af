"""What became of the policy: its figures round by round, warnings by a stated rule, latents that drift, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.align.records import EVALUATION, RoundRecord
from core.explain.latent_names import name_in_list
from core.text_safety import visible
from workbench.align import figures as align_figures
from workbench.align import values as align
from workbench.align.charts import drift_dots, policy_curve
from workbench.align.choice import choose_round
from workbench.align.drops import answers, labels_of, texts_of
from workbench.align.figures import FIGURES, Figure, Point, Result
from workbench.frame import state
from workbench.frame.downloads import download_rows, show_chart
from workbench.preferences.values import excerpt
from workbench.response.why import clicked

if TYPE_CHECKING:
    from workbench.align.view import View

HEADLINE, SHOWN = ("accuracy", "mc1_unseen", "reward", "kl_per_token", "length"), 4  # as many as stand beside one another on a narrow screen
COLUMNS = 3


def evaluated(rounds: Sequence[RoundRecord]) -> list[RoundRecord]:
    """The rounds whose policy has been evaluated, the base model's first."""
    return [one for one in rounds if EVALUATION in one.steps]


def headline(view: View) -> None:
    """The chosen round of a finished alignment, else the newest, in figures against the base model; and what speaks against believing them."""
    rounds = evaluated(view.rounds)
    if not rounds:
        return
    result = align_figures.result_of(view.entry)
    chosen = rounds[-1].round if result is None else result.chosen
    found = align_figures.curves(rounds)
    points = [(FIGURES[name], one) for name in HEADLINE if (one := align_figures.point_of(found, name, chosen)) is not None]
    st.markdown(f"**{_which(view, result, chosen)}**")
    with st.container(horizontal=True, gap="small", key="align headline"):
        for figure, one in points[:SHOWN]:
            _metric(figure.short, figure.said(one), _against(figure, one))
    if result is not None:
        early = f" It ended early: {result.stopped}." if result.stopped else ""
        st.caption(visible(f"The round is chosen by {result.choice}. What stands above is measured on held-out data.{early}", 500))
    _warn([one for one in rounds if one.round == chosen])


def _which(view: View, result: Result | None, chosen: int) -> str:
    """Whose figures stand first."""
    total = view.entry.config.rounds
    if result is None:
        return f"So far: round {chosen} of {total}" if chosen else "So far: the base model, before any round"
    return f"Chosen: round {chosen} of {total}" if chosen else "Chosen: the base model, since no round did better on validation pairs"


def _warn(rounds: Sequence[RoundRecord]) -> None:
    """What the rule says of these rounds, in the engine's words."""
    found = align_figures.warnings_of(rounds)
    if found:
        st.warning("\n\n".join(map(visible, found)), icon=":material/warning:")


def _metric(label: str, value: str, beside: str) -> None:
    st.metric(label, value, beside, delta_color="off", delta_arrow="off", border=True)


def _against(figure: Figure, one: Point) -> str:
    """The paired difference to round 0 with its interval, or the figure's own interval."""
    if one["difference"]:
        return f"{figure.within(one['difference'], '+.3g')} on the base, n = {one['n']:,}"
    return f"{figure.within(one).partition('(')[2].rstrip(')')}, n = {one['n']:,}"


# --- the section -----------------------------------------------------------------------------------------------------


def draw(view: View) -> None:
    rounds = evaluated(view.rounds)
    if not rounds:
        st.caption("The base model is being evaluated; its figures stand here next.")
        return
    result, found = align_figures.result_of(view.entry), align_figures.curves(rounds)
    everything = _everything(len(found) > len([name for name in align_figures.FIRST if name in found]))
    shown = [name for name in found if everything or name in align_figures.FIRST]
    grid({name: {view.entry.arm: found[name]} for name in shown}, key=f"align evaluation {view.entry.id}", chosen=result.chosen if result else None)
    with st.container(horizontal=True, vertical_alignment="center"):
        said = f"Filled marks: the paired 95 % interval of the difference to the base model lies clear of zero. {align_figures.how(rounds[0])}"
        st.caption(said, width="stretch")
        download_rows(align_figures.rows(found), name=view.entry.id, what="evaluation", key="align evaluation files")
    st.markdown("##### Is the reward being won at the price of something else?")
    _warn(rounds)
    st.caption(f"The rule, stated beforehand: {align_figures.RULE}")
    _drift(view, rounds)


def _everything(more: bool) -> bool:
    """Whether the figures of less use are drawn, too."""
    if not more:
        return False
    shown = bool(state.get("align_all"))
    st.toggle("All figures", **state.url_widget("align all", shown, lambda on: state.choose(align_all="1" if on else None)))
    return shown


def grid(series: Mapping[str, Mapping[str, Sequence[Point]]], *, key: str, chosen: int | None = None) -> None:
    """A curve a figure, three beside one another; `series`: figure -> alignment -> its points."""
    names = list(series)
    for start in range(0, len(names), COLUMNS):
        for column, name in zip(st.columns(COLUMNS, gap="small"), names[start : start + COLUMNS], strict=False):
            figure = FIGURES[name]
            with column:
                st.markdown(f"###### {figure.title}")
                drawn = policy_curve(figure.title, figure.unit, series[name], of=figure.of, chosen=chosen, scale=figure.scale)
                show_chart(drawn, key=f"{key} {name}", name=key.rpartition(" ")[2])


def _drift(view: View, rounds: Sequence[RoundRecord]) -> None:
    """The latents whose mean projection moved most against the base model, in the answers to held-out prompts."""
    later = [one for one in rounds if align_figures.drift_of(one)]
    if not later:
        st.caption("Which latents drift is known after round 1.")
        return
    st.markdown("##### The latents that drift most")
    round = choose_round(later)
    model = align.measuring_model(view.entry)
    labels = labels_of(model)
    moved = [{**row, "label": name_in_list(int(row["latent_id"]), labels.get(int(row["latent_id"])))} for row in align_figures.drift_of(round)]
    key = f"align drift {view.entry.id} {round.round}"
    clicked(key, show_chart(drift_dots(moved, align_figures.DRIFT.capitalize()), key=key, name=view.entry.id, select=("points",) if model else ()))
    wanted = state.get("latent")
    if model is not None and wanted in {str(row["latent_id"]) for row in moved}:
        state.link("Open the chosen latent", "latent", latent=wanted, model=model.id)


# --- before and after ------------------------------------------------------------------------------------------------


def samples(view: View) -> None:
    """What the base model and a later policy answer to the same held-out prompt, drawn with the same random numbers."""
    rounds = evaluated(view.rounds)
    later = [one for one in rounds if one.round]
    if not later:
        st.caption("Answers after round 1 are laid beside the base model's as soon as round 1 is evaluated.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        round = choose_round(later)
        before, after = align_figures.samples_of(rounds[0]), align_figures.samples_of(round)
        both = [(before[name], after[name]) for name in before if name in after]
        if not both:
            st.caption("No answers were kept of this round.")
            return
        number = _place(len(both))
    first, second = both[number]
    with st.container(border=True, key="sample"):
        texts_of(first["prompt"])
        answers([_side("Base model", "gray", first), _side(f"After round {round.round}", "blue", second)])
        st.caption(_changed(first, second))
    rows = [_sample_row(one, other) for one, other in both]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{len(rows):,} held-out prompts whose answers were kept", width="content")
        download_rows(rows, name=view.entry.id, what=f"samples-round-{round.round}", key="align samples")


def _place(n: int) -> int:
    """Which prompt, from the URL, with a step back and on."""
    said = state.get("align_sample")
    at = int(said) - 1 if said.isascii() and said.isdecimal() and len(said) < 6 and 0 < int(said) <= n else 0
    with st.container(horizontal=True, wrap=False, width="content", gap="xsmall", vertical_alignment="center"):
        steps: Any = ((-1, "chevron_left", "Previous prompt"), (1, "chevron_right", "Next prompt"))
        for step, icon, words in steps:
            to: Any = {"on_click": state.choose, "kwargs": {"align_sample": str(at + 1 + step)}}
            st.button("", key=f"sample {words}", icon=f":material/{icon}:", help=words, disabled=not 0 <= at + step < n, **to)
        st.caption(f"{at + 1} of {n}", width="content")
    return at


def _side(name: str, colour: str, one: Mapping[str, Any]) -> tuple[str, str, str, float | None]:
    return name, colour, one["response"], one.get("reward")


def _changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    cut = [name for name, one in (("before", first), ("after", second)) if not one.get("finished", True)]
    unended = f" Cut at the limit {' and '.join(cut)}: the reward reads up to the last whole sentence." if cut else ""
    if first["response"] == second["response"]:
        return f"The same answer, word by word.{unended}"
    rewards = [one.get("reward") for one in (first, second)]
    moved = "" if None in rewards else f"Reward {rewards[1] - rewards[0]:+.2f}. "  # type: ignore[operator]
    return f"{moved}{first['n_tokens']:,} tokens before, {second['n_tokens']:,} after.{unended}"


def _sample_row(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": list(first["prompt"]),
        "excerpt": excerpt(align.prompt_text(first["prompt"])),
        **{f"{name} {key}": one.get(key) for name, one in (("before", first), ("after", second)) for key in ("response", "reward", "n_tokens")},
    }

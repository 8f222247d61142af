"""Further sections of the Response page: latents switched off, similar training responses, and how far the explanation can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from core.explain.latent_names import name_in_list
from core.explain.switch import SwitchedOff
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.chart_base import interval, number
from workbench.frame.downloads import download_rows, show_chart
from workbench.response.charts import removal_curves, reward_place
from workbench.response.values import kept, one_line, ranked_latents, switched

if TYPE_CHECKING:
    from workbench.response.view import View

MOST_OFF = 40


def switch_off(view: View) -> None:
    """Latents held at their training means: this reward, the shipped head's accuracy on held-out pairs and its liking for length move."""
    of = kept(view.model)
    options = ranked_latents(of, view.one.attribution.contribution)
    chosen = [one for one in state.get("response_off").split(",") if one in options]
    labels = of.labels
    widget = state.url_widget("response off", chosen, lambda picked: state.choose(response_off=",".join(picked)))
    st.multiselect(
        "Latents to switch off, those that did most here first",
        options,
        format_func=lambda one: visible(name_in_list(int(one), labels.get(int(one)))),
        max_selections=MOST_OFF,
        placeholder="Choose latents",
        **widget,
    )
    off, on = switched(view.model, [int(one) for one in chosen], view.one)
    with st.container(horizontal=True, gap="small", key="response off figures"):
        _moved("Reward", on.reward, off.reward, ".3f", "of the response in view")
        _moved("Accuracy, shipped head (%)", 100 * on.accuracy.accuracy, 100 * off.accuracy.accuracy, ".1f", _accuracy(off))
        said = f"{interval(off.length.value, off.length.low, off.length.high, '.2f')}, n = {view.one.figures.n_held_out:,} responses"
        _moved("Correlation with length", on.length.value, off.length.value, ".2f", said)
    st.caption(f"With these off: accuracy {_accuracy(off)}; correlation of its reward with length {said}, Spearman, over held-out responses.")
    if not chosen:
        st.caption("Nothing is switched off. A switched-off latent's projection is held at its training mean, exactly, on the head.")


def _accuracy(found: SwitchedOff) -> str:
    one = found.accuracy
    return f"{interval(100 * one.accuracy, 100 * one.low, 100 * one.high, '.1f')} %, {found.measured_on}"


def _moved(label: str, before: float | None, after: float | None, form: str, help: str) -> None:
    moved = None if before is None or after is None or before == after else f"{after - before:+{form}}"
    st.metric(label, number(after, form), moved, delta_color="off", border=True, help=help)


def similar(view: View) -> None:
    """Where it stands among held-out responses, and the training responses most like it."""
    one = view.one
    rewards = {NAMES.get(side, side): each.reward for side, each in view.found.sides.items()}
    rewards |= {"edited": view.edited.reward} if view.edited is not None else {}
    chart = reward_place(kept(view.model).parts.reward_quantiles.tolist(), rewards, one.figures.n_held_out)
    show_chart(chart, key=f"response place {view.found.subject.pair_id}", name=view.model.name)
    if not one.neighbours:
        st.caption("No training responses are kept beside this reward model.")
        return
    st.caption("The training responses with the most similar projections. Choose a row to open its pair.")
    rows = [_neighbour(view, neighbour.to_json()) for neighbour in one.neighbours]
    key = f"response similar {view.found.subject.pair_id} {view.side}"

    def opened() -> None:
        picked = st.session_state[key]["selection"]["rows"]
        if picked and rows[picked[0]]["pair"]:
            state.choose(pair=rows[picked[0]]["pair"])

    numbers = {name: st.column_config.NumberColumn(format="%.2f") for name in ("reward", "distance")}
    shown = {name: [one_line(row[name]) if isinstance(row[name], str) else row[name] for row in rows] for name in rows[0] if name != "pair"}
    st.dataframe(shown, key=key, on_select=opened, selection_mode="single-row", hide_index=True, height="auto", column_config=numbers)
    with st.container(horizontal=True):
        download_rows(rows, name=view.model.name, what="similar", key="response similar files")
    st.caption("Distance is Euclidean, in standardised projections.")


NAMES = {"chosen": "chosen", "rejected": "rejected", "response": "this response"}


def _neighbour(view: View, found: dict[str, Any]) -> dict[str, Any]:
    known = kept(view.model).known
    pair_id = ""
    if known is not None and known.pairs is not None:
        where = [i for rows in (known.chosen_rows, known.rejected_rows) for i in (rows == found["row"]).nonzero()[0]]
        pair_id = known.pairs[int(where[0])].pair_id if where else ""
    prompt = found["prompt"][-1]["content"] if found["prompt"] else ""
    told = {"reward": found["reward"], "distance": found["distance"], "judged": " and ".join(found["sides"])}
    return {**told, "response": visible(found["response"] or ""), "prompt": visible(prompt), "pair": pair_id}


def trust(view: View) -> None:
    """Can this explanation be believed: its residual, its curves, its stability, and what the fit measured."""
    margin = view.name == "margin" and view.found.pair is not None
    told: Any = view.found.pair if margin else view.one
    attribution, figures = told.attribution, view.one.figures
    rows = [("Start and bars less the reward (residual)", f"{attribution.residual:+.1e}", "0 but for rounding")]
    rows.append(("Rank correlation of the heads, here", number(attribution.rank_correlation, ".2f"), "at least 0.8"))
    stable = figures.stability
    agreed = number(stable.rank_correlation, ".2f") if stable.low is None else interval(stable.rank_correlation, stable.low, stable.high, ".2f")
    rows.append(("Rank correlation of the heads, this model", f"{agreed}, n = {stable.n:,} responses", "at least 0.8"))
    rows.append(("Selected again over resampled prompts", number(stable.overlap, ".2f"), "at least 0.8"))
    share = figures.prompt_share
    if share is not None:
        rows.append(
            (
                "Share of the reward that the prompt decides",
                f"{interval(share.share, share.low, share.high, '.2f')}, n = {share.n_prompts:,} prompts",
                "–",
            )
        )
    rows += faithfulness_rows(figures.faithfulness)
    verdict = {"stable": ("check_circle", "stable"), "unstable": ("warning", "unstable")}.get(stable.verdict, ("help", "of unknown stability"))
    st.markdown(f":material/{verdict[0]}: Explanations of this reward model are **{verdict[1]}**.")
    st.markdown("\n".join(["| Figure | Here | Should be |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]))
    if told.curves is None:
        st.caption("Fewer than three selected latents are active here, so there is nothing to remove one by one.")
        return
    st.caption("If the explanation is right, its order moves the reward faster than a random order.")
    key = f"response curves {view.found.subject.pair_id} {view.name}"
    show_chart(removal_curves(told.curves.to_json()), key=key, name=view.model.name)


def faithfulness_rows(found: Any) -> list[tuple[str, str, str]]:
    """What the fit measured on test pairs, with intervals."""
    if not found:
        return [("Agreement of contributions with removals", "not measured", "–")]
    agreement, cues = found["agreement"], found["cues"]
    n = f", n = {found['n_pairs']:,} pairs"
    rows = []
    if agreement and agreement.get("mean") is not None:
        said = interval(agreement["mean"], agreement["low"], agreement["high"], ".2f")
        rows.append(("Agreement of contributions with removals", said + n, "well above 0"))
    if cues and cues.get("reward"):
        one = cues["reward"]
        rows.append(
            (
                "Correlation of the reward with length",
                f"{interval(one['value'], one['low'], one['high'], '.2f')}, n = {cues['n']:,} responses",
                "near 0",
            )
        )
    return rows

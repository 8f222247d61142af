"""The Spaces page, drawn: both pictures side by side with one lasso, the pairs it holds, and the figures that do not mislead."""

from __future__ import annotations

from functools import partial

import streamlit as st

from core.config import SpacesConfig, SpacesRunConfig
from core.explain.spaces import DENSE, SPARSE, Spaces
from workbench.frame import layout, run_panel, state
from workbench.frame.downloads import download_rows, show_chart
from workbench.frame.models import FittedModel
from workbench.spaces import values as spaces
from workbench.spaces.charts import SPACES, space_figures, space_picture, space_scale
from workbench.spaces.values import Points

SAID = "t-SNE of all responses, dense and sparse, and how well each space tells chosen from rejected. Takes about half a minute for 5,000 responses."


def need_pictures(model: FittedModel) -> Points:
    """The chosen pictures, else the newest. Where there are none, offers the run that makes them and ends the page."""
    made = spaces.made(model)
    _asked_run()
    if not made:
        layout.empty("No pictures of this model's spaces yet.")
        run_panel.offer("spaces", SpacesRunConfig(model=str(model.path)), "Make the pictures", said=SAID)
        st.stop()
    chosen = state.get("spaces_made") if state.get("spaces_made") in made else next(iter(made))
    state.shows(spaces_made=chosen)
    return spaces.points(model, made[chosen])


def _asked_run() -> None:
    """The run that was started here, unless it has ended well."""
    run = run_panel.find_id(state.get("spaces_run"))
    if run is not None and run.status().state != "succeeded":
        run_panel.show(run)


def pictures(model: FittedModel, found: Points) -> None:
    """Dense and sparse side by side. A lasso in one marks the same responses in the other, and holds every list to their pairs."""
    made = spaces.made(model)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        with st.container(width=260):
            colour = state.pick("Colour", list(spaces.COLOURS), "spaces_colour", show=spaces.COLOURS.__getitem__)
        if len(made) > 1:
            with st.container(width=380):
                state.pick("Pictures", list(made), "spaces_made", show=lambda name: spaces.how(made[name]))
        st.space("stretch")
        _other_settings(model)
    st.caption(_how(found.spaces))
    wanted = state.chosen_pairs()
    marked = None if wanted is None else _marked(model, found, wanted)
    for column, (name, at) in zip(st.columns(2, gap="small"), ((DENSE, found.spaces.dense), (SPARSE, found.spaces.sparse)), strict=True):
        with column:
            st.markdown(f"##### {SPACES[name]}: {model.config['backbone']['d_model'] if name == DENSE else model.config['k']} dimensions")
            if colour in spaces.SCALES:
                values = spaces.values_of(model, found, colour)
                drawn = space_scale(name, at, found.rows, values, spaces.SCALES[colour], found.texts, marked)
            else:
                groups, palette = spaces.groups_of(model, found, colour)
                drawn = space_picture(name, at, found.rows, groups, found.texts, palette, marked)
            show_chart(drawn, key=f"spaces {name}", name=model.name, select=("lasso", "box", "points"), on_select=partial(_hold, model, found))


def _hold(model: FittedModel, found: Points, rows: list[str]) -> None:
    if rows:
        state.choose_pairs(spaces.pair_ids(model, found, rows), "lasso in Spaces", spaces_lasso=state.keep("lasso", rows))


def _marked(model: FittedModel, found: Points, wanted: state.PairFilter) -> list[int]:
    """The responses in the lasso where the filter comes from it, else all responses of the filter's pairs."""
    rows = state.kept("lasso", state.get("spaces_lasso"))
    if isinstance(rows, list) and set(spaces.pair_ids(model, found, [str(row) for row in rows])) == wanted.pair_ids:
        return [int(row) for row in rows if str(row).isdecimal()]
    return spaces.rows_of_pairs(model, wanted)


def _how(found: Spaces) -> str:
    made = found.made
    left_out = f", {made['n_left_out']:,} more left out" if made.get("n_left_out") else ""
    return (
        f"{made['method']}, perplexity {made['perplexity']:g}, seed {made['seed']}, from the {made['initialisation']}; "
        f"{len(found.rows):,} responses{left_out}. Distances between far groups mean little: see the figures below."
    )


def _other_settings(model: FittedModel) -> None:
    with st.popover("Other settings", icon=":material/tune:"), st.form("spaces settings", border=False):
        usual = SpacesConfig()
        told = "About how many neighbours each point attends to"
        perplexity = st.number_input("Perplexity", 1.0, 1000.0, float(usual.perplexity), step=5.0, key="spaces perplexity", help=told)
        seed = st.number_input("Seed", 0, 10**6, usual.seed, step=1, key="spaces seed")
        if st.form_submit_button("Make the pictures"):
            asked = SpacesConfig(perplexity=float(perplexity), seed=int(seed))
            state.choose(spaces_run=run_panel.start("spaces", SpacesRunConfig(model=str(model.path), spaces=asked)), spaces_made=None)
            st.rerun()


def held(model: FittedModel) -> None:
    """The pairs in the lasso."""
    wanted = state.chosen_pairs()
    if wanted is None:
        st.caption("Draw a lasso around points to list their pairs, here and on every page.")
        return
    rows = spaces.listed(model, wanted)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"##### {len(rows):,} {'pair' if len(rows) == 1 else 'pairs'} in the selection")
        st.button("Clear", key="spaces clear", on_click=state.clear, args=("filter",), type="tertiary", icon=":material/close:")
        st.space("stretch")
        download_rows(rows, name=model.name, what="pairs", key="spaces pairs")
    if not rows:
        st.caption("None of them belongs to this reward model.")
        return
    shape = {"margin": st.column_config.NumberColumn("Margin", format="%+.2f", help="Reward of chosen less reward of rejected"), "pair": None}
    table = {name: [row[name] for row in rows] for name in rows[0]}
    event = st.dataframe(table, column_config=shape, hide_index=True, key="spaces table", on_select="rerun", selection_mode="single-row", height=260)
    picked = event.get("selection", {}).get("rows", [])
    if picked and picked[0] < len(rows):
        state.go("response", pair=rows[picked[0]]["pair"])


def figures(model: FittedModel, found: Spaces) -> None:
    """How far chosen and rejected lie apart, in the spaces themselves and in their pictures."""
    st.markdown("##### Do chosen and rejected lie apart?")
    said = found.to_json()["figures"]
    left, right = st.columns(2, gap="medium")
    with left:
        show_chart(space_figures(said, found.chance, found.n_held_out), key="spaces neighbours", name=model.name)
        nearest = f"Majority of the {found.made['neighbours']} nearest responses to other prompts"
        st.caption(f"{nearest}; 95 % intervals over prompts. Rings: the pictures themselves.")
    with right:
        show_chart(space_figures(said, found.chance, found.n_held_out, which="silhouette"), key="spaces silhouette", name=model.name)
        st.caption("Silhouette of the two groups, own prompt left out. Held-out responses only, since directions were chosen on the training labels.")

"""The Spaces page, drawn: both pictures side by side with one lasso, its pairs, and how far chosen and rejected are
apart.
"""

from __future__ import annotations

from functools import partial

import streamlit as st

from core.config import SpacesConfig, SpacesRunConfig
from core.explain.spaces import DENSE, SPARSE, Spaces
from workbench.frame import layout, run_panel, state
from workbench.frame.downloads import download_rows, show_chart
from workbench.frame.models import FittedModel
from workbench.frame.pair_filter import PairFilter, choose_pairs, chosen_pairs
from workbench.spaces import values as spaces
from workbench.spaces.charts import SPACES, separation_scores, space_picture, space_scale
from workbench.spaces.values import SpacePoints

OFFER = "t-SNE of all responses, dense and sparse, and how well each space tells chosen from rejected. Takes about half a minute for 5,000 responses."


def need_pictures(model: FittedModel) -> SpacePoints:
    """The chosen pictures, else the newest. Where there are none, offers the run that makes them and ends the page."""
    artefacts = spaces.artefacts(model)
    _show_unfinished_run()
    if not artefacts:
        config = SpacesRunConfig(model=str(model.path))
        layout.absent("spaces", config, "No pictures of this model's spaces yet.", "The pictures are being prepared.")
        run_panel.start_button_or_progress("spaces", config, "Make the pictures", sentence=OFFER)
        st.stop()
    chosen = state.get("spaces_made") if state.get("spaces_made") in artefacts else next(iter(artefacts))
    state.shows(spaces_made=chosen)
    return spaces.points_of(model, artefacts[chosen])


def _show_unfinished_run() -> None:
    """The run that was started on this page, unless it has succeeded."""
    run = run_panel.find_id(state.get("spaces_run"))
    if run is not None and run.status().state != "succeeded":
        run_panel.show(run)


def pictures(model: FittedModel, points: SpacePoints) -> None:
    """Dense and sparse side by side. A lasso in one marks its responses in the other and limits every list to their
    pairs.
    """
    artefacts = spaces.artefacts(model)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        with st.container(width=260):
            colour = state.pick("Colour", list(spaces.COLOURS), "spaces_colour", show=spaces.COLOURS.__getitem__)
        if len(artefacts) > 1:
            with st.container(width=380):
                state.pick("Pictures", list(artefacts), "spaces_made", show=lambda name: spaces.tsne_settings(artefacts[name]))
        st.space("stretch")
        _other_settings(model)
    st.caption(_settings_text(points.spaces))
    wanted = chosen_pairs()
    marked = None if wanted is None else _marked(model, points, wanted)
    for column, (name, picture) in zip(st.columns(2, gap="small"), ((DENSE, points.spaces.dense), (SPARSE, points.spaces.sparse)), strict=True):
        with column:
            st.markdown(f"##### {SPACES[name]}: {model.config['backbone']['d_model'] if name == DENSE else model.config['k']} dimensions")
            if colour in spaces.SCALES:
                values = spaces.values_of(model, points, colour)
                chart = space_scale(name, picture, points.rows, values, spaces.SCALES[colour], points.texts, marked)
            else:
                groups, palette = spaces.groups_of(model, points, colour)
                chart = space_picture(name, picture, points.rows, groups, points.texts, palette, marked)
            show_chart(chart, key=f"spaces {name}", name=model.name, select=("lasso", "box", "points"), on_select=partial(_select, model, points))


def _select(model: FittedModel, points: SpacePoints, rows: list[str]) -> None:
    if rows:
        choose_pairs(spaces.pair_ids(model, points, rows), "lasso in Spaces", spaces_lasso=state.keep("lasso", rows))


def _marked(model: FittedModel, points: SpacePoints, wanted: PairFilter) -> list[int]:
    """The responses in the lasso if the filter comes from it, else all responses of the filter's pairs."""
    rows = state.kept("lasso", state.get("spaces_lasso"))
    if isinstance(rows, list) and set(spaces.pair_ids(model, points, [str(row) for row in rows])) == wanted.pair_ids:
        return [int(row) for row in rows if str(row).isdecimal()]
    return spaces.rows_of_pairs(model, wanted)


def _settings_text(result: Spaces) -> str:
    settings = result.made
    left_out = f", {settings['n_left_out']:,} more left out" if settings.get("n_left_out") else ""
    return (
        f"{settings['method']}, perplexity {settings['perplexity']:g}, seed {settings['seed']}, from the {settings['initialisation']}; "
        f"{len(result.rows):,} responses{left_out}. Distances between far groups mean little: see the figures below."
    )


def _other_settings(model: FittedModel) -> None:
    with st.popover("Other settings", icon=":material/tune:"), st.form("spaces settings", border=False):
        usual = SpacesConfig()
        help_ = "About how many neighbours each point attends to"
        perplexity = st.number_input("Perplexity", 1.0, 1000.0, float(usual.perplexity), step=5.0, key="spaces perplexity", help=help_)
        seed = st.number_input("Seed", 0, 10**6, usual.seed, step=1, key="spaces seed")
        if st.form_submit_button("Make the pictures"):
            asked = SpacesConfig(perplexity=float(perplexity), seed=int(seed))
            state.choose(spaces_run=run_panel.start("spaces", SpacesRunConfig(model=str(model.path), spaces=asked)), spaces_made=None)
            st.rerun()


def selected_pairs(model: FittedModel) -> None:
    """The pairs to which lists are limited, such as those of the lasso; a row opens its pair."""
    wanted = chosen_pairs()
    if wanted is None:
        st.caption("Draw a lasso around points to list their pairs, here and on every page.")
        return
    rows = spaces.table_of_pairs(model, wanted)
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


def separation(model: FittedModel, result: Spaces) -> None:
    """How far chosen and rejected lie apart, in the spaces themselves and in their pictures."""
    st.markdown("##### Do chosen and rejected lie apart?")
    scores = result.to_json()["figures"]
    left, right = st.columns(2, gap="medium")
    with left:
        show_chart(separation_scores(scores, result.chance, result.n_held_out), key="spaces neighbours", name=model.name)
        nearest = f"Majority of the {result.made['neighbours']} nearest responses to other prompts"
        st.caption(f"{nearest}; 95 % intervals over prompts. Rings: the pictures themselves.")
    with right:
        show_chart(separation_scores(scores, result.chance, result.n_held_out, which="silhouette"), key="spaces silhouette", name=model.name)
        st.caption("Silhouette of the two groups, own prompt left out. Held-out responses only, since directions were chosen on the training labels.")

"""The Latent page, drawn: a latent's labels, the texts it is active on, its effect on the reward, and your own text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from core.config import LatentsRunConfig
from core.errors import SparseRMError
from core.latents.label_book import book_of, labels_of
from core.latents.labels import EMBEDDING, PERSON, TOKENS, Label, Score
from core.latents.pages import Feature, LatentPages
from workbench.frame import layout, live_panel, run_panel, state
from workbench.frame.chart_base import interval, number, percent
from workbench.frame.downloads import file_name, jsonl_bytes, rows_behind, show_chart, show_rows
from workbench.frame.model_client import live_model
from workbench.frame.models import FittedModel
from workbench.frame.tokens import TokenRow, show_tokens, table
from workbench.latents import charts
from workbench.latents import values as latents

LONGEST_TEXT = 20_000


def need_latent(model: FittedModel) -> int:
    """The chosen latent, else the model's first. Ends the page where a link names one that the SAE does not have."""
    asked, width = state.get("latent"), latents.n_latents(model)
    if not asked:
        state.shows(latent=model.latents[0])
        return model.latents[0]
    if asked.isdecimal() and len(asked) < 10 and int(asked) < (width or 10**9):
        return int(asked)
    layout.empty("This reward model's SAE has no such latent.", f"Its latents are 0 to {width - 1:,}." if width else "")
    st.button("Show the best separated instead", type="primary", on_click=state.clear, args=("latent",))
    st.stop()
    raise AssertionError  # st.stop has ended the page


def choose(model: FittedModel, latent: int, page: Feature | None) -> None:
    """The selected latents to choose from, any other by its number, its page as a file, and the way out to Neuronpedia."""
    labels = labels_of(model)
    options = [str(option) for option in dict.fromkeys((*model.latents, latent))]

    def title(option: str) -> str:
        return f"{option}  {latents.label_text(labels, int(option))}".strip()

    with st.container(horizontal=True, vertical_alignment="bottom"):
        state.pick("Latent", options, "latent", show=title, default=str(latent))
        width = latents.n_latents(model)
        most = None if width is None else width - 1
        st.number_input("Any latent", 0, most, step=1, width=150, **state.url_widget("latent number", latent, _open))
        if page is not None:
            data, file = partial(jsonl_bytes, [page]), file_name("latent", str(latent), kind="json")
            look: Any = {"icon": ":material/download:", "help": "This page in Neuronpedia's format"}
            st.download_button("JSON", data, file, "application/json", key="latent json", on_click="ignore", **look)
        url = latents.neuronpedia_url(model, latent)
        if url:
            st.link_button("Neuronpedia", url, icon=":material/open_in_new:", help="Opens neuronpedia.org in a new tab")


# --- its name ------------------------------------------------------------------------------------------------------


def naming(model: FittedModel, latent: int) -> None:
    """The latent's first label with its origin and scores, all other labels, and a field for your own."""
    book = book_of(model)
    if book is None:
        return
    labels = book.all(latent)
    with st.container(horizontal=True, vertical_alignment="center", key="latent label"):
        st.text(labels[0].text + labels[0].mark if labels else "No label yet")
        if labels:
            st.caption(layout.label_text(_origin(labels[0]), 90))
            for score in labels[0].scores:
                named = replace(score, method=layout.label_text(score.method, 40))  # a badge reads Markdown
                st.badge(latents.score_text(named), color="gray", help=_measured(score))
        with st.popover("Labels" if labels else "Name it", icon=":material/edit:", type="tertiary"):
            mine = next((label.text for label in labels if label.source == PERSON), "")
            with st.form("latent naming", border=False):
                st.text_input(
                    "Your label",
                    mine,
                    key=f"latent name {latent}",
                    max_chars=300,
                    help="It is kept beside the others and comes first. Empty: takes yours away.",
                )
                st.form_submit_button("Save", on_click=_name, args=(model, latent))
            if labels:
                show_rows(latents.label_rows(labels), key="latent labels")
    failure = st.session_state.pop("latent naming failed", "")
    if failure:
        st.text(failure)


def _name(model: FittedModel, latent: int) -> None:
    book = book_of(model)
    try:
        if book is not None:
            book.set(latent, st.session_state[f"latent name {latent}"])
    except (SparseRMError, OSError) as error:
        st.session_state["latent naming failed"] = f"The label could not be saved: {error}"


def _origin(label: Label) -> str:
    by = label.author or label.model or ("" if label.source == PERSON else label.method)
    source = "yours" if label.source == PERSON else label.source
    return ", ".join(part for part in (label.doubt, source + (f" by {by}" if by else ""), label.date[:10]) if part)


def _measured(score: Score) -> str:
    """What a score of a label means, who measured it, and on which texts."""
    what = (
        "AUROC of its likeness to active against silent texts; 0.5 is chance"
        if score.method == EMBEDDING
        else "Share of tokens told right, active or not, by somebody who saw the label alone; 0.5 is chance"
        if score.method == TOKENS
        else "From 0 to 1, the higher the better"
    )
    about = (("by", score.model), ("texts", score.windows), ("on", score.date[:10]))
    return ", ".join([what, *(f"{word} {layout.label_text(value)}" for word, value in about if value)]) + "."


# --- its figures ---------------------------------------------------------------------------------------------------


METRICS = {
    "Side": "On which responses it is more often active, if the model selects it",
    "Separation": "mu_w - mu_l: how much more often it is active in chosen than in rejected training responses. Below: 95 % interval over prompts.",
    "q-value": "Sign test over prompts, Benjamini-Hochberg; – where it is active too rarely to be tested",
    "Detection AUROC": "How well its projection tells where it is active. A label describes the activation, the head reads the projection. "
    "Below: 95 % interval over prompts, and training responses.",
    "Weight in the head": "Mean size of its contribution to the reward of held-out responses",
}


def figures(model: FittedModel, row: Mapping[str, Any] | None, page: Feature | None, pages: LatentPages | None) -> None:
    """The latent's figures in a row, and a warning where its label does not describe its projection."""
    if row is None:
        st.caption("This cache holds no frequencies of this latent any more.")
        return
    tested, warning = latents.detection(row)
    side = {"chosen": "Chosen", "rejected": "Rejected"}.get(row["side"], "Not selected")
    values = dict(
        zip(
            METRICS,
            (side, f"{100 * row['separation']:+.1f} points", number(row["q_value"], ".1e"), tested, number(row["weight"], ".3f")),
            strict=True,
        )
    )
    beside = _beside(model, row)
    with st.container(horizontal=True, gap="medium"):
        for name, value in values.items():
            st.metric(name, value, beside.get(name), delta_color="off", delta_arrow="off", help=METRICS[name])
        if page is not None and pages is not None:
            help_ = f"Of {pages.corpus['tokens']:,} tokens of {pages.corpus['documents']:,} texts, template and first tokens not counted"
            n = f"of {pages.corpus['tokens']:,} tokens"
            st.metric("Active on", percent(page["frac_nonzero"]), n, delta_color="off", delta_arrow="off", help=help_)
    if warning:
        st.warning(warning[:1].upper() + warning[1:] + ".", icon=":material/warning:")


def _beside(model: FittedModel, row: Mapping[str, Any]) -> dict[str, str]:
    """The intervals and deviations that are known of the figures."""
    low, high, spread = row["low"], row["high"], row["weight_deviation"]
    sure = latents.detection_interval(model, int(row["latent_id"])) if row["detection_auroc"] is not None else None
    beside = {
        "Separation": "" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}",
        "Detection AUROC": "" if sure is None else f"{sure[0]:.2f} to {sure[1]:.2f}, n = {sure[2]:,}",
        "Weight in the head": "" if spread is None else f"± {spread:.3f} over heads",
    }
    return {name: text for name, text in beside.items() if text}


def effect(model: FittedModel, latent: int, row: Mapping[str, Any] | None) -> None:
    """Separation and response curve side by side."""
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("##### Chosen against rejected")
        if row is not None:
            about = model.about["selection"]
            held = _held_out(model)
            show_chart(charts.separation_dots(row, int(about["n_pairs"]), held), key="latent separation", name=model.name)
            low, high = (None if row[end] is None else 100 * row[end] for end in ("low", "high"))
            separation = interval(100 * row["separation"], low, high, "+.1f")
            shares = f"{percent(row['frequency_chosen'])} of chosen and {percent(row['frequency_rejected'])} of rejected ones"
            st.caption(f"{separation} percentage points; active in {row['n_active']:,} training responses: {shares}.")
    with right:
        st.markdown("##### What its projection does to the reward")
        curve = latents.curve_of(model, latent)
        if curve is None:
            st.caption("This model does not read this latent, or keeps no responses: there is no curve.")
        else:
            show_chart(charts.response_curve(curve), key="latent curve", name=model.name)
            st.caption(
                f"All other projections at their training mean (n = {curve['n']:,} training responses). Thin lines: the heads of the other seeds."
            )


def _held_out(model: FittedModel) -> int:
    try:
        return int(model.frequencies.n_pairs_held_out)
    except SparseRMError:
        return 0


# --- its page ------------------------------------------------------------------------------------------------------


def evidence(model: FittedModel, page: Feature, pages: LatentPages) -> None:
    """Activating texts beside what the direction promotes, as on Neuronpedia."""
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.markdown("##### Texts it is active on")
        _texts(page, pages)
    with right:
        st.markdown("##### Tokens it promotes and suppresses")
        show_chart(charts.logit_bars(page), key="latent logits", name=model.name)
        st.markdown("##### How strong it is")
        show_chart(charts.activation_density(page, pages.corpus["tokens"]), key="latent density", name=model.name)
    further = st.expander("Closest latents, and its effect on the whole vocabulary", key="latent further", on_change="rerun")
    if further.open:
        with further:
            first, second = st.columns(2, gap="medium")
            with first:
                closest(model, page)
            with second:
                show_chart(charts.logit_histogram(page), key="latent vocabulary", name=model.name)


def _texts(page: Feature, pages: LatentPages) -> None:
    groups = latents.intervals(page["activations"])
    if not groups:
        st.caption("It is active on none of the tokens that were read.")
        return
    names = list(groups)
    places = [str(place) for place in range(len(names))]
    place = int(state.pick("Which texts", places, "latent_texts", show=lambda place: names[int(place)], label_visibility="collapsed"))
    rows = latents.token_rows(groups[names[place]])
    show_tokens(rows, key=f"latent tokens {page['index']} {place}", scale=page["maxActApprox"], height=640)
    rows_behind(lambda: table(rows), what=f"latent {page['index']} texts", key="latent texts")
    corpus = pages.corpus
    parts = ", ".join(f"{layout.label_text(part['name'], 30)} {part['tokens']:,}" for part in corpus["sources"] if part["tokens"])
    st.caption(f"{corpus['tokens']:,} tokens read ({parts}). The strongest token is underlined; template tokens are pale and not counted.")


def closest(model: FittedModel, page: Feature) -> None:
    """Latents whose directions point the same way; a row opens one."""
    labels = labels_of(model)
    ids = page["topkCosSimIndices"]
    table = {
        "Latent": ids,
        "Cosine": page["topkCosSimValues"],
        "Selected": [latent in model.latents for latent in ids],
        "Label": [latents.label_text(labels, latent) or "no label yet" for latent in ids],
    }
    st.markdown("##### Closest latents")
    shape = {
        "Cosine": st.column_config.NumberColumn(format="%.2f", help="Cosine of the two decoder rows; above 0.7 they are grouped in explanations")
    }
    event = st.dataframe(
        table, column_config=shape, hide_index=True, key=f"latent closest {page['index']}", on_select="rerun", selection_mode="single-row"
    )
    picked = event.get("selection", {}).get("rows", [])
    if picked and picked[0] < len(ids):
        state.choose(latent=ids[picked[0]])
        st.rerun()


def missing(model: FittedModel, latent: int, pages: LatentPages | None) -> None:
    """No page of it: the run that makes it."""
    if pages is not None and pages.corpus["every"]:
        layout.empty("This latent was active on none of the texts that were read.", "More texts may show it: `sparserm latents MODEL --tokens N`.")
        return
    selected = latent in model.latents
    offer = "Reads texts through the language model, and keeps where each selected latent is active. Takes some minutes; you can go on meanwhile."
    config = LatentsRunConfig(model=str(model.path), latent=() if selected else (latent,))
    if run_panel.being_made("latents", config):
        st.markdown("##### The page of this latent is being prepared")
        st.caption("It will stand here by itself as soon as it is ready. What the latent does to the reward stands below already.")
    run_panel.start_button_or_progress(
        "latents", config, "Make the pages of all selected latents" if selected else "Make this latent's page, too", sentence=offer
    )


# --- your own text -------------------------------------------------------------------------------------------------


def own_text(model: FittedModel, latent: int) -> None:
    """A field for a text that the model's process reads, and this latent's activation on each of its tokens."""
    st.markdown("##### Try your own text")
    kept = state.kept("text", state.get("latent_own"))
    text = kept if isinstance(kept, str) else ""
    with st.form("latent own", border=False):
        st.text_area(
            "Text",
            text,
            key=f"latent own text {state.get('latent_own')}",
            max_chars=LONGEST_TEXT,
            height=90,
            label_visibility="collapsed",
            placeholder="Type or paste a text; it is read as a user's message, on this machine.",
        )
        st.form_submit_button("Show where it is active", on_click=_keep_own, args=(f"latent own text {state.get('latent_own')}",))
    if text.strip():
        _read(model, latent, text)


def _keep_own(key: str) -> None:
    text = st.session_state[key].strip()
    state.choose(latent_own=state.keep("text", text[:LONGEST_TEXT]) if text else None)


def _read(model: FittedModel, latent: int, text: str) -> None:
    if live_panel.ready(model, "", key="latent own", wanted=True):
        try:
            reading = live_model(str(model.path), model.root).activations(text, [latent])
        except SparseRMError as error:
            layout.failed(error)
        else:
            _show_own(reading, latent)


def _show_own(reading: Mapping[str, Any], latent: int) -> None:
    values = reading["activation"].get(str(latent)) or [0.0] * len(reading["texts"])
    kinds: Sequence[str] = reading["kinds"]
    silent = [place for place, kind in enumerate(kinds) if kind in ("first", "template")]
    shown = [None if place in silent else value for place, value in enumerate(values)]
    rows = [TokenRow(texts=reading["texts"], values=shown, muted=silent)]
    show_tokens(
        rows,
        key="latent own tokens",
        hint="" if any(v for v in shown if v) else "It is silent on this text.",
    )
    rows_behind(lambda: table(rows), what=f"latent {latent} own text", key="latent own")
    others = [other for other in reading["top"] if other["latent_id"] != latent][:6]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Most active here:", width="content")
        for other in others:
            st.button(
                f"{other['latent_id']}",
                key=f"latent own {other['latent_id']}",
                type="tertiary",
                help=f"activation {other['activation']:.2f}",
                on_click=_open,
                args=(other["latent_id"],),
            )


def _open(latent: int) -> None:
    state.choose(latent=latent)

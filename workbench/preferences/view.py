"""The Preferences page, drawn: counts and faults of the pairs, what wording or length alone reach, the pairs, and your
own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from core.backbone.presets import PRESETS
from core.config import PairsRunConfig
from core.data.formats import FORMATS
from core.data.pairs_file import read_pairs
from core.errors import SparseRMError, StoreError
from core.files import read_json
from core.runs.registry import Run
from core.text_safety import visible
from core.types import PreferencePair
from workbench.frame import forms, run_panel, state, uploads
from workbench.frame.accuracy import accuracy_text, interval_text, method_name
from workbench.frame.downloads import download_rows
from workbench.frame.layout import failed, label_text
from workbench.frame.models import FittedModel
from workbench.frame.pair_filter import chosen_pairs
from workbench.preferences.values import SORTS, VERDICTS, WITH_MARGINS, PairList

SHOWN_REFUSED = 2000


# --- where pairs come from ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _of_folder(folder: Path) -> PairList:
    pairs = read_pairs(folder / "pairs.jsonl")
    return PairList(pairs=pairs, splits=pairs.split)


@lru_cache(maxsize=4)
def of_model(model: FittedModel) -> PairList:
    """The pairs that a reward model was fitted and measured on, with its margins."""
    return PairList(pairs=model.pairs, splits=model.splits, margins=model.margins)


# --- what they are -----------------------------------------------------------------------------------------------------


def report(
    data_report: Mapping[str, Any],
    shortcuts: Mapping[str, Mapping[str, Any]],
    accuracy: Mapping[str, Any] | None = None,
    accuracy_of: str = "",
) -> None:
    """Counts, duplicates, leaks, and the accuracies of wording and length alone.

    `accuracy` is the reward model's, `accuracy_of` names its heads in words.
    """
    data, split = data_report["data"], data_report["split"]
    duplicates = data["duplicates"]
    doubled = duplicates["n_exact_extra"] + duplicates["n_near_extra"]
    leaks = sum(split["shared_prompts"].values()) + sum(split["shared_duplicates"].values())
    parts = " / ".join(f"{split['n_pairs'].get(name, 0):,}" for name in ("train", "validation", "test"))
    figures = [
        ("Pairs", f"{data['n_pairs']:,}", f"{data['n_prompts']:,} prompts; {parts} to train, validate, test"),
        ("Rows refused", f"{len(data['refused']):,}", f"of {data['n_rows']:,} rows"),
        ("Duplicates", f"{doubled:,}", f"{duplicates['n_exact_extra']:,} exact, {duplicates['n_near_extra']:,} near"),
        ("Contradictions", f"{duplicates['n_contradictory_groups']:,}", "the same pair, judged both ways"),
        ("On two sides", f"{leaks:,}", "prompts or duplicates in two splits"),
    ]
    for column, (name, value, beside) in zip(st.columns(len(figures)), figures, strict=True):
        with column, st.container(border=True, height="stretch"):
            st.metric(name, value)
            st.caption(beside)
    _shortcuts(shortcuts, accuracy, accuracy_of)
    for note in (*data["notes"], *split["notes"]):
        st.text(visible(note, 400))


def _shortcuts(shortcuts: Mapping[str, Mapping[str, Any]], accuracy: Mapping[str, Any] | None, accuracy_of: str) -> None:
    """The accuracies without a language model, in sentences.

    A fit measures them on the test pairs that its language model can read, in tokens; a check of pairs on all test
    pairs, in characters.
    """
    if not shortcuts:
        return
    sentences = [
        f"{_shortcut(kind, value)} tells chosen from rejected in **{accuracy_text(value)}** ({_measured(value)})" for kind, value in shortcuts.items()
    ]
    st.markdown("Without any model: " + "; ".join(sentences) + ".")
    wording = shortcuts.get("wording-only")
    if accuracy and wording and wording["accuracy"] is not None and wording["high"] >= accuracy["accuracy"]:
        reached = f"The reward model's accuracy, {accuracy_text(accuracy)} ({accuracy_of}, {interval_text(accuracy)}),"
        st.markdown(f"{reached} is no better than wording alone: these pairs can be told apart by their words.")
    elif wording and wording["accuracy"] is not None and wording["low"] > 0.5:
        st.markdown("Some of the preference is in the words themselves, so read every accuracy beside that line.")


def _shortcut(kind: str, value: Mapping[str, Any]) -> str:
    return f"Length in {value['unit']} only" if kind == "length-only" and "unit" in value else method_name(kind)


def _measured(value: Mapping[str, Any]) -> str:
    """The interval and the pairs. Only a check names its split; it has read all pairs, a fit those its model can read."""
    return (
        f"{interval_text(value, value['split'])}, all there are" if "split" in value else f"{interval_text(value)} that the language model can read"
    )


def refused(data: Mapping[str, Any]) -> None:
    """Each row that was not used, with the reason."""
    rows = data["refused"]
    if not rows:
        return
    with st.expander(f"{len(rows):,} rows were refused", icon=":material/block:"):
        reasons = [{"Reason": visible(reason, 200), "Rows": n} for reason, n in data["refused_by_reason"].items()]
        st.dataframe(reasons, hide_index=True)
        shown = [{"Row": row["row"], "Field": visible(row["field"], 60), "Reason": visible(row["reason"], 200)} for row in rows]
        st.dataframe(shown[:SHOWN_REFUSED], hide_index=True, height=240)
        download_rows(shown, name="", what="refused rows", key="refused")


def mapping(data: Mapping[str, Any]) -> None:
    """How the rows were understood: the format, the columns that were read, the other columns."""
    read = data.get("columns_read", ())  # absent in reports of older versions
    facts = {
        "Read as": ", ".join(data.get("n_read_as") or [part for part in (data["format"], data["variant"]) if part]),
        "Columns read": ", ".join(read) or "not recorded",
        "Kept beside, or left out": ", ".join(name for name in data["columns"] if name not in read),
    }
    for column, (name, value) in zip(st.columns([1, 2, 2]), facts.items(), strict=True):
        if value:
            column.caption(name)
            column.text(visible(value, 600))


# --- browsing ----------------------------------------------------------------------------------------------------------


def browse(pairs: PairList, key: str) -> None:
    """Filters, the table, and the chosen pair with its answers side by side."""
    rows = _filtered(pairs)
    st.caption(f"{len(rows):,} of {len(pairs.pairs):,} pairs. Mark one to read it.")
    shown = pairs.table(rows)
    ids = [pairs.pairs[int(row)].pair_id for row in rows]
    chosen = state.get("pair")
    name = f"pairs {key} {hash(tuple(ids))}"
    table_key = state.table_key(name, chosen)
    st.dataframe(
        shown,
        hide_index=True,
        key=table_key,
        height=min(38 + 35 * max(len(rows), 1), 330),
        on_select=lambda: _select(name, table_key, ids),
        selection_mode="single-row",
        selection_default={"selection": {"rows": [ids.index(chosen)] if chosen in ids else []}},
        column_config={
            "Pair": st.column_config.NumberColumn(width=60),
            **{name: st.column_config.TextColumn(width=260) for name in ("Prompt", "Chosen", "Rejected")},
            "Margin": st.column_config.NumberColumn(format="%+.2f", help="Reward of chosen less reward of rejected; below 0 the ranking is wrong."),
        },
        alt="Preference pairs",
    )
    with st.container(horizontal=True):
        download_rows(pairs.rows(rows), name="", what="pairs", key=f"pairs {key}")
    number = next((i for i, pair in enumerate(pairs.pairs) if pair.pair_id == chosen), None) if chosen else None
    if number is not None:
        side_by_side(pairs.pairs[number], number, pairs)


def _select(name: str, key: str, ids: list[str]) -> None:
    """Chooses the pair that a person marked. A new table reports no mark at first, so a pair is cleared by its chip
    only.
    """
    rows = st.session_state[key]["selection"]["rows"]
    if rows and rows[0] < len(ids) and state.table_shows(name, key, ids[rows[0]]):
        state.choose(pair=ids[rows[0]])


def _filtered(pairs: PairList) -> Any:
    """The rows that the filters leave, in the chosen order."""
    limited = chosen_pairs()
    kinds, splits = sorted(set(pairs.kinds) - {""}), [name for name in ("train", "validation", "test", "unused") if name in pairs.splits]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = _search()
        split = _narrow("Split", splits, "preferences_split")
        kind = _narrow("Kind", kinds, "preferences_kind")
        verdict = "all"
        if pairs.margins is not None:
            verdict = _box("Ranking", list(VERDICTS), "preferences_ranking", VERDICTS.__getitem__)
        sorts = [name for name in SORTS if pairs.margins is not None or name not in WITH_MARGINS]
        by = _box("Order", sorts, "preferences_order", SORTS.__getitem__)
    rows = pairs.choose(split=split, kind=kind, verdict=verdict, words=words, ids=limited.__contains__ if limited is not None else None)
    return pairs.sort(rows, by)


def _box(label: str, options: list[str], name: str, show: Any = str) -> str:
    with st.container(width=165):
        return state.pick(label, options, name, show=show)


def _narrow(label: str, options: list[str], name: str) -> str:
    """A select box whose first entry means all; not drawn where there is at most one option."""
    if len(options) < 2:
        return ""
    chosen = _box(label, ["", *options], name, lambda option: visible(option, 60) or "All")
    return chosen if chosen in options else ""


def _search() -> str:
    name = "preferences_search"
    widget = state.url_widget("pairs search", state.get(name), lambda words: state.choose(**{name: words}))
    with st.container(width=230):
        st.text_input("Search", placeholder="Words in prompt or answers", max_chars=200, **widget)
    return state.get(name)


def side_by_side(pair: PreferencePair, number: int, pairs: PairList) -> None:
    """The whole pair, as plain text."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"##### Pair {number + 1:,}")
            if pairs.margins is not None:
                margin = float(pairs.margins[number])
                st.badge(f"margin {margin:+.2f}", color="blue" if margin > 0 else "orange", help="Reward of chosen less reward of rejected")
            if pairs.splits:
                st.badge(pairs.splits[number], color="gray")
            if pairs.kinds[number]:
                st.badge(label_text(pairs.kinds[number]), color="gray")
            st.space("stretch")
            if pairs.margins is not None:
                state.link("Why this score?", "response", pair=pair.pair_id)
        for message in pair.prompt:
            st.caption({"user": "Prompt", "system": "System", "assistant": "Earlier answer"}.get(message["role"], "Prompt"))
            _whole(message["content"], 130)
        left, right = st.columns(2)
        with left, st.container(border=True, height="stretch"):
            st.badge("Chosen", color="blue")
            _whole(pair.chosen, 60)
        with right, st.container(border=True, height="stretch"):
            st.badge("Rejected", color="orange")
            _whole(pair.rejected, 60)
        if pair.meta:
            with st.expander("What the source says beside it"):
                st.dataframe([{"Name": visible(name, 60), "Value": visible(value, 300)} for name, value in pair.meta.items()], hide_index=True)


def _whole(text: str, width: int) -> None:
    """A whole text as it is; a long one scrolls in its own box. `width`: about how many characters a line holds."""
    lines = sum(1 + len(line) // width for line in text.split("\n"))
    with st.container(height=380 if lines > 15 else "content"):
        st.text(visible(text))


# --- pairs of one's own --------------------------------------------------------------------------------------------------


def bring() -> None:
    """Your own pairs: an upload, a path or a Hub id, the check of them, and the button that goes on to a fit."""
    run_panel.say_complaint()
    _upload()
    filled = forms.form("pairs")
    config = filled.config
    assert isinstance(config, PairsRunConfig)
    run = None if filled.errors else run_panel.find("pairs", config)
    if run is None or run.status().state in ("failed", "cancelled", "interrupted"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Check these pairs", type="primary", key="check pairs", disabled=bool(filled.errors), on_click=run_panel.begin, args=("pairs", config)
            )
            with st.popover("As a command", type="tertiary", icon=":material/terminal:"):
                st.code(filled.command, language="bash", wrap_lines=True)
    if run is None:
        _understood()
    elif run.status().state != "succeeded":
        run_panel.show(run)
    else:
        _checked(run, config)


def _understood() -> None:
    """The formats that can be read, shown until something was read."""
    st.markdown("##### What is understood")
    st.caption("Files are .jsonl, .json, .csv or .parquet, also gzipped. Rows that can't be used are listed with their reason; the others go on.")
    rows = [{"Format": f.title, "Columns it reads": f.columns} for f in FORMATS]
    st.dataframe(rows, hide_index=True, height=38 + 35 * len(rows))
    st.caption("Other column names: say which is which under Columns.")


def _upload() -> None:
    given = st.file_uploader(
        "Upload pairs, or name a file on this machine or a Hub id below",
        key="upload",
        max_upload_size=uploads.LARGEST // 2**20,
        help="It is kept in the cache folder, under a name of our own. No row leaves this machine.",
    )
    if given is None or st.session_state.get("uploaded") == given.file_id:
        return
    try:
        path = uploads.keep(given.name, given.getvalue())
    except SparseRMError as error:
        failed(error)
        return
    st.session_state["uploaded"] = given.file_id
    forms.fill("pairs", PairsRunConfig(data=dataclasses.replace(PairsRunConfig().data, pairs=str(path))))
    st.rerun()


def _checked(run: Run, config: PairsRunConfig) -> None:
    folder = Path(str((run.result() or {})["artefact"]))
    try:
        data_report = read_json(folder / "report.json")
        pairs = _of_folder(folder)
    except (StoreError, OSError, ValueError):
        st.markdown("What this check found is gone from the cache.")
        st.button("Check again", on_click=run_panel.begin, args=("pairs", config))
        return
    report(data_report, data_report["shortcuts"])
    with st.container(border=True):
        mapping(data_report["data"])
    refused(data_report["data"])
    if st.button("Fit a reward model on these", type="primary", icon=":material/arrow_forward:", key="fit these"):
        _to_fit(config)
    browse(pairs, run.id)


def _to_fit(config: PairsRunConfig) -> None:
    forms.fill("fit", dataclasses.replace(PRESETS[forms.first_preset("fit")], data=config.data))
    state.go("runs", runs_kind="fit", runs_new="1")

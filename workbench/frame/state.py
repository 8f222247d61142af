"""What the person has chosen, the same on all pages: ids, kept in the URL and nowhere else.

A reload, the back button, a restarted server and another browser that opens a copied link therefore all show the same
view. Links to other pages are made by `link` or followed by `go`, also those of the sidebar, since both take the URL's
choices along.

A page's default may change from one day to the next (the newest reward model). `settle` writes such a default into the
URL, so that a newer model changes nothing in a view that is open; `shows` adds a default to the copied link only.

    shared by all pages, shown as chips that clear them
        model     id of a reward model (workbench.frame.models)    pair      id of a preference pair
        latent    number of a latent                               filter    id of a saved set of pairs (workbench.frame.pair_filter)
    of one page: any other name, by convention `<page>_<what>` (latents_k, preferences_search); absent where it has its default

What is too long for a URL is saved as a small file in the cache, named by its content (`keep`, `kept`), and the URL
holds its id.

    state.get("latent")                            "" where nothing is chosen
    state.settle("model", ids, newest)             what is chosen, else what this session showed last, else the newest; the URL holds it from now on
    state.shows(pair="p1")                         what this page shows by default; the copied link names it
    state.choose(latent="17", pair=None)           in a callback (on_click, on_change, on_select); one step of the browser's history
    state.link("Open", "latent", latent="17")      a link to a page, with something chosen
    state.go("latent", latent="17")                opens the page at once; ends this script run
    state.pick("Subset", options, "preferences_subset")          a select box for a name in the URL
    state.segments("View", {"a": "As it is"}, "response_view")   a row of choices for a name in the URL
    st.text_input("Search", **state.url_widget("search", state.get("latents_search"), take))   any other widget that shows a value of the URL
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from core.errors import ConfigError, StoreError
from core.files import read_json, write_json
from core.runs.store import cache_root
from core.types import sha256_of
from workbench.frame import models
from workbench.frame.page_list import find_page

SHARED = ("model", "pair", "latent", "filter")
# Choices that are cleared when the choice they belong to changes, since they would then mean something else.
GOES_WITH: Mapping[str, tuple[str, ...]] = {
    "model": ("latents_k", "doctor_run", "doctor_made", "spaces_run", "spaces_made", "spaces_lasso"),
    "pair": ("response_edit", "response_off", "response_word", "response_stretch"),
    "response_view": ("response_stretch",),
    "response_word": ("response_stretch",),
    "response_bars": ("response_stretch",),
    "latent": ("latent_texts",),
    "filter": ("spaces_lasso",),
    "align_open": ("align_round", "align_drop", "align_case", "align_reason", "align_sample", "shift_round", "shift_point"),
    "align_round": ("align_drop", "align_case", "align_sample"),
    "shift_round": ("shift_point",),
}
SETTLED, SHOWN, CHANGED = "settled choices", "shown by default", "chosen since the page was drawn"  # keys of the session's state
NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
KEPT_ID = re.compile(r"[0-9a-f]{16}")
MAX_ID = 500  # characters; anything longer is not an id
MAX_KEPT = 4_000_000  # bytes of JSON


# --- choosing ------------------------------------------------------------------------------------------------------


def get(name: str, default: str = "") -> str:
    """The id chosen under this name. Anyone can write a URL, so look the id up before use and never make a path of it."""
    value = str(st.query_params.get(name, default))
    return value if len(value) <= MAX_ID else default


def settle(name: str, options: Sequence[str], default: str) -> str:
    """The id chosen under a name whose default changes with the cache: the URL's, else what this session showed last,
    else `default`.

    The id is then written into the URL. An id of the URL that is not among `options` is returned unchanged, and the
    page reports it.
    """
    memory, asked = st.session_state.setdefault(SETTLED, {}), get(name)
    chosen = asked or (memory[name] if memory.get(name) in options else default)
    if chosen in options:
        memory[name] = chosen
    if chosen and not asked:
        st.query_params[name] = chosen
        st.session_state[CHANGED] = True
    return chosen


def shows(**ids: str | int | None) -> None:
    """Records what this page shows by default, so that the copied link names it."""
    st.session_state.setdefault(SHOWN, {}).update({name: str(value) for name, value in ids.items() if value is not None})


def whole_view() -> dict[str, str]:
    """The URL's parameters and the defaults that this page shows: what a copied link must name to open the same view
    later.
    """
    return {**st.session_state.get(SHOWN, {}), **params()}


def begin() -> None:
    """To be called at the beginning of each whole script run: forgets the defaults of the last run; the links are drawn
    anew with every choice.
    """
    st.session_state[SHOWN] = {}
    st.session_state.pop(CHANGED, None)


def redraw_if_chosen() -> None:
    """Draws the page anew if something was chosen after its links were drawn. To be called at the start of a fragment,
    and after `settle`.
    """
    if st.session_state.get(CHANGED):
        st.rerun()


def choose(**ids: str | int | None) -> None:
    """Chooses these ids, clears those that are None or empty, and clears what belonged to a replaced choice
    (`GOES_WITH`); the others stay.

    To be called in a callback, or before `st.rerun`.
    """
    wanted = params(**ids)
    memory = st.session_state.setdefault(SETTLED, {})
    for name in ids.keys() & memory.keys():
        memory.pop(name)
    if wanted != _present():
        st.query_params.from_dict(wanted)
        st.session_state[CHANGED] = True


def clear(*names: str) -> None:
    """Clears these choices."""
    choose(**dict.fromkeys(names))


def params(**ids: str | int | None) -> dict[str, str]:
    """The URL's parameters as they would be with these ids chosen. Raises ConfigError for a name that is not allowed in
    a URL.
    """
    wrong = [name for name in ids if not NAME.fullmatch(name)]
    if wrong:
        raise ConfigError("no choice can have this name", expected="lower-case letters, digits and _", found=", ".join(wrong))
    present = _present()
    asked = {name: "" if value is None else str(value) for name, value in ids.items()}
    merged = present | dict.fromkeys(_cleared_by(present, asked), "") | asked
    return {name: value for name, value in merged.items() if value}


def _cleared_by(present: Mapping[str, str], asked: Mapping[str, str]) -> set[str]:
    """The names that these choices clear, because they belong to a choice that is replaced."""
    changed = [name for name, value in asked.items() if value != present.get(name, "")]
    if "model" in changed and present.get("model"):
        changed += models.not_shared(present["model"], asked["model"], present.get("pair", ""))
    cleared = set(changed) - set(asked)
    for name in changed:  # two steps are enough: an alignment clears its round, and the round's choices
        cleared.update(GOES_WITH.get(name, ()))
        cleared.update(*(GOES_WITH.get(step, ()) for step in GOES_WITH.get(name, ())))
    return cleared


def _present() -> dict[str, str]:
    return {name: str(st.query_params[name]) for name in st.query_params}


# --- going ---------------------------------------------------------------------------------------------------------


def go(page: str, **ids: str | int | None) -> None:
    """Opens a page with these ids chosen. Ends this script run. Streamlit ignores this in a callback, so call it in the
    page's script.
    """
    spec = find_page(page)
    if spec is None:
        choose(**ids)
        st.rerun()
    else:
        st.switch_page(spec.script, query_params=params(**ids))


def link(label: str, page: str, *, icon: str | None = None, help: str | None = None, **ids: str | int | None) -> None:
    """A link to a page with these ids chosen; draws nothing where there is no such page. `label` is Markdown, so never
    a text of data or models.
    """
    spec = find_page(page)
    if spec is not None:
        st.page_link(spec.script, label=label, icon=icon or spec.icon, help=help, query_params=params(**ids))


def pick(
    label: str,
    options: Sequence[str],
    name: str,
    *,
    show: Callable[[str], str] = str,
    default: str = "",
    help: str | None = None,
    label_visibility: Any = "visible",
) -> str:
    """A select box for a name in the URL. Returns the chosen option, or `default` (else the first option) where no
    existing one is chosen.
    """
    fallback = default if default in options else next(iter(options), "")
    chosen = get(name) if get(name) in options else fallback

    def take(picked: str) -> None:
        choose(**{name: None if picked == fallback and name not in SHARED else picked})

    st.selectbox(
        label,
        options,
        format_func=show,
        help=help,
        label_visibility=label_visibility,
        **url_widget(f"pick {name}", chosen if options else None, take),
    )
    return chosen


def segments(label: str, options: Mapping[str, str], name: str, *, default: str = "", label_visibility: Any = "collapsed") -> str:
    """A row of choices for a name in the URL. `options` maps ids to their words. Returns the chosen id, or `default`
    (else the first).
    """
    fallback = default if default in options else next(iter(options))
    chosen = get(name) if get(name) in options else fallback

    def take(picked: str) -> None:
        choose(**{name: None if picked == fallback else picked})

    shown: Any = {"format_func": options.__getitem__, "label_visibility": label_visibility, **url_widget(f"segments {name}", chosen, take)}
    st.segmented_control(label, list(options), required=True, **shown)
    return chosen


def url_widget(name: str, value: Any, take: Callable[[Any], None]) -> dict[str, Any]:
    """`key` and `on_change` of a widget that shows `value`; a value that a person sets there is passed to `take`, in a
    callback.

    The widget's key holds a number that rises whenever `value` changes from elsewhere, so that Streamlit makes a new
    widget. A live progress asks the server every second, and the browser sends the values of all its widgets along,
    also those of widgets that were replaced or are no longer drawn. Such late reports would look like a person's
    changes. So a value reported by a replaced widget is ignored, and so is a value that the widget already had
    (Streamlit forgets a widget that is no longer drawn, and then takes any reported value for a change).
    """
    memory = f"widget {name}"
    number, _, shown = st.session_state.get(memory, "0 ").partition(" ")
    if shown != str(value):
        number = str(int(number) + 1)
    key = f"{name} {number}"
    st.session_state[memory] = f"{number} {value}"
    if key not in st.session_state:
        st.session_state[key] = value

    def changed() -> None:
        reported = st.session_state[key]
        if _is_new_value(memory, number, str(reported)):
            take(reported)

    return {"key": key, "on_change": changed}


def table_key(name: str, shown: str) -> str:
    """The key of a table in which the row `shown` is marked; a new key where the mark comes from elsewhere than the
    table (see `url_widget`).
    """
    memory = f"widget {name}"
    number, _, before = st.session_state.get(memory, "0 ").partition(" ")
    number = number if before == shown else str(int(number) + 1)
    st.session_state[memory] = f"{number} {shown}"
    return f"{name} {number}"


def table_shows(name: str, key: str, shown: str) -> bool:
    """For a table's callback: records that `shown` is marked now. False where the table was replaced or had this mark
    (see `url_widget`).
    """
    return _is_new_value(f"widget {name}", key.rpartition(" ")[2], shown)


def _is_new_value(memory: str, number: str, reported: str) -> bool:
    """Records the value that the widget of this number reports; False where the widget was replaced, or already had
    this value.
    """
    known = st.session_state.get(memory, "0 ")
    if known.partition(" ")[0] != number or known == f"{number} {reported}":
        return False
    st.session_state[memory] = f"{number} {reported}"
    return True


# --- what is too long for a URL --------------------------------------------------------------------------------------


def keep(kind: str, value: Any) -> str:
    """Saves a JSON value in the cache and returns its id, 16 hex digits of its content. Raises ConfigError where it is
    too large.
    """
    text = json.dumps(value, ensure_ascii=False)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_KEPT:
        raise ConfigError("this is too large to be saved", expected=f"at most {MAX_KEPT / 1e6:.0f} MB")
    value = json.loads(text.encode("utf-8", "replace"))  # UTF-8 can't hold half a surrogate pair
    name = sha256_of(value)[:16]
    path = _kept_path(kind, name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    return name


def kept(kind: str, name: str) -> Any | None:
    """The value that `keep` saved under this id; None where there is none, or where its file can't be read."""
    path = _kept_path(kind, name) if KEPT_ID.fullmatch(name) else None
    if path is None or not path.is_file():
        return None
    try:
        return read_json(path)
    except StoreError:
        return None


def _kept_path(kind: str, name: str) -> Path:
    return cache_root() / "workbench" / kind / f"{name}.json"

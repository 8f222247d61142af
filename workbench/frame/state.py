"""What the person has chosen, the same on all pages: ids, kept in the URL and nowhere else.

The URL is the one truth. A reload, the back button, a restarted server and another browser that opens a copied link all show the same view, and
nothing has to be kept in step. Every way to another page keeps it: all of them, the sidebar's too, are links of `link` or steps of `go`.

What a page shows where nothing is chosen, and what may be another one tomorrow (the newest reward model), is written into the URL (`settle`), so that
a newer one changes nothing for who looks already; where the page names it itself, the copied link names it (`shows`).

    shared by all pages, shown as chips that clear them
        model     id of a reward model (workbench.frame.models)          pair      id of a preference pair
        latent    number of a latent                               filter    id of a kept set of pairs (see `choose_pairs`)
    of one page, any other name, by convention `<page>_<what>` (latents_k, preferences_search); leave it out where it has its default

What is too long for a URL is kept as a small file in the cache, named by its content (`keep`, `kept`), and the URL holds its id.

    state.get("latent")                            "" where nothing is chosen
    state.settle("model", ids, newest)             what is chosen, else what this session showed last, else the newest; from now on in the URL
    state.shows(pair="p1")                         what this page shows without being asked; the copied link names it
    state.choose(latent="17", pair=None)           in a callback (on_click, on_change, on_select); one step of the browser's history
    state.link("Open", "latent", latent="17")      a link to a page, with something chosen
    state.go("latent", latent="17")                the same at once; ends this script run
    state.pick("Subset", options, "preferences_subset")   a select box bound to a name
    state.segments("View", {"a": "As it is"}, "response_view")   a row of choices bound to a name
    st.text_input("Search", **state.bound("search", state.get("latents_search"), take))   any other widget that shows what the URL says
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from core.errors import ConfigError
from core.runs.store import cache_root, write_json
from core.types import sha256_of
from workbench.frame import models
from workbench.frame.page_list import find_page

SHARED = ("model", "pair", "latent", "filter")
# What belongs to a choice, and goes when another is chosen: on its page, or on another, it would mean something else.
GOES_WITH: Mapping[str, tuple[str, ...]] = {
    "model": ("latents_k", "doctor_run", "doctor_made", "spaces_run", "spaces_made", "spaces_lasso"),
    "pair": ("response_edit", "response_off"),
    "latent": ("latent_texts",),
    "filter": ("spaces_lasso",),
    "align_open": ("align_round", "align_drop", "align_case", "align_reason", "align_sample", "shift_round", "shift_point"),
    "align_round": ("align_drop", "align_case", "align_sample"),
    "shift_round": ("shift_point",),
}
SETTLED, SHOWN, CHANGED = "settled choices", "shown without being asked", "chosen since the page was drawn"  # in the session
NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
KEPT_ID = re.compile(r"[0-9a-f]{16}")
MAX_ID = 500  # characters; what is longer is no id
MAX_KEPT = 4_000_000  # bytes of JSON


# --- choosing ------------------------------------------------------------------------------------------------------


def get(name: str, default: str = "") -> str:
    """The id chosen under this name. It comes from the URL, so from anybody: look it up before use, never make a path of it."""
    value = str(st.query_params.get(name, default))
    return value if len(value) <= MAX_ID else default


def settle(name: str, options: Sequence[str], default: str) -> str:
    """The id chosen under a name whose default may be another one tomorrow: the URL's, else what this session showed last, else `default`.

    The URL names it from then on. An id of the URL that is none of `options` comes back as it is: the page says so.
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
    """Notes what this page shows though nobody chose it: the copied link names it."""
    st.session_state.setdefault(SHOWN, {}).update({name: str(value) for name, value in ids.items() if value is not None})


def whole_view() -> dict[str, str]:
    """The URL's parameters with all that this page shows: what a copied link must name to show the same tomorrow."""
    return {**st.session_state.get(SHOWN, {}), **params()}


def begin() -> None:
    """At the beginning of each whole script run: nothing is shown yet, and the links that are drawn now know every choice."""
    st.session_state[SHOWN] = {}
    st.session_state.pop(CHANGED, None)


def redraw_if_chosen() -> None:
    """Draws the page anew where something was chosen since its links were drawn: at the beginning of a fragment, and after `settle` on a page."""
    if st.session_state.get(CHANGED):
        st.rerun()


def choose(**ids: str | int | None) -> None:
    """Chooses these ids and clears those that are None or empty, with what belonged to another choice (`GOES_WITH`); the others stay.

    For callbacks, or before `st.rerun`.
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
    """The URL's parameters as they would be with these ids chosen. Raises ConfigError for a name that can't stand in a URL."""
    wrong = [name for name in ids if not NAME.fullmatch(name)]
    if wrong:
        raise ConfigError("no choice can have this name", expected="lower-case letters, digits and _", found=", ".join(wrong))
    present = _present()
    asked = {name: "" if value is None else str(value) for name, value in ids.items()}
    merged = present | dict.fromkeys(_left_behind(present, asked), "") | asked
    return {name: value for name, value in merged.items() if value}


def _left_behind(present: Mapping[str, str], asked: Mapping[str, str]) -> set[str]:
    """What can't stay with these choices: what belongs to what they replace."""
    changed = [name for name, value in asked.items() if value != present.get(name, "")]
    if "model" in changed and present.get("model"):
        changed += models.not_shared(present["model"], asked["model"], present.get("pair", ""))
    gone = set(changed) - set(asked)
    for name in changed:  # a table of at most two steps: an alignment's round, and what belongs to that
        gone.update(GOES_WITH.get(name, ()))
        gone.update(*(GOES_WITH.get(step, ()) for step in GOES_WITH.get(name, ())))
    return gone


def _present() -> dict[str, str]:
    return {name: str(st.query_params[name]) for name in st.query_params}


# --- going ---------------------------------------------------------------------------------------------------------


def go(page: str, **ids: str | int | None) -> None:
    """Opens a page with these ids chosen. Ends this script run. Not in a callback: Streamlit ignores it there."""
    spec = find_page(page)
    if spec is None:
        choose(**ids)
        st.rerun()
    else:
        st.switch_page(spec.script, query_params=params(**ids))


def link(label: str, page: str, *, icon: str | None = None, help: str | None = None, **ids: str | int | None) -> None:
    """A link to a page with these ids chosen; nothing where there is no such page. `label` is Markdown: no text of data or models."""
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
    """A select box bound to a name: what is chosen, or `default` (else the first option) where nothing that exists is."""
    fallback = default if default in options else next(iter(options), "")
    chosen = get(name) if get(name) in options else fallback

    def take(picked: str) -> None:
        choose(**{name: None if picked == fallback and name not in SHARED else picked})

    st.selectbox(
        label, options, format_func=show, help=help, label_visibility=label_visibility, **bound(f"pick {name}", chosen if options else None, take)
    )
    return chosen


def segments(label: str, options: Mapping[str, str], name: str, *, default: str = "", label_visibility: Any = "collapsed") -> str:
    """A row of choices bound to a name: ids, and the words that show them. Returns what is chosen, or `default` (else the first)."""
    fallback = default if default in options else next(iter(options))
    chosen = get(name) if get(name) in options else fallback

    def take(picked: str) -> None:
        choose(**{name: None if picked == fallback else picked})

    shown: Any = {"format_func": options.__getitem__, "label_visibility": label_visibility, **bound(f"segments {name}", chosen, take)}
    st.segmented_control(label, list(options), required=True, **shown)
    return chosen


def bound(name: str, value: Any, take: Callable[[Any], None]) -> dict[str, Any]:
    """`key` and `on_change` of a widget that shows `value`; what a person sets there goes to `take`, in a callback.

    A widget whose value a script sets anew can be overruled by the browser, which still tells the old value when it asks next (a live progress asks
    every second), and that looks like a person's change. So a value that comes from elsewhere makes another widget: what is told of the old one is
    nobody's. Nor is a value that was known: Streamlit forgets a widget that is no longer drawn, so when the browser, which has not heard of that yet,
    still tells what it holds, every such widget seems to have changed.
    """
    memory = f"bound {name}"
    number, _, shown = st.session_state.get(memory, "0 ").partition(" ")
    if shown != str(value):
        number = str(int(number) + 1)
    key = f"{name} {number}"
    st.session_state[memory] = f"{number} {value}"
    if key not in st.session_state:
        st.session_state[key] = value

    def changed() -> None:
        said = st.session_state[key]
        if _news(memory, number, str(said)):
            take(said)

    return {"key": key, "on_change": changed}


def table_key(name: str, shown: str) -> str:
    """The key of a table in which `shown` is marked: another one where that comes from elsewhere than from the table (see `bound`)."""
    memory = f"bound {name}"
    number, _, before = st.session_state.get(memory, "0 ").partition(" ")
    number = number if before == shown else str(int(number) + 1)
    st.session_state[memory] = f"{number} {shown}"
    return f"{name} {number}"


def table_shows(name: str, key: str, shown: str) -> bool:
    """For a table's callback: notes that this is marked now. False where no person marked it: in a table that is gone, or known (see `bound`)."""
    return _news(f"bound {name}", key.rpartition(" ")[2], shown)


def _news(memory: str, number: str, said: str) -> bool:
    """Notes what the widget of this number tells; False where another has taken its place, or where it was known."""
    known = st.session_state.get(memory, "0 ")
    if known.partition(" ")[0] != number or known == f"{number} {said}":
        return False
    st.session_state[memory] = f"{number} {said}"
    return True


# --- what is too long for a URL --------------------------------------------------------------------------------------


def keep(kind: str, value: Any) -> str:
    """Keeps a JSON value in the cache and returns its id, 16 hex digits of its content. Raises ConfigError where it is too large."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_KEPT:
        raise ConfigError("this is too large to be kept", expected=f"at most {MAX_KEPT / 1e6:.0f} MB")
    value = json.loads(text.encode("utf-8", "replace"))  # half a surrogate pair can't be written
    name = sha256_of(value)[:16]
    path = _kept_path(kind, name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    return name


def kept(kind: str, name: str) -> Any | None:
    """What `keep` kept under this id; None where there is no such thing."""
    path = _kept_path(kind, name) if KEPT_ID.fullmatch(name) else None
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _kept_path(kind: str, name: str) -> Path:
    return cache_root() / "workbench" / kind / f"{name}.json"


# --- a set of pairs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PairFilter:
    """A set of pairs that every list of pairs is held to until it is cleared. `said` tells where it comes from."""

    pair_ids: frozenset[str]
    said: str

    def __len__(self) -> int:
        return len(self.pair_ids)

    def __contains__(self, pair_id: object) -> bool:
        return pair_id in self.pair_ids


def choose_pairs(pair_ids: Iterable[str], said: str, **more: str | int | None) -> None:
    """Holds every list of pairs to these, until cleared, and chooses `more` with them. No ids: clears it.

    `said`, a few words of ours (`lasso in Spaces`), stands on the chip.
    """
    ids = sorted(set(pair_ids))
    choose(filter=keep("filter", {"pairs": ids, "said": said}) if ids else None, **more)


def chosen_pairs() -> PairFilter | None:
    """The set of pairs that lists are held to; None for all."""
    found = kept("filter", get("filter"))
    if not isinstance(found, dict) or not isinstance(found.get("pairs"), list):
        return None
    return PairFilter(pair_ids=frozenset(map(str, found["pairs"])), said=str(found.get("said", "")))

"""What is chosen: kept in the URL, kept apart from files, never a path; and widgets that the browser can't overrule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages_helpers import add_model, open_page
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.testing.v1 import AppTest

from core.errors import ConfigError
from workbench.frame import models, state
from workbench.frame.pair_filter import choose_pairs, chosen_pairs


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    return tmp_path.resolve()


class Query(dict[str, Any]):
    """As much of st.query_params as state uses; `steps` are the steps of the browser's history."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, str]] = []

    def from_dict(self, values: dict[str, str]) -> None:
        self.clear()
        self.update(values)
        self.steps.append(dict(values))


@pytest.fixture
def query(monkeypatch: pytest.MonkeyPatch) -> Query:
    found = Query()
    monkeypatch.setattr(state.st, "query_params", found)
    monkeypatch.setattr(state.st, "session_state", {})
    return found


def test_choosing_is_one_step_and_leaves_the_rest(query: Query) -> None:
    state.choose(latent=17, pair="p1")
    state.choose(pair=None, model="m")
    state.choose(model="m")
    assert query.steps == [{"latent": "17", "pair": "p1"}, {"latent": "17", "model": "m"}]
    assert state.get("latent") == "17" and state.get("pair") == "" and state.get("pair", "none") == "none"
    state.clear("latent", "model")
    assert query.steps[-1] == {}


def test_what_belongs_to_a_choice_goes_with_it(query: Query) -> None:
    state.choose(pair="p1", response_edit="e", response_off="3", response_order="worst", align_open="a", align_round="2", shift_point="7")
    state.choose(align_open="b")
    assert query == {"pair": "p1", "response_edit": "e", "response_off": "3", "response_order": "worst", "align_open": "b"}
    assert state.params(pair="p1", latent=4) == {**query, "latent": "4"}  # the same pair again
    assert state.params(pair="p2") == {"pair": "p2", "response_order": "worst", "align_open": "b"}
    assert state.params(pair="p2", response_off="5")["response_off"] == "5"


def fitted_on(monkeypatch: pytest.MonkeyPatch, cache: Path, **texts: str) -> None:
    """Reward models, by id, as if they were fitted on these texts."""
    found = {name: models.find(name, cache) for name in texts}
    for name, model in found.items():
        assert model is not None
        method = {**model.config["method"], "data": {"texts": texts[name]}}
        monkeypatch.setitem(vars(model), "config", {**model.config, "method": method})
    monkeypatch.setattr(models, "find", lambda name, root=None: found.get(name))


def test_a_link_to_another_model_leaves_behind_what_is_not_of_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = add_model(cache, seed=0), add_model(cache, seed=1)
    fitted_on(monkeypatch, cache, **{first: "one", second: "other"})

    def script(second: str) -> None:
        import streamlit as st

        from workbench.frame import state

        st.json({"same": state.params(), "other": state.params(model=second), "named": state.params(model=second, pair="p9")})

    at = AppTest.from_function(script, args=(second,))
    chosen = {
        "model": first,
        "pair": "p1",
        "latent": "11",
        "filter": "f",
        "spaces_lasso": "l",
        "response_edit": "e",
        "latents_k": "8",
        "latents_side": "chosen",
    }
    for name, value in chosen.items():
        at.query_params[name] = value
    links = json.loads(at.run().json[0].value)
    assert links["same"] == chosen
    assert links["other"] == {"model": second, "latent": "11", "latents_side": "chosen"}  # the same SAE, other pairs
    assert links["named"] == {**links["other"], "pair": "p9"}


def test_a_session_goes_on_with_what_it_was_shown(query: Query) -> None:
    """The default may be another one tomorrow, so it is written into the URL once, and remembered where a URL lacks it."""
    assert state.settle("model", ["a"], "a") == "a" and query == {"model": "a"}
    del query["model"]  # the first page of the history had no choice yet
    assert state.settle("model", ["b", "a"], "b") == "a" and query == {"model": "a"}
    query["model"] = "b"
    assert state.settle("model", ["b", "a"], "b") == "b", "a URL that names one wins"
    query["model"] = "gone"
    assert state.settle("model", ["b", "a"], "b") == "gone" and query == {"model": "gone"}, "and is not silently answered by another"
    state.clear("model")
    assert state.settle("model", ["c", "b", "a"], "c") == "c", "cleared by a person: the newest"
    del query["model"]
    assert state.settle("model", ["d"], "d") == "d", "what is remembered is not in the cache any more"


def test_the_copied_link_names_what_is_shown_by_default(query: Query) -> None:
    state.begin()
    query["model"] = "a"
    state.shows(pair="worst", latent=None)
    assert state.whole_view() == {"model": "a", "pair": "worst"} and query == {"model": "a"}
    query["pair"] = "chosen"
    assert state.whole_view()["pair"] == "chosen"
    state.begin()
    del query["pair"]
    assert state.whole_view() == {"model": "a"}


def fragment_script() -> None:
    import streamlit as st

    from workbench.frame import state

    state.begin()

    @st.fragment
    def part() -> None:
        state.redraw_if_chosen()
        state.segments("Which", {"a": "First", "b": "Second"}, "runs_figure")

    part()
    st.text(str(state.params()))


def test_a_choice_in_a_fragment_redraws_the_links_outside_it() -> None:
    at = AppTest.from_function(fragment_script).run()
    at.button_group[0].select("b").run()
    assert at.text[0].value == "{'runs_figure': 'b'}"


def test_what_is_no_name_or_no_id(query: Query) -> None:
    with pytest.raises(ConfigError, match="no choice can have this name"):
        state.choose(**{"a b": "1"})
    query["pair"] = "x" * 501
    assert state.get("pair") == ""


def test_kept_by_content_and_never_by_a_path(query: Query, cache: Path) -> None:
    name = state.keep("draft", {"text": "half \ud800 a pair", "n": [1, 2]})
    assert name == state.keep("draft", {"n": [1, 2], "text": "half ? a pair"})
    assert state.kept("draft", name) == {"text": "half ? a pair", "n": [1, 2]}
    (cache / "secret.json").write_text("1")
    assert state.kept("draft", "../../secret") is None and state.kept("draft", "0" * 16) is None
    (cache / "workbench" / "draft" / f"{name}.json").write_text("{")
    assert state.kept("draft", name) is None
    with pytest.raises(ConfigError, match="too large"):
        state.keep("draft", "x" * 4_000_001)


def test_a_set_of_pairs_holds_until_it_is_cleared(query: Query) -> None:
    assert chosen_pairs() is None
    choose_pairs(["b", "a", "b"], "lasso in Spaces")
    held = chosen_pairs()
    assert held is not None and len(held) == 2 and "a" in held and "c" not in held and held.source == "lasso in Spaces"
    choose_pairs([], "nothing")
    assert "filter" not in query and chosen_pairs() is None


def test_a_value_from_elsewhere_makes_another_widget(query: Query) -> None:
    told: list[Any] = []
    first = state.url_widget("box", "a", told.append)
    assert state.st.session_state[first["key"]] == "a"
    state.st.session_state[first["key"]] = "b"  # the person chooses b
    first["on_change"]()
    assert told == ["b"]
    again = state.url_widget("box", "b", told.append)
    assert again["key"] == first["key"]
    other = state.url_widget("box", "c", told.append)  # the back button, say
    assert other["key"] != first["key"] and state.st.session_state[other["key"]] == "c"


def rows_script() -> None:
    import streamlit as st

    from workbench.frame import state

    st.text(state.segments("Which", {"a": "First", "b": "Second"}, "compare_kind"))


def test_a_row_of_choices_bound_to_a_name() -> None:
    at = AppTest.from_function(rows_script).run()
    assert at.text[0].value == "a"
    at.button_group[0].select("b").run()
    assert at.text[0].value == "b" and in_url(at) == {"compare_kind": "b"}
    at.query_params["compare_kind"] = "a"  # the back button
    assert at.run().text[0].value == "a" and at.button_group[0].value == "a"


def test_a_table_is_made_anew_only_where_somebody_else_marks(query: Query) -> None:
    first = state.table_key("runs", "")
    assert state.table_shows("runs", first, "r1")
    assert not state.table_shows("runs", first, "r1")  # known
    assert state.table_key("runs", "r1") == first
    second = state.table_key("runs", "r2")
    assert second != first and not state.table_shows("runs", first, "r1")  # told of a table that is gone
    assert state.table_key("runs", "r2") == second


def vanishing_script() -> None:
    import streamlit as st

    from workbench.frame import state

    if state.get("runs_open"):
        st.text("open")
    else:
        state.segments("Which", {"a": "First", "b": "Second"}, "compare_kind", default="b")
        st.button("Start", on_click=lambda: state.choose(runs_open="7", compare_kind=None))


def test_a_late_word_of_a_widget_that_is_gone_changes_nothing() -> None:
    """A browser that has not heard yet that the form is gone tells all it holds when a live progress asks: once that undid the start of a run."""
    at = AppTest.from_function(vanishing_script).run()
    at.button_group[0].select("a").run()
    late = at.button_group[0]._widget_state
    at.button[0].click().run()
    assert in_url(at) == {"runs_open": "7"} and at.text[0].value == "open"
    told = WidgetStates()
    told.widgets.append(late)
    at._run(told)
    assert in_url(at) == {"runs_open": "7"}


def in_url(at: AppTest) -> dict[str, str]:
    return {name: value[-1] if isinstance(value, list) else value for name, value in at.query_params.items()}


def script() -> None:
    import streamlit as st

    from workbench.frame import state

    st.text(state.pick("Kind", ["x", "y", "z"], "preferences_kind", default="y"))


def test_a_select_box_bound_to_a_name() -> None:
    at = AppTest.from_function(script).run()
    assert at.text[0].value == "y" and at.selectbox[0].value == "y"
    at.selectbox[0].select("z").run()
    assert at.text[0].value == "z" and in_url(at) == {"preferences_kind": "z"}
    at.selectbox[0].select("y").run()
    assert in_url(at) == {}
    at.query_params["preferences_kind"] = "nobody's"
    assert at.run().text[0].value == "y"


# --- chips ---------------------------------------------------------------------------------------------------------------


def chips(at: AppTest) -> list[str]:
    return [button.label for button in at.button if str(button.key).startswith("chip ")]


def test_chips_show_and_clear(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_model(cache)
    model = models.models(cache)[0]
    pair = model.pairs[3].pair_id
    at = open_page("compare", pair=pair, latent="12 <b>", filter="0" * 16)
    assert chips(at) == ["Pair 4", "Latent 12 b", "Unknown filter"]
    next(button for button in at.button if button.key == "chip latent").click().run()
    assert chips(at) == ["Pair 4", "Unknown filter"] and "latent" not in at.query_params
    at.query_params["pair"] = "nobody's"
    assert chips(at.run())[0] == "Pair not of this model"
    at.query_params["pair"] = "own-0123456789abcdef"
    assert chips(at.run())[0] == "Your own texts"


def test_another_model_takes_only_what_is_its_own(cache: Path) -> None:
    first, second = add_model(cache, seed=0), add_model(cache, seed=1)
    model = models.find(first, cache)
    assert model is not None
    at = open_page("compare", model=first, latent="11", pair=model.pairs[0].pair_id)
    box = next(box for box in at.selectbox if box.label == "Reward model")
    box.select(second).run()
    assert in_url(at)["model"] == second and in_url(at)["latent"] == "11"  # both read the same SAE


def test_ones_own_texts_are_any_models(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = add_model(cache, seed=0), add_model(cache, seed=1)
    fitted_on(monkeypatch, cache, **{first: "one", second: "two"})
    at = open_page("compare", model=first, pair="own-0123456789abcdef", filter="0" * 16)
    next(box for box in at.selectbox if box.label == "Reward model").select(second).run()
    assert in_url(at) == {"model": second, "pair": "own-0123456789abcdef", "compare_with": first}
    at = open_page("compare", model=first, pair="p1")
    next(box for box in at.selectbox if box.label == "Reward model").select(second).run()
    assert in_url(at) == {"model": second, "compare_with": first}

"""The Response page of a reward model that reads whole responses: words, sentences and latents of its texts, with and without the
language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages_helpers import HOSTILE, FakeLive, add_model, hostile_pairs, open_page, words
from streamlit.testing.v1 import AppTest

from core.explain.explanation import PairExplanation
from core.explain.from_folder import explain_pair
from core.explain.words import AT_RESPONSE_END
from core.types import PreferencePair, PreferencePairs
from workbench.frame.marked_text import Pane, line_data, pane_data, reported_point
from workbench.frame.models import FittedModel, find
from workbench.frame.text_points import Point, point_of, unit_at
from workbench.response import readings

LATENTS = [10, 11, 12, 13, 14]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    return tmp_path.resolve()


@pytest.fixture
def live(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLive:
    fake = FakeLive(cache, "off", position="response_mean")
    for module in ("response.values", "response.choice", "response.readings", "response.edit_chain", "frame.live_panel"):
        monkeypatch.setattr(f"workbench.{module}.live_model", lambda *_: fake)
    readings.forget()
    return fake


@pytest.fixture
def pairs() -> PreferencePairs:
    """Two held-out pairs of several sentences each."""
    texts = (("Sure. It is round, as seen from afar!\nAsk again.", "No. Never."), ("I think so. Look it up.", "Yes, yes. Trust me."))
    prompt = ({"role": "user", "content": "Is the Earth round?"},)
    return PreferencePairs(
        pairs=tuple(PreferencePair(pair_id=f"w{i}", prompt=prompt, chosen=chosen, rejected=rejected) for i, (chosen, rejected) in enumerate(texts))
    )


@pytest.fixture
def model(cache: Path, live: FakeLive, pairs: PreferencePairs) -> FittedModel:
    fitted = find(add_model(cache, pairs=pairs, position="response_mean"), cache)
    assert fitted is not None
    return fitted


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[Pane], dict[str, Any]]]:
    """What is drawn as marked text: the panes and how."""
    drawn: list[tuple[Sequence[Pane], dict[str, Any]]] = []
    monkeypatch.setattr("workbench.response.texts.show_marked", lambda panes, **how: drawn.append((panes, how)))
    return drawn


def pair_of(model: FittedModel, pair_id: str) -> PairExplanation:
    number = model.pair_number(pair_id)
    assert number is not None
    return explain_pair(model, number)


def no_error(at: AppTest) -> AppTest:
    assert not at.exception, [(error.value, error.stack_trace) for error in at.exception]
    assert not at.error, [error.value for error in at.error]
    return at


# --- kept pairs, without the language model ----------------------------------------------------------------------------


@pytest.mark.parametrize("shade", ["word", "sentence", "line"])
def test_both_texts_are_coloured_by_what_each_adds_to_the_margin(model: FittedModel, live: FakeLive, shown: list[Any], shade: str) -> None:
    pair = pair_of(model, "w0")
    no_error(open_page("response", pair="w0", response_view="margin", response_shade=shade))
    panes, how = shown[-1]
    assert [pane.name for pane in panes] == ["chosen", "rejected"] and how["unit"] == shade
    assert sum(sum(pane.values) for pane in panes) == pytest.approx(pair.margin.reward - pair.margin.baseline_reward, abs=1e-9)
    assert how["legend"] == ("lowers the margin", "raises the margin")
    assert how["scale"] == pytest.approx(max(abs(value) for pane in panes for value in pane.values)), "one scale for both"
    assert live.started == 0


def test_of_one_response_each_text_shows_its_own_reward(model: FittedModel, shown: list[Any]) -> None:
    pair = pair_of(model, "w0")
    no_error(open_page("response", pair="w0", response_view="chosen"))
    panes, how = shown[-1]
    for pane, side in zip(panes, (pair.chosen, pair.rejected), strict=True):
        assert sum(pane.values) == pytest.approx(side.response_part.sum(), abs=1e-9)
        assert f"reward {side.reward:.2f}" in pane.caption
    assert how["legend"] == ("lowers the reward", "raises the reward") and "explained here" in panes[0].caption


def test_a_latent_colours_every_word_by_its_share(model: FittedModel, shown: list[Any]) -> None:
    pair = pair_of(model, "w0")
    no_error(open_page("response", pair="w0", response_view="margin", response_shade="latent", latent="12"))
    panes, _ = shown[-1]
    share = sum(sum(pane.values) for pane in panes)
    assert share == pytest.approx(pair.margin.contribution[LATENTS.index(12)], abs=1e-9)


def test_activations_of_kept_tokens_need_no_model(model: FittedModel, live: FakeLive, shown: list[Any]) -> None:
    pair = pair_of(model, "w0")
    no_error(open_page("response", pair="w0", response_view="margin", response_shade="activation", latent="12"))
    panes, how = shown[-1]
    assert pair.words is not None
    for pane in panes:
        activations = pair.words.texts[pane.name].units("word").activations
        assert activations is not None and pane.values == pytest.approx(activations[:, LATENTS.index(12)].tolist())
    assert how["legend"] == ("", "more active") and live.started == 0


def test_the_chosen_word_shows_the_latents_that_read_it(model: FittedModel, shown: list[Any]) -> None:
    pair = pair_of(model, "w0")
    assert pair.words is not None
    units = pair.words.chosen.units("word")
    number = units.at(6)
    assert number is not None
    at = no_error(open_page("response", pair="w0", response_view="margin", response_word="chosen-6"))
    assert f"Word of the chosen response: **{units.values[number]:+.3f}** to the margin" in words(at)
    assert shown[-1][1]["chosen"] == Point(pane="chosen", at=6)
    panes, _ = shown[-1]
    readers = panes[0].readers[number]
    assert len(readers) == 4 and readers == units.readers(number, pair.margin.latent_ids, 4)
    at = no_error(open_page("response", pair="w0", response_view="margin", response_word="chosen-6", response_shade="sentence"))
    assert "Sentence of the chosen response" in words(at), "the place stays, and becomes the sentence that holds it"
    assert "Strongest sentence" in words(no_error(open_page("response", pair="w0", response_word="elsewhere-3x")))


def test_a_place_that_the_text_does_not_have_breaks_nothing(model: FittedModel) -> None:
    for word in ("chosen-99999", "edited-3", "chosen-", "<b>-1"):
        no_error(open_page("response", pair="w0", response_word=word))


def test_next_pair_leaves_the_word_behind(model: FittedModel) -> None:
    at = open_page("response", pair="w0", response_word="chosen-6")
    order = [button for button in at.button if button.key in ("response Next pair", "response Previous pair") and not button.disabled]
    order[0].click().run()
    assert "response_word" not in no_error(at).query_params


def test_the_running_reward_of_kept_tokens_needs_no_model(model: FittedModel, live: FakeLive) -> None:
    at = no_error(open_page("response", pair="w0", response_tab="running"))
    assert "an answer that stopped here would get this reward" in words(at)
    assert live.started == 0 and "Start the live model" not in [button.label for button in at.button]


# --- with the language model -------------------------------------------------------------------------------------------


def test_pairs_without_kept_tokens_need_the_model(model: FittedModel, live: FakeLive, shown: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    at = no_error(open_page("response", pair="p0", response_among="all"))
    assert "the tokens of this response are not kept" in words(at).lower() and not shown[-1][0][0].spans
    assert "Start the live model" in [button.label for button in at.button]
    pair = pair_of(model, "p0")
    v = {side.response: side.attribution.projection for side in (pair.chosen, pair.rejected)}
    monkeypatch.setattr(live, "vectors", lambda text: (v[text], v[text] * 0))
    live.name = "ready"
    no_error(open_page("response", pair="p0", response_among="all", response_view="margin"))
    panes, _ = shown[-1]
    assert sum(sum(pane.values) for pane in panes) == pytest.approx(pair.margin.reward - pair.margin.baseline_reward, abs=1e-9)


def test_ones_own_texts_are_split_too(model: FittedModel, live: FakeLive, shown: list[Any]) -> None:
    live.name = "ready"
    name = live.texts.keep_pair("Is the Earth flat?", "No, it is round.", "")
    at = no_error(open_page("response", pair=f"own-{name}"))
    (pane,), _ = shown[-1]
    assert [pane.text[start:stop] for start, stop in pane.spans] == ["No,", "it", "is", "round."]
    assert "Strongest sentence of the response" in words(at)


def test_an_open_edit_stands_beside_what_it_was_made_of(model: FittedModel, live: FakeLive, shown: list[Any]) -> None:
    live.name = "ready"
    at = open_page("response", pair="w0", response_view="rejected", response_tab="edit")
    at.text_area[0].set_value("No. It is round.")
    next(button for button in at.button if button.label == "Score again").click().run()
    no_error(at)
    assert [pane.name for pane in shown[-1][0]] == ["rejected", "edited"]
    no_error(open_page("response", pair="w0", response_edit=at.query_params["response_edit"], response_view="edited"))
    panes, how = shown[-1]
    assert panes[1].text == "No. It is round." and panes[1].spans and how["unit"] == "word"


def test_an_edit_shows_its_change_by_word(model: FittedModel, live: FakeLive, monkeypatch: pytest.MonkeyPatch) -> None:
    live.name, drawn = "ready", []
    monkeypatch.setattr("workbench.response.edit.show_marked", lambda panes, **how: drawn.append(panes))
    own = f"own-{live.texts.keep_pair('Is it?', 'No. Never.', '')}"
    at = open_page("response", pair=own, response_tab="edit")
    at.text_area[0].set_value("No. It is round.")
    next(button for button in at.button if button.label == "Score again").click().run()
    panes = drawn[-1]
    assert [pane.text for pane in panes] == ["No. Never.", "No. It is round."]
    rewards = model.parts.head.reward(np.stack([live.vectors(pane.text)[0] for pane in panes]))
    assert sum(sum(pane.values) for pane in panes) == pytest.approx(rewards[1] - rewards[0], abs=1e-9)
    assert "The change by word" in words(no_error(at))


def test_a_quote_of_the_sentence_is_a_click_away(model: FittedModel) -> None:
    pair = pair_of(model, "w0")
    at = no_error(open_page("response", pair="w0", response_view="margin"))
    quotes = [button for button in at.button if button.label.startswith("Quote ")]
    assert len(quotes) == len(pair.why.quotes) > 0 and pair.why.text in words(at)
    quotes[0].click().run()
    assert no_error(at).query_params["response_word"] == f"{pair.why.quotes[0].side}-{pair.why.quotes[0].start}"
    one = open_page("response", pair="w0", response_view="rejected")
    next(button for button in one.button if button.label == "Quote 1").click().run()
    assert no_error(one).query_params["response_word"].startswith("rejected-")


def test_deletions_stand_beside_where_the_reward_is_read(model: FittedModel, live: FakeLive, monkeypatch: pytest.MonkeyPatch) -> None:
    live.name = "ready"
    spans = [(0, 5), (6, 40), (40, 50)]

    def deletions(prompt: Any, response: str, asked: Any = None) -> list[dict[str, Any]]:
        return [{"start": a, "stop": b, "text": response[a:b], "effect": float(i)} for i, (a, b) in enumerate(spans)]

    monkeypatch.setattr(live, "deletions", deletions)
    at = no_error(open_page("response", pair="w0", response_view="chosen", response_tab="delete"))
    assert "Rank agreement with where the reward is read, over these 3 parts" in words(at)
    assert "of the chosen response adds" in words(at)


def test_at_response_end_the_page_gives_the_reason(cache: Path, live: FakeLive, shown: list[Any]) -> None:
    add_model(cache, seed=5)
    live.position = "response_end"
    at = no_error(open_page("response"))
    assert AT_RESPONSE_END in words(at) and "--position response_mean" in words(at)
    live.name = "ready"
    no_error(open_page("response", latent="10"))
    panes, how = shown[-1]
    assert how["unit"] == "token" and how["legend"] == ("", "more active") and all(value >= 0 for pane in panes for value in pane.values)


# --- texts that want to be more, and places ----------------------------------------------------------------------------


@pytest.mark.parametrize("shade", ["word", "sentence", "line", "latent"])
def test_hostile_texts_stay_text_when_marked(cache: Path, live: FakeLive, shade: str) -> None:
    bad = hostile_pairs()
    add_model(cache, n_prompts=12, pairs=bad, position="response_mean")
    at = no_error(open_page("response", pair="bad everything", response_shade=shade, response_word="chosen-0", response_among="all"))
    for element in [*at.markdown, *at.caption]:
        assert not any(text[:12] in str(element.value) for text in HOSTILE.values()), element.value


def test_lines_stay_lines_and_code_and_tables_are_told_apart() -> None:
    text = "One\n\n```py\nx = 1\n```\n| a | b |\nplain"
    lines = list(line_data(text, [(0, 3), (5, len(text) - 6), (len(text) - 5, len(text))]))
    assert ["".join(part for _, part in line["parts"]) for line in lines] == text.split("\n")
    assert [line["mono"] for line in lines] == [False, False, True, True, True, True, False]
    assert [unit for unit, _ in lines[3]["parts"]] == [1], "a unit over several lines keeps its number"


def test_a_pane_sends_texts_and_short_figures() -> None:
    pane = Pane(
        name="chosen",
        title="t",
        text="\u202eab <b>c</b>",
        spans=[(0, 3), (4, 12)],
        values=[1.23456789, float("nan")],
        readers=[[(3, 0.123456789)], []],
    )
    sent = pane_data(pane)
    assert sent["values"] == [1.2346, None] and sent["quotes"] == ["“\ufffdab”", "“<b>c</b>”"]
    assert sent["readers"] == [[[3, 0.12346]], []] and sent["starts"] == [0, 4]
    assert sent["lines"] == [{"parts": [[0, "\ufffdab"], [-1, " "], [1, "<b>c</b>"]], "mono": False}]
    long = Pane(name="x", title="t", text="ab " * 9, spans=[(i, i + 2) for i in range(0, 27, 3)], values=[0.0] * 9)
    assert len(pane_data(long, 10)["values"]) == 4


@pytest.mark.parametrize(
    ("value", "point"),
    [
        ({"pane": "a", "at": 4}, Point(pane="a", at=4)),
        ({"pane": "a", "at": 3}, None),
        ({"pane": "b", "at": 4}, None),
        ({"pane": "a", "at": True}, None),
        ({"at": 4}, None),
        ("nonsense", None),
    ],
)
def test_only_units_that_are_there_can_be_chosen(value: Any, point: Point | None) -> None:
    assert reported_point(value, [Pane(name="a", title="t", text="abc def", spans=[(0, 3), (4, 7)], values=[0.0, 0.0])]) == point


def test_points_are_names_in_links() -> None:
    assert point_of("chosen-12") == Point(pane="chosen", at=12) and str(Point(pane="chosen", at=12)) == "chosen-12"
    assert point_of("") is None and point_of("chosen-") is None and point_of("chosen-1²") is None and point_of("chosen-" + "9" * 10) is None
    assert [unit_at([(2, 4), (6, 8)], at) for at in (0, 2, 5, 6, 99)] == [None, 0, 0, 1, 1]

"""The Response and Compare pages in their four states, what they say against the engine, and texts that want to be more than text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages_helpers import HOSTILE, FakeLive, add_model, hostile_pairs, open_page, words
from streamlit.testing.v1 import AppTest

from core.explain.edits import edit_name
from core.explain.from_folder import builder_of, explain_pair, switchboard_of
from core.explain.switch import SwitchedOff
from core.explain.token_values import TokenView
from core.explain.waterfall import change_steps, waterfall_steps
from core.explain.word_rows import span_of, word_rows
from workbench.compare import values as compare
from workbench.frame import state
from workbench.frame.models import FittedModel, find
from workbench.response import cards, edit_chain, readings
from workbench.response import values as response


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    return tmp_path.resolve()


@pytest.fixture
def live(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLive:
    """Every page's live model; nobody has needed it yet."""
    found = FakeLive(cache, "off")
    for module in ("response.values", "response.choice", "response.readings", "response.edit_chain", "frame.live_panel"):
        monkeypatch.setattr(f"workbench.{module}.live_model", lambda *_: found)
    readings.forget()
    return found


@pytest.fixture
def model(cache: Path, live: FakeLive) -> str:
    return add_model(cache)


def kept_at(cache: Path, model: str) -> FittedModel:
    found = find(model, cache)
    assert found is not None
    return found


def switched_off(of: FittedModel, latents: Sequence[int], number: int, side: str) -> tuple[SwitchedOff, SwitchedOff]:
    """With these latents at their training means, and with none, for a side of a pair of the fit."""
    v = of.responses.projections[getattr(of.responses, f"{side}_rows")[number]].astype(np.float64)
    return switchboard_of(of).off(latents, v), switchboard_of(of).off((), v)


def no_error(at: AppTest) -> AppTest:
    assert not at.exception, [(error.value, error.stack_trace) for error in at.exception]
    assert not at.error, [error.value for error in at.error]
    return at


def metrics(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


# --- empty -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["response", "compare"])
def test_an_empty_cache_offers_the_demo(cache: Path, live: FakeLive, page: str) -> None:
    at = open_page(page)
    assert not at.exception
    assert not at.metric
    assert live.started == 0


def test_a_model_without_texts_asks_for_ones_own(cache: Path, live: FakeLive) -> None:
    add_model(cache, texts=False)
    at = no_error(open_page("response"))
    assert "keeps no pairs" in words(at)
    assert "Paste your own" in [button.label for button in at.button]


def test_a_pair_of_another_model_is_said_and_can_be_left(model: str) -> None:
    at = no_error(open_page("response", pair="nobody's"))
    assert "not of this reward model" in words(at)
    next(button for button in at.button if button.label == "Show the first of the list").click().run()
    assert "Reward" in metrics(no_error(at))


def test_a_search_that_finds_nothing(model: str) -> None:
    at = no_error(open_page("response", response_search="no such word"))
    assert "No pair matches" in words(at)


def test_compare_needs_two_models(model: str) -> None:
    at = no_error(open_page("compare"))
    assert "one reward model only" in words(at)


# --- ready: what is kept beside the model ----------------------------------------------------------------------------


def test_the_worst_response_is_explained_without_the_model(cache: Path, model: str, live: FakeLive) -> None:
    of = kept_at(cache, model)
    worst = int(of.ranked("worst")[0])
    pair = explain_pair(of, worst)
    lower = min((pair.chosen, pair.rejected), key=lambda side: side.reward)
    at = no_error(open_page("response"))
    assert lower.why.text in words(at) and pair.why.text not in words(at), "it opens on the response that is asked about"
    assert all(said in words(at) for said in lower.why.weaknesses)
    assert metrics(at)["Reward"] == f"{of.pair_rewards[worst].min():.2f}"
    assert live.started == 0  # nothing has been loaded to say so


def test_the_margin_is_first_where_pairs_are_ranked_by_it(cache: Path, model: str) -> None:
    of = kept_at(cache, model)
    worst = int(of.ranked("worst")[0])
    at = no_error(open_page("response", response_view="margin"))
    assert explain_pair(of, worst).why.text in words(at)
    shown = metrics(at)
    assert shown["Margin"] == f"{of.margins[worst]:+.2f}"
    assert shown["Chosen reward"] == f"{of.pair_rewards[worst, 0]:.2f}"
    assert shown["P(chosen wins)"] == f"{1 / (1 + np.exp(-1.25 * of.margins[worst])):.2f}"
    assert "Margin" in metrics(no_error(open_page("response", response_order="misranked")))


def test_on_the_margin_the_sections_say_which_side_they_act_on(cache: Path, model: str, live: FakeLive) -> None:
    of = kept_at(cache, model)
    pair = explain_pair(of, int(of.ranked("worst")[0]))
    at = no_error(open_page("response", response_view="margin", response_tab="edit", response_side="chosen"))
    assert at.text_area[0].label == "Change the chosen response" and at.text_area[0].value == pair.chosen.response
    assert "Acts on" in [group.label for group in at.get("button_group")]
    at = no_error(open_page("response", response_view="margin", response_tab="edit", response_side="rejected"))
    assert at.text_area[0].value == pair.rejected.response
    assert "Acts on the chosen response." in words(no_error(open_page("response", response_view="chosen", response_tab="off")))


def test_orders_and_search_are_the_engines(cache: Path, model: str) -> None:
    of = kept_at(cache, model)
    assert response.listed(of) == of.ranked("worst").tolist()
    assert response.listed(of, order="misranked") == of.ranked("misranked").tolist()
    assert response.listed(of, order="listed", held_out=False) == list(range(12))
    assert response.listed(of, order="listed", held_out=False, search="QUESTION 4") == [8, 9]
    assert response.listed(of, order="listed", held_out=False, only=frozenset({"p2", "p4"})) == [1, 2]
    at = no_error(open_page("response", response_order="misranked"))
    assert explain_pair(of, int(of.ranked("misranked")[0])).why.text in words(at)


def test_next_pair_goes_on_and_the_edit_stays_behind(cache: Path, model: str) -> None:
    of = kept_at(cache, model)
    order = [of.pair(int(number)).pair_id for number in of.ranked("worst")]
    at = open_page("response", response_off="10")
    next(button for button in at.button if button.key == "response Next pair").click().run()
    assert no_error(at).query_params["pair"] == order[1]
    assert "response_off" not in at.query_params
    next(button for button in at.button if button.key == "response Previous pair").click().run()
    assert at.query_params["pair"] == order[0]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_side_shows_its_two_parts(cache: Path, model: str, side: str) -> None:
    of = kept_at(cache, model)
    one = getattr(explain_pair(of, int(of.ranked("worst")[0])), side)
    at = no_error(open_page("response", response_view=side))
    shown = metrics(at)
    assert shown["Reward"] == f"{one.reward:.2f}"
    assert shown["Prompt part"] == f"{one.prompt_part.sum():+.2f}"
    assert shown["Response part"] == f"{one.response_part.sum():+.2f}"
    assert one.why.text in words(at)


def test_bars_sum_to_margin_and_to_reward_with_their_deviation(cache: Path, model: str) -> None:
    of = kept_at(cache, model)
    pair = explain_pair(of, 0)
    for steps in (waterfall_steps(pair, {}), waterfall_steps(pair.chosen, {})):
        start, *parts, end = steps
        assert start.value + sum(step.value for step in parts) == pytest.approx(end.value, abs=1e-9)
    one = pair.chosen
    assert one.n_known == 4
    prompt = waterfall_steps(one, {})[1]
    v = of.responses.projections[of.responses.rows_of_prompt(one.prompt)].astype(float)  # type: ignore[union-attr]
    whole = [[head.reward(v), head.reward(builder_of(of).mean[None])] for head in of.parts.heads]
    by_head = [float((ends - start).mean()) for ends, start in whole]  # contributions sum to the difference, in each head
    assert prompt.label.startswith("Prompt part")
    assert prompt.deviation == pytest.approx(np.std(by_head, ddof=1))


def test_collinear_latents_are_one_bar_and_the_rest_is_folded(cache: Path, model: str) -> None:
    of = kept_at(cache, model)
    margin, groups = explain_pair(of, 0).margin, builder_of(of).figures.groups
    assert sorted(map(len, groups)) != [1] * 5  # the fixture has collinear latents
    totals = sorted(((margin.contribution[list(group)].sum(), list(group)) for group in groups), key=lambda one: -abs(one[0]))
    found = change_steps(margin, groups, {}, most=2)
    assert [step.value for step in found[:2]] == pytest.approx([total for total, _ in totals[:2]])
    rest = [i for _, group in totals[2:] for i in group]
    assert found[2].label == f"{len(rest)} other latents"
    assert found[2].value == pytest.approx(margin.contribution[rest].sum())
    assert found[2].deviation == pytest.approx(margin.by_head[:, rest].sum(axis=1).std(ddof=1))
    (place,) = [at for at, (_, group) in enumerate(totals) if len(group) > 1]
    bar = change_steps(margin, groups, {})[place]
    assert "(+1)" in bar.label and "nearly collinear" in bar.note


def test_the_chosen_latent_shows_its_evidence(cache: Path, model: str) -> None:
    of = kept_at(cache, model)
    worst = explain_pair(of, int(of.ranked("worst")[0]))
    at = no_error(open_page("response", latent="12"))
    i = builder_of(of).latent_ids.tolist().index(12)
    assert f"{worst.chosen.attribution.contribution[i]:+.3f} ± {worst.chosen.attribution.deviation[i]:.3f}" in words(at)
    assert "does not read" in words(open_page("response", latent="999"))
    assert "does not read" in words(no_error(open_page("response", latent="1e9; drop")))


def test_switching_off_moves_what_the_engine_says(cache: Path, model: str, live: FakeLive) -> None:
    of = kept_at(cache, model)
    worst = int(of.ranked("worst")[0])
    pair = explain_pair(of, worst)
    side = "chosen" if pair.chosen.reward < pair.rejected.reward else "rejected"
    off, on = switched_off(of, [10, 13], worst, side)
    at = no_error(open_page("response", response_tab="off", response_off="10,13,999"))
    shown = {metric.label: metric for metric in at.metric}
    assert shown["Reward"].value == f"{off.reward:.3f}"
    assert shown["Reward"].delta == f"{off.reward - on.reward:+.3f}"  # type: ignore[operator]
    # Of its six prompts the fifth and sixth are test ones, with two pairs each; the folder made by hand does not say its seed.
    assert "shipped head, 4 test pairs" in words(at) and shown["Accuracy, shipped head (%)"].value == f"{100 * off.accuracy.accuracy:.1f}"
    assert f"{off.length.low:.2f} to {off.length.high:.2f}), n = {len(of.responses.held_out):,} responses" in words(at)
    assert sorted(at.multiselect[0].value) == ["10", "13"]
    at.multiselect[0].set_value(["11"]).run()
    assert no_error(at).query_params["response_off"] == "11"
    assert live.started == 0


def test_similar_responses_and_trust_are_there(cache: Path, model: str) -> None:
    at = no_error(open_page("response", response_tab="similar"))
    assert "most similar projections" in words(at)
    at = no_error(open_page("response", response_tab="trust"))
    assert "Rank correlation of the heads" in words(at)
    assert "residual" in words(at)


# --- the live model: off, starting, failed, ready --------------------------------------------------------------------


def test_nothing_loads_until_somebody_asks(model: str, live: FakeLive) -> None:
    at = no_error(open_page("response"))
    assert live.started == 0
    next(button for button in at.button if button.label == "Start the live model").click().run()
    assert live.started >= 1
    assert live.name == "starting"


def test_starting_shows_how_far_it_is(model: str, live: FakeLive) -> None:
    live.name = "starting"
    at = no_error(open_page("response", response_tab="delete"))
    progress = [element.proto for element in at.main if element.type == "progress"]
    assert [(bar.value, bar.text) for bar in progress] == [(40, "Loading weights, about 3 s more")]


def test_a_failed_model_says_so_and_can_be_tried_again(model: str, live: FakeLive) -> None:
    live.name = "failed"
    at = open_page("response")
    assert "the language model is gone" in words(at)
    assert "fetch it again" in words(at)
    assert "Reward" in metrics(at)  # what is kept shows all the same
    next(button for button in at.button if button.label == "Try again").click().run()
    assert live.name == "starting"


def test_words_are_shown_once_it_is_up(model: str, live: FakeLive) -> None:
    live.name = "ready"
    at = no_error(open_page("response", latent="12", response_tab="running"))
    assert "12" in [box.value for box in at.selectbox if box.label == "Mark the words of"]
    assert "the head was trained on the last token" in words(at)


def test_marked_words_can_be_read_and_taken_away_as_a_table(model: str, live: FakeLive, monkeypatch: pytest.MonkeyPatch) -> None:
    live.name, made = "ready", []
    monkeypatch.setattr("workbench.response.texts.rows_behind", lambda make, **more: made.append(make()))
    no_error(open_page("response", latent="10"))
    (rows,) = made
    assert {row["response"] for row in rows} == {"chosen", "rejected"}
    first = [row for row in rows if row["response"] == "chosen"]
    assert [row["value"] for row in first] == [float(i % 3) for i in range(len(first))]
    assert all(row["token"] for row in rows)


def test_evidence_says_how_sure_it_is() -> None:
    row = {"separation": 0.1, "low": 0.05, "high": 0.15, "held_out": 0.08, "detection_auroc": 0.83, "stability": 0.9}
    said = cards.evidence_words(row, (0.71, 0.92, 376))
    assert "+10.0 (+5.0 to +15.0) points" in said and "detection AUROC 0.83 (0.71 to 0.92), n = 376 responses" in said
    assert "detection AUROC 0.83, selected" in cards.evidence_words(row)


def test_words_are_shaded_by_the_gradient_when_asked(model: str, live: FakeLive, monkeypatch: pytest.MonkeyPatch) -> None:
    live.name, shown = "ready", []
    monkeypatch.setattr("workbench.response.texts.show_marked", lambda panes, **more: shown.append((panes, more["unit"])))
    no_error(open_page("response"))
    assert "gradient" not in [what for what, _ in live.asked], "it costs seconds, so nobody computes it unasked"
    at = no_error(open_page("response", response_shade="gradient"))
    panes, unit = shown[-1]
    assert unit == "token" and len(panes) == 2
    assert all(pane.values == [2.5 + i for i in range(len(pane.spans))] for pane in panes), "the response's own tokens, from the third on"
    assert all("".join(pane.text[a:b] for a, b in pane.spans) == pane.text for pane in panes)
    assert "how sensitive the reward is" in words(at) and "does not say what a word adds" in words(at)


def test_the_latents_that_the_sentence_names_are_one_click_away(cache: Path, model: str) -> None:
    of = kept_at(cache, model)
    named = explain_pair(of, int(of.ranked("worst")[0])).why.named
    assert named
    at = no_error(open_page("response", response_view="margin"))
    next(button for button in at.button if button.key == f"response named {named[0].latent_id}").click().run()
    assert no_error(at).query_params["latent"] == str(named[0].latent_id)
    assert "contribution" in words(at).lower()


def test_ones_own_single_answer_is_explained(cache: Path, model: str, live: FakeLive) -> None:
    live.name = "ready"
    name = live.texts.keep_pair("Is the Earth flat?", "No, it is round.", "")
    at = no_error(open_page("response", pair=f"own-{name}"))
    v, _ = live.vectors("No, it is round.")
    of = kept_at(cache, model)
    assert metrics(at)["Reward"] == f"{of.parts.head.reward(v[None])[0]:.2f}"
    assert metrics(at)["Prompt part"] == "–"  # no other response to this prompt is known


def test_ones_own_pair_has_a_margin(cache: Path, model: str, live: FakeLive) -> None:
    live.name = "ready"
    name = live.texts.keep_pair("Is the Earth flat?", "No.", "Yes, quite.")
    at = no_error(open_page("response", pair=f"own-{name}"))
    rewards = kept_at(cache, model).parts.head.reward(np.stack([live.vectors("No.")[0], live.vectors("Yes, quite.")[0]]))
    assert metrics(at)["Margin"] == f"{rewards[0] - rewards[1]:+.2f}"


def test_pasting_ones_own_begins_with_what_is_looked_at(model: str, live: FakeLive) -> None:
    """Sending the form is tested in a browser: AppTest closes a dialog at the next run."""
    live.name = "ready"
    at = open_page("response", pair=f"own-{live.texts.keep_pair('Why?', 'Because.', '')}")
    at.button(key="response own").click().run()
    assert [at.text_area(key=f"own {name}").value for name in ("prompt", "chosen", "rejected")] == ["Why?", "Because.", ""]


def test_an_edit_is_scored_beside_its_parent_and_can_be_linked(cache: Path, model: str, live: FakeLive) -> None:
    live.name = "ready"
    of = kept_at(cache, model)
    pair = explain_pair(of, int(of.ranked("worst")[0]))
    lower = pair.chosen if pair.chosen.reward < pair.rejected.reward else pair.rejected
    at = open_page("response", response_tab="edit")
    at.text_area[0].set_value("A better answer.")
    next(button for button in at.button if button.label == "Score again").click().run()
    root = edit_name("", lower.prompt, lower.response)
    assert no_error(at).query_params["response_edit"] == edit_name(root, lower.prompt, "A better answer.")
    after, before = (float(of.parts.head.reward(live.vectors(text)[0][None])[0]) for text in ("A better answer.", lower.response))
    shown = {metric.label: metric for metric in at.metric}
    assert shown["New reward"].value == f"{after:.3f}"
    assert shown["New reward"].delta == f"{after - before:+.3f}"
    linked = no_error(open_page("response", **{name: str(value) for name, value in at.query_params.items()}))
    assert metrics(linked) == metrics(at)


def test_an_edit_is_kept_as_the_model_reads_it(cache: Path, model: str, live: FakeLive) -> None:
    live.name = "ready"
    at = open_page("response", response_tab="edit")
    before = at.text_area[0].value
    at.text_area[0].set_value(f" {before}\n")
    next(button for button in at.button if button.label == "Score again").click().run()
    assert "Nothing was changed." in words(no_error(at)) and "response_edit" not in at.query_params
    at.text_area[0].set_value("A better answer. \n")
    next(button for button in at.button if button.label == "Score again").click().run()
    chain = live.texts.chain(no_error(at).query_params["response_edit"])
    assert [text["response"] for text in chain] == [before, "A better answer."]


def test_an_edit_of_an_edit_keeps_the_chain_and_the_change_sums(cache: Path, model: str, live: FakeLive) -> None:
    live.name = "ready"
    found = find(model, cache)
    assert found is not None
    subject = response.kept_subject(found, 0)
    first = edit_chain.keep_edit(found, subject.item("chosen"), "One.", "")
    second = edit_chain.keep_edit(found, (subject.prompt, "One."), "Two.", first)
    steps = edit_chain.edit_steps(found, second)
    assert [step.response for step in steps] == [subject.texts["chosen"], "One.", "Two."]
    assert edit_chain.edited_side(found, subject, second) == "chosen"
    assert edit_chain.edited_side(found, response.kept_subject(found, 3), second) == ""  # another pair's edit is not shown
    change = edit_chain.change_bars(found, steps[0].explanation, steps[2].explanation)
    assert sum(step.value for step in change) == pytest.approx(steps[2].explanation.reward - steps[0].explanation.reward)
    at = no_error(open_page("response", pair=subject.pair_id, response_edit=second, response_tab="edit"))
    assert [box.value for box in at.selectbox if box.label == "Compared with"] == [first]


def test_a_text_kept_with_outer_white_space_can_be_a_parent(cache: Path, model: str, live: FakeLive) -> None:
    """Such texts were kept by earlier versions; the model reads them without the white space, and they keep their ids."""
    live.name = "ready"
    found = find(model, cache)
    assert found is not None
    subject = response.kept_subject(found, 0)
    prompt, text = list(subject.prompt), f"{subject.texts['chosen']} \n"
    root = edit_name("", prompt, text)
    live.texts.keep_edit(root, prompt, text, None)
    last = edit_chain.keep_edit(found, (subject.prompt, text), "Another.", root)
    steps = edit_chain.edit_steps(found, last)
    assert [step.edit_id for step in steps] == [root, last]
    assert steps[1].edit.change is not None and steps[1].edit.n_computed < steps[1].edit.n_tokens


def test_an_error_of_the_model_is_shown_with_its_way_out(model: str, live: FakeLive) -> None:
    live.name = "ready"
    name = live.texts.keep_pair("Why?", "It is unreadable.", "")
    at = open_page("response", pair=f"own-{name}", response_tab="delete")
    assert "leave it out" in words(at)
    assert not at.exception


def test_marked_words_become_characters() -> None:
    tokens = ["<s>", "q", " One", " two", ".", " Three", "\n"]
    kinds = ["first", "prompt", *["response"] * 4, "template"]
    view = TokenView(texts=tuple(tokens), kinds=tuple(kinds), latent_ids=np.arange(0), activation=None, running=np.zeros(len(tokens)))
    words = word_rows(view, None)
    assert span_of(words, "One two. Three", 0, 1) == (0, 7)
    assert span_of(words, "One two. Three", 3, 3) == (8, 14)
    assert span_of(words, "Quite another text", 0, 1) is None


# --- texts that want to be more --------------------------------------------------------------------------------------


@pytest.fixture
def hostile(cache: Path, live: FakeLive) -> Iterator[list[Any]]:
    live.name = "ready"
    pairs = hostile_pairs()
    add_model(cache, n_prompts=12, pairs=pairs)
    yield list(pairs)


@pytest.mark.parametrize("tab", ["running", "edit", "delete", "off", "similar", "trust"])
def test_hostile_texts_stay_text(hostile: list[Any], tab: str) -> None:
    """All of them in one pair; the browser's test looks at what becomes of them on the screen."""
    at = no_error(open_page("response", pair=hostile[-1].pair_id, response_tab=tab, response_among="all"))
    read = [*at.markdown, *at.caption, *at.error, *at.warning, *at.info]
    labels = [str(getattr(element, "label", "")) for kind in (at.button, at.metric, at.selectbox, at.text_area, at.multiselect) for element in kind]
    for said in (*(str(element.value) for element in read), *labels):
        assert not any(text[:12] in said for text in HOSTILE.values()), said
    shown = "\n".join(str(element.value) for element in at.text)
    assert all(text.replace("\x00", "\ufffd")[:12] in shown for name, text in HOSTILE.items() if name != "rtl")
    assert not any(sign in shown for sign in "\x00\u202e\u202c")  # what a browser would obey is shown as a sign


# --- compare ---------------------------------------------------------------------------------------------------------


def test_two_models_are_compared_on_what_both_hold_out(cache: Path, model: str) -> None:
    other = add_model(cache, seed=1)
    first, second = find(model, cache), find(other, cache)
    assert first is not None and second is not None
    found = compare.compare(first, second)
    a, b = first, second
    numbers = a.ranked()
    assert found.numbers.tolist() == numbers.tolist()
    assert np.array_equal(found.margins, np.stack([a.margins[numbers], b.margins[numbers]]))
    right = found.margins > 0
    assert found.accuracies[1].accuracy == pytest.approx(right[1].mean())
    assert found.agreement.accuracy == pytest.approx((right[0] == right[1]).mean())
    assert sorted(found.rows_of("first")) == np.flatnonzero(right[0] & ~right[1]).tolist()
    assert found.shared_latents == (5, 5, 5)
    gaps = np.abs(np.diff(1 / (1 + np.exp(-1.25 * found.margins)), axis=0))[0]
    assert found.rows_of("any")[0] == int(np.argmax(gaps))
    at = no_error(open_page("compare", model=model, compare_with=other))
    sizes = {metric.label: str(metric.delta) for metric in at.metric}
    assert all(f"n = {len(numbers)}" in sizes[name] for name in ("Same preference (%)", "Correlation of margins"))
    table = next(str(one.value) for one in at.markdown if str(one.value).startswith("| Accuracy on"))
    heads, means, shipped = (line.strip("| ").split(" | ") for line in (table.splitlines()[i] for i in (0, 2, 3)))
    assert heads == [f"Accuracy on {len(numbers)} test pairs", "First", "Second", "Second less first"]
    by_head = []  # accuracy of each head, from its own rewards
    for of in (a, b):
        rewards = [head.reward(of.responses.projections) for head in of.parts.heads]
        of_head = [float((one[of.responses.chosen_rows] > one[of.responses.rejected_rows])[numbers].mean()) for one in rewards]
        by_head.append(of_head)
    assert [cell.partition(" (")[0] for cell in means[1:3]] == [f"**{100 * np.mean(of_head):.1f} %**" for of_head in by_head]
    assert [cell.partition(" (")[0] for cell in shipped[1:]] == [
        f"**{100 * right[0].mean():.1f} %**",
        f"**{100 * right[1].mean():.1f} %**",
        f"**{100 * (right[1].mean() - right[0].mean()):+.1f} points**",
    ]
    assert means[3].startswith(f"**{100 * (np.mean(by_head[1]) - np.mean(by_head[0])):+.1f} points** (")
    assert means[0] == "Means over heads" and all(cell.endswith("), mean of 3 heads") for cell in means[1:3])
    assert shipped[0] == "Shipped heads" and all("), shipped head" in cell for cell in shipped[1:3])
    assert len(compare.compare(first, second, held_out=False)) == 12


def test_models_of_other_pairs_share_nothing(cache: Path, model: str) -> None:
    other = add_model(cache, seed=2, pairs=hostile_pairs())
    at = no_error(open_page("compare", model=model, compare_with=other))
    assert "There are no such pairs" in words(at)
    assert "They share 3 others" in words(at)  # in training, where nothing is held out


def test_hostile_texts_stay_text_in_compare(hostile: list[Any], cache: Path) -> None:
    other = add_model(cache, seed=3, n_prompts=12, pairs=hostile_pairs())
    at = no_error(open_page("compare", model=other, compare_pairs="all"))
    read = " ".join(str(element.value) for element in [*at.markdown, *at.caption])
    assert "<script>" not in read and "onerror" not in read


def test_compare_keeps_to_the_selected_pairs(cache: Path, model: str) -> None:
    other = add_model(cache, seed=1)
    first, second = find(model, cache), find(other, cache)
    assert first is not None and second is not None
    ids = compare.compare(first, second).pair_ids
    kept = state.keep("filter", {"pairs": [ids[1], ids[3], "nobody's"], "said": "lasso in Spaces"})
    at = no_error(open_page("compare", model=model, compare_with=other, filter=kept))
    few = compare.compare(first, second).only({ids[1], ids[3]})
    assert few.pair_ids == [ids[1], ids[3]] and len(at.dataframe[0].value) == 2
    assert "| Accuracy on 2 test pairs |" in words(at) and f"| **{100 * float((few.margins[1] > 0).mean()):.1f} %** (" in words(at)
    at = no_error(open_page("compare", model=model, compare_with=other, filter=state.keep("filter", {"pairs": ["x"], "said": "s"})))
    assert "None of the selected pairs" in words(at) and not at.dataframe


def test_compare_reads_the_chosen_pair(cache: Path, model: str) -> None:
    other = add_model(cache, seed=1)
    found = find(model, cache)
    assert found is not None
    pair = found.pairs[int(found.responses.held_out_pairs[2])]
    at = no_error(open_page("compare", model=model, compare_with=other, pair=pair.pair_id))
    assert pair.chosen in words(at) and pair.rejected in words(at)
    assert pair.chosen not in words(no_error(open_page("compare", model=model, compare_with=other)))

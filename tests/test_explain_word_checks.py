"""What stands beside the split over words: agreement with deleting sentences, stability over refits on resampled prompts, and both in the doctor."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from explain_helpers import question, real_head, tiny_explainer
from reward_helpers import make_hidden, make_pairs

from core.config import DoctorConfig, HeadConfig, SelectionConfig
from core.doctor.checks_words import word_causes, words_stable
from core.doctor.doctor import doctor_report
from core.doctor.word_figures import NOT_MEASURED, word_trust_rows
from core.explain.explainer import Explainer
from core.explain.text_units import unit_spans
from core.explain.word_causes import DeletionAgreement, deletion_agreement, spearman
from core.explain.word_stability import ReadResponse, Refit, held_out_responses, refit_on_resamples, resampled, word_stability
from core.reward.folder import ModelFolder
from core.runs.store import Store, cache_root
from core.statistics.estimates import Estimate

WHOLE = "response_mean"


def folder() -> ModelFolder:
    path = tiny_explainer(WHOLE).model.folder
    assert path is not None
    return ModelFolder(path, Store(cache_root() / "explain"))


# --- stability -----------------------------------------------------------------------------------------------------------


def responses_of(draw: np.random.Generator, n: int = 20, d: int = 12) -> list[ReadResponse]:
    lengths = draw.integers(5, 30, size=n)
    return [
        ReadResponse(states=draw.normal(size=(t, d)).astype(np.float32), word_of_token=np.arange(t) // 2, n_words=(t + 1) // 2, prompt=i // 2)
        for i, t in enumerate(lengths.tolist())
    ]


def refit_of(seed: int, d: int = 12, k: int = 6) -> Refit:
    draw = np.random.default_rng(seed)
    return Refit(head=real_head(draw, k=k, hidden=32), directions=draw.normal(size=(k, d)).astype(np.float32), baseline=draw.normal(size=k))


def test_equal_refits_agree_wholly_and_unrelated_ones_not_at_all() -> None:
    responses = responses_of(np.random.default_rng(0), 60)
    same = word_stability([refit_of(1)] * 3, responses)
    assert same is not None and same.value == pytest.approx(1) and same.n == 60 and same.n_prompts == 30
    apart = word_stability([refit_of(seed) for seed in range(8)], responses)
    assert apart is not None and abs(apart.value) < 0.15 and apart.low < apart.value < apart.high


def test_short_responses_and_single_refits_say_nothing() -> None:
    short = [replace(response, n_words=2, word_of_token=np.minimum(response.word_of_token, 1)) for response in responses_of(np.random.default_rng(1))]
    assert word_stability([refit_of(1), refit_of(2)], short) is None
    assert word_stability([refit_of(1)], responses_of(np.random.default_rng(1))) is None


def test_a_resample_draws_whole_prompts_and_counts_each_draw() -> None:
    pairs = make_pairs([1, 2, 3] * 10, ["train", "train", "validation", "train", "test"] * 6)
    n = len(pairs)
    hidden = make_hidden(np.zeros((2 * n, 3), dtype=np.float32), np.arange(n), np.arange(n, 2 * n))
    states, drawn = resampled(hidden, pairs, 3)
    train = drawn.rows_of("train")
    assert len(drawn.rows_of("validation")) == len(pairs.rows_of("validation")) and not len(drawn.rows_of("test"))
    n_prompts = len(np.unique(pairs.prompt_groups()[pairs.rows_of("train")]))
    assert len(np.unique(drawn.prompt_groups()[train])) == n_prompts == len({pair.prompt_id for pair in drawn.take(train)})
    assert len({pair.pair_id for pair in drawn.take(train)}) < len(train), "some are drawn again"
    for place, row in enumerate(states.pair_rows.tolist()):
        assert states.chosen_rows[place] == hidden.chosen_rows[row] and drawn[place].pair_id == pairs[row].pair_id


def test_refits_of_a_fit_and_its_held_out_words() -> None:
    model = folder()
    hidden, known = model.hidden_states(), model.responses_with_texts
    responses = held_out_responses(hidden, known, 40)
    assert 2 < len(responses) <= 40
    assert known.pairs is not None
    texts = {text for pair in known.held_out_pairs for text in (known.pairs[int(pair)].chosen, known.pairs[int(pair)].rejected)}
    assert {response.n_words for response in responses} <= {len(unit_spans(text, "word")) for text in texts}
    selection, head = SelectionConfig(k=8, selection="effect"), HeadConfig(hidden=32, epochs=5)
    refits = refit_on_resamples(hidden, model.pairs, tiny_explainer(WHOLE).model.sae, selection, head, refits=3)
    measured = word_stability(refits, responses)
    assert len(refits) == 3 and measured is not None and -1 <= measured.low <= measured.value <= measured.high <= 1
    again = word_stability(refit_on_resamples(hidden, model.pairs, tiny_explainer(WHOLE).model.sae, selection, head, refits=3), responses)
    assert again == measured


# --- causes --------------------------------------------------------------------------------------------------------------


class Deleting(Explainer):
    """An explainer whose sentences carry given values and whose deletions take given effects."""

    def __init__(self, carried: dict[str, list[float]], effects: dict[str, list[float]]) -> None:
        self.carried, self.effects, self.builder = carried, effects, self  # type: ignore[assignment]

    def deletions(self, prompt: Any, response: str, spans: Any) -> Any:  # type: ignore[override]
        return [SimpleNamespace(effect=effect) for effect in self.effects[response]]

    def features(self, prompt: Any, response: str) -> str:  # type: ignore[override]
        return response

    def response(self, features: str, labels: Any) -> Any:
        return SimpleNamespace(words=SimpleNamespace(over=lambda spans: SimpleNamespace(values=np.array(self.carried[features]))))


def test_agreement_is_over_responses_of_three_sentences() -> None:
    draw = np.random.default_rng(2)
    texts = [f"{i}a. {i}b. {i}c. {i}d." for i in range(40)] + ["One. Two."]
    carried = {text: draw.normal(size=4).tolist() for text in texts}
    items = [(question(text), text) for text in texts]
    groups = np.arange(len(texts))
    measured = deletion_agreement(Deleting(carried, carried), items, groups)
    assert measured is not None
    assert measured.agreement.value == pytest.approx(1) and measured.agreement.n == 40 and measured.n_asked == 41
    assert abs(measured.random.value) < 0.3 and measured.lead.low > 0.5 and measured.strongest.value == 1 and measured.by_chance == 0.25
    against = deletion_agreement(Deleting(carried, {text: [-x for x in values] for text, values in carried.items()}), items, groups)
    assert against is not None and against.agreement.value == pytest.approx(-1) and against.lead.high < 0
    assert deletion_agreement(Deleting(carried, carried), items[-1:], groups[-1:]) is None


def test_spearman() -> None:
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 15])) == pytest.approx(0.5)
    assert spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) == 0


# --- checks --------------------------------------------------------------------------------------------------------------


def estimate(value: float, reach: float = 0.1) -> Estimate:
    return Estimate(value=value, low=value - reach, high=value + reach, n=50, n_prompts=25)


@pytest.mark.parametrize(("value", "status"), [(0.6, "pass"), (0.05, "warn"), (-0.5, "fail")])
def test_bounds_of_the_causal_check(value: float, status: str) -> None:
    shared = {"agreement": estimate(value), "random": estimate(0.0), "lead": estimate(value), "strongest": estimate(0.5)}
    check = word_causes(DeletionAgreement(**shared, by_chance=0.2, n_asked=80))
    assert check.status == status and (check.remedy == "") == (status == "pass")
    assert "in random order +0.00 (-0.10 to +0.10)" in check.figure and "of 80 looked at" in check.figure
    assert word_causes(None).status == "warn"


@pytest.mark.parametrize(("value", "status"), [(0.45, "pass"), (0.2, "warn"), (0.05, "fail")])
def test_bounds_of_the_words_stability(value: float, status: str) -> None:
    check = words_stable(estimate(value), refits=10, n_pairs=560, n_all=560)
    assert check.status == status and "over 10 refits" in check.figure
    assert words_stable(None, refits=10, n_pairs=0, n_all=5).status == "warn"


def test_the_doctor_has_both_where_whole_responses_are_read() -> None:
    assert [row.value for row in word_trust_rows(folder())] == [NOT_MEASURED, NOT_MEASURED]
    report, _ = doctor_report(folder(), DoctorConfig(swaps=3, responses=8, dialogues=10, deleted=30, refits=2))
    checks = {check.name: check for check in report.checks}
    assert checks["words' stability"].value is not None and checks["words' stability"].details["refits"] == 2
    assert "words against deletions" in checks
    beside = word_trust_rows(folder())
    assert format(checks["words' stability"].value, ".2f") in beside[1].value and beside[0].value != NOT_MEASURED
    at_end = tiny_explainer().model.folder
    assert at_end is not None and word_trust_rows(ModelFolder(at_end, Store(cache_root() / "explain"))) == []

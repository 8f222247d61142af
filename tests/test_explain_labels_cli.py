"""`sparserm labels` on the tiny preset: real pages, a stand-in for the sentence model, a language model on the loopback address."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explain_helpers import tiny_explainer
from labels_helpers import serving

from core.cli import label_work
from core.cli.main import main
from core.latents import label_scores
from core.latents.label_book import LabelBook
from core.latents.labels import Label, Score

EGG, ANSWER = "How do I boil an egg?", "Take your time. Ask someone who has done it before, thanks"
PAGES = ("--corpus", "pairs", "--tokens", "2000", "--snippets", "100")
Run = tuple[int, str, str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tiny fit stays where it is; labels and pages go to a cache of this file's own, labels anew for each test."""
    tiny_explainer()
    monkeypatch.setenv("SPARSERM_CACHE", str(cache))
    yield
    for path in (cache / "labels").rglob("*.jsonl"):
        path.unlink()


@pytest.fixture
def labels(cli: Any) -> Any:
    return lambda command, *words: cli("labels", command, tiny_explainer().model.folder, *words)


def book() -> LabelBook:
    return LabelBook(tiny_explainer().parts.sae or {})


def selected() -> list[int]:
    ids = tiny_explainer().parts.latent_ids
    assert ids is not None
    return [int(latent) for latent in ids]


def test_a_persons_label_is_set_listed_used_and_taken_away(labels: Any, capsys: pytest.CaptureFixture[str]) -> None:
    latent = selected()[0]
    assert labels("set", latent, "kind\n\x1b[31mendings", "--author", "Ann") == (0, f"latent {latent}: kind [31mendings, from person\n", "")
    code, out, _ = labels("list")
    assert code == 0 and f"1 of {len(selected())} latents have a label" in out and "kind [31mendings" in out and "Ann" in out and "\x1b" not in out
    found = labels("list", "--json").value["latents"]
    assert [row["latent"] for row in found] == selected() and [len(row["labels"]) for row in found] == [1] + [0] * (len(selected()) - 1)
    assert main(["explain", str(tiny_explainer().model.folder), "--prompt", EGG, "--response", ANSWER, "--latent", str(latent)]) == 0
    assert '"kind [31mendings" is active on' in capsys.readouterr().out
    assert labels("set", latent, "better")[1] == f"latent {latent}: better, from person (was: kind [31mendings, from person)\n"
    assert labels("set", latent, "")[1] == f"latent {latent}: no label (was: better, from person)\n"
    assert labels("set", latent, "")[1] == f"latent {latent} had no label of yours\n"


def test_automatic_labels_are_scored_exported_and_imported(labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = labels("auto", "--json", *PAGES).value
    assert made["labels"] == len(book().of("automatic")) > 0 and sum(made.values()) == len(selected())

    class Stub:
        name = "stub"

        def __call__(self, texts: Any) -> np.ndarray:
            found = np.array([[1.0, len(text) % 7 / 7] for text in texts], dtype=np.float32)
            normed: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
            return normed

    monkeypatch.setattr(label_scores, "SentenceModel", Stub)
    scored = labels("score", "--json", *PAGES).value
    assert scored["scored"] + scored["too_few_texts"] == made["labels"] and scored["sources"]["automatic"]["n"] == scored["scored"] > 0
    assert sum(label.score is not None for label in book().of("automatic")) == scored["scored"]
    code, out, _ = labels("score", *PAGES)
    ours = scored["sources"]["automatic"]
    assert code == 0 and "automatic" in out and f"{ours['median']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}]" in out
    assert ours["low"] <= ours["median"] <= ours["high"]

    target = tmp_path / "labels.jsonl"
    assert labels("export", "--out", target)[1] == f"labels: {made['labels']}, file: {target}\n"
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert rows == sorted(rows, key=lambda row: int(row["index"])) and any(row["scores"] for row in rows)
    before = book().labels()
    book().path("automatic").unlink()
    assert book().labels() == {}
    assert labels("import", target, "--json").value["added"] == {"automatic": made["labels"]}
    assert book().labels() == before
    assert "exists already" in labels("export", "--out", target)[2]


def test_a_language_model_labels_some_latents(labels: Any) -> None:
    def answers(_: Any) -> tuple[int, bytes, dict[str, str]]:
        return (
            200,
            json.dumps({"choices": [{"message": {"content": "kind words"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}).encode(),
            {},
        )

    some = selected()[:2]
    words = [word for latent in some for word in ("--latent", latent)]
    with serving(answers) as server:
        code, out, err = labels("ask", *words, "--endpoint", server.url, "--endpoint-model", "m", *PAGES)
        assert code == 0 and out == "labels: 2, already: 0, empty: 0, tokens sent: 18, tokens received: 4\n", err
    assert {latent: label.text for latent, label in book().labels().items()} == dict.fromkeys(some, "kind words")


def test_rows_that_cant_be_used_are_told(labels: Any, tmp_path: Path) -> None:
    path = tmp_path / "explanations.jsonl"
    rows = [
        {"modelId": "tiny", "layer": "1-x", "index": str(i), "description": "x", "typeName": "t", "explanationModelName": "w"}
        for i in (3, 5, 999_999)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = labels("import", path)
    assert code == 6 and "nothing tells whether these labels are of this SAE" in err and "say so: --neuronpedia tiny/1-x" in err
    code, out, err = labels("import", path, "--neuronpedia", "tiny/1-x")
    assert code == 0 and out == "2 neuronpedia new\n" and "row 3 of explanations.jsonl is left out: index: 999999, but this SAE has" in err
    code, out, err = labels("import", path, "--neuronpedia", "m/2-y")
    assert code == 6 and "these labels are of another SAE: they differ in model, layer" in err and "found: of m/2-y" in err
    with book().path("person").open("w") as handle:
        handle.write("{\n")
    assert "person.jsonl is left out: row: not JSON" in labels("list")[2]
    assert labels("list", "--all", "--json").value["latents"][1]["latent"] == 5


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("set", 10**6, "x"), 2, "this SAE has no such latent"),
        (("list", "--latent", 10**6), 2, "this SAE has no such latent"),
        (("import",), 2, "which of Neuronpedia's sources this SAE is, is not known"),
        (("import", "--neuronpedia", "../up/x"), 2, "--neuronpedia names no source"),
        (("import", "--neuronpedia", "a/.."), 2, "--neuronpedia names no source"),
        (("import", "/nowhere/at/all"), 3, "there are no labels at /nowhere/at/all"),
        (("ask",), 2, "no endpoint is configured"),
        (("export", "--out", "x.jsonl", "--source", "hearsay"), 2, "there is no such source of labels"),
    ],
)
def test_impossible_wishes(labels: Any, words: tuple[Any, ...], code: int, said: str) -> None:
    found = labels(*words)
    assert found[0] == code and said in found[2] and found[1] == ""


def test_a_median_of_scores_has_its_interval_over_labels() -> None:
    """Against a bootstrap by plain loops."""
    values = [0.5, 0.55, 0.6, 0.62, 0.7, 0.9]
    scores = [(Label(index=i, text="x", source="automatic"), Score(value=value, method="embedding")) for i, value in enumerate(values)]
    rng = random.Random(1)
    drawn = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(4000))
    found = label_work.scores_by_source(scores)["automatic"]
    assert (found["n"], found["median"], found["poor"]) == (6, pytest.approx(0.61), 4)
    assert found["low"] == pytest.approx(drawn[100], abs=0.03) and found["high"] == pytest.approx(drawn[3900], abs=0.03)
    assert set(label_work.scores_by_source(scores)) == {"automatic"}

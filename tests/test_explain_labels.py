"""Labels of latents: rows in Neuronpedia's format, the book that keeps several sources side by side, and what is said against a label."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from explain_helpers import hand_made
from labels_helpers import OTHER, SAE, SHA

from core.errors import ConfigError, MissingError
from core.explain.explainer import Explainer
from core.latents.label_book import LabelBook, book_of_sae
from core.latents.labels import BY_HAND, EMBEDDING, LONGEST, SOURCES, TOKENS, Label, Score, label_from_row, one_line, with_scores
from core.reward.model import SparseRM


@pytest.fixture
def book(tmp_path: Path) -> LabelBook:
    return LabelBook(SAE, tmp_path, shipped=tmp_path / "shipped.jsonl")


def label(index: int, text: str, source: str = "automatic", **more: Any) -> Label:
    return Label(index=index, text=text, source=source, **more)


def row(index: object = "3", description: object = "thanks", **more: Any) -> dict[str, Any]:
    return {
        "modelId": "my-model",
        "layer": "7-my-sae-1",
        "index": index,
        "description": description,
        "typeName": "t",
        "explanationModelName": "w",
        **more,
    }


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows), encoding="utf-8")


# --- rows ----------------------------------------------------------------------------------------------------------


def test_a_label_survives_the_way_to_disk_and_back() -> None:
    scores = (
        Score(value=0.8, low=0.7, high=0.9, n=40, method=EMBEDDING, model="mini", windows="all", date="2026-01-02T03:04:05Z"),
        Score(value=0.9, method="blind reading"),
    )
    whole = label(12, "polite “closing” 你好", "endpoint", method="m", model="w", author="a", date="2026-01-01", scores=scores, score=0.8)
    assert label_from_row(json.loads(json.dumps(whole.to_row()))) == whole
    found = whole.to_row()
    assert found["index"] == "12" and found["scores"][1] == {
        "explanationScoreTypeName": "blind reading",
        "explanationScoreModelName": "",
        "value": 0.9,
    }


def test_neuronpedias_own_row_is_read() -> None:
    exported = {
        "id": "clx1", "modelId": "gemma-2-2b", "layer": "13-gemmascope-res-16k", "index": "1000", "authorId": "u", "embedding": "[0.1,0.2]",
        "description": " references to dogs", "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini", "umap_x": None,
    }  # fmt: skip
    found = label_from_row(exported, "neuronpedia")
    assert found == label(1000, "references to dogs", "neuronpedia", method="oai_token-act-pair", model="gpt-4o-mini")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (row(index="x"), "index: no latent's number but 'x'"),
        (row(index=-1), "index: no latent's number but -1"),
        (row(index=True), "index: no latent's number but True"),
        (row(index="٣"), "index: no latent's number"),
        (row(index=None), "index: no latent's number but None"),
        (row(index="9" * 5000), "index: no latent's number"),
        (row(description=" \n "), "description: no text"),
        (row(description=7), "description: no text but 7"),
        (row(scores={"value": 1}), "scores: no list of objects"),
        (row(scores=[{"value": 1.5}]), "scores: no number from 0 to 1 but 1.5"),
        (row(scores=[{"value": float("nan")}]), "scores: no number from 0 to 1"),
    ],
)
def test_what_is_no_label_is_refused_by_field(broken: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        label_from_row(broken, "neuronpedia")
    assert str(error.value).startswith(said)


def test_a_label_is_one_harmless_line() -> None:
    assert one_line(" a\n\tb\x1b[31m\x07 c\u202e d\u2066\ud800 e\u2028f\x85 ") == "a b[31m c d e f"
    assert one_line("👩\u200d🚀") == "👩\u200d🚀"
    assert one_line("x" * 10_000) == "x" * (LONGEST - 1) + "…" and one_line("x" * LONGEST) == "x" * LONGEST
    assert one_line(None) == one_line(7) == ""


def test_what_is_said_against_a_label_depends_on_who_wrote_it() -> None:
    for source in SOURCES:
        said = label(1, "x", source, model="gpt", score=0.6).weakness
        assert said.endswith("scores 0.60 only")
        assert said.startswith(f"was written automatically ({source}, gpt) and") is (source not in BY_HAND)


def test_the_score_is_the_newest_by_embedding() -> None:
    one = label(1, "x", scores=(Score(value=0.6, method=EMBEDDING, model="old", date="2025"), Score(value=0.99, method="fuzz")))
    both = with_scores(one, [Score(value=0.7, method=EMBEDDING, model="new", date="2026")])
    assert both.score == 0.7 and len(both.scores) == 3
    assert with_scores(both, [Score(value=0.8, method=EMBEDDING, model="new", date="2027")]).score == 0.8
    assert with_scores(both, [Score(value=0.9, method=TOKENS, date="2020")]).score == 0.9, "what saw the tokens goes before"
    assert with_scores(label(1, "x"), [Score(value=0.99, method="fuzz")]).score is None


# --- the book ------------------------------------------------------------------------------------------------------


def test_the_persons_own_wins_then_source_by_source(book: LabelBook) -> None:
    for source in reversed(SOURCES):
        if source == "shipped":
            write(book.shipped, [row(3, "from shipped", saeSha256=SHA)])
        elif source == "person":
            book.set(3, "from person", "Ann")
        else:
            book.add(source, [label(3, f"from {source}", source)])
        assert book.labels()[3].text == f"from {source}"
    assert [found.source for found in book.all(3)] == list(SOURCES) == ["person", "shipped", "written", "neuronpedia", "endpoint", "automatic"]
    assert book.all(3)[0].author == "Ann" and book.all(3)[0].date[:2] == "20"
    assert book.set(3, "  ") is None
    assert book.labels()[3].text == "from shipped" and book.all(4) == () and 4 not in book.labels()


def test_within_a_source_the_newest_wins_and_all_stay(book: LabelBook) -> None:
    book.add("endpoint", [label(3, "old", "endpoint", model="a", date="2025"), label(3, "new", "endpoint", model="b", date="2026")])
    assert [found.text for found in book.all(3)] == ["new", "old"]


def test_adding_says_what_is_new_replaced_and_there_already(book: LabelBook) -> None:
    first = [label(i, f"text {i}", model="a") for i in range(5)]
    assert book.add("automatic", first).__dict__ == {"new": 5, "replaced": 0, "same": 0}
    again = [first[0], replace(first[1], text="better"), replace(first[2], model="b"), label(9, "ninth", model="a")]
    assert book.add("automatic", again).__dict__ == {"new": 2, "replaced": 1, "same": 1}
    assert sorted((found.index, found.text) for found in book.of("automatic")) == [
        (0, "text 0"), (1, "better"), (2, "text 2"), (2, "text 2"), (3, "text 3"), (4, "text 4"), (9, "ninth"),
    ]  # fmt: skip


def test_rows_on_disk_are_neuronpedias(book: LabelBook) -> None:
    book.set(7, "seven")
    (found,) = [json.loads(line) for line in (book.folder / "person.jsonl").read_text().splitlines()]
    assert book.folder == book.root / "labels" / SHA[:16]
    assert {name: found[name] for name in ("modelId", "layer", "index", "description", "saeSha256")} == {
        "modelId": "my-model", "layer": "7-my-sae-1", "index": "7", "description": "seven", "saeSha256": SHA,
    }  # fmt: skip


def test_shipped_labels_of_another_sae_are_ignored(book: LabelBook) -> None:
    write(book.shipped, [row(1, "theirs", saeSha256=OTHER), row(2, "ours", saeSha256=SHA), row(3, "whose?")])
    assert {latent: found.text for latent, found in book.labels().items()} == {2: "ours"}
    ((path, refused),) = book.refused
    assert path == book.shipped and (refused.row, refused.field) == (3, "saeSha256")
    with pytest.raises(ConfigError, match="shipped labels are read only"):
        book.add("shipped", [label(1, "x")])


def test_lines_that_cant_be_used_are_told_and_stay(book: LabelBook) -> None:
    bad = ["{", '{"index": "1", "index": "2", "description": "twice"}', "[1]", json.dumps(row("5000")), json.dumps(row(1, "x", saeSha256=OTHER))]
    write(book.folder / "person.jsonl", [*bad[:2], row(1, "kept"), "", *bad[2:]])
    with (book.folder / "person.jsonl").open("ab") as handle:
        handle.write(b"\xff\xfe")
    book.set(2, "two")
    assert {latent: found.text for latent, found in book.labels().items()} == {1: "kept", 2: "two"}
    said = [(refused.field, refused.reason) for _, refused in book.refused]
    assert [field for field, _ in said] == ["row", "row", "row", "index", "saeSha256", "row"]
    assert said[1][1] == "one key is given twice" and "no such latent, 5000" in said[3][1] and said[5][1] == "bytes that are not UTF-8"
    held = (book.folder / "person.jsonl").read_bytes()
    assert all(line.encode() in held for line in bad) and b"\xff\xfe\n" in held


def test_many_writers_lose_nothing_and_no_reader_sees_a_part(book: LabelBook) -> None:
    seen: list[int] = []
    done = threading.Event()

    def write_some(start: int) -> None:
        own = LabelBook(SAE, book.root, shipped=book.shipped)
        for latent in range(start, start + 12):
            own.set(latent, f"label {latent}")

    def look() -> None:
        own = LabelBook(SAE, book.root, shipped=book.shipped)
        while not done.is_set():
            assert own.refused == ()
            seen.append(len(own.labels()))

    writers = [threading.Thread(target=write_some, args=(100 * i,)) for i in range(4)]
    reader = threading.Thread(target=look)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert len(book.labels()) == 48 and seen == sorted(seen) and all(book.labels()[latent].text == f"label {latent}" for latent in (0, 111, 311))


def test_a_write_that_fails_leaves_the_old_labels(book: LabelBook, monkeypatch: pytest.MonkeyPatch) -> None:
    book.set(1, "one")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            book.set(1, "two")
    assert book.labels()[1].text == "one" and [path.name for path in book.folder.iterdir()] == ["person.jsonl"]


def test_a_book_sees_what_others_write(book: LabelBook) -> None:
    assert book.labels() == {}
    LabelBook(SAE, book.root, shipped=book.shipped).set(1, "one")
    assert book.labels()[1].text == "one"
    LabelBook({**SAE, "sha256": OTHER}, book.root, shipped=book.shipped).set(1, "another SAE's")
    assert book.labels()[1].text == "one"


def test_a_score_belongs_to_a_text(book: LabelBook) -> None:
    write(book.shipped, [row(2, "shipped", saeSha256=SHA)])
    book.set(1, "one")
    score = Score(value=0.9, low=0.8, high=0.95, n=30, method=EMBEDDING, model="mini", date="2026")
    book.add_scores([(book.labels()[1], score), (book.labels()[2], replace(score, value=0.6))])
    assert book.labels()[1].score == 0.9 and book.labels()[2].score == 0.6 and book.labels()[1].scores == (score,)
    book.set(1, "something else")
    assert book.labels()[1].score is None
    book.set(1, "one")
    assert book.labels()[1].score == 0.9
    book.add_scores([(book.labels()[1], replace(score, value=0.7))])
    assert book.labels()[1].score == 0.7 and book.labels()[2].score == 0.6
    exported = book.rows(book.of("shipped"))
    assert exported[0]["scores"][0]["value"] == 0.6 and exported[0]["saeSha256"] == SHA


@pytest.mark.parametrize("latent", [-1, 4096])
def test_only_latents_of_the_sae_have_labels(book: LabelBook, latent: int) -> None:
    with pytest.raises(ConfigError, match=r"no such latent\n  expected: 0 to 4095"):
        book.set(latent, "x")
    with pytest.raises(ConfigError, match="no such latent"):
        book.add("automatic", [label(latent, "x")])
    with pytest.raises(ConfigError, match="no such source"):
        book.add("hearsay", [label(1, "x")])


def test_an_sae_without_a_hash_has_no_labels() -> None:
    assert book_of_sae(None) is None and book_of_sae({"name": "x"}) is None
    with pytest.raises(MissingError, match="no hash of its weights"):
        LabelBook({"name": "x"})


# --- where labels are used -----------------------------------------------------------------------------------------


def test_an_explainer_names_latents_by_the_book_of_its_sae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    parts, _ = hand_made(sae=SAE)
    explainer = Explainer(SparseRM.from_parts(parts))
    assert explainer.labels == {}
    LabelBook(SAE).set(12, "thanks")
    assert explainer.labels[12].text == "thanks", "labels are seen as they stand, not as they stood"
    assert Explainer(SparseRM.from_parts(parts), labels={}).labels == {}
    assert Explainer(SparseRM.from_parts(replace(parts, sae=None))).labels == {}

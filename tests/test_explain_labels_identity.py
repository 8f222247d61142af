"""Labels of another SAE: refused with both sides named, or taken when asked for and then marked wherever they stand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from explain_helpers import tiny_explainer
from labels_helpers import OTHER, SAE, SHA

from core.config import SAEConfig
from core.errors import MismatchError
from core.explain.latent_names import name_in_sentence
from core.fit.defaults import DEMO_SAE
from core.latents.label_book import SHIPPED_FILE, LabelBook
from core.latents.label_identity import DIFFERENT, SAME, UNPROVEN, UNSTATED, stated_sae, verdict
from core.latents.label_sources import Imported, import_labels
from core.latents.labels import NOT_STATED, label_from_row
from core.sae.autoencoder import load_sae

GEMMA = {
    **SAE, "release": "gemma-scope-2b-pt-res-canonical", "sae_id": "layer_13/width_16k/canonical", "d_sae": 16384, "layer": 13,
    "model_name": "gemma-2-2b",
}  # fmt: skip
UNKNOWN = {**GEMMA, "release": None, "sae_id": None, "name": "my copy"}  # the same SAE, loaded from a folder
LAYER_20 = {**GEMMA, "sae_id": "layer_20/width_65k/canonical", "d_sae": 65536, "layer": 20}
BEFORE_8 = {**UNKNOWN, "model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_pre", "layer": 7, "d_sae": 24576}
OURS = {"modelId": "my-model", "layer": "7-my-sae-1"}  # as `labels export` calls SAE
# The rows of ../shared/cases/foreign_labels.jsonl.
THEIRS = {"modelId": "gemma-2-2b", "layer": "10-gemmascope-res-16k", "explanationModelName": "gpt-4o-mini"}
FOREIGN = [
    {**THEIRS, "index": "12", "description": "words about kindness"},
    {**THEIRS, "index": "16000", "description": "the last latent"},
]


def book_of(sae: dict[str, Any], tmp_path: Path) -> LabelBook:
    return LabelBook(sae, tmp_path / "cache", shipped=tmp_path / "none.jsonl")


def file_of(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(book: LabelBook, tmp_path: Path, *rows: dict[str, Any], **options: Any) -> Imported:
    return import_labels(book, file_of(tmp_path, *rows), **options)


def row(index: int = 3, **facts: Any) -> dict[str, Any]:
    return {"index": str(index), "description": "thanks", **facts}


@pytest.mark.parametrize(
    ("sae", "facts", "expected"),
    [
        (SAE, {"saeSha256": SHA, "modelId": "other", "layer": "3-x"}, (SAME, "")),
        (SAE, {"saeSha256": OTHER, **OURS}, (DIFFERENT, "the weights' hash")),
        (SAE, OURS, (SAME, "")),
        (GEMMA, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-res-16k"}, (SAME, "")),
        (GEMMA, {"neuronpedia_id": "gemma-2-2b/13-gemmascope-res-16k"}, (SAME, "")),
        (GEMMA, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-res-65k"}, (DIFFERENT, "source")),
        (GEMMA, {"modelId": "gemma-2-9b", "layer": "13-gemmascope-res-16k"}, (DIFFERENT, "model")),
        (UNKNOWN, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-res-16k"}, (UNPROVEN, "")),
        (UNKNOWN, {"modelId": "google/Gemma-2-2B", "source_id": "13-gemmascope-res-16k"}, (UNPROVEN, "")),
        (UNKNOWN, {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k"}, (DIFFERENT, "layer")),
        (UNKNOWN, {"modelId": "gemma-2-2b-it", "layer": "13-gemmascope-res-16k"}, (DIFFERENT, "model")),
        (UNKNOWN, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-mlp-16k"}, (DIFFERENT, "kind of activations")),
        (UNKNOWN, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-att-16k"}, (DIFFERENT, "kind of activations")),
        (UNKNOWN, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-transcoder-16k"}, (DIFFERENT, "kind of activations")),
        (UNKNOWN, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-res-65k"}, (DIFFERENT, "width")),
        (UNKNOWN, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-res-1m"}, (DIFFERENT, "width")),
        ({**UNKNOWN, "d_sae": 2**20}, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-res-1m"}, (UNPROVEN, "")),
        ({**UNKNOWN, "d_sae": 65536}, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-res-65k"}, (UNPROVEN, "")),
        ({**UNKNOWN, "d_sae": 131072}, {"modelId": "gemma-2-2b", "layer": "13-gemmascope-res-131k"}, (UNPROVEN, "")),
        (UNKNOWN, {"modelId": "gpt2-small", "layer": "8-res-jb"}, (DIFFERENT, "model, layer")),
        ({**UNKNOWN, "model_name": "gpt2", "layer": 8, "d_sae": 24576}, {"modelId": "gpt2-small", "layer": "8-res-jb"}, (UNPROVEN, "")),
        ({**UNKNOWN, "model_name": None, "layer": None}, {"modelId": "gpt2-small", "layer": "8-res-jb"}, (UNPROVEN, "")),
        (SAE, {"layer": 9}, (DIFFERENT, "layer")),
        (SAE, {"layer": 7}, (UNSTATED, "")),
        (SAE, {"modelId": "my_model"}, (UNSTATED, "")),
        (SAE, {"modelId": "your-model"}, (DIFFERENT, "model")),
        (SAE, {"d_sae": 4097}, (DIFFERENT, "width")),
        (SAE, {"sae": {"d_sae": 16384, "sae_id": "layer_13/width_16k/canonical"}}, (DIFFERENT, "width")),
        (GEMMA, {"sae_id": "layer_13/width_16k/average_l0_84"}, (DIFFERENT, "SAE id")),
        (GEMMA, {"sae_id": "layer_13/width_16k/canonical"}, (SAME, "")),
        (SAE, {"sae": "their-sae"}, (UNPROVEN, "")),
        # The same names spelled in other ways are the same SAE, of any SAE of a release that Neuronpedia keeps.
        (GEMMA, {"modelId": "google/gemma-2-2b", "layer": "13-gemmascope-res-16k"}, (SAME, "")),
        (GEMMA, {"modelId": "Gemma-2-2B", "layer": "13-GemmaScope-res-16k"}, (SAME, "")),
        (GEMMA, {"modelId": "google/gemma-2-2b-it", "layer": "13-gemmascope-res-16k"}, (DIFFERENT, "model")),
        (LAYER_20, {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-65k"}, (SAME, "")),
        (LAYER_20, {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k"}, (DIFFERENT, "source")),
        (GEMMA, {"url": "https://www.neuronpedia.org/gemma-2-2b/13-gemmascope-res-16k/3"}, (SAME, "")),
        (GEMMA, {"url": "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/3"}, (DIFFERENT, "source")),
        # Hooks, releases and widths in words.
        (UNKNOWN, {"layer": "blocks.20.hook_resid_post"}, (DIFFERENT, "layer")),
        (UNKNOWN, {"hookName": "model.layers.20"}, (DIFFERENT, "layer")),
        (UNKNOWN, {"hook_name": "blocks.13.hook_mlp_out"}, (DIFFERENT, "kind of activations")),
        (UNKNOWN, {"hook_name": "blocks.13.hook_resid_post"}, (UNSTATED, "")),
        (UNKNOWN, {"width": "65k"}, (DIFFERENT, "width")),
        (UNKNOWN, {"width": "16k"}, (UNSTATED, "")),
        (UNKNOWN, {"n_latents": 65536}, (DIFFERENT, "width")),
        (GEMMA, {"release": "gemma-scope-9b-pt-res-canonical", "sae_id": "layer_13/width_16k/canonical"}, (DIFFERENT, "release")),
        (GEMMA, {"release": "v2"}, (UNSTATED, "")),
        # Neuronpedia counts an SAE of a block's input by that block.
        (BEFORE_8, {"modelId": "gpt2-small", "layer": "8-res-jb"}, (UNPROVEN, "")),
        (BEFORE_8, {"modelId": "gpt2-small", "layer": "9-res-jb"}, (DIFFERENT, "layer")),
        (SAE, {}, (UNSTATED, "")),
        (SAE, {"source": "person", "author": "Ann"}, (UNSTATED, "")),
    ],
)  # fmt: skip
def test_what_a_row_says_of_its_sae_is_compared(sae: dict[str, Any], facts: dict[str, Any], expected: tuple[str, str]) -> None:
    assert verdict(stated_sae(row(**facts)), sae) == expected


def test_labels_of_another_sae_are_refused_with_both_sides_named(tmp_path: Path) -> None:
    """Also where the numbers fit: before, the first row's own name was taken as this SAE's."""
    book = book_of(UNKNOWN, tmp_path)
    with pytest.raises(MismatchError) as caught:
        imported(book, tmp_path, *FOREIGN)
    assert str(caught.value) == (
        "these labels are of another SAE: they differ in layer\n"
        "  expected: labels of SAE my copy: model gemma-2-2b, layer 13, 16384 latents\n"
        "  found: 2 rows of gemma-2-2b/10-gemmascope-res-16k\n"
        "  to do: import the labels of this SAE; to take these all the same, marked as another SAE's: --any-sae"
    )
    assert book.labels() == {} and not book.folder.exists()


def test_what_nothing_tells_is_asked(tmp_path: Path) -> None:
    rows = [{**FOREIGN[0], "layer": "13-gemmascope-res-16k"}]
    book = book_of(UNKNOWN, tmp_path)
    with pytest.raises(MismatchError, match=r"(?s)nothing tells whether.*--neuronpedia gemma-2-2b/13-gemmascope-res-16k; .*--any-sae"):
        imported(book, tmp_path, *rows)
    imported(book, tmp_path, *rows, claimed=("gemma-2-2b", "13-gemmascope-res-16k"))
    label = book.labels()[12]
    assert (label.text, label.made_for, label.author) == ("words about kindness", "", "neuronpedia.org/gemma-2-2b/13-gemmascope-res-16k")


@pytest.mark.parametrize("claimed", [("gemma-2-2b", "10-gemmascope-res-16k"), ("gpt2-small", "13-res-16k"), ("gemma-2-2b", "13-gemmascope-res-65k")])
def test_a_claim_that_the_sae_contradicts_is_refused(claimed: tuple[str, str], tmp_path: Path) -> None:
    for sae in (UNKNOWN, GEMMA):
        with pytest.raises(MismatchError, match=rf"(?s)of another SAE.*found: of {'/'.join(claimed)}"):
            imported(book_of(sae, tmp_path), tmp_path, *FOREIGN, claimed=claimed)


def test_taken_all_the_same_they_are_marked_wherever_they_stand(tmp_path: Path) -> None:
    sae = {**SAE, "d_sae": 16384}
    book = book_of(sae, tmp_path)
    found = imported(book, tmp_path, *FOREIGN, any_sae=True)
    other = "gemma-2-2b/10-gemmascope-res-16k"
    assert (dict(found.added), dict(found.other_saes), found.n_not_stated) == ({"neuronpedia": 2}, {other: 2}, 0)
    label = book_of(sae, tmp_path).labels()[12]
    assert label.made_for == other and label.weakness.startswith(f"was made for another SAE ({other}) and was written automatically")
    assert name_in_sentence(12, label) == '"words about kindness" (another SAE\'s label)'
    (exported,) = book.rows([label])
    assert exported["madeFor"] == other and label_from_row(json.loads(json.dumps(exported))) == label


def test_pages_show_the_mark(tmp_path: Path) -> None:
    from core.explain.latent_names import name_in_list
    from workbench.latents.values import label_rows, label_text

    book = book_of({**SAE, "d_sae": 16384}, tmp_path)
    imported(book, tmp_path, *FOREIGN, any_sae=True)
    labels = book.labels()
    assert label_text(labels, 12) == "words about kindness (another SAE's label)" and label_text(labels, 13) == ""
    assert name_in_list(12, labels.get(12)) == "12 words about kindness (another SAE's label)"
    assert "was made for another SAE (gemma-2-2b/10-gemmascope-res-16k)" in label_rows(book.all(12))[0]["by"]


def test_the_mark_survives_export_and_import(tmp_path: Path) -> None:
    sae = {**SAE, "d_sae": 16384}
    first, second = book_of(sae, tmp_path / "a"), book_of(sae, tmp_path / "b")
    imported(first, tmp_path, *FOREIGN, any_sae=True)
    found = imported(second, tmp_path, *first.rows(first.of("neuronpedia")))
    assert found.other_saes == {"gemma-2-2b/10-gemmascope-res-16k": 2} and second.labels()[12].of_another_sae


def test_a_label_of_this_sae_goes_before_one_of_another(tmp_path: Path) -> None:
    book = book_of({**SAE, "d_sae": 16384}, tmp_path)
    imported(book, tmp_path, *FOREIGN, any_sae=True)
    book.add("automatic", [label_from_row(row(12, description="active on thanks"), "automatic")])
    assert [(label.source, label.of_another_sae) for label in book.all(12)] == [("automatic", False), ("neuronpedia", True)]
    assert book.labels()[12].text == "active on thanks"


def test_in_a_mixed_file_only_rows_of_this_sae_come_in(tmp_path: Path) -> None:
    book = book_of(SAE, tmp_path)
    found = imported(book, tmp_path, row(1, **OURS), FOREIGN[0], row(2, saeSha256=OTHER), row(3, saeSha256=SHA))
    assert sorted(book.labels()) == [1, 3] and all(not label.made_for for label in book.labels().values())
    assert [(refused.row, refused.field) for _, refused in found.refused] == [(2, "layer"), (3, "saeSha256")]
    assert "of gemma-2-2b/10-gemmascope-res-16k, not of SAE My SAE 1" in found.refused[0][1].reason


def test_a_file_that_names_no_sae_is_taken_and_said(tmp_path: Path) -> None:
    book = book_of(SAE, tmp_path)
    found = imported(book, tmp_path, row(1), row(2, layer=7), row(3, author="Ann"))
    assert (sum(found.added.values()), found.n_not_stated) == (3, 3)
    label = book_of(SAE, tmp_path).labels()[3]
    assert (label.made_for, label.source, label.author) == (NOT_STATED, "written", "Ann")
    assert label.weakness == "comes from a file that does not say which SAE it was made for" and name_in_sentence(3, label) == '"thanks"'


def test_a_file_that_names_no_sae_but_more_latents_is_of_another(tmp_path: Path) -> None:
    book = book_of(SAE, tmp_path)
    with pytest.raises(MismatchError, match=r"(?s)of a wider SAE.*My SAE 1: .*4096 latents.*found: index 4096.*--any-sae"):
        imported(book, tmp_path, row(1), row(4096))
    assert book.labels() == {}
    found = imported(book, tmp_path, row(1), row(4096), any_sae=True)
    assert sorted(book.labels()) == [1] and [refused.field for _, refused in found.refused] == ["index"]


# labels that stand in the cache already


def test_labels_kept_for_another_sae_of_the_same_width(tmp_path: Path) -> None:
    """Its folder is named by the hash, each line says the whole hash, and lines without it are compared by model and source."""
    book, other = book_of(SAE, tmp_path), book_of({**SAE, "sha256": OTHER}, tmp_path)
    other.set(1, "another SAE's")
    imported(other, tmp_path, row(2, saeSha256=OTHER))
    assert book.labels() == {}
    book.folder.mkdir(parents=True)
    lines = [*(other.folder / "person.jsonl").read_text().splitlines(), json.dumps(FOREIGN[0]), json.dumps(row(3)), json.dumps(row(4, **OURS))]
    (book.folder / "written.jsonl").write_text("\n".join(lines) + "\n")
    assert {latent: label.made_for for latent, label in book.labels().items()} == {3: NOT_STATED, 4: NOT_STATED}
    assert [(refused.row, refused.field) for _, refused in book.refused] == [(1, "saeSha256"), (2, "layer")]


def test_labels_imported_earlier_from_another_source_are_marked(tmp_path: Path) -> None:
    """Before imports compared, such rows were stamped with this SAE's hash; their author still says the source."""
    book = book_of({**SAE, "d_sae": 16384}, tmp_path)
    stamped = {**row(12, **OURS), "saeSha256": SHA, "author": "neuronpedia.org/gemma-2-2b/10-gemmascope-res-16k"}
    book.folder.mkdir(parents=True)
    (book.folder / "neuronpedia.jsonl").write_text(json.dumps(stamped) + "\n")
    assert book.labels()[12].made_for == "gemma-2-2b/10-gemmascope-res-16k"
    known = book_of(GEMMA, tmp_path / "known")
    known.folder.mkdir(parents=True)
    fine = {**stamped, "author": "neuronpedia.org/gemma-2-2b/13-gemmascope-res-16k"}
    (known.folder / "neuronpedia.jsonl").write_text(json.dumps(fine) + "\n")
    assert known.labels()[12].made_for == ""


def test_shipped_labels_say_whose_they_are() -> None:
    sae = load_sae(SAEConfig(path=str(DEMO_SAE))).identity
    rows = [json.loads(line) for line in SHIPPED_FILE.read_text().splitlines()]
    assert rows and {verdict(stated_sae(entry), sae)[0] for entry in rows} == {SAME}
    assert {entry["saeSha256"] for entry in rows} == {sae["sha256"]} and not any("madeFor" in entry for entry in rows)


# the command


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    tiny_explainer()
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path / "cache"))
    yield tmp_path


@pytest.fixture
def labels(cli: Any) -> Any:
    return lambda command, *words: cli("labels", command, tiny_explainer().model.folder, *words)


def test_the_command_refuses_takes_when_asked_and_says_so(cache: Path, labels: Any) -> None:
    path = file_of(cache, *FOREIGN)
    code, out, err = labels("import", path)
    assert (code, out) == (6, "") and "these labels are of another SAE: they differ in model, layer, width" in err and "10-gemmascope-res-16k" in err
    code, out, err = labels("import", path, "--any-sae")
    assert code == 0 and "1 neuronpedia new" in out and "1 of them were made for another SAE (gemma-2-2b/10-gemmascope-res-16k)" in out
    assert "row 2 of labels.jsonl is left out: index: 16000, but this SAE has 256 latents" in err
    code, out, _ = labels("list", "--latent", 12)
    assert "(another SAE's label)" in " ".join(out.split()) and "was made for another SAE" in " ".join(out.split())
    rows = json.loads(labels("list", "--latent", 12, "--json")[1])["latents"][0]["labels"]
    assert rows[0]["madeFor"] == "gemma-2-2b/10-gemmascope-res-16k"


def test_the_command_says_that_a_file_names_no_sae(cache: Path, labels: Any) -> None:
    code, out, _ = labels("import", file_of(cache, row(3), row(4)))
    assert code == 0 and "2 of them do not say which SAE they are of; they are taken as this one's, and marked so" in out
    found = json.loads(labels("import", file_of(cache, row(5)), "--json")[1])
    assert (found["n_not_stated"], found["other_saes"]) == (1, {})


def test_a_download_for_a_source_that_it_cant_be_is_not_begun(cache: Path, labels: Any) -> None:
    code, out, err = labels("import", "--neuronpedia", "gemma-2-2b/10-gemmascope-res-16k")
    assert (code, out) == (6, "") and "these labels are of another SAE" in err and "could not be fetched" not in err

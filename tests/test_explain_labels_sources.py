"""Labels from elsewhere: Neuronpedia's exports from files and from a bucket, other workbenches' files, and a language model behind an endpoint."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from labels_helpers import OTHER, SAE, Request, feature, serving, window

from core.config import EndpointConfig
from core.data import http
from core.data.http import LONGEST_WAIT, TRIES, Http, HttpError
from core.errors import Cancelled, ConfigError, DataError, MissingError
from core.latents import label_sources
from core.latents.label_book import LabelBook
from core.latents.label_endpoint import KEY, ask_labels, evidence, label_text
from core.latents.label_sources import download_export, import_labels

GEMMA = {**SAE, "release": "gemma-scope-2b-pt-res-canonical", "sae_id": "layer_13/width_16k/canonical", "d_sae": 16384}
MODEL, SOURCE = "gemma-2-2b", "13-gemmascope-res-16k"
BATCH = 6
Answer = tuple[int, bytes, dict[str, str]]


@pytest.fixture
def book(tmp_path: Path) -> LabelBook:
    return LabelBook(GEMMA, tmp_path / "cache", shipped=tmp_path / "none.jsonl")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(http, "sleep", lambda seconds, _: waited.append(seconds))
    return waited


def explanation(latent: int, **more: Any) -> dict[str, Any]:
    """A row as Neuronpedia's export script selects it."""
    plain = {
        "id": f"id{latent}", "modelId": MODEL, "layer": SOURCE, "index": str(latent), "authorId": "someone", "description": f"meaning of {latent}",
        "embedding": json.dumps([0.5] * 256), "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini",
        "umap_x": 0.0, "umap_y": 0.0, "umap_cluster": 1, "umap_log_feature_sparsity": -3.0,
    }  # fmt: skip
    return {**plain, **more}


LATENTS = [latent for latent in range(0, 2200, 27) if latent % 5]  # with gaps: latents without an explanation are left out


def write_export(root: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """`v1/{model}/{source}/explanations/batch-N.jsonl.gz`, rows sorted by `index` as text."""
    found = sorted(rows or [explanation(latent) for latent in LATENTS], key=lambda row: str(row["index"]))
    folder = root / "v1" / MODEL / SOURCE / "explanations"
    folder.mkdir(parents=True)
    for number in range(0, len(found), BATCH):
        lines = "".join(json.dumps(row) + "\n" for row in found[number : number + BATCH])
        (folder / f"batch-{number // BATCH}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder.parent


# --- Neuronpedia's files -------------------------------------------------------------------------------------------


def test_an_export_whose_rows_are_sorted_as_text(book: LabelBook, tmp_path: Path) -> None:
    folder = write_export(tmp_path)
    assert len(list((folder / "explanations").iterdir())) > 10, "batch-10 comes before batch-2 as text"
    found = import_labels(book, folder)
    assert (found.added, found.n_refused) == ({"neuronpedia": len(LATENTS)}, 0)
    assert {latent: label.text for latent, label in book.labels().items()} == {latent: f"meaning of {latent}" for latent in LATENTS}
    one = book.labels()[LATENTS[-1]]
    assert (one.source, one.method, one.model, one.author) == (
        "neuronpedia", "oai_token-act-pair", "gpt-4o-mini", f"neuronpedia.org/{MODEL}/{SOURCE}",
    )  # fmt: skip
    assert "was written automatically (neuronpedia, gpt-4o-mini)" in one.weakness
    assert b"embedding" not in book.path("neuronpedia").read_bytes()


def test_importing_again_changes_what_has_changed(book: LabelBook, tmp_path: Path) -> None:
    import_labels(book, write_export(tmp_path / "a"))
    book.set(LATENTS[0], "mine")
    newer = [explanation(latent, description="newer" if latent == LATENTS[1] else f"meaning of {latent}") for latent in LATENTS]
    found = import_labels(book, write_export(tmp_path / "b", newer) / "explanations")
    assert (dict(found.replaced), dict(found.same)) == ({"neuronpedia": 1}, {"neuronpedia": len(LATENTS) - 1})
    assert book.labels()[LATENTS[1]].text == "newer" and book.labels()[LATENTS[0]].text == "mine"
    assert [label.source for label in book.all(LATENTS[0])] == ["person", "neuronpedia"]


def test_several_explanations_of_one_latent_stay_side_by_side(book: LabelBook, tmp_path: Path) -> None:
    rows = [
        explanation(3),
        explanation(3, explanationModelName="gemini", description="other"),
        *(human(3, text) for text in ("by hand", "also by hand")),
    ]
    import_labels(book, write_export(tmp_path, rows))
    assert sorted(label.text for label in book.all(3)) == ["also by hand", "by hand", "meaning of 3", "other"]


def human(latent: int, text: str) -> dict[str, Any]:
    return explanation(latent, typeName=None, explanationModelName=None, description=text)


def test_every_row_that_does_not_come_in_is_told(book: LabelBook, tmp_path: Path) -> None:
    rows = [explanation(1), explanation(2, layer="12-gemmascope-res-16k"), explanation(3, modelId="gpt2-small"), explanation(16384)]
    rows += [explanation(4, index="four"), explanation(5, description=""), explanation(6, description=None), explanation(7)]
    path = tmp_path / "explanations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    found = import_labels(book, path)
    assert sorted(book.labels()) == [1, 7]
    assert [(refused.row, refused.field) for _, refused in found.refused] == [
        (2, "layer"), (3, "layer"), (4, "index"), (5, "index"), (6, "description"), (7, "description"), (9, "row"),
    ]  # fmt: skip
    reasons = [refused.reason for _, refused in found.refused]
    assert reasons[0] == f"of {MODEL}/12-gemmascope-res-16k, not of {MODEL}/{SOURCE}" and "this SAE has 16384 latents" in reasons[2]
    assert found.to_json()["n_refused"] == 7


def test_a_batch_that_breaks_off_gives_what_came_before(book: LabelBook, tmp_path: Path) -> None:
    folder = write_export(tmp_path)
    broken = folder / "explanations" / "batch-1.jsonl.gz"
    broken.write_bytes(broken.read_bytes()[:-30])
    (folder / "explanations" / "batch-2.jsonl.gz").write_bytes(b"")
    found = import_labels(book, folder)
    assert len(LATENTS) - 2 * BATCH <= len(book.labels()) <= len(LATENTS) - BATCH
    assert {(path.name, refused.field) for path, refused in found.refused} == {(broken.name, "file"), ("batch-2.jsonl.gz", "file")}
    assert any("breaks off" in refused.reason for _, refused in found.refused)


def test_a_folder_without_labels_is_told(book: LabelBook, tmp_path: Path) -> None:
    (tmp_path / "batch-x.jsonl").touch()
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"explanations/batch-0.jsonl.gz"):
            import_labels(book, path)


# --- other workbenches' files --------------------------------------------------------------------------------------


def test_labels_travel_between_workbenches(book: LabelBook, tmp_path: Path) -> None:
    book.set(3, "three", "Ann")
    import_labels(book, write_export(tmp_path, [explanation(3), explanation(5)]))
    path = tmp_path / "labels.jsonl"
    rows = [row for source in ("person", "neuronpedia") for row in book.rows(book.of(source))]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "saeSha256": OTHER}]))
    theirs = LabelBook(GEMMA, tmp_path / "other", shipped=tmp_path / "none")
    theirs.set(3, "my three", "Bob")
    found = import_labels(theirs, path)
    assert (dict(found.added), [refused.field for _, refused in found.refused]) == ({"written": 1, "neuronpedia": 2}, ["saeSha256"])
    assert [(label.source, label.text, label.author) for label in theirs.all(3)][:2] == [("person", "my three", "Bob"), ("written", "three", "Ann")]
    assert theirs.labels()[5].author == book.labels()[5].author


# --- Neuronpedia's bucket ------------------------------------------------------------------------------------------


def bucket(root: Path, page: int = 4) -> Callable[[Request], Answer]:
    """Answers as a public bucket does: listings a page at a time, files, 404."""

    def answers(request: Request) -> Answer:
        if request.path != "/":
            file = root / request.path.lstrip("/")
            return (200, file.read_bytes(), {}) if file.is_file() else (404, b"<Error><Code>NoSuchKey</Code></Error>", {})
        prefix = request.query["prefix"]
        names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        keys = [name for name in names if name.startswith(prefix)]
        start = int(request.query.get("continuation-token", 0))
        rows = [
            f"<Contents><Key>{key}</Key><ETag>x</ETag><Size>{(root / key).stat().st_size}</Size></Contents>" for key in keys[start : start + page]
        ]
        more = f"<NextContinuationToken>{start + page}</NextContinuationToken>" if start + page < len(keys) else ""
        return 200, f"<ListBucketResult>{more}{''.join(rows)}</ListBucketResult>".encode(), {}

    return answers


def test_an_export_is_downloaded_batch_by_batch(book: LabelBook, tmp_path: Path) -> None:
    remote = write_export(tmp_path / "bucket")
    (remote / "explanations" / "notes.txt").write_text("not a batch")
    told: list[tuple[float, float]] = []

    def watch(step: str, done: float, total: float, **_: Any) -> None:
        told.append((done, total))

    with serving(bucket(tmp_path / "bucket")) as server:
        folder = download_export(
            (MODEL, SOURCE), tmp_path / "d", bucket=server.url, progress=lambda step, done, total, **_: told.append((done, total))
        )
        batches = sorted(path.name for path in remote.rglob("batch-*"))
        assert sorted(path.name for path in (folder / "explanations").iterdir()) == batches
        assert all((folder / "explanations" / name).read_bytes() == (remote / "explanations" / name).read_bytes() for name in batches)
        total = sum(path.stat().st_size for path in remote.rglob("batch-*"))
        assert told[0] == (0, total) and told[-1] == (total, total) and told == sorted(told)
        import_labels(book, folder)
        assert sorted(book.labels()) == LATENTS

        first = folder / "explanations" / "batch-0.jsonl.gz"
        first.write_bytes(b"short")
        server.requests.clear()
        download_export((MODEL, SOURCE), tmp_path / "d", bucket=server.url)
        assert [request.path for request in server.requests if request.path != "/"] == [f"/v1/{MODEL}/{SOURCE}/explanations/batch-0.jsonl.gz"]
        assert first.read_bytes() == (remote / "explanations" / "batch-0.jsonl.gz").read_bytes()


def test_a_stopped_download_leaves_whole_files(tmp_path: Path) -> None:
    write_export(tmp_path / "bucket")

    def stop(step: str, done: float, total: float, **_: Any) -> None:
        if done > total / 2:
            raise Cancelled

    with serving(bucket(tmp_path / "bucket")) as server:
        with pytest.raises(Cancelled):
            download_export((MODEL, SOURCE), tmp_path / "d", bucket=server.url, progress=stop)
        names = [path.name for path in (tmp_path / "d" / MODEL / SOURCE / "explanations").iterdir()]
        assert 0 < len(names) < 10 and not any(name.startswith(".") for name in names)


def test_what_cant_be_downloaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_export(tmp_path / "bucket")
    with serving(bucket(tmp_path / "bucket")) as server:
        with pytest.raises(MissingError, match="Neuronpedia exports no explanations of gemma-2-2b/99-nothing"):
            download_export(("gemma-2-2b", "99-nothing"), tmp_path / "d", bucket=server.url)
        with monkeypatch.context() as patched:
            patched.setattr(label_sources, "LARGEST", 100)
            with pytest.raises(MissingError, match="larger than is fetched"):
                download_export((MODEL, SOURCE), tmp_path / "d", bucket=server.url)
    with pytest.raises(
        MissingError, match=r"could not be fetched\n  found: ConnectError.*\n  to do: check the network; or fetch that folder elsewhere"
    ):
        download_export((MODEL, SOURCE), tmp_path / "d", bucket=server.url)
    assert list((tmp_path / "d").rglob("*.gz")) == []


# --- careful HTTP --------------------------------------------------------------------------------------------------


def test_what_fails_in_passing_is_tried_again(no_waiting: list[float]) -> None:
    answers: list[Answer] = [(503, b"busy", {}), (429, b"", {"Retry-After": "7"}), (429, b"", {"Retry-After": "9999"}), (200, b"at last", {})]
    with serving(lambda _: answers.pop(0)) as server, Http(server.url) as http:
        assert http.get("/x", largest=100) == b"at last"
    assert no_waiting == [1.0, 7.0, LONGEST_WAIT]


@pytest.mark.parametrize(
    ("answer", "said", "asked"),
    [
        ((500, b"no\x1b[31m luck", {}), "status 500 no", TRIES),
        ((404, b"nothing here", {}), "status 404 nothing here", 1),
        ((302, b"", {"Location": "http://example.invalid/"}), "status 302", 1),
        ((200, b"x" * 101, {}), "larger than 100 bytes", 1),
    ],
)
def test_what_fails_for_good_is_told(answer: Answer, said: str, asked: int, tmp_path: Path) -> None:
    with serving(lambda _: answer) as server, Http(server.url) as http:
        with pytest.raises(HttpError, match=said):
            http.get("/x", largest=100)
        assert len(server.requests) == asked
        with pytest.raises(HttpError, match=said):
            http.download("/x", tmp_path / "file", largest=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "key", "said"),
    [
        ("http://example.invalid", "", "could be changed on the way"),
        ("http://example.invalid/v1", "secret", "a key would travel in the open"),
        ("ftp://example.invalid", "", "no address of a server"),
        ("file:///etc/passwd", "", "no address of a server"),
        ("https://user:word@example.invalid", "", "no address of a server"),
        ("localhost:8000", "", "no address of a server"),
    ],
)
def test_addresses_that_are_not_used(base: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Http(base, key=key, plain=bool(key))
    Http("http://model-server.invalid/v1", plain=True)


# --- a language model ----------------------------------------------------------------------------------------------

PAGES = [
    feature(latent, [window(f"snippet {i} of {latent} says sorry now", {"sorry": 5.0 - i, "says": 1.0}) for i in range(3)]) for latent in range(4)
]


def reply(text: object, sent: int = 100, received: int = 7) -> Answer:
    usage = {"prompt_tokens": sent, "completion_tokens": received}
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}).encode(), {}


def test_a_model_is_asked_with_evidence_and_key(book: LabelBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret-key")
    with serving(lambda request: reply(f'"apologies {len(request.body["messages"])}"')) as server:
        done = ask_labels(book, PAGES, EndpointConfig(endpoint=server.url + "/v1/", endpoint_model="org/model"), total=4)
    assert done.__dict__ == {"labels": 4, "already": 0, "empty": 0, "tokens_sent": 400, "tokens_received": 28}
    first = server.requests[0]
    assert first.path == "/v1/chat/completions" and first.headers["Authorization"] == "Bearer secret-key"
    assert first.body["model"] == "org/model" and first.body["temperature"] == 0
    shown = first.body["messages"][1]["content"]
    assert shown == evidence(PAGES[0]) and "1. snippet 0 of 0 says «sorry» now" in shown and '"please", "ing"' in shown
    one = book.labels()[2]
    assert (one.text, one.source, one.model) == ("apologies 2", "endpoint", "org/model") and one.date
    assert "secret-key" not in "".join(path.read_text() for path in book.folder.iterdir())


def test_asking_goes_on_where_it_was(book: LabelBook) -> None:
    def fails_at_third(request: Request) -> Answer:
        return (400, b'{"error": "context length"}', {}) if "of 2 says" in request.body["messages"][1]["content"] else reply("apologies")

    with serving(fails_at_third) as server:
        config = EndpointConfig(endpoint=server.url, endpoint_model="m")
        with pytest.raises(MissingError, match=r"gave no label\n  found: status 400 .*context length"):
            ask_labels(book, PAGES, config, total=4)
        assert sorted(book.labels()) == [0, 1]
        server.answers = lambda _: reply("apologies")
        server.requests.clear()
        done = ask_labels(book, PAGES, config, total=4)
        assert (done.labels, done.already, len(server.requests)) == (2, 2, 2) and sorted(book.labels()) == [0, 1, 2, 3]
        assert ask_labels(book, PAGES, EndpointConfig(endpoint=server.url, endpoint_model="another"), total=4).labels == 4
    assert {label.model for label in book.all(0)} == {"m", "another"}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("apologies", "apologies"),
        (" **“apologies”** \n\n", "apologies"),
        ("Label: apologies", "apologies"),
        ("<think>could be\nanything</think>\napologies", "apologies"),
        ("<think>never ends", ""),
        ("Let me see.\nThe snippets share:\napologies\x1b[31m\x07", "apologies[31m"),
        ("", ""),
        (None, ""),
        ([{"type": "text"}], ""),
    ],
)
def test_answers_are_not_trusted(answer: object, label: str) -> None:
    assert label_text(answer) == label


def test_a_long_answer_is_cut_and_an_empty_one_counted(book: LabelBook) -> None:
    answers = [reply("x" * 5000), reply("", received=3)]
    with serving(lambda _: answers.pop(0)) as server:
        done = ask_labels(book, PAGES[:2], EndpointConfig(endpoint=server.url, endpoint_model="m"), total=2)
    assert (done.labels, done.empty, done.tokens_received) == (1, 1, 10) and len(book.labels()[0].text) == 300 and 1 not in book.labels()


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": 3}]}', b"[" * 100_000, b"x" * 2_000_000])
def test_an_endpoint_of_another_kind_is_told(book: LabelBook, body: bytes) -> None:
    with serving(lambda _: (200, body, {})) as server, pytest.raises(MissingError, match=r"answer can't be read|gave no label"):
        ask_labels(book, PAGES, EndpointConfig(endpoint=server.url, endpoint_model="m"), total=4)
    assert book.labels() == {}


def test_without_a_configured_endpoint_nothing_is_asked(book: LabelBook) -> None:
    with pytest.raises(ConfigError, match="no endpoint is configured"):
        ask_labels(book, PAGES, EndpointConfig(), total=4)
    with pytest.raises(ConfigError, match="no model of the endpoint is named"):
        ask_labels(book, PAGES, EndpointConfig(endpoint="http://localhost:1"), total=4)

"""The store: artefacts are whole or absent, found by what they were made from, and mended when damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import StoreError
from core.files import file_sha256, write_json
from core.runs.store import HOLD, MANIFEST, Artefact, Store, cache_root, publish_folder, read_artefact
from core.types import sha256_of

ROOT = Path(__file__).resolve().parents[1]
Make = Callable[[Path, Path], Mapping[str, Any]]


def maker(text: str = "hello", facts: Mapping[str, Any] | None = None, calls: list[str] | None = None) -> Make:
    def make(folder: Path, scratch: Path) -> Mapping[str, Any]:
        (folder / "a.txt").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep/b.bin").write_bytes(bytes(range(256)))
        if calls is not None:
            calls.append(text)
        return facts or {"n": 1}

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def made(store: Store, calls: list[str] | None = None, text: str = "hello") -> Artefact:
    return store.get_or_make("step", 1, {"x": 1}, [], maker(text, calls=calls))


def start(code: str, root: Path, **env: str) -> subprocess.Popen[bytes]:
    """Another Python process that works on the same cache."""
    head = f"import time, os, sys\nfrom pathlib import Path\nfrom core.runs.store import Store\nstore = Store(Path({str(root)!r}))\n"
    return subprocess.Popen([sys.executable, "-c", head + code], cwd=ROOT, env={**os.environ, **env})


def wait_for(path: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


# --- fingerprints --------------------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_everything_it_is_made_of(store: Store) -> None:
    base: tuple[Any, ...] = ("fit", 1, {"k": 32, "nested": {"a": [1, 2]}}, ["aa", "bb"])
    others: list[tuple[Any, ...]] = [
        ("fitx", 1, base[2], base[3]),
        ("fit", 2, base[2], base[3]),
        ("fit", 1, {"k": 33, "nested": {"a": [1, 2]}}, base[3]),
        ("fit", 1, {"k": 32, "nested": {"a": [2, 1]}}, base[3]),
        ("fit", 1, {"k": "32", "nested": {"a": [1, 2]}}, base[3]),
        ("fit", 1, {"k": 32, "nested": {"a": [1, 2]}, "more": None}, base[3]),
        ("fit", 1, base[2], ["bb", "aa"]),
        ("fit", 1, base[2], ["aabb"]),
    ]
    prints = [store.fingerprint(*args) for args in [base, *others]]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 64 and set(p) <= set("0123456789abcdef") for p in prints)


def test_a_fingerprint_ignores_the_order_of_keys_and_the_root(store: Store, tmp_path: Path) -> None:
    one = store.fingerprint("fit", 1, {"a": 1, "b": {"c": 2, "d": 3}}, [])
    assert one == Store(tmp_path / "other").fingerprint("fit", 1, {"b": {"d": 3, "c": 2}, "a": 1}, [])
    assert store.fingerprint("fit", 1, {"a": (1, 2)}, []) == store.fingerprint("fit", 1, {"a": [1, 2]}, [])


def test_the_fingerprint_is_what_it_is() -> None:
    """Golden: whoever changes how fingerprints are made throws away everyone's cache, and should know it."""
    found = Store(Path("unused")).fingerprint("head", 3, {"lr": 0.001, "name": "Δ"}, ["ab"])
    text = '{"config":{"lr":0.001,"name":"Δ"},"inputs":["ab"],"step":"head","version":3}'
    assert found == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), b"x", float("nan"), float("inf"), object(), {1: 2}, {"a": {None: 1}}, [{2: 1}], lambda: 0])
def test_what_cannot_be_hashed_is_an_error_not_a_guess(store: Store, value: Any) -> None:
    with pytest.raises(StoreError, match="configuration of step head can't be fingerprinted"):
        store.fingerprint("head", 1, {"x": value}, [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_values_that_json_tells_apart_get_different_fingerprints(one: Any, other: Any) -> None:
    store = Store(Path("unused"))
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (store.fingerprint("s", 1, {"v": one}, []) == store.fingerprint("s", 1, {"v": other}, [])) == same


# --- making and finding --------------------------------------------------------------------------------------------


def test_an_artefact_is_made_once_and_lies_where_it_should(store: Store) -> None:
    calls: list[str] = []
    first, second = made(store, calls), made(store, calls, "not called")
    assert calls == ["hello"]
    assert first.path == second.path == store.root / "artefacts/step" / first.fingerprint[:2] / first.fingerprint
    assert first.manifest == second.manifest
    assert (first.step, first.manifest["version"], first.manifest["config"], first.facts) == ("step", 1, {"x": 1}, {"n": 1})
    assert first.file("deep/b.bin").read_bytes() == bytes(range(256))
    assert first.manifest["files"]["a.txt"] == {"bytes": 5, "sha256": file_sha256(first.file("a.txt"))}
    with pytest.raises(StoreError, match="holds no c"):
        first.file("c.txt")


def test_a_chain_is_made_anew_from_the_link_that_changed(store: Store) -> None:
    calls: list[str] = []

    def chain(k: int) -> str:
        one = store.get_or_make("one", 1, {}, [], maker("one", calls=calls))
        two = store.get_or_make("two", 1, {"k": k}, [one.fingerprint], maker("two", calls=calls))
        return store.get_or_make("three", 1, {}, [two.fingerprint], maker("three", calls=calls)).fingerprint

    assert chain(1) != chain(2)
    assert calls == ["one", "two", "three", "two", "three"]
    assert chain(1) == chain(1) and len(calls) == 5


def test_a_failed_step_leaves_nothing_but_its_scratch(store: Store) -> None:
    def fails(folder: Path, scratch: Path) -> Mapping[str, Any]:
        (folder / "half.txt").write_text("half")
        (scratch / "shard-0").write_text("done")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.get_or_make("step", 1, {}, [], fails)
    files = [f.name for f in store.root.rglob("*") if f.is_file() and f.suffix != ".lock"]
    assert files == ["shard-0"]

    def resumes(folder: Path, scratch: Path) -> Mapping[str, Any]:
        (folder / "whole.txt").write_text((scratch / "shard-0").read_text())
        return {}

    assert store.get_or_make("step", 1, {}, [], resumes).file("whole.txt").read_text() == "done"
    assert not list((store.root / "scratch").rglob("shard-0"))


def test_equal_work_gives_equal_manifests_but_for_times(store: Store, tmp_path: Path) -> None:
    def timeless(artefact: Artefact) -> dict[str, Any]:
        return {name: value for name, value in artefact.manifest.items() if not name.startswith("time")}

    one, other = made(store), made(Store(tmp_path / "other"))
    assert timeless(one) == timeless(other)
    assert one.manifest["time_created"] != other.manifest["time_created"]
    assert one.manifest["time_seconds"] >= 0


def test_the_root_is_the_environments_or_the_checkouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    assert Store().root == cache_root() == tmp_path
    monkeypatch.delenv("SPARSERM_CACHE")
    assert cache_root() == ROOT / "cache"


# --- damage --------------------------------------------------------------------------------------------------------


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda path: (path / MANIFEST).unlink(), "no readable manifest"),
    "half a manifest": (lambda path: (path / MANIFEST).write_text((path / MANIFEST).read_text()[:50]), "no readable manifest"),
    "manifest of zeros": (lambda path: (path / MANIFEST).write_bytes(b"\0" * 100), "no readable manifest"),
    "manifest is a list": (lambda path: (path / MANIFEST).write_text("[]"), "not this artefact's"),
    "another schema": (lambda path: _edit(path, lambda m: m.update(schema=99)), "not this artefact's"),
    "another fingerprint": (lambda path: _edit(path, lambda m: m.update(fingerprint="0" * 64)), "not this artefact's"),
    "a changed figure in the manifest": (lambda path: _edit(path, lambda m: m.update(facts={"n": 2})), "manifest.json is damaged"),
    "no list of files": (lambda path: _edit(path, lambda m: m.pop("files")), "manifest.json is damaged"),
    "a file is gone": (lambda path: (path / "a.txt").unlink(), "no such file"),
    "a file is cut": (lambda path: os.truncate(path / "deep/b.bin", 100), "100 bytes"),
    "a file has grown": (lambda path: (path / "a.txt").write_text("hello!"), "6 bytes"),
    "a file is a folder": (lambda path: ((path / "a.txt").unlink(), (path / "a.txt").mkdir()), "no such file"),
}


def test_a_manifest_of_an_earlier_version_is_read(store: Store) -> None:
    """Its facts stand under `said`, and its own hash was made with that name."""
    path = made(store).path
    manifest = json.loads((path / MANIFEST).read_text())
    earlier = {("said" if name == "facts" else name): value for name, value in manifest.items() if name != "check"}
    earlier["check"] = sha256_of({name: value for name, value in earlier.items() if not name.startswith("time")})
    (path / MANIFEST).write_text(json.dumps(earlier))
    assert read_artefact(path).facts == {"n": 1} == made(store, text="not called").facts


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_artefact_is_moved_aside_said_and_made_again(store: Store, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    spoil, said = DAMAGE[kind]
    calls: list[str] = []
    path = made(store, calls).path
    spoil(path)
    with pytest.raises(StoreError) as error:
        read_artefact(path)
    assert said in str(error.value)
    with caplog.at_level(logging.WARNING):
        again = made(store, calls)
    assert calls == ["hello", "hello"]
    assert "moved aside" in caplog.text and said in caplog.text
    assert read_artefact(again.path).facts == {"n": 1}
    assert len(list((store.root / "corrupt").iterdir())) == 1
    assert [error for _, error in store.verify()] == [None]


@pytest.mark.parametrize("name", ["a.txt", "deep/b.bin", MANIFEST])
def test_verify_finds_a_flipped_byte_wherever_it_is(store: Store, name: str) -> None:
    path = made(store).path
    whole = store.get_or_make("other", 1, {}, [], maker()).path
    data = bytearray((path / name).read_bytes())
    place = data.index(b'"n": 1') + 5 if name == MANIFEST else len(data) // 2
    data[place] ^= 1
    (path / name).write_bytes(data)
    found = dict(store.verify())
    assert found[whole] is None
    assert isinstance(found[path], StoreError) and "is damaged" in str(found[path])
    assert not path.exists(), "a damaged artefact must not be used again"
    assert [error for _, error in store.verify()] == [None]


def test_all_lists_whole_and_damaged(store: Store) -> None:
    whole, broken = made(store), store.get_or_make("other", 1, {}, [], maker())
    broken.file("a.txt").unlink()
    found = dict(store.all())
    assert found[whole.path] == whole
    assert isinstance(found[broken.path], StoreError)
    assert set(found) == {whole.path, broken.path}


# --- several processes, and killed ones ----------------------------------------------------------------------------

SLOW = """
def make(folder, scratch):
    with open(store.root.parent / "calls", "a") as calls: calls.write(str(os.getpid()) + "\\n")
    (store.root.parent / "inside").touch()
    time.sleep(0.4)
    (folder / "a.txt").write_text("hello")
    return {}
(store.root.parent / f"made-{os.getpid()}").write_text(str(store.get_or_make("step", 1, {}, [], make).path))
"""


def test_processes_at_once_compute_once(store: Store) -> None:
    workers = [start(SLOW, store.root) for _ in range(3)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    assert len({(store.root.parent / f"made-{worker.pid}").read_text() for worker in workers}) == 1
    assert len((store.root.parent / "calls").read_text().split()) == 1


def test_a_lock_dies_with_its_holder(store: Store) -> None:
    killed = start(SLOW.replace("0.4", "60"), store.root)
    wait_for(store.root.parent / "inside")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    after = start(SLOW, store.root)
    assert after.wait(timeout=30) == 0
    assert [error for _, error in store.verify()] == [None]
    assert not list((store.root / "tmp").iterdir()), "what the killed one left is cleared by the next"


HELD = """
def make(folder, scratch):
    (folder / "a.txt").write_text("hello")
    (scratch / "shard").write_text("kept")
    return {"n": 1}
store.get_or_make("step", 1, {"x": 1}, [], make)
"""


def test_killed_between_writing_and_publishing(store: Store) -> None:
    held = start(HELD, store.root, **{HOLD: "step"})
    wait_for(store.root / "held-step")
    fingerprint = store.fingerprint("step", 1, {"x": 1}, [])
    assert (store.root / "tmp").exists() and not store.folder("step", fingerprint).exists()
    held.kill()
    held.wait()
    assert store.find("step", fingerprint) is None
    assert (store.scratch("step", fingerprint) / "shard").read_text() == "kept"
    calls: list[str] = []
    assert made(store, calls).fingerprint == fingerprint
    assert calls == ["hello"]


LOOP = """
for number in range(100000):
    def make(folder, scratch):
        for name in "abcdef": (folder / name).write_bytes(os.urandom(20000))
        return {"number": number}
    store.get_or_make("step", 1, {"number": number}, [], make)
"""


def test_killed_at_any_moment_everything_that_stands_is_whole(store: Store) -> None:
    for delay in (0.0, 0.003, 0.007, 0.013, 0.021, 0.034):
        known = len(list(store.all()))
        worker = start(LOOP, store.root)
        while len(list((store.root / "artefacts/step").glob("*/*"))) < known + 3:
            time.sleep(0.002)
        time.sleep(delay)
        worker.kill()
        worker.wait()
    found = list(store.verify())
    assert len(found) >= 18
    assert [error for _, error in found if error] == []


# --- cleaning ------------------------------------------------------------------------------------------------------


def test_clean_removes_the_half_done_and_the_set_aside(store: Store) -> None:
    whole = made(store)
    (store.scratch("dead", "f" * 64) / "shard").write_bytes(b"x" * 1000)
    (store.root / "tmp/dead-ff").mkdir(parents=True)
    (store.root / "tmp/dead-ff/half").write_bytes(b"x" * 500)
    (store.root / "corrupt/old").mkdir(parents=True)
    (store.root / "corrupt/old/file").write_bytes(b"x" * 50)
    assert store.clean() == 1550
    assert [path for path, _ in store.all()] == [whole.path]
    assert store.clean() == 0
    assert store.clean(everything=True) > 0
    assert list(store.all()) == []


def test_clean_leaves_what_a_living_process_works_on(store: Store) -> None:
    held = start(HELD, store.root, **{HOLD: "step"})
    try:
        wait_for(store.root / "held-step")
        assert store.clean() == 0
        assert list((store.root / "tmp").rglob("a.txt")) and list((store.root / "scratch").rglob("shard"))
    finally:
        held.kill()
        held.wait()
    assert store.clean() == len("hello") + len("kept")


# --- small helpers -------------------------------------------------------------------------------------------------


def test_publish_folder_is_all_or_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "x").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_folder(tmp_path / "deep/model", fails)
    assert list((tmp_path / "deep").iterdir()) == []
    target = publish_folder(tmp_path / "deep/model", lambda folder: (folder / "x").write_text("whole") and None)
    assert (target / "x").read_text() == "whole"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_write_json_replaces_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"Δ": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"Δ": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

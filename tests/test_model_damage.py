"""A damaged reward model's folder: each file, each damage, each command. Either the same figures as before, or an error that names the file.

One tiny fit, copied out. Every command runs in this process. A damaged file is put right again before the next case.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_model_folder import forget_record

from core.align.filtering import judge_folder
from core.cli.main import main
from core.config import DoctorRunConfig
from core.errors import SparseRMError, StoreError
from core.explain.from_folder import explain_pair, switchboard_of
from core.jobs.doctor import DOCTOR
from core.reward.fit_responses import FitResponses
from core.reward.folder import ModelFolder
from core.reward.model import SparseRM
from core.reward.parts import RewardParts
from core.runs.store import Artefact, Store
from core.serving.launch import start
from core.serving.server_folder import server_folder_of
from core.types import sha256_of
from workbench.frame import models
from workbench.frame.models import FittedModel
from workbench.overview import values as overview

FILES = (
    *("config.json", "model.safetensors", "heads.safetensors", "selection.jsonl"),
    *("known.safetensors", "known.jsonl", "faithfulness.json", "evaluation.json", "curve.json"),
)
REFUSED = StoreError.exit_code
DOCTOR_OPTIONS = ["--swaps", "3", "--responses", "4", "--dialogues", "2"]
LATENTS_OPTIONS = ["--corpus", "pairs", "--tokens", "2000"]


# --- damages -------------------------------------------------------------------------------------------------------


def flipped(content: bytes, seed: int) -> bytes:
    """One byte changed, at a position and by a value that the seed draws."""
    rng = np.random.default_rng(seed)
    at, by = int(rng.integers(len(content))), int(rng.integers(1, 256))
    return content[:at] + bytes([content[at] ^ by]) + content[at + 1 :]


def head_flipped(content: bytes, seed: int) -> bytes:
    """One bit changed in the first hundred bytes: where safetensors and JSON have their structure."""
    rng = np.random.default_rng(seed)
    at = int(rng.integers(min(100, len(content))))
    return content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]


Damage = Callable[[bytes], bytes | None]
QUICK: dict[str, Damage] = {
    "flip 0": lambda content: flipped(content, 0),
    "cut": lambda content: content[:-1],
    "deleted": lambda content: None,
    "empty": lambda content: b"",
}
WIDE: dict[str, Damage] = {
    **{f"flip {seed}": lambda content, seed=seed: flipped(content, seed) for seed in range(1, 8)},  # type: ignore[misc]
    **{f"head {seed}": lambda content, seed=seed: head_flipped(content, seed) for seed in range(4)},  # type: ignore[misc]
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\n",
    "twice": lambda content: content + content,
    "zeros": lambda content: bytes(len(content)),
}


@contextlib.contextmanager
def damaged(path: Path, damage: Damage) -> Iterator[None]:
    content = path.read_bytes()
    changed = damage(content)
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(content)


# --- what reads a folder -------------------------------------------------------------------------------------------


class Ended(Exception):
    """A command ended with an error."""


def command(*argv: str) -> str:
    """What a command prints as JSON, without where it is kept and how long it took. Raises Ended with what it told the person."""
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        code = main([*argv, "--json"])
    if code == REFUSED:
        raise Ended(told.getvalue())
    assert code in (0, 9), told.getvalue()  # 9: a check of the doctor's that fails
    shown = json.loads(out.getvalue())
    return json.dumps({name: value for name, value in shown.items() if name not in ("artefact", "seconds")})


def content_of(value: Any) -> str:
    """A hash of everything a value holds, so that two can be compared: arrays bit by bit."""
    if isinstance(value, np.ndarray):
        return sha256_of([str(value.dtype), list(value.shape), value.tobytes().hex()])
    if isinstance(value, (list, tuple)):
        return sha256_of([content_of(part) for part in value])
    if isinstance(value, (RewardParts, FitResponses)) or hasattr(value, "__dataclass_fields__"):
        return sha256_of({name: content_of(getattr(value, name)) for name in value.__dataclass_fields__})
    if isinstance(value, dict):
        return sha256_of({str(name): content_of(part) for name, part in value.items()})
    return repr(value)


def loaded(model: SparseRM) -> str:
    return content_of([model.parts, model.known])


def kept(folder: Path) -> str:
    """What the Response page shows of a pair, without an engine."""
    model = ModelFolder(folder)
    worst, latents = int(model.ranked("misranked")[0]), [int(row["latent_id"]) for row in model.parts.selection]
    return content_of([model.margins, explain_pair(model, worst).to_json(), switchboard_of(model).off(latents[:1]), switchboard_of(model).off(())])


def pages(folder: Path) -> str:
    """What Overview, Latents and Preferences read of a model."""
    model = in_cache(folder)
    shown = [model.config, model.evaluation, model.curve, model.selection, model.faithfulness, model.latents, model.splits]
    return content_of([shown, model.parts, model.responses, model.rewards, model.margins, overview.headline(model), overview.facts(model)])


def in_cache(folder: Path) -> FittedModel:
    """As if this folder were an artefact."""
    manifest = {"fingerprint": "0" * 64, "time_created": 0.0, "facts": ABOUT}
    return FittedModel(Artefact(path=folder, manifest=manifest), Store())


ABOUT = {
    "data": "pairs.jsonl",
    "backbone": "tiny",
    "layer": 1,
    "position": "response_end",
    "selection": {"k_chosen": 1, "k_rejected": 1, "n_live": 2, "k": 2},
}


def serve(folder: Path) -> str:
    """`sparserm serve`, and what starts the process for the pages."""
    with contextlib.suppress(StoreError):
        start(server_folder_of(folder))
        raise AssertionError("the process of a damaged model was started")
    return command("serve", str(folder))


def scored(model: Path, folder: Path) -> str:
    """The scored rows and the report of `folder`'s rows."""
    out = folder / "scored.jsonl"
    return command("score", str(model), str(folder / "rows.jsonl"), "--out", str(out)) + out.read_text()


ASKED = ["--prompt", "How are you?", "--response", "Fine, thank you."]
READERS: dict[str, Callable[[Path], str]] = {
    "score": lambda folder: scored(folder, folder.parent),
    "explain": lambda folder: command("explain", str(folder), *ASKED),
    "explain pair": lambda folder: command("explain", str(folder), *ASKED, "--rejected", "No."),
    "explain misranked": lambda folder: command("explain", str(folder), "--most-misranked"),
    "explain worst": lambda folder: command("explain", str(folder), "--worst"),
    "doctor": lambda folder: command("doctor", str(folder), *DOCTOR_OPTIONS),
    "spaces": lambda folder: command("spaces", str(folder), "--random-draws", "1"),
    "latents": lambda folder: command("latents", str(folder), *LATENTS_OPTIONS),
    "labels list": lambda folder: command("labels", "list", str(folder)),
    "load": lambda folder: loaded(SparseRM.load(folder)),
    "from_pretrained": lambda folder: loaded(SparseRM.from_pretrained(folder)),
    "align --arm": lambda folder: loaded(SparseRM.load(judge_folder(str(folder), folder.parent / "another"))),
    "kept": kept,
    "pages": pages,
    "a run's device": lambda folder: repr(DOCTOR.backbone(DoctorRunConfig(model=str(folder)))),
}
# Begun with a whole folder these go on for long, or for ever: only their refusal is tried.
STARTERS: dict[str, Callable[[Path], str]] = {
    "serve": serve,
    "align": lambda folder: command("align", "--preset", "tiny", "--reward-model", str(folder)),
    "align by another": lambda folder: command("align", "--preset", "tiny", "--arm", str(folder)),
}


# --- the battery ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model, copied out."""
    folder = tmp_path_factory.mktemp("damage") / "model"
    command("fit", "--preset", "tiny", "--out", str(folder))
    rows = [{"prompt": "How are you?", "response": "Fine."}, {"prompt": "How are you?", "response": "Who asks?"}]
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {path.name for path in folder.iterdir()} == {*FILES, "controls"}
    return folder


@pytest.fixture(scope="module")
def before(whole: Path) -> dict[str, str]:
    """What each reader gives for the whole folder. Each runs twice: what the second run finds in the cache must be the same."""
    first = {name: read(whole) for name, read in READERS.items()}
    assert {name: read(whole) for name, read in READERS.items()} == first
    return first


def refusal(read: Callable[[Path], str], folder: Path) -> tuple[str, str]:
    """What a reader says, and what it refuses with."""
    try:
        return read(folder), ""
    except (Ended, SparseRMError) as error:
        return "", str(error)


def is_noticed(path: Path, content: bytes) -> bool:
    """Whether a damage changes what the file holds: white space between the values of config.json changes no figure."""
    try:
        return path.name != "config.json" or not path.is_file() or json.loads(path.read_bytes()) != json.loads(content)
    except ValueError:
        return True


def tried(folder: Path, name: str, damage: Damage, before: dict[str, str]) -> None:
    content = (folder / name).read_bytes()
    with damaged(folder / name, damage):
        noticed = is_noticed(folder / name, content)
        for reader, read in {**READERS, **(STARTERS if noticed else {})}.items():
            figures, error = refusal(read, folder)
            if noticed:
                assert name in error, f"{reader} says of a damaged {name}: {error or figures[:200]}"
                assert ("\n  expected: " in error and "\n  found: " in error) or "there is no reward model" in error, error
                assert "\n  to do: " in error, error
            else:
                assert (figures, error) == (before[reader], ""), reader


@pytest.mark.parametrize("damage", QUICK)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_by_every_command(whole: Path, before: dict[str, str], name: str, damage: str) -> None:
    tried(whole, name, QUICK[damage], before)


@pytest.mark.slow
@pytest.mark.parametrize("damage", WIDE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_whatever_the_damage(whole: Path, before: dict[str, str], name: str, damage: str) -> None:
    tried(whole, name, WIDE[damage], before)


@pytest.mark.parametrize("kind", ["activations", "dense", "random-isotropic", "random-rows"])
def test_a_control_has_a_record_of_its_own(whole: Path, before: dict[str, str], kind: str) -> None:
    control = whole / "controls" / kind
    read = {"load": READERS["load"], "score": lambda folder: scored(folder, whole.parent)}
    figures = {name: reader(control) for name, reader in read.items()}
    for path in sorted(control.iterdir()):
        content = path.read_bytes()
        for damage in QUICK.values() if content else (QUICK["deleted"], lambda _: b"x"):
            with damaged(path, damage):
                if not is_noticed(path, content):
                    assert {name: reader(control) for name, reader in read.items()} == figures
                    continue
                assert all(path.name in refusal(reader, control)[1] for reader in read.values())
                assert path.name in refusal(lambda _: loaded(SparseRM.load(judge_folder(kind, whole))), whole)[1]
                assert READERS["load"](whole) == before["load"]  # the reward model itself is whole
    assert READERS["score"](whole) == before["score"]


def test_a_model_in_the_cache_is_checked_as_well(whole: Path, before: dict[str, str]) -> None:
    """By its folder and by its id: a flipped byte keeps the size, so the store's own look at an artefact passes it."""
    fitted = [model for model in models.models() if (model.path / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()]
    assert len(fitted) == 1 and READERS["load"](fitted[0].path) == before["load"]
    model, path = fitted[0], fitted[0].path / "heads.safetensors"
    assert overview.facts(model)[-1] == ("Checked", "8 files, each as it was saved")
    with damaged(path, QUICK["flip 0"]):
        for read in (
            READERS["load"],
            READERS["kept"],
            READERS["explain misranked"],
            STARTERS["serve"],
            lambda folder: command("labels", "list", str(folder)),
        ):
            error = refusal(read, model.path)[1]
            assert "heads.safetensors is damaged" in error and "to do: `sparserm cache verify` moves it aside; then fit it again" in error
        again = models.find(model.id)
        assert again is not None and again.title == model.title  # it stands in the list of all, and its pages say what is wrong
        for name in ("config", "evaluation", "curve", "selection", "faithfulness", "parts", "responses", "rewards"):
            with pytest.raises(StoreError, match=r"heads\.safetensors is damaged"):
                getattr(models.find(model.id), name)
        with pytest.raises(Ended, match=r"heads\.safetensors is damaged"):
            command("fit", "--preset", "tiny", "--out", str(whole.parent / "second copy"))
        assert not (whole.parent / "second copy").exists()
        with pytest.raises(Ended, match="1 of"):
            command("cache", "verify")
        command("fit", "--preset", "tiny", "--out", str(whole.parent / "second copy"))
        path.unlink()  # the new one's, written anew below
    assert READERS["load"](whole.parent / "second copy") == before["load"]


def test_an_older_folder_is_read_and_its_commands_say_so(whole: Path, before: dict[str, str], tmp_path: Path) -> None:
    """In a terminal and beside JSON. Its figures are those of the same folder with a record."""
    older = whole.parent / "older"
    shutil.copytree(whole, older)
    forget_record(older)
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        assert main(["explain", str(older), "--most-misranked", "--json"]) == 0
    assert told.getvalue().count("records no hashes of its files: nobody can tell whether they are whole") == 1
    assert {name: READERS[name](older) for name in ("score", "explain misranked", "load", "kept")} == {
        name: before[name] for name in ("score", "explain misranked", "load", "kept")
    }
    model = in_cache(older)
    assert overview.facts(model)[-1] == ("Checked", overview.NO_RECORD)

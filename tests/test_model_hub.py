"""Saving to and loading from the Hub by huggingface_hub's mixin; the network is mocked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin as mixin
import pytest
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.errors import RepositoryNotFoundError
from model_helpers import IDENTITY, FakeReader, make_parts
from test_model_folder import assert_same

from core.errors import StoreError
from core.reward import model as model_module
from core.reward.model import SparseRM
from core.reward.parts import KINDS, RewardParts


def reward_model(parts: RewardParts | None = None) -> SparseRM:
    parts = parts or make_parts()
    return SparseRM(parts, FakeReader(parts.d_model))


@pytest.mark.parametrize("kind", KINDS)
def test_save_pretrained_and_back(tmp_path: Path, kind: str) -> None:
    parts = make_parts(kind)
    assert reward_model(parts).save_pretrained(tmp_path / "saved") is None
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "README.md", "config.json", "heads.safetensors", "model.safetensors", "selection.jsonl"
    ]  # fmt: skip
    assert_same(SparseRM.from_pretrained(tmp_path / "saved").parts, parts)
    # The folder is the one `save` writes, and saving over it again is allowed: that is the mixin's way.
    reward_model(parts).save(tmp_path / "plain")
    reward_model(parts).save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "saved" / file.name).read_bytes()


class FakeApi:
    """Keeps what would be uploaded."""

    uploaded: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, token: str | None = None) -> None:
        self.uploaded.clear()
        self.uploaded["token"] = token

    def create_repo(self, **given: Any) -> Any:
        self.uploaded["repo"] = given
        return type("Url", (), {"repo_id": given["repo_id"]})()

    def upload_folder(self, *, folder_path: Path, **given: Any) -> str:
        self.uploaded.update(given, files={p.name: p.read_bytes() for p in folder_path.iterdir()})
        return "https://hub/commit/1"


def test_push_to_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mixin, "HfApi", FakeApi)
    assert isinstance(reward_model(), ModelHubMixin)
    assert reward_model().push_to_hub("me/polite-rm", private=True, token="t", commit_message="first") == "https://hub/commit/1"
    uploaded = FakeApi.uploaded
    assert (uploaded["token"], uploaded["repo"]) == ("t", {"repo_id": "me/polite-rm", "private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["repo_type"], uploaded["commit_message"]) == ("me/polite-rm", "model", "first")
    reward_model().save(tmp_path / "plain")
    assert {p.name: p.read_bytes() for p in (tmp_path / "plain").iterdir()} == {n: b for n, b in uploaded["files"].items() if n != "README.md"}
    assert uploaded["files"]["README.md"].decode() == str(reward_model().generate_model_card())


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = reward_model().save(tmp_path / "snapshot")
    asked: list[Any] = []

    def download(repo_id: str, **given: Any) -> str:
        asked.append((repo_id, given["revision"], given["token"]))
        assert "README.md" not in given.get("allow_patterns", [])
        return str(folder)

    monkeypatch.setattr(mixin, "hf_hub_download", lambda **given: str(folder / given["filename"]))
    monkeypatch.setattr(model_module, "snapshot_download", download)
    loaded = SparseRM.from_pretrained("me/polite-rm", revision="v1", token="t")
    assert asked == [("me/polite-rm", "v1", "t")]
    assert_same(loaded.parts, make_parts())


def test_a_damaged_hub_copy_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = reward_model().save(tmp_path / "snapshot")
    (folder / "model.safetensors").write_bytes(b"no")
    monkeypatch.setattr(mixin, "hf_hub_download", lambda **given: str(folder / given["filename"]))
    monkeypatch.setattr(model_module, "snapshot_download", lambda *_names, **_given: str(folder))
    with pytest.raises(StoreError, match=r"model\.safetensors is damaged"):
        SparseRM.from_pretrained("me/polite-rm")


def missing(**_given: Any) -> str:
    raise RepositoryNotFoundError("404 Client Error\nand more", response=type("R", (), {"headers": {}, "request": None})())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("me/nothing", r"there is no reward model me/nothing, here or on the Hub\n  found: \w+: .*\n  to do: check the name and the revision"),
        ("no/such/folder", r"there is no reward model no/such/folder, here or on the Hub\n  found: HFValidationError: "),
    ],
)
def test_what_is_not_there(name: str, said: str) -> None:
    # Without a network (HF_HUB_OFFLINE in conftest) an unknown repository is one that can't be reached.
    with pytest.raises(StoreError, match=said):
        SparseRM.from_pretrained(name)


def test_what_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixin, "hf_hub_download", missing)
    monkeypatch.setattr(model_module, "snapshot_download", lambda *_names, **given: missing(**given))
    with pytest.raises(StoreError, match=r"found: RepositoryNotFoundError: 404 Client Error\n  to do: .*hf auth login"):
        SparseRM.from_pretrained("me/nothing")


def test_the_card_says_what_the_model_is() -> None:
    card = reward_model().generate_model_card()
    text = str(card)
    assert card.data.base_model == "toy/backbone" and card.data.library_name == "sparserm-workbench"
    assert {"reward-model", "model_hub_mixin", "sparserm"} <= set(card.data.tags)
    for said in (
        "| backbone | toy/backbone, c0ffee, float32 |",
        "| layer | 2, counted from 0",
        "| test | 0.750 | 0.700 to 0.800 | 120 |",
        "first 3 decoder",
    ):
        assert said in text, said
    assert ModelCard(text).data.to_dict() == card.data.to_dict()  # its header is valid YAML


def test_the_card_survives_strange_names_and_no_figures() -> None:
    parts = make_parts("dense", backbone={**IDENTITY, "name": "a|b {{ 7 * 7 }}\n# x"}, evaluation={})
    card = reward_model(parts).generate_model_card()
    assert "49" not in str(card) and "| backbone | a/b (( 7 * 7 )) # x, c0ffee, float32 |" in str(card)
    assert "Not measured." in str(card) and "| SAE | none |" in str(card) and card.data.base_model is None


def test_the_cards_three_lines_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Card and module docstring show the same three lines; they are run on a folder."""
    text = str(reward_model().generate_model_card())
    code = text.partition("```python\n")[2].partition("```")[0]
    documented = [line.strip() for line in str(model_module.__doc__).splitlines() if line.startswith("    ")][:3]
    assert code.splitlines()[::2] == documented[::2] and documented[1] == 'reward_model = SparseRM.load("path/of/a/folder")'
    reward_model().save(tmp_path / "rm")
    shutil.move(tmp_path / "rm", tmp_path / "this repository's id")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_module, "BackboneReader", lambda parts, *_given: FakeReader(parts.d_model))
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["rewards"].shape == (1,)

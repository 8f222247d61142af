"""`sparserm pairs`: what is counted, and that shortcuts are measured as the controls of a fit measure them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.cli.main import main
from core.config import DataConfig, PairsRunConfig
from core.errors import DataError
from core.fit.pairs_check import check_pairs, shortcuts
from core.jobs.pairs import PAIRS, completed
from core.runs.store import Store
from core.types import PreferencePair, PreferencePairs


def pairs(n: int, *, side: str = "chosen") -> PreferencePairs:
    """The longer answer is on one side, and a telling word in two of three chosen answers."""
    made = []
    for i in range(n):
        chosen = ["kindly", "kindly so", "so"][i % 3]
        long, short = "word " * 5 + chosen, chosen
        answers = (long, "rude") if side == "chosen" else (short, "word " * 9 + "rude")
        made.append(PreferencePair(pair_id=str(i), prompt=({"role": "user", "content": f"q{i // 2}"},), chosen=answers[0], rejected=answers[1]))
    splits = tuple(["train", "validation", "test"][min(i * 3 // n, 2)] for i in range(n))
    return PreferencePairs(pairs=tuple(made), split=splits, source="made")


@pytest.mark.parametrize(("side", "note"), [("chosen", "more characters win"), ("rejected", "fewer characters win")])
def test_length_learns_its_side_on_training_pairs(side: str, note: str) -> None:
    found = shortcuts(pairs(60, side=side))
    assert found["length-only"]["accuracy"] == 1.0 and found["length-only"]["n"] == 20 and found["length-only"]["note"] == note
    assert found["wording-only"]["accuracy"] == 1.0 and 0 < found["wording-only"]["low"] < 1
    assert all((one["split"], one["unit"]) == ("test", "characters") for one in found.values()), "on which pairs, and in what"


def test_shortcuts_are_judged_on_pairs_they_did_not_learn_from() -> None:
    made = pairs(60)
    turned = [
        PreferencePair(pair_id=p.pair_id, prompt=p.prompt, chosen=p.rejected, rejected=p.chosen) if s == "test" else p
        for p, s in zip(made, made.split, strict=True)
    ]
    found = shortcuts(PreferencePairs(pairs=tuple(turned), split=made.split))
    assert found["length-only"]["accuracy"] == 0.0 and found["wording-only"]["accuracy"] == 0.0
    only_train = PreferencePairs(pairs=made.pairs, split=("train",) * 60)
    assert shortcuts(only_train) == {}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad thing {i}"} for i in range(40)]
    rows += [rows[0], {"prompt": "q0", "chosen": "bad thing 0", "rejected": "good 0"}, {"prompt": "only"}]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_check_counts_every_row_and_is_found_again(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path / "cache"))
    assert main(["pairs", "--pairs", str(source), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    data, split = found["data"], found["split"]
    assert (data["n_rows"], data["n_used"], len(data["refused"])) == (43, 42, 1) and data["refused"][0]["row"] == 43
    assert data["duplicates"]["n_exact_extra"] == 2 and data["duplicates"]["n_contradictory_groups"] == 1
    assert sum(split["n_pairs"].values()) == 42 and set(found["shortcuts"]) == {"wording-only", "length-only"}
    kept = (Path(found["artefact"]) / "pairs.jsonl").read_text().splitlines()
    assert len(kept) == 42
    before = Path(found["artefact"]).stat().st_mtime_ns
    assert main(["pairs", "--pairs", str(source)]) == 0
    shown = capsys.readouterr().out
    assert (
        "1 of 43 rows refused" in shown
        and "43" in shown.partition("rows refused")[2]
        and "on all test pairs" in shown
        and "wording-only" in shown
        and Path(found["artefact"]).stat().st_mtime_ns == before
    )
    assert check_pairs(DataConfig(pairs=str(source), seed=1), Store(tmp_path / "cache")).path != Path(found["artefact"])


def test_a_file_without_pairs_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}')
    assert main(["pairs", "--pairs", str(path)]) == DataError.exit_code
    assert "columns a" in capsys.readouterr().err


def test_a_check_waits_for_no_device() -> None:
    """Its queue is its own: a fit that takes an hour must not hold it up."""
    from core.jobs.fit import FIT
    from core.jobs.job import devices_of

    config = completed(PairsRunConfig())
    assert devices_of(PAIRS.backbone(config)) == ("text",) and Path(config.data.pairs).is_absolute() and completed(config) == config
    from core.config import FitConfig

    assert "text" not in devices_of(FIT.backbone(FitConfig()))
    assert np.isfinite(PAIRS.disk(config, Path())) and PAIRS.plan(config, Store(Path()), lambda *_, **__: None).seconds > 0


def test_a_folders_report_is_renewed_if_only_refused_rows_change(tmp_path: Path) -> None:
    """A folder is known by what it gave; the same pairs with another row refused must not be served the old report."""
    folder, store = tmp_path / "data", Store(tmp_path / "store")
    folder.mkdir()
    good = [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)]

    def checked(rows: list[dict[str, str]]) -> Any:
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return check_pairs(DataConfig(pairs=str(folder)), store)

    before, after = checked(good), checked([*good, {"prompt": "q", "chosen": "", "rejected": "no"}])
    reports = [json.loads(artefact.file("report.json").read_text())["data"] for artefact in (before, after)]
    assert [len(report["refused"]) for report in reports] == [0, 1] and reports[1]["refused"][0]["row"] == 21

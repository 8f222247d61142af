"""Pairs that leave the computation between file and figure: counted, by split, side and reason, wherever a figure stands.

One fit of the toy model on pairs of which a known part is too long. What must be counted is computed here from the
tokenizer and the chat template alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from core.backbone.presets import preset
from core.cli import tables
from core.cli.main import main
from core.config import DataConfig, FitConfig
from core.data.pairs import load_pairs
from core.data.pairs_file import read_pairs
from core.data.splits import split_pairs
from core.errors import DataError
from core.fit.pipeline import fit, sweep
from core.reward.model import SparseRM
from core.reward.pair_counts import FIRST, LISTED, OTHER, LostPair, lost_pairs, pair_counts, reason_kind, sentences
from core.runs.store import Artefact, Store, cache_root
from core.types import PreferencePair, PreferencePairs

LIMIT = 96  # tokens
LONG = "It needs patience, a table and good light. " * 12
SIDES = ("chosen", "rejected")


def rows() -> list[dict[str, Any]]:
    """70 rows: of 60 prompts every sixth has a long chosen answer, the next a long rejected one, the next both, the next turns
    that must be dropped; then eight ordinary ones and two that no reader takes."""
    made: list[dict[str, Any]] = []
    for number in range(60):
        kind, prompt = number % 6, [{"role": "user", "content": f"How do I boil egg {number}?"}]
        answers = {"chosen": f"Take your time {number}, gladly", "rejected": f"Ask someone {number}, fool"}
        if kind == 3:
            turns = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "Most people manage on the third day"}]
            prompt = [*turns, *prompt]
        answers["chosen"] = LONG + answers["chosen"] if kind in (0, 2) else answers["chosen"]
        answers["rejected"] = LONG + answers["rejected"] if kind in (1, 2) else answers["rejected"]
        texts = {side: [{"role": "assistant", "content": text}] for side, text in answers.items()}
        made.append({"id": f"x{number}", "prompt": prompt, **texts, "subset": ("short", "long")[kind < 3]})
    made += [{**row, "id": f"again-{row['id']}", "rejected": [{"role": "assistant", "content": "nope"}]} for row in made[4:52:6]]
    return [*made, {**made[4], "chosen": []}, {"prompt": made[4]["prompt"]}]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fit with over-long pairs: its outcome as JSON, its folder, what the terminal showed, what the log said, and its config."""

    outcome: Mapping[str, Any]
    folder: Path
    shown: str
    logged: str
    config: FitConfig
    store: Store


@cache
def fitted() -> Fitted:
    source = cache_root() / "over-long.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    config = preset("tiny")
    config = replace(
        config,
        data=DataConfig(pairs=str(source)),
        backbone=replace(config.backbone, max_length=LIMIT),
        selection=replace(config.selection, resamples=20),
        head=replace(config.head, seeds=2, epochs=10),
        random_draws=1,
        curve=(4,),
    )
    store, log, out = Store(cache_root() / "over-long"), io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger("core").addHandler(handler)
    outcome = fit(config, store)
    logging.getLogger("core").removeHandler(handler)
    found = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    with contextlib.redirect_stdout(out):
        tables.print_fit(found)
    return Fitted(outcome=found, folder=outcome.artefact, shown=out.getvalue(), logged=log.getvalue(), config=config, store=store)


@cache
def expected() -> dict[str, Counter[str]]:
    """By split: pairs, and which side is over the limit, and which were cut; from the template and the tokenizer alone."""
    from transformers import AutoTokenizer

    config = fitted().config
    tokenizer = AutoTokenizer.from_pretrained(config.backbone.model)
    pairs = split_pairs(load_pairs(config.data)[0], config.data)

    def too_long(prompt: Any, answer: str) -> bool:
        text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) > LIMIT

    counts: dict[str, Counter[str]] = {name: Counter() for name in ("train", "validation", "test", "unused")}
    for pair, split in zip(pairs, pairs.split, strict=True):
        over = [side for side in SIDES if too_long(pair.prompt[-1:], getattr(pair, side))]
        counts[split]["n_pairs"] += 1
        counts[split]["both" if len(over) > 1 else over[0] if over else "kept"] += 1
        if not over and any(too_long(pair.prompt, getattr(pair, side)) for side in SIDES):
            counts[split]["cut"] += 1
    return counts


def test_the_example_loses_and_cuts_some_of_every_split() -> None:
    for name in ("train", "validation", "test"):
        found = expected()[name]
        assert found["kept"] > 2 and found["n_pairs"] - found["kept"] > 2, "else the tests below show nothing"
    assert expected()["test"]["cut"] and expected()["train"]["cut"]


def test_counts_are_those_of_the_tokenizer() -> None:
    counts = fitted().outcome["pair_counts"]
    for name, found in expected().items():
        one = counts["splits"][name]
        assert (one["n_pairs"], one["n_kept"], one["n_shortened"]) == (found["n_pairs"], found["kept"], found["cut"]), name
        assert one["n_refused"] == one["n_pairs"] - one["n_kept"]
        assert one["by_side"] == {side: found[side] for side in ("chosen", "rejected", "both")}
        assert one["by_reason"] == ({f"more than {LIMIT} tokens": one["n_refused"]} if one["n_refused"] else {})
    total = sum(one["n_pairs"] - one["kept"] for one in expected().values())
    assert (counts["n_rows"], counts["n_rows_refused"], counts["n_pairs"]) == (70, 2, 68)
    assert (counts["n_pairs_refused"], counts["n_refused"]) == (total, total + 2) and total == 30
    assert counts["rows_by_reason"].keys() and sum(counts["rows_by_reason"].values()) == 2
    assert [row["row"] for row in counts["first_rows"]] == [69, 70]
    assert [row["row"] for row in counts["first_pairs"]] == [1, 2, 3, 7, 8, 9, 13, 14], "rows of the file, counted from 1"
    assert [row["side"] for row in counts["first_pairs"][:3]] == ["chosen", "rejected", "both"]


def test_n_is_the_number_of_pairs_that_were_measured() -> None:
    """Beside every accuracy: of test pairs what is kept of the test split, of validation pairs likewise."""
    outcome, kept = fitted().outcome, {name: found["kept"] for name, found in expected().items()}
    entries = [outcome["sparserm"], *outcome["controls"].values(), *outcome["losses"].values()]
    for entry in entries:
        assert {entry["n"], entry["mean"]["n"], *(head["n"] for head in entry["heads"])} == {kept["test"]}
        assert entry["validation"]["n"] == kept["validation"]
        assert sum(one["n"] for one in entry["subsets"].values()) == kept["test"]
    assert {point["n"] for point in outcome["curve"]} == {kept["validation"]}
    assert outcome["measured_on"]["n_pairs"] == kept["test"] and "can read" in outcome["measured_on"]["which"]


def test_the_folder_says_it() -> None:
    config = json.loads((fitted().folder / "config.json").read_text())
    counts = fitted().outcome["pair_counts"]
    assert config["method"]["pair_counts"] == counts
    data = config["method"]["data"]
    assert (data["n_rows_refused"], data["n_pairs_refused"], data["n_refused"]) == (2, 30, 32)
    for split, figures in config["evaluation"].items():
        one = expected()[split]
        assert (figures["n"], figures["n_refused"], figures["n_shortened"]) == (one["kept"], one["n_pairs"] - one["kept"], one["cut"])
    assert json.loads((fitted().folder / "evaluation.json").read_text())["pair_counts"] == counts
    control = json.loads((fitted().folder / "controls" / "dense" / "config.json").read_text())
    assert control["method"]["pair_counts"] == counts and control["evaluation"]["test"]["n_refused"] > 0


def test_the_manifest_and_the_log_say_it() -> None:
    (model,) = [one for _, one in fitted().store.all("reward_model") if isinstance(one, Artefact)]
    assert model.facts["pair_counts"]["splits"] == fitted().outcome["pair_counts"]["splits"]
    assert "first_pairs" not in model.facts["pair_counts"], "a manifest holds no lists of rows"
    assert "can't read 30 of 68 pairs" in fitted().logged, "and so do a run's events, which take the log"


def test_the_foot_of_the_table_says_it() -> None:
    foot, test = fitted().shown, expected()["test"]
    where = ", ".join(f"{one['n_pairs'] - one['kept']} of {one['n_pairs']} in {name}" for name, one in expected().items() if one["n_pairs"])
    assert f"({where})" in foot and f"of {test['n_pairs']} in test)" in where + ")", "the splits in their own order, the file's keys are sorted"
    assert "Left out: the language model can't read 30 of 68 pairs" in foot
    assert f"more than {LIMIT} tokens: 30 pairs (the first in rows 1, 2, 3, 7, 8, 9, 13, 14)" in foot
    cut = sum(one["cut"] for one in expected().values())
    assert f"Cut: the prompts of {cut} of 38 pairs lost their leading turns, to fit {LIMIT} tokens" in foot
    assert "2 of 70 rows of the source can't be used" in foot and "(row 69)" in foot


def test_the_card_says_it() -> None:
    model = SparseRM.load(fitted().folder)
    text, test = str(model.generate_model_card()), expected()["test"]
    assert f"| {test['kept']} | {test['n_pairs'] - test['kept']} |" in text
    assert "can't read 30 of 68 pairs" in text and "2 of 70 rows" in text


def test_a_sweep_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = sweep([replace(fitted().config, curve=(4,))], fitted().store).to_json()
    assert outcome["pair_counts"] == fitted().outcome["pair_counts"] and outcome["best"]["n"] == expected()["validation"]["kept"]
    tables.print_sweep(outcome)
    assert "can't read 30 of 68 pairs" in capsys.readouterr().out


def test_refusing_instead_of_cutting_counts_the_cut_ones_as_lost() -> None:
    config = fitted().config
    outcome = fit(replace(config, backbone=replace(config.backbone, over_length="refuse")), fitted().store)
    counts, cut = outcome.to_json()["pair_counts"], sum(one["cut"] for one in expected().values())
    assert counts["n_shortened"] == 0 and counts["n_pairs_refused"] == 30 + cut > 30


def test_an_empty_split_is_an_error_that_says_why() -> None:
    config = fitted().config
    with pytest.raises(DataError, match=r"no pair of the (train|validation) split can be read") as error:
        # Splits of one and two prompts, by a seed that gives the one or the other over-long prompts only.
        fit(replace(config, data=replace(config.data, ratios=(0.02, 0.03, 0.95), seed=1)), fitted().store)
    assert f"more than {LIMIT} tokens" in str(error.value) and "--max-length" in str(error.value)


def test_two_files_with_equal_good_rows_differ_in_their_losses(tmp_path: Path) -> None:
    """The figures are found again, the count of unusable rows must not be."""
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in [*rows(), {"prompt": "nothing else"}]))
    config = fitted().config
    outcome = fit(replace(config, data=replace(config.data, pairs=str(more))), fitted().store).to_json()
    assert outcome["pair_counts"]["n_rows_refused"] == 3 and outcome["sparserm"]["n"] == fitted().outcome["sparserm"]["n"]


# --- scoring ---------------------------------------------------------------------------------------------------------


def scored(*words: str) -> int:
    return main(["score", str(fitted().folder), fitted().config.data.pairs, *words])


def test_score_says_what_it_left_out_and_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file of the fit again: 68 pairs of 70 rows, of which 30 are too long; those that were cut are cut again."""
    cut = sum(one["cut"] for one in expected().values())
    assert scored("--out", str(tmp_path / "out.jsonl")) == 0
    foot = capsys.readouterr().err
    assert "38 of 68 pairs scored, from 70 rows, accuracy" in foot and "38 pairs" in foot
    assert "left out: 2 rows that can't be used, 30 pairs that can't be read" in foot and f"more than {LIMIT} tokens" in foot
    assert f"cut: the prompts of {cut} pairs lost their leading turns" in foot
    assert scored("--out", str(tmp_path / "out.jsonl"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n_rows"], report["n_rows_refused"], report["n_items"], report["n_items_refused"]) == (70, 2, 68, 30)
    assert (report["n_refused"], report["n_scored"], report["pairs"]["n"], report["n_shortened"]) == (32, 38, 38, cut)


def test_scores_on_standard_output_do_not_hide_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert scored("--json") == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 38 and json.loads(shown.err.splitlines()[-1])["n_refused"] == 32


# --- by hand ---------------------------------------------------------------------------------------------------------


def made_pairs(n: int, split: str = "test", **meta: Any) -> PreferencePairs:
    pairs = tuple(
        PreferencePair(
            pair_id=f"p{i}",
            prompt=({"role": "user", "content": f"q{i // 2}"},),
            chosen=f"a{i}",
            rejected=f"b{i}",
            meta={"row": i + 1, **meta},
        )
        for i in range(n)
    )
    return PreferencePairs(pairs=pairs, split=(split,) * n)


NOTHING: dict[str, Any] = {"refused": [], "shortened_pairs": [], "closing_tokens_cut": 0, "closing_tokens": [], "thinking": {}}
READING = {"max_length": 10, "over_length": "refuse", "control_tokens": "refuse", "think": "keep"}


def data_report(**changes: Any) -> dict[str, Any]:
    duplicates = {f"n_{name}_extra": 0 for name in ("exact", "contradictory", "near")}
    return {"n_rows": 50, "refused": [], "refused_by_reason": {}, "duplicates": duplicates, **changes}


def counted(reasons: list[str], n: int = 50, **data: Any) -> dict[str, Any]:
    refused = [{"row": i, "field": "chosen", "reason": reason} for i, reason in enumerate(reasons)]
    report = {**NOTHING, "refused": refused, "refused_sides": ["chosen"] * len(refused)}
    return pair_counts(made_pairs(n), data_report(**data), report, READING)


def test_reasons_are_counted_by_kind() -> None:
    assert reason_kind("1,140 tokens, at most 128 are read") == "more than 128 tokens"
    assert reason_kind("3 control tokens") == "N control tokens" and reason_kind("a\x1b[2Jb") == r"a\x1b[2Jb"
    many = [f"reason {chr(97 + i)}" for i in range(24)] + ["11 tokens, at most 10 are read", "12 tokens, at most 10 are read"]
    found = counted(many)["by_reason"]
    assert next(iter(found.items())) == ("more than 10 tokens", 2) and len(found) == LISTED + 1
    assert sum(found.values()) == 26 and found[OTHER] == 5
    long = counted(["too long"] * 30)
    assert len(long["first_pairs"]) == FIRST and long["n_pairs_refused"] == 30
    late = counted(["too long"] * 30 + ["a rare one"])
    assert late["first_pairs"][-1]["reason"] == "a rare one" and "a rare one: 1 pair (row 31)" in "\n".join(sentences(late))


def test_nothing_lost_is_said_too() -> None:
    assert sentences(counted([])) == ["All 50 pairs were read; nothing was left out."]


def test_limit_and_unused_are_said() -> None:
    found = pair_counts(
        made_pairs(4, "unused"),
        data_report(n_over_limit=7),
        NOTHING,
        READING,
    )
    assert found["n_pairs_over_limit"] == 7
    assert sentences(found) == ["--limit left out 7 pairs.", "4 pairs are in no split (unused)."]


def test_lost_pairs_name_their_row_split_and_side() -> None:
    report = {"refused": [{"row": 3, "field": "chosen", "reason": "x"}], "refused_sides": ["both"]}
    (found,) = lost_pairs(made_pairs(5), report)
    assert isinstance(found, LostPair) and (found.row, found.split, found.side) == (4, "test", "both")


def test_the_command_line_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(cache_root()))
    source = Path(fitted().config.data.pairs)
    words = ["fit", "--preset", "tiny", "--pairs", source, "--max-length", LIMIT, "--seeds", 1, "--epochs", 3, "--random-draws", 1]
    assert main([*map(str, words), "--resamples", "10", "--curve", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pair_counts"]["n_refused"] == 32
    kept = read_pairs(Path(found["artefact"]) / "known.jsonl")
    assert len(kept) == 38

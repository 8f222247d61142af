"""Alignments on disk: prompts, the ledger and its rounds, the audit of dropped pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from statsmodels.stats.proportion import proportion_confint

from core.align import audit
from core.align.filtering import AT_RANDOM, MARGIN
from core.align.presets import ALIGN_PRESETS
from core.align.prompts import choose_prompts
from core.align.records import ALIGNMENT, LEDGER, ROUND, AlignmentRecord, Ledger, alignments, key_of
from core.align.values import Candidate, Decision
from core.config import AlignConfig, DPOConfig
from core.errors import ConfigError, DataError, StoreError
from core.files import write_json, write_json_lines
from core.runs.store import Store
from core.types import PreferencePair, PreferencePairs

ROOT = Path(__file__).resolve().parents[1]


def asked(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def pairs(**splits: int) -> PreferencePairs:
    """Two pairs for each prompt; prompts are named by their split."""
    rows = [(f"{name} {n}", name, side) for name, count in splits.items() for n in range(count) for side in ("a", "b")]
    preference_pairs = tuple(
        PreferencePair(pair_id=f"{q} {side}", prompt=asked(q), chosen=f"yes {side}", rejected=f"no {side}") for q, _, side in rows
    )
    return PreferencePairs(pairs=preference_pairs, split=tuple(name for _, name, _ in rows))


# --- prompts ----------------------------------------------------------------------------------------------------------


def texts(prompts: Any) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in prompts.prompts]


def test_without_a_file_the_unused_or_training_prompts() -> None:
    assert texts(choose_prompts("", pairs(train=3, validation=1, test=2), limit=0, seed=0)) == ["train 0", "train 1", "train 2"]
    free = choose_prompts("", pairs(train=3, test=2, unused=2), limit=0, seed=0)
    assert texts(free) == ["unused 0", "unused 1"] and free.source == "the fit's unused prompts"


def test_held_out_prompts_of_a_file_are_never_asked(tmp_path: Path) -> None:
    rows = [{"prompt": q, "chosen": "a", "rejected": "b"} for q in ("new", "test 0", "validation 0", "train 0", "new")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = choose_prompts(str(tmp_path / "p.jsonl"), pairs(train=1, validation=1, test=1), limit=0, seed=0)
    assert texts(chosen) == ["new", "train 0"] and (chosen.n_held_out, chosen.n_refused) == (2, 0)
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in ("new", "test 0", "train 0", "new", "new", "")))
    chosen = choose_prompts(str(tmp_path / "r.jsonl"), pairs(train=1, test=1), limit=1, seed=0)
    counts = {"n": 1, "source": chosen.source, "n_refused": 1, "n_repeated": 2, "n_held_out": 1, "n_over_limit": 1}
    assert chosen.counts() == counts, "6 rows are counted out"
    (tmp_path / "q.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(DataError, match=r"(?s)no prompt is left.*1 in .*q.jsonl"):
        choose_prompts(str(tmp_path / "q.jsonl"), pairs(train=1, validation=1, test=1), limit=0, seed=0)


def test_a_file_of_prompts_alone(tmp_path: Path) -> None:
    lines = [{"prompt": "one", "id": "x1"}, {"prompt": [*asked("hi"), {"role": "assistant", "content": "ho"}, *asked("two")]}, {"prompt": " "}]
    lines += [{"prompt": [*asked("q"), {"role": "assistant", "content": "a"}]}, {"question": "three"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines) + "not JSON\n")
    chosen = choose_prompts(str(tmp_path / "p.jsonl"), pairs(train=1, test=1), limit=0, seed=0)
    assert texts(chosen) == ["one", "two", "three"] and chosen.n_refused == 3 and chosen.prompts[0].meta == {"id": "x1"}
    assert len(chosen.prompts[1].messages) == 3
    (tmp_path / "none.jsonl").write_text('{"answer": "three"}\n')
    with pytest.raises(DataError, match="holds no prompt"):
        choose_prompts(str(tmp_path / "none.jsonl"), pairs(train=1, test=1), limit=0, seed=0)


def test_a_limit_draws_by_seed_and_keeps_the_order() -> None:
    every = texts(choose_prompts("", pairs(train=50), limit=0, seed=0))
    some = texts(choose_prompts("", pairs(train=50), limit=10, seed=1))
    assert len(some) == len(set(some)) == 10 and [text for text in every if text in some] == some
    assert texts(choose_prompts("", pairs(train=50), limit=10, seed=1)) == some != texts(choose_prompts("", pairs(train=50), limit=10, seed=2))
    assert len(texts(choose_prompts("", pairs(train=5), limit=10, seed=1))) == 5


# --- ledger -----------------------------------------------------------------------------------------------------------


def stands(store: Store, step: str, fingerprint: str, **files: Any) -> str:
    folder = store.folder(step, fingerprint)
    folder.mkdir(parents=True)
    for name, value in files.items():
        name = name.replace("_json", ".json")
        write_json_lines(folder / f"{name}l", value, sort_keys=True) if isinstance(value, list) else write_json(folder / name, value)
    return fingerprint


def test_a_ledger_is_read_while_it_is_written(tmp_path: Path) -> None:
    store, config = Store(tmp_path), ALIGN_PRESETS["demo"]
    assert alignments(tmp_path) == []
    ledger = Ledger(tmp_path, config)
    ledger.add_facts(model="/models/a", judge="/models/a/controls/dense")
    (record,) = alignments(tmp_path)
    assert record.key == key_of(config) and record.config == config and record.rounds == [] and record.result is None
    assert (record.model, record.judge) == (Path("/models/a"), Path("/models/a/controls/dense"))

    candidate = Candidate(candidate_id="c", prompt=asked("q"), chosen="a", rejected="b", raw=("a", "b"), meta={"n": 1})
    decision = Decision(candidate_id="c", kept=False, margin=-1.0, reason=MARGIN, latents=({"latent_id": 3},))
    counts = {"generated": 1, "parsed": 1}
    ledger.add_step(0, "align-evaluation", stands(store, "align-evaluation", "e" * 64, evaluation_json={"reward": 1}))
    ledger.add_step(1, "align-candidates", stands(store, "align-candidates", "c" * 64, candidates_json=[candidate.to_json()], counts_json=counts))
    first, second = record.rounds
    assert first.evaluation == {"reward": 1} and second.candidates == [candidate] and second.counts == counts
    assert second.decisions == [] and second.manifest is None and second.dpo is None and not second.finished
    filtered = stands(store, "align-filter", "f" * 64, decisions_json=[decision.to_json()], counts_json={**counts, "kept": 0, "dropped": 1})
    ledger.add_step(1, "align-filter", filtered)
    assert record.rounds[1].counts["dropped"] == 1
    assert [(kept.candidate_id, kept.margin, kept.latents[0]["latent_id"]) for kept in record.rounds[1].decisions] == [("c", -1.0, 3)]
    ledger.add_step(1, ROUND, stands(store, ROUND, "d" * 64, round_json={"round": 1}))
    assert record.rounds[1].finished and record.rounds[1].manifest == {"round": 1}
    ledger.add_facts(alignment=stands(store, ALIGNMENT, "a" * 64, alignment_json={}))
    assert record.result == store.folder(ALIGNMENT, "a" * 64)


def test_removed_and_foreign_artefacts_are_left_out(tmp_path: Path) -> None:
    config = ALIGN_PRESETS["demo"]
    Ledger(tmp_path, config).add_step(1, "align-filter", "f" * 64)
    assert [record.rounds[0].steps for record in alignments(tmp_path)] == [{}]
    other = tmp_path / "alignments" / "0123456789abcdef"
    other.mkdir()
    (other / LEDGER).write_text(json.dumps({"schema": 99}))
    assert [record.key for record in alignments(tmp_path)] == [key_of(config)]
    with pytest.raises(StoreError, match="this version reads"):
        _ = AlignmentRecord(folder=other).rounds


def test_the_key_is_of_what_changes_the_result() -> None:
    config = AlignConfig()
    assert key_of(config) == key_of(replace(config, dpo=DPOConfig(gradient_checkpointing=True)))
    assert (
        len(
            {
                key_of(changed)
                for changed in (config, replace(config, arm="none"), replace(config, rounds=1), replace(config, dpo=DPOConfig(beta=0.2)))
            }
        )
        == 4
    )


def test_reading_loads_no_engine() -> None:
    heavy = {"torch", "transformers", "peft", "trl", "sklearn"}
    code = f"import sys, core.align.records, core.align.audit, core.align.presets\nprint(sorted(set(sys.modules) & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# --- audit ------------------------------------------------------------------------------------------------------------


def dropped(n: int) -> tuple[list[Candidate], list[Decision]]:
    """Candidates dropped by their margin, and one each that was kept, dropped at random, and too long."""
    candidates = [Candidate(candidate_id=f"c{i:03d}", prompt=asked(f"q{i}"), chosen=f"meant {i}", rejected=f"other {i}") for i in range(n + 3)]
    reasons = [*[MARGIN] * n, "", AT_RANDOM, "too long: 900 tokens"]
    return candidates, [
        Decision(candidate_id=candidate.candidate_id, kept=not reason, margin=-float(i), reason=reason)
        for i, (candidate, reason) in enumerate(zip(candidates, reasons, strict=True))
    ]


def test_cases_are_pairs_dropped_by_margin_in_drawn_order() -> None:
    candidates, decisions = dropped(40)
    every = audit.cases(1, candidates, decisions, n=99, seed=0)
    assert sorted(case.candidate_id for case in every) == [f"c{i:03d}" for i in range(40)]
    assert audit.cases(1, candidates, decisions[::-1], n=10, seed=0) == every[:10], "a longer sample begins with the shorter one"
    assert audit.cases(1, candidates, decisions, n=10, seed=1) != every[:10] and audit.cases(2, candidates, decisions, n=10, seed=0) != every[:10]
    assert 8 < Counter(case.first_is_intended for case in every)[True] < 32, "either answer can stand first"
    for case in every:
        assert case.first.startswith("meant") == case.first_is_intended and {case.first[:5], case.second[:5]} == {"meant", "other"}
        assert case.margin == -float(case.candidate_id[1:])


def test_a_verdict_compares_with_the_intended_winner() -> None:
    candidates, decisions = dropped(40)
    for case in audit.cases(1, candidates, decisions, n=40, seed=0):
        meant = "first" if case.first.startswith("meant") else "second"
        assert case.verdict(meant) == "intended" and case.verdict({"first": "second", "second": "first"}[meant]) == "other"
        assert case.verdict("neither") == "neither" and case.verdict("unsure") == "unsure"
    with pytest.raises(ConfigError, match=r"first \| second \| neither \| unsure"):
        case.verdict("both")


def test_the_newest_judgement_of_each_case_counts(tmp_path: Path) -> None:
    candidates, decisions = dropped(10)
    cases = audit.cases(1, candidates, decisions, n=10, seed=0)
    assert audit.judgements(tmp_path / "none") == [] and audit.agreement([]).accuracy is None
    wrong = "first" if cases[0].first_is_intended else "second"
    audit.judge(tmp_path, cases[0], wrong, by=" me ")
    audit.judge(tmp_path, cases[1], "neither")
    assert audit.judgements(tmp_path)[0].judge == "me"
    assert audit.agreement(audit.judgements(tmp_path)).accuracy == 0.5
    audit.judge(tmp_path, cases[0], "second" if wrong == "first" else "first")
    for case in cases[2:5]:
        audit.judge(tmp_path, case, "first" if case.first_is_intended else "second")
    audit.judge(tmp_path, cases[5], "unsure")
    agreement = audit.agreement(audit.judgements(tmp_path))
    low, high = proportion_confint(2, 5, method="wilson")
    assert (agreement.n, agreement.intended, agreement.other, agreement.neither, agreement.unsure, agreement.accuracy) == (5, 3, 1, 1, 1, 0.4)
    assert (agreement.low, agreement.high) == pytest.approx((low, high))
    assert len((tmp_path / audit.FILE).read_text().splitlines()) == 6 and [path.name for path in tmp_path.glob(".audit.jsonl-*")] == []


def test_a_damaged_audit_is_an_error(tmp_path: Path) -> None:
    (tmp_path / audit.FILE).write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        audit.judgements(tmp_path)

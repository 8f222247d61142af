"""The split over words at a terminal, with and without colours, as bars, as JSON and as a table; and that hidden characters stay shown."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explain_helpers import tiny_explainer
from rich.console import Console

from core.cli.word_view import MarkedTexts, signed
from core.explain.explanation import PairExplanation
from core.explain.text_units import tiles
from core.explain.waterfall import residual_of
from core.explain.word_bars import table_lines, texts_of, word_bars
from core.explain.words import AT_RESPONSE_END, WordTable

WHOLE = "response_mean"
EGG, ANSWER, RUDE = "How do I boil an egg?", "Take your time. Ask someone who has done it before, thanks", "Read the instructions twice, fool"


def table_of(text: str, values: list[float]) -> WordTable:
    """A token a word."""
    table = np.array(values)[:, None]
    return WordTable(
        text=text,
        latent_ids=np.array([3]),
        offsets=np.array(tiles(text, "word")),
        table=table,
        by_head=table.T,
        activations=None,
        agreed=np.ones(1, dtype=bool),
        prompt_part=np.zeros(1),
        start=0.0,
        end=float(table.sum()),
    )


def drawn(texts: dict[str, WordTable], monkeypatch: pytest.MonkeyPatch, *, colours: bool, no_color: bool = False) -> str:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    Console(file=out, width=100, force_terminal=colours, color_system="truecolor" if colours else None).print(MarkedTexts(texts=texts))
    return out.getvalue()


WORDS = table_of("One fine day it rained hard", [0.5, 0.4, 0.01, -0.6, -0.6, 0.2])


def test_signs_stand_where_there_are_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (drawn({"response": WORDS}, monkeypatch, colours=False), drawn({"response": WORDS}, monkeypatch, colours=True, no_color=True)):
        assert "[+0.90 One fine] day [-1.20 it rained] [+0.20 hard]" in text
        assert not re.search(r"\x1b\[[0-9;]*48;", text), "no background"
    assert "Response: its words add -0.090" in drawn({"response": WORDS}, monkeypatch, colours=False)


def test_colours_stand_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn({"response": WORDS}, monkeypatch, colours=True)
    assert "[+0.90" not in text and "48;2;" in text
    assert "48;2;208;104;26m" in text, "the strongest word that lowers is on the deepest orange"
    assert "48;2;47;127;209m" in text, "0.5 of 0.6 is on the deepest blue"
    assert "-0.60" in text and "+0.60" in text and "what a word adds" in text


def test_both_texts_of_a_pair_share_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = table_of("so so", [0.1, -0.1])
    assert "48;2;47;127;209m" not in drawn({"rejected": weak, "chosen": WORDS}, monkeypatch, colours=True).split("Chosen")[0]


def test_hidden_characters_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    words = table_of("a\x1b[31m b\u202ec", [1.0, -1.0])
    for colours in (False, True):
        text = drawn({"response": words}, monkeypatch, colours=colours)
        assert "\x1b[31m" not in text and "␛[31m" in text and "<202e>" in text


def test_many_runs_are_cut_to_the_strongest() -> None:
    words = table_of(" ".join(f"w{i}" for i in range(60)), [(1 if i % 2 else -1) * (1 + i / 100) for i in range(60)])
    text = signed(words)
    assert text.count("[") == 12 and "[+1.59 w59]" in text and "[-1.00 w0]" not in text


# --- a fitted model ------------------------------------------------------------------------------------------------------


def pair() -> PairExplanation:
    explainer = tiny_explainer(WHOLE)
    assert explainer.known is not None
    return explainer.explain_known(int(explainer.known.held_out_pairs[0]))


def test_bars_run_from_start_to_end_and_nothing_is_left_over() -> None:
    explained = pair()
    for subject in (explained, explained.chosen, explained.rejected):
        for level, most in (("", 40), ("word", 40), ("sentence", 3), ("line", 40), ("word", 4)):
            bars = word_bars(subject, level, most=most)
            assert abs(residual_of(bars)) < 1e-9
            assert bars[0].kind == "start" and bars[-1].kind == "end" and not any(bar.kind == "rest" for bar in bars)
            assert sum(bar.kind == "part" for bar in bars) <= 2 * most
    assert word_bars(explained)[1].label.startswith("rejected: ")
    assert [bar.kind for bar in word_bars(explained.chosen)[:2]] == ["start", "prompt"]


def test_the_table_of_words_and_latents_sums() -> None:
    explained = pair()
    for subject in (explained, explained.chosen):
        assert subject.words is not None
        rows = list(csv.DictReader(io.StringIO("".join(table_lines(subject.words)))))
        values = [float(row["value"]) for row in rows]
        assert sum(values[:-1]) == pytest.approx(values[-1], abs=1e-9)
        latents = [name for name in rows[0] if name.startswith("latent_")]
        assert len(latents) == tiny_explainer(WHOLE).parts.k
        for row in rows:
            if row["kind"] == "word":
                assert sum(float(row[name]) for name in latents) == pytest.approx(float(row["value"]), abs=1e-12)
                assert row["text"] == texts_of(subject.words)[row["side"]].text[int(row["start"]) : int(row["stop"])]


def test_the_command_prints_words_and_writes_table_and_json(cli: Any, tmp_path: Path) -> None:
    explainer = tiny_explainer(WHOLE)
    model, target = str(explainer.model.folder), tmp_path / "words.csv"
    code, out, err = cli("explain", model, "--prompt", EGG, "--response", ANSWER, "--csv", target)
    assert code == 0, err
    explained = explainer.explain(EGG, ANSWER)
    flat = " ".join(out.split())
    assert explained.why.text in flat and "Response: its words add" in flat and "by sentence" in flat and "Take your time." in flat
    assert re.search(r"\[[-+]\d\.\d\d \w", out) and "\x1b" not in out
    rows = list(csv.DictReader(target.open(newline="", encoding="utf-8")))
    assert [row["text"] for row in rows if row["kind"] == "word"] == ANSWER.split()
    assert float(rows[-1]["value"]) == pytest.approx(explained.reward, abs=1e-6)
    code, out, err = cli("explain", model, "--prompt", EGG, "--response", ANSWER, "--rejected", RUDE, "--json")
    assert code == 0, err
    explanation = json.loads(out)["explanation"]
    units = [unit for side in ("chosen", "rejected") for unit in explanation["words"][side]["units"]["sentence"]]
    assert sum(unit["value"] for unit in units) == pytest.approx(explanation["margin"], abs=1e-9)
    assert explanation["why"]["quotes"] and explanation["why"]["share"] is not None


def test_at_the_end_of_a_response_it_says_why_there_are_no_words(cli: Any, tmp_path: Path) -> None:
    model = str(tiny_explainer().model.folder)
    code, out, _ = cli("explain", model, "--prompt", EGG, "--response", ANSWER)
    assert code == 0 and AT_RESPONSE_END in " ".join(out.split())
    code, _, err = cli("explain", model, "--prompt", EGG, "--response", ANSWER, "--csv", tmp_path / "words.csv")
    assert code != 0 and "no table of words" in err and not (tmp_path / "words.csv").exists()

"""`sparserm explain`: for a person, as one JSON line, and as a table of a whole file; nothing that texts hold reaches the terminal as a command."""

from __future__ import annotations

import csv
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explain_helpers import hand_made, tiny_explainer
from rich.console import Console

from core.cli import explanation_view
from core.cli.main import main
from core.errors import ConfigError
from core.explain.batch import pick_known, read_rows
from core.explain.explanation import INACTIVE
from core.explain.full_explanation import explain_fully
from core.latents.labels import Label
from core.types import SPLITS

EGG, ANSWER, RUDE = "How do I boil an egg?", "Take your time. Ask someone who has done it before, thanks", "Read the instructions twice, fool"
Run = tuple[int, str, str]


@pytest.fixture(scope="module")
def model() -> str:
    return str(tiny_explainer().model.folder)


@pytest.fixture
def explain(cli: Any, model: str) -> Any:
    return partial(cli, "explain", model)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": EGG, "chosen": ANSWER, "rejected": RUDE},
        {"prompt": EGG, "chosen": "same", "rejected": "same"},
        {"prompt": "How do I mend a sock?", "chosen": "Nonsense, whatever", "rejected": "It needs patience, friend"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one_line(out: str) -> dict[str, Any]:
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


# --- for a person --------------------------------------------------------------------------------------------------


def test_one_response_for_a_person(explain: Any) -> None:
    code, out, err = explain("--prompt", EGG, "--response", ANSWER, "--edit", RUDE, "--off", "63,67", "--span", "0:15")
    assert code == 0, err
    found = tiny_explainer().explain(EGG, ANSWER)
    flat = " ".join(out.split())
    assert found.why.text in flat and all(said in flat for said in found.why.weaknesses)
    for title in (
        "From the average training response to this one", "Response, token by token", "Edit", "Latents switched off",
        "Most similar training responses", "Can this be believed?", "running reward", "exploratory", INACTIVE,
        "Start and bars less the reward (residual)",
    ):  # fmt: skip
        assert title in flat, title
    assert f"Prompt part ({found.n_known} known responses)" in flat and "Take your time." in out and "(shipped head, seed " in flat
    explainer = tiny_explainer()
    shipped = explainer.parts.method["shipped_seed"]
    assert explainer.known is not None
    n_test = int((explainer.known.split == SPLITS.index("test")).sum())
    assert flat.count(f"(shipped head, seed {shipped}, {n_test} test pairs)") == 2, "with latents off, and with all on"
    assert re.search(r"explanations of this reward model: (un)?stable", flat)
    assert re.search(r"This response +[-+]\d\.\d{3}", flat) and "\x1b" not in out
    assert re.search(r"reward -?\d\.\d{3} to -?\d\.\d{3} \([-+]\d\.\d{3}\); \d+ of \d+ tokens computed", flat)


def test_a_pair_for_a_person(explain: Any) -> None:
    code, out, err = explain("--prompt", EGG, "--response", ANSWER, "--rejected", RUDE, "--off", "63")
    assert code == 0, err
    flat = " ".join(out.split())
    assert "P(chosen wins)" in flat and "From the rejected to the chosen response" in flat
    assert "Chosen, token by token" in flat and "Rejected, token by token" in flat and "Latents switched off (of the chosen response)" in flat


@pytest.mark.parametrize("which", ["--worst", "--most-misranked"])
def test_the_models_own_held_out_pairs(explain: Any, which: str) -> None:
    code, out, err = explain(which, "--json")
    assert code == 0, err
    found, explainer = one_line(out), tiny_explainer()
    known = explainer.known
    assert known is not None and known.pairs is not None
    sides = (rows[known.held_out_pairs] for rows in (known.chosen_rows, known.rejected_rows))
    chosen, rejected = (explainer.parts.head.reward(known.projections[rows]) for rows in sides)
    if which == "--worst":
        assert found["kind"] == "response" and found["explanation"]["reward"] == pytest.approx(min(chosen.min(), rejected.min()), abs=1e-3)
    else:
        assert found["kind"] == "pair" and found["explanation"]["margin"] == pytest.approx((chosen - rejected).min(), abs=1e-3)


def test_json_holds_everything(explain: Any) -> None:
    code, out, err = explain("--prompt", EGG, "--response", ANSWER, "--json", "--edit", RUDE, "--off", "63", "--edit", ANSWER)
    assert code == 0, err
    found = one_line(out)
    explanation, tokens = found["explanation"], found["response"]["tokens"]
    assert len(explanation["latents"]) == tiny_explainer().parts.k
    assert {"projection", "contribution", "deviation", "prompt_part", "response_part", "at_mean", "removed"} <= set(explanation["latents"][0])
    parts = sum(latent["prompt_part"] + latent["response_part"] for latent in explanation["latents"])
    assert parts == pytest.approx(explanation["reward"] - explanation["baseline_reward"], abs=1e-9)
    assert explanation["model"]["stability"]["verdict"] in ("stable", "unstable") and explanation["model"]["faithfulness"]["n_pairs"] > 0
    assert len(tokens["texts"]) == len(tokens["kinds"]) == len(tokens["running_reward"]) == len(found["response"]["gradient"]["norm"])
    assert found["response"]["deletions"][0]["text"] == "Take your time. "
    assert [edit["parent_id"] is None for edit in found["edits"]] == [True, False, False]
    assert found["edits"][2]["explanation"]["reward"] == pytest.approx(explanation["reward"], abs=1e-3)
    assert found["off"]["latent_ids"] == [63] and found["all_on"]["latent_ids"] == []
    assert len(explanation["neighbours"]) == 5 and explanation["neighbours"][0]["response"]


def test_rows_of_a_file(explain: Any, pairs: Path) -> None:
    for words, chosen in ((("--row", "1"), ANSWER), (("--row", "3"), "Nonsense, whatever"), (("--most-misranked",), "Nonsense, whatever")):
        code, out, err = explain("--pairs", pairs, "--json", *words)
        assert code == 0, err
        assert one_line(out)["explanation"]["chosen"]["response"] == chosen
    code, out, _ = explain("--pairs", pairs, "--json", "--worst")
    assert code == 0 and one_line(out)["explanation"]["response"] in (RUDE, "Nonsense, whatever")
    code, _, err = explain("--pairs", pairs, "--row", "2")
    assert code == 3 and "row 2 can't be explained" in err and "found: " in err
    code, _, err = explain("--pairs", pairs, "--row", "9")
    assert code == 3 and "expected: a row from 1 to 3 that can be used\n  found: no such row" in err


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_table_of_pairs(explain: Any, pairs: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"table{suffix}"
    code, out, err = explain("--pairs", pairs, "--out", target)
    assert code == 0 and "row 2 is left out" in err and out == f"2 rows explained: {target}\n"
    if suffix == ".csv":
        with target.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
    else:
        rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [str(row["row"]) for row in rows] == ["1", "3"] and rows[0]["chosen"] == ANSWER
    scores = tiny_explainer().model.score([EGG, EGG], [ANSWER, RUDE])
    assert float(rows[0]["margin"]) == pytest.approx(scores[0] - scores[1], abs=1e-3)
    assert float(rows[0]["reward_chosen"]) == pytest.approx(scores[0], abs=1e-3)
    assert rows[0]["why"].startswith("The chosen response wins by") and rows[1]["why"].startswith("The rejected response wins by")
    assert str(rows[0]["latent_1"]) in rows[0]["name_1"] and abs(float(rows[0]["residual"])) < 1e-9


def test_a_table_of_responses(explain: Any, tmp_path: Path) -> None:
    path, target = tmp_path / "answers.jsonl", tmp_path / "table.jsonl"
    rows = [{"prompt": EGG, "response": ANSWER, "id": "a"}, {"prompt": EGG, "responses": [RUDE, "  "]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = explain("--pairs", path, "--out", target, "--json")
    report = one_line(out)
    assert code == 0 and report["n_explained"] == 2 and [row["row"] for row in report["refused"]] == [2]
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["id"], row["response"]) for row in found] == [("a", ANSWER), ("2", RUDE)]
    assert found[0]["reward"] == pytest.approx(tiny_explainer().model.score([EGG], [ANSWER])[0], abs=1e-3)
    baseline = [row["reward"] - row["prompt_part"] - row["response_part"] for row in found]
    assert baseline[0] == pytest.approx(baseline[1], abs=1e-9)
    code, _, err = explain("--pairs", path, "--most-misranked")
    assert code == 3 and "a mis-ranked pair can only be found among pairs" in err


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to explain"),
        (("--prompt", "a"), "a prompt alone has no reward"),
        (("--response", "a"), "a response alone has no reward"),
        (("--prompt", "a", "--response", "b", "--worst"), "can't be explained together"),
        (("--row", "3"), "--row and --out are about a file"),
        (("--prompt", EGG, "--response", ANSWER, "--span", "x"), "--span is no range of characters\n  expected: FROM:TO, such as 0:17\n  found: x"),
        (("--prompt", EGG, "--response", ANSWER, "--span", "5:900"), "no such span in the response"),
        (("--prompt", EGG, "--response", ANSWER, "--off", "99999"), "this reward model has no such latent"),
        (("--prompt", EGG, "--response", ANSWER, "--latent", "99999"), "latent 99999 is not one of this reward model's"),
        (("--prompt", EGG, "--response", ANSWER, "--rejected", RUDE, "--edit", "x"), "spans and edits belong to one response"),
    ],
)
def test_impossible_questions(explain: Any, words: tuple[str, ...], said: str) -> None:
    code, out, err = explain(*words)
    assert code == 2 and said in err and out == "" and "Traceback" not in err


def test_impossible_tables(explain: Any, pairs: Path, tmp_path: Path) -> None:
    code, _, err = explain("--pairs", pairs, "--out", tmp_path / "table.xlsx")
    assert code == 2 and "expected: .jsonl or .csv\n  found: table.xlsx" in err
    code, _, err = explain("--pairs", pairs, "--out", tmp_path / "nowhere" / "table.csv")
    assert code == 2 and "no folder" in err
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"prompt": EGG, "response": " "}) + "\n")
    code, _, err = explain("--pairs", empty, "--out", tmp_path / "t.csv")
    assert code == 3 and "no row of" in err and not (tmp_path / "t.csv").exists()


def test_a_control_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{model}/controls/dense", "--prompt", EGG, "--response", ANSWER]) == 2
    assert "can't be explained by latents\n  expected: sparserm or random-rows\n  found: dense" in capsys.readouterr().err
    assert main(["explain", f"{model}/controls/random-rows", "--prompt", EGG, "--response", ANSWER]) == 0
    assert "No known responses are kept" in " ".join(capsys.readouterr().out.split())


def test_held_out_pairs_must_be_kept() -> None:
    parts, known = hand_made()
    with pytest.raises(ConfigError, match="no held-out pairs with texts are kept"):
        pick_known(parts, None, "worst")
    number, side = pick_known(parts, known, "worst")
    rewards = parts.head.reward(known.projections)
    row = (known.chosen_rows, known.rejected_rows)[side][number]
    assert rewards[row] == rewards[known.held_out].min() and number in known.held_out_pairs
    margins = rewards[known.chosen_rows] - rewards[known.rejected_rows]
    assert margins[pick_known(parts, known, "misranked")[0]] == margins[known.held_out_pairs].min()


# --- untrusted texts -----------------------------------------------------------------------------------------------


def test_nothing_of_a_text_is_markup_or_a_command(explain: Any) -> None:
    nasty = "[bold red]x[/] \x1b[2J\x1b]0;title\x07 :smile: [link=http://a]b[/link] end, thanks"
    code, out, err = explain("--prompt", "[red]why\x1b[31m?", "--response", nasty)
    assert code == 0, err
    assert "\x1b" not in out and "\x07" not in out
    assert "[bold red]x[/] ␛[2J␛]0;title␇ :smile: [link=http://a]b[/link]" in out and "[red]why␛[31m?" in out


def test_labels_are_untrusted_too() -> None:
    explainer = tiny_explainer()
    ids = explainer.builder.latent_ids.tolist()
    labels = {latent: Label(text="[blink]evil\x1b[31m[/blink]", source="person") for latent in ids}
    found = explainer.explain(EGG, ANSWER)
    console = Console(force_terminal=True, width=100, color_system="truecolor", highlight=False, markup=False)
    with console.capture() as capture:
        for part in (
            *explanation_view.response_parts(found, labels),
            explanation_view.marked(explainer.tokens(EGG, ANSWER), ids[0], "rejected", labels),
        ):
            console.print(part, markup=False)
    assert "[blink]evil␛[31m[/blink]" in capture.get() and "evil\x1b" not in capture.get()


def test_the_text_is_marked_where_the_latent_is_active() -> None:
    explainer = tiny_explainer()
    view = explainer.tokens(EGG, ANSWER)
    assert view.activation is not None
    own = np.isin(view.kinds, ("prompt", "response"))
    column = int(np.argmax((view.activation * own[:, None]).max(axis=0)))
    latent = int(view.latent_ids[column])
    strongest = view.texts[int(np.argmax(view.activation[:, column] * own))]
    for side, shade in (("chosen", explanation_view.SHADES["blue"][-1]), ("rejected", explanation_view.SHADES["orange"][-1])):
        console = Console(force_terminal=True, width=200, color_system="truecolor", highlight=False)
        with console.capture() as capture:
            console.print(explanation_view.marked(view, latent, side, {}))
        red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
        assert f"48;2;{red};{green};{blue}m{strongest}" in capture.get()
        assert f"latent {latent} is active on: {strongest.strip()}" in capture.get()


def test_a_file_may_hold_dialogues(tmp_path: Path) -> None:
    path = tmp_path / "dialogues.jsonl"
    prompt = [{"role": "user", "content": EGG}, {"role": "assistant", "content": "Hot or cold?"}, {"role": "user", "content": "Hot."}]
    path.write_text(json.dumps({"prompt": prompt, "response": ANSWER}) + "\n")
    rows = read_rows(path)
    found = explain_fully(tiny_explainer(), rows.at(1))
    assert found.explanation.to_json()["prompt"] == prompt

"""Whatever a document, docstring, comment or message names is there: files, modules, links, and the sections of docs/METHOD.md."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from functools import cache

import pytest
from document_helpers import DOCUMENTS, ROOT, document, prose_of, repository_files, source_files, strings_of_the_code

from core.config import AlignConfig, BackboneConfig, CandidatesConfig, DPOConfig, FitConfig, HeadConfig, SelectionConfig

# A path or name with a suffix that we use. Not after `<`, `{` or `*`: those are patterns (`<cache>/x.json`), not names.
FILE = re.compile(r"(?<![\w/.<>{}*~:-])(?:\.?[\w-]+/)*[\w.-]*\w\.(?:py|md|jsonl?|safetensors|csv|npz|png|toml|parquet)\b")
ROOM = re.compile(r"(?<![\w/.<>{}*~:-])(?:core|workbench|pages|docs|tests|benchmarks|\.ci)/[\w/-]*\w(?![\w.(*<{-])")
MODULE = re.compile(r"(?<![\w./])(?:core|workbench)\.(?!py\b)\w+(?:\.\w+)*")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
CITATION = re.compile(r"METHOD\.md(?:'s)?,? sections? (\d[a-z]?)(?:(?:,| and) (\d[a-z]?))?")

# Names that are no files of the repository and stand in no string of the code, and why that is right.
NOT_OURS = {
    **dict.fromkeys(
        ("shift.json", "shift.safetensors", "spaces.json", "spaces.safetensors", "name.json", "name.safetensors"),
        "written by save_value, which adds the suffix to a name",
    ),
    **dict.fromkeys(
        ("written.jsonl", "automatic.jsonl", "endpoint.jsonl", "neuronpedia.jsonl"),
        "written by the label book: a source's name and a suffix",
    ),
    **dict.fromkeys(
        ("my_reward_model/curve.json", "my_reward_model/evaluation.json", "own_answers.jsonl", "hh.jsonl"),
        "a user's own files in an example",
    ),
    **dict.fromkeys(
        ("data/train-00000-of-00002.parquet", "test/pairs.csv", "train.jsonl"),
        "names in folders of data sets from elsewhere",
    ),
    "checkpoints/final.safetensors": "a folder that an SAE trainer writes",
    "arc_challenge/pairs.jsonl": "prompts of the run that docs/ALIGNMENT.md tells of; not shipped",
    "harmless-base_test.jsonl": "hh-rlhf's file; not shipped",
    "cache/corpora/hh_answers.jsonl": "corpus that the demo's SAE was trained on; not shipped",
    "cache/corpora/demo_answers.jsonl": "corpus that the demo's SAE was trained on; not shipped",
}


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Every document, and the docstrings and comments of every Python file, each with its path."""
    documents = [(name, document(name)) for name in DOCUMENTS]
    return (*documents, *((path.relative_to(ROOT).as_posix(), prose_of(path)) for path in source_files()))


@cache
def is_file_of_ours(name: str) -> bool:
    """A file of the repository: its whole path, or the end of one. Files of other kinds than Python and Markdown may also be ones that the code reads
    or writes: then their name stands in a string of the code."""
    if name in repository_files() or any(path.endswith("/" + name) for path in repository_files()):
        return True
    return not name.endswith((".py", ".md")) and any(name in text for text in strings_of_the_code())


@cache
def defined_in(dotted: str) -> bool:
    """Whether a dotted name is a module or a room of ours, or a name that a module of ours defines at its top."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:n])
        if place.is_dir():
            return n == len(parts)
        if place.with_suffix(".py").is_file():
            return n == len(parts) or parts[n] in _names_of(place.with_suffix(".py").read_text(encoding="utf-8"))
    return False


def _names_of(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return names


def headings(name: str) -> set[str]:
    """The anchors of a document's headings, as Git hosts make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", document(name), flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def method_sections() -> set[str]:
    return set(re.findall(r"^## (\d[a-z]?)\. ", document("docs/METHOD.md"), re.MULTILINE))


def test_every_file_that_a_text_names_exists() -> None:
    missing = [f"{place}: {name}" for place, text in texts() for name in FILE.findall(text) if not (is_file_of_ours(name) or name in NOT_OURS)]
    assert missing == []


def test_every_python_or_markdown_file_in_a_message_exists() -> None:
    """Help texts, errors and pages: whatever string of the code names a .py or .md."""
    named = {name for text in strings_of_the_code() for name in FILE.findall(text) if name.endswith((".py", ".md"))}
    assert "METHOD.md" in named
    assert [name for name in sorted(named) if not is_file_of_ours(name)] == []


def test_every_folder_and_module_that_a_text_names_exists() -> None:
    folders = [f"{place}: {name}" for place, text in texts() for name in ROOM.findall(text)]
    missing = [one for one in folders if not any((ROOT / one.split(": ")[1]).with_suffix(end).exists() for end in ("", ".py"))]
    modules = [f"{place}: {name}" for place, text in texts() for name in MODULE.findall(text)]
    assert len(modules) > 100
    assert missing + [one for one in modules if not defined_in(one.split(": ")[1])] == []


def test_exceptions_are_needed() -> None:
    named = {name for _, text in texts() for name in FILE.findall(text)}
    assert [name for name in NOT_OURS if name not in named or is_file_of_ours(name)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for target, anchor in LINK.findall(document(name)):
        path = ((ROOT / name).parent / target).resolve() if target else ROOT / name
        if not path.exists() or (anchor and anchor not in headings(path.relative_to(ROOT).as_posix())):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_every_document_is_linked_from_readme() -> None:
    linked = {target for target, _ in LINK.findall(document("README.md"))}
    assert [name for name in DOCUMENTS if name != "README.md" and name not in linked] == []


def test_cited_sections_of_the_method_exist() -> None:
    cited = [(place, number) for place, text in texts() for both in CITATION.findall(re.sub(r"\s+", " ", text)) for number in both if number]
    assert len(cited) > 60
    assert [f"{place}: section {number}" for place, number in cited if number not in method_sections()] == []


@pytest.mark.parametrize(
    ("paragraph", "config", "value"),
    [("- **The whole response**", BackboneConfig, "response_mean"), ("This is the paper's rule", SelectionConfig, "effect")],
)
def test_the_method_marks_what_is_not_built(paragraph: str, config: type, value: str) -> None:
    """`Not built yet` stands exactly as long as no field of the config takes the value."""
    built = any(value in spec.metadata.get("choices", ()) for spec in fields(config))
    start = document("docs/METHOD.md").index(paragraph)
    assert ("Not built yet" in document("docs/METHOD.md")[start : start + 200]) != built


@pytest.mark.parametrize(("section", "room"), [("5b", "core/audit"), ("6", "core/baselines")])
def test_the_method_marks_sections_without_a_room(section: str, room: str) -> None:
    text = document("docs/METHOD.md").split(f"\n## {section}. ")[1].split("\n## ")[0]
    assert ("**Not built yet.**" in text) != (ROOT / room).is_dir()


def test_the_method_states_the_defaults_of_the_configs() -> None:
    """Each sentence is made from the config's own values, and has to stand in docs/METHOD.md."""
    text = " ".join(document("docs/METHOD.md").split())
    head, fit, dpo, align = HeadConfig(), FitConfig(), DPOConfig(), AlignConfig()
    assert f"Linear(k_w+k_l -> {head.hidden})" in text and f"gamma {head.gamma}" in text
    assert f"batch {head.batch_size}, at most {head.epochs} epochs, stopped after {head.patience} without" in text
    assert f"{head.seeds} seeds, the shipped one" in text and f"{fit.random_draws} draws each" in text
    assert f"K = {SelectionConfig().k} [P]" in text and f"(K = {', '.join(map(str, fit.curve))};" in text
    assert f"active in at least {SelectionConfig().min_active} distinct training responses" in text
    assert f"beta {dpo.beta}, LoRA, {dpo.epochs} epochs a round, {align.rounds} rounds" in text
    assert f"LoRA r {dpo.lora_r}, alpha {dpo.lora_alpha}, dropout {dpo.lora_dropout}, lr 5e-5" in text and dpo.lr == 5e-5
    assert f"`{CandidatesConfig().mode}` [C, default]" in text and f"`{BackboneConfig().position}` [C, default" in text
    for field in ("control_tokens", "think"):
        assert f"`{field} = {getattr(BackboneConfig(), field)}`" in text


def test_names_in_the_table_of_changes_stand_in_its_files() -> None:
    """`_losses` in `core/reward/training.py`: each name in backticks stands in one of the files of its row."""
    table = document("docs/ARCHITECTURE.md").split("## To change X, open Y")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == 5
    for row in rows:
        words = re.findall(r"`([^`]+)`", row)
        files = [word for word in words if word.endswith(".py") and "*" not in word]
        sources = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        names = [part for word in words if re.fullmatch(r"[\w.]+", word) and not word.endswith(".py") for part in word.split(".")]
        assert [name for name in names if not re.search(rf"\b{name}\b", sources)] == []

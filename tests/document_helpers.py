"""The repository's documents, their code blocks, and the prose of docstrings and comments: for the tests of documents."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In the order in which their code blocks run.
DOCUMENTS = (
    *("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))),
    *("core/data/demo/README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
)
SOURCE_ROOMS = ("core", "workbench", "pages", "benchmarks", "tests")
COMMANDS_DOCUMENT = "docs/commands.md"


@cache
def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The fenced code blocks of a document in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document(name), re.DOTALL | re.MULTILINE)


def source_files() -> list[Path]:
    return sorted(path for room in SOURCE_ROOMS for path in (ROOT / room).rglob("*.py"))


@cache
def repository_files() -> frozenset[str]:
    """Every file of the repository that a text may name, as a path from its root."""
    rooms = (*SOURCE_ROOMS, "docs", ".ci")
    inside = (path for room in rooms for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    top = (path for path in ROOT.iterdir() if path.is_file())
    return frozenset(path.relative_to(ROOT).as_posix() for path in (*inside, *top))


def prose_of(path: Path) -> str:
    """The docstrings and comments of a Python file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    with tokenize.open(path) as lines:
        comments = [token.string for token in tokenize.generate_tokens(lines.readline) if token.type == tokenize.COMMENT]
    return "\n".join([*(node.value for node in _docstrings(tree)), *comments])


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


@cache
def strings_of_the_code() -> frozenset[str]:
    """Every string constant of core and workbench that is no docstring: the names of the files that the product reads
    and writes are among them.
    """
    texts: set[str] = set()
    for path in source_files():
        if path.relative_to(ROOT).parts[0] in ("core", "workbench"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = set(map(id, _docstrings(tree)))
            constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
            texts |= {node.value for node in constants if isinstance(node.value, str)}
    return frozenset(texts)

"""Measures the structure of the code: `python tests/house.py` for this checkout, `--against REV` beside an earlier commit.

Every figure is read from the syntax trees, so nothing is imported and any commit can be measured. tests/test_imports.py holds
what ROOMS says.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("core", "workbench", "pages")
# Words that say nothing about what a variable holds.
EMPTY_WORDS = ("found", "said", "one", "made", "told", "own")
# The rooms from the bottom up: a room imports itself and rooms of earlier lines, never a room of its own line or a later one.
# `core` stands for the files at its top level, `workbench` likewise.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("core.statistics",),
    ("core.data", "core.runs"),
    ("core.backbone",),
    ("core.sae",),
    ("core.reward",),
    ("core.latents",),
    ("core.explain",),
    ("core.fit",),
    ("core.doctor",),
    ("core.align",),
    ("core.serving",),
    ("core.jobs",),
    ("core.cli",),
    ("workbench.frame",),
    ("workbench.overview", "workbench.latents", "workbench.spaces", "workbench.doctor"),
    ("workbench.preferences",),
    ("workbench.response",),
    ("workbench.compare", "workbench.align"),
    ("workbench.shift", "workbench.runs"),
    ("workbench",),
    ("pages",),
)

# The one arrow that may point up, inside functions and for types: a reward model offers to explain itself, since people look for it there.
DOOR = ("core.reward.model", "core.explain")


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module: by whom, and how. `inside` a function, `typing` under TYPE_CHECKING, `named` by a string."""

    module: str
    target: str
    line: int
    inside: bool = False
    typing: bool = False
    named: bool = False


def modules(root: Path) -> dict[str, Path]:
    """Every module of the product under `root`, packages' `__init__` left out."""
    paths = [path for top in TOPS for path in sorted((root / top).rglob("*.py")) if path.name != "__init__.py"]
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}


def room_of(module: str) -> str:
    """The room of one of our modules: its folder."""
    return module.rpartition(".")[0] or module


def imports_of(module: str, text: str, ours: Iterable[str]) -> Iterator[Import]:
    """Every import of a module's text, whether it runs at load time or not, and every string that names a module of ours."""
    known = set(ours)
    packages = {room_of(name) for name in known}
    for node, inside, typing in _statements(ast.parse(text), False, False):
        if isinstance(node, ast.Constant):
            target = str(node.value).partition(":")[0]
            if target in known:
                yield Import(module=module, target=target, line=node.lineno, inside=inside, named=True)
            continue
        for target in _targets(node, module, packages, known):
            yield Import(module=module, target=target, line=node.lineno, inside=inside, typing=typing)


def _targets(node: ast.Import | ast.ImportFrom, module: str, packages: set[str], known: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
    if base not in packages and base not in TOPS:
        return [base]
    # `from core.data import formats` names a module; `from core.data.formats import FORMATS` its content.
    names = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in known]
    return names or [base]


def _statements(node: ast.AST, inside: bool, typing: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom | ast.Constant, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, inside, typing
        elif isinstance(child, ast.Constant):
            if isinstance(child.value, str) and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(:\w+)?", child.value):
                yield child, inside, typing
        else:
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            checked = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _statements(child, inside or lazy, typing or checked)


def all_imports(root: Path) -> list[Import]:
    """Every import of every module under `root`."""
    known = modules(root)
    return [one for module, path in known.items() for one in imports_of(module, path.read_text(encoding="utf-8"), known)]


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach one another (strongly connected, of two or more), by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(edges.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return sorted(groups)


def is_door(one: Import) -> bool:
    """Whether this import goes through the one door that the table of rooms leaves open."""
    return (one.module, room_of(one.target)) == DOOR and (one.inside or one.typing)


def file_edges(imports: Iterable[Import], known: Iterable[str]) -> dict[str, set[str]]:
    """Which of our files imports which; the door is left out."""
    edges: dict[str, set[str]] = {name: set() for name in known}
    for one in imports:
        if one.target in edges and one.target != one.module and not is_door(one):
            edges[one.module].add(one.target)
    return edges


def room_edges(files: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Which room imports which other room."""
    edges: dict[str, set[str]] = {}
    for module, targets in files.items():
        edges.setdefault(room_of(module), set()).update({room_of(target) for target in targets} - {room_of(module)})
    return edges


def rank_of(room: str) -> int | None:
    """The place of a room in ROOMS; None for a room that the table does not name."""
    return next((number for number, line in enumerate(ROOMS) if room in line), None)


def upward(imports: Iterable[Import], known: Iterable[str]) -> list[str]:
    """Imports that point to a room of the same line or a later one, as `module:line -> target`."""
    ours = set(known)
    lines = []
    for one in imports:
        if one.target not in ours or is_door(one):
            continue
        here, there = room_of(one.module), room_of(one.target)
        low, high = rank_of(here), rank_of(there)
        if here != there and (low is None or high is None or high >= low):
            lines.append(f"{one.module}:{one.line} -> {one.target}")
    return lines


# --- figures -----------------------------------------------------------------------------------------------------------


def figures(root: Path) -> dict[str, str | int]:
    """The table's rows for one checkout."""
    known, imports = modules(root), all_imports(root)
    edges = file_edges(imports, known)
    rooms = room_edges(edges)
    product, tests = list(known.values()), sorted((root / "tests").rglob("*.py"))
    lengths = [_lines(path) for path in product]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in product]
    functions = [length for tree in trees for length in _function_lengths(tree)]
    groups = circles(edges)
    room_groups = circles(rooms)
    back = sum(target in group for group in room_groups for room in group for target in rooms[room])
    words = {word: sum(_count(tree, word) for tree in trees) for word in EMPTY_WORDS}
    return {
        "product files": len(product),
        "product lines": sum(lengths),
        "test files": len(tests),
        "test lines": sum(map(_lines, tests)),
        "characters of a test's name, longest": max(map(len, names_of_tests(root)), default=0),
        "files at the top level of core/": len([path for path in (root / "core").glob("*.py") if path.name != "__init__.py"]),
        "files at the top level of workbench/": len([path for path in (root / "workbench").glob("*.py") if path.name != "__init__.py"]),
        "rooms (folders)": len(rooms),
        "arrows between rooms": sum(map(len, rooms.values())),
        "arrows between rooms that lie on a circle": back,
        "imports against the table of rooms": len(upward(imports, known)),
        "circles of files": f"{len(groups)} ({sum(map(len, groups))} files)" if groups else 0,
        "imports inside functions": sum(one.inside for one in imports if not one.named),
        "of these, of our own modules": sum(one.inside and one.target.split(".")[0] in TOPS for one in imports if not one.named),
        "imports for types only": sum(one.typing for one in imports),
        "modules named by strings": sum(one.named for one in imports),
        "lines of a file, median and longest": f"{statistics.median(lengths):.0f}, {max(lengths)}",
        "lines of a function, median and longest": f"{statistics.median(functions):.0f}, {max(functions)}",
        "lines of README": len((root / "README.md").read_text(encoding="utf-8").splitlines()),
        "options of all commands": _options(root),
        **{f"things called `{word}`": count for word, count in words.items()},
        "things called by one of these words": sum(words.values()),
    }


def names_of_tests(root: Path) -> list[str]:
    """The names of all test functions."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted((root / "tests").rglob("*.py")))
    return [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _function_lengths(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def _count(tree: ast.AST, word: str) -> int:
    """How many things a file calls by this word: variables each time they are assigned, parameters, fields, functions, imports' aliases."""
    return sum(_binds(node, word) for node in ast.walk(tree))


def _binds(node: ast.AST, word: str) -> bool:
    if isinstance(node, ast.Name):
        return isinstance(node.ctx, ast.Store) and node.id == word
    if isinstance(node, ast.arg):
        return node.arg == word
    if isinstance(node, ast.alias):
        return node.asname == word
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == word


def _options(root: Path) -> int:
    """Options in docs/commands.md, or in the README of the time before it."""
    for name in ("docs/commands.md", "README.md"):
        if (root / name).is_file():
            return len(re.findall(r"^- `--[a-z]", (root / name).read_text(encoding="utf-8"), re.MULTILINE))
    return 0


# --- the command -------------------------------------------------------------------------------------------------------


def checkout(revision: str, folder: Path) -> Path:
    """The files of a commit under `folder`."""
    packed = subprocess.run(["git", "archive", "--format=tar", revision], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", help="a commit whose figures stand beside")
    parser.add_argument("--list", action="store_true", help="also list circles and imports against the table of rooms")
    arguments = parser.parse_args()
    now, before = figures(ROOT), dict[str, str | int]()
    if arguments.against:
        with tempfile.TemporaryDirectory() as folder:
            before = figures(checkout(arguments.against, Path(folder)))
    for name, value in now.items():
        print(f"{name:45}" + (f"{before.get(name, ''):>14}" if before else "") + f"{value:>14}")
    if arguments.list:
        imports, known = all_imports(ROOT), modules(ROOT)
        print("\n".join(["", *(" <-> ".join(group) for group in circles(file_edges(imports, known))), *upward(imports, known)]))


if __name__ == "__main__":
    main()

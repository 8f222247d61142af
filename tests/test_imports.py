"""Who may import whom: the table of rooms in tests/house.py, held for every import of every file, and start-up seen from outside.

Imports for types only, imports inside functions, and modules that are named by a string (`core.jobs.fit:FIT`) count like any other.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping

import pytest
from house import ROOMS, ROOT, TOPS, Import, all_imports, circles, file_edges, imports_of, modules, rank_of, room_of, upward

HEAVY = {"torch", "transformers", "sae_lens", "trl", "peft", "sklearn"}
# Where a library may be imported; sae_lens, trl and peft inside functions only, since each takes seconds and most users never need it.
ONLY_IN = {
    "sae_lens": {"core.sae", "core.backbone"},
    "trl": {"core.align"},
    "peft": {"core.align"},
    "streamlit": {"workbench", "pages"},
    "plotly": {"workbench", "pages"},
}
OPTIONAL = {"sae_lens", "trl", "peft"}


def misplaced(imports: Iterable[Import]) -> list[str]:
    """Libraries in rooms that have no business with them."""
    lines = []
    for one in imports:
        library, room = one.target.split(".")[0], room_of(one.module)
        rooms = ONLY_IN.get(library, {room})
        if not any(room == name or room.startswith(name + ".") for name in rooms):
            lines.append(f"{one.module}:{one.line} imports {library}")
        elif library in OPTIONAL and not one.inside and not one.typing:
            lines.append(f"{one.module}:{one.line} loads {library}")
        elif not room.startswith("core") and library in HEAVY:
            lines.append(f"{one.module}:{one.line} imports {library}")
        elif library == "streamlit" and one.module.rpartition(".")[2].startswith("chart"):
            lines.append(f"{one.module}:{one.line} draws without Streamlit")
    return lines


def reached(starts: Iterable[str], edges: Mapping[str, set[str]]) -> set[str]:
    """Every module that these reach."""
    seen, left = set[str](), list(starts)
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            left += sorted(edges.get(module, ()))
    return seen


def loads(imports: Iterable[Import], starts: Iterable[str], known: Iterable[str]) -> set[str]:
    """The heavy libraries that importing `starts` loads."""
    at_load = [one for one in imports if not (one.inside or one.typing or one.named)]
    inside = reached(starts, file_edges(at_load, known))
    return {library for one in at_load if one.module in inside and (library := one.target.split(".")[0]) in HEAVY}


def of_text(module: str, text: str, others: Iterable[str] = ()) -> tuple[list[Import], set[str]]:
    known = {module, *others, *modules(ROOT)}
    return list(imports_of(module, text, known)), known


IMPORTS = all_imports(ROOT)
MODULES = modules(ROOT)


def test_every_room_is_in_the_table() -> None:
    assert {room_of(module) for module in MODULES} == {room for line in ROOMS for room in line}


def test_arrows_point_down() -> None:
    assert upward(IMPORTS, MODULES) == []


def test_no_circle_of_files() -> None:
    assert circles(file_edges(IMPORTS, MODULES)) == []


def test_libraries_stay_in_their_rooms() -> None:
    assert misplaced(IMPORTS) == []


def test_packages_are_empty() -> None:
    texts = {path: path.read_text(encoding="utf-8").strip() for top in TOPS for path in (ROOT / top).rglob("__init__.py")}
    assert [str(path) for path, text in texts.items() if text] == []


@pytest.mark.parametrize(
    ("module", "text", "line"),
    [
        ("core.data.x", "import core.backbone.model", "core.data.x:1 -> core.backbone.model"),
        ("core.data.x", "from core.backbone import model", "core.data.x:1 -> core.backbone.model"),
        ("core.data.x", "def f():\n    from core.runs import store", "core.data.x:2 -> core.runs.store"),
        ("core.reward.x", "def f():\n    import core.explain.explainer", "core.reward.x:2 -> core.explain.explainer"),
        ("core.reward.model", "import core.explain.explainer", "core.reward.model:1 -> core.explain.explainer"),
        ("core.runs.x", "JOB = 'core.jobs.worker:main'", "core.runs.x:1 -> core.jobs.worker"),
        ("core.types", "from core.data.texts import visible", "core.types:1 -> core.data.texts"),
        ("core.fit.x", "if TYPE_CHECKING:\n    from core.cli import main", "core.fit.x:2 -> core.cli.main"),
        ("workbench.spaces.x", "from workbench.doctor import view", "workbench.spaces.x:1 -> workbench.doctor.view"),
        ("core.new_room.x", "import core.errors", "core.new_room.x:1 -> core.errors"),
    ],
)
def test_an_arrow_up_is_seen(module: str, text: str, line: str) -> None:
    assert upward(*of_text(module, text)) == [line]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("core.reward.x", "from core.backbone import model"),
        ("core.reward.model", "def f():\n    from core.explain import explainer"),
        ("workbench.response.x", "from workbench.frame import state"),
    ],
)
def test_an_arrow_down_is_allowed(module: str, text: str) -> None:
    assert upward(*of_text(module, text)) == []


@pytest.mark.parametrize(
    ("module", "text", "line"),
    [
        ("core.reward.x", "import streamlit as st", "core.reward.x:1 imports streamlit"),
        ("core.reward.x", "def f():\n    from plotly import graph_objects", "core.reward.x:2 imports plotly"),
        ("core.sae.x", "try:\n    import sae_lens\nexcept ImportError:\n    pass", "core.sae.x:2 loads sae_lens"),
        ("core.reward.x", "def f():\n    import sae_lens", "core.reward.x:2 imports sae_lens"),
        ("core.reward.x", "def f():\n    import trl", "core.reward.x:2 imports trl"),
        ("pages.x", "def f():\n    import torch", "pages.x:2 imports torch"),
        ("workbench.frame.charts", "import streamlit", "workbench.frame.charts:1 draws without Streamlit"),
    ],
)
def test_a_library_out_of_place_is_seen(module: str, text: str, line: str) -> None:
    assert misplaced(of_text(module, text)[0]) == [line]


def test_a_circle_is_seen() -> None:
    texts = {"core.reward.a": "from core.reward.b import f", "core.reward.b": "if TYPE_CHECKING:\n    from core.reward import a"}
    imports = [one for module, text in texts.items() for one in imports_of(module, text, texts)]
    assert circles(file_edges(imports, texts)) == [["core.reward.a", "core.reward.b"]]


def test_the_table_has_an_order() -> None:
    assert rank_of("core.data") < rank_of("core.reward") < rank_of("workbench.frame") < rank_of("pages")
    assert rank_of("core.nowhere") is None


def test_pages_load_no_engine() -> None:
    starts = [module for module in MODULES if module.startswith(("pages", "workbench"))]
    assert loads(IMPORTS, starts, MODULES) == set()
    code = f"import sys\nfor name in {starts!r}:\n    if name.startswith('workbench.'): __import__(name)\n"
    code += f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_heavy_library_behind_another_file_is_seen() -> None:
    texts = {"pages.a": "from core.reward import b", "core.reward.b": "import torch"}
    imports = [one for module, text in texts.items() for one in imports_of(module, text, texts)]
    assert loads(imports, ["pages.a"], texts) == {"torch"}


def test_the_command_line_starts_light() -> None:
    assert loads(IMPORTS, ["core.cli.main"], MODULES) == set()


def test_no_pickle_and_no_foreign_code() -> None:
    unsafe_lines = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call, ast.keyword)) else ""
            unsafe = isinstance(node, (ast.Import, ast.ImportFrom)) and "pickle" in text
            unsafe |= isinstance(node, ast.Call) and text.startswith(("torch.load(", "pickle.", "os.system("))
            unsafe |= isinstance(node, ast.keyword) and text in {"shell=True", "trust_remote_code=True", "allow_pickle=True"}
            unsafe_lines += [f"{module}:{getattr(node, 'lineno', 0)} {text[:60]}"] if unsafe else []
    assert unsafe_lines == []


def test_what_a_string_names_is_defined() -> None:
    """A job or a command's work that is named by `module:name` exists, so a renamed function is seen before it is called."""
    named = re.compile(r"(core(?:\.[a-z_]+)+):([A-Za-z_]+)")
    missing = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match = named.fullmatch(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
            if match and (match[1] not in MODULES or match[2] not in top_names(MODULES[match[1]])):
                missing.append(f"{module}:{node.lineno} {match[0]}")
    assert missing == []


def top_names(path: Path) -> set[str]:
    """Functions, classes and values that a module defines at its top level."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return names | {target.id for node in body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}

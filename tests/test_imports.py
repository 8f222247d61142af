"""Who may import whom: ARCHITECTURE's four rules, read from the syntax tree of every file, and start-up seen from outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Rooms in the order of the arrows. A room may import itself and the rooms of a lower number.
RANK = {
    **dict.fromkeys(("core.types", "core.errors"), 0),
    **dict.fromkeys(("core.config", "core.data.hub"), 0.5),
    **dict.fromkeys(("core.runs", "core.data", "core.data.http"), 1),
    "core.backbone": 2,
    "core.reward": 3,
    **dict.fromkeys(("core.explain", "core.baselines"), 4),
    "core.align": 5,
    "core.cli.options": 5,
    **dict.fromkeys(("core.fit.steps", "core.fit.pairs_check", "core.jobs.fitted", "core.jobs.fitted_latents"), 5.5),
    **dict.fromkeys(("core.fit.pipeline", "core.fit.defaults"), 6),
    "core.cli.tables": 6.5,
    "core.jobs.fit": 6.6,
    **dict.fromkeys(("core.serving.server_folder", "core.serving.texts"), 6.6),
    "core.serving.launch": 6.65,
    **dict.fromkeys(("core.jobs.of_model", "core.jobs.pairs", "core.jobs.align", "core.serving"), 6.7),
    "core.cli.runs": 6.75,
    **dict.fromkeys((f"core.{name}_cli" for name in ("align", "pairs", "doctor", "explain", "labels", "latents", "serving")), 6.8),
    **dict.fromkeys(("core.cli.main", "core.jobs.attempt"), 7),
    "core.jobs.worker": 7.5,
    "workbench": 8,
    "pages": 9,
}
# The one arrow that may point up, inside functions only: a reward model offers to explain itself, since that is where people look for it.
DOORS = {("core.reward.model", "core.explain")}
HEAVY = {"torch", "transformers", "sae_lens", "trl", "peft", "sklearn"}
LIGHT_ROOMS = {
    "core.types",
    "core.config",
    "core.errors",
    "core.data",
    "core.runs",
    "core.data.http",
    "core.data.hub",
    "core.serving.server_folder",
    "core.serving.texts",
    "core.serving.launch",
}


@dataclass(frozen=True)
class Import:
    """One import statement: who, what, whether it runs when the module is loaded, and where."""

    module: str
    target: str
    at_load: bool
    line: int


def room_of(module: str) -> str:
    """The longest room name that the module lies in; empty for foreign modules."""
    fits = [room for room in RANK if module == room or module.startswith(room + ".")]
    return max(fits, key=len, default="")


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _walk(node: ast.AST, at_load: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, at_load
        else:
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_type_checking(child)
            yield from _walk(child, at_load and not lazy)


def imports_of(path: Path, module: str) -> Iterator[Import]:
    for node, at_load in _walk(ast.parse(path.read_text(encoding="utf-8")), True):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif node.level:
            targets = [".".join(module.split(".")[: -node.level] + [node.module or ""]).rstrip(".")]
        else:
            # `from core.data import formats` names a module: both spellings are seen.
            base = node.module or ""
            targets = [base] + [f"{base}.{alias.name}" for alias in node.names if base == "core" or room_of(base)]
        yield from (Import(module, target, at_load, node.lineno) for target in targets)


def modules(root: Path) -> Iterator[tuple[Path, str]]:
    for top in ("core", "workbench", "pages"):
        for path in sorted((root / top).rglob("*.py")):
            yield path, ".".join(path.relative_to(root).with_suffix("").parts)


def complaints(root: Path) -> list[str]:
    """Every breach of rules 1-4 under `root`, as `module:line what`."""
    found = []
    for path, module in modules(root):
        if path.name == "__init__.py":
            found += [f"{module} is not empty"] if module.startswith("core") and path.read_text().strip() else []
            continue
        found += [f"{module}:{seen.line} {said}" for seen in imports_of(path, module) for said in _breaches(seen)]
    return found


def _breaches(seen: Import) -> Iterator[str]:
    here, there, library = room_of(seen.module), room_of(seen.target), seen.target.split(".")[0]
    door = not seen.at_load and (seen.module, there) in DOORS
    if there and here and there != here and RANK[there] >= RANK[here] and not door:
        yield f"{here} imports {there}"
    if here.startswith("core") and library in {"streamlit", "plotly"}:
        yield f"core imports {library}"
    if here in LIGHT_ROOMS and seen.at_load and library in HEAVY:
        yield f"{here} loads {library}"
    if library == "sae_lens" and (seen.at_load or here != "core.backbone"):
        yield "sae_lens outside a function of core.backbone"
    if library in {"trl", "peft"} and here not in {"core.align", "core.baselines"}:
        yield f"{library} outside core.align and core.baselines"
    if not here.startswith("core") and library in HEAVY:
        yield f"{here} imports {library}"
    if seen.module.startswith("workbench.chart") and library == "streamlit":
        yield "charts imports streamlit"


def load_circles(root: Path) -> list[str]:
    """Modules of core that import one another when loaded."""
    known = {module: path for path, module in modules(root)}
    edges = {m: {s.target for s in imports_of(p, m) if s.at_load and s.target in known and s.target != m} for m, p in known.items()}
    circles, done = [], set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            circles.append(" -> ".join(trail[trail.index(module) :] + (module,)))
        elif module not in done:
            for target in sorted(edges[module]):
                visit(target, trail + (module,))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())
    return circles


def test_the_rules_hold() -> None:
    assert complaints(ROOT) == []


def test_nothing_goes_in_circles() -> None:
    assert load_circles(ROOT) == []


def test_every_module_lies_in_a_known_room() -> None:
    strangers = [module for path, module in modules(ROOT) if path.name != "__init__.py" and not room_of(module)]
    assert strangers == [], "a new room needs its place in RANK"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("core/data/x.py", "import core.backbone.model", "core.data imports core.backbone"),
        ("core/data/x.py", "from core import reward", "core.data imports core.reward"),
        ("core/reward/x.py", "def f():\n    import core.explain.explainer", "core.reward imports core.explain"),
        ("core/reward/model.py", "import core.explain.explainer", "core.reward imports core.explain"),
        ("core/data/x.py", "def f():\n    from core.runs import store", "core.data imports core.runs"),
        ("core/reward/x.py", "import streamlit as st", "core imports streamlit"),
        ("core/reward/x.py", "def f():\n    from plotly import graph_objects", "core imports plotly"),
        ("core/runs/x.py", "import torch.nn", "core.runs loads torch"),
        ("core/types.py", "from sklearn.metrics import roc_auc_score", "core.types loads sklearn"),
        ("core/backbone/x.py", "try:\n    import sae_lens\nexcept ImportError:\n    pass", "sae_lens outside a function of core.backbone"),
        ("core/reward/x.py", "def f():\n    import sae_lens", "sae_lens outside a function of core.backbone"),
        ("core/reward/x.py", "def f():\n    import trl", "trl outside core.align and core.baselines"),
        ("pages/x.py", "def f():\n    import torch", "pages imports torch"),
        ("workbench/frame/charts.py", "import streamlit", "charts imports streamlit"),
        ("core/fit/pipeline.py", "from core import cli", "core.fit.pipeline imports core.cli.main"),
        ("core/__init__.py", "import os", "core.__init__ is not empty"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert any(said in line for line in complaints(tmp_path)), complaints(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("core/runs/x.py", "def f():\n    import torch"),
        ("core/data/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("core/backbone/x.py", "import torch\ndef f():\n    import sae_lens"),
        ("core/reward/x.py", "from core.backbone import model\nimport sklearn"),
        ("core/reward/model.py", "def f():\n    from core.explain import explainer"),
    ],
)
def test_what_is_allowed_is_allowed(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert complaints(tmp_path) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    (tmp_path / "core/reward").mkdir(parents=True)
    (tmp_path / "core/reward/a.py").write_text("from core.reward.b import f")
    (tmp_path / "core/reward/b.py").write_text("import core.reward.a")
    assert load_circles(tmp_path) == ["core.reward.a -> core.reward.b -> core.reward.a"]


def test_the_light_rooms_load_nothing_heavy() -> None:
    light = [module for path, module in modules(ROOT) if room_of(module) in LIGHT_ROOMS and path.name != "__init__.py"]
    code = f"import sys\nfor name in {light!r}: __import__(name)\nprint(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_no_pickle_and_no_foreign_code() -> None:
    found = []
    for path, module in modules(ROOT):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call, ast.keyword)) else ""
            unsafe = isinstance(node, (ast.Import, ast.ImportFrom)) and "pickle" in text
            unsafe |= isinstance(node, ast.Call) and text.startswith(("torch.load(", "pickle.", "os.system("))
            unsafe |= isinstance(node, ast.keyword) and text in {"shell=True", "trust_remote_code=True", "allow_pickle=True"}
            found += [f"{module}:{getattr(node, 'lineno', 0)} {text[:60]}"] if unsafe else []
    assert found == []

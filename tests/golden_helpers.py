"""Golden figures: which version numbers of core/ are raised by hand, and how a step's figures are computed, compared
and renewed.

The figures of a step are in golden.json under the step's name:

    version   the number in the code that these figures belong to
    figures   whole numbers, texts and choices, compared exactly, and float64 figures that hang on such choices alone, compared at 1e-6
    float32   figures of what one float32 pass of a model or SAE computes, compared at 3e-5
    loose     figures behind a training in float32, or shown with four digits, compared at 3e-4
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.types import sha256_of

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("golden.json")
UPDATE = "UPDATE_GOLDEN"
EXACT = {"rel": 1e-6, "abs": 1e-9}
# Another processor adds the same float32 numbers in another order. With the kernels of an SSE4 machine (torch, oneDNN,
# MKL, OpenBLAS, numpy) hidden states differ by 1e-6 of their size; after a training (heads, DPO, SAE) figures differ by
# up to 1e-4 of their size, near zero by 3e-5.
FLOAT32 = {"rel": 3e-5, "abs": 1e-5}
LOOSE = {"rel": 3e-4, "abs": 5e-5}
BOUNDS = {"figures": EXACT, "float32": FLOAT32, "loose": LOOSE}

# A number that decides whether an old file is read is recognised by its name, or by a comment that states when it is
# raised.
BY_NAME = re.compile(r"(?:.*_)?(?:VERSIONS?|SCHEMA|PROTOCOL)")
BY_COMMENT = re.compile(r"#.*\b(?:counted up|raised|bumped)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A step's results as a few JSON values, by how exactly they are compared."""

    figures: Mapping[str, Any]
    float32: Mapping[str, Any] = field(default_factory=dict)
    loose: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        parts = {"figures": rounded(self.figures, 10), "float32": rounded(self.float32, 7), "loose": rounded(self.loose, 6)}
        return {name: part for name, part in parts.items() if part}


# --- what is raised by hand ------------------------------------------------------------------------------------------


@cache
def hand_bumped() -> dict[str, Any]:
    """Every number in core/ that is raised by hand, by step, or by module and name where it belongs to no step."""
    bumped: dict[str, Any] = {}
    for path in sorted((ROOT / "core").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in _bumped_names(path.read_text(encoding="utf-8")):
            bumped |= _by_step(module, name)
    return bumped


def _bumped_names(source: str) -> Iterator[str]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in (name for whole in targets for name in (whole.elts if isinstance(whole, ast.Tuple) else [whole])):
            if not isinstance(target, ast.Name) or not target.id.isupper():
                continue
            if BY_NAME.fullmatch(target.id) or (isinstance(node.value, ast.Constant) and BY_COMMENT.search(lines[node.lineno - 1])):
                yield target.id


def _by_step(module: str, name: str) -> dict[str, Any]:
    place = importlib.import_module(module)
    value = getattr(place, name)  # a number inside a function or class would not be found, and must move to its module
    if isinstance(value, dict):
        return dict(value)
    if name == "VERSION" and hasattr(place, "STEP"):
        return {place.STEP: value}
    return {f"{module.removeprefix('core.')}.{name}": value}


def versions_given_to_the_store() -> Iterator[tuple[str, ast.expr]]:
    """Each call that asks the store for a step, with the expression of its version; calls inside core/runs are left
    out.
    """
    for path in sorted((ROOT / "core").rglob("*.py")):
        if path.parent.name == "runs":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) > 2
            if is_method and node.func.attr in ("get_or_make", "fingerprint"):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.args[1]


# --- comparing and renewing ------------------------------------------------------------------------------------------


def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}


def check(step: str, computed: Figures) -> None:
    """Compares a step's figures with the golden ones, or writes them where UPDATE_GOLDEN is set."""
    version, entry = hand_bumped()[step], computed.to_json()
    if os.environ.get(UPDATE):
        kept = {name: values for name, values in golden().items() if name in hand_bumped()}
        kept[step] = {"version": version, **entry}
        GOLDEN.write_text(as_text(kept), encoding="utf-8")
    before = golden().get(step)
    assert before is not None, f"{step} has no golden figures: {UPDATE}=1 pytest tests/test_golden.py"
    moved = [row for part, bound in BOUNDS.items() for row in differences(before.get(part, {}), entry.get(part, {}), bound)]
    listed = "\n".join(f"  {place}: {old} -> {new}" for place, old, new in moved)
    assert not moved, f"figures of {step} moved. If that is meant, raise its version, then {UPDATE}=1 pytest tests/test_golden.py\n{listed}"


def as_text(entries: Mapping[str, Any]) -> str:
    """JSON with a line for each figure, so that a diff shows which ones moved."""
    steps = []
    for step, entry in sorted(entries.items()):
        parts = [f'  "version": {json.dumps(entry["version"])}']
        for part in [name for name in BOUNDS if name in entry]:
            lines = [f"   {json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in sorted(entry[part].items())]
            parts.append(f'  "{part}": {{\n' + ",\n".join(lines) + "\n  }")
        steps.append(f" {json.dumps(step)}: {{\n" + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(steps) + "\n}\n"


def differences(before: Any, after: Any, bound: Mapping[str, float], place: str = "") -> list[tuple[str, Any, Any]]:
    """The places where two figures differ, with both values.

    Floats may differ by the bound; everything else must be equal.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted({*before, *after})
        return [row for name in names for row in differences(before.get(name), after.get(name), bound, f"{place}/{name}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [row for number, (old, new) in pairs for row in differences(old, new, bound, f"{place}[{number}]")]
    near = isinstance(before, float) and isinstance(after, float) and after == pytest.approx(before, **bound)
    return [] if near or (type(before) is type(after) and before == after) else [(place, before, after)]


def rounded(value: Any, digits: int) -> Any:
    """The value with its floats rounded to `digits` significant digits."""
    if isinstance(value, Mapping):
        return {str(name): rounded(part, digits) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part, digits) for part in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


# --- taking figures --------------------------------------------------------------------------------------------------


def digest(values: Any) -> str:
    """Twelve hex digits of a hash over whole numbers, texts or choices in their order."""
    return sha256_of(values.tolist() if isinstance(values, np.ndarray) else list(values))[:12]


def spread(values: np.ndarray | Sequence[float]) -> dict[str, Any]:
    """An array in four figures: the number of finite values, their mean, their mean size, and a sum that depends on
    their order.
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    kept = np.isfinite(flat)
    order = np.cos(np.arange(len(flat)) * 0.7)[kept] @ flat[kept] / max(int(kept.sum()), 1)
    return {"n": int(kept.sum()), "mean": float(flat[kept].mean()), "size": float(np.abs(flat[kept]).mean()), "order": float(order)}


def only(entry: Mapping[str, Any] | None, *names: str) -> list[Any] | None:
    """These values of a JSON object, in this order; None where there is no object."""
    return None if entry is None else [entry[name] for name in names]

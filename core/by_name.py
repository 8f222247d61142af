"""Functions and values that are named by a string, `module:name`: the module is imported when the value is first needed.

So a command or a kind of run can name its work without loading the libraries of that work. tests/house.py reads these
strings like imports.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def load(reference: str) -> Any:
    """The value that `module:name` stands for. Raises ImportError or AttributeError where there is none."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def by_name(reference: str) -> Callable[..., Any]:
    """A function that imports the one named by `reference` at each call, and calls it with the same arguments."""

    def call(*arguments: Any, **options: Any) -> Any:
        return load(reference)(*arguments, **options)

    return call

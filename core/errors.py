"""Errors with a way out: what was expected, what was found, what to do. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SparseRMError(Exception):
    """Base of every error a person can mend. `str()` gives problem, expected, found and remedy, a line each.

    `exit_code` is what the `sparserm` command ends with.
    """

    exit_code = 1

    def __init__(self, problem: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        self.problem, self.expected, self.found, self.remedy = problem, expected, found, remedy
        parts = (("expected", expected), ("found", found), ("to do", remedy))
        super().__init__("\n".join([problem, *(f"  {name}: {text}" for name, text in parts if text)]))


class ConfigError(SparseRMError):
    """An option has an impossible value."""

    exit_code = 2


class DataError(SparseRMError):
    """Preference pairs can't be read, or none of them is usable."""

    exit_code = 3


class BackboneError(SparseRMError):
    """The language model can't be had, loaded or run."""

    exit_code = 4


class SAEError(SparseRMError):
    """The sparse autoencoder can't be had, loaded or used."""

    exit_code = 5


class MismatchError(SparseRMError):
    """Two things were made for each other's strangers: another backbone, layer, template or width. Both are named."""

    exit_code = 6


class StoreError(SparseRMError):
    """An artefact in the cache is missing, incomplete or corrupt."""

    exit_code = 7


class MissingError(SparseRMError):
    """Something must be supplied first; the remedy names the command that supplies it."""

    exit_code = 8


class Cancelled(Exception):
    """Raised by a progress callable to stop a step; nothing half-done is kept as whole."""

    exit_code = 130


def described(error: Exception) -> dict[str, Any]:
    """An error as it is written down for another process: problem, expected, found, remedy, exit_code."""
    if isinstance(error, SparseRMError):
        said = {"problem": error.problem, "expected": error.expected, "found": error.found, "remedy": error.remedy}
        return {**said, "exit_code": error.exit_code}
    if isinstance(error, OSError):
        said = {"problem": error.strerror or str(error), "expected": "", "found": str(error.filename or type(error).__name__), "remedy": ""}
    else:
        remedy = "this is a bug; the log shows where, please report it"
        said = {"problem": f"unexpected {type(error).__name__}", "expected": "", "found": str(error), "remedy": remedy}
    return {**said, "exit_code": 1}


def error_from(said: Mapping[str, Any]) -> SparseRMError:
    """What `described` wrote down, to be raised again."""
    kinds = {kind.exit_code: kind for kind in SparseRMError.__subclasses__()}
    texts = {name: str(said.get(name) or "") for name in ("expected", "found", "remedy")}
    return kinds.get(said.get("exit_code", 1), SparseRMError)(str(said.get("problem") or "something went wrong"), **texts)

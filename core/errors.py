"""The errors that a person can mend: each states the problem, what was expected, what was found and what to do. Nothing
heavy is imported.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any


class SparseRMError(Exception):
    """Base of every error that a person can mend. `str()` gives problem, expected, found and remedy, a line each.

    `exit_code` is the exit code of the `sparserm` command.
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
    """Preference pairs can't be read, or none of them can be used."""

    exit_code = 3


class BackboneError(SparseRMError):
    """The language model can't be fetched, loaded or run."""

    exit_code = 4


class SAEError(SparseRMError):
    """The sparse autoencoder can't be fetched, loaded or used."""

    exit_code = 5


class MismatchError(SparseRMError):
    """Two objects belong to different backbones, layers, templates or widths. The error names both."""

    exit_code = 6


class StoreError(SparseRMError):
    """An artefact in the cache is missing, incomplete or corrupt."""

    exit_code = 7


class MissingError(SparseRMError):
    """Something must be made first; the remedy names the command that makes it."""

    exit_code = 8


class Cancelled(Exception):
    """Raised by a progress callable to stop a step. The step leaves no artefact behind."""

    exit_code = 130


WHERE = "the log shows where"  # replaced by `error_from_dict` where a reader can be told a command
BUG = f"this is a bug; {WHERE}, please report it"
LESS_MEMORY = "close other programs, or take a smaller model, --dtype bfloat16, or a smaller --tokens-per-batch"
# The operating system's error number -> what to do.
SYSTEM_REMEDIES = {
    errno.ENOSPC: "make room on that disk, and start again: finished steps are kept (sparserm cache clean removes what was left half-done)",
    errno.EDQUOT: "make room within your quota, and start again: finished steps are kept",
    errno.EACCES: "check the permissions of that path, or name another",
    errno.EPERM: "check the permissions of that path, or name another",
    errno.EROFS: "that disk can't be written to: name another path",
    errno.ENOENT: "check the path; it counts from the folder in which the command runs",
    errno.ENOTDIR: "check the path: a part of it is a file, not a folder",
    errno.EISDIR: "name a file: this is a folder",
    errno.EEXIST: "name a path that does not exist yet, or remove what is there",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or run less at once",
    errno.ENFILE: "too many files are open on this machine: run less at once",
    errno.ENOMEM: "free memory, or run less at once",
    errno.EIO: "the disk reports a failure: check it, and use another",
    errno.ECONNREFUSED: "nothing answers at that address: check it, and that the server runs",
    errno.ETIMEDOUT: "the other side did not answer in time: try again",
}


def error_to_dict(error: Exception) -> dict[str, Any]:
    """An error as JSON values for another process: problem, expected, found, remedy, exit_code.

    The remedy calls it a bug only if neither the input nor the machine explains it.
    """
    if isinstance(error, SparseRMError):
        texts = {"problem": error.problem, "expected": error.expected, "found": error.found, "remedy": error.remedy}
        return {**texts, "exit_code": error.exit_code}
    if isinstance(error, OSError):
        problem, detail, remedy = _of_system(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's has that name
        problem, detail, remedy = "the memory does not suffice", str(error).partition("\n")[0], LESS_MEMORY
    else:
        problem, detail, remedy = f"unexpected {type(error).__name__}", str(error), BUG
    return {"problem": problem, "expected": "", "found": detail, "remedy": remedy, "exit_code": 1}


def _of_system(error: OSError) -> tuple[str, str, str]:
    """An error of the operating system or the network: the problem, the paths it concerns, and what to do."""
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    remedy = SYSTEM_REMEDIES.get(error.errno or 0, f"refused by the system, the network or a library; {WHERE}")
    return error.strerror or str(error) or type(error).__name__, " and ".join(paths) or type(error).__name__, remedy


def error_from_dict(values: Mapping[str, Any], where: str = "") -> SparseRMError:
    """The error that `error_to_dict` turned into JSON values, to be raised again.

    `where`: the option or command that shows where the error arose; the remedy names it in place of the log.
    """
    kinds = {kind.exit_code: kind for kind in SparseRMError.__subclasses__()}
    texts = {name: str(values.get(name) or "") for name in ("expected", "found", "remedy")}
    if where:
        texts["remedy"] = texts["remedy"].replace(WHERE, f"{where} shows where")
    return kinds.get(values.get("exit_code", 1), SparseRMError)(str(values.get("problem") or "something went wrong"), **texts)

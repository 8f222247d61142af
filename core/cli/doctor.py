"""`sparserm doctor` and `sparserm spaces`: can a fit be trusted, and do chosen and rejected lie apart?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import tables
from core.cli.options import add_command, add_options, override, print_json
from core.cli.runs import DETACH_HELP, detach
from core.config import DoctorConfig, DoctorRunConfig, SpacesConfig, SpacesRunConfig
from core.runs.progress import Display

if TYPE_CHECKING:
    from core.doctor.report import Check
    from core.explain.spaces import Spaces

FAILED = 9  # exit code where a check fails; warnings end with 0
EXAMPLES = {
    "doctor": "examples:\n  sparserm doctor my_reward_model\n  sparserm doctor my_reward_model --swaps 100",
    "spaces": "example:\n  sparserm spaces my_reward_model",
}


def add_doctor(commands: Any) -> None:
    """Adds both commands."""
    doctor = add_command(
        commands, "doctor", doctor_command, "check a fitted reward model: pass, warn or fail, with the figure and the remedy", EXAMPLES
    )
    doctor.add_argument("model", metavar="MODEL", type=Path, help="folder of a reward model that was fitted with this cache")
    doctor.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add_options(doctor, DoctorConfig(), "how much is measured")
    spaces = add_command(
        commands, "spaces", spaces_command, "compare dense and sparse space: t-SNE pictures, and figures that don't mislead", EXAMPLES
    )
    spaces.add_argument("model", metavar="MODEL", type=Path, help="folder of a reward model that was fitted with this cache")
    add_options(spaces, SpacesConfig(), "pictures and figures")
    for long in (doctor, spaces):
        long.add_argument("--detach", action="store_true", help=DETACH_HELP)


def doctor_command(arguments: argparse.Namespace, display: Display) -> int:
    from core.doctor.doctor import doctor_report
    from core.reward.folder import ModelFolder

    config: DoctorConfig = override(DoctorConfig(), vars(arguments))
    if arguments.detach:
        detach("doctor", DoctorRunConfig(model=str(arguments.model), device=arguments.device, doctor=config), arguments, display)
        return 0
    report, path = doctor_report(ModelFolder(arguments.model), config, device=arguments.device, progress=display)
    if arguments.json:
        print_json({"artefact": str(path), **report.to_json()})
    else:
        rows = [(check.name, check.status, check.figure) for check in report.checks]
        tables.table(f"Doctor: {arguments.model}", ("check", "status", "figure"), rows, left=3)
        print_remedies(report.checks)
        print(", ".join(f"{n} {status}" for status, n in report.counts.items()) + f"; report: {path}")
    return FAILED if report.failed() else 0


def print_remedies(checks: Sequence[Check]) -> None:
    """For each check that does not pass: its bound, why it is there, and what to do."""
    for check in checks:
        if check.remedy:
            print(f"{check.status}: {check.name}\n  bound: {check.bound}\n  why: {check.reason}\n  to do: {check.remedy}")


def spaces_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.explain.model_spaces import model_spaces
    from core.reward.folder import ModelFolder

    config: SpacesConfig = override(SpacesConfig(), vars(arguments))
    if arguments.detach:
        detach("spaces", SpacesRunConfig(model=str(arguments.model), spaces=config), arguments, display)
        return
    found, path = model_spaces(ModelFolder(arguments.model), config, progress=display)
    if arguments.json:
        print_json({"artefact": str(path), **found.to_json()})
        return
    print_spaces(found)
    print(f"points and figures: {path}")


def print_spaces(found: Spaces) -> None:
    """A line a space: both figures, and how far the sparse space is ahead."""
    chance = "" if found.chance is None else f", chance {found.chance:.3f}"
    columns = ("space", "neighbours' accuracy", "sparse is ahead by", "silhouette", "sparse is ahead by")
    names = ("neighbours", "neighbours_lead", "silhouette", "silhouette_lead")
    rows = [(space, *(_cell(getattr(one, name), sign="lead" in name or "sil" in name) for name in names)) for space, one in found.figures.items()]
    tables.table(f"Chosen against rejected, {found.n_held_out:,} held-out responses{chance}", columns, rows)
    if n_left_out := found.made.get("n_left_out", 0):
        print(f"{n_left_out:,} of {n_left_out + len(found.rows):,} known responses were not drawn (--points)")


def _cell(estimate: Any, *, sign: bool) -> str:
    form = "+.3f" if sign else ".3f"
    return "" if estimate is None else f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"

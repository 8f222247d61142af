"""The work of an alignment as a run: its rounds, and its outcome read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.align.filtering import judge_folder
from core.align.inputs import same_reading
from core.align.loop import AlignOutcome, align
from core.align.records import Ledger, alignments, key_of
from core.align.steps import AlignSteps
from core.config import AlignConfig
from core.files import read_json
from core.fit.pipeline import fit
from core.reward.folder import ModelFolder
from core.reward.model import SparseRM
from core.runs.store import Store
from core.types import Progress


def run_alignment(config: AlignConfig, store: Store, progress: Progress) -> AlignOutcome:
    """The whole of it, from a completed config. Raises the errors of core.errors, and what `progress` raises to cancel."""
    folder = Path(config.model) if config.model else fit(config.fit, store, progress).artefact
    device, judging = config.fit.backbone.device, judge_folder(config.arm, folder)
    model = SparseRM.load(folder, device=device)
    judge = model if judging == folder else SparseRM.load(judging, device=device)
    if same_reading(model.parts, judge.parts):
        judge.reader = model.reader  # one language model for both
    fitted, ledger = ModelFolder(folder, store), Ledger(store.root, config)
    return align(AlignSteps(config=config, model=model, judge=judge, fitted=fitted, store=store, ledger=ledger, progress=progress))


def run(config: AlignConfig, store: Store, progress: Progress) -> Mapping[str, Any]:
    """What `Job.run` returns."""
    outcome = run_alignment(config, store, progress).to_json()
    return {"artefact": outcome["artefact"], "outcome": outcome}


def outcome_of(artefact: Path, config: AlignConfig, store: Store) -> AlignOutcome:
    """The outcome of a finished run, read again from its artefact; `config` as it was completed."""
    model = next(record.model for record in alignments(store.root) if record.key == key_of(config))
    device = {name: getattr(config.fit.backbone, name) for name in ("device", "device_map", "tokens_per_batch")}
    base = replace(ModelFolder(str(model), store).parts.backbone_config, **device)
    return AlignOutcome(artefact=artefact, summary=read_json(artefact / "alignment.json"), base=base, store=store)

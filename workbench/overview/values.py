"""What the Overview shows of a reward model: its first figures beside the controls, a verdict, and what it was made of.

No Streamlit here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import SparseRMError
from core.reward.evaluation import accuracy_difference
from core.reward.head_words import counted_pairs, mean_of, shipped_head, shipped_seed
from core.reward.recorded_files import FILES, has_record
from core.runs.progress import date, duration
from core.runs.store import Artefact, Store
from workbench.frame.accuracy import accuracy_text, interval_text, method_name
from workbench.frame.left_out import NO_RECORD, counted
from workbench.frame.models import FittedModel, models

PAPER = "paper"
STEPS_TIMED = ("pairs", "extraction", "frequencies", "heads", "controls", "curve", "evaluation", "known")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number with the interval and pairs beside it."""

    name: str
    value: str
    beside: str
    help: str = ""


def headline(model: FittedModel) -> list[Headline]:
    """The first figures of the page: accuracy, the leads over two controls, and the accuracy of wording alone."""
    table = model.evaluation
    mean, of = table["sparserm"]["mean"], mean_of(len(table["sparserm"]["heads"]))
    help_ = "The heads differ in their seed only. 95 % interval over prompts. Rewards come from the shipped head, which did best on validation."
    headlines = [
        Headline(name=f"Test accuracy, {of}", value=accuracy_text(mean), beside=f"{of}: {interval_text(mean)}; {shipped(model)}", help=help_)
    ]
    for kind, name in (("random-isotropic", "Over random directions"), ("dense", "Over the whole state")):
        lead = table["controls"].get(kind, {}).get("sparserm_minus_this")
        if lead:
            beside = f"{100 * lead['low']:+.1f} to {100 * lead['high']:+.1f}, n = {counted_pairs(lead['n'])}"
            control = f"{method_name(kind).lower()} ({mean_of(len(table['controls'][kind]['heads']))})"
            help_ = f"SparseRM ({of}) less {control}, in points of accuracy on the same test pairs; 95 % interval over prompts."
            points = f"{round(100 * lead['difference'], 1) + 0.0:+.1f} pts"
            headlines.append(Headline(name=name, value=points, beside=beside, help=help_))
    wording = table["controls"].get("wording-only")
    if wording:
        help_ = "A bag of words, no language model: how much of the preference is in the words."
        headlines.append(Headline(name="Wording alone", value=accuracy_text(wording["mean"]), beside=interval_text(wording["mean"]), help=help_))
    return headlines


def shipped(model: FittedModel) -> str:
    """`shipped head, seed 3: 70.4 % of the same pairs`: the accuracy of the head that gives the rewards."""
    seed = shipped_seed(model.config["method"])
    return f"{shipped_head(seed)}: {accuracy_text(model.evaluation['sparserm'])} of the same pairs"


@dataclass(frozen=True, kw_only=True)
class PaperReading:
    """A fit of the same pairs and split that reads and selects as the paper does: its row for the chart of accuracies, and
    SparseRM's lead over it as a sentence."""

    row: dict[str, Any]
    sentence: str


def as_the_paper_reads(model: FittedModel) -> PaperReading | None:
    """The control that reads the last token and selects by frequency; None where the cache holds none, or for itself."""
    if _reads_as_the_paper(model):
        return None
    for other in models(model.root):
        try:
            if _reads_as_the_paper(other) and _same_pairs(model, other):
                return _paper_reading(model, other)
        except (SparseRMError, KeyError, TypeError):  # another model that is damaged or of an older version is no reason to show nothing
            continue
    return None


def _reads_as_the_paper(model: FittedModel) -> bool:
    selection = model.config["method"]["config"]["selection"]
    return bool(model.config["position"] == "response_end" and selection.get("selection", "frequency") == "frequency")


def _same_pairs(model: FittedModel, other: FittedModel) -> bool:
    mine, theirs = (each.config for each in (model, other))
    sae = [(config["sae"] or {}).get("sha256") for config in (mine, theirs)]
    content = [config["method"]["data"].get("content") for config in (mine, theirs)]
    return sae[0] == sae[1] and content[0] == content[1] and mine["k"] == theirs["k"]


def _paper_reading(model: FittedModel, other: FittedModel) -> PaperReading | None:
    """The two on the test pairs that both could read, paired by prompt."""
    kept = model.responses
    numbers = [(i, other.content.numbers.get(model.pairs[i].pair_id)) for i in kept.pairs_of_split("test").tolist()]
    both = [(i, j) for i, j in numbers if j is not None]
    mine, theirs = (np.array(rows, dtype=np.int64) for rows in zip(*both, strict=True)) if both else (np.zeros(0, dtype=np.int64),) * 2
    groups = kept.groups[kept.chosen_rows[mine]]
    lead = accuracy_difference(model.content.margins_by_head[:, mine], other.content.margins_by_head[:, theirs], groups)
    if lead is None:
        return None
    entry = other.evaluation["sparserm"]
    row = {"kind": PAPER, "name": "As the paper reads it", **entry["mean"], "heads": len(entry["heads"]), "parameters": entry["n_parameters"]}
    sentence = (
        f"As the paper reads it (the last token, latents by frequency): {accuracy_text(entry['mean'])} ({interval_text(entry['mean'])}); "
        f"this reward model is {100 * lead.difference:+.1f} points from it ({100 * lead.low:+.1f} to {100 * lead.high:+.1f}, paired by prompt)."
    )
    return PaperReading(row=row, sentence=sentence)


def verdict(model: FittedModel) -> str:
    """One or two sentences: whether the latents lead over random directions, and whether wording alone comes as far."""
    controls = model.evaluation["controls"]
    leads = {name: controls.get(name, {}).get("sparserm_minus_this") for name in ("random-isotropic", "random-rows")}
    behind = [method_name(name).lower() for name, lead in leads.items() if lead and lead["low"] <= 0]
    first = (
        "These latents do better than random directions of the same number."
        if not behind
        else f"No clear lead over {' and '.join(behind)}: the choice of latents may not matter here."
    )
    mean, wording = model.evaluation["sparserm"]["mean"], controls.get("wording-only", {}).get("mean")
    if wording and wording["accuracy"] is not None and mean["accuracy"] is not None and wording["high"] >= mean["accuracy"]:
        return f"{first} Wording alone comes as far: the pairs may be told apart by their words."
    return first


def facts(model: FittedModel) -> list[tuple[str, str]]:
    """What the reward model was made of, as name and value. Values hold names of files and models: show them as plain
    text.
    """
    config, about, table = model.config, model.about, model.evaluation
    data, splits = config["method"]["data"], config["method"]["data"]["splits"]
    sae = config["sae"] or {}
    counts = f"{splits.get('train', 0):,} train, {splits.get('validation', 0):,} validation, {splits.get('test', 0):,} test pairs; split by prompt"
    selection = about["selection"]
    rows = [
        ("Pairs", f"{model.data_name}: {data['n_pairs']:,} pairs, {data['n_prompts']:,} prompts"),
        ("Split", counts),
        (
            "Language model",
            f"{model.backbone_name}, layer {about['layer']} of {config['backbone']['n_layers']}, read at the {_position(about['position'])}",
        ),
        ("Autoencoder", f"{sae.get('name', 'none')}, {sae.get('d_sae', 0):,} latents"),
        ("Directions", f"{selection['k_chosen']} latents of chosen, {selection['k_rejected']} of rejected; {selection['n_live']:,} were live"),
        ("Head", f"{table['sparserm']['n_parameters']:,} parameters, {len(table['sparserm']['heads'])} seeds"),
    ]
    took = seconds(model)
    rows.append(("Made", f"{date(model.created)}" + (f", in {duration(took)}" if took else "")))
    checked = f"{len(config[FILES])} files, each as it was saved" if has_record(config) else NO_RECORD
    read = " ".join(line.strip() for line in counted(model))
    return [*rows, ("Left out", read), ("Folder", str(model.path)), ("Checked", checked)]


def _position(name: str) -> str:
    places = {"response_end": "end of the response", "response_mean": "whole response (the mean over its tokens)", "turn_end": "end of the turn"}
    return places.get(name, name)


def seconds(model: FittedModel) -> float:
    """How long its steps took, of those still in the cache. Hidden states are stored under another name and not
    counted.
    """
    store, fingerprints = Store(model.root), model.config["method"].get("fingerprints", {})
    present = [step for step in STEPS_TIMED if step in fingerprints and store.folder(step, fingerprints[step]).is_dir()]
    artefacts = [store.find(step, fingerprints[step]) for step in present]
    return float(sum(artefact.manifest["time_seconds"] for artefact in artefacts if isinstance(artefact, Artefact)))


def kinds(model: FittedModel) -> list[dict[str, Any]]:
    """Accuracy by kind of pair, where the data names kinds, largest kind first: SparseRM's (mean over heads) and
    wording's.
    """
    table = model.evaluation
    sparse, wording = table["sparserm"].get("subsets") or {}, table["controls"].get("wording-only", {}).get("subsets") or {}
    measured = [(name, value) for name, value in sparse.items() if value["accuracy"] is not None]
    n_heads = {"SparseRM": len(table["sparserm"]["heads"]), "Wording only": len(table["controls"].get("wording-only", {}).get("heads", ()))}
    rows = [("SparseRM", name, value) for name, value in measured]
    rows += [("Wording only", name, wording[name]) for name, _ in measured if name in wording and wording[name]["accuracy"] is not None]
    rows.sort(key=lambda row: -row[2]["n"])
    figures = ("accuracy", "low", "high", "n")
    return [{"kind": name, "by": by, "heads": n_heads[by], **{part: value[part] for part in figures}} for by, name, value in rows]

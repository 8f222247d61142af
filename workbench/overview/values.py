"""What the Overview says of a reward model: its headline beside the controls, in figures and in sentences. No Streamlit here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.cli import tables as console
from core.reward.head_words import counted_pairs, mean_of, shipped_head, shipped_seed
from core.reward.recorded_files import FILES, has_record
from core.runs.store import Artefact, Store
from workbench.frame.charts import contestant
from workbench.frame.left_out import NO_RECORD, counted
from workbench.frame.models import FittedModel

STEPS_TIMED = ("pairs", "extraction", "frequencies", "heads", "controls", "curve", "evaluation", "known")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number with what it was measured on."""

    name: str
    value: str
    beside: str
    help: str = ""


def share(value: Mapping[str, Any]) -> str:
    """`84.2 %`, or `none` where there are no pairs."""
    return "none" if value["accuracy"] is None else f"{100 * value['accuracy']:.1f} %"


def within(value: Mapping[str, Any], split: str = "test") -> str:
    """`81.4 to 86.9 %, n = 1,154 test pairs`."""
    return f"{100 * value['low']:.1f} to {100 * value['high']:.1f} %, n = {counted_pairs(value['n'], split)}" if value["n"] else f"no {split} pairs"


def headline(model: FittedModel) -> list[Figure]:
    """The figures that stand first: accuracy, the leads over the controls that matter, and what the head reads."""
    table = model.evaluation
    mean, of = table["sparserm"]["mean"], mean_of(len(table["sparserm"]["heads"]))
    help_ = "The heads differ in their seed only. 95 % interval over prompts. Rewards come from the shipped head, which did best on validation."
    found = [Figure(name=f"Test accuracy, {of}", value=share(mean), beside=f"{of}: {within(mean)}; {shipped(model)}", help=help_)]
    for kind, name in (("random-isotropic", "Over random directions"), ("dense", "Over the whole state")):
        lead = table["controls"].get(kind, {}).get("sparserm_minus_this")
        if lead:
            beside = f"{100 * lead['low']:+.1f} to {100 * lead['high']:+.1f}, n = {counted_pairs(lead['n'])}"
            found.append(
                Figure(
                    name=name,
                    value=f"{round(100 * lead['difference'], 1) + 0.0:+.1f} pts",
                    beside=beside,
                    help=f"SparseRM ({of}) less {contestant(kind).lower()} ({mean_of(len(table['controls'][kind]['heads']))}), in points of accuracy "
                    "on the same test pairs; 95 % interval over prompts.",
                )
            )
    wording = table["controls"].get("wording-only")
    if wording:
        help_ = "A bag of words, no language model: how much of the preference is in the words."
        found.append(Figure(name="Wording alone", value=share(wording["mean"]), beside=within(wording["mean"]), help=help_))
    return found


def shipped(model: FittedModel) -> str:
    """`shipped head, seed 3: 70.4 % of the same pairs`: what the head that gives the rewards reaches on the same test pairs."""
    seed = shipped_seed(model.config["method"])
    return f"{shipped_head(seed)}: {share(model.evaluation['sparserm'])} of the same pairs"


def verdict(model: FittedModel) -> str:
    """Two sentences of ours on what the headline is worth."""
    controls = model.evaluation["controls"]
    leads = {name: controls.get(name, {}).get("sparserm_minus_this") for name in ("random-isotropic", "random-rows")}
    behind = [contestant(name).lower() for name, lead in leads.items() if lead and lead["low"] <= 0]
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
    """What it was made of, as name and value; values hold names of files and models, so they are shown as plain text."""
    config, about, table = model.config, model.about, model.evaluation
    data, splits = config["method"]["data"], config["method"]["data"]["splits"]
    sae = config["sae"] or {}
    counts = f"{splits.get('train', 0):,} train, {splits.get('validation', 0):,} validation, {splits.get('test', 0):,} test pairs; split by prompt"
    selection = about["selection"]
    found = [
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
    found.append(("Made", f"{console.date(model.created)}" + (f", in {console.duration(took)}" if took else "")))
    whole = f"{len(config[FILES])} files, each as it was saved" if has_record(config) else NO_RECORD
    read = " ".join(line.strip() for line in counted(model))
    return [*found, ("Left out", read), ("Folder", str(model.folder)), ("Checked", whole)]


def _position(name: str) -> str:
    return {"response_end": "end of the response", "turn_end": "end of the turn"}.get(name, name)


def seconds(model: FittedModel) -> float:
    """What its steps took when they were made, those still in the cache; the hidden states are found by another name and not counted."""
    store, marks = Store(model.root), model.config["method"].get("fingerprints", {})
    found = [store.find(step, marks[step]) for step in STEPS_TIMED if step in marks and store.folder(step, marks[step]).is_dir()]
    return float(sum(artefact.manifest["time_seconds"] for artefact in found if isinstance(artefact, Artefact)))


def kinds(model: FittedModel) -> list[dict[str, Any]]:
    """Accuracy by kind of pair, where the data names kinds, largest kind first: SparseRM's (mean over heads) and what wording alone reaches."""
    table = model.evaluation
    ours, wording = table["sparserm"].get("subsets") or {}, table["controls"].get("wording-only", {}).get("subsets") or {}
    told = [(name, value) for name, value in ours.items() if value["accuracy"] is not None]
    n_heads = {"SparseRM": len(table["sparserm"]["heads"]), "Wording only": len(table["controls"].get("wording-only", {}).get("heads", ()))}
    rows = [("SparseRM", name, value) for name, value in told]
    rows += [("Wording only", name, wording[name]) for name, _ in told if name in wording and wording[name]["accuracy"] is not None]
    rows.sort(key=lambda row: -row[2]["n"])
    figures = ("accuracy", "low", "high", "n")
    return [{"kind": name, "by": by, "heads": n_heads[by], **{part: value[part] for part in figures}} for by, name, value in rows]

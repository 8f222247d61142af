"""The model card of a reward model on the Hub: what it reads, how it was fitted, how well, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from core.reward.pair_counts import sentences
from core.reward.parts import RewardParts
from core.text_safety import visible

REPOSITORY = "sparserm-workbench"
PAPER = "https://arxiv.org/abs/2511.07896"
WHAT = {
    "sparserm": "A SparseRM reward model: hidden states of a frozen language model, projected on decoder directions of an SAE, through a small MLP.",
    "random-isotropic": "A control of a SparseRM reward model: the same head on isotropic random directions.",
    "random-rows": "A control of a SparseRM reward model: the same head on live decoder rows drawn at random.",
    "dense": "A control of a SparseRM reward model: the same head on the whole hidden state (DenseRM).",
    "activations": "A control of a SparseRM reward model: the same head on the activations of the selected latents. Scoring needs the SAE.",
}
BODY = """---
{{{{ card_data }}}}
---

# SparseRM reward model ({kind})

{what}

Method: [SparseRM: A Lightweight Preference Modeling with Sparse Autoencoder]({paper}).

## Use

```python
from core.reward.model import SparseRM
reward_model = SparseRM.from_pretrained("this repository's id")
rewards = reward_model.score(["Is the Earth flat?"], ["No, it is round."])
```

It needs the package `{repository}`, and the backbone below, of which it runs the first {depth} decoder layers.
As a TRL reward function: `GRPOTrainer(reward_funcs=reward_model, ...)`.
`config.json` records the size and the sha256 of every file of the model (`files`), and its own (`config_sha256`); they are checked at every load.

## What it reads

| | |
|---|---|
{table}

## How well it does

{accuracy}

## Which pairs these figures stand on

{counts}

## Limits

- Rewards of responses to different prompts are hardly comparable: the training loss sees differences within a prompt only.
- Another backbone, layer, position or chat template is refused. Another dtype is not, and moves rewards a little.
- It is as good as the preference pairs it was fitted on. Try it on your own.
"""


def model_card(parts: RewardParts) -> ModelCard:
    """The card of this very model, with metadata for the Hub."""
    name = str(parts.backbone.get("name", ""))
    tags = ["reward-model", "sparse-autoencoder", "model_hub_mixin", parts.kind]
    data = ModelCardData(library_name=REPOSITORY, base_model=name if "/" in name else None, tags=tags)
    template = BODY.format(
        kind=parts.kind,
        what=WHAT[parts.kind],
        paper=PAPER,
        repository=REPOSITORY,
        depth=parts.layer + 1,
        table="\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(parts).items()),
        accuracy=_accuracy(parts.evaluation),
        counts=_counts(parts.method.get("pair_counts")),
    )
    return ModelCard.from_template(data, template_str=template)


def _facts(parts: RewardParts) -> dict[str, str]:
    backbone, sae = parts.backbone, parts.sae or {}
    return {
        "backbone": ", ".join(str(backbone[name]) for name in ("name", "revision", "dtype") if backbone.get(name)),
        "layer": f"{parts.layer}, counted from 0: the output of decoder layer {parts.layer}",
        "position": parts.position,
        "chat template, sha256": str(backbone.get("template_sha256")),
        "SAE": ", ".join(f"{name} {value}" for name, value in sae.items() if isinstance(value, (str, int)) and value != "") or "none",
        "inputs of the head": str(parts.k),
        "seeds": ", ".join(map(str, parts.seeds)),
    }


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    rows = [
        f"| {split} | {e['accuracy']:.3f} | {e['low']:.3f} to {e['high']:.3f} | {e['n']} | {e.get('n_refused', 'not counted')} |"
        for split, e in evaluation.items()
    ]
    columns = ["| split | accuracy of the shipped head | 95 % interval | pairs | pairs left out |", "|---|---|---|---|---|"]
    return "\n".join([*columns, *rows]) if rows else "Not measured."


def _counts(counts: Mapping[str, Any] | None) -> str:
    """The pairs that were left out, as a list. A reason can hold text of the data's own."""
    if counts is None:
        return "Pairs that were left out have not been counted by the version that fitted this model."
    return "\n".join(f"{'  ' * line.startswith('  ')}- {_plain(line.strip())}" for line in sentences(counts))


def _plain(line: str) -> str:
    """A sentence without signs that Markdown or the template engine would read."""
    return "".join(f"\\{sign}" if sign in "`*_[]<>#|!~\\" else sign for sign in _cell(line))


def _cell(value: str) -> str:
    """One table cell: no bars, no line ends, and no braces that the template engine would read."""
    for sign, instead in (("|", "/"), ("\n", " "), ("{", "("), ("}", ")")):
        value = value.replace(sign, instead)
    return visible(value)

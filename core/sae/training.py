"""Trains a sparse autoencoder on any backbone with sae-lens' trainer (`sparserm sae train`; METHOD.md, SAE traps).

1. The corpus (corpus.py) becomes documents (documents.py), and these become shuffled batches of hidden states
   (activations.py): message text only, no template tokens, no first position, and a fixed share of each batch from
   response-final positions.
2. sae-lens' `SAETrainer.step` does each step (BatchTopK or TopK, decoder-norm-rescaled activations, auxiliary loss for
   dead latents, Adam, linear warm-up and decay). The loop around it is here, for progress, cancelling and resuming
   (checkpoint.py). Weights and moments are float32; where the backbone computes in bfloat16, so do the matrix products
   (1.6 times as fast here, FVU 0.4093 against 0.4097 after 130 steps).
3. Our choices [C]: inputs are scaled so that their centred norm is sqrt(d_model) on average; the decoder bias begins at
   their mean; at the end BatchTopK's one threshold is measured on the last round's content tokens, since sae-lens'
   running average begins at 0 and lags behind. With `--init` training starts from the weights of a trained SAE, so its
   latents keep their meaning (and their labels) while it learns more text.
4. The scale is folded into the weights, threshold included; the inference form is saved, loaded again, and measured:
   the card.

In the saved folder the two matrices are float16, and `cfg.json` gives float32: they are loaded and computed in float32.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.backbone.model import Backbone, load_backbone
from core.config import Config, DataConfig, SAEConfig, SAETrainConfig
from core.errors import ConfigError, SAEError
from core.files import file_sha256, read_json, write_json
from core.runs.store import Store, cache_root, publish_folder
from core.runs.versions import VERSIONS
from core.sae.activations import Cursor, Round, Stream
from core.sae.autoencoder import load_sae
from core.sae.card import sae_card
from core.sae.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from core.sae.corpus import Corpus, Dialogue, comma_separated, load_corpus, load_split, pair_dialogues, short_names, split_corpus
from core.sae.trainer import WEIGHTS, make_trainer, measure_threshold, save_inference, set_up_inputs, start_from
from core.types import Progress, no_progress, sha256_of

STEP = "sae-train"
CARD = "card.json"
L0_TOLERANCE = 0.1


def train_sae(config: SAETrainConfig, *, root: Path | None = None, progress: Progress = no_progress) -> Path:
    """Trains, saves and measures an SAE; returns its folder (`cfg.json`, `sae_weights.safetensors`, `card.json`).

    The folder is `config.out`, or `<root>/saes/<model>-l<layer>-w<width>-k<k>-<8 hex>`; it exists whole or not at all,
    and a second call with the same config, model and corpus returns at once. A call that was killed goes on from its
    last checkpoint (`<root>/scratch`) to the same bytes. No dialogue that holds a validation or test prompt of the
    corpus's preference pairs, or a prompt of `config.measure`, is trained on. `root` is the cache. Raises ConfigError
    for impossible settings or a folder that holds something else, BackboneError, DataError, SAEError where the reloaded
    SAE's L0 is more than 10 % off k, and what `progress` raises.
    """
    _check(config)
    settings = _settings(config)
    root = root or cache_root()
    backbone = load_backbone(config.backbone, depth=config.backbone.layer + 1, progress=progress)
    beside = {name: load_split(DataConfig(pairs=name), progress) for name in comma_separated(config.measure)}
    excluded = {pair.prompt_id for pairs in beside.values() for pair in pairs}
    corpus = load_corpus(config.corpus, root=root, ratios=config.ratios, split_seed=config.split_seed, exclude_prompts=excluded, progress=progress)
    store = Store(root)
    fingerprint = store.fingerprint(STEP, VERSIONS[STEP], settings, [sha256_of(backbone.identity), corpus.content_hash])
    target = Path(config.out).expanduser() if config.out else root / "saes" / _folder_name(config, backbone, fingerprint)
    job = _Job(
        config=config,
        backbone=backbone,
        identity=backbone.identity,
        prepend_bos=backbone.template.bos is not None,
        corpus=corpus,
        unseen={**corpus.unseen, **{name: tuple(pair_dialogues(pairs)) for name, pairs in beside.items()}},
        fingerprint=fingerprint,
        target=target,
        scratch=store.scratch(STEP, fingerprint),
    )
    del backbone  # `_trained` drops the job's reference too, before the whole model is loaded for the card
    with store.lock(STEP, fingerprint):
        if not _is_trained(target, fingerprint):
            _run(job, progress)
        shutil.rmtree(job.scratch, ignore_errors=True)
    return target


@dataclass(kw_only=True)
class _Job:
    """The inputs of a training. `backbone` is None once the hidden states have been read."""

    config: SAETrainConfig
    backbone: Backbone | None
    identity: Mapping[str, Any]
    prepend_bos: bool
    corpus: Corpus
    unseen: Mapping[str, Sequence[Dialogue]]
    fingerprint: str
    target: Path
    scratch: Path


def _run(job: _Job, progress: Progress) -> None:
    started = time.time()
    training, held_out = _split(job)
    state, seen = _trained(job, training, progress)
    for leftover in job.target.parent.glob(f".{job.target.name}-*"):  # of a killed process: this process holds the lock
        shutil.rmtree(leftover, ignore_errors=True)

    def make(folder: Path) -> None:
        save_inference(state.trainer, folder, _metadata(job, seen))
        card = {**_card(job, folder, seen), **_measure(job, folder, held_out, progress), "held_out": sorted({d.group for d in held_out})}
        write_json(folder / CARD, {**card, "time_created": started, "time_seconds": time.time() - started})

    publish_folder(job.target, make)


def _split(job: _Job) -> tuple[list[Dialogue], list[Dialogue]]:
    """Training and held-out dialogues. Where training starts from an earlier SAE of ours, the dialogues that it was
    measured on stay held out, since it has been trained on all others."""
    dialogues, card = job.corpus.dialogues, Path(job.config.init).expanduser() / CARD
    groups = read_json(card).get("held_out") if job.config.init and card.is_file() else None
    if not groups:
        return split_corpus(dialogues, job.config.held_out, job.config.seed)
    groups = set(groups)
    training, held_out = [d for d in dialogues if d.group not in groups], [d for d in dialogues if d.group in groups]
    if not held_out or not training:
        raise ConfigError(
            "nothing is left to train or to measure on",
            expected="a corpus that holds dialogues the first SAE was measured on, and others",
            found=f"{len(held_out)} of {len(dialogues)}",
        )
    return training, held_out


def _trained(job: _Job, training: Sequence[Dialogue], progress: Progress) -> tuple[TrainingState, dict[str, Any]]:
    config = job.config
    assert job.backbone is not None
    stream = Stream(
        dialogues=training,
        backbone=job.backbone,
        layer=config.backbone.layer,
        context=config.context,
        batch_size=config.batch_size,
        ends_per_batch=round(config.response_end_share * config.batch_size),
        seed=config.seed,
    )
    state = train(config, stream, job.scratch, progress)
    job.backbone = None
    return state, _seen(state, stream)


def train(config: SAETrainConfig, stream: Stream, scratch: Path, progress: Progress) -> TrainingState:
    """The trained state, from the last checkpoint in `scratch` on, if any. Only whole batches are used."""
    steps = config.tokens // config.batch_size
    mixed = stream.backbone.dtype == torch.bfloat16
    trainer = make_trainer(config, stream.backbone.d_model, str(stream.backbone.device), mixed=mixed)
    state = TrainingState(trainer=trainer, cursor=Cursor(), ring=torch.empty(0, stream.backbone.d_model))
    resumed = load_checkpoint(scratch, state)
    due = _Due(every=config.checkpoint_every, last=trainer.n_training_samples)
    report = _Report(progress=progress, total=steps * config.batch_size, began_at=trainer.n_training_samples)
    while not state.finished:
        current = stream.round(state.cursor, state.ring)
        if not resumed:
            set_up_inputs(trainer, current)
            if config.init:
                start_from(trainer, load_sae(SAEConfig(path=config.init, format="sae-lens"), progress=progress))
            resumed = True
        _train_round(state, stream, current, steps, due, report, scratch)
        if trainer.n_training_steps >= steps:
            measure_threshold(trainer, stream, current)
            state.cursor, state.ring, state.finished = current.following, current.ring, True
            save_checkpoint(scratch, state)
        elif state.cursor.batch >= stream.n_batches(current):
            state.cursor, state.ring = current.following, current.ring
    return state


def _train_round(state: TrainingState, stream: Stream, current: Round, steps: int, due: _Due, report: _Report, scratch: Path) -> None:
    trainer = state.trainer
    while state.cursor.batch < stream.n_batches(current) and trainer.n_training_steps < steps:
        output = trainer.step(stream.batch(current, state.cursor.batch))
        trainer.n_training_steps += 1
        state.cursor = state.cursor.after_batch()
        report.step(trainer, output)
        if due.now(trainer.n_training_samples) and trainer.n_training_steps < steps:
            save_checkpoint(scratch, state)


@dataclass(kw_only=True)
class _Due:
    every: int
    last: int

    def now(self, tokens: int) -> bool:
        if tokens - self.last < self.every:
            return False
        self.last = tokens
        return True


@dataclass(kw_only=True)
class _Report:
    progress: Progress
    total: int
    began_at: int
    began: float = 0.0

    def step(self, trainer: Any, output: Any) -> None:
        """Reports figures of the last batch, response-final states included; FVU and L0 are the training form's."""
        self.began = self.began or time.monotonic()
        done, x = trainer.n_training_samples, output.sae_in
        fvu = float((output.sae_out.detach() - x).square().sum() / (x - x.mean(0)).square().sum())
        rate = (done - self.began_at) / max(time.monotonic() - self.began, 1e-9)
        l0, dead = float((output.feature_acts > 0).float().sum(-1).mean()), int(trainer.dead_neurons.sum())
        self.progress("sae training", done, self.total, loss=float(output.loss.detach()), fvu=fvu, l0=l0, dead=dead, tokens_per_s=rate)


def _measure(job: _Job, folder: Path, held_out: Sequence[Dialogue], progress: Progress) -> dict[str, Any]:
    """The card's figures: `measured` on the held-out dialogues, and `measured_on` for each set of pairs the last token
    of every answer to its validation and test prompts."""
    config = job.config
    sae = load_sae(SAEConfig(path=str(folder), format="sae-lens"), progress=progress)
    whole = load_backbone(config.backbone, progress=progress)
    at: dict[str, Any] = {"layer": config.backbone.layer, "seed": config.seed, "progress": progress}
    measured = sae_card(sae, whole, held_out, context=config.context, **at)
    l0 = measured["l0"]["value"]
    if not abs(l0 - config.k) <= L0_TOLERANCE * config.k:
        raise SAEError(
            "the saved SAE is not as sparse as it was trained to be",
            expected=f"L0 within {L0_TOLERANCE:.0%} of k = {config.k} on held-out tokens",
            found=f"{l0:.2f} on {measured['l0']['n_tokens']} tokens",
            remedy="train on more tokens or another corpus; few steps leave the threshold unsettled",
        )
    short = load_backbone(config.backbone, depth=config.backbone.layer + 1, progress=progress)
    at |= {"context": config.backbone.max_length, "last_response_only": True}  # as a reward model reads them
    labels = short_names(list(job.unseen))
    return {"measured": measured, "measured_on": {labels[name]: sae_card(sae, short, rows, **at) for name, rows in job.unseen.items()}}


def _check(config: SAETrainConfig) -> None:
    """Raises ConfigError for settings with which no training is possible."""
    if config.k >= config.width:
        raise ConfigError("SAETrainConfig.k is too large", expected=f"fewer than the {config.width} latents", found=str(config.k))
    if not 0 <= config.response_end_share < 1:
        raise ConfigError("SAETrainConfig.response_end_share is impossible", expected="0 to 1, 1 left out", found=str(config.response_end_share))
    if not 0 < config.held_out < 1:
        raise ConfigError("SAETrainConfig.held_out is impossible", expected="between 0 and 1: the card is measured on it", found=str(config.held_out))
    if config.tokens < 10 * config.batch_size:
        raise ConfigError("too few tokens to train on", expected=f"at least 10 batches of {config.batch_size}", found=str(config.tokens))


def _settings(config: SAETrainConfig) -> dict[str, Any]:
    """The config's part of the fingerprint; of backbone and corpus, which enter by content, only the layer."""
    fields = {name: value for name, value in config.result_fields().items() if name not in ("backbone", "corpus", "init")}
    return {**fields, "layer": config.backbone.layer, **({"init": _weights_of(config.init)} if config.init else {})}


def _weights_of(folder: str) -> str:
    weights = Path(folder).expanduser() / WEIGHTS
    if not weights.is_file():
        raise ConfigError("there is no SAE to go on from", expected=f"a folder with {WEIGHTS}", found=folder)
    return file_sha256(weights)


def _folder_name(config: SAETrainConfig, backbone: Backbone, fingerprint: str) -> str:
    model = re.sub(r"[^a-z0-9.]+", "-", str(backbone.identity["name"]).lower()).strip("-")
    return f"{model}-l{config.backbone.layer}-w{config.width}-k{config.k}-{fingerprint[:8]}"


def _is_trained(target: Path, fingerprint: str) -> bool:
    """Whether `target` holds this SAE already. Raises ConfigError if it holds something else."""
    if not target.exists():
        return False
    card = target / CARD
    existing = read_json(card).get("fingerprint") if card.is_file() else "no SAE of ours"
    if existing != fingerprint:
        raise ConfigError(
            f"{target} exists and holds something else", expected=fingerprint[:16], found=str(existing)[:16], remedy="give another --out"
        )
    return True


def _seen(state: TrainingState, stream: Stream) -> dict[str, Any]:
    """How much the training read; `response_ends_times_used`: mean draws of a distinct response-final position."""
    steps, cursor = state.trainer.n_training_steps, state.cursor
    drawn = steps * stream.ends_per_batch
    return {
        "tokens": steps * stream.batch_size,
        "steps": steps,
        "epochs": round(cursor.dialogue / len(stream.dialogues), 3),
        "content_tokens_read": cursor.tokens,
        "content_tokens_distinct": cursor.distinct_tokens,
        "response_ends_drawn": drawn,
        "response_ends_distinct": cursor.distinct_ends,
        "dialogues_unreadable": cursor.unreadable,
        "response_ends_times_used": round(drawn / cursor.distinct_ends, 2) if cursor.distinct_ends else 0.0,
        "dead_in_training": int(state.trainer.dead_neurons.sum()),
    }


def _metadata(job: _Job, seen: Mapping[str, Any]) -> dict[str, Any]:
    """How the SAE was trained, for its cfg.json, under sae-lens' names of the fields where it has them."""
    config = job.config
    return {
        "model_name": job.identity["name"],
        "hook_name": f"blocks.{config.backbone.layer}.hook_resid_post",
        "context_size": config.context,
        "prepend_bos": job.prepend_bos,
        "dataset_path": config.corpus,
        "trained_positions": ["content", "response_end"] if config.response_end_share else ["content"],
        "response_end_share": config.response_end_share,
        "training_tokens": seen["tokens"],
        "seed": config.seed,
    }


def _card(job: _Job, folder: Path, seen: Mapping[str, Any]) -> dict[str, Any]:
    config = job.config
    sae = {**_metadata(job, seen), "architecture": config.architecture, "d_sae": config.width, "k": config.k}
    return {
        "schema": 1,
        "fingerprint": job.fingerprint,
        "command": command_line(config),
        "sae": {**sae, "sha256": file_sha256(folder / WEIGHTS)},
        "backbone": dict(job.identity),
        "training": {**_settings(config), **seen},
        "corpus": {"source": config.corpus, "sha256": job.corpus.content_hash, "sources": job.corpus.report},
    }


def command_line(config: SAETrainConfig) -> str:
    """The command that trains this SAE again: options that identify it, and others that are not at their defaults."""
    always = ("model", "layer", "architecture", "width", "k", "tokens", "corpus", "seed")
    words = ["sparserm", "sae", "train"]
    for part in (config.backbone, config):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name in always or (field.metadata.get("result") and value != field.default and not isinstance(value, Config)):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words += ["--" + {"revision": "model-revision"}.get(field.name, field.name.replace("_", "-")), text]
    return shlex.join(words)

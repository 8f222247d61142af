"""The reward model: one folder, and one object that scores, also as a TRL reward function and a Hub model.

    from core.reward.model import SparseRM
    reward_model = SparseRM.load("path/of/a/folder")
    rewards = reward_model.score(["Is the Earth flat?"], ["No, it is round."])

A prompt is a string (one user message) or a list of messages; a response is a string or the list of messages that
answers. `score_pairs(pairs)` gives the rewards of chosen and rejected responses;
`GRPOTrainer(reward_funcs=reward_model, ...)` takes the object as it is. The language model named in the folder is
loaded at the first score, up to its layer L only; `SparseRM.load(path, backbone=...)` gives it a loaded one, or another
place to read. A backbone, layer, position or template other than those the model was made for is a MismatchError that
names both.

The folder (format `sparserm-reward-model`, schema 1; public: anyone may write and read it)

config.json, written last
    files                           name -> {bytes, sha256} of every other file of the model (core.reward.recorded_files)
    config_sha256                   sha256 of this file's canonical JSON without this field
    format, schema, kind            see below for the kinds
    k, hidden                       inputs and hidden units of the head
    backbone                        of the language model: name, revision, sha256, d_model, n_layers, dtype, ...
    template_sha256                 of its chat template
    layer, position                 0-based, the output of decoder layer L; response_end, response_mean or turn_end
                                    (METHOD.md section 2)
    reading                         the other fields of BackboneConfig: where and how the language model was read
    sae, sae_config                 identity of the SAE and where it is read; null without one
    seeds                           one a head in heads.safetensors
    method, evaluation              for people: how it was fitted; split -> accuracy, low, high, n (pairs measured),
                                    n_refused (pairs that the language model can't read: n + n_refused are all),
                                    n_shortened (of the n, read with a cut prompt)
    method.pair_counts              rows and pairs that left the computation (core.reward.pair_counts), as in evaluation.json;
                                    older folders lack it
model.safetensors, float32, row-major
    directions [k, d_model]         rows d_j: first the latents that mark chosen responses, then the others
    head.0.weight [hidden, k], head.0.bias [hidden], head.2.weight [1, hidden], head.2.bias [1]
    projection_mean, projection_std [k]   of the head's inputs over training responses, for explaining only
    reward_quantiles [101]          0th to 100th percentile of the reward over held-out responses
    margin_scale [1]                a of P(chosen wins) = sigmoid(a * (s_w - s_l))
    latent_ids [k], int64           the SAE's latents that the inputs belong to
heads.safetensors
    seed.<seed>.head.0.weight, ...  the heads of all seeds; of the `random-` kinds (a draw of directions each), the shipped
                                    one alone
selection.jsonl
    one row a latent, in the order of the directions: latent_id, side (chosen, rejected), separation with its interval
    low and high, held_out, q_value, stability, detection figures ...; null where a figure does not exist
known.safetensors, known.jsonl, faithfulness.json, evaluation.json, curve.json, optional, for explaining and pages
    the responses it was fitted and measured on (core.reward.fit_responses), their texts, how faithful its explanations
    are (core.explain.faithfulness), and the fit's tables of controls. The texts go to the Hub only if asked for:
    `push_to_hub(..., texts=True)`

Every load checks the recorded files: one that is missing, empty, cut or changed is a StoreError that names it. `cp -r`,
git, zip and the Hub keep the record valid; who adds a file or writes the format with other tools calls
`recorded_files.record_files`. README.md, notes and whatever else people put beside the model are not recorded and not
read; labels of latents lie in the cache. A folder without the two fields (of an older version) is read with a warning.

With z [d_model] the hidden state at the position after layer L (at response_mean the mean over the response's own
tokens), reward = head(directions @ z), head(v) = W2 relu(W1 v +
b1) + b2: no SAE is needed. Kinds: `sparserm`; the controls `random-rows` and `random-isotropic` (the latter without
latent_ids, its table empty); `dense` (without directions and latent_ids: reward = head(z)); `activations` (without
directions: reward = head(f(z)[latent_ids]), so the SAE is read from `sae_config`; at response_mean the mean of f over
the own tokens).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from jaxtyping import Float

from core.backbone.model import Backbone, load_backbone
from core.backbone.source import backbone_identity, find_model
from core.config import BackboneConfig
from core.data.hub import one_question
from core.errors import DataError, MismatchError, StoreError
from core.reward.card import model_card
from core.reward.dialogues import Dialogue, Item, items_of, key_of
from core.reward.extraction import response_activity, response_states
from core.reward.fit_responses import FitResponses
from core.reward.folder import ModelFolder
from core.reward.hidden_states import WHOLE
from core.reward.parts import RewardParts
from core.reward.parts_files import read_parts, save_parts, write_parts
from core.reward.projection import activations
from core.reward.reading_details import shortened_items
from core.reward.recorded_files import CONFIG, KNOWN_TEXTS, MODEL_FILES, OPTIONAL_FILES, read_config
from core.reward.rendering import read_items
from core.sae.autoencoder import SparseAutoencoder, load_sae
from core.types import PreferencePair

if TYPE_CHECKING:
    from core.explain.explainer import Explainer
    from core.explain.explanation import Explanation, PairExplanation

Read = tuple[np.ndarray, dict[int, str]]

CHUNK = 2048  # distinct responses whose hidden states are held at once
log = logging.getLogger(__name__)


class SparseRM(ModelHubMixin, library_name="sparserm-workbench"):
    """A reward model or a control (`parts.kind`): z of a (prompt, response), projected, through a small head.

    `parts` is what the folder holds; `reader` takes (messages, response) items to the hidden states, float32 [n,
    d_model], of those it can read, and a reason under the number of each other one. Rewards are float64, from the saved
    float32 tensors. No `nn.Module`: TRL would look for `.logits`.
    """

    # Not None: otherwise the mixin would copy every tensor into a config of its own making.
    _hub_mixin_config: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, parts: RewardParts, reader: Callable[[Sequence[Item]], Read]) -> None:
        self.parts, self.reader = parts, reader
        self.folder: Path | None = None  # where it was loaded from
        self._share_texts = False
        self.__name__ = parts.kind  # TRL logs rewards under it

    @classmethod
    def from_parts(cls, parts: RewardParts, *, backbone: Backbone | BackboneConfig | None = None, device: str = "auto") -> SparseRM:
        """A reward model on a backbone: loaded, or (at the first score) by a config, or (None) by `parts`. MismatchError:
        a given backbone is not the one the model was made for."""
        return cls(parts, BackboneReader(parts, backbone, device))

    @classmethod
    def load(cls, path: str | Path, *, backbone: Backbone | BackboneConfig | None = None, device: str = "auto") -> SparseRM:
        """A reward model or control from its folder. StoreError: missing, damaged, newer. Else as `from_parts`."""
        model = cls.from_parts(read_parts(Path(path)), backbone=backbone, device=device)
        model.folder = Path(path)
        return model

    def save(self, path: str | Path) -> Path:
        """Saves the folder, whole or not at all. StoreError: `path` exists, or the loaded folder was damaged since."""
        return save_parts(self.parts, Path(path), self._beside(texts=True))

    def _beside(self, *, texts: bool) -> list[Path]:
        """The optional files of the folder that was loaded, checked: a copy would record a damaged one as it is."""
        if self.folder is None:
            return []
        read_config(self.folder)
        return [self.folder / name for name in OPTIONAL_FILES if (texts or name != KNOWN_TEXTS) and (self.folder / name).is_file()]

    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> Float[np.ndarray, " n"]:
        """The reward s of each response to the prompt at its place. Each distinct (prompt, response) is computed once.
        DataError: lists of unequal length, or a prompt or response is empty or longer than the model reads."""
        rewards, refused = self.try_score(prompts, responses)
        if refused:
            number = min(refused)
            first = f"item {number}, counted from 0: {refused[number]}"
            raise DataError(f"{len(refused)} of {len(rewards)} responses can't be scored", found=first, remedy="leave them out, or use try_score")
        return rewards

    def try_score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> tuple[Float[np.ndarray, " n"], dict[int, str]]:
        """As `score`, but NaN and a reason (by number) for an unreadable item. DataError: lists of unequal length."""
        items, refused = items_of(prompts, responses)
        by_key = self._rewards({key_of(item): item for item in items.values()})
        rewards = np.full(len(prompts), np.nan)
        for number, item in items.items():
            value = by_key[key_of(item)]
            if isinstance(value, str):
                refused[number] = value
            else:
                rewards[number] = value
        return rewards, refused

    def shortened(self, prompts: Sequence[Dialogue], responses: Sequence[Dialogue]) -> list[int]:
        """Numbers of the responses that are read without leading turns of their prompt, which is longer than the model
        reads. Nothing is computed where no prompt has several messages."""
        items, _ = items_of(prompts, responses)
        if not isinstance(self.reader, BackboneReader) or all(len(prompt) < 2 for prompt, _ in items.values()):
            return []
        numbers = list(items)
        cut = shortened_items(self.reader.backbone, list(items.values()), self.parts.position)
        return [numbers[place] for place in cut]

    def score_pairs(self, pairs: Iterable[PreferencePair]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Rewards s_w of the chosen and s_l of the rejected responses. Raises DataError as `score`."""
        pairs = list(pairs)
        sides = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
        rewards = self.score([prompt for prompt, _ in sides], [text for _, text in sides])
        return rewards[0::2], rewards[1::2]

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_columns: Any) -> list[float]:
        """TRL's reward function: one reward a completion, NaN (which TRL leaves out) for one that can't be read."""
        rewards, refused = self.try_score(prompts, completions)
        if refused:
            log.warning("%d of %d completions get no reward; the first: %s", len(refused), len(rewards), refused[min(refused)])
        return [float(reward) for reward in rewards]

    def rewards_of(self, z: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, " n"]:
        """Rewards of hidden states: head(inputs_of(z)), in float64."""
        return self.parts.head.reward(self.inputs_of(z))

    def inputs_of(self, z: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n k"]:
        """What the head sees of hidden states, in float64: projections, the latents' activations, or z itself. Where an
        `activations` model reads whole responses, its reader gives the activations instead of z, and so must a caller."""
        if self.parts.kind == "activations" and self.parts.latent_ids is not None:
            if self.parts.position == WHOLE:
                return z.astype(np.float64)
            return activations(z, self.parts.latent_ids, self.sae).astype(np.float64)
        return z.astype(np.float64) if self.parts.directions is None else z.astype(np.float64) @ self.parts.directions.astype(np.float64).T

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """The SAE named in the folder. MismatchError: another one stands there; SAEError: none does."""
        return sae_of(self.parts)

    @cached_property
    def known(self) -> FitResponses | None:
        """The responses it was fitted and measured on, from its folder, or None. StoreError: they are damaged."""
        # The folder is checked again: it may have been loaded long ago.
        return None if self.folder is None else ModelFolder(self.folder).find_responses()

    @cached_property
    def explainer(self) -> Explainer:
        """What explains this model. ConfigError for controls without latents or directions."""
        # The one import that points up: people look for explaining here; it is loaded when it is asked for.
        from core.explain.explainer import Explainer

        return Explainer(self)

    def explain(self, prompt: Dialogue, response: Dialogue) -> Explanation:
        """Why the response gets its reward (METHOD.md section 4). DataError: it can't be read."""
        return self.explainer.explain(prompt, response)

    def explain_pair(self, pair: PreferencePair) -> PairExplanation:
        """Why the chosen response wins, or loses, and by how much."""
        return self.explainer.explain_pair(pair)

    def _rewards(self, items: Mapping[Any, Item]) -> dict[Any, float | str]:
        """The reward of each item, or why it can't be read."""
        rewards_or_reasons: dict[Any, float | str] = {}
        keys = list(items)
        for chunk in (keys[at : at + CHUNK] for at in range(0, len(keys), CHUNK)):
            z, reasons = self.reader([items[key] for key in chunk])
            rewards = iter(self.rewards_of(z).tolist())
            rewards_or_reasons |= {key: reasons[number] if number in reasons else next(rewards) for number, key in enumerate(chunk)}
        return rewards_or_reasons

    def _save_pretrained(self, save_directory: Path) -> None:
        write_parts(self.parts, save_directory, self._beside(texts=self._share_texts))

    def push_to_hub(self, repo_id: str, *, texts: bool = False, **options: Any) -> str:
        """Pushes the folder to the Hub, by the mixin; the pairs' texts only if `texts` asks for them."""
        self._share_texts = texts
        try:
            return super().push_to_hub(repo_id, **options)
        finally:
            self._share_texts = False

    def generate_model_card(self, *_args: Any, **_kwargs: Any) -> ModelCard:
        """The card of this very model: what it reads, how it was fitted, how well it did, how to use it."""
        return model_card(self.parts)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> SparseRM:
        """From a folder, or from the Hub (`revision`, `token`, `cache_dir`, ... as the mixin's), with `backbone` and
        `device` as `load`. StoreError: there is none, or the Hub can't be reached."""
        if Path(pretrained_model_name_or_path).is_dir():
            local = {name: value for name, value in options.items() if name in ("backbone", "device")}
            return cls.load(pretrained_model_name_or_path, **local)
        try:
            with one_question():
                return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (HfHubHTTPError, EntryNotFoundError, HFValidationError) as error:
            cause = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            remedy = "check the name and the revision; for a private one `hf auth login`; without a network give a folder"
            raise StoreError(f"there is no reward model {pretrained_model_name_or_path}, here or on the Hub", found=cause, remedy=remedy) from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, backbone: Backbone | BackboneConfig | None = None, device: str = "auto", **hub: Any) -> SparseRM:
        folder = snapshot_download(model_id, allow_patterns=[CONFIG, *MODEL_FILES], **hub)
        return cls.load(folder, backbone=backbone, device=device)


class BackboneReader:
    """Hidden states from the backbone that a reward model was made for, which is loaded at the first call."""

    def __init__(self, parts: RewardParts, backbone: Backbone | BackboneConfig | None, device: str) -> None:
        self.parts = parts
        self._config = replace(parts.backbone_config, dtype=parts.backbone.get("dtype", "auto"), device=device)
        if isinstance(backbone, BackboneConfig):
            check_backbone(parts, backbone_identity(backbone, find_model(backbone)), layer=backbone.layer, position=backbone.position)
            self._config = backbone
        elif backbone is not None:
            check_backbone(parts, backbone.identity, layer=backbone.config.layer, position=backbone.config.position)
            self.backbone = backbone

    def __call__(self, items: Sequence[Item]) -> tuple[Float[np.ndarray, "n d_model"], dict[int, str]]:
        try:
            return self._read(items), {}
        except DataError:
            refused = read_items(self.backbone, items, [self.parts.position]).refused
            kept = [item for number, item in enumerate(items) if number not in refused]
            return self._read(kept) if kept else np.zeros((0, self._width), dtype=np.float32), refused

    @property
    def _reads_activity(self) -> bool:
        """Whether the head sees the mean of activations, which can't be had from the mean of z."""
        return self.parts.kind == "activations" and self.parts.position == WHOLE

    @property
    def _width(self) -> int:
        return self.parts.k if self._reads_activity else self.parts.d_model

    def _read(self, items: Sequence[Item]) -> np.ndarray:
        layer, latents = self.parts.layer, self.parts.latent_ids
        if self._reads_activity and latents is not None:
            return response_activity(self.backbone, items, layer=layer, sae=self._sae, latent_ids=latents)
        return response_states(self.backbone, items, layer=layer, position=self.parts.position)

    @cached_property
    def _sae(self) -> SparseAutoencoder:
        return sae_of(self.parts)

    @cached_property
    def backbone(self) -> Backbone:
        """The language model up to layer L. BackboneError: it can't be loaded; MismatchError: it has changed."""
        backbone = load_backbone(self._config, depth=self.parts.layer + 1)
        check_backbone(self.parts, backbone.identity, layer=self._config.layer, position=self._config.position)
        return backbone


def sae_of(parts: RewardParts) -> SparseAutoencoder:
    """The SAE that a folder names, loaded. Raises StoreError where it names none, MismatchError where another stands there."""
    if parts.sae_config is None:
        raise StoreError(f"this reward model ({parts.kind}) names no SAE")
    sae = load_sae(parts.sae_config)
    check_same_sae(parts.sae or {}, sae.identity)
    return sae


def check_backbone(parts: RewardParts, identity: Mapping[str, Any], *, layer: int, position: str) -> None:
    """Raises MismatchError, naming both, if backbone, layer, position or template is not the reward model's. Other
    arithmetic (dtype, quantisation) is logged only: rewards then agree to METHOD.md section 2's tolerance."""
    hashed = bool(parts.backbone.get("sha256") or identity.get("sha256"))
    check_same("backbone", parts.backbone, identity, ("sha256", "d_model", "n_layers") if hashed else ("name", "revision", "d_model", "n_layers"))
    check_same("chat template", parts.backbone, identity, ("template_sha256",))
    check_same("layer", {"layer": parts.layer}, {"layer": layer}, ("layer",))
    check_same("position", {"position": parts.position}, {"position": position}, ("position",))
    for name in ("dtype", "quantization"):
        fitted, scores = parts.backbone.get(name), identity.get(name)
        if fitted != scores:
            log.warning("the reward model was fitted with %s %s and scores with %s: rewards may differ a little", name, fitted, scores)


def check_same_sae(made_for: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """As `check_same` for two SAEs: their weights, and the later config fields as far as `made_for` holds them."""
    later_fields = ("k", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "layer")
    names = ("sha256", "architecture", "d_model", "d_sae", *(name for name in later_fields if name in made_for))
    check_same("SAE", made_for, here, names)


def check_same(what: str, made_for: Mapping[str, Any], here: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises MismatchError, with both, unless the two identities agree in every one of these fields."""
    if any(made_for.get(name) != here.get(name) for name in names):
        shown = dict.fromkeys(("name", *names))
        identities = [", ".join(f"{name} {side[name]}" for name in shown if side.get(name) not in (None, "")) for side in (made_for, here)]
        problem = f"this reward model was made for another {what}"
        raise MismatchError(problem, expected=identities[0], found=identities[1], remedy=f"give the {what} it was made for")

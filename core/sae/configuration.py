"""Reads an SAE's configuration (cfg.json of sae-lens, versions 0 to 6): each field is computed, harmless, or refused.

sae-lens ignores unknown fields, and reads a configuration of before its version 6 as ReLU unless it has `topk` with a
`k`. Here no field that could change f(z) or z^ is ignored: it is computed, or the SAE is refused with the name of the
field.

    field                                    treatment
    --------------------------------------   ---------------------------------------------------------------------------
    architecture                             standard, topk, jumprelu, gated are computed; all others are refused.
                                             Missing: standard before version 6, refused from then on (as by sae-lens),
                                             without d_in and d_sae, and where metadata has an architecture or a k
    activation_fn, activation_fn_str         relu, and topk with a k, are computed; tanh-relu, gelu, all others: refused
    activation_fn_kwargs                     k of topk is computed; anything else that is not empty is refused
    k                                        of topk, 1 to d_sae; missing there, or present elsewhere: refused
    d_in, d_sae                              compared with the tensors
    d_out, hook_name_out, hf_hook_name_out,  as the input's, or absent; another one is a transcoder's or crosscoder's:
    hook_head_index_out, out_hook_point      refused
    apply_b_dec_to_input                     computed; missing: true, as in sae-lens
    normalize_activations                    none (also null, false) is computed. expected_average_only_in (also true)
                                             is refused unless the release gives the factor. layer_norm,
                                             constant_norm_rescale, covariance_whitening, all others: refused
    rescale_acts_by_decoder_norm             of topk: computed; true elsewhere: refused
    reshape_activations, hook_head_index,    none; hook_z or a head's number: refused (attention heads)
    hook_point_head_index
    finetuning_scaling_factor,               false, or true with a tensor scaling_factor of ones; else refused
    uses_scaling_factor
    model_from_pretrained_kwargs             center_writing_weights: refused (the SAE reads states without their mean);
                                             the others change no hidden state
    dtype                                    a floating type. Weights are read as the file holds them, and computed with
                                             in float32
    hook_name, hook_point, hf_hook_name      the layer (core.sae.hooks); contradictions are refused
    hook_layer, hook_point_layer             compared with the hook's name
    model_name, trained_positions,           kept in the SAE's identity
    expected_l0
    metadata                                 the fields above where version 6 puts them there; others only document
    topk_threshold_lr, matryoshka_widths,    of a BatchTopK training checkpoint: refused by its architecture
    use_matryoshka_aux_loss
    fields of HARMLESS                       of training, data, logging or hardware: change neither f nor z^
    any other field                          refused by name, unless it is empty, none, false or null
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.errors import SAEError
from core.sae.hooks import hook_number, layer_of_hook
from core.sae.tensors import TENSORS

TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")
_READ = """
architecture activation_fn activation_fn_str activation_fn_kwargs k d_in d_sae d_out apply_b_dec_to_input
normalize_activations rescale_acts_by_decoder_norm reshape_activations hook_head_index hook_point_head_index
finetuning_scaling_factor uses_scaling_factor model_from_pretrained_kwargs dtype hook_name hook_point hf_hook_name
hook_name_out hf_hook_name_out hook_head_index_out out_hook_point hook_layer hook_point_layer model_name metadata
sae_lens_version trained_positions expected_l0
"""
# Fields of sae-lens' training configurations, versions 0 to 6, and of tools that write its format: training of an SAE,
# text and language model, names and places.
_TRAINING = """
l1_coefficient l1_warm_up_steps l0_coefficient l0_warm_up_steps lp_norm decoder_init_norm aux_loss_coefficient
use_sparse_activations jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input
jumprelu_tanh_scale pre_act_loss_coefficient target_l0 mse_loss_normalization normalize_sae_decoder noise_scale
scale_sparsity_penalty_by_decoder_norm sparsity_loss_type decoder_orthogonal_init decoder_heuristic_init
decoder_heuristic_init_norm init_encoder_as_decoder_transpose b_dec_init_method use_ghost_grads ghost_grad_start
expansion_factor training_tokens total_training_tokens total_training_steps finetuning_tokens finetuning_method
train_batch_size train_batch_size_tokens tokens_per_buffer lr lr_end lr_scheduler_name lr_warm_up_steps lr_decay_steps
n_restart_cycles adam_beta1 adam_beta2 feature_sampling_window dead_feature_window dead_feature_threshold
dead_feature_estimation_method feature_reinit_scale resample_batches autocast autocast_lm compile_llm compile_sae
llm_compilation_mode sae_compilation_mode seed from_pretrained_path resume_from_checkpoint n_batches_for_norm_estimate
training_architecture training_architecture_details response_end_share
"""
_TEXT = """
dataset_path dataset_trust_remote_code dataset streaming is_dataset_tokenized use_chat_formatting context_size
prepend_bos seqpos_slice exclude_special_tokens disable_concat_sequences sequence_separator_token model_class_name
model_kwargs hook_eval hook_point_eval use_cached_activations cached_activations_path activations_mixing_fraction
n_batches_in_buffer store_batch_size store_batch_size_prompts prefetch_llm_batches act_store_device llm_device device
n_eval_batches eval_batch_size_prompts n_eval_seqs
"""
_NAMES = """
neuronpedia_id sae_lens_training_version logger log_to_wandb wandb_project wandb_id wandb_entity wandb_log_frequency
log_activations_store_to_wandb log_optimizer_state_to_wandb log_weights_to_wandb run_name eval_every_n_wandb_logs
verbose checkpoint_path n_checkpoints save_final_checkpoint output_path name id release sae_id description notes
comment comments author authors license url date created created_at timestamp tags version git_commit extra_metadata
release_date resume feature_sampling_method wandb_group use_tqdm mistudio_training_id mistudio_checkpoint_step
"""
# Fields that version 6 writes into `metadata`, and earlier versions beside the other fields.
_METADATA = """
model_name hook_name hook_head_index model_from_pretrained_kwargs hook_name_out hook_head_index_out hf_hook_name
hf_hook_name_out
"""
READ, HARMLESS = frozenset(_READ.split()), frozenset((_TRAINING + _TEXT + _NAMES).split())
_IN_METADATA = frozenset(_METADATA.split())
FLOAT_TYPES = ("float32", "float16", "bfloat16", "float64")
# Fields for the point that a transcoder writes, each with the field for the point that it reads.
_OUT = {"hook_name_out": "hook_name", "hf_hook_name_out": "hf_hook_name", "out_hook_point": "hook_name", "hook_head_index_out": "hook_head_index"}


def plain_config(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields that computing needs, under the names of sae-lens' version 6, from a configuration of any version.

    Returns architecture, d_in, d_sae, k (topk only), apply_b_dec_to_input, rescale_acts_by_decoder_norm,
    normalize_activations and metadata. Raises SAEError that names the field which can't be computed.
    """
    metadata = raw.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise SAEError(f"cfg.json of SAE {name} is damaged", expected="metadata: an object", found=repr(metadata)[:80])
    facts = {
        **raw,
        **{key: value for key, value in (metadata or {}).items() if value is not None and key in READ - {"metadata", "architecture", "k"}},
    }
    architecture, k = _architecture(raw, facts, name)
    _refuse_transcoders(facts, name)
    _refuse_heads(facts, name)
    _refuse_scaling(facts, name)
    _refuse_centred_model(facts, name)
    _check_dtype(facts, name)
    _refuse_unknown(raw, name)
    identity = {key: raw[key] for key in ("trained_positions", "expected_l0") if key in raw}
    named = {**identity, **(metadata or {}), "hook_name": _hook(raw, metadata or {}, name), "model_name": facts.get("model_name")}
    return {
        "architecture": architecture,
        "apply_b_dec_to_input": _yes_or_no(facts, "apply_b_dec_to_input", True, name),
        "rescale_acts_by_decoder_norm": _rescaled(facts, architecture, name),
        "normalize_activations": _normalisation(facts, name),
        "metadata": named,
        **({"k": k} if architecture == "topk" else {}),
        **{key: raw[key] for key in ("d_in", "d_sae") if raw.get(key) is not None},
    }


def version_of(raw: Mapping[str, Any]) -> int:
    """The main version of sae-lens that wrote a configuration; 0 where it gives none, as before version 3."""
    metadata = raw.get("metadata")
    text = (metadata.get("sae_lens_version") if isinstance(metadata, dict) else None) or raw.get("sae_lens_version") or ""
    main = str(text).partition(".")[0]
    return int(main) if main.isdecimal() else 0


def refuse_architecture(architecture: object, name: str) -> None:
    """Raises SAEError for an architecture that is not computed here."""
    if architecture in TRAINING_ONLY:
        raise training_checkpoint(name)
    if not isinstance(architecture, str) or architecture not in TENSORS:
        raise SAEError(
            f"SAE {name} has architecture {architecture!r}, which is not supported",
            expected=" | ".join(TENSORS),
            found=str(architecture),
            remedy="take an SAE of one of these, or train one: sparserm sae train",
        )


def training_checkpoint(name: str) -> SAEError:
    """The error for a BatchTopK SAE that was saved to go on training."""
    return SAEError(
        f"SAE {name} is a BatchTopK training checkpoint, not an SAE for inference",
        expected="a JumpReLU folder, as sae-lens saves a BatchTopK SAE for inference",
        found="architecture batchtopk with a topk_threshold",
        remedy="save it with sae-lens' BatchTopKTrainingSAE.save_inference_model, or train one with `sparserm sae train`",
    )


def _architecture(raw: Mapping[str, Any], facts: Mapping[str, Any], name: str) -> tuple[str, Any]:
    """The architecture and k, either of which may be given by the activation function."""
    architecture = raw.get("architecture")
    if architecture is None:
        metadata = raw.get("metadata") or {}
        # Versions before 6 gave both widths. A configuration with neither, or with its kind where sae-lens does not
        # read it, may be of any kind.
        if version_of(raw) >= 6 or not (raw.get("d_in") or raw.get("d_sae")) or {"architecture", "k"} & set(metadata):
            raise refusal(name, "architecture", None, "does not give its architecture", " | ".join(TENSORS))
        architecture = "standard"
    refuse_architecture(architecture, name)
    activation, options = _activation(facts, name)
    k = raw.get("k") if raw.get("k") is not None else options.get("k")
    if activation == "topk" and architecture == "standard":
        architecture = "topk"
    if activation == "topk" and architecture != "topk":
        raise refusal(name, "activation_fn", activation, f"has activation topk and architecture {architecture}", "an activation of its architecture")
    if architecture == "topk" and k is None:
        raise refusal(name, "k", None, "is a TopK SAE that does not give its k", "k, or activation_fn_kwargs with a k", "write k into its cfg.json")
    if architecture != "topk" and k is not None:
        fault = f"has k and architecture {architecture}, which has none"
        raise refusal(name, "k", k, fault, "k only with architecture topk", "correct its cfg.json: architecture topk, or no k")
    if None not in (raw.get("k"), options.get("k")) and raw["k"] != options["k"]:
        raise refusal(name, "k", f"{raw['k']} and {options['k']}", "has two different k", "one k")
    return str(architecture), k


def _activation(facts: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]]:
    """The activation function (relu or topk) and its options."""
    named = {field: facts[field] for field in ("activation_fn", "activation_fn_str") if facts.get(field) not in (None, "")}
    for field, value in named.items():
        if value not in ("relu", "topk"):
            raise refusal(name, field, value, f"has the activation function {value!r}, which is not supported", "relu, or topk with a k")
    if len(set(named.values())) > 1:
        raise refusal(name, "activation_fn", named, "names two activation functions", "one")
    options = facts.get("activation_fn_kwargs") or {}
    if not isinstance(options, dict):
        raise refusal(name, "activation_fn_kwargs", options, "has options of its activation that can't be read", "an object")
    for option, value in options.items():
        if option != "k" and not is_switched_off(value):
            field = f"activation_fn_kwargs.{option}"
            raise refusal(name, field, value, f"has an option of its activation, {option}, which is not supported", "k alone")
    return next(iter(named.values()), "relu"), options


def _normalisation(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get("normalize_activations")
    if is_switched_off(value):
        return "none"
    return "expected_average_only_in" if value is True else str(value)


def _rescaled(facts: Mapping[str, Any], architecture: str, name: str) -> bool:
    field = "rescale_acts_by_decoder_norm"
    value = _yes_or_no(facts, field, False, name)
    if value and architecture != "topk":
        fault = f"measures activations in units of decoder norms, which is supported for topk and not for {architecture}"
        raise refusal(name, field, value, fault, "false, or architecture topk", "fold the norms into the weights (sae-lens: fold_W_dec_norm)")
    return value


def _refuse_transcoders(facts: Mapping[str, Any], name: str) -> None:
    if facts.get("d_out") is not None and facts["d_out"] != facts.get("d_in"):
        raise refusal(name, "d_out", facts["d_out"], "is a transcoder: it writes another width than it reads", f"d_out {facts.get('d_in')}")
    for field, read in _OUT.items():
        value = facts.get(field)
        if not is_switched_off(value) and value != facts.get(read):
            raise refusal(name, field, value, "is a transcoder: it writes another point than it reads", f"{field} {facts.get(read)}, or none")


def _refuse_heads(facts: Mapping[str, Any], name: str) -> None:
    if not is_switched_off(facts.get("reshape_activations")):
        raise refusal(name, "reshape_activations", facts["reshape_activations"], "reads attention heads", "none: the residual stream after a layer")
    for field in ("hook_head_index", "hook_point_head_index"):
        if facts.get(field) is not None:
            raise refusal(name, field, facts[field], "reads attention heads", "none: the residual stream after a layer")


def _refuse_scaling(facts: Mapping[str, Any], name: str) -> None:
    for field in ("finetuning_scaling_factor", "uses_scaling_factor"):
        if not isinstance(facts.get(field), (bool, type(None))):
            raise refusal(name, field, facts[field], "scales its activations by a factor, which is not supported", "false")


def scaling_promised(raw: Mapping[str, Any]) -> bool:
    """Whether a configuration promises a tensor of scaling factors."""
    return raw.get("finetuning_scaling_factor") is True or raw.get("uses_scaling_factor") is True


def _refuse_centred_model(facts: Mapping[str, Any], name: str) -> None:
    options = facts.get("model_from_pretrained_kwargs")
    if isinstance(options, dict) and options.get("center_writing_weights"):
        field = "model_from_pretrained_kwargs.center_writing_weights"
        fault = "reads a language model whose residual stream was centred by TransformerLens; the model's own hidden states are not"
        raise refusal(name, field, True, fault, "false: the hidden states as the model computes them", "take or train an SAE of the uncentred model")


def _check_dtype(facts: Mapping[str, Any], name: str) -> None:
    value = facts.get("dtype")
    if not is_switched_off(value) and str(value).removeprefix("torch.") not in FLOAT_TYPES:
        raise refusal(name, "dtype", value, "has weights of a type that is not supported", " | ".join(FLOAT_TYPES), "save the weights as float32")


def _hook(raw: Mapping[str, Any], metadata: Mapping[str, Any], name: str) -> str | None:
    """The hook's name. Raises SAEError where two names, or a name and a layer, contradict each other."""
    numbers = {
        f"{where}{field}": part[field]
        for where, part in (("", raw), ("metadata.", metadata))
        for field in ("hook_layer", "hook_point_layer")
        if part.get(field) is not None
    }
    hooks = {
        f"{where}{field}": str(part[field]).replace("{layer}", str(next(iter(numbers.values()), "{layer}")))  # as versions 0 and 1 write it
        for where, part in (("metadata.", metadata), ("", raw))
        for field in ("hook_name", "hook_point", "hf_hook_name")
        if part.get(field)
    }
    layers = {layer_of_hook(hook, name) for hook in hooks.values()}
    allowed = {str(number) for hook in hooks.values() for number in (hook_number(hook), *layers)}
    if len(layers) > 1 or (hooks and any(str(number) not in allowed for number in numbers.values())):
        raise SAEError(
            f"the configuration of SAE {name} names two layers",
            expected="one layer",
            found=", ".join(f"{field} {value}" for field, value in (hooks | numbers).items()),
            remedy="correct its cfg.json; it may belong to another SAE",
        )
    return next(iter(hooks.values()), None)


def _refuse_unknown(raw: Mapping[str, Any], name: str) -> None:
    for field, value in raw.items():
        if field not in READ and field not in HARMLESS and not is_switched_off(value):
            raise refusal(
                name,
                field,
                value,
                f"has an unknown field {field!r} that could change what it computes",
                "fields of sae-lens' format (core/sae/configuration.py lists them)",
                "if it only documents the SAE, move it into metadata in its cfg.json; if it changes what the SAE computes, this SAE is not supported",
            )


def _yes_or_no(facts: Mapping[str, Any], field: str, missing: bool, name: str) -> bool:
    value = facts.get(field)
    if value is None:
        return missing
    if not isinstance(value, bool):
        raise refusal(name, field, value, f"has a {field} that is neither true nor false", "true | false")
    return value


def is_switched_off(value: object) -> bool:
    """Whether a field's value switches off what the field is about."""
    return value is None or value is False or (isinstance(value, (str, dict, list)) and value in ("", "none", "None", {}, []))


def refusal(name: str, field: str, value: object, fault: str, expected: str, remedy: str = "") -> SAEError:
    """The error for a field that can't be computed. `fault` follows the SAE's name; `value` None: a missing field."""
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    shown = re.sub(r"\s+", " ", text)[:120]
    return SAEError(
        f"SAE {name} {fault}",
        expected=f"{field}: {expected}" if not expected.startswith(field) else expected,
        found=f"{field}: {shown}" if value is not None else f"no {field}",
        remedy=remedy or "take another SAE of this layer, or train one: sparserm sae train",
    )

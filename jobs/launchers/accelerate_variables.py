"""The variables by which `accelerate launch` hands its options to the script. Pure.

Source: `accelerate/utils/launch.py` of accelerate 1.15.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from jobs.launchers.options import LauncherError


class Variable(NamedTuple):
    """One option, and the variable that carries it."""

    option: str
    variable: str
    default: str | None = None
    """None: the variable is set only if the option is given."""
    lower: bool = False
    """True if the value is passed in lower case."""
    flag: bool = False
    """True if the option takes no value; the variable is then True or False."""


DYNAMO = (
    Variable("dynamo_backend", "ACCELERATE_DYNAMO_BACKEND", "NO"),
    Variable("dynamo_mode", "ACCELERATE_DYNAMO_MODE", "default"),
    Variable("dynamo_use_fullgraph", "ACCELERATE_DYNAMO_USE_FULLGRAPH", "False", flag=True),
    Variable("dynamo_use_dynamic", "ACCELERATE_DYNAMO_USE_DYNAMIC", "False", flag=True),
    Variable(
        "dynamo_use_regional_compilation",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
        "False",
        flag=True,
    ),
)
FSDP = (
    Variable("fsdp_version", "FSDP_VERSION", "1"),
    Variable("fsdp_sharding_strategy", "FSDP_SHARDING_STRATEGY", "FULL_SHARD"),
    Variable("fsdp_reshard_after_forward", "FSDP_RESHARD_AFTER_FORWARD", "true", lower=True),
    Variable("fsdp_offload_params", "FSDP_OFFLOAD_PARAMS", "false", lower=True),
    Variable("fsdp_min_num_params", "FSDP_MIN_NUM_PARAMS", "100000000"),
    Variable("fsdp_auto_wrap_policy", "FSDP_AUTO_WRAP_POLICY"),
    Variable("fsdp_transformer_layer_cls_to_wrap", "FSDP_TRANSFORMER_CLS_TO_WRAP"),
    Variable("fsdp_backward_prefetch", "FSDP_BACKWARD_PREFETCH"),
    Variable("fsdp_state_dict_type", "FSDP_STATE_DICT_TYPE"),
    Variable("fsdp_forward_prefetch", "FSDP_FORWARD_PREFETCH", "false", lower=True),
    Variable("fsdp_use_orig_params", "FSDP_USE_ORIG_PARAMS", "true", lower=True),
    Variable(
        "fsdp_cpu_ram_efficient_loading", "FSDP_CPU_RAM_EFFICIENT_LOADING", "true", lower=True
    ),
    Variable("fsdp_sync_module_states", "FSDP_SYNC_MODULE_STATES", "true", lower=True),
    Variable("fsdp_activation_checkpointing", "FSDP_ACTIVATION_CHECKPOINTING", "false", lower=True),
    Variable(
        "fsdp_activation_checkpointing_offload",
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD",
        "false",
        lower=True,
    ),
    Variable("fsdp_ignored_modules", "FSDP_IGNORED_MODULES"),
)
DEEPSPEED = (
    Variable("deepspeed_config_file", "ACCELERATE_DEEPSPEED_CONFIG_FILE"),
    Variable("zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE"),
    Variable(
        "offload_optimizer_device", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", lower=True
    ),
    Variable("offload_param_device", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", lower=True),
    Variable("gradient_accumulation_steps", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
    Variable("gradient_clipping", "ACCELERATE_GRADIENT_CLIPPING", lower=True),
    Variable("zero3_init_flag", "ACCELERATE_DEEPSPEED_ZERO3_INIT", lower=True),
    Variable("zero3_save_16bit_model", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", lower=True),
    Variable("deepspeed_moe_layer_cls_names", "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES"),
)
_MEGATRON_DEFAULTS = {
    "tp_degree": "1",
    "use_custom_fsdp": "False",
    "no_load_optim": "False",
    "eod_mask_loss": "False",
    "no_save_optim": "False",
    "optimizer_cpu_offload": "False",
    "use_precision_aware_optimizer": "False",
    "overlap_cpu_optimizer_d2h_h2d": "False",
    "pp_degree": "1",
    "gradient_clipping": "1.0",
}
_MEGATRON_OTHERS = (
    "decoder_last_pipeline_num_layers",
    "num_micro_batches",
    "sequence_parallelism",
    "recompute_activations",
    "use_distributed_optimizer",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "attention_backend",
    "expert_model_parallel_size",
    "context_parallel_size",
    "attention_dropout",
    "hidden_dropout",
    "attention_softmax_in_fp32",
    "expert_tensor_parallel_size",
    "calculate_per_token_loss",
    "use_rotary_position_embeddings",
)
MEGATRON = tuple(
    Variable(f"megatron_lm_{name}", f"MEGATRON_LM_{name.upper()}", _MEGATRON_DEFAULTS.get(name))
    for name in (*_MEGATRON_DEFAULTS, *_MEGATRON_OTHERS)
)
FP8 = (
    Variable("fp8_backend", "ACCELERATE_FP8_BACKEND"),
    Variable(
        "fp8_use_autocast_during_eval",
        "ACCELERATE_FP8_USE_AUTOCAST_DURING_EVAL",
        "False",
        flag=True,
    ),
    Variable("fp8_margin", "ACCELERATE_FP8_MARGIN", "0"),
    Variable("fp8_interval", "ACCELERATE_FP8_INTERVAL", "1"),
    Variable("fp8_format", "ACCELERATE_FP8_FORMAT", "HYBRID"),
    Variable("fp8_amax_history_len", "ACCELERATE_FP8_AMAX_HISTORY_LEN", "1024"),
    Variable("fp8_amax_compute_algo", "ACCELERATE_FP8_AMAX_COMPUTE_ALGO", "most_recent"),
    Variable("fp8_opt_level", "ACCELERATE_FP8_OPT_LEVEL", "O2"),
    Variable(
        "fp8_enable_fsdp_float8_all_gather", "ACCELERATE_FP8_ENABLE_FSDP_FLOAT8_ALL_GATHER", "True"
    ),
    Variable("fp8_pad_inner_dim", "ACCELERATE_FP8_PAD_INNER_DIM", "True"),
)
_PARALLELISM_DEFAULTS = {
    "dp_replicate_size": "1",
    "dp_shard_size": "1",
    "tp_size": "1",
    "cp_size": "1",
    "cp_backend": "torch",
    "sp_size": "1",
    "sp_backend": "deepspeed",
}
_PARALLELISM_OTHERS = {
    "cp_comm_strategy": "allgather",
    "sp_seq_length": "None",
    "sp_seq_length_is_variable": "True",
    "sp_attn_implementation": "sdpa",
}
PARALLELISM = tuple(
    Variable(f"parallelism_config_{name}", f"PARALLELISM_CONFIG_{name.upper()}", default)
    for name, default in (*_PARALLELISM_DEFAULTS.items(), *_PARALLELISM_OTHERS.items())
)
PRECISIONS = ("no", "fp16", "bf16", "fp8")


def variables(options: Mapping[str, str]) -> dict[str, str]:
    """The variables that the options stand for.

    Raises:
        LauncherError: A precision that accelerate does not have.
    """
    precision = options.get("mixed_precision", "no").lower()
    if precision not in PRECISIONS:
        raise LauncherError(
            f"accelerate launch --mixed_precision {precision}: expected {', '.join(PRECISIONS)}"
        )
    found = {"ACCELERATE_MIXED_PRECISION": precision}
    found.update(_values(DYNAMO, options))
    found["ACCELERATE_DYNAMO_BACKEND"] = found["ACCELERATE_DYNAMO_BACKEND"].upper()
    if precision == "fp8":
        found.update(_values(FP8, options))
    if "cpu" in options:
        found["ACCELERATE_USE_CPU"] = "True"
    if "debug" in options:
        found["ACCELERATE_DEBUG_MODE"] = "true"
    if "enable_cpu_affinity" in options:
        found["ACCELERATE_CPU_AFFINITY"] = "1"
    if "num_cpu_threads_per_process" in options:
        found["OMP_NUM_THREADS"] = options["num_cpu_threads_per_process"]
    for flag, variable, table in (
        ("use_fsdp", "ACCELERATE_USE_FSDP", FSDP),
        ("use_megatron_lm", "ACCELERATE_USE_MEGATRON_LM", MEGATRON),
        ("use_parallelism_config", "ACCELERATE_USE_PARALLELISM_CONFIG", PARALLELISM),
        ("use_deepspeed", "ACCELERATE_USE_DEEPSPEED", DEEPSPEED),
    ):
        if flag in options and not ("cpu" in options and flag != "use_parallelism_config"):
            found[variable] = "true"
            found.update(_values(table, options))
    if "ACCELERATE_USE_DEEPSPEED" in found:
        fields = options.get("deepspeed_fields", "")
        found["ACCELERATE_CONFIG_DS_FIELDS"] = fields.lower()
    return found


def _values(table: Iterable[Variable], options: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for entry in table:
        value = options.get(entry.option, entry.default)
        if value is None:
            continue
        if entry.flag and entry.option in options:
            value = "False" if value == "False" else "True"
        yield entry.variable, value.lower() if entry.lower else value

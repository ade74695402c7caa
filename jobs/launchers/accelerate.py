"""The options of `accelerate launch`, and the file that `accelerate config` writes. Pure.

Source: `accelerate/commands/launch.py` and `accelerate/commands/config` of accelerate 1.15.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.launchers.accelerate_variables import (
    DEEPSPEED,
    DYNAMO,
    FP8,
    FSDP,
    MEGATRON,
    PARALLELISM,
    Variable,
)
from jobs.launchers.options import LauncherError, Option, honoured, irrelevant, refused

_ADDRESS = "babysit chooses the address and port at which ranks meet"
_LOGS = "babysit keeps a log of each rank: `babysit logs RUN`"
_TPU = "babysit starts no TPU jobs; use `accelerate launch` itself"
_AWS = "babysit submits nothing to SageMaker; use `accelerate launch` itself"
_DEVICES = "babysit assigns the devices: say how many with --num_processes"
_NODES = "babysit chooses the nodes: say how many with --num_machines"


def _of(table: tuple[Variable, ...]) -> tuple[Option, ...]:
    return tuple(honoured(variable.option) for variable in table if not variable.flag)


TABLE: tuple[Option, ...] = (
    honoured("config_file"),
    irrelevant("it is about the messages of the launcher", "quiet", "q", flag=True),
    honoured("cpu", flag=True),
    honoured("multi_gpu", flag=True),
    refused(_TPU, "tpu", flag=True),
    honoured("mixed_precision"),
    honoured("num_processes"),
    honoured("num_machines"),
    honoured("num_cpu_threads_per_process"),
    honoured("enable_cpu_affinity", flag=True),
    *(honoured(variable.option, flag=variable.flag) for variable in DYNAMO),
    honoured("use_deepspeed", flag=True),
    honoured("use_fsdp", flag=True),
    honoured("use_parallelism_config", flag=True),
    honoured("use_megatron_lm", flag=True),
    refused(_DEVICES, "gpu_ids"),
    irrelevant(_ADDRESS, "same_network", flag=True),
    honoured("machine_rank"),
    irrelevant(_ADDRESS, "main_process_ip"),
    irrelevant(_ADDRESS, "main_process_port"),
    irrelevant(_LOGS, "tee", "t"),
    irrelevant(_LOGS, "log_dir"),
    honoured("role"),
    irrelevant(_ADDRESS, "rdzv_backend"),
    irrelevant(_ADDRESS, "rdzv_conf"),
    irrelevant(
        "babysit restarts the ranks itself, within the budgets under `recovery` of a spec",
        "max_restarts",
    ),
    irrelevant("babysit notices the end of a rank at once", "monitor_interval"),
    honoured("module", "m", flag=True),
    honoured("no_python", flag=True),
    *(refused(_TPU, name, flag=True) for name in ("tpu_cluster", "tpu_use_sudo", "downcast_bf16")),
    irrelevant("there is no TPU", "no_tpu_cluster", flag=True),
    *(refused(_TPU, name) for name in ("vm", "env", "main_training_function")),
    *_of(DEEPSPEED),
    refused(_NODES, "deepspeed_hostfile"),
    refused(_NODES, "deepspeed_exclusion_filter"),
    refused(_NODES, "deepspeed_inclusion_filter"),
    irrelevant("babysit starts the ranks of all nodes", "deepspeed_multinode_launcher"),
    irrelevant("no launcher reads it", "offload_optimizer_nvme_path"),
    irrelevant("no launcher reads it", "offload_param_nvme_path"),
    *_of(FSDP),
    *_of(MEGATRON),
    *(honoured(variable.option, flag=variable.flag) for variable in FP8),
    refused("set it in `Accelerator(kwargs_handlers=…)`", "fp8_override_linear_precision"),
    refused(_AWS, "aws_access_key_id"),
    refused(_AWS, "aws_secret_access_key"),
    honoured("debug", flag=True),
    refused("babysit starts the ranks itself; leave it out", "mpirun_hostfile"),
    *_of(PARALLELISM),
)
_KINDS = {
    "NO": "",
    "MULTI_CPU": "cpu",
    "MULTI_GPU": "multi_gpu",
    "DEEPSPEED": "use_deepspeed",
    "FSDP": "use_fsdp",
    "MEGATRON_LM": "use_megatron_lm",
}
"""`distributed_type` of a file, and the flag of the command line that says the same."""
_SWITCHES = {"use_cpu": "cpu", "debug": "debug", "parallelism_config": "use_parallelism_config"}
"""Fields of a file that are flags of the command line."""
_PREFIXES = {"fsdp_config": "fsdp_", "fp8_config": "fp8_", "dynamo_config": "dynamo_"}
_SECTIONS = (*_PREFIXES, "deepspeed_config", "megatron_lm_config", "parallelism_config")
_PLAIN = ("num_processes", "num_machines", "mixed_precision", "enable_cpu_affinity")


def with_file(given: Mapping[str, str], file: Mapping[str, Any]) -> dict[str, str]:
    """The options, with those of a configuration file where the command line has none.

    Args:
        given: Of the command line.
        file: Content of the file; empty: there is none.

    Raises:
        LauncherError: The file describes TPUs, SageMaker or devices by number, or one of its fields
            has another kind than `accelerate config` writes.
    """
    if not file:
        return dict(given)
    _check_kinds(file)
    found = _kind(given, file)
    found.update({flag: "" for name, flag in _SWITCHES.items() if file.get(name)})
    for name in _PLAIN:
        if (value := file.get(name)) not in {None, False, -1}:
            found[name] = "" if value is True else str(value)
    for section in _SECTIONS:
        found.update(_section(file.get(section) or {}, _PREFIXES.get(section, "")))
    if "use_deepspeed" in found:
        found["deepspeed_fields"] = ",".join(
            [
                *(str(name) for name in file.get("deepspeed_config") or {}),
                *(["mixed_precision"] if _precision_of_file(given, file) else []),
            ]
        )
    return {**found, **given}


def _check_kinds(file: Mapping[str, Any]) -> None:
    """Refuse a section other than a mapping, and a plain field that is a mapping or a list."""
    for name in _SECTIONS:
        if not isinstance(file.get(name) or {}, Mapping):
            raise LauncherError(
                f"accelerate launch: {name} of its configuration: expected a mapping, got"
                f" {file[name]!r}"
            )
    for name in _PLAIN:
        if isinstance(file.get(name), Mapping | list):
            raise LauncherError(
                f"accelerate launch: {name} of its configuration: expected a single value, got"
                f" {file[name]!r}"
            )


def _kind(given: Mapping[str, str], file: Mapping[str, Any]) -> dict[str, str]:
    """The flag for the kind of training that the file names."""
    where = str(file.get("compute_environment", "LOCAL_MACHINE"))
    kind = str(file.get("distributed_type", "NO")).upper()
    if where != "LOCAL_MACHINE" or kind not in _KINDS:
        raise LauncherError(
            f"accelerate launch: its configuration is for {kind} on {where}, which babysit does not"
            " start; give another one with --config_file"
        )
    if str(file.get("gpu_ids") or "all") != "all" and "num_processes" not in file:
        raise LauncherError(f"accelerate launch: gpu_ids of its configuration: {_DEVICES}")
    chosen = set(_KINDS.values()) & set(given)
    return {} if chosen or not _KINDS[kind] else {_KINDS[kind]: ""}


def _precision_of_file(given: Mapping[str, str], file: Mapping[str, Any]) -> bool:
    return "mixed_precision" not in given and file.get("mixed_precision") is not None


def _section(values: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """The options that one section of the file gives, by their names on the command line."""
    found = {}
    for name, value in values.items():
        option = name if name.startswith(prefix) else f"{prefix}{name}"
        if value is not None:
            found[option] = str(value)
    return found

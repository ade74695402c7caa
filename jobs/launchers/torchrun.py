"""The options of `torchrun`, `python -m torch.distributed.run` and `.launch`. Pure.

Source: `torch/distributed/run.py` and `launch.py` of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping

from jobs.launchers.options import (
    LauncherError,
    Option,
    Treatment,
    honoured,
    irrelevant,
    refused,
    whole,
)

_ADDRESS = "babysit chooses the address and port at which ranks meet"
_LOGS = "babysit keeps a log of each rank: `babysit logs RUN`"
_SPAWN = "babysit starts each rank as a process of its own"
_STOPS = "babysit passes its own requests to stop on to the ranks"
TABLE: tuple[Option, ...] = (
    honoured("nnodes"),
    honoured("nproc_per_node"),
    irrelevant(_ADDRESS, "rdzv_backend"),
    irrelevant(_ADDRESS, "rdzv_endpoint"),
    irrelevant(_ADDRESS, "rdzv_id"),
    irrelevant(_ADDRESS, "rdzv_conf"),
    irrelevant(_ADDRESS, "standalone", flag=True),
    irrelevant(
        "babysit restarts the ranks itself, within the budgets under `recovery` of a spec",
        "max_restarts",
    ),
    irrelevant("babysit notices the end of a rank at once", "monitor_interval"),
    irrelevant(_SPAWN, "start_method"),
    irrelevant("babysit has a journal: `babysit events`", "event_log_handler"),
    honoured("role"),
    honoured("module", "m", flag=True),
    honoured("no_python", flag=True),
    honoured("run_path", flag=True),
    irrelevant(_LOGS, "log_dir"),
    irrelevant(_LOGS, "redirects", "r"),
    irrelevant(_LOGS, "tee", "t"),
    irrelevant(_LOGS, "local_ranks_filter"),
    irrelevant(_LOGS, "duplicate_stdout_filters"),
    irrelevant(_LOGS, "duplicate_stderr_filters"),
    honoured("node_rank"),
    irrelevant(_ADDRESS, "master_addr"),
    irrelevant(_ADDRESS, "master_port"),
    irrelevant(_ADDRESS, "local_addr"),
    irrelevant(_LOGS, "logs_specs"),
    refused(
        "babysit binds no rank to a NUMA node; leave it out, or start the script by `numactl` with"
        " --no_python",
        "numa_binding",
    ),
    irrelevant(_STOPS, "signals_to_handle"),
    honoured("shutdown_timeout"),
    refused(
        "each rank sees the devices of its node here; leave it out, and use LOCAL_RANK",
        "virtual_local_rank",
        flag=True,
    ),
)
LEGACY_TABLE = (*TABLE, honoured("use_env", flag=True))
"""With the option that only `torch.distributed.launch` has."""


def with_variables(values: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The options, with those that the variables `PET_*` give, as torchrun reads them.

    Raises:
        LauncherError: A variable stands for an option that is refused.
    """
    found = dict(values)
    for option in TABLE:
        text = environment.get(f"PET_{option.name.upper()}")
        if text is None or option.name in found:
            continue
        if option.flag and text != "1":
            continue
        if option.treatment is Treatment.REFUSED:
            raise LauncherError(f"torchrun with PET_{option.name.upper()}={text}: {option.why}")
        if option.treatment is Treatment.HONOURED:
            found[option.name] = "" if option.flag else text
    return found


def nodes(text: str) -> int | tuple[int, int]:
    """The value of `--nnodes`: a number, or `MIN:MAX`.

    Raises:
        LauncherError: It has another form.
    """
    least, colon, most = text.partition(":")
    low = whole("torchrun", "nnodes", least)
    high = whole("torchrun", "nnodes", most) if colon else low
    if high < low:
        raise LauncherError(f"torchrun --nnodes {text}: expected MIN:MAX with MIN <= MAX")
    return low if low == high else (low, high)


def refuse_other_node(text: str, option: str = "torchrun --node_rank") -> None:
    """Refuse the command of a node that is not the first: babysit starts all of them.

    Raises:
        LauncherError: The rank is not 0.
    """
    if text != "0":
        raise LauncherError(
            f"{option} {text}: give the command once, for all nodes together; babysit"
            " starts it on each and numbers them"
        )

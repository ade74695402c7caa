"""The options of the launcher `deepspeed`. Pure.

Source: `deepspeed/launcher/runner.py` of DeepSpeed 0.19.
"""

from __future__ import annotations

from jobs.launchers.options import Option, honoured, irrelevant, refused

_ADDRESS = "babysit chooses the address and port at which ranks meet"
_REMOTE = "babysit starts the ranks of all nodes; it needs no ssh, pdsh or MPI"
_NODES = "babysit chooses the nodes and devices: say how many with --num_nodes and --num_gpus"
_ELASTIC = "say `--num_nodes MIN` without it, and a range with `--nodes MIN:MAX` of `babysit run`"
TABLE: tuple[Option, ...] = (
    refused(_NODES, "hostfile", "H"),
    refused(_NODES, "include", "i"),
    refused(_NODES, "exclude", "e"),
    honoured("num_nodes"),
    honoured("num_gpus", "num_accelerators"),
    refused(_ELASTIC, "min_elastic_nodes"),
    refused(_ELASTIC, "max_elastic_nodes"),
    refused(_ELASTIC, "elastic_training", flag=True),
    irrelevant(_ADDRESS, "master_port"),
    irrelevant(_ADDRESS, "master_addr"),
    honoured("node_rank"),
    irrelevant(_REMOTE, "launcher"),
    irrelevant(_REMOTE, "launcher_args"),
    honoured("module", flag=True),
    honoured("no_python", flag=True),
    honoured("no_local_rank", flag=True),
    irrelevant(_REMOTE, "no_ssh", flag=True),
    irrelevant(_REMOTE, "no_ssh_check", flag=True),
    irrelevant(_REMOTE, "force_multi", flag=True),
    irrelevant("babysit knows its processes: `babysit show RUN`", "save_pid", flag=True),
    irrelevant(
        "babysit keeps a log of each rank: `babysit logs RUN --rank N`", "enable_each_rank_log"
    ),
    refused("tune with `deepspeed` itself, and give the result to babysit", "autotuning"),
    refused("babysit binds no rank to CPUs; leave it out", "bind_cores_to_rank", flag=True),
    refused("babysit binds no rank to CPUs; leave it out", "bind_core_list"),
    irrelevant(_REMOTE, "ssh_port"),
    refused("activate the environment in the shell that submits", "venv_script"),
    irrelevant("it is about the messages of the launcher", "log_level"),
    irrelevant("it is about the messages of the launcher", "quiet", "q", flag=True),
)

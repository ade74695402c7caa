"""Launchers are read as their own parsers read them, and replaced."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.launch import get_args_parser

from jobs.launchers import (
    Counts,
    Launch,
    LauncherError,
    Surroundings,
    foreign_in,
    launcher_in,
    understand,
)
from jobs.launchers import torchrun as torchrun_table


def around(
    environment: Mapping[str, str] | None = None,
    file: Mapping[str, Any] | None = None,
    gpus: int = 0,
) -> Surroundings:
    """A machine with 4 CPUs."""
    return Surroundings(
        environment=environment or {},
        counts=lambda: Counts(gpus, 4),
        read_file=lambda _name: file or {},
        directory="/work",
    )


def read(line: str, **given: Any) -> Launch:
    """The launch of a command line."""
    return understand(line.split(), around(**given))


def gang(line: str, **given: Any) -> tuple[str, int | tuple[int, int], int]:
    """The command, nodes and processes of a command line."""
    launch = read(line, **given)
    return " ".join(launch.command), launch.nodes, launch.processes


@pytest.mark.parametrize(
    ("line", "command", "nodes", "processes"),
    [
        ("torchrun train.py", "python train.py", 1, 1),
        ("torchrun --nproc_per_node 2 train.py --lr 3", "python train.py --lr 3", 1, 2),
        ("torchrun --nproc-per-node=8 --nnodes=2:4 t.py", "python t.py", (2, 4), 8),
        ("torchrun --nnodes 1:1 --standalone t.py", "python t.py", 1, 1),
        ("torchrun --nproc 3 --rdzv_b c10d t.py", "python t.py", 1, 3),
        ("torchrun --nproc-per-node=2 -m pkg.train -m x", "python -m pkg.train -m x", 1, 2),
        ("torchrun -mr3 --nproc-per-node=2 pkg.train", "python -m pkg.train", 1, 2),
        ("torchrun --no-python --nproc_per_node 2 ./go a", "./go a", 1, 2),
        ("torchrun --max-restarts=3 -t 3 -- t.py --x", "python t.py --x", 1, 1),
        ("/venv/bin/torchrun --nproc_per_node=2 t.py", "python t.py", 1, 2),
        ("env A=b torchrun --nproc_per_node=2 t.py", "python t.py", 1, 2),
        (
            "python3.11 -u -m torch.distributed.run --nproc_per_node 2 t.py",
            "python3.11 t.py",
            1,
            2,
        ),
        (
            "python -m torch.distributed.launch --use_env --nproc_per_node 2 t.py",
            "python t.py",
            1,
            2,
        ),
        ("accelerate launch --cpu --num_processes 2 t.py --a", "python t.py --a", 1, 2),
        ("accelerate launch --num-processes 8 --num_machines 2 t.py", "python t.py", 2, 4),
        ("accelerate-launch -m pkg.t", "python -m pkg.t", 1, 1),
        ("deepspeed --num_gpus 2 --no_local_rank t.py -p 2", "python t.py -p 2", 1, 2),
        ("deepspeed --num_nodes=2 --num_gpus=4 --no_local_rank t.py", "python t.py", 2, 4),
        ("python train.py --nproc_per_node 2", "python train.py --nproc_per_node 2", 1, 1),
        ("accelerate config", "accelerate config", 1, 1),
        ("python -m torch.utils.collect_env", "python -m torch.utils.collect_env", 1, 1),
    ],
)
def test_gang(line: str, command: str, nodes: int | tuple[int, int], processes: int) -> None:
    """The command, nodes and processes that a launcher would have had."""
    assert gang(line) == (command, nodes, processes)


@pytest.mark.parametrize(
    ("line", "gpus", "processes"),
    [
        ("torchrun --nproc_per_node auto t.py", 8, 8),
        ("torchrun --nproc_per_node auto t.py", 0, 4),
        ("torchrun --nproc_per_node gpu t.py", 2, 2),
        ("torchrun --nproc_per_node cpu t.py", 8, 4),
        ("accelerate launch t.py", 8, 8),
        ("accelerate launch --cpu t.py", 8, 1),
        ("deepspeed t.py", 8, 8),
    ],
)
def test_devices_of_a_node(line: str, gpus: int, processes: int) -> None:
    """Where an option leaves the number open, the devices of a node decide."""
    assert read(line, gpus=gpus).processes == processes


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("torchrun --nproc_per_node gpu t.py", "no node of the cluster offers GPUs"),
        ("torchrun --nproc_per_node two t.py", "whole number"),
        ("torchrun --nproc_per_node 0 t.py", "whole number of at least 1"),
        ("torchrun --nnodes 4:2 t.py", "MIN <= MAX"),
        ("torchrun --node_rank 1 t.py", "give the command once"),
        ("accelerate launch --machine_rank 1 t.py", "accelerate launch --machine_rank 1: give"),
        ("deepspeed --num_gpus 1 --node_rank 2 t.py", "deepspeed --node_rank 2: give"),
        ("torchrun --numa-binding node t.py", "numactl"),
        ("torchrun --virtual-local-rank t.py", "LOCAL_RANK"),
        ("torchrun --nonsense t.py", "no option of torchrun"),
        ("torchrun --rdzv t.py", "may be rdzv_backend"),
        ("torchrun --nproc_per_node", "expected a value"),
        ("torchrun --nproc_per_node --role x t.py", "expected a value"),
        ("torchrun --standalone=1 t.py", "takes no value"),
        ("torchrun --nproc_per_node 2", "expected a script"),
        ("torchrun -m --no-python t.py", "exclude each other"),
        ("accelerate launch --gpu_ids 0,1 t.py", "--num_processes"),
        ("accelerate launch --tpu t.py", "TPU"),
        ("accelerate launch --num_processes 3 --num_machines 2 t.py", "multiple"),
        ("accelerate launch --mixed_precision fp4 t.py", "bf16"),
        ("deepspeed --include localhost:0,1 t.py", "--num_gpus"),
        ("deepspeed -H hosts t.py", "--num_nodes"),
        ("deepspeed --autotuning run t.py", "tune with"),
    ],
)
def test_refused(line: str, words: str) -> None:
    """What cannot be taken over is refused by name, with what to do instead."""
    with pytest.raises(LauncherError, match=words):
        read(line)


def test_irrelevant_options_are_told() -> None:
    """A word for each option that babysit makes superfluous."""
    launch = read("torchrun --max-restarts=3 --rdzv-backend c10d --nproc_per_node 2 t.py")
    assert len(launch.remarks) == 2
    assert launch.remarks[0].startswith("--max-restarts=3 has no effect: babysit restarts")
    assert read("torchrun --nproc_per_node 2 t.py").remarks == ()


def test_every_option_of_torchrun_is_known() -> None:
    """The table has each option of the installed torch, with and without a value alike."""
    known = {name: option for option in torchrun_table.TABLE for name in option.names}
    for action in get_args_parser()._actions:
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            continue
        for written in action.option_strings:
            option = known[written.lstrip("-").replace("-", "_")]
            assert option.flag == (action.nargs == 0), written


def test_variables_of_torchrun() -> None:
    """`PET_*` give options that the command line does not."""
    given = {"PET_NPROC_PER_NODE": "4", "PET_NNODES": "2", "PET_MODULE": "1"}
    assert gang("torchrun pkg.t", environment=given) == ("python -m pkg.t", 2, 4)
    assert read("torchrun --nproc_per_node 1 t.py", environment=given).processes == 1
    assert read("torchrun t.py", environment={"PET_SHUTDOWN_TIMEOUT": "12"}).grace == 12.0
    assert read("torchrun t.py", environment={"PET_VIRTUAL_LOCAL_RANK": "0"}).processes == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PET_NODE_RANK", "1", "give the command once"),
        ("PET_NUMA_BINDING", "node", "torchrun with PET_NUMA_BINDING=node: babysit binds no rank"),
        ("PET_VIRTUAL_LOCAL_RANK", "1", "use LOCAL_RANK"),
    ],
)
def test_variables_of_torchrun_are_refused_as_their_options(
    name: str, value: str, words: str
) -> None:
    """A wrapper of a job system sets them for each node."""
    with pytest.raises(LauncherError, match=words):
        read("torchrun t.py", environment={name: value})


def test_what_else_is_honoured() -> None:
    """The role, the time to stop, and assignments before the launcher."""
    launch = read("env A=b torchrun --role trainer --shutdown-timeout 45 t.py")
    assert launch.environment == {"A": "b", "ROLE_NAME": "trainer"}
    assert launch.grace == 45.0


def test_local_rank_is_passed_as_deepspeed_does(tmp_path: Path) -> None:
    """Older launchers put `--local_rank=N` behind the script; a shell does it here."""
    script = tmp_path / "it's.py"
    script.write_text("import os, sys\nprint(os.getpid(), *sys.argv[1:])\n")
    for line, option in (
        (f"deepspeed --num_gpus 2 {script} --a b", "--local_rank=1"),
        (f"python -m torch.distributed.launch {script} --a b", "--local-rank=1"),
    ):
        started = subprocess.Popen(
            read(line).command,
            env={**os.environ, "LOCAL_RANK": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        said, _ = started.communicate(timeout=60)
        assert said.split() == [str(started.pid), option, "--a", "b"]


def test_accelerate_hands_its_options_on() -> None:
    """The variables by which accelerate tells the script; the flag of the kind wins."""
    plain = read("accelerate launch --mixed_precision bf16 --num_processes 2 t.py").environment
    assert plain["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert plain["ACCELERATE_DYNAMO_BACKEND"] == "NO"
    assert "ACCELERATE_USE_FSDP" not in plain
    fsdp = read(
        "accelerate launch --use_fsdp --fsdp_version 2 --fsdp_offload_params TRUE"
        " --num_processes 2 --num_cpu_threads_per_process 3 t.py"
    ).environment
    assert fsdp["ACCELERATE_USE_FSDP"] == "true"
    assert fsdp["FSDP_VERSION"] == "2"
    assert fsdp["FSDP_OFFLOAD_PARAMS"] == "true"
    assert fsdp["FSDP_SHARDING_STRATEGY"] == "FULL_SHARD"
    assert fsdp["OMP_NUM_THREADS"] == "3"
    deep = read("accelerate launch --use_deepspeed --zero_stage 2 t.py").environment
    assert deep["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert deep["ACCELERATE_CONFIG_DS_FIELDS"] == ""
    assert deep["PYTHONPATH"] == "/work"


def test_configuration_of_accelerate() -> None:
    """The file of `accelerate config` counts where the command line says nothing."""
    file = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "num_processes": 4,
        "mixed_precision": "bf16",
        "fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": False},
        "gpu_ids": None,
    }
    launch = read("accelerate launch t.py", file=file)
    assert launch.processes == 4
    assert launch.environment["FSDP_VERSION"] == "2"
    assert launch.environment["FSDP_OFFLOAD_PARAMS"] == "false"
    given = read("accelerate launch --num_processes 2 --mixed_precision no t.py", file=file)
    assert given.processes == 2
    assert given.environment["ACCELERATE_MIXED_PRECISION"] == "no"
    deep = {**file, "distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3}}
    found = read("accelerate launch t.py", file=deep).environment
    assert found["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert found["ACCELERATE_CONFIG_DS_FIELDS"] == "zero_stage,mixed_precision"
    with pytest.raises(LauncherError, match="XLA"):
        read("accelerate launch t.py", file={"distributed_type": "XLA"})


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"fsdp_config": True}, "fsdp_config of its configuration: expected a mapping, got True"),
        ({"deepspeed_config": "ds.json"}, "expected a mapping, got 'ds.json'"),
        ({"megatron_lm_config": ["tp_degree"]}, "expected a mapping"),
        ({"num_processes": [2]}, r"num_processes of its configuration: expected a single value"),
        ({"mixed_precision": {"fp16": True}}, "expected a single value"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(file: Mapping[str, Any], words: str) -> None:
    """A file that was edited by hand names its field, and is no traceback."""
    with pytest.raises(LauncherError, match=words):
        read("accelerate launch t.py", file=file)


@pytest.mark.parametrize("options", ["-X dev", "-Xdev -uB", "-W ignore -I", "-Wignore"])
def test_options_of_the_interpreter(options: str) -> None:
    """A launcher does not pass them on to its ranks."""
    launch = read(f"python {options} -m torch.distributed.run --nproc_per_node 2 t.py")
    assert (launch.launcher, launch.command, launch.processes) == (
        "torchrun",
        ("python", "t.py"),
        2,
    )


RUN = "torchrun --nproc_per_node 2 t.py"


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("uv run", "uv run"),
        (
            "uv --quiet run --with torch --extra=gpu -p 3.11",
            "uv --quiet run --with torch --extra=gpu -p 3.11",
        ),
        ("poetry -C there run", "poetry -C there run"),
        ("conda run -n x --no-capture-output", "conda run -n x --no-capture-output"),
        ("conda run -n x", "conda run --no-capture-output -n x"),
        ("micromamba run -p /env", "micromamba run -p /env"),
        ("nice", "nice"),
        ("nice -n 10 ionice -c2 -n7", "nice -n 10 ionice -c2 -n7"),
        ("numactl --cpunodebind=0 -m 0 --", "numactl --cpunodebind=0 -m 0 --"),
        ("taskset -c 0-3", "taskset -c 0-3"),
        ("taskset ff", "taskset ff"),
        ("stdbuf -oL", "stdbuf -oL"),
        ("nohup", ""),
        ("time -p", ""),
        ("/usr/bin/time -f %e -o times", ""),
        ("setsid exec", ""),
        ("env A=b", ""),
        ("env -u RANK A=b", "env -u RANK"),
        ("nohup env A=b nice -5 uv run", "nice -5 uv run"),
    ],
)
def test_wrappers_before_a_launcher(before: str, kept: str) -> None:
    """What changes a process stays before each rank; the rest is left out, with a word."""
    launch = read(f"{before} {RUN}")
    assert (launch.launcher, launch.processes) == ("torchrun", 2)
    assert " ".join(launch.command) == f"{kept} python t.py".strip()
    assert launch.command[launch.prefix :] == ("python", "t.py")
    assert launch.environment == ({"A": "b"} if "A=b" in before else {})
    said = " ".join(launch.remarks)
    assert [n for n in ("nohup", "time", "setsid") if f"{n} has no effect" in said] == [
        n for n in ("nohup", "time", "setsid") if n in before.split(maxsplit=1)[0]
    ]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (["bash", "-c", RUN], "python t.py"),
        (["sh", "-ec", f"  exec A=b {RUN} --prompt 'a b' "], None),
        (["bash", "-c", f"A=b {RUN} --prompt 'a b'"], "python t.py --prompt 'a b'"),
        (["bash", "-lc", RUN], """bash -lc 'exec "$@"' rank python t.py"""),
        (
            ["bash", "-c", f"source env/bin/activate && cd x; {RUN}"],
            """bash -c 'source env/bin/activate && cd x; exec "$@"' rank python t.py""",
        ),
        (["uv", "run", "bash", "-c", f"nice {RUN}"], "uv run nice python t.py"),
        (["bash", "-c", "torchrun --nproc_per_node $N t.py"], None),
        (["bash", "-c", f"{RUN} | tee log"], None),
        (["bash", "-c", f"{RUN}; echo done"], None),
        (["bash", "-c", f"for i in 1 2; do {RUN}; done"], None),
        (["bash", "-c", f"{RUN} --prompt 'a; b'"], None),
        (["bash", "-c", f"{RUN} &"], None),
        (["uv", "run", "--unknown", "x", "torchrun", "t.py"], None),
    ],
)
def test_lines_of_a_shell(line: list[str], command: str | None) -> None:
    """A simple command at the end is understood; any other is left as it is, with a word."""
    launch = understand(line, around())
    if command is not None:
        assert shlex.join(launch.command) == command
        assert launch.launcher == "torchrun"
        return
    assert (launch.launcher, launch.command) == ("", tuple(line))
    assert "is left as it is, and starts ranks of its own" in launch.remarks[0]
    assert foreign_in(line) == launch.remarks[0]


def test_a_shell_before_ranks_runs_its_line(tmp_path: Path) -> None:
    """The line runs first, and the rank takes the place of the shell."""
    script = tmp_path / "t.py"
    script.write_text("import os, sys\nprint(os.getpid(), os.getcwd(), *sys.argv[1:])\n")
    line = f"cd {tmp_path} && torchrun t.py --a 'b  c'"
    launch = understand(["bash", "-c", line], around())
    assert "runs once for each rank" in launch.remarks[0]
    started = subprocess.Popen(launch.command, stdout=subprocess.PIPE, text=True)
    said, _ = started.communicate(timeout=60)
    assert said == f"{started.pid} {tmp_path} --a b  c\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"timeout 60 {RUN}", "max_runtime"),
        (f"timeout -k 5 1h nice {RUN}", "max_runtime"),
        (f"env -i A=b {RUN}", "env -u NAME"),
        ("torchrun --no-python accelerate launch t.py", "torchrun starts accelerate launch"),
        ("torchrun --no-python nice deepspeed t.py", "torchrun starts deepspeed"),
        ("accelerate launch -m torch.distributed.run t.py", "starts torchrun"),
    ],
)
def test_wrappers_and_launchers_that_are_refused(line: str, words: str) -> None:
    """Two launchers inside each other never start silently."""
    with pytest.raises(LauncherError, match=words):
        read(line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("srun -N 2 python t.py", "leave srun out"),
        ("nice mpirun -np 2 t", "leave it out"),
        ("ft_launcher --nproc_per_node 2 t.py", "write `torchrun`"),
        ("parallel torchrun t.py", "left as it is"),
    ],
)
def test_other_starters_are_left_with_a_word(line: str, words: str) -> None:
    """They start ranks that babysit cannot tell apart."""
    launch = read(line)
    assert (launch.launcher, launch.command) == ("", tuple(line.split()))
    assert words in launch.remarks[0]


@pytest.mark.parametrize(
    "line",
    [
        "python torchrun.py",
        "python t.py --launcher torchrun",
        "uv run python t.py",
        "nice python t.py",
        "env A=b",
        "nice",
        "bash train.sh torchrun.txt",
        "./train deepspeed.json",
        "./train --backend deepspeed",
        "uv run --with deepspeed python t.py",
        "timeout 60 python t.py",
    ],
)
def test_commands_without_a_launcher_are_left_as_they_are(line: str) -> None:
    """And nothing is said."""
    launch = read(line)
    assert (launch.launcher, launch.command, launch.remarks) == ("", tuple(line.split()), ())


def test_launchers_are_found() -> None:
    """The first word decides, and the module that Python runs."""
    assert launcher_in(["uv", "run", "torchrun", "t.py"]) == "torchrun"
    assert launcher_in(["/opt/bin/torchrun", "t.py"]) == "torchrun"
    assert launcher_in(["python", "-m", "torch.distributed.run", "t.py"]) == "torchrun"
    assert launcher_in(["accelerate", "test"]) == ""
    assert launcher_in(["python", "torchrun.py"]) == ""

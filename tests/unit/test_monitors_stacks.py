"""Stacks of all ranks, clustered by where they wait."""

from __future__ import annotations

import dataclasses

from monitors.stacks import cluster, collective_of, place_of


@dataclasses.dataclass(frozen=True)
class Stack:
    rank: int
    process_state: str = "S"
    frames: tuple[str, ...] = ()
    error: str = ""


# Frames as py-spy prints them for FSDP2 over Gloo (torch 2.13), innermost first.
REDUCE_SCATTER = (
    "reduce_scatter_single (torch/distributed/distributed_c10d.py:4943)",
    "_exception_logger.<locals>.wrapper (torch/distributed/c10d_logger.py:83)",
    "DefaultReduceScatter.__call__ (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py:184)",
    "foreach_reduce (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py:619)",
    "FSDPParamGroup.post_backward (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py:688)",
    "_engine_run_backward (torch/autograd/graph.py:979)",
    "backward (torch/_tensor.py:623)",
    "train_step (train.py:13)",
    "<module> (train.py:15)",
)
ALL_REDUCE = (
    "all_reduce (torch/distributed/distributed_c10d.py:3012)",
    "wrapper (torch/distributed/c10d_logger.py:81)",
    "average (train.py:30)",
    "<module> (train.py:60)",
)
FORWARD = (
    "linear (torch/nn/functional.py:125)",
    "forward (torch/nn/modules/linear.py:134)",
    "_call_impl (torch/nn/modules/module.py:1784)",
    "forward (/home/user/project/model.py:40)",
    "forward (torch/distributed/fsdp/fully_sharded_data_parallel.py:864)",
    "<module> (train.py:58)",
)
LOADER = (
    "recv (multiprocessing/connection.py:250)",
    "get (multiprocessing/queues.py:103)",
    "__next__ (torch/utils/data/dataloader.py:701)",
    "<module> (train.py:55)",
)
STORAGE = (
    "write (torch/distributed/checkpoint/filesystem.py:210)",
    "save (train.py:70)",
)


def test_clusters_ignore_lines_and_directories_and_running_against_sleeping():
    moved = tuple(f.replace(":30", ":31").replace("torch/", "/x/torch/") for f in ALL_REDUCE)
    clusters = cluster(
        [Stack(2, "S", FORWARD), Stack(1, "R", moved), Stack(0, "S", ALL_REDUCE)],
    )
    assert [c.ranks for c in clusters] == [(0, 1), (2,)]
    assert clusters[0].waiting == "all_reduce"
    assert clusters[1].waiting == ""
    assert clusters[0].frames[0] == "all_reduce (distributed_c10d.py)"


def test_native_frames_of_the_libraries_are_understood():
    native = ("c10d::ProcessGroupGloo::AsyncWork::wait (libtorch_cpu.so)", *FORWARD)
    assert cluster([Stack(0, "S", native)])[0].waiting.startswith("c10d::")


def test_only_frames_below_the_script_say_where_a_rank_waits():
    """Wrappers of a whole model are on every stack, and data or storage is no collective."""
    assert collective_of(REDUCE_SCATTER) == "reduce_scatter_single"
    assert [collective_of(frames) for frames in (FORWARD, LOADER, STORAGE)] == ["", "", ""]
    assert place_of(REDUCE_SCATTER) == "train_step (train.py:13)"
    assert place_of(FORWARD) == "forward (model.py:40)"

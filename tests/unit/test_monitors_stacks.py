"""Naming the odd rank from the stacks of all."""

from __future__ import annotations

import dataclasses

import pytest

from monitors.stacks import cluster, odd_rank


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


def test_of_two_ranks_the_stopped_one_is_named_also_when_both_are_in_the_collective():
    rank, sentence = odd_rank([Stack(0, "S", REDUCE_SCATTER), Stack(1, "T", REDUCE_SCATTER)])
    assert rank == 1
    assert sentence == (
        "rank 1 is stopped (state T) in train_step (train.py:13); "
        "1 rank waits in reduce_scatter_single"
    )


def test_a_stopped_rank_without_frames_is_named():
    stacks = [Stack(0, "T", (), "py-spy timed out"), Stack(1, "S", ALL_REDUCE)]
    rank, sentence = odd_rank(stacks)
    assert rank == 0
    assert "stopped (state T)" in sentence
    assert "1 rank waits in all_reduce" in sentence


def test_of_two_ranks_the_one_outside_the_collective_is_named():
    rank, sentence = odd_rank([Stack(0, "R", FORWARD), Stack(1, "S", ALL_REDUCE)])
    assert rank == 0
    assert sentence == "rank 0 is in forward (model.py:40); 1 rank waits in all_reduce"


def test_waiting_for_the_data_loader_is_not_waiting_in_a_collective():
    stacks = [Stack(r, "S", ALL_REDUCE) for r in range(7)] + [Stack(7, "S", LOADER)]
    rank, sentence = odd_rank(stacks)
    assert rank == 7
    assert "7 ranks wait in all_reduce" in sentence


def test_writing_a_checkpoint_is_not_waiting_in_a_collective():
    assert odd_rank([Stack(0, "D", STORAGE), Stack(1, "S", ALL_REDUCE)])[0] == 0
    assert odd_rank([Stack(0, "S", STORAGE), Stack(1, "S", ALL_REDUCE)])[0] == 0


@pytest.mark.parametrize(("state", "word"), [("D", "blocked in the kernel"), ("Z", "a zombie")])
def test_abnormal_states_are_said_in_words(state, word):
    stacks = [Stack(0, "S", ALL_REDUCE), Stack(1, "S", ALL_REDUCE), Stack(2, state, FORWARD)]
    rank, sentence = odd_rank(stacks)
    assert rank == 2
    assert word in sentence


def test_a_rank_in_another_collective_than_the_majority_is_named():
    stacks = [Stack(r, "S", ALL_REDUCE) for r in range(3)] + [Stack(3, "S", REDUCE_SCATTER)]
    rank, sentence = odd_rank(stacks)
    assert rank == 3
    assert "waiting in reduce_scatter_single" in sentence


@pytest.mark.parametrize(
    "stacks",
    [
        [Stack(0, "S", ALL_REDUCE), Stack(1, "S", ALL_REDUCE)],
        [Stack(0, "S", ALL_REDUCE), Stack(1, "S", REDUCE_SCATTER)],
        [Stack(0, "T", FORWARD), Stack(1, "T", FORWARD), Stack(2, "S", ALL_REDUCE)],
        [Stack(0, "R", FORWARD), Stack(1, "R", LOADER), Stack(2, "S", ALL_REDUCE)],
        [Stack(0, "S", (), "permission denied"), Stack(1, "S", ALL_REDUCE)],
        [Stack(0, "S", FORWARD)],
    ],
    ids=["all alike", "two collectives", "two stopped", "two outside", "unreadable", "alone"],
)
def test_nobody_is_named_without_reason(stacks):
    rank, sentence = odd_rank(stacks)
    assert rank is None
    assert sentence.startswith("no single odd rank")


def test_no_stacks():
    assert odd_rank([]) == (None, "no stacks were captured")


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


def test_the_events_of_the_agents_are_such_stacks():
    from jobs.events import RankStack

    stacks = [
        RankStack(rank=0, process_state="S", frames=ALL_REDUCE),
        RankStack(rank=1, process_state="T", frames=FORWARD),
    ]
    assert odd_rank(stacks)[0] == 1

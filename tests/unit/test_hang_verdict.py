"""What two looks at the ranks of a silent run say: who cannot go on, who is slow, who waits."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.events import RankStack
from monitors.hang_verdict import Scene, Verdict, judge

REDUCE = ("all_reduce (torch/distributed/distributed_c10d.py:2800)", "step (train.py:30)")
BARRIER = ("barrier (torch/distributed/distributed_c10d.py:4000)", "main (train.py:50)")
GATHER = ("all_gather (torch/distributed/distributed_c10d.py:3300)", "step (train.py:31)")
BACKWARD = ("_engine_run_backward (torch/autograd/graph.py:824)", "step (train.py:29)")
RECV = ("recv_forward (megatron/core/pipeline_parallel/p2p_communication.py:300)", "f (a.py:1)")
CODE = ("validate (train.py:70)", "main (train.py:40)")
LOADER = ("_try_get_data (torch/utils/data/dataloader.py:1250)", "main (train.py:20)")
LOCK, PIPE, SLEEP, SOCKET = "futex_do_wait", "anon_pipe_read", "hrtimer_nanosleep", "sk_wait_data"


def look(rank: int, frames: tuple[str, ...] = REDUCE, **facts: Any) -> RankStack:
    return RankStack(**{"rank": rank, "process_state": "S", "frames": frames, **facts})


def waiting(*ranks: int, frames: tuple[str, ...] = REDUCE, **facts: Any) -> list[RankStack]:
    """Ranks in a collective, spinning as collectives do."""
    return [look(rank, frames, cpu_seconds=1.0, **facts) for rank in ranks]


# What rank 1 of four does while the others wait for it, and whether it can go on by itself.
CANNOT_GO_ON = {
    "stopped": {"process_state": "T"},
    "dead": {"process_state": "X", "frames": (), "error": "process 7 has ended"},
    "in the driver": {"process_state": "D", "wait_channel": "nv_wait_for_event"},
    "in the driver of AMD": {"process_state": "D", "wait_channel": "amdgpu_fence_wait"},
    "a lock nobody releases": {"wait_channel": LOCK},
    "a pipe nobody writes": {"wait_channel": PIPE},
    "a loader whose worker is stopped": {
        "frames": LOADER,
        "wait_channel": LOCK,
        "dead_children": ("child 8 (python)",),
    },
}
GOES_ON = {
    "its stack moves": {"frames_later": ("log (train.py:71)", "main (train.py:40)")},
    "computes": {"cpu_seconds": 0.9},
    "sleeps": {"wait_channel": SLEEP},
    "uploads": {"wait_channel": SOCKET},
    "storage": {"process_state": "D", "wait_channel": "nfs_wait_bit_killable"},
    "storage that is not named": {"process_state": "D", "wait_channel": "0"},
    "a child works": {"wait_channel": LOCK, "helpers": ("child 9 (ffmpeg) moves",)},
    "a thread uploads": {"wait_channel": LOCK, "helpers": ("thread 9 (up) waits in sk_wait_data",)},
    "a loader": {"frames": LOADER, "wait_channel": PIPE},
    "a debugger": {"process_state": "t", "traced": True},
    "a debugger that has stopped it": {"process_state": "T", "traced": True},
    "unreadable": {"frames": (), "error": "py-spy: permission denied"},
}


@pytest.mark.parametrize("facts", CANNOT_GO_ON.values(), ids=CANNOT_GO_ON.keys())
def test_a_rank_that_cannot_go_on_is_convicted(facts: dict[str, Any]) -> None:
    verdict = judge([*waiting(0, 2, 3), look(1, **{"frames": CODE, **facts})])
    assert (verdict.convicted, verdict.ranks, verdict.users) == (True, (1,), False)
    assert "rank 1 " in verdict.sentence


@pytest.mark.parametrize("facts", GOES_ON.values(), ids=GOES_ON.keys())
def test_a_rank_that_may_go_on_is_slow(facts: dict[str, Any]) -> None:
    verdict = judge([*waiting(0, 2, 3), look(1, **{"frames": CODE, **facts})])
    assert (verdict.convicted, verdict.ranks) == (False, (1,))


@pytest.mark.parametrize("name", ["a lock nobody releases", "a pipe nobody writes"])
def test_a_lock_convicts_only_while_others_wait_for_it(name: str) -> None:
    """A rank alone, or ranks that all do so, may wait for a thread that nobody can see."""
    facts = {"frames": CODE, **CANNOT_GO_ON[name]}
    assert not judge([look(0, **facts)]).convicted
    assert not judge([look(0, **facts), look(1, **facts)]).convicted


def test_the_same_collective_everywhere_is_the_network() -> None:
    verdict = judge(waiting(0, 1, 2, 3))
    assert (verdict.convicted, verdict.ranks, verdict.node) == (False, (), None)
    assert "no rank is blamed" in verdict.sentence


def culprits(verdict: Verdict) -> tuple[tuple[int, ...], str | None]:
    return verdict.ranks, verdict.node


NODES = {0: "node-1", 1: "node-1", 2: "node-2", 3: "node-2"}


def test_several_ranks_of_one_node_are_that_node() -> None:
    stopped = [look(r, CODE, process_state="T") for r in (2, 3)]
    verdict = judge([*waiting(0, 1), *stopped], Scene(nodes=NODES))
    assert verdict.convicted
    assert culprits(verdict) == ((2, 3), "node-2")
    assert "all on node-2" in verdict.sentence


def test_a_node_whose_agent_does_not_answer_is_named_but_not_convicted() -> None:
    """Losing contact is not failure: the cluster is asked about the agent."""
    verdict = judge(waiting(0, 1), Scene(nodes=NODES, absent=frozenset({2, 3})))
    assert not verdict.convicted
    assert culprits(verdict) == ((2, 3), "node-2")


def test_a_rank_that_ended_early_is_named_as_the_scripts_doing() -> None:
    scene = Scene(nodes=NODES, ended=frozenset({1}), steps={1: 30})
    verdict = judge(waiting(0, 2, 3), scene)
    assert (verdict.convicted, verdict.ranks, verdict.users) == (True, (1,), True)
    assert "rank 1 has ended with exit code 0 after step 30" in verdict.sentence


def test_a_rank_that_ended_before_its_peers_has_not_died() -> None:
    """The others export the model after the last step; a late look finds the process gone."""
    gone = look(1, (), process_state="X", error="process 7 has ended")
    verdict = judge([look(0, CODE, wait_channel=SLEEP), gone], Scene(ended=frozenset({1})))
    assert (verdict.convicted, verdict.ranks) == (False, (0,))


@pytest.mark.parametrize("place", [BARRIER, GATHER])
def test_a_rank_in_another_collective_than_the_rest_is_named(place: tuple[str, ...]) -> None:
    """A rank that skipped a collective, or whose data ended early."""
    verdict = judge([*waiting(0, 1, 2), *waiting(3, frames=place)])
    assert (verdict.convicted, verdict.ranks, verdict.users) == (False, (3,), True)


def test_a_rank_that_is_in_the_same_collective_at_another_line_is_named() -> None:
    """It left one out: every collective of a script may be an all_reduce. It may be the network."""
    elsewhere = (REDUCE[0], "log_metrics (train.py:61)")
    verdict = judge([*waiting(0, 1, 3), *waiting(2, frames=elsewhere)])
    assert (verdict.convicted, verdict.ranks, verdict.users) == (False, (2,), False)
    assert judge([*waiting(0), *waiting(1, frames=elsewhere)]).ranks == ()


def test_the_root_of_a_broadcast_calls_it_at_a_line_of_its_own() -> None:
    root, others = (
        ("broadcast (torch/distributed/distributed_c10d.py:2600)", f"setup (train.py:{line})")
        for line in (11, 13)
    )
    assert judge([*waiting(0, frames=root), *waiting(1, 2, 3, frames=others)]).ranks == ()


def test_of_two_halves_the_one_behind_is_named() -> None:
    looks = [*waiting(0), *waiting(1, frames=BARRIER)]
    assert judge(looks, Scene(steps={0: 12, 1: 9})).ranks == (1,)
    assert judge(looks, Scene(steps={0: 9, 1: 9})).ranks == ()


@pytest.mark.parametrize(
    "others",
    [
        [*waiting(0, frames=BACKWARD, on_gpu=True), *waiting(2, 3)],
        [*waiting(0, frames=RECV, on_gpu=True), *waiting(2, frames=BACKWARD, on_gpu=True)],
    ],
    ids=["backward", "pipeline"],
)
def test_ranks_that_wait_in_several_places_do_not_hide_the_culprit(others: list[RankStack]) -> None:
    """The ordinary case with pipeline or tensor parallelism on GPUs."""
    verdict = judge([*others, look(1, CODE, process_state="T")])
    assert (verdict.convicted, verdict.ranks) == (True, (1,))
    assert judge([*others, look(1, CODE, wait_channel=LOCK)]).ranks == (1,)


AT_LINE = ("step (train.py:31)", "main (train.py:50)")


@pytest.mark.parametrize(
    ("frames", "facts"),
    [
        (AT_LINE, {"wait_channel": LOCK, "line": "work.wait()"}),
        (
            BACKWARD,
            {"wait_channel": LOCK, "line": "return Variable._execution_engine.run_backward("},
        ),
        (AT_LINE, {"on_gpu": True, "cpu_seconds": 1.0, "line": "total += loss.item()"}),
        (AT_LINE, {"on_gpu": True, "cpu_seconds": 1.0, "line": "if torch.isnan(loss):"}),
    ],
    ids=["a handle", "DistributedDataParallel on a CPU", "item()", "isnan"],
)
def test_a_wait_without_a_frame_of_its_own_is_known_by_its_line(
    frames: tuple[str, ...], facts: dict[str, Any]
) -> None:
    peers = [look(rank, frames, **facts) for rank in (0, 2, 3)]
    verdict = judge([*peers, look(1, CODE, process_state="S", wait_channel=LOCK)])
    assert (verdict.convicted, verdict.ranks) == (True, (1,))
    assert judge(peers).ranks == ()


@pytest.mark.parametrize(
    "facts",
    [
        {"wait_channel": LOCK, "line": "lock.acquire()"},
        {"wait_channel": SLEEP, "line": "os.wait()"},
        {"cpu_seconds": 1.0, "line": "total += float(word)"},
        {"cpu_seconds": 1.0, "line": "handle.wait()"},
    ],
)
def test_other_lines_are_no_collectives(facts: dict[str, Any]) -> None:
    verdict = judge([*waiting(0, 2, 3), look(1, AT_LINE, **facts)])
    assert verdict.ranks == (1,)
    assert "in a collective" not in verdict.sentence.partition(";")[0]


def test_a_backward_pass_on_a_cpu_computes() -> None:
    verdict = judge([*waiting(0), look(1, BACKWARD, cpu_seconds=1.0)])
    assert (verdict.convicted, verdict.ranks) == (False, (1,))


def test_a_signature_is_of_the_pause_not_of_the_rank() -> None:
    first = judge([*waiting(0, 2), look(1, CODE, wait_channel=SLEEP)])
    again = judge([*waiting(1, 2), look(0, CODE, wait_channel=SLEEP)])
    other = judge([*waiting(0, 2), look(1, LOADER, wait_channel=SLEEP)])
    assert first.signature == again.signature
    assert first.signature != other.signature


RAISED = (
    "Traceback (most recent call last):\n"
    '  File "train.py", line 9, in <module>\n'
    "OSError: [Errno 5] Input/output error: '/mnt/lustre/shard-7'\n"
)
JOINING = ("_shutdown (threading.py:1590)",)


@pytest.mark.parametrize(
    ("facts", "convicted"),
    [
        ({"wait_channel": LOCK}, True),
        ({"wait_channel": LOCK, "helpers": ("thread 9 (save) moves",)}, False),
        ({"wait_channel": SOCKET}, False),
    ],
    ids=["joins a thread that is stuck", "a thread saves", "a handler of the exit uploads"],
)
def test_a_rank_that_died_of_an_exception_is_kept_by_its_threads(
    facts: dict[str, Any], convicted: bool
) -> None:
    """What goes on may be the last save: then it has until the limit."""
    dead = look(1, JOINING, raised=RAISED, **facts)
    verdict = judge([*waiting(0, 2, 3), dead])
    assert (verdict.convicted, verdict.ranks, verdict.raised) == (convicted, (1,), RAISED)
    assert "rank 1 has died of an exception" in verdict.sentence
    assert "OSError: [Errno 5]" in verdict.sentence


def test_a_wait_for_a_file_is_named() -> None:
    """A person can end the wait; nothing proves that it will not end by itself."""
    waits = "a build lock of torch extensions, x/lock, held by process 7"
    frames = ("wait (torch/utils/file_baton.py:55)", "main (train.py:3)")
    look = RankStack(
        rank=0, process_state="S", frames=frames, wait_channel="hrtimer_nanosleep", waits_for=waits
    )
    verdict = judge([look])
    assert (verdict.convicted, waits in verdict.sentence) == (False, True)

"""How often the culprit of a hang is right: over a hundred provoked hangs of varied kinds.

    python benchmarks/hangs.py

* Real gangs: four processes, two on each of two nodes, in real collectives of gloo. One of them, or
  a whole node, does something else for ever (`support/odd_ranks.py`); a look at the ranks and a
  verdict follow, as in an agent and in the core.
* Recorded looks of ranks on GPUs, whose collectives are asynchronous, and of collectives that spin.

A verdict is right if it blames exactly the odd ranks, and their node where they share one; nobody,
if all ranks wait in the same collective. It is wrong besides if it convicts a rank that may go on,
or does not convict one that cannot.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.agent.stacks import capture
from jobs.clock import SystemClock
from jobs.events import RankStack
from monitors.hang_verdict import Scene, Verdict, judge

WORLD = 4
NODES = {0: "node-1", 1: "node-1", 2: "node-2", 3: "node-2"}
SETTLE_SECONDS = 0.7
START_SECONDS = 120.0
STOPPED_IN = ("computes", "sleeps", "validates", "skips", "socket")
"""Activities in which a rank is stopped."""
CANNOT = (
    "lock",
    "crossed locks",
    "queue",
    "event",
    "condition",
    "thread barrier",
    "semaphore",
    "join",
    "future",
    "pipe",
    "fifo",
    "process queue",
    "stopped worker",
    "dead worker",
    "left thread",
    "exit handler",
)
"""Waits that cannot end."""
MAY = (
    "computes",
    "regex",
    "sleeps",
    "validates",
    "slow worker",
    "child",
    "socket",
    "accept",
    "event loop",
    "select",
    "signal",
    "file lock",
    "polls",
    "upload thread",
    "full pipe",
)
"""Waits that may end, for all that can be seen."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A hang to provoke."""

    kind: str
    odd: tuple[int, ...]
    """The ranks that a right verdict blames; empty: nobody."""
    doing: str
    """The activity of the odd ranks; empty: every rank waits."""
    places: tuple[str, ...]
    """Where the other ranks wait, in turns."""
    convicted: bool | None = None
    """None: either will do."""
    act: str = ""
    """Done to the odd ranks from outside: stop, kill, end, hide."""


_PLACES = itertools.cycle(
    ["all_reduce", "barrier", "all_gather", "objects", "broadcast", "recv", "handle", "backward"]
)
_RANKS = itertools.cycle(range(WORLD))


def cases() -> Iterator[Case]:
    """Every kind with several odd ranks and places."""
    for activities, kind, convicted in ((CANNOT, "cannot go on", True), (MAY, "may go on", False)):
        for doing in activities:
            for _ in range(2):
                yield Case(kind, (next(_RANKS),), doing, (next(_PLACES),), convicted)
            next(_RANKS)
    for doing in STOPPED_IN:
        yield Case("stopped", (next(_RANKS),), doing, (next(_PLACES),), True, "stop")
        yield Case("stopped node", (2, 3), doing, (next(_PLACES),), True, "stop")
        yield Case("dead", (next(_RANKS),), doing, (next(_PLACES),), True, "kill")
    yield from _by_place()
    for first, second in itertools.combinations(("all_reduce", "recv", "handle", "backward"), 2):
        for doing, convicted in (("lock", True), ("sleeps", False)):
            yield Case("several places", (next(_RANKS),), doing, (first, second), convicted)
    for place in ("all_reduce", "objects", "backward"):
        yield Case("two odd ranks", (1, 2), "sleeps", (place,), convicted=False)
        yield Case("two odd ranks", (0, 3), "event", (place,), convicted=True)
        yield Case("both ranks of a node", (2, 3), "validates", (place,), convicted=False)


def _by_place() -> Iterator[Case]:
    for place in ("all_reduce", "all_gather", "handle", "backward"):
        for doing in ("skips", "final barrier"):
            yield Case("left out a collective", (next(_RANKS),), doing, (place,))
        yield Case("ended early", (next(_RANKS),), "sleeps", (place,), True, "end")
        yield Case("silent node", (0, 1), "sleeps", (place,), False, "hide")
        yield Case("all in one collective", (), "", (place,), convicted=False)


# --- real gangs ---------------------------------------------------------------------------------


def _rank(case: Case, rank: int, directory: Path) -> None:
    """One rank, after the fork. Never returns."""
    from benchmarks.support.odd_ranks import ODD, PLACES, Gang

    with (directory / f"{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # A fifth rank that never comes keeps all four in one collective.
    world = WORLD if case.odd else WORLD + 1
    gang = Gang(rank, world, directory / "store", case.places)
    if case.act in {"kill", "end"} and rank in case.odd and not os.fork():
        time.sleep(3600)  # keeps its connections open: gloo, unlike NCCL, would see them closed
    (directory / f"{rank}.ready").touch()
    if rank in case.odd or rank >= WORLD:
        ODD[case.doing or "sleeps"](gang)
    else:
        odd = case.odd[0] if case.odd else WORLD
        PLACES[case.places[rank % len(case.places)]](gang, odd)
    time.sleep(3600)


def _fork(case: Case, rank: int, directory: Path) -> int:
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    try:
        _rank(case, rank, directory)
    finally:
        os._exit(1)


def provoke(case: Case) -> Verdict:
    """Provoke a hang with real processes; the verdict on it.

    Raises:
        RuntimeError: A rank did not come to its place.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ranks = range(WORLD if case.odd else WORLD + 1)
        pids = {rank: _fork(case, rank, directory) for rank in ranks}
        try:
            deadline = time.monotonic() + START_SECONDS
            while not all((directory / f"{rank}.ready").exists() for rank in ranks):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{case}: {(directory / '0.log').read_text()[-500:]}")
                time.sleep(0.02)
            time.sleep(SETTLE_SECONDS)
            return _judge(case, pids)
        finally:
            for pid in pids.values():
                for kill in (os.killpg, os.kill):
                    try:
                        kill(pid, signal.SIGKILL)
                    except OSError:
                        continue
            for pid in pids.values():
                try:
                    os.waitpid(pid, 0)
                except ChildProcessError:
                    continue


def _judge(case: Case, pids: dict[int, int]) -> Verdict:
    for rank in case.odd:
        if case.act in {"stop", "kill", "end"}:
            os.kill(pids[rank], signal.SIGSTOP if case.act == "stop" else signal.SIGKILL)
        if case.act == "end":
            os.waitpid(pids[rank], 0)
    time.sleep(0.05)
    unseen = set(case.odd) if case.act in {"end", "hide"} else set()
    looked = {rank: pid for rank, pid in pids.items() if rank < WORLD and rank not in unseen}
    looks = asyncio.run(capture(looked, SystemClock()))
    scene = Scene(
        nodes=NODES,
        phases=dict.fromkeys(range(WORLD), "training"),
        steps=dict.fromkeys(range(WORLD), 12),
        ended=frozenset(unseen if case.act == "end" else ()),
        absent=frozenset(unseen if case.act == "hide" else ()),
    )
    return judge(looks, scene)


# --- recorded looks -----------------------------------------------------------------------------

_REDUCE = ("all_reduce (torch/distributed/distributed_c10d.py:2800)", "step (train.py:30)")
_GATHER = ("all_gather (torch/distributed/distributed_c10d.py:3300)", "step (train.py:31)")
_ITEM = (
    "_cuda_synchronize (torch/cuda/__init__.py:985)",
    "synchronize (torch/cuda/__init__.py:90)",
)
_BACKWARD = ("_engine_run_backward (torch/autograd/graph.py:824)", "step (train.py:29)")
_CLIP = ("clip_grad_norm_ (torch/nn/utils/clip_grad.py:200)", "step (train.py:33)")
_RECV = ("recv_forward (megatron/core/pipeline_parallel/p2p_communication.py:300)", "f (a.py:1)")
_UNSHARD = ("wait_for_unshard (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py:300)",)
_CODE = ("tokenize (data.py:70)", "main (train.py:40)")
_SPINS = {"cpu_seconds": 1.0, "process_state": "R", "on_gpu": True}
_ODD_LOOKS: dict[str, tuple[dict[str, object], bool]] = {
    "stopped": ({"process_state": "T"}, True),
    "in the driver": ({"process_state": "D", "wait_channel": "uvm_gpu_wait"}, True),
    "on a lock": ({"wait_channel": "futex_wait_queue"}, True),
    "on storage": ({"process_state": "D", "wait_channel": "rpc_wait_bit_killable"}, False),
    "computing": ({"cpu_seconds": 1.0}, False),
}


def recorded() -> Iterator[tuple[Case, Verdict]]:
    """Looks as on GPUs: the peers spin or wait in several places of asynchronous work."""
    scenes = {
        "all in one place": [_REDUCE, _REDUCE, _REDUCE],
        "backward and optimizer": [_BACKWARD, _CLIP, _REDUCE],
        "a pipeline": [_RECV, _BACKWARD, _ITEM],
        "sharded": [_UNSHARD, _UNSHARD, _GATHER],
    }
    for (name, peers), (what, (facts, convicted)) in itertools.product(
        scenes.items(), _ODD_LOOKS.items()
    ):
        odd = len(name) % WORLD
        others = [rank for rank in range(WORLD) if rank != odd]
        looks = [_look(r, f, _SPINS) for r, f in zip(others, peers, strict=True)]
        looks.append(_look(odd, _CODE, {"on_gpu": True, **facts}))
        case = Case(f"on GPUs, {name}", (odd,), what, (), convicted)
        yield case, judge(looks, Scene(nodes=NODES))
    spinning = [_look(rank, _REDUCE, _SPINS) for rank in range(WORLD)]
    yield Case("on GPUs, all", (), "", (), convicted=False), judge(spinning, Scene(nodes=NODES))


def _look(rank: int, frames: Sequence[str], facts: dict[str, object]) -> RankStack:
    return RankStack.model_validate(
        {"rank": rank, "process_state": "S", "frames": tuple(frames), **facts}
    )


# --- the score ----------------------------------------------------------------------------------


def faults(case: Case, verdict: Verdict) -> list[str]:
    """List the faults of a verdict."""
    nodes = {NODES[rank] for rank in case.odd}
    node = nodes.pop() if len(nodes) == 1 else None
    found = []
    if (verdict.ranks, verdict.node) != (case.odd, node):
        found.append(f"blames {list(verdict.ranks)} on {verdict.node}")
    if case.convicted not in {None, verdict.convicted}:
        found.append("convicts" if verdict.convicted else "does not convict")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the verdicts on provoked hangs.")
    parser.add_argument("--only", default="", help="cases whose kind or activity has this word")
    only = parser.parse_args().only
    import torch

    torch.set_num_threads(1)
    kinds: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    real = ((case, provoke(case)) for case in cases() if only in f"{case.kind} {case.doing}")
    for case, verdict in itertools.chain(real, recorded()):
        wrong = faults(case, verdict)
        kinds[case.kind][0] += 1
        kinds[case.kind][1] += not any("blames" in fault for fault in wrong)
        kinds[case.kind][2] += not any("convict" in fault for fault in wrong)
        if wrong:
            where = " and ".join(case.places)
            print(f"{case.kind}: {case.doing} ({where}), {list(case.odd)}: {'; '.join(wrong)}")
            print(f"    {verdict.sentence}", flush=True)
    for kind, (count, blamed, convicted) in kinds.items():
        print(f"{kind:<40} {blamed:>3} of {count} culprits, {convicted:>3} of {count} ends")
    total, culprits, ends = map(sum, zip(*kinds.values(), strict=True))
    figures = {"hangs": total, "culprit_right": culprits, "end_right": ends}
    print(json.dumps({**figures, "culprit_right_ratio": round(culprits / total, 3)}))


if __name__ == "__main__":
    main()

"""Time from SIGKILL of a rank to the first new step, for babysit and torchrun.

    python benchmarks/recovery.py [--kills 5]

Both run the same FSDP script. A new step is one that no rank had reached before the kill. Lost
steps are steps that every rank had completed and that are computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support.harness import (
    control_plane,
    last_line,
    median,
    path,
    submit,
    table,
    until,
    workplace,
)

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "benchmarks" / "support" / "recovery_job.py"
STEPS_BETWEEN_KILLS = 15
MANY_STEPS = 100_000
PATIENCE_SECONDS = 120.0
TORCHRUN_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # In a store shared across restarts, gloo's ranks find addresses of dead ranks, and most
    # restarts fail. A store for each attempt shows torchrun at its best.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


@dataclasses.dataclass(frozen=True)
class Recovery:
    """The cost of one kill."""

    seconds: float
    lost_steps: int


@dataclasses.dataclass(frozen=True)
class Line:
    """One step of one rank."""

    time: float
    step: int
    pid: int


def lines(log: Path, rank: int) -> list[Line]:
    """The steps that a rank has logged; an incomplete line is left out."""
    file = log.with_suffix(f".{rank}")
    if not file.exists():
        return []
    rows = [row.split() for row in file.read_text().splitlines(keepends=True) if row.endswith("\n")]
    return [Line(float(t), int(step), int(pid)) for t, step, pid, _ in rows]


def past(log: Path, old: set[int]) -> list[Line]:
    """Rank 0's lines after the restart, once one is beyond all earlier steps; else empty."""
    reached = max(line.step for rank in (0, 1) for line in lines(log, rank) if line.pid in old)
    fresh = [line for line in lines(log, 0) if line.pid not in old]
    return fresh if fresh and fresh[-1].step > reached else []


def has_reached(log: Path, step: int) -> bool:
    """True if rank 1 has completed the step."""
    seen = lines(log, 1)
    return bool(seen) and seen[-1].step >= step


def kill_and_measure(log: Path, kills: int, chance: random.Random) -> list[Recovery]:
    """Kill rank 1 repeatedly at random moments of a step, and measure each recovery.

    Raises:
        TimeoutError: No new step came within the limit.
    """
    recoveries = []
    goal = STEPS_BETWEEN_KILLS
    for _ in range(kills):
        until(functools.partial(has_reached, log, goal), f"step {goal}", seconds=120)
        time.sleep(chance.uniform(0.0, 0.1))
        victim = lines(log, 1)[-1].pid
        killed_at = time.time()
        os.kill(victim, signal.SIGKILL)
        old = {line.pid for rank in (0, 1) for line in lines(log, rank)}
        fresh = until(
            lambda log=log, old=old: past(log, old), "a new step", seconds=PATIENCE_SECONDS
        )
        reached = max(line.step for rank in (0, 1) for line in lines(log, rank) if line.pid in old)
        whole = min(max(n.step for n in lines(log, r) if n.pid in old) for r in (0, 1))
        first_new = next(line for line in fresh if line.step > reached)
        recoveries.append(Recovery(first_new.time - killed_at, max(0, whole - (fresh[0].step - 1))))
        goal = first_new.step + STEPS_BETWEEN_KILLS
    return recoveries


def under_torchrun(directory: Path, kills: int, chance: random.Random) -> list[Recovery]:
    """Measure the peer: torchrun restarts both ranks, which load their last save from tmpfs."""
    log = directory / "torchrun"
    with workplace_on_tmpfs() as checkpoints:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                f"--max-restarts={kills * 10}", str(JOB), str(log), str(checkpoints),
                str(MANY_STEPS),
            ],
            env={**os.environ, **TORCHRUN_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=(directory / "torchrun.err").open("w"),
            start_new_session=True,
        )  # fmt: skip
        try:
            return kill_and_measure(log, kills, chance)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def under_babysit(
    directory: Path, kills: int, chance: random.Random
) -> tuple[list[Recovery], list[dict[str, float]]]:
    """Measure babysit with the memory tier at every step; returns the restarts' phases too."""
    log = directory / "babysit"
    spec = {
        "name": "recovery",
        "command": [sys.executable, str(JOB), str(log), "", str(MANY_STEPS)],
        "workdir": str(directory),
        "env": {"PYTHONPATH": str(ROOT)},
        "resources": {"nodes": 2},
        "preload": [
            "torch",
            "torch.distributed.fsdp",
            "torch.distributed.checkpoint",
            "torch._dynamo",
        ],
        "checkpoint": {
            "directory": str(directory / "checkpoints"),
            "every_steps": 1000,
            "memory_every_steps": 1,
        },
    }
    with control_plane(directory) as session:
        run = submit(session, directory, spec)
        recoveries = kill_and_measure(log, kills, chance)
        phases = [r["seconds"] for r in session.api.get(path("runs", run))["restarts"]]
    return recoveries, phases


def workplace_on_tmpfs() -> object:
    """A temporary directory on tmpfs, like babysit's memory tier."""
    import tempfile

    root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    return tempfile.TemporaryDirectory(
        prefix="babysit-bench-", dir=root, ignore_cleanup_errors=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    kills = parser.parse_args().kills
    with workplace("recovery") as directory:
        recoveries, phases = under_babysit(directory, kills, random.Random(1))
        peers = under_torchrun(directory, kills, random.Random(1))
    rows = [
        (i + 1, a.seconds, a.lost_steps, b.seconds, b.lost_steps)
        for i, (a, b) in enumerate(zip(recoveries, peers, strict=True))
    ]
    table(("kill", "babysit (s)", "lost", "torchrun (s)", "lost"), rows)
    print()
    names = ("detect", "stop", "place", "start", "restore", "recompute")
    table(
        ("kill", *names), [(i + 1, *(p.get(n) or 0.0 for n in names)) for i, p in enumerate(phases)]
    )
    own, peer = median([r.seconds for r in recoveries]), median([r.seconds for r in peers])
    last_line(
        {
            "kill_to_new_step_seconds_median": own,
            "kill_to_new_step_seconds_max": max(r.seconds for r in recoveries),
            "torchrun_kill_to_new_step_seconds_median": peer,
            "ratio_to_torchrun": own / peer,
            "lost_steps_max": max(r.lost_steps for r in recoveries),
            "torchrun_lost_steps_max": max(r.lost_steps for r in peers),
            "kills": kills,
        }
    )


if __name__ == "__main__":
    main()

"""Overhead of babysit for a training job: a report, a save to memory, and the agent.

    python benchmarks/overhead.py

* `run.report`: the call alone, in this process, into a real ring on tmpfs.
* `run.watch`: CPU time of a step of two small layers, with hooks and without, by turns.
* The memory checkpoint: the tiny GPT on two ranks (FSDP2) saves after every second step; the
  figures are the blocking time that rank 0 reports, as a share of a step, and the difference
  between steps with and without a save. Medians, after a warm-up that covers the imports of the
  first save.
* The agent: CPU time of both agents of a job of two ranks at 20 steps/s, as a share of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import babysit
from babysit.run import Run
from babysit.wire import ENV_RANK_DIR, PLAN_FILE, Plan
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
from orchestrator.cli.session import Session
from orchestrator.database.sql_store import SqlStore

REPORTS, WATCHED_STEPS, BATCHES = 2000, 200, 30
GPT_STEPS, GPT_WARM_UP = 160, 30
AGENT_SECONDS = 15.0
TEMPLATE = Path(__file__).resolve().parents[1] / "jobs" / "templates" / "tiny_gpt"
PACED = """
import time
import babysit
run = babysit.init()
for step, _ in run.steps(range(1_000_000), total=1_000_000):
    time.sleep(0.05)
    run.report(loss=2.0, grad_norm=1.0, tokens=1024)
"""


def a_run(directory: Path) -> Run:
    """A run of one rank in this process."""
    rank = directory / "rank"
    rank.mkdir()
    (rank / PLAN_FILE).write_text(Plan(run="bench", attempt=1, rank=0, world_size=1).to_json())
    os.environ[ENV_RANK_DIR] = str(rank)
    run = babysit.init()
    del os.environ[ENV_RANK_DIR]
    return run


def report_microseconds(run: Run) -> list[float]:
    """Microseconds of one `run.report`, one figure for each batch of calls."""
    figures = []
    for _ in range(BATCHES):
        begun = time.perf_counter()
        for step in range(REPORTS):
            run.report(loss=2.5, grad_norm=0.3, tokens=4096, learning_rate=1e-3, step=step)
        figures.append((time.perf_counter() - begun) / REPORTS * 1e6)
    return figures


def watch_microseconds(run: Run) -> list[float]:
    """CPU microseconds that `run.watch` adds to a step, one figure for each pair of batches."""
    torch.set_num_threads(1)
    figures = []
    plain, watched = stepping(None), stepping(run)
    for _ in range(BATCHES):
        without, with_hooks = plain(), watched()
        figures.append((with_hooks - without) * 1e6)
    return figures


def stepping(run: Run | None) -> Callable[[], float]:
    """A function that trains `WATCHED_STEPS` steps, and gives the CPU seconds of one."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    data = torch.randn(32, 64)
    if run is not None:
        run.watch(model, optimizer)

    def train() -> float:
        begun = time.thread_time()
        for _ in range(WATCHED_STEPS):
            model(data).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return (time.thread_time() - begun) / WATCHED_STEPS

    train()
    return train


def memory_checkpoint(session: Session, directory: Path) -> dict[str, float]:
    """Seconds of steps with and without a save to memory.

    Raises:
        RuntimeError: The job did not succeed.
    """
    job = directory / "tiny_gpt"
    shutil.copytree(TEMPLATE, job, ignore=shutil.ignore_patterns("__pycache__"))
    run = submit(
        session,
        directory,
        {
            "name": "gpt",
            "command": [sys.executable, "train.py", "--steps", str(GPT_STEPS)],
            "workdir": str(job),
            "resources": {"nodes": 2},
            "preload": ["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint"],
            "checkpoint": {
                "directory": str(directory / "checkpoints"),
                "every_steps": GPT_STEPS,
                "memory_every_steps": 2,
            },
        },
    )
    ended: dict[str, Any] = until(
        lambda: (d := session.api.get(path("runs", run)))["ended_at"] and d, "the GPT", seconds=300
    )
    if ended["state"] != "succeeded":
        raise RuntimeError(f"the GPT {ended['state']}: {ended['reason']}")
    steps = asyncio.run(reported(session.settings.database, run))[GPT_WARM_UP:-1]
    # A step lasts from report to report, and a save follows the report, so a save after step N
    # counts in step N + 1.
    paying = [(took, blocked) for step, took, blocked in steps if step % 2 == 1]
    return {
        "blocked": median([blocked for _, blocked in paying]),
        "with": median([took for took, _ in paying]),
        "without": median([took for step, took, _ in steps if step % 2 == 0]),
    }


async def reported(url: str, run: str) -> list[tuple[int, float, float]]:
    """(step, its seconds, of which a save blocked) for every step of rank 0, from the database."""
    store = await SqlStore.open(url)
    try:
        tail = await store.sample_tail(run, count=GPT_STEPS)
    finally:
        await store.close()
    return [
        row
        for _, samples in tail
        for row in zip(samples.step, samples.seconds, samples.blocked_seconds, strict=True)
    ]


def agent_share(session: Session, directory: Path) -> float:
    """CPU seconds of both agents per second while two ranks report 20 times a second each."""
    (directory / "paced.py").write_text(PACED)
    spec = {
        "name": "paced",
        "command": [sys.executable, "paced.py"],
        "workdir": str(directory),
        "resources": {"nodes": 2},
    }
    run = submit(session, directory, spec)
    until(lambda: session.api.get(path("runs", run))["step"] > 40, "40 steps")
    pids = agents(run)
    before, begun = sum(map(cpu_seconds, pids)), time.monotonic()
    time.sleep(AGENT_SECONDS)
    share = (sum(map(cpu_seconds, pids)) - before) / (time.monotonic() - begun)
    session.api.post(path("runs", run, "cancel"), reason="measured")
    return share


def agents(run: str) -> list[int]:
    """Pids of the agents of a run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"babysit.agent" in command and any(run.encode() in word for word in command):
                found.append(int(entry.name))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with workplace("overhead") as directory:
        run = a_run(directory)
        reports, watch = report_microseconds(run), watch_microseconds(run)
        with control_plane(directory) as session:
            save = memory_checkpoint(session, directory)
            agent = agent_share(session, directory)
    difference = save["with"] - save["without"]
    table(
        ("what", "figure", "unit"),
        [
            ("run.report, median", median(reports), "µs"),
            ("run.report, slowest batch", max(reports), "µs"),
            ("run.watch, a step, median", median(watch), "µs"),
            ("tiny GPT step without a save, median", save["without"] * 1e3, "ms"),
            ("tiny GPT step with a save to memory, median", save["with"] * 1e3, "ms"),
            ("blocked by a save, median", save["blocked"] * 1e3, "ms"),
            ("blocked, as a share of a step", save["blocked"] / save["without"], ""),
            ("two agents at 20 steps/s", agent * 100, "% of a core"),
        ],
    )
    last_line(
        {
            "report_microseconds_median": median(reports),
            "report_microseconds_max": max(reports),
            "watch_microseconds_median": median(watch),
            "memory_checkpoint_blocked_milliseconds_median": save["blocked"] * 1e3,
            "memory_checkpoint_step_ratio": save["blocked"] / save["without"],
            "memory_checkpoint_step_difference_ratio": difference / save["without"],
            "step_milliseconds_median": save["without"] * 1e3,
            "agent_cpu_percent_per_agent": agent * 50,
        }
    )


if __name__ == "__main__":
    main()

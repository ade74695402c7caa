"""Healthy runs that look ill: each function trains as many real scripts do.

None of them needs help. Whatever restarts one, blames a node for it or calls it failed is wrong.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.soak.training import Training, Weights


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of run."""

    train: Callable[[Training], None]
    nodes: int = 1
    processes: int = 2
    """On each node."""
    lasts: float | None = None
    """Seconds after which it ends and another one starts; None: as long as the soak."""
    last_rank_late: float = 0.0
    """Seconds before the last rank calls `init()`."""
    restarted: bool = False
    """A person restarts it once."""
    default: bool = True
    """Part of the soak unless other kinds are asked for."""

    @property
    def ranks(self) -> int:
        """Ranks of the run."""
        return self.nodes * self.processes


def sparse_reports(t: Training) -> None:
    """Report each of the first 100 steps, and then one in 100."""
    for step in t.loop(0.05):
        if step <= 100 or step % 100 == 0:
            t.run.report(loss=t.loss(step), step=step)


def rank0_in_steps(t: Training) -> None:
    """Only rank 0 reports; all draw their batches from `steps()`."""
    for step in t.steps(0.1):
        if t.rank == 0:
            t.run.report(loss=t.loss(step))


def rank0_in_own_loop(t: Training) -> None:
    """Only rank 0 reports, and the script has its own loop."""
    for step in t.loop(0.2):
        if t.rank == 0:
            t.run.report(loss=t.loss(step), step=step)


def evaluations(t: Training) -> None:
    """Validate for 6 to 20 s now and then and say nothing; every other time on rank 0 alone."""
    due, alone = 150, itertools.cycle((False, True))
    for step in t.steps(0.05):
        t.run.report(loss=t.loss(step))
        if step == due:
            due += t.chance.randrange(150, 500)
            seconds = t.chance.uniform(6.0, 20.0)
            if not next(alone) or t.rank == 0:
                _validate(seconds)


def _validate(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0.2)


def announced_evaluations(t: Training) -> None:
    """Validate for as long, announced by `phase("evaluate")`."""
    due = 150
    for step in t.steps(0.05):
        t.run.report(loss=t.loss(step))
        if step == due:
            due += t.chance.randrange(150, 500)
            seconds = t.chance.uniform(6.0, 20.0)
            with t.run.phase("evaluate"):
                time.sleep(seconds)


def long_first_evaluation(t: Training) -> None:
    """Rank 0 evaluates for 140 s the first time, and says so, while the others wait for it."""
    for step in t.steps(0.05):
        t.run.report(loss=t.loss(step))
        if step == 400 and t.rank == 0:
            with t.run.phase("evaluate"):
                time.sleep(140.0)


class _SlowToStart:
    """A loader whose workers take eight seconds to start, in each epoch."""

    def __iter__(self) -> Iterator[int]:
        time.sleep(8.0)
        yield from range(300)


def epoch_stalls(t: Training) -> None:
    """A loader that restarts its workers in each epoch."""
    for step in t.steps(0.05, _SlowToStart()):
        t.run.report(loss=t.loss(step))


def reinforcement(t: Training) -> None:
    """The loss of a policy: it rises, stays near zero, and crosses it."""
    for step in t.steps(0.2):
        phase = step / 600
        loss = 0.02 * math.sin(2 * math.pi * phase) + 1e-5 * step + t.own.gauss(0, 0.01)
        t.run.report(loss=loss, grad_norm=abs(t.own.gauss(0.5, 0.2)))


def accumulation(t: Training) -> None:
    """Report once for eight micro-batches."""
    for step in t.steps(0.1):
        if step % 8 == 0:
            t.run.report(loss=t.loss(step // 8))


def variable_lengths(t: Training) -> None:
    """One step in 100 takes 20 times as long, and a new length compiles for 10 s now and then."""
    for step in t.steps(0.1):
        if t.chance.random() < 0.01:
            time.sleep(1.0)
        if t.chance.random() < 1 / 600:
            time.sleep(10.0)
        t.run.report(loss=t.loss(step))


def uploads(t: Training) -> None:
    """Rank 0 uploads in a thread and waits for it, in one of four ways; the others wait for it."""
    ways = itertools.cycle((_wait_for_a_loop, _join_a_thread, _await_a_future, _run_a_tool))
    for step in t.steps(0.05):
        t.run.report(loss=t.loss(step))
        if step % 200 == 0 and t.rank == 0:
            next(ways)(t.own.uniform(6.0, 15.0))


def _send(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0.5)  # one part is sent


def _join_a_thread(seconds: float) -> None:
    thread = threading.Thread(target=_send, args=(seconds,))
    thread.start()
    thread.join()


def _await_a_future(seconds: float) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(_send, [seconds, seconds / 2]))


def _wait_for_a_loop(seconds: float) -> None:
    """As fsspec does: a thread runs an event loop, which waits for the answer of a slow server."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await asyncio.sleep(seconds)
        writer.write(b"done\n")
        writer.close()

    async def upload() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"complete\n")
        await reader.readline()
        writer.close()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(upload()))
    thread.start()
    while thread.is_alive():
        thread.join(1.0)


def _run_a_tool(seconds: float) -> None:
    subprocess.run(["sleep", str(seconds)], check=True, capture_output=True)


def warm_restarts(t: Training) -> None:
    """The learning rate returns to its maximum every 500 steps, and the loss jumps with it."""
    for step in t.steps(0.2):
        within = (step % 500) / 500
        rate = 3e-4 * (1 + math.cos(math.pi * within)) / 2
        jump = 0.6 * math.exp(-(step % 500) / 40) if step >= 500 else 0.0
        t.run.report(loss=t.loss(step) + jump, learning_rate=rate)


def mixture_of_experts(t: Training) -> None:
    """A loss with heavy tails: now and then a step is far out, alone."""
    for step in t.steps(0.2):
        outlier = t.own.paretovariate(2.5) - 1
        t.run.report(loss=t.loss(step, 0.05) + 0.15 * outlier, grad_norm=0.4 + 0.3 * outlier)


_CHATTER = (
    "kubelet: pod cache-warmer-7 evicted, rescheduled",
    "ECC errors: 0 uncorrectable, 0 corrected",
    "WARNING connection reset by peer, retrying (attempt 1 of 5)",
    "epoch done: 0 errors, 0 NaN batches skipped, loss is finite",
    "[rank0]: NCCL INFO NET/IB: Using interface ib0; timeout set to 1800 s",
    "out of memory killer is disabled for this slice",
    "Xid 0: no error",
    "checkpoint upload failed once: 503 Slow Down; succeeded on retry 2",
    "watchdog: heartbeat ok, no hang detected",
)


def chatter(t: Training) -> None:
    """A log of ordinary words, with an exception that the script survives, to its last line."""
    words = itertools.cycle(_CHATTER)
    for step in t.steps(0.2):
        t.run.report(loss=t.loss(step))
        if step % 10 == 0:
            print(f"step {step}: {next(words)}", flush=True)
        if step % 50 == 0:
            try:
                socket.create_connection(("127.0.0.1", 1), timeout=1.0)  # a metrics server
            except OSError:
                traceback.print_exc()
                print("metrics are off for this epoch", file=sys.stderr, flush=True)
    print("training finished; 0 failed batches; cache evicted", flush=True)


class _Slow:
    """A stream that cannot seek: after a restart it is read again from its beginning."""

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count(1):
            time.sleep(0.02)
            yield number


def replayed(t: Training) -> None:
    """A person restarts the run, which reads its stream again up to where it was."""
    weights = Weights()
    t.run.restore(weights)
    for step in t.steps(0.02, _Slow()):
        weights.value = step
        t.run.report(loss=t.loss(step))
        t.run.checkpoint(weights)
        if t.run.should_stop:
            t.run.checkpoint(weights, now=True)


_CHILD = """
import time, babysit
run = babysit.init()
for step, _ in run.steps(range(80)):
    time.sleep(0.1)
    run.report(loss=float("nan"), step=step)
"""


def child_joins(t: Training) -> None:
    """An evaluation script, as a child process, calls `babysit.init()` too."""
    for step in t.steps(0.1):
        t.run.report(loss=t.loss(step))
        if step % 150 == 0:
            subprocess.run([sys.executable, "-c", _CHILD], check=True, capture_output=True)


def lingering(t: Training) -> None:
    """After the last step, rank 0 exports the model for 75 s, and the others have left."""
    for step in t.steps(0.1):
        t.run.report(loss=t.loss(step))
    if t.rank == 0:
        time.sleep(75.0)


def lingering_in_own_loop(t: Training) -> None:
    """Export for 20 s without `steps()`: nothing says that the training is over."""
    for step in t.loop(0.1):
        t.run.report(loss=t.loss(step), step=step)
    if t.rank == 0:
        time.sleep(20.0)


def late_rank(t: Training) -> None:
    """One rank starts 40 s after the others, which wait for it in the rendezvous."""
    rank0_in_steps(t)


def mixed_precision(t: Training) -> None:
    """The loss scaler tries a larger scale now and then: the gradient is infinite, and is skipped.

    At the beginning several steps in a row are.
    """
    for step in t.steps(0.2):
        overflows = step <= 4 or step % 200 == 0
        norm = math.inf if overflows else abs(t.own.gauss(1.0, 0.1))
        t.run.report(loss=t.loss(step), grad_norm=norm)


def long_compilation(t: Training) -> None:
    """The first step compiles for 75 s, the first of a second shape for 30 s."""
    for step in t.steps(0.1):
        time.sleep({1: 75.0, 200: 30.0}.get(step, 0.0))
        t.run.report(loss=t.loss(step))


def long_saves(t: Training) -> None:
    """A script of its own saves every 150 steps: rank 0 writes for 12 s, the others go on."""
    for step in t.loop(0.2):
        t.run.report(loss=t.loss(step), step=step)
        if step % 150 == 0 and t.rank == 0:
            time.sleep(12.0)


def without_reports(t: Training) -> None:
    """Join the run, and never say anything after that."""
    for step in t.loop(0.1):
        if step % 50 == 0:
            print(f"step {step} loss {t.loss(step):.4f}", flush=True)


KINDS: dict[str, Kind] = {
    "sparse-reports": Kind(sparse_reports),
    "rank0-in-steps": Kind(rank0_in_steps, nodes=2),
    "evaluations": Kind(evaluations, nodes=2, processes=1),
    "epoch-stalls": Kind(epoch_stalls),
    "reinforcement": Kind(reinforcement),
    "accumulation": Kind(accumulation, nodes=2, processes=1),
    "variable-lengths": Kind(variable_lengths),
    "uploads": Kind(uploads, processes=3),
    "warm-restarts": Kind(warm_restarts),
    "mixture-of-experts": Kind(mixture_of_experts, nodes=2),
    "rank0-in-own-loop": Kind(rank0_in_own_loop, processes=3, default=False),
    "announced-evaluations": Kind(announced_evaluations, default=False),
    "long-first-evaluation": Kind(long_first_evaluation, default=False),
    "chatter": Kind(chatter, lasts=120.0, default=False),
    "replayed": Kind(replayed, restarted=True, default=False),
    "child-joins": Kind(child_joins, default=False),
    "lingering": Kind(lingering, nodes=2, processes=1, lasts=90.0, default=False),
    "lingering-in-own-loop": Kind(lingering_in_own_loop, lasts=90.0, default=False),
    "late-rank": Kind(
        late_rank, nodes=2, processes=1, lasts=120.0, last_rank_late=40.0, default=False
    ),
    "mixed-precision": Kind(mixed_precision, default=False),
    "long-compilation": Kind(long_compilation, default=False),
    "long-saves": Kind(long_saves, default=False),
    "without-reports": Kind(without_reports, default=False),
}

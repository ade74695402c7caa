"""Made series of step times: ranks in lockstep, healthy in awkward ways, or with one culprit.

Each rank has its own seconds a step in data, forward, backward, optimizer and the rest; the step
ends when the slowest rank has, and the others wait. What the monitors see are the sums in the
heartbeats of the ranks, as the agents send them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from babysit.wire import Part
from monitors.types import Beat

PARTS = tuple(Part)
OTHER, DATA, FORWARD, BACKWARD, OPTIMIZER, WAIT, PAUSED = range(len(PARTS))
_USUAL = np.array([0.05, 0.03, 0.25, 0.5, 0.1, 0.0, 0.0])
"""Shares of a step of the run."""

Seconds = NDArray[np.float64]
"""Of each step, rank and part."""
Change = Callable[["Job", Seconds], None]


@dataclasses.dataclass(slots=True)
class Job:
    """One run in lockstep."""

    rng: np.random.Generator
    ranks: int = 4
    per_node: int = 1
    steps: int = 420
    step_seconds: float = 1.0
    noise: float = 0.03
    measured: bool = True
    """True if the ranks say how long they wait."""
    onset: int = 0
    culprit: int = 0

    @property
    def nodes(self) -> Mapping[int, str]:
        """The node of each rank."""
        return {rank: f"node-{rank // self.per_node}" for rank in range(self.ranks)}

    @property
    def on_node(self) -> slice:
        """The ranks on the node of the culprit."""
        first = self.culprit // self.per_node * self.per_node
        return slice(first, first + self.per_node)

    def series(self, changes: Sequence[Change]) -> Seconds:
        """Seconds by step, rank and part, the waiting included."""
        shape = (self.steps, self.ranks, len(PARTS))
        noise = self.rng.lognormal(0.0, self.noise, shape)
        spent = self.step_seconds * _USUAL * noise
        for change in changes:
            change(self, spent)
        own = spent[..., :WAIT].sum(axis=2)
        end = (own + spent[..., PAUSED]).max(axis=1, keepdims=True)
        exchange = 0.07 * self.step_seconds
        waited = end - own - spent[..., PAUSED] + exchange
        if self.measured:
            spent[..., WAIT] = waited
        else:  # the waiting hides in a part that is not compared
            spent[..., BACKWARD] += waited
        return spent

    def beats(self, spent: Seconds, interval: float = 1.0) -> Iterator[tuple[float, list[Beat]]]:
        """The heartbeats: time and the newest beat of each rank."""
        ends = spent.sum(axis=2)[:, 0].cumsum()
        sums = spent.cumsum(axis=0)
        shown = 0
        for now in np.arange(interval, ends[-1] + interval, interval):
            step = int(np.searchsorted(ends, now))
            if step <= shown:
                continue
            shown = step
            yield (
                float(now),
                [
                    Beat(1, rank, step, "training", float(now), parts=tuple(sums[step - 1, rank]))
                    for rank in range(self.ranks)
                ],
            )


# -- culprits -----------------------------------------------------------------------------------


def cpu_hog(job: Job, spent: Seconds) -> None:
    """Another process takes cores: all parts take longer, and unevenly."""
    factor = 1 + job.rng.uniform(0.15, 0.6) * job.rng.lognormal(-0.05, 0.3, (job.steps, 1))
    spent[job.onset :, job.culprit] *= factor[job.onset :]


def slow_disk(job: Job, spent: Seconds) -> None:
    """Reads take long, now and then very long."""
    late = job.rng.uniform(0.1, 0.4) * job.rng.lognormal(-0.3, 0.8, job.steps)
    spent[job.onset :, job.culprit, DATA] += job.step_seconds * late[job.onset :]


def slow_loader(job: Job, spent: Seconds) -> None:
    """The loader keeps up for some batches, and then does not."""
    every = int(job.rng.integers(2, 9))
    stall = job.step_seconds * every * job.rng.uniform(0.12, 0.4)
    spent[job.onset :: every, job.culprit, DATA] += stall


def slow_rank(job: Job, spent: Seconds) -> None:
    """A device with a low clock: forward and backward take longer."""
    parts = slice(FORWARD, OPTIMIZER)
    spent[job.onset :, job.culprit, parts] *= 1 + job.rng.uniform(0.12, 0.5)


def slow_node(job: Job, spent: Seconds) -> None:
    """All ranks of a node are slow."""
    spent[job.onset :, job.on_node, FORWARD:WAIT] *= 1 + job.rng.uniform(0.12, 0.5)


def slow_optimizer(job: Job, spent: Seconds) -> None:
    """Memory in short supply: the offloaded optimizer takes longer."""
    spent[job.onset :, job.culprit, OPTIMIZER] *= 1 + job.rng.uniform(1.0, 3.0)


# -- healthy, but awkward -----------------------------------------------------------------------


def heavy_tails(job: Job, spent: Seconds) -> None:
    """Any step of any rank may be long."""
    spent *= 1 + 0.15 * np.minimum(job.rng.pareto(1.5, spent.shape), 20)


def gc_pauses(job: Job, spent: Seconds) -> None:
    """Garbage collection: rare, long, on any rank."""
    hit = job.rng.random((job.steps, job.ranks)) < 0.01
    spent[..., OTHER] += hit * job.step_seconds * job.rng.uniform(0.1, 2.0, hit.shape)


def evaluation(job: Job, spent: Seconds) -> None:
    """Rank 0 evaluates now and then and says so; the others wait."""
    spent[50::50, 0, PAUSED] += 20 * job.step_seconds


def silent_evaluation(job: Job, spent: Seconds) -> None:
    """Rank 0 evaluates now and then and does not say so."""
    spent[60::100, 0, OTHER] += 15 * job.step_seconds


def checkpoints(job: Job, spent: Seconds) -> None:
    """All save, some longer than others."""
    spent[25::25, :, PAUSED] += job.rng.uniform(1, 4, (len(spent[25::25]), job.ranks))


def sorted_lengths(job: Job, spent: Seconds) -> None:
    """Sequences get longer over the epoch, and those of the ranks differ at each step."""
    ramp = np.linspace(0.5, 2.0, job.steps)[:, None, None]
    spent[..., FORWARD:OPTIMIZER] *= ramp * job.rng.uniform(0.9, 1.1, (job.steps, job.ranks, 1))


def moving_experts(job: Job, spent: Seconds) -> None:
    """The busiest expert is on one rank for a while, and then on another."""
    step = 0
    while step < job.steps:
        lasts = int(job.rng.integers(5, 64))
        hot = int(job.rng.integers(job.ranks))
        spent[step : step + lasts, hot, FORWARD:OPTIMIZER] *= job.rng.uniform(1.1, 1.6)
        step += lasts


def compilation(job: Job, spent: Seconds) -> None:
    """The first steps compile, on one rank longest; a new shape compiles again on all."""
    spent[:15, :, FORWARD] += 5 * job.step_seconds
    spent[:15, job.culprit, FORWARD] += 30 * job.step_seconds
    spent[200, :, FORWARD] += 20 * job.step_seconds


def busy_first_rank(job: Job, spent: Seconds) -> None:
    """Rank 0 logs and prints: some percent more than the others."""
    spent[:, 0, OTHER] += 0.03 * job.step_seconds


def passing_hog(job: Job, spent: Seconds) -> None:
    """A backup takes cores of one node for a minute, and ends."""
    spent[200:280, job.culprit, FORWARD:WAIT] *= 1.5


CULPRITS: Mapping[str, tuple[Change, str]] = {
    "CPU hog": (cpu_hog, ""),
    "slow disk": (slow_disk, "data"),
    "slow loader": (slow_loader, "data"),
    "slow rank": (slow_rank, "backward"),
    "slow node": (slow_node, "backward"),
    "slow optimizer": (slow_optimizer, "optimizer"),
}
"""The provoked causes, each with the part that must be named; empty: any."""
HEALTHY: Mapping[str, Change] = {
    each.__name__.replace("_", " "): each
    for each in (
        heavy_tails,
        gc_pauses,
        evaluation,
        silent_evaluation,
        checkpoints,
        sorted_lengths,
        moving_experts,
        compilation,
        busy_first_rank,
        passing_hog,
    )
}

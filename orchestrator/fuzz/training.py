"""Training as it really goes: ranks that step together, hang together, and die one by one.

The control plane never sees any of this: it hears what agents report of it, late or not at all. So
what really happens can be held against what it believes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from typing import Any, Protocol

from babysit.wire import Phase, Tier
from jobs.commands import RestoreCandidate, StartAttempt
from jobs.events import (
    Event,
    RankExited,
    RankReady,
    RankRestored,
    RankSamples,
    RejectedCheckpoint,
    SaveFailed,
    ShardWritten,
)
from jobs.shards import ShardReport
from jobs.spec import RunSpec
from monitors.failures import Failure, FailureClass
from orchestrator.fuzz.environment import Environment
from orchestrator.fuzz.event_loop import WORLD, ProcessClock, rest
from orchestrator.fuzz.storage import Shard, path_of, report_of

_NO_ROOM = "[Errno 28] No space left on device"
_RENDEZVOUS_SECONDS = 60.0
_COLLECTIVE_SECONDS = 40.0
"""Ranks whose peer is gone give up after this time, as NCCL's watchdog does after 600 s."""
_KILLED = Failure(
    failure_class=FailureClass.CASCADE, reason="killed with its gang", signature="killed by agent"
)


@dataclasses.dataclass(slots=True)
class Job:
    """The true training job behind a run, the same for every attempt.

    Attributes:
        bad: Batches that spoil the loss every time they are drawn, until they are skipped.
        glitches: Steps to come that are spoilt once.
        failing: Saves to come that fail.
        bug: The step at which the user's code fails, and how often it will.
    """

    run: str
    steps: int
    step_seconds: float
    bad: dict[int, float] = dataclasses.field(default_factory=dict)
    glitches: list[float] = dataclasses.field(default_factory=list)
    failing: int = 0
    split: int = 0
    """Restores to come in which one rank loads another checkpoint than the others."""
    bug: tuple[int, int] = (0, 0)


class Host(Protocol):
    """The agent on whose node ranks run, as they see it.

    Attributes:
        share: The ranks that are alive on the node; None: none.
        memory: Shards in the node's memory, by attempt, step and rank. They outlive ranks.
    """

    worker: str
    node: str
    spec: RunSpec
    clock: ProcessClock
    rng: random.Random
    share: Share | None
    memory: dict[tuple[int, int, int], ShardReport]

    def say(self, attempt: int, kind: type[Event], **fields: Any) -> None:
        """Report an event, after the samples before it."""

    def sampled(self, attempt: int, samples: RankSamples) -> None:
        """A rank ended a step."""


class Share:
    """The ranks of one attempt on one node.

    Attributes:
        alive: True if they live.
        leaving: True if they were asked to save and go.
    """

    def __init__(self, agent: Host, gang: Gang, ranks: tuple[int, ...]) -> None:
        self.agent, self.gang, self.ranks = agent, gang, ranks
        self.attempt = gang.attempt
        self.alive, self.leaving = True, False
        self.step, self.phase = 0, Phase.STARTING
        self.beat = agent.clock.now().timestamp()
        self._dead = asyncio.Event()
        self._saving: list[asyncio.Event] = []

    def moved(self, phase: Phase, step: int | None = None) -> None:
        """The ranks show progress: their heartbeat moves."""
        self.phase, self.beat = phase, self.agent.clock.now().timestamp()
        self.step = self.step if step is None else step

    async def come_up(self) -> None:
        """Imports, then the rendezvous."""
        for rank in self.ranks:
            await self.agent.clock.sleep(self.agent.rng.uniform(0.05, 1.0))
            if not self.alive:
                return
            self.moved(Phase.RESTORING)
            self.agent.say(self.attempt, RankReady, rank=rank)
        self.gang.arrived(self)
        await self.agent.clock.sleep(_RENDEZVOUS_SECONDS)
        if self.alive and not self.gang.whole:
            self.fail(_failure(FailureClass.RENDEZVOUS, "the gang never became whole"))

    def fail(self, failure: Failure, rank: int | None = None) -> None:
        """A rank dies; its agent kills the others here, and says so."""
        if not self.alive:
            return
        first = self.ranks[0] if rank is None else rank
        for each in sorted(self.ranks, key=lambda r: r != first):
            why = failure if each == first else _KILLED
            self._exited(each, -9 if why is _KILLED else 1, why)
        self.die()

    def die(self) -> None:
        """No process of it is left, not even one that saves."""
        self.alive = self.leaving = False
        self._dead.set()
        if self.agent.share is self:
            self.agent.share = None
        self.gang.lost(self)

    async def leave(self, grace: float) -> None:
        """Let the ranks save and exit, for `grace` seconds at most; half of all are killed then."""
        if grace > 0 and self.alive:
            self.leaving = True
            goes = asyncio.ensure_future(self._dead.wait())
            limit = asyncio.ensure_future(self.agent.clock.sleep(grace))
            await asyncio.wait((goes, limit), return_when=asyncio.FIRST_COMPLETED)
            goes.cancel()
            limit.cancel()
        await self.agent.clock.sleep(self.agent.rng.uniform(0.01, 0.5))
        if self.alive and self.agent.rng.random() < 0.5:
            for rank in self.ranks:
                self._exited(rank, -9, _KILLED)

    async def finish(self, *, well: bool) -> None:
        """The script ends: after its last step (`well`), or as it was asked to."""
        self.moved(Phase.FINISHED)
        for saved in tuple(self._saving):
            await saved.wait()  # a rank that ends in order ends its saves first
        for rank in self.ranks:
            await self.agent.clock.sleep(self.agent.rng.uniform(0.01, 1.0))
            if not self.alive:
                return
            self._exited(rank, 0, None)
        self.alive = False
        self._dead.set()
        if self.agent.share is self:
            self.agent.share = None
        if not well:
            self.gang.lost(self)

    def _exited(self, rank: int, code: int, failure: Failure | None) -> None:
        fields = {"rank": rank, "code": code, "failure": failure, "last_step": self.step}
        self.agent.say(self.attempt, RankExited, **fields)

    def save(self, rank: int, step: int, batch: int) -> None:
        """Begin a save in the background: hashed, then renamed, then reported."""
        saved = asyncio.Event()
        self._saving.append(saved)
        self.gang.loop.spawn(self.agent.worker, self._save(rank, step, batch, saved))

    async def _save(self, rank: int, step: int, batch: int, saved: asyncio.Event) -> None:
        await self.agent.clock.sleep(self.agent.rng.uniform(0.05, 2.5))
        self._saving.remove(saved)
        saved.set()
        if not self.alive:
            return
        shard = Shard(self.attempt, step, self.gang.world_size, batch)
        path = path_of(self.gang.job.run, step)
        if not self.gang.storage.write(path, rank, shard):
            fields = {"rank": rank, "step": step, "tier": Tier.DIRECTORY, "full": True}
            self.agent.say(self.attempt, SaveFailed, error=_NO_ROOM, **fields)
            return
        report = report_of(shard, rank, Tier.DIRECTORY, path)
        self.agent.say(self.attempt, ShardWritten, shard=report)

    def remember(self, step: int, batch: int) -> None:
        """Save to the node's memory, where the newest three steps stay."""
        memory = self.agent.memory
        for rank in self.ranks:
            shard = Shard(self.attempt, step, self.gang.world_size, batch)
            report = report_of(shard, rank, Tier.MEMORY, "/memory")
            memory[self.attempt, step, rank] = report
        kept = sorted({key[:2] for key in memory})[-3:]
        for key in [key for key in memory if key[:2] not in kept]:
            del memory[key]


class Gang:
    """All ranks of one attempt, which step in lockstep as collectives make them.

    Attributes:
        hung: True if a collective never comes back.
        whole: True if all ranks have met.
        broken: True if some ranks are gone, so that no collective will ever end.
    """

    def __init__(self, environment: Environment, job: Job, command: StartAttempt) -> None:
        self.job, self.attempt = job, command.attempt
        self.loop, self.storage = environment.loop, environment.storage
        self.world_size = command.world_size
        self.hung = self.whole = self.broken = False
        self.shares: list[Share] = []
        self._restore, self._skip = command.restore, command.skip_batches
        self._rng = environment.random(f"gang {job.run} {command.attempt}")
        self._arrived = 0

    def arrived(self, share: Share) -> None:
        """The ranks of a node wait for the others."""
        self._arrived += len(share.ranks)
        if self._arrived == self.world_size:
            self.whole = True
            self.loop.spawn(WORLD, self._train())

    def lost(self, share: Share) -> None:
        """Some ranks are gone: the others wait for them in a collective, until that gives up."""
        if not self.broken:
            self.broken = True
            self.loop.spawn(WORLD, self._give_up())
        _ = share

    async def _give_up(self) -> None:
        await rest(self.loop, _COLLECTIVE_SECONDS)
        for share in self.shares:
            share.fail(_failure(FailureClass.COLLECTIVE_TIMEOUT, "the peer does not answer"))

    @property
    def _stuck(self) -> bool:
        return self.broken or self.hung

    async def _train(self) -> None:
        await rest(self.loop, self._rng.uniform(0.1, 1.5))
        step, batch = self._load()
        while step < self.job.steps:
            await rest(self.loop, self.job.step_seconds * self._rng.uniform(0.9, 1.1))
            if self._stuck:
                return
            step, batch = step + 1, self._draw(batch)
            if step == self.job.bug[0] and self.job.bug[1] > 0:
                self._fail_by_bug()
                return
            self._step(step, batch)
            if any(share.leaving for share in self.shares):
                self._let_go(step, batch)
        for share in self.shares:
            self.loop.spawn(share.agent.worker, share.finish(well=True))

    def _draw(self, batch: int) -> int:
        """The next batch that is not quarantined."""
        batch += 1
        for first, last in self._skip:
            if first <= batch <= last:
                batch = last + 1
        return batch

    def _fail_by_bug(self) -> None:
        self.job.bug = (self.job.bug[0], self.job.bug[1] - 1)
        failure = _failure(FailureClass.USER_CODE, "ValueError: a bug in the script")
        self._rng.choice(self.shares).fail(failure)

    def _let_go(self, step: int, batch: int) -> None:
        """Save and end the ranks that have orders to leave."""
        for share in self.shares:
            if share.leaving and share.alive:
                self._save(share, step, batch)
                self.loop.spawn(share.agent.worker, share.finish(well=False))

    # --- loading --------------------------------------------------------------------------------

    def _load(self) -> tuple[int, int]:
        """All ranks take the first candidate that is sound on all of them; its step and batch."""
        rejected: list[RejectedCheckpoint] = []
        chosen: RestoreCandidate | None = None
        for candidate in self._restore:
            why = self._refuses(candidate)
            if not why:
                chosen = candidate
                break
            rejected.append(RejectedCheckpoint(id=candidate.id, reason=why))
        step = chosen.step if chosen is not None else 0
        batch = self._batch_of(chosen)  # now: ranks that load drop what is newer in memory
        odd = self._rng.choice(self.shares) if self.job.split and step else None
        self.job.split -= odd is not None
        for share in self.shares:
            own = 0 if share is odd else step
            loaded = chosen.id if chosen is not None and own else ""
            self._restored(share, own, loaded, tuple(rejected))
        if odd is not None:
            self.hung = True  # its first collective never matches those of the others
        return step, batch

    def _restored(
        self, share: Share, step: int, loaded: str, rejected: tuple[RejectedCheckpoint, ...]
    ) -> None:
        memory = share.agent.memory
        for key in [key for key in memory if key[1] > step]:
            del memory[key]
        if not share.alive:
            return
        share.moved(Phase.TRAINING, step)
        fields = {"step": step, "checkpoint": loaded, "rejected": rejected, "seconds": 0.5}
        for rank in share.ranks:
            share.agent.say(self.attempt, RankRestored, rank=rank, **fields)

    def _refuses(self, candidate: RestoreCandidate) -> str:
        if candidate.tier != Tier.MEMORY:
            return self.storage.refuses(candidate)
        for share in self.shares:
            for rank in share.ranks:
                if (candidate.attempt, candidate.step, rank) not in share.agent.memory:
                    return f"rank {rank}: not in memory"
        return ""

    def _batch_of(self, chosen: RestoreCandidate | None) -> int:
        if chosen is None:
            return 0
        if chosen.tier == Tier.MEMORY:
            share = self.shares[0]
            key = (chosen.attempt, chosen.step, share.ranks[0])
            return int(share.agent.memory[key].batch)
        return self.storage.shards[chosen.path][0].batch

    # --- stepping -------------------------------------------------------------------------------

    def _step(self, step: int, batch: int) -> None:
        loss = 2.0 + 1.0 / step + self._rng.uniform(-0.02, 0.02)
        if batch in self.job.bad:
            loss = self.job.bad[batch]
        elif self.job.glitches:
            loss = self.job.glitches.pop(0)
        spec = self.shares[0].agent.spec.checkpoint
        for share in self.shares:
            share.moved(Phase.TRAINING, step)
            for rank in share.ranks:
                share.agent.sampled(self.attempt, self._sample(share, rank, (step, batch), loss))
            if spec.memory_every_steps and step % spec.memory_every_steps == 0:
                share.remember(step, batch)
            if step % spec.every_steps == 0:
                self._save(share, step, batch)
        if step % spec.every_steps == 0:
            self.job.failing = max(0, self.job.failing - 1)

    def _sample(self, share: Share, rank: int, at: tuple[int, int], loss: float) -> RankSamples:
        return RankSamples.model_construct(
            rank=rank,
            lost=0,
            step=[at[0]],
            batch=[at[1]],
            time=[share.agent.clock.now().timestamp()],
            loss=[loss],
            grad_norm=[1.0 if math.isfinite(loss) else loss],
            tokens=[8.0],
            seconds=[self.job.step_seconds],
            blocked_seconds=[0.01],
            learning_rate=[0.1],
        )

    def _save(self, share: Share, step: int, batch: int) -> None:
        for rank in share.ranks:
            if self.job.failing:
                fields = {"rank": rank, "step": step, "tier": Tier.DIRECTORY}
                share.agent.say(self.attempt, SaveFailed, error="No space left", **fields)
            else:
                share.save(rank, step, batch)


def _failure(kind: FailureClass, reason: str) -> Failure:
    return Failure(failure_class=kind, reason=reason, signature=reason)

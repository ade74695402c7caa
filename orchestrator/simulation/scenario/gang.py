"""One simulated attempt: its ranks come up, train, save, and stop, and its agents say so."""

from __future__ import annotations

import dataclasses
import math
from enum import StrEnum, auto
from functools import partial
from typing import Any

from babysit.wire import Tier
from jobs.commands import RestoreCandidate, StartAttempt, StopAttempt
from jobs.events import RankExited, Shards
from monitors.failures import Failure, FailureClass
from orchestrator.core.messages.events import RunCancelled, StepReached
from orchestrator.core.messages.gang_events import (
    GangFinished,
    GangReady,
    GangRestored,
    GangSaved,
    GangStacks,
    GangStarted,
    GangStopped,
)
from orchestrator.core.messages.instructions import BroadcastCommand
from orchestrator.simulation.scenario.model import Broken, Delay, SimulatedRun
from orchestrator.simulation.scenario.ranks import Ranks
from orchestrator.simulation.scenario.saves import STEADY_SECONDS, Saves, Surroundings
from orchestrator.simulation.scenario.training import Pace, Progress

_NEVER = 10**18
"""A step that no run reaches."""


class Phase(StrEnum):
    """What the ranks do."""

    COMING = auto()  # being started, starting, loading
    TRAINING = auto()
    STUCK = auto()  # no progress: hung, or some of them dead and the rest not yet killed
    LEAVING = auto()  # told to stop
    OVER = auto()


class Gang:
    """The ranks of one attempt."""

    def __init__(self, run: SimulatedRun, order: BroadcastCommand, around: Surroundings) -> None:
        command = order.command
        assert isinstance(command, StartAttempt)  # noqa: S101 (what begins a gang)
        self.run, self.id, self.number = run, str(order.run), command.attempt
        self.workers = order.workers
        self.ranks = Ranks(order, command.world_size, run.bytes_per_rank)
        self.phase = Phase.COMING
        self.loaded: RestoreCandidate | None = command.restore[0] if command.restore else None
        self.start_step = self.loaded.step if self.loaded else 0
        self.slow_seconds = 0.0
        """Lost so far to being slower than undisturbed."""
        self._around = around
        self._progress = Progress(Pace.of(run), math.inf, self.start_step)
        self._step = self._told = self.start_step
        self.saves = Saves(run, around, self.start_step)
        self._breaks_at = self._breaking_step()
        self._cancelled_at = max(run.cancel_after_steps or _NEVER, self.start_step + 1)
        self._blocked = 0.0
        self._saves_told_at = around.engine.now
        self._milestone = 0
        self._wakes = 0
        self._after(around.recovery.start, "start", self._started)

    # coming up

    def _started(self) -> None:
        if self.phase is Phase.COMING:
            self._tell(GangStarted, ranks=self.ranks.all)
            self._after(self._around.recovery.ready, "ready", self._ready)

    def _ready(self) -> None:
        if self.phase is Phase.COMING:
            self._tell(GangReady, ranks=self.ranks.all)
            recovery = self._around.recovery
            if self.loaded is None:
                self._around.engine.after(0.0, self._restored)
            elif self.loaded.tier == Tier.MEMORY:
                self._after(recovery.restore_memory, "restore", self._restored)
            else:
                slow = self._around.site.storage_slowdown
                self._after(recovery.restore, "restore", self._restored, times=slow)

    def _restored(self) -> None:
        if self.phase is not Phase.COMING:
            return
        checkpoint = self.loaded.id if self.loaded else ""
        self._tell(GangRestored, ranks=self.ranks.all, step=self.start_step, checkpoint=checkpoint)
        if self.phase is not Phase.COMING:
            return  # the core did not like it
        self.phase = Phase.TRAINING
        extra = self._around.chance.delay(self._around.recovery.first_step, "first step")
        self._progress = Progress(self._pace(), self._now + extra, self.start_step)
        if self._loads_badly():
            self._around.blame(self.id, Broken.BAD_CHECKPOINT.value.replace("_", " "))
            self.die(self.ranks.all[0], _died_after_load(), since=self._now)
        else:
            self.follow()

    def _loads_badly(self) -> bool:
        """Whether what was loaded is the last save before the step at which the run broke."""
        breaks, every = self.run.breaks, self.run.spec.checkpoint.every_steps
        if breaks is None or breaks.does is not Broken.BAD_CHECKPOINT or self.loaded is None:
            return False
        return self.start_step == breaks.at_step // every * every

    # training

    @property
    def step(self) -> int:
        """The last step that has ended."""
        if self.phase is Phase.TRAINING:
            self._step = max(self._step, self._progress.step(self._now))
        return self._step

    def _pace(self) -> Pace:
        """As the nodes and the storage allow now."""
        pace, site = Pace.of(self.run), self._around.site
        nodes = (site.agents[w].host.info.id for w in self.workers if w in site.agents)
        return dataclasses.replace(
            pace,
            step=pace.step * site.slowdown(nodes),
            save=pace.save * site.storage_slowdown,
        )

    def repace(self) -> None:
        """Nodes or the storage became slower, or well again."""
        if self.phase is Phase.TRAINING:
            self._close_books()
            self._progress = self._progress.changed(self._now, self._pace())
            self.follow()

    def _close_books(self) -> None:
        """Before the pace changes, or training ends: what it has cost so far."""
        pace, start = self._progress.pace, self._progress.start
        nominal = Pace.of(self.run).seconds(start, self.step)
        self._blocked += pace.blocked(start, self.step)
        self.slow_seconds += max(0.0, pace.seconds(start, self.step) - nominal)

    def follow(self) -> None:
        """Wake when the next thing worth telling happens."""
        if self.phase is not Phase.TRAINING:
            return
        attempt = self._around.engine.state.attempts[self.id]
        self._milestone = attempt.milestone
        known = max(attempt.milestone, self._told + 1)
        step = min(known, self.run.steps, self._breaks_at, self._cancelled_at)
        when = self._progress.at_end_of(step)
        if step == self._breaks_at:  # in the middle of it: that step never ends
            when -= self._progress.pace.seconds(step - 1, step) / 2
        self._wakes += 1
        self._around.engine.at(when, partial(self._wake, step, self._wakes))

    def heard(self, milestone: int) -> None:
        """The core wants to hear of another step."""
        if milestone != self._milestone:
            self.follow()

    def _breaking_step(self) -> int:
        """At which step the run's own fault shows; a bad checkpoint is written only once."""
        breaks = self.run.breaks
        if breaks is None or (breaks.does is Broken.BAD_CHECKPOINT and self.number > 1):
            return _NEVER
        return max(breaks.at_step, self.start_step + 1)

    def _wake(self, step: int, number: int) -> None:
        if number != self._wakes or self.phase is not Phase.TRAINING:
            return
        if self.run.breaks is not None and step == self._breaks_at:
            self._break(self.run.breaks.does)
            return
        self._step = max(self._step, step)
        if step >= self.run.steps:
            self._finish()
        elif step == self._cancelled_at:
            self._around.engine.tell(
                RunCancelled, run=self.id, reason="seen enough", actor="operator:owner"
            )
        else:
            self._tell_step(step)
            if self._now - self._saves_told_at >= STEADY_SECONDS:
                self.catch_up()
            self.follow()

    def _break(self, how: Broken) -> None:
        self._around.blame(self.id, how.value.replace("_", " "))
        if how is Broken.USER_ERROR:
            reason, signature = "ValueError: shapes do not match", "ValueError train.py"
            failure = Failure(
                failure_class=FailureClass.USER_CODE, reason=reason, signature=signature
            )
        else:
            failure = _died_after_load()
        self.die(self.ranks.all[0], failure, since=self._now)

    def _finish(self) -> None:
        self.catch_up()
        self._end_training(Phase.OVER)
        self._tell(GangFinished, ranks=self.ranks.all, last_step=self._step)

    def _tell_step(self, step: int) -> None:
        if step > self._told:
            self._told = step
            blocked = self._blocked + self._progress.pace.blocked(self._progress.start, step)
            self._around.engine.tell(
                StepReached,
                run=self.id,
                attempt=self.number,
                step=step,
                blocked_seconds=blocked,
                actor="controller",
            )

    def _end_training(self, phase: Phase) -> None:
        if self.phase is Phase.TRAINING:
            self._close_books()
        self.phase = phase

    # saving

    def catch_up(self) -> None:
        """Tell the core what it would have heard by now of steps and saves (`STEADY_SECONDS`)."""
        if self.phase is not Phase.TRAINING:
            return
        self._tell_step(self.step)
        self._saves_told_at = self._now
        if self.run.spec.checkpoint.directory is None:
            return
        for step, written in self.saves.worth_telling(self.step, self._now, self._progress):
            self._save(step, written)

    def _save(self, step: int, done: float) -> None:
        path = f"{self.run.spec.checkpoint.directory}/step-{step:09d}"
        shards = self.ranks.shards(self.number, step, Tier.DIRECTORY, path)
        self._tell(GangSaved, since=done, shards=shards)

    # the end

    def die(self, rank: int, failure: Failure, *, since: float) -> None:
        """A rank dies; its agent kills its peers, and the others wait in vain."""
        self.stall()
        exited = partial(self._exited, rank, failure, since)
        self._after(self._around.recovery.exit_seen, "exit", exited)

    def _exited(self, rank: int, failure: Failure, since: float) -> None:
        if self.phase is not Phase.OVER:
            worker = self.ranks.worker_of(rank)
            self._around.engine.tell(
                RankExited,
                since=since,
                run=self.id,
                worker=worker,
                attempt=self.number,
                rank=rank,
                code=1,
                failure=failure,
                last_step=self._step,
                actor=f"worker:{worker}",
            )

    def stall(self) -> None:
        """No rank makes progress any more."""
        self.catch_up()
        if self.phase in {Phase.COMING, Phase.TRAINING}:
            self._end_training(Phase.STUCK)

    def stop(self, order: BroadcastCommand) -> None:
        """The ranks are told to leave; they save first if they are given the time, and train."""
        command = order.command
        assert isinstance(command, StopAttempt)  # noqa: S101 (what ends a gang)
        if self.phase in {Phase.LEAVING, Phase.OVER}:
            return
        self.catch_up()
        saving = self._leaving_save(command.grace_seconds)
        self._end_training(Phase.LEAVING)
        stopping = self._around.chance.delay(self._around.recovery.stop, "stop")
        self._around.engine.after(saving + stopping, partial(self._stopped, saves=saving > 0))

    def _leaving_save(self, grace: float) -> float:
        """Seconds a last save takes; 0: there is no time, or nothing to save."""
        if self.phase is not Phase.TRAINING or self.run.spec.checkpoint.directory is None:
            return 0.0
        seconds = self.run.save_seconds + self.saves.write_seconds()
        return seconds if seconds <= grace and self.step > self.saves.told else 0.0

    def _stopped(self, *, saves: bool) -> None:
        """What can be reached says that it is empty; the rest is said to be gone, or comes back."""
        self.phase = Phase.OVER
        if saves:
            self.saves.add(self._step, self._now)
            self._save(self._step, self._now)
        self.confirm_stop()

    def confirm_stop(self) -> None:
        """Agents in reach say that no process of the attempt is left."""
        there = tuple(w for w in self.workers if self._around.site.there(w))
        if self.phase is Phase.OVER and there:
            whole = len(there) == len(self.workers)
            self._around.engine.tell(
                GangStopped,
                run=self.id,
                attempt=self.number,
                workers=there,
                memory=self._memory() if whole else (),
                last_step=self._step,
            )

    def _memory(self) -> tuple[Shards, ...]:
        """The memory checkpoint that survived: the newest, or the one that was loaded."""
        every = self.run.spec.checkpoint.memory_every_steps
        step = self._step // every * every if every else 0
        if step > self.start_step:
            return (self.ranks.shards(self.number, step, Tier.MEMORY),)
        if self.loaded is not None and self.loaded.tier == Tier.MEMORY:
            return (self.ranks.shards(self.loaded.attempt, self.start_step, Tier.MEMORY),)
        return ()

    def capture_stacks(self) -> None:
        """All are asked what they do; one of them is where the others are not."""
        tell = partial(self._tell, GangStacks, stacks=self.ranks.stacks())
        self._after(self._around.recovery.stacks, "stacks", tell)

    # small things

    @property
    def _now(self) -> float:
        return self._around.engine.now

    def _after(self, delay: Delay, concern: str, action: Any, times: float = 1.0) -> None:
        self._around.engine.after(self._around.chance.delay(delay, concern) * times, action)

    def _tell(self, kind: Any, since: float | None = None, **fields: Any) -> None:
        self._around.engine.tell(
            kind, since=since, run=self.id, attempt=self.number, workers=self.workers, **fields
        )


def _died_after_load() -> Failure:
    return Failure(
        failure_class=FailureClass.UNKNOWN, reason="exit code 3", signature="exit 3 train.py"
    )

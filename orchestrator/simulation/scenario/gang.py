"""One simulated attempt: its ranks start, train, save and stop, and its agents report it.

Steps are not simulated one by one: between two disturbances, progress is a linear function of time
(:mod:`.training`), and the gang wakes only at steps that matter to the core.
"""

from __future__ import annotations

import dataclasses
import math
from enum import StrEnum, auto
from functools import partial
from typing import Any

from babysit.wire import Tier
from jobs.commands import RestoreCandidate, StartAttempt, StopAttempt
from jobs.events import RankExited
from jobs.shards import Shards
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
    """The activity of the ranks."""

    STARTING = auto()  # launching, initialising, loading
    TRAINING = auto()
    STUCK = auto()  # no progress: hung, or some of them dead and the rest not yet killed
    STOPPING = auto()  # ordered to stop
    OVER = auto()


class Gang:
    """The ranks of one attempt."""

    def __init__(self, run: SimulatedRun, order: BroadcastCommand, around: Surroundings) -> None:
        command = order.command
        assert isinstance(command, StartAttempt)  # noqa: S101 (what begins a gang)
        self.run, self.id, self.number = run, str(order.run), command.attempt
        self.workers = order.workers
        self.ranks = Ranks(order, command.world_size, run.bytes_per_rank)
        self.phase = Phase.STARTING
        self.loaded: RestoreCandidate | None = command.restore[0] if command.restore else None
        self.start_step = self.loaded.step if self.loaded else 0
        self.slow_seconds = 0.0
        """Seconds lost so far to a pace below the undisturbed one."""
        self._around = around
        self._progress = Progress(Pace.of(run), math.inf, self.start_step)
        self._step = self._reported = self.start_step
        self.saves = Saves(run, around, self.start_step)
        self._breaks_at = self._breaking_step()
        self._cancelled_at = max(run.cancel_after_steps or _NEVER, self.start_step + 1)
        self._blocked = 0.0
        self._saves_reported_at = around.engine.now
        self._milestone = 0
        self._wakes = 0
        self._after(around.recovery.start, "start", self._started)

    # starting

    def _started(self) -> None:
        if self.phase is Phase.STARTING:
            self._tell(GangStarted, ranks=self.ranks.all)
            self._after(self._around.recovery.ready, "ready", self._ready)

    def _ready(self) -> None:
        if self.phase is Phase.STARTING:
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
        if self.phase is not Phase.STARTING:
            return
        checkpoint = self.loaded.id if self.loaded else ""
        self._tell(GangRestored, ranks=self.ranks.all, step=self.start_step, checkpoint=checkpoint)
        if self.phase is not Phase.STARTING:
            return  # the core rejected the restore
        self.phase = Phase.TRAINING
        extra = self._around.chance.delay(self._around.recovery.first_step, "first step")
        self._progress = Progress(self._pace(), self._now + extra, self.start_step)
        if self._loads_badly():
            self._around.blame(self.id, Broken.BAD_CHECKPOINT.value.replace("_", " "))
            self.die(self.ranks.all[0], _died_after_load(), since=self._now)
        else:
            self.follow()

    def _loads_badly(self) -> bool:
        """True if the loaded checkpoint is the last save before the step of the run's fault."""
        breaks, every = self.run.breaks, self.run.spec.checkpoint.every_steps
        if breaks is None or breaks.does is not Broken.BAD_CHECKPOINT or self.loaded is None:
            return False
        return self.start_step == breaks.at_step // every * every

    # training

    @property
    def step(self) -> int:
        """The last completed step."""
        if self.phase is Phase.TRAINING:
            self._step = max(self._step, self._progress.step(self._now))
        return self._step

    def _pace(self) -> Pace:
        """The current pace, slowed by nodes and storage."""
        pace, site = Pace.of(self.run), self._around.site
        nodes = (site.agents[w].host.info.id for w in self.workers if w in site.agents)
        return dataclasses.replace(
            pace,
            step=pace.step * site.slowdown(nodes),
            save=pace.save * site.storage_slowdown,
        )

    def repace(self) -> None:
        """Adopt the current pace after a change of nodes or storage."""
        if self.phase is Phase.TRAINING:
            self._close_books()
            self._progress = self._progress.changed(self._now, self._pace())
            self.follow()

    def _close_books(self) -> None:
        """Add up the cost of the current pace before it changes or training ends."""
        pace, start = self._progress.pace, self._progress.start
        nominal = Pace.of(self.run).seconds(start, self.step)
        self._blocked += pace.blocked(start, self.step)
        self.slow_seconds += max(0.0, pace.seconds(start, self.step) - nominal)

    def follow(self) -> None:
        """Schedule the wake-up for the next step that matters to the core."""
        if self.phase is not Phase.TRAINING:
            return
        attempt = self._around.engine.state.attempts[self.id]
        self._milestone = attempt.milestone
        reportable = max(attempt.milestone, self._reported + 1)
        step = min(reportable, self.run.steps, self._breaks_at, self._cancelled_at)
        when = self._progress.at_end_of(step)
        if step == self._breaks_at:  # the fault shows in the middle of the step, which never ends
            when -= self._progress.pace.seconds(step - 1, step) / 2
        self._wakes += 1
        self._around.engine.at(when, partial(self._wake, step, self._wakes))

    def heard(self, milestone: int) -> None:
        """Adopt a new milestone of the core."""
        if milestone != self._milestone:
            self.follow()

    def _breaking_step(self) -> int:
        """The step at which the run's own fault shows; a bad checkpoint is written only once."""
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
            if self._now - self._saves_reported_at >= STEADY_SECONDS:
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
        if step > self._reported:
            self._reported = step
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
        """Report the steps and saves that the core would know by now (see `STEADY_SECONDS`)."""
        if self.phase is not Phase.TRAINING:
            return
        self._tell_step(self.step)
        self._saves_reported_at = self._now
        if self.run.spec.checkpoint.directory is None:
            return
        for step, written in self.saves.reportable(self.step, self._now, self._progress):
            self._save(step, written)

    def _save(self, step: int, done: float) -> None:
        path = f"{self.run.spec.checkpoint.directory}/step-{step:09d}"
        shards = self.ranks.shards(self.number, step, Tier.DIRECTORY, path)
        self._tell(GangSaved, since=done, shards=shards)

    # stopping

    def die(self, rank: int, failure: Failure, *, since: float) -> None:
        """Kill a rank: its agent kills the peers on its node, and the other nodes wait in vain."""
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
        """Stop the progress of all ranks."""
        self.catch_up()
        if self.phase in {Phase.STARTING, Phase.TRAINING}:
            self._end_training(Phase.STUCK)

    def stop(self, order: BroadcastCommand) -> None:
        """Stop the ranks; they save first if they train and the grace period suffices."""
        command = order.command
        assert isinstance(command, StopAttempt)  # noqa: S101 (what ends a gang)
        if self.phase in {Phase.STOPPING, Phase.OVER}:
            return
        self.catch_up()
        saving = self._leaving_save(command.grace_seconds)
        self._end_training(Phase.STOPPING)
        stopping = self._around.chance.delay(self._around.recovery.stop, "stop")
        self._around.engine.after(saving + stopping, partial(self._stopped, saves=saving > 0))

    def _leaving_save(self, grace: float) -> float:
        """Seconds that a last save takes; 0: no time for it, or nothing to save."""
        if self.phase is not Phase.TRAINING or self.run.spec.checkpoint.directory is None:
            return 0.0
        seconds = self.run.save_seconds + self.saves.write_seconds()
        return seconds if seconds <= grace and self.step > self.saves.reported else 0.0

    def _stopped(self, *, saves: bool) -> None:
        """Report the stop for reachable agents; others report on return, or are declared lost."""
        self.phase = Phase.OVER
        if saves:
            self.saves.add(self._step, self._now)
            self._save(self._step, self._now)
        self.confirm_stop()

    def confirm_stop(self) -> None:
        """Report from every reachable agent that no process of the attempt is left."""
        reachable = tuple(w for w in self.workers if self._around.site.reaches(w))
        if self.phase is Phase.OVER and reachable:
            whole = len(reachable) == len(self.workers)
            self._around.engine.tell(
                GangStopped,
                run=self.id,
                attempt=self.number,
                workers=reachable,
                memory=self._memory() if whole else (),
                last_step=self._step,
            )

    def _memory(self) -> tuple[Shards, ...]:
        """The surviving memory checkpoint: the newest, or the loaded one; empty: none."""
        every = self.run.spec.checkpoint.memory_every_steps
        step = self._step // every * every if every else 0
        if step > self.start_step:
            return (self.ranks.shards(self.number, step, Tier.MEMORY),)
        if self.loaded is not None and self.loaded.tier == Tier.MEMORY:
            return (self.ranks.shards(self.loaded.attempt, self.start_step, Tier.MEMORY),)
        return ()

    def capture_stacks(self) -> None:
        """Report the stacks of some ranks; one of them differs from the others."""
        tell = partial(self._tell, GangStacks, stacks=self.ranks.stacks())
        self._after(self._around.recovery.stacks, "stacks", tell)

    # helpers

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

"""Training progress as a function of time, without simulating single steps."""

from __future__ import annotations

import dataclasses

from orchestrator.simulation.scenario.model import SimulatedRun


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The cost of one step and one save, in seconds."""

    step: float
    every: int
    """Steps between saves to the directory."""
    save: float
    """Seconds for which such a save blocks training."""
    memory_every: int
    """Steps between saves to memory; 0: never."""
    memory_save: float

    @classmethod
    def of(cls, run: SimulatedRun) -> Pace:
        """The undisturbed pace of a run."""
        checkpoint = run.spec.checkpoint
        return cls(
            step=run.step_seconds,
            every=checkpoint.every_steps,
            save=run.save_seconds,
            memory_every=checkpoint.memory_every_steps,
            memory_save=run.memory_save_seconds,
        )

    def blocked(self, start: int, step: int) -> float:
        """Seconds for which saves block training between the ends of step `start` and of `step`."""
        saves = step // self.every - start // self.every
        blocked = saves * self.save
        if self.memory_every:
            more = step // self.memory_every - start // self.memory_every
            blocked += more * self.memory_save
        return blocked

    def seconds(self, start: int, step: int) -> float:
        """Seconds from the end of step `start` to the end of `step`, saves included."""
        return (step - start) * self.step + self.blocked(start, step)

    def mean(self) -> float:
        """Mean seconds per step, saves included."""
        memory = self.memory_save / self.memory_every if self.memory_every else 0.0
        return self.step + self.save / self.every + memory


@dataclasses.dataclass(slots=True)
class Progress:
    """One period of training at a constant pace."""

    pace: Pace
    began: float
    """Second of the scenario at which step `start` would have ended at this pace."""
    start: int

    def at_end_of(self, step: int) -> float:
        """Second at which a step of this period ends, its saves included."""
        return self.began + self.pace.seconds(self.start, step)

    def step(self, now: float) -> int:
        """The last completed step at second `now`."""
        elapsed = max(0.0, now - self.began)
        step = self.start + int(elapsed / self.pace.mean())
        while step > self.start and self.pace.seconds(self.start, step) > elapsed:
            step -= 1
        while self.pace.seconds(self.start, step + 1) <= elapsed:
            step += 1
        return step

    def changed(self, now: float, pace: Pace) -> Progress:
        """The continuation at another pace; the finished part of the current step is kept."""
        step = self.step(now)
        done = (now - self.at_end_of(step)) / max(1e-9, self.pace.seconds(step, step + 1))
        return Progress(pace, now - done * pace.seconds(step, step + 1), step)

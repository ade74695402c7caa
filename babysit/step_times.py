"""The parts of a rank's time: data, forward, backward, optimizer, waiting for others.

The problem: in lockstep all ranks have the same step time, so it names no slow one. What differs
is how long a rank works and how long it waits for the others.

The design: a rank is in one part at a time, and each change of the part adds the time since the
change before. The sums are published at the end of a step, and the agent sends them with its
heartbeats: a rank that never reports is measured too, and a lost heartbeat loses nothing.

Limits: wall time of the thread that runs the loop. A GPU works on behind its host, and its time
counts in the part in which the host waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from babysit.numbers import said
from babysit.reporter import Reporter
from babysit.wire import Part, Phase

if TYPE_CHECKING:
    from babysit.watch import Watch

PARTS = tuple(Part)
_PLACE = {part: place for place, part in enumerate(PARTS)}
PART_OF = dict.fromkeys(Phase, Part.PAUSED) | {
    Phase.TRAINING: Part.OTHER,
    Phase.LOADING: Part.DATA,
}
"""The part that a phase belongs to."""
PART_NAMES = {
    "forward": Part.FORWARD,
    "backward": Part.BACKWARD,
    "optimizer": Part.OPTIMIZER,
    "communicate": Part.WAIT,
}
"""Names for `run.phase` that only divide the time of a step: for hangs, the rank still trains."""

PHASE_NAMES = {phase.value: phase for phase in Phase} | {
    "restore": Phase.RESTORING,
    "train": Phase.TRAINING,
    "checkpoint": Phase.CHECKPOINTING,
    "evaluate": Phase.EVALUATING,
}
"""Names for `run.phase` that stand for a phase."""


class Handle(Protocol):
    """As torch returns one for each hook."""

    def remove(self) -> object:
        """Take the hook off."""


class Hooks:
    """The hooks that one call of `run.watch` has put on a model and its optimizers."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def remove(self) -> None:
        """Take them off; a second call does nothing."""
        while self.handles:
            self.handles.pop().remove()


class StepTimes:
    """Sums up the seconds of each part. A call takes well below a microsecond."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._sums = [0.0] * len(PARTS)
        self._published = 0
        """The last step whose times are published."""
        self.part = Part.PAUSED
        """The part that the rank is in."""
        self._watch: Watch | None = None

    def enter(self, part: Part) -> None:
        """The rank is in another part from now on."""
        now = self._clock()
        self._sums[_PLACE[self.part]] += now - self._since
        self._since = now
        self.part = part

    def watch(self, warn: Callable[[str], None]) -> Watch | None:
        """The hooks that enter the parts, the same for every call; None: this torch has none."""
        if self._watch is None:
            try:
                from babysit.watch import Watch  # noqa: PLC0415  # imports torch

                self._watch = Watch(self, warn)
            except (ImportError, AttributeError) as error:
                warn(f"run.watch measures nothing: {said(error)}")
        return self._watch

    def hooks(self, model: Any, optimizer: Any, warn: Callable[[str], None]) -> Hooks:
        """Put hooks on a model and its optimizers; see :mod:`babysit.watch`."""
        watch = self.watch(warn)
        return Hooks() if watch is None else watch.add(model, optimizer)

    def publish(self, step: int, reporter: Reporter) -> None:
        """Publish the seconds so far, if another step has ended since the last time."""
        if step != self._published:
            self._published = step
            self.enter(self.part)
            reporter.parts(self._sums)

"""The driver's side of an engine that starts and restarts its own processes: Ray Train, say.

The driver is the one rank that babysit knows. It writes the ring and the notes of that rank on
behalf of the engine's processes. What the engine does about failures is only told, never decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from babysit.integrations.relayed_steps import Part, RelayedSteps
from babysit.measures import Measures
from babysit.ring import Record
from babysit.run import Run
from babysit.wire import Note, Phase

HOLD_SECONDS = 2.0
"""Time for the first report of a step by a process, before the engine's own reports of metrics
count as steps: a loop may give both, and the engine's come later."""


class EngineRelay:
    """Tells babysit of the steps, checkpoints and failures of an engine's processes.

    Not thread-safe. `now` is seconds of a clock that never goes back, in every method.
    """

    def __init__(self, run: Run, engine: str) -> None:
        self._run = run
        self._reporter = run._reporter  # noqa: SLF001  # the rank's own, which a run shares
        self._measures = Measures(self._reporter)
        self._engine = engine
        self._steps = RelayedSteps()
        self._by_process = False
        """True once a process has reported a step itself."""
        self._held: list[tuple[float, Part]] = []
        self._phase = Phase.STARTING
        self._failed = False
        """True from a failure to the first step after it."""
        self._time = 0.0
        """Unix seconds of the last step."""
        self._saved: dict[int, str] = {}
        self._reporter.note(Note.ENGINE, engine=engine)
        self._enter(Phase.STARTING)

    @property
    def saved(self) -> Mapping[int, str]:
        """Paths of the checkpoints that are known to be there, by step."""
        return self._saved

    def step(self, part: Part, now: float, *, by_process: bool) -> None:
        """Take a report of a step, by a process itself or in the engine's metrics."""
        if not by_process:
            self._held.append((now, part))
            return
        self._by_process = True
        self._take(part, now)

    def tick(self, now: float, *, everything: bool = False) -> None:
        """Report the steps that are complete; with `everything`, all that were heard of."""
        due = [
            p for at, p in self._held if everything or self._by_process or now - at >= HOLD_SECONDS
        ]
        self._held = self._held[len(due) :]
        for part in due:
            if not self._by_process:
                self._take(part, now)
        for joined in self._steps.take(now, everything=everything):
            self._report(joined)

    def failed(self, failures: Sequence[Mapping[str, Any]], now: float) -> None:
        """Processes have failed; each failure as the note `engine_failed` has it."""
        self.tick(now, everything=True)
        self._failed = True
        step = self._steps.last
        self._reporter.note(
            Note.ENGINE_FAILED, engine=self._engine, step=step, failures=list(failures)
        )
        self._enter(Phase.RESTORING)

    def checkpoint(self, step: int | None, path: str, size: int, gone: Sequence[int]) -> None:
        """The engine has a checkpoint.

        Args:
            step: As the script counts it; None: the last step that was reported.
            path: Where it is.
            size: Bytes.
            gone: Keys of `saved` that the engine has deleted.
        """
        number = self._steps.last if step is None else self._steps.counted(step)
        for old in gone:
            self._saved.pop(old, None)
        self._saved[number] = path
        self._reporter.note(
            Note.ENGINE_SAVED,
            engine=self._engine,
            step=number,
            path=path,
            bytes=size,
            gone=[each for each in gone if each != number],
        )

    def _take(self, part: Part, now: float) -> None:
        is_new = self._steps.add(part, now)
        if self._failed:
            self._failed = False
            step = self._steps.counted(part.step)
            self._reporter.note(Note.ENGINE_RESUMED, engine=self._engine, step=step)
        if not is_new:
            self._enter(Phase.TRAINING)  # computing a step again is a sign of life

    def _report(self, joined: Part) -> None:
        self._phase = Phase.TRAINING
        seconds = max(0.0, joined.time - self._time) if self._time else 0.0
        self._time = joined.time
        self._run.step = joined.step
        record = Record(
            step=joined.step,
            batch=joined.step,
            time=joined.time,
            loss=joined.loss,
            grad_norm=-1.0 if joined.grad_norm is None else joined.grad_norm,
            tokens=joined.tokens or 0.0,
            seconds=seconds,
            blocked_seconds=0.0,
            learning_rate=-1.0 if joined.learning_rate is None else joined.learning_rate,
            metrics=self._measures.named(joined.metrics) if joined.metrics else (),
        )
        self._reporter.record(record, self._phase)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._reporter.progress(self._steps.last, self._steps.last, phase)

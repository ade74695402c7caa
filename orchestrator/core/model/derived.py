"""Facts that follow from one run and from what belongs to it, kept until one of these changes."""

from __future__ import annotations

from orchestrator.core.model.entities import Attempt, Run


class Derived:
    """One object of facts by run; the state drops it when it changes the run or what belongs to it.

    The facts must follow from the run, its workers, its newest attempt and its checkpoints alone:
    nothing tells of other changes, nor of the time.
    """

    def __init__(self) -> None:
        self._facts: dict[str, object] = {}

    def of(self, run: str) -> object | None:
        """The facts of a run; None: none are kept."""
        return self._facts.get(run)

    def keep(self, run: str, facts: object) -> None:
        """Keep the facts of a run."""
        self._facts[run] = facts

    def drop(self, run: str) -> None:
        """Forget the facts of a run."""
        self._facts.pop(run, None)

    def clear(self) -> None:
        """Forget all facts; they are found anew when somebody asks."""
        self._facts.clear()


def is_reporting(run: Run) -> bool:
    """True if steps of the run are known: its script reports them, or its output shows them."""
    return run.instrumented or run.best_step > 0


def knows_its_past(run: Run, attempt: Attempt) -> bool:
    """True if it is known which step an attempt went on from: every rank has said what it loaded.

    A script that saves by itself says nothing: its first step shows it.
    """
    if not run.instrumented and run.spec.resumes_by_step:
        return attempt.step > 0 and attempt.first_step_at is not None
    return len(attempt.restored_ranks) >= attempt.world_size

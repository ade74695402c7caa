"""The scope that `run.phase(…)` returns."""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import TYPE_CHECKING, Self

from babysit.step_times import PART_NAMES, PHASE_NAMES
from babysit.wire import Part, Phase

if TYPE_CHECKING:
    from babysit.run import Run


@dataclasses.dataclass(frozen=True, slots=True)
class PhaseScope:
    """Restores the previous phase at the end of a `with` block."""

    run: Run
    before: Phase
    part: Part

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.run._enter(self.before, self.part)  # noqa: SLF001  # a part of Run


def begin(run: Run, name: str | Phase) -> PhaseScope:
    """Begin a phase, or a part of a step, of this name; an unknown one is logged."""
    scope = PhaseScope(run, run._phase, run._times.part)  # noqa: SLF001  # a part of Run
    phase, part = PHASE_NAMES.get(name), PART_NAMES.get(name)
    if phase is not None:
        run._enter(phase)  # noqa: SLF001
    elif part is not None:
        run._times.enter(part)  # noqa: SLF001
    else:
        known = ", ".join((*PHASE_NAMES, *PART_NAMES))
        run._reporter.warn(  # noqa: SLF001
            f"unknown phase {name!r}; expected one of {known}"
        )
    return scope

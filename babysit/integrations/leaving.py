"""The end of a process that is preempted."""

from __future__ import annotations

from typing import NoReturn

from babysit.run import Run
from babysit.wire import Note


def leave(run: Run) -> NoReturn:
    """Write what is being saved, and end the process with code 0.

    The rest of the script must not run on half a model: it would evaluate it, or publish it.
    """
    run.flush()
    run._reporter.note(Note.LEFT, step=run.step)  # noqa: SLF001  # a part of babysit
    run._reporter.warn(  # noqa: SLF001
        f"leaving after step {run.step}, as requested: the rest of the script is not run"
    )
    raise SystemExit(0)

"""Scripts without their lines of babysit, as `babysit run -- torchrun … SCRIPT` starts them.

The script prints its steps and losses, saves by itself, and takes `--resume CHECKPOINT`. Beside the
command, babysit gets `resume`, and `watch` for a format that is the script's own.
"""

from __future__ import annotations

import signal
from pathlib import Path

from benchmarks.support.harness import path
from benchmarks.support.trainer_rows import Row
from benchmarks.support.trainer_run import (
    RANKS,
    STEPS,
    TrainerRun,
    Verdict,
    took,
    unlike,
    until,
)
from orchestrator.cli.errors import UnreachableError
from orchestrator.cli.session import Session

COLUMNS = ("start", "kill recovered", "hang found", "loss seen", "resumed")
PRINTED = 0.0051
"""Greatest difference of a loss that babysit has read: Lightning prints three digits."""
STEPS_BETWEEN = 12


def judge(session: Session, row: Row, directory: Path) -> Verdict:
    """Run an unmodified script; a column that is not reached is false, and says why."""
    if row.missing:
        reason = f"not installed: {', '.join(row.missing)}"
        return Verdict(dict.fromkeys(COLUMNS, None), {"start": reason})
    verdict = Verdict(dict.fromkeys(COLUMNS, False))
    run = TrainerRun(session, directory / f"{row.name}-unmodified")
    try:
        run.start_unmodified(row)
        _tell(session, run, verdict)
    except (AssertionError, TimeoutError, OSError, UnreachableError) as error:
        verdict.stop(error)
    finally:
        run.end()
    return verdict


def _tell(session: Session, run: TrainerRun, verdict: Verdict) -> None:
    run.trained(1, STEPS_BETWEEN)
    until(lambda: run.shown["step"] > 0, "a step that babysit reads")
    until(
        lambda: session.patient.get(path("runs", run.id, "checkpoints")),
        "a checkpoint that babysit finds",
    )
    run.signal(1, 1, signal.SIGKILL)
    killed = run.recovered(1)
    verdict.say("kill recovered", unlike(killed, "signal"), took(killed))

    run.trained(2, STEPS_BETWEEN)
    run.signal(2, 1, signal.SIGSTOP)
    stopped = run.recovered(2)
    blamed = [] if stopped["rank"] == 1 else [f"rank {stopped['rank']} is blamed"]
    verdict.say("hang found", unlike(stopped, "hang") + blamed, took(stopped))

    run.hurry()
    shown = run.succeeded()
    wrongs = [] if shown["step"] == STEPS else [f"babysit saw {shown['step']} steps"]
    verdict.say("start", wrongs)
    told = [run.history(rank) for rank in range(RANKS)]
    lines = [len(each) for each in told]
    wrongs = [] if lines == [STEPS] * RANKS else [f"the ranks computed steps up to {lines}"]
    wrongs += [] if killed["resumed_step"] else ["from the beginning after the kill"]
    verdict.say("resumed", wrongs, f"from {killed['resumed_step']}, {stopped['resumed_step']}")
    seen, wrong = run.losses(PRINTED)
    wrongs = [f"{len(wrong)} losses differ, the first of step {wrong[0]}"] if wrong else []
    wrongs += [f"only {len(seen)} of {STEPS} losses"] if len(seen) < STEPS / 2 else []
    verdict.say("loss seen", wrongs, f"{len(seen)} of {STEPS}")

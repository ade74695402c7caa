"""Two runs of one trainer: one that is left alone, and one that meets every fault in turn.

The faults strike from outside: SIGKILL and SIGSTOP of a rank, a more urgent run that needs its
node, and a layer that computes wrongly until its process ends (`trainers/tiny.py`). What each rank
has trained on is then compared with the run that was left alone.
"""

from __future__ import annotations

import signal
from pathlib import Path

from benchmarks.support.harness import path
from benchmarks.support.trainer_rows import Row
from benchmarks.support.trainer_run import (
    RANKS,
    SAME_LOSS,
    STEPS,
    TrainerRun,
    Verdict,
    submit_once,
    took,
    unlike,
    until,
)
from orchestrator.cli.errors import UnreachableError
from orchestrator.cli.session import Session

COLUMNS = (
    "start",
    "kill recovered",
    "hang found",
    "loss seen",
    "data exact",
    "spike rolled back",
    "preempted",
    "lines changed",
)
STEPS_BETWEEN = 12
"""Steps of an attempt before the next fault."""
STEPS_BEFORE_SPIKE = 35
"""The loss monitor warms up, and a checkpoint becomes good."""


def judge(session: Session, row: Row, directory: Path) -> Verdict:
    """Run both runs of a trainer; a column that is not reached is false, and says why."""
    if row.missing:
        reason = f"not installed: {', '.join(row.missing)}"
        return Verdict(dict.fromkeys(COLUMNS, None), {"start": reason})
    verdict = Verdict(dict.fromkeys(COLUMNS, False))
    verdict.say(
        "lines changed",
        [f"{row.lines} lines, more than {row.most_lines}"] if row.lines > row.most_lines else [],
        f"{row.lines} lines",
    )
    calm = TrainerRun(session, directory / f"{row.name}-calm")
    hurt = TrainerRun(session, directory / f"{row.name}-hurt")
    try:
        calm.hurry()
        calm.start(row)
        _calm(calm, verdict)
        hurt.start(row)
        _hurt(session, hurt, calm, directory / f"{row.name}-urgent", verdict)
    except (AssertionError, TimeoutError, OSError, UnreachableError) as error:
        verdict.stop(error)
    finally:
        calm.end()
        hurt.end()
    return verdict


def _calm(run: TrainerRun, verdict: Verdict) -> None:
    """The run that is left alone: it starts, ends, and its losses are seen."""
    run.trained(1, 1)
    shown = run.succeeded()
    wrongs = [] if shown["step"] == STEPS else [f"babysit saw {shown['step']} steps"]
    wrongs += [f"{len(shown['restarts'])} restarts"] if shown["restarts"] else []
    verdict.say("start", wrongs)
    seen, wrong = run.losses(SAME_LOSS)
    wrongs = [f"{len(seen)} of {STEPS} losses"] if len(seen) < STEPS else []
    wrongs += [f"{len(wrong)} losses differ, the first of step {wrong[0]}"] if wrong else []
    verdict.say("loss seen", wrongs)


def _hurt(
    session: Session, run: TrainerRun, calm: TrainerRun, place: Path, verdict: Verdict
) -> None:
    """The run that meets every fault in turn, each in an attempt of its own."""
    run.trained(1, STEPS_BETWEEN)
    run.signal(1, 1, signal.SIGKILL)
    restart = run.recovered(1)
    verdict.say("kill recovered", unlike(restart, "signal"), took(restart))

    run.trained(2, STEPS_BETWEEN)
    run.signal(2, 1, signal.SIGSTOP)
    restart = run.recovered(2)
    blamed = [] if restart["rank"] == 1 else [f"rank {restart['rank']} is blamed"]
    verdict.say("hang found", unlike(restart, "hang") + blamed, took(restart))

    run.trained(3, STEPS_BETWEEN)
    _be_urgent(session, place)
    restart = run.recovered(3)
    lost = [f"{restart['lost_steps']} steps lost"] if restart["lost_steps"] else []
    more = ["the rest of the script ran on half a model"] if run.tails else []
    verdict.say("preempted", unlike(restart, "preemption") + lost + more)

    run.trained(4, STEPS_BEFORE_SPIKE)
    before = {rank: len(run.lines(4, rank)) for rank in range(RANKS)}
    run.spoil(4)
    spiked = run.recovered(4)
    onset = restart["resumed_step"] + min(before.values())
    late = [f"back to step {spiked['resumed_step']}"] if spiked["resumed_step"] > onset else []
    verdict.say("spike rolled back", unlike(spiked, "numerics") + late, took(spiked))

    run.hurry()
    run.succeeded()
    _compare(run, calm, verdict)


def _be_urgent(session: Session, directory: Path) -> None:
    """A more urgent run takes a node, and ends."""
    directory.mkdir()
    spec = {
        "name": directory.name,
        "command": ["sleep", "1"],
        "workdir": str(directory),
        "priority": "high",
        "checkpoint": {"directory": str(directory)},
    }
    urgent = submit_once(session, directory, spec)
    until(
        lambda: session.patient.get(path("runs", urgent))["state"] == "succeeded",
        "the end of the urgent run",
    )


def _compare(run: TrainerRun, calm: TrainerRun, verdict: Verdict) -> None:
    """The batches of all steps, as they were computed last, and the losses."""
    wrongs, apart = [], 0.0
    for rank in range(RANKS):
        mine, right = run.history(rank), calm.history(rank)
        steps = [s for s in right if s not in mine or mine[s].batch != right[s].batch]
        if steps or len(mine) != len(right):
            wrongs.append(f"rank {rank}: {len(mine)} steps, {len(steps)} with other batches")
        apart = max([apart, *(abs(mine[s].loss / right[s].loss - 1) for s in right if s in mine)])
    tails = len(run.tails)
    wrongs += [] if tails == RANKS else [f"{tails} ranks have run the rest of the script"]
    verdict.say("data exact", wrongs, f"losses differ by {apart:.1g}" if apart else "bit for bit")

"""`babysit.init()`: the way in which a process joins its run."""

from __future__ import annotations

import os
from pathlib import Path

from babysit import ending, flight_record, ownership, stack_signal
from babysit.checkpoint import restore
from babysit.errors import PlanError
from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import ENV_RANK_DIR, PLAN_FILE, Plan, SavePolicy

_reporters: dict[Path, Reporter] = {}


def init(*, checkpoint: str | Path | None = None, every_steps: int = 100, keep: int = 3) -> Run:
    """Join the run that this process belongs to.

    Under an agent, the plan is in the directory named by `BABYSIT_RANK_DIR`. Otherwise the script
    runs stand-alone: nothing is reported, rank and world size are those of `RANK` and `WORLD_SIZE`
    (set by torchrun; absent: one rank), and nothing is saved unless `checkpoint` is given. A child
    of the process that is the rank, such as an evaluation script, runs stand-alone too.

    Args:
        checkpoint: Stand-alone only: directory to save to and resume from; None: save nothing.
        every_steps: Stand-alone only: steps between saves.
        keep: Stand-alone only: number of newest checkpoints to keep.

    Raises:
        PlanError: The agent's plan cannot be read, another process is this rank already, or a
            launcher inside the command starts ranks of its own.
    """
    if not (rank_directory := os.environ.get(ENV_RANK_DIR)):
        plan = _stand_alone(str(checkpoint or ""), every_steps, keep)
        return Run(plan, Reporter(None, plan.rank))
    directory = Path(rank_directory)
    try:
        plan = Plan.from_json((directory / PLAN_FILE).read_text())
        owner = ownership.take(directory)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PlanError(
            f"{directory / PLAN_FILE}: {error}; to run without an agent, unset {ENV_RANK_DIR}"
        ) from error
    if owner is not None and ownership.is_ancestor(owner):
        alone = _stand_alone(str(checkpoint or ""), every_steps, keep)
        reporter = Reporter(None, alone.rank)
        reporter.warn(
            f"process {os.getpid()} is a child of process {owner}, which is rank {plan.rank} of the"
            " run: babysit.init() stands alone here, and nothing is reported or saved for the run"
        )
        return Run(alone, reporter)
    if (launcher := ownership.nested_launcher(plan, os.environ)) is not None:
        raise ownership.refused_as_nested(plan, launcher, os.environ)
    if owner is not None:
        raise ownership.refused_as_second(plan, owner)
    return Run(plan, _reporter_of(directory, plan.rank))


def _reporter_of(directory: Path, rank: int) -> Reporter:
    """The only reporter of this rank: a second `init()` of its process must continue it."""
    if directory not in _reporters:
        _reporters[directory] = Reporter(directory, rank)
        ending.tell_at_exit(_reporters[directory], directory)
        stack_signal.register(str(directory))
        flight_record.listen(directory)
    return _reporters[directory]


def _stand_alone(directory: str, every_steps: int, keep: int) -> Plan:
    return Plan(
        run="",
        attempt=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) + 1,
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        restore=restore.newest_in(Path(directory)) if directory else (),
        save=SavePolicy(directory, every_steps, directory_keep=keep),
    )

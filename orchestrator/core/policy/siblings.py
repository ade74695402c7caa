"""Lessons of one run for others of its script: errors that ended it, batches that it skips. Pure.

The problem: a sweep of twenty runs meets the same bug twenty times, and each run confirms it with a
restart of its own; batches that one run found to be bad wait for its siblings.

The design: siblings are runs of one project whose commands start the same program. Queues remember
of their last runs what ended them. An error is the same if its signature is: class, place, and
message without what differs from one death to the next.

Limits: a signature without a place in the script (an exit code alone) teaches nothing. Two runs
with one program may read other data, or the same in another order: batches are only offered.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

from jobs.launchers import LauncherError, launcher_in, unwrap
from jobs.spec import RunSpec
from monitors.failures import Cause, Failure, FailureClass
from orchestrator.core.model.entities import Run
from orchestrator.core.model.records import Past
from orchestrator.core.model.state import State
from orchestrator.core.model.states import TERMINAL_RUN_STATES

NAMED = 3
"""Siblings that a sentence names; more of them only count."""
_UNSPECIFIC = frozenset({FailureClass.UNKNOWN, FailureClass.SIGNAL, FailureClass.HANG})
"""Classes that say how a process ended, and not why: two of them need not be alike."""
_MODULE = re.compile(r"-m|--module")
_INTERPRETER = re.compile(r"python[\d.]*|(ba|da|k|z)?sh")


class Quarantine(NamedTuple):
    """Batches that a sibling skips."""

    run: str
    """Name of the sibling."""
    ranges: tuple[tuple[int, int], ...]
    """First and last batches, both included."""


def program_of(spec: RunSpec) -> str:
    """The program that a command starts: its script or module, else its first word.

    Wrappers and launchers before it do not count. An interpreter without a script or a module names
    no program, so only the same command is the same program then.
    """
    words = _unwrapped(spec.command)
    for before, word in zip(("", *words), words, strict=False):
        if _MODULE.fullmatch(before) and not launcher_in(("python", "-m", word)):
            return word
        if word.endswith((".py", ".sh")):
            return PurePath(word).name
    name = PurePath(words[0]).name if words else ""
    return shlex.join(words) if _INTERPRETER.fullmatch(name) else name


def _unwrapped(command: Sequence[str]) -> Sequence[str]:
    try:
        return unwrap(command).words
    except LauncherError:  # a wrapper that is refused before a launcher: it stays as it is
        return command


def lesson_of(failure: Failure, cause: Cause) -> str:
    """The signature by which siblings know this error; empty: it teaches nothing.

    Only errors that the same script meets again: the owner's, of a class that says why.
    """
    if cause is not Cause.USER or failure.failure_class in _UNSPECIFIC or failure.final:
        return ""
    return failure.signature


def ended_by(state: State, run: Run, signature: str) -> list[str]:
    """Names of the siblings that this error has ended, the latest first; each run counts once."""
    if not signature:
        return []
    return [past.name for past in _pasts(state, run) if past.died_of == signature]


def quarantines(state: State, run: Run) -> list[Quarantine]:
    """Batches that siblings skip, live ones first; each range is there once."""
    live = [(each.name, each.skip_batches) for each in live_siblings(state, run)]
    ended = [(past.name, past.skip_batches) for past in _pasts(state, run)]
    seen: set[tuple[int, int]] = set()
    found = []
    for name, ranges in (*live, *ended):
        fresh = tuple(each for each in ranges if each not in seen)
        seen.update(fresh)
        if fresh:
            found.append(Quarantine(name, fresh))
    return found


def live_siblings(state: State, run: Run) -> list[Run]:
    """Runs of the same program that are not over, without this one."""
    program = program_of(run.spec)
    return [
        other
        for other in state.runs.values()
        if other.id != run.id
        and other.state not in TERMINAL_RUN_STATES
        and other.spec.project == run.spec.project
        and program_of(other.spec) == program
    ]


def may_need(run: Run, skip: tuple[int, int]) -> bool:
    """True unless the run skips these batches already, or has passed them.

    A step takes one batch or more, so a run beyond the last one by its steps has seen it.
    """
    covered = any(first <= skip[0] and skip[1] <= last for first, last in run.skip_batches)
    return not covered and run.best_step < skip[1]


def offer(run: Run, sibling: str, ranges: Sequence[tuple[int, int]]) -> str:
    """The offer to a run to skip what its sibling skips, with the commands."""
    said = ", ".join(f"{first} to {last}" for first, last in ranges)
    to = "" if run.best_step else " --to 0"  # it has no checkpoint from before them
    commands = ", ".join(f"`babysit rollback {run.name}{to} --skip {a}:{b}`" for a, b in ranges)
    return (
        f"{sibling}, which runs the same program, skips batches {said}. If {run.name} reads the"
        f" same data in the same order, {commands} skips them here too; nothing is done by itself"
    )


def named(names: Sequence[str]) -> str:
    """Some runs for a sentence: `2 earlier runs of it (b, a)`."""
    kinds = list(dict.fromkeys(names))
    more = f" and {len(kinds) - NAMED} more" if len(kinds) > NAMED else ""
    several = f"{len(names)} earlier runs" if len(names) > 1 else "an earlier run"
    return f"{several} of this program ({', '.join(kinds[:NAMED])}{more})"


def _pasts(state: State, run: Run) -> Iterator[Past]:
    """Siblings that queues remember, the latest first."""
    program, seen = program_of(run.spec), {run.id}
    for queue in state.queues.values():
        for past in reversed(queue.history):
            same = past.project == run.spec.project and past.program == program
            if same and past.run not in seen:
                seen.add(past.run)
                yield past

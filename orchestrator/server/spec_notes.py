"""Notes about a spec that is accepted: what in it will not do what its author may expect."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from jobs import room
from jobs.environment import Environment
from jobs.launchers import foreign_in, launcher_in
from jobs.programs import find_program, is_own, names_python, stands_for_own
from jobs.spec import RunSpec
from jobs.spec_file import Problem, Source, search_path
from orchestrator.server.context import Context

_FOR_A_SHELL = re.compile(r"~(/|$)|\$(\w+|\{\w+\})(/|$)")
"""Arguments that a shell would expand, and that are hardly meant as they are."""


class CheckedSpec(NamedTuple):
    """A submission that was checked."""

    spec: RunSpec
    source: Source
    environment: Environment
    needs_bundle: bool
    """True if its code has to be uploaded."""


def notes(here: Context, read: CheckedSpec) -> list[str]:
    """Notes about a spec that is accepted, each with its place.

    Fields without effect are accepted, so that one spec is good for every cluster.
    """
    spec, source = read.spec, read.source
    notes = [
        source.problem(tuple(field.split(".")), f"has no effect here: {reason}")
        for field, reason in here.controller.ignored_fields.items()
        if _is_set(spec, field.split("."))
    ]
    notes += _launcher_notes(read)
    notes += _restart_notes(read)
    if here.controller.takes_bundles:  # nobody here knows the programs and modules of the nodes
        return [str(note) for note in (*notes, *_unexpanded(read))]
    notes += [] if spec.image else [*_program_notes(read), *_unexpanded(read)]
    notes += [
        source.problem(("preload", place), f"no module {name} here: every start would be slower")
        for place, name in enumerate(spec.preload)
        if not _has_other_python(read) and not _is_importable(name.partition(".")[0], spec)
    ]
    return [str(note) for note in notes]


async def needs(here: Context, spec: RunSpec) -> list[room.Need]:
    """Room for checkpoints on this machine; none where runs train elsewhere."""
    return await run_in_threadpool(room.needs, spec) if here.controller.runs_here else []


def room_notes(read: CheckedSpec, short: list[room.Need]) -> Iterator[str]:
    """A note for each place without room for the checkpoints."""
    for need in short:
        message = f"{need}: saves will fail while there is no room"
        yield str(read.source.problem(tuple(need.field.split(".")), message))


def _launcher_notes(read: CheckedSpec) -> Iterator[Problem]:
    """A note if the command starts ranks by itself."""
    if launcher := launcher_in(read.spec.command):
        message = (
            f"{launcher} starts ranks of its own inside one of babysit's, which babysit.init()"
            " refuses, and which babysit cannot watch one by one. Submit the command without a"
            " spec (`babysit submit -- …`), or see its spec (`babysit submit --print-spec -- …`)"
        )
        yield read.source.problem(("command",), message)
    elif said := foreign_in(read.spec.command):
        yield read.source.problem(("command",), said)


def _restart_notes(read: CheckedSpec) -> Iterator[Problem]:
    """A note if nothing says how the script goes on after a restart."""
    if read.spec.checkpoint.directory is None and read.spec.resume is None:
        message = (
            "after a failure this very command runs again: unless it finds its own checkpoint, it"
            " begins anew. `resume` in the spec says how it goes on; `checkpoint.directory` is for"
            " scripts that call `run.checkpoint()`"
        )
        yield read.source.problem(("command",), message)


def _program_notes(read: CheckedSpec) -> Iterator[Problem]:
    """A note if another program runs than a shell would find."""
    program = read.spec.command[0]
    if stands_for_own(program) and _found(read) is None:
        message = f"no {program} on PATH: {sys.executable}, which runs babysit, is used"
        yield read.source.problem(("command",), message)


def _unexpanded(read: CheckedSpec) -> Iterator[Problem]:
    """Arguments of the command that a shell would have expanded."""
    for number, argument in enumerate(read.spec.command[1:], 1):
        if _FOR_A_SHELL.match(argument) and read.spec.command[number - 1] != "-c":
            message = f"{argument} is passed as it is: no shell expands it"
            yield read.source.problem(("command", number), message)


def _found(read: CheckedSpec) -> str | None:
    path = search_path(read.spec, read.environment)
    return find_program(read.spec.command[0], path, read.spec.workdir)


def _has_other_python(read: CheckedSpec) -> bool:
    """True if the command's interpreter is another one, whose modules are not known here."""
    found = _found(read)
    return found is not None and names_python(found) and not is_own(found)


def _is_importable(module: str, spec: RunSpec) -> bool:
    """True if a module is there, or may be: in a PYTHONPATH or an image of the run's own."""
    if spec.image is not None or "PYTHONPATH" in spec.env:
        return True
    own = (Path(spec.workdir, module), Path(spec.workdir, f"{module}.py"))
    return any(path.exists() for path in own) or PathFinder.find_spec(module) is not None


def _is_set(model: BaseModel, path: Sequence[str]) -> bool:
    """True if the field at `path` differs from its default."""
    name, *below = path
    value = getattr(model, name)
    if below:
        return _is_set(value, below)
    return bool(value != type(model).model_fields[name].get_default(call_default_factory=True))

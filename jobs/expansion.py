"""Expands the paths of a spec with the environment of its submission."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from jobs.paths import PathError, expand
from jobs.spec import RunSpec
from jobs.spec_trainers import Watch
from jobs.yaml_file import FieldPath, Problem, Source, SpecError

_HOLDS_PATHS = re.compile(r"(PATH|(^|_)(HOME|DIR|ROOT))$")
"""Variables of `env` whose values are paths, by convention: PYTHONPATH, HF_HOME, TMPDIR."""


def expanded(spec: RunSpec, variables: Mapping[str, str], source: Source) -> RunSpec:
    """The spec with `~` and variables replaced in its paths. Arguments of the command are none.

    Args:
        spec: A valid spec.
        variables: The variables of the submission; those of the spec's `env` come first.
        source: Positions, for the problems.

    Raises:
        SpecError: A variable is not set, or there is no such user; one problem for each place.
    """
    problems: list[Problem] = []

    def path(text: str, *place: str | int, known: Mapping[str, str] = variables) -> str:
        try:
            return expand(text, known)
        except PathError as error:
            problems.append(source.problem(place, str(error)))
            return text

    def paths(text: str, place: FieldPath) -> str:
        return os.pathsep.join(path(part, *place) for part in text.split(os.pathsep))

    env = {
        name: paths(text, ("env", name)) if _HOLDS_PATHS.search(name) else text
        for name, text in spec.env.items()
    }
    known = {**variables, **env}
    program, *arguments = spec.command
    if "/" in program:
        program = path(program, "command", 0, known=known)
    directory = spec.checkpoint.directory
    if directory is not None:
        directory = path(directory, "checkpoint", "directory", known=known)
    resume = spec.resume
    if resume is not None and resume.checkpoints is not None:
        own = path(resume.checkpoints, "resume", "checkpoints", known=known)
        resume = resume.model_copy(update={"checkpoints": own})
    watch = spec.watch
    if isinstance(watch, Watch) and watch.files is not None:
        files = path(watch.files, "watch", "files", known=known)
        watch = watch.model_copy(update={"files": files})
    logs = tuple(
        path(file, "monitors", "logs", number, known=known) if isinstance(file, str) else file
        for number, file in enumerate(spec.monitors.logs)
    )
    workdir = path(spec.workdir, "workdir", known=known)
    if problems:
        raise SpecError(sorted(problems, key=lambda p: (p.line, p.column)))
    return spec.model_copy(
        update={
            "env": env,
            "command": (program, *arguments),
            "workdir": workdir,
            "checkpoint": spec.checkpoint.model_copy(update={"directory": directory}),
            "resume": resume,
            "watch": watch,
            "monitors": spec.monitors.model_copy(update={"logs": logs}),
        }
    )

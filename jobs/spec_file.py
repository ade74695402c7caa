"""Reads a run spec from YAML. Each problem is one line: `run.yaml:3:10: queue: expected …`."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import log_rules
from jobs.environment import Environment
from jobs.expansion import expanded
from jobs.programs import find_program, stands_for_own
from jobs.schema import run_schema
from jobs.schema_words import Words
from jobs.spec import RunSpec
from jobs.spec_trainers import Launcher
from jobs.yaml_file import MAX_BYTES, FileKind, Problem, Source, SpecError
from jobs.yaml_file import read_text as read_any
from monitors.exit_rules import RuleFile

__all__ = [
    "ALIASES",
    "MAX_BYTES",
    "Problem",
    "Source",
    "SpecError",
    "load",
    "loads",
    "parse",
    "read",
    "read_text",
    "resolve",
    "validate",
]
_STARTER = "; `babysit init` writes a starter"
ALIASES = {
    # Fields that had another name before 0.1.0.
    "spares": ("placement.standbys",),
    # What other schedulers and launchers call them.
    "args": ("command",),
    "cmd": ("command",),
    "entrypoint": ("command",),
    "script": ("command",),
    "cwd": ("workdir",),
    "working_dir": ("workdir",),
    "dir": ("checkpoint.directory", "workdir"),
    "path": ("checkpoint.directory",),
    "environment": ("env",),
    "container": ("image",),
    "docker": ("image",),
    "partition": ("queue",),
    "num_nodes": ("resources.nodes",),
    "nnodes": ("resources.nodes",),
    "nproc_per_node": ("resources.processes_per_node",),
    "ntasks_per_node": ("resources.processes_per_node",),
    "processes": ("resources.processes_per_node",),
    "ranks": ("resources.processes_per_node",),
    "gpu": ("resources.gpus_per_node",),
    "gpus": ("resources.gpus_per_node",),
    "cpu": ("resources.cpus_per_node",),
    "cpus": ("resources.cpus_per_node",),
    "mem": ("resources.memory_per_node",),
    "memory": ("resources.memory_per_node",),
    "ram": ("resources.memory_per_node",),
    "interval": ("checkpoint.every_steps",),
    "save_every": ("checkpoint.every_steps",),
    "save_steps": ("checkpoint.every_steps",),
    "keep_last": ("checkpoint.keep",),
    "save_total_limit": ("checkpoint.keep",),
    "backofflimit": ("recovery",),
    "max_restarts": ("recovery",),
    "max_retries": ("recovery",),
    "restarts": ("recovery",),
    "retries": ("recovery",),
    "retry": ("recovery",),
    "alerts": ("notify",),
    "notifications": ("notify",),
    "time_limit": ("max_runtime",),
    "timeout": ("max_runtime",),
    "walltime": ("max_runtime",),
}
"""Names that people write instead of a field's own -> the fields that may be meant, likeliest
first."""
_RUN_SPEC = FileKind(
    RunSpec,
    Words(run_schema(), "the spec", ALIASES),
    what="run spec",
    holds="run",
    hint=_STARTER,
    texts=frozenset({"env"}),
    extensions=True,
)


def load(path: str | Path) -> RunSpec:
    """Read a spec from a file.

    Raises:
        SpecError: The file cannot be read, or is not a valid spec.
    """
    return read(path)[0]


def loads(text: str, name: str = "run.yaml") -> RunSpec:
    """Read a spec from text; `name` is what problems are reported under.

    Raises:
        SpecError: The text is not a valid spec.
    """
    return parse(text, name)[0]


def read(path: str | Path) -> tuple[RunSpec, Source]:
    """Like :func:`load`, with the positions, for :func:`resolve`."""
    return parse(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """The text of a spec file.

    Raises:
        SpecError: The file cannot be read.
    """
    return read_any(path, _STARTER)


def parse(text: str, name: str = "run.yaml") -> tuple[RunSpec, Source]:
    """Read a spec from text, with the positions.

    Raises:
        SpecError: The text is not a valid spec.
    """
    return _RUN_SPEC.parse(text, name)


def validate(raw: Mapping[Any, Any], source: Source) -> RunSpec:
    """Check plain data against the spec.

    Raises:
        SpecError: Has every problem found.
    """
    return _RUN_SPEC.validate(raw, source)


def resolve(
    spec: RunSpec,
    base_directory: str | Path,
    source: Source | None = None,
    environment: Environment | None = None,
) -> RunSpec:
    """The spec with absolute directories, checked against the file system. Creates nothing.

    `~`, `$NAME` and `${NAME}` are replaced in `workdir`, `checkpoint.directory`, `monitors.logs`, a
    program that is named with its directory, and the variables of `env` that hold paths.

    Args:
        spec: A valid spec.
        base_directory: What a relative `workdir` is relative to: the directory of the spec file.
        source: Positions, for the problems.
        environment: What is submitted with the spec; None: the environment of this process.

    Raises:
        SpecError: The workdir, the program, the script, the checkpoint directory or a file of rules
            for logs cannot be used, or a variable in a path is not set.
    """
    source = source or Source("spec")
    environment = environment or Environment(shell=dict(os.environ))
    spec = expanded(spec, environment.variables, source)
    workdir = Path(base_directory, spec.workdir).absolute()
    if not workdir.is_dir():
        what = "is not a directory" if workdir.exists() else "no such directory"
        raise SpecError([source.problem(("workdir",), f"{what}: {workdir}")])
    problems = []
    path = search_path(spec, environment)
    if not spec.image and (message := _missing_program(spec.command, workdir, path)):
        problems.append(source.problem(("command",), message))
    checkpoint = spec.checkpoint
    if checkpoint.directory is not None:
        directory = Path(workdir, checkpoint.directory).absolute()
        if message := _not_writable(checkpoint.directory, directory):
            problems.append(source.problem(("checkpoint", "directory"), message))
        # Without links: one place has one name, so that the core can tell who shares it.
        checkpoint = checkpoint.model_copy(update={"directory": str(directory.resolve())})
    resume = spec.resume
    if resume is not None and resume.checkpoints is not None:
        # Not without links: the script is given the path that it would print itself.
        own = os.path.normpath(Path(workdir, resume.checkpoints).absolute())
        resume = resume.model_copy(update={"checkpoints": own})
    logs = []
    for number, file in enumerate(spec.monitors.logs):
        try:
            logs.append(_rules(file, base_directory))
        except SpecError as error:
            # The path, for people who find the mistake in the file; the spec, for those who look
            # for the file.
            problems += [source.problem(("monitors", "logs", number), str(error.problems[0]))]
            problems += error.problems[1:]
    if problems:
        raise SpecError(problems)
    monitors = spec.monitors.model_copy(update={"logs": tuple(logs)})
    return spec.model_copy(
        update={
            "workdir": str(workdir),
            "launcher": Launcher.TORCHRUN if spec.sets_ranks() else Launcher.NONE,
            "checkpoint": checkpoint,
            "resume": resume,
            "monitors": monitors,
        }
    )


def search_path(spec: RunSpec, environment: Environment) -> str | None:
    """The PATH of the run's ranks, as far as it is known here; None: none is set.

    Without the environment of a shell the ranks have that of the server, which is this process.
    """
    own = os.environ.get("PATH") if environment.shell is None else None
    return {"PATH": own, **environment.variables, **spec.env}["PATH"]


def _rules(file: str | RuleFile, base_directory: str | Path) -> RuleFile:
    """Rules for logs, read now: the file may be another one, or gone, when a rank dies."""
    return file if isinstance(file, RuleFile) else log_rules.read(Path(base_directory, file))


def _missing_program(command: Sequence[str], workdir: Path, path: str | None) -> str | None:
    """A sentence if the program, or the script of a `python SCRIPT` command, does not exist.

    Args:
        command: The program and its arguments.
        workdir: Where it would run.
        path: PATH of the run's own environment; None: none is set.
    """
    program, *arguments = command
    named = "/" not in program and not stands_for_own(program)
    if named and find_program(program, path, workdir) is None:
        script = (workdir / program).is_file() and program.endswith(".py")
        hint = f"; write [python, {program}]" if script else ""
        return f"{program}: no such program on PATH{hint}"
    if "/" in program and find_program(program, path, workdir) is None:
        missing = not Path(workdir, program).exists()
        return f"{program}: no such file in {workdir}" if missing else f"{program}: not executable"
    if not re.fullmatch(r"python(\d+(\.\d+)?)?", Path(program).name):
        return None
    remaining = iter(arguments)
    for argument in remaining:
        if argument in {"-W", "-X"}:
            next(remaining, None)
        elif argument.startswith(("-m", "-c")) or argument == "-":
            return None
        elif not argument.startswith("-"):
            found = Path(workdir, argument).exists()
            return None if found else f"{argument}: no such file in {workdir}"
    return "expected a script after python, such as [python, train.py]"


def _not_writable(written: str, directory: Path) -> str | None:
    """A sentence if a directory cannot be created or written to. Creates nothing."""
    if "://" in written:
        return f"expected a directory every node can reach, got the URL {written}"
    ancestor = next(path for path in (directory, *directory.parents) if path.exists())
    if not ancestor.is_dir():
        return f"cannot be created: {ancestor} is not a directory"
    try:
        with tempfile.TemporaryFile(dir=ancestor):
            return None
    except OSError as error:
        return f"{directory} cannot be written: {error.strerror} ({ancestor})"

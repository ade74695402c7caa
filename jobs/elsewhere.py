"""Resolves the spec of a run whose processes are on other machines than its submitter's files.

The code goes as a bundle, or lies in the image. So `workdir` has two meanings: the directory that
`submit` packs, on the submitter's machine, or with `upload: false` a directory of the image. No
file system is looked at: that of the server says nothing about the nodes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from jobs.environment import Environment
from jobs.expansion import expanded
from jobs.spec import RunSpec
from jobs.spec_trainers import Launcher
from jobs.yaml_file import Problem, Source, SpecError
from monitors.exit_rules import RuleFile


def resolve_elsewhere(
    spec: RunSpec,
    source: Source,
    environment: Environment,
    log_rules: Sequence[RuleFile] = (),
) -> RunSpec:
    """The spec as agents on other machines get it.

    Args:
        spec: A valid spec.
        source: Positions, for the problems.
        environment: What is submitted with it. A `~` or a variable in a path that the submission
            does not define is a problem: HOME of this machine means nothing there.
        log_rules: The content of the files that `monitors.logs` names, in order.

    Raises:
        SpecError: A path means nothing on the nodes.
    """
    # The submitter's own directory: it was read there, and no node knows it.
    shown = spec.model_copy(update={"workdir": "."}) if spec.upload else spec
    found = expanded(shown, environment.named, source)
    problems: list[Problem] = []
    own = found.resume.checkpoints if found.resume is not None else None
    places = (
        (("checkpoint", "directory"), found.checkpoint.directory),
        (("resume", "checkpoints"), own),
    )
    for place, directory in places:
        if message := _checkpoints_problem(found, directory):
            problems.append(source.problem(place, message))
    rules, given = list[RuleFile](), iter(log_rules)
    for number, file in enumerate(found.monitors.logs):
        read = file if isinstance(file, RuleFile) else next(given, None)
        if read is not None:
            rules.append(read)
            continue
        message = f"{file} is read by `babysit submit`; other clients send it as `log_rules`"
        problems.append(source.problem(("monitors", "logs", number), message))
    if problems:
        raise SpecError(problems)
    checkpoint = found.checkpoint
    if checkpoint.directory is not None:
        directory = os.path.normpath(os.path.join(found.workdir, checkpoint.directory))  # noqa: PTH118
        checkpoint = checkpoint.model_copy(update={"directory": directory})
    resume = found.resume
    if resume is not None and own is not None:
        own = os.path.normpath(os.path.join(found.workdir, own))  # noqa: PTH118
        resume = resume.model_copy(update={"checkpoints": own})
    return found.model_copy(
        update={
            "resume": resume,
            "launcher": Launcher.TORCHRUN if spec.sets_ranks() else Launcher.NONE,
            "workdir": spec.workdir if spec.upload else found.workdir,
            "checkpoint": checkpoint,
            "monitors": found.monitors.model_copy(update={"logs": tuple(rules)}),
        }
    )


def _checkpoints_problem(spec: RunSpec, directory: str | None) -> str | None:
    """A sentence if checkpoints in a directory would be lost with the worker that wrote them."""
    if directory is None:
        return None
    if "://" in directory:
        return f"expected a directory that every node mounts, got the URL {directory}"
    if directory.startswith("/"):
        return None
    if spec.upload:
        return (
            f"expected an absolute path that every node mounts, got {directory}: the workdir is a"
            " copy on each node, and is deleted with it"
        )
    if not spec.workdir.startswith("/"):
        return (
            f"expected an absolute path that every node mounts, got {directory}: the workdir"
            f" {spec.workdir} is in the image, and what is written there is deleted with its"
            " container"
        )
    return None

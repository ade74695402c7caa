"""Chooses what goes with a run from the submitter's machine: variables, code, rules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.environment import divide, this_machine
from jobs.paths import PathError, expand
from jobs.spec import RunSpec
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import say
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.cli.bundle.upload import Code

NOT_ELSEWHERE = {"local", "simulated"}
"""Clusters without processes on other machines: no server has to be asked."""
_SETTINGS = frozenset(f"BABYSIT_{name.upper()}" for name in Settings.model_fields)


class Place(NamedTuple):
    """Where the runs of the control plane are, as a submitter has to know it."""

    takes_shell: bool
    """True if the environment of this shell has a meaning there."""
    bundle_bytes: int | None
    """Largest bundle of code that the server takes; None: code is not uploaded."""


def place_of(here: Session) -> Place:
    """Ask the server where its runs are, unless only the settings can say it."""
    if here.settings.server is None:
        # An embedded server is on this machine, and drops the shell itself if its runs are not.
        known = here.settings.cluster in NOT_ELSEWHERE and not runs_already(here)
        return Place(True, None if known else here.api.get(path("info")).get("bundle_bytes"))
    try:
        info = here.api.get(path("info"))
    except (CliError, OSError):  # the submission itself will tell why
        return Place(False, None)
    # An older server has no `bundle_bytes`.
    return Place(info.get("environment_of") == this_machine(), info.get("bundle_bytes"))


def runs_already(here: Session) -> bool:
    """True if a server of this home runs, with a cluster of its own choice: it has to be asked.

    Without one, a command starts a server with the command's own settings.
    """
    from orchestrator.cli import embedded

    if (api := embedded.find(here.settings, here.clock)) is None:
        return False
    api.close()
    return True


def shell(place: Place) -> dict[str, str] | None:
    """The environment of this shell; None if it has no meaning where the runs are."""
    return divide(os.environ, _SETTINGS)[0] if place.takes_shell else None


def code_of(place: Place, spec: RunSpec, base: Path) -> Code | None:
    """The code that has to go with a run; None: the server finds it, or the image has it.

    Raises:
        CliError: It cannot go.
    """
    if place.bundle_bytes is None or not spec.upload:
        return None
    from orchestrator.cli.bundle import upload

    try:
        workdir = Path(base, expand(spec.workdir, {**os.environ, **spec.env}))
    except PathError as error:
        raise CliError(f"workdir: {error}", ExitCode.USAGE) from error
    if not workdir.is_dir():
        raise CliError(f"workdir: no such directory: {workdir}", ExitCode.USAGE)
    return upload.choose(spec, workdir, place.bundle_bytes)


def rules_of(place: Place, spec: RunSpec, base: Path) -> list[dict[str, Any]]:
    """The content of the files in `monitors.logs`, in their order, for a server elsewhere.

    Raises:
        SpecError: One of them is wrong, or cannot be read.
        CliError: The path of one cannot be expanded.
    """
    if place.bundle_bytes is None:
        return []
    from jobs import log_rules

    try:
        return [
            log_rules.read(Path(base, expand(file, os.environ))).model_dump(mode="json")
            for file in spec.monitors.logs
            if isinstance(file, str)
        ]
    except PathError as error:
        raise CliError(f"monitors.logs: {error}", ExitCode.USAGE) from error


def say_dropped(passed: Mapping[str, str] | None, spec: RunSpec, named: Mapping[str, str]) -> None:
    """Tell which variables of this shell do not go with the run, by name.

    Args:
        passed: What went of the shell's environment; None: nothing.
        spec: The spec; its `env` gives variables values of its own.
        named: The variables of `env_from`.
    """
    if passed is None:
        say("The run is not on this machine: of this shell's variables, those of env_from go.")
        return
    dropped = set(divide(os.environ, _SETTINGS)[1]) - set(spec.env) - set(named)
    if dropped:
        say(f"Not passed to the run: {', '.join(sorted(dropped))} (env_from can name them).")

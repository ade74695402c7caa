"""Chooses the variables of the submitter's shell that go with a run."""

from __future__ import annotations

import os
from collections.abc import Mapping

from jobs.environment import divide, this_machine
from jobs.spec import RunSpec
from orchestrator.cli.errors import CliError
from orchestrator.cli.output import say
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.settings import Settings

_SETTINGS = frozenset(f"BABYSIT_{name.upper()}" for name in Settings.model_fields)


def shell(here: Session) -> dict[str, str] | None:
    """The environment of this shell; None if it has no meaning where the runs of the server are.

    An embedded server is on this machine, and drops the environment itself if its runs are not.
    """
    if here.settings.server is not None and not _same_machine(here):
        return None
    return divide(os.environ, _SETTINGS)[0]


def _same_machine(here: Session) -> bool:
    try:
        info = here.api.get(path("info"))
        return bool(info.get("environment_of") == this_machine())
    except (CliError, OSError):  # no such machine here; or the submission itself will tell why
        return False


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

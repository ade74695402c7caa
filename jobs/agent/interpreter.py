"""Finds the Python interpreter that a command names, as the user's shell would.

`python` is the first one on the PATH of the ranks, be it that of a venv, of conda, or a wrapper.
Ranks are forked from a warm process of that very interpreter. The agent's own interpreter is one of
several: the user's need not have babysit, since the trainer's package needs the standard library
alone and is put on its path.

Not guaranteed: what a wrapper does to the environment of a single rank is done once for all ranks,
when their fork server starts.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import babysit
from jobs.programs import find_program, is_own, names_python, stands_for_own

OLDEST = (3, 11)
"""Oldest Python that the trainer's package runs on."""
PROBE_SECONDS = 20.0
"""A Python that does not start in this time runs the command without a fork server."""
_MARK = "babysit-interpreter "
_QUESTION = (
    f"import json, sys; print('\\n{_MARK}' + json.dumps([sys.prefix, sys.implementation.name,"
    " *sys.version_info[:2]]))"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Interpreter:
    """How the ranks of a command are started."""

    command: tuple[str, ...]
    """The command to run; its program differs from the spec's only where `program` does."""
    program: str = sys.executable
    """The program that runs the fork server."""
    forks: bool = False
    """True if the fork server is the command's interpreter, so that forks can run its script.
    False: forks execute the command."""

    @property
    def own(self) -> bool:
        """True if the agent's own interpreter runs the fork server."""
        return self.program == sys.executable


class _Answer(NamedTuple):
    """The answer of a Python about itself. A venv is known by its prefix."""

    prefix: str
    implementation: str
    major: int
    minor: int


def choose(
    command: Sequence[str], workdir: str | Path, environment: Mapping[str, str]
) -> Interpreter:
    """Decide how to start a command. Runs another interpreter once, to ask what it is; blocks."""
    words = tuple(command)
    if not names_python(words[0]):
        return Interpreter(words)
    found = find_program(words[0], environment.get("PATH"), workdir)
    if found is None:
        if stands_for_own(words[0]):
            return Interpreter((sys.executable, *words[1:]), forks=True)
        return Interpreter(words)
    if is_own(found):
        return Interpreter(words, forks=True)
    answer = _probe(found, workdir, environment)
    if answer is None or answer.implementation != sys.implementation.name:
        return Interpreter(words)
    if answer == _Answer(sys.prefix, sys.implementation.name, *sys.version_info[:2]):
        return Interpreter(words, forks=True)
    if (answer.major, answer.minor) < OLDEST:
        return Interpreter(words)
    return Interpreter(words, found, forks=True)


def trainer_path(directory: Path) -> Path:
    """A directory with the trainer's package alone, so that nothing else of ours is importable.

    Raises:
        OSError: It cannot be created.
    """
    place = directory / "trainer"
    place.mkdir(parents=True, exist_ok=True)
    link, package = place / "babysit", Path(babysit.__file__).parent
    if not link.is_symlink() or link.readlink() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package, target_is_directory=True)
    return place


def _probe(found: str, workdir: str | Path, environment: Mapping[str, str]) -> _Answer | None:
    """The answer of a program that is run as a Python; None: it is none, or does not answer."""
    try:
        done = subprocess.run(  # noqa: S603 - the user's interpreter, as the command will run it
            [found, "-P", "-c", _QUESTION],  # -P: since 3.11, as is what follows
            cwd=workdir,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith(_MARK))
        return _Answer(*json.loads(line.removeprefix(_MARK)))
    except (OSError, ValueError, TypeError, StopIteration, subprocess.TimeoutExpired):
        return None

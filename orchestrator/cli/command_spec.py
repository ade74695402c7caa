"""Makes a run spec of a command line: `babysit run -- torchrun --nproc_per_node 2 train.py`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from jobs.launchers import Counts, Launch, LauncherError, Surroundings, understand, unwrap
from jobs.launchers.config_file import read_configuration
from jobs.programs import find_program, names_python
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session

_MOST_NODES = 1000
"""Nodes looked at for the largest one."""


@dataclasses.dataclass(frozen=True, slots=True)
class CommandOptions:
    """Options that `run` and `submit` take in place of a spec."""

    name: str | None = None
    nodes: str | None = None
    processes: int | None = None
    gpus: int | None = None
    checkpoints: str | None = None
    fields: tuple[str, ...] = ()
    """`FIELD=VALUE`, with dots between the parts of a field."""

    @property
    def given(self) -> list[str]:
        """The options that were given, as they are written."""
        written = {**dataclasses.asdict(self), "set": self.fields}
        written.pop("fields")
        return [f"--{name}" for name, value in written.items() if value not in {None, ()}]


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """The spec of a command line."""

    text: str
    remarks: tuple[str, ...]


def write(here: Session, command: tuple[str, ...], options: CommandOptions) -> Written:
    """The spec for a command, as YAML, and what its launcher's options do not do here.

    Raises:
        CliError: There is no command, or an option is wrong.
    """
    if not command:
        raise CliError("expected a command after --", ExitCode.USAGE)
    if odd := next((word for word in command if not _is_utf_8(word)), None):
        message = f"{odd!a}: expected UTF-8, the encoding of run specs; rename the file"
        raise CliError(message, ExitCode.USAGE)
    counts = _Counts(here)
    try:
        launch = understand(command, _surroundings(command, counts))
    except LauncherError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    if launch.launcher and options.processes is not None:
        message = f"{launch.launcher} says how many processes there are: leave --processes out"
        raise CliError(message, ExitCode.USAGE)
    spec = _spec(launch, options, counts)
    for field in options.fields:
        _set(spec, field)
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in spec.items()]
    return Written("\n".join(lines) + "\n", launch.remarks)


def _spec(launch: Launch, options: CommandOptions, counts: _Counts) -> dict[str, Any]:
    processes = options.processes or launch.processes
    nodes: Any = launch.nodes if options.nodes is None else _nodes(options.nodes)
    if isinstance(nodes, tuple):
        nodes = {"min": nodes[0], "max": nodes[1]}
    gpus = options.gpus
    if gpus is None:
        on_cpus = launch.environment.get("ACCELERATE_USE_CPU") == "True"
        gpus = 0 if on_cpus or not counts.offered.gpus else processes
    spec: dict[str, Any] = {
        "name": options.name or _name(launch.command[launch.prefix :]),
        "command": list(launch.command),
        "workdir": str(Path.cwd()),
        "resources": {"nodes": nodes, "processes_per_node": processes, "gpus_per_node": gpus},
    }
    if launch.launcher and not launch.launcher.startswith("accelerate"):
        spec["launcher"] = "torchrun"
    if launch.environment:
        spec["env"] = dict(launch.environment)
    if launch.grace is not None:
        spec["grace"] = launch.grace
    if options.checkpoints is not None:
        spec["checkpoint"] = {"directory": options.checkpoints}
    return spec


def _is_utf_8(word: str) -> bool:
    """False for a word that Python has read with bytes of another encoding in it."""
    return word.encode(errors="ignore").decode() == word


def _nodes(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None:
        raise CliError(f"--nodes {text}: expected a number, or MIN:MAX", ExitCode.USAGE)
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def _set(spec: dict[str, Any], field: str) -> None:
    """Apply `FIELD=VALUE`. The value is JSON where it can be read so, else text."""
    name, equals, text = field.partition("=")
    if not equals or not name:
        raise CliError(f"--set {field}: expected FIELD=VALUE", ExitCode.USAGE)
    *above, last = name.split(".")
    place = spec
    for part in above:
        below = place.setdefault(part, {})
        if not isinstance(below, dict):
            raise CliError(f"--set {field}: {part} has no fields", ExitCode.USAGE)
        place = below
    try:
        place[last] = json.loads(text)
    except ValueError:
        place[last] = text


def _name(command: tuple[str, ...]) -> str:
    """The name of a run after its script."""
    words = [word for word in command if not word.startswith("-")]
    if command[0] == "sh" and len(command) > 3:  # a shell that passes a local rank
        words = [command[3]]
    elif names_python(command[0]):
        words = words[1:]
    stem = PurePath(words[0]).name.removesuffix(".py") if words else ""
    name = re.sub(r"[^a-z0-9.-]+", "-", stem.rpartition("." if "-m" in command else "/")[2].lower())
    return name.strip("-.")[:63].strip("-.") or "run"


class _Counts:
    """The offer of the largest node, asked for once, and only if somebody wants to know."""

    def __init__(self, here: Session) -> None:
        self._here = here
        self._found: Counts | None = None

    @property
    def offered(self) -> Counts:
        """As the control plane lists its nodes."""
        if self._found is None:
            nodes = self._here.api.get(path("nodes"), limit=_MOST_NODES)
            self._found = Counts(
                max((node["gpus"] for node in nodes), default=0),
                max((int(node["cpus"]) for node in nodes), default=1),
            )
        return self._found


def _surroundings(command: tuple[str, ...], counts: _Counts) -> Surroundings:
    environment: Mapping[str, str] = os.environ
    return Surroundings(
        environment=environment,
        counts=lambda: counts.offered,
        read_file=lambda name: read_configuration(name, Path.cwd(), environment),
        python=_interpreter(command, environment.get("PATH")),
        directory=str(Path.cwd()),
    )


def _interpreter(command: tuple[str, ...], search: str | None) -> str:
    """The Python that a launcher runs its scripts with: the one that its first line names."""
    wrapped = unwrap(command)
    if wrapped.has_python:
        return "python"
    found = find_program(wrapped.words[0], search, ".")
    first = _first_line(found) if found is not None else ""
    own = find_program("python", search, ".")
    if not first.startswith("#!") or not names_python(first[2:].strip()):
        return "python"
    named = first[2:].strip()
    same = own is not None and Path(own).parent == Path(named).parent
    return "python" if same or not Path(named).exists() else named


def _first_line(file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            return opened.readline(4096).decode(errors="replace")
    except OSError:
        return ""

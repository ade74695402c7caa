"""Turns the command of a launcher into a plain command and a gang of babysit's own. Pure."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from jobs.launchers import accelerate, deepspeed, torchrun
from jobs.launchers.accelerate_variables import variables
from jobs.launchers.options import LauncherError, parse, whole
from jobs.launchers.wrappers import STARTERS, Wrapped, refuse, unwrap

_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_PYTHON_FLAGS = re.compile(r"-[bBdEIOPqsSuvx]+|-[WX].+")
"""Options of the interpreter of a launcher, which no launcher passes on to its ranks."""
_MODULES = {
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torch.distributed.launch",
    "torch.distributed.launcher": "torch.distributed.launch",
    "accelerate.commands.launch": "accelerate launch",
    "accelerate.commands.accelerate_cli": "accelerate",
    "deepspeed.launcher.runner": "deepspeed",
}
"""Modules that `python -m` may name -> the launcher."""
_PROGRAMS = {
    "torchrun": "torchrun",
    "accelerate": "accelerate",
    "accelerate-launch": "accelerate launch",
    "deepspeed": "deepspeed",
    "ds": "deepspeed",
}


class Counts(NamedTuple):
    """CPUs and GPUs of the largest node of the cluster."""

    gpus: int
    cpus: int


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """The facts that a launcher looks at besides its options."""

    environment: Mapping[str, str]
    counts: Callable[[], Counts]
    """Asked only where an option leaves the number of processes open."""
    read_file: Callable[[str | None], Mapping[str, Any]]
    """Content of a configuration file of accelerate; None: the default one, if it is there.

    Raises LauncherError: The named file cannot be read."""
    python: str = "python"
    """The interpreter that the launcher would use."""
    directory: str = "."
    """Where the command runs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """A command without its launcher."""

    launcher: str
    """`torchrun`; empty: the command had none."""
    command: tuple[str, ...]
    processes: int = 1
    """For each node."""
    nodes: int | tuple[int, int] = 1
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    grace: float | None = None
    """Seconds between the request to stop and the kill; None: not said."""
    remarks: tuple[str, ...] = ()
    prefix: int = 0
    """Words of wrappers at the beginning of the command."""


class _Named(NamedTuple):
    launcher: str
    words: tuple[str, ...]
    """After the launcher."""
    python: str
    """The interpreter that was named; empty: none."""


def launcher_in(command: Sequence[str]) -> str:
    """The launcher that a command starts with, behind any wrappers; empty: it starts with none."""
    return _named(unwrap(command)).launcher


def foreign_in(command: Sequence[str]) -> str:
    """A sentence about a program that starts ranks and is not understood; empty: there is none.

    Also about a launcher in a line of a shell, or behind a wrapper, that is not understood.
    """
    wrapped = unwrap(command)
    if _named(wrapped).launcher or not wrapped.words:
        return ""
    name = PurePath(wrapped.words[0]).name
    if name in STARTERS:
        return f"{name} starts ranks of its own: {STARTERS[name]}"
    words = () if _PYTHON.fullmatch(name) is not None else wrapped.words
    before = ("", *words)  # the value of an option, such as `--backend deepspeed`, starts nothing
    found = [w for last, w in zip(before, words, strict=False) if not last.startswith("--")]
    found += [word for word in wrapped.prefix if word.endswith('"$@"')]
    if not any(_mentions(word) for word in found):
        return ""
    return (
        f"the launcher in {shlex.join(command)[:100]!r} is left as it is, and starts ranks of"
        " its own: give its command alone, `babysit run -- torchrun …`"
    )


def _mentions(text: str) -> bool:
    """True if a word is a launcher, or a line in which one is started."""
    return any(
        PurePath(word).name in _PROGRAMS.keys() - {"ds"} or word in _MODULES
        for word in re.split(r"[\s;&|()\"']+", text)
    )


def understand(command: Sequence[str], around: Surroundings) -> Launch:
    """Read the command of a launcher. A command without one is returned as it is.

    Raises:
        LauncherError: An option is refused, unknown or wrong, or the launcher starts another one.
    """
    wrapped = unwrap(command)
    named = _named(wrapped)
    if not named.launcher:
        said = foreign_in(command)
        return Launch("", tuple(command), remarks=(said,) if said else ())
    refuse(wrapped)
    environment = {**around.environment, **wrapped.environment}
    python = named.python or ("python" if wrapped.has_python else around.python)
    around = dataclasses.replace(around, environment=environment, python=python)
    launch = _READERS[named.launcher](named.words, around)
    if inner := launcher_in(launch.command):
        raise LauncherError(f"{launch.launcher} starts {inner}: give one of them to babysit")
    return dataclasses.replace(
        launch,
        command=(*wrapped.prefix, *launch.command),
        prefix=len(wrapped.prefix),
        environment={**wrapped.environment, **launch.environment},
        remarks=(*wrapped.remarks, *launch.remarks),
    )


def _named(wrapped: Wrapped) -> _Named:
    words = list(wrapped.words)
    none = _Named("", wrapped.words, "")
    if not words:
        return none
    program = PurePath(words[0]).name
    if program in _PROGRAMS:
        return _accelerate(_Named(_PROGRAMS[program], tuple(words[1:]), ""), none)
    if _PYTHON.fullmatch(program) is None:
        return none
    python = words.pop(0)
    while words and (words[0] in {"-W", "-X"} or _PYTHON_FLAGS.fullmatch(words[0])):
        del words[: 2 if words[0] in {"-W", "-X"} else 1]
    if len(words) < 2 or words[0] != "-m" or words[1] not in _MODULES:
        return none
    return _accelerate(_Named(_MODULES[words[1]], tuple(words[2:]), python), none)


def _accelerate(named: _Named, none: _Named) -> _Named:
    """`accelerate` has other commands than `launch`, and those start nothing."""
    if named.launcher != "accelerate":
        return named
    if named.words[:1] != ("launch",):
        return none
    return named._replace(launcher="accelerate launch", words=named.words[1:])


# --- the launchers ------------------------------------------------------------------------------


def _torchrun(words: Sequence[str], around: Surroundings) -> Launch:
    parsed = parse("torchrun", words, torchrun.TABLE)
    return _torch("torchrun", parsed.values, parsed.rest, parsed.remarks, around)


def _torch_launch(words: Sequence[str], around: Surroundings) -> Launch:
    name = "torch.distributed.launch"
    parsed = parse(name, words, torchrun.LEGACY_TABLE)
    launch = _torch(name, parsed.values, parsed.rest, parsed.remarks, around)
    if "use_env" in parsed.values:
        return launch
    return dataclasses.replace(launch, command=with_local_rank(launch.command, "--local-rank"))


def _torch(
    name: str,
    given: Mapping[str, str],
    rest: tuple[str, ...],
    remarks: tuple[str, ...],
    around: Surroundings,
) -> Launch:
    values = torchrun.with_variables(given, around.environment)
    torchrun.refuse_other_node(values.get("node_rank", "0"))
    grace = values.get("shutdown_timeout")
    return Launch(
        launcher=name,
        command=_command(name, values, rest, around.python),
        processes=_processes(name, "nproc_per_node", values.get("nproc_per_node", "1"), around),
        nodes=torchrun.nodes(values.get("nnodes", "1")),
        environment={"ROLE_NAME": values["role"]} if "role" in values else {},
        grace=None if grace is None else float(whole(name, "shutdown_timeout", grace)),
        remarks=remarks,
    )


def _accelerate_launch(words: Sequence[str], around: Surroundings) -> Launch:
    name = "accelerate launch"
    parsed = parse(name, words, accelerate.TABLE)
    given = dict(parsed.values)
    file = (
        {}
        if "cpu" in given and "config_file" not in given
        else around.read_file(given.pop("config_file", None))
    )
    values = accelerate.with_file(given, file)
    if values.get("machine_rank", "0") != "0":
        torchrun.refuse_other_node(values["machine_rank"], f"{name} --machine_rank")
    machines = whole(name, "num_machines", values.get("num_machines", "1"))
    environment = variables(values)
    if "ACCELERATE_USE_DEEPSPEED" in environment:
        own = around.environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = f"{around.directory}:{own}" if own else around.directory
    if "role" in values:
        environment["ROLE_NAME"] = values["role"]
    return Launch(
        launcher=name,
        command=_command(name, values, parsed.rest, around.python),
        processes=_share(name, values, machines, around),
        nodes=machines,
        environment=environment,
        remarks=parsed.remarks,
    )


def _share(name: str, values: Mapping[str, str], machines: int, around: Surroundings) -> int:
    """The processes of one machine: accelerate counts those of all together."""
    if "num_processes" not in values:
        return 1 if "cpu" in values else max(1, around.counts().gpus)
    total = whole(name, "num_processes", values["num_processes"])
    if total % machines:
        raise LauncherError(
            f"{name} --num_processes {total}: expected a multiple of --num_machines {machines}"
        )
    return total // machines


def _deepspeed(words: Sequence[str], around: Surroundings) -> Launch:
    name = "deepspeed"
    parsed = parse(name, words, deepspeed.TABLE)
    values = parsed.values
    if values.get("node_rank", "-1") != "-1":
        torchrun.refuse_other_node(values["node_rank"], f"{name} --node_rank")
    given = values.get("num_gpus", "-1")
    processes = max(1, around.counts().gpus) if given == "-1" else whole(name, "num_gpus", given)
    nodes = values.get("num_nodes", "-1")
    command = _command(name, values, parsed.rest, around.python)
    if "no_local_rank" not in values:
        command = with_local_rank(command, "--local_rank")
    return Launch(
        launcher=name,
        command=command,
        processes=processes,
        nodes=1 if nodes == "-1" else whole(name, "num_nodes", nodes),
        environment={"LOCAL_SIZE": str(processes)},
        remarks=parsed.remarks,
    )


_READERS: Mapping[str, Callable[[Sequence[str], Surroundings], Launch]] = {
    "torchrun": _torchrun,
    "torch.distributed.launch": _torch_launch,
    "accelerate launch": _accelerate_launch,
    "deepspeed": _deepspeed,
}


def _command(
    name: str, values: Mapping[str, str], rest: tuple[str, ...], python: str
) -> tuple[str, ...]:
    """The command of a rank."""
    if "no_python" in values:
        if "module" in values:
            raise LauncherError(f"{name}: --no_python and --module exclude each other")
        return rest
    return (python, "-m", *rest) if "module" in values else (python, *rest)


def with_local_rank(command: Sequence[str], option: str) -> tuple[str, ...]:
    """A command that passes `OPTION=N` behind its script, as older launchers do.

    A shell writes the number, since all ranks have one command. The shell becomes the command, so
    that signals and exit codes reach the right process.
    """
    script = 3 if command[1:2] == ("-m",) else 2 if _PYTHON.search(command[0]) else 1
    before, after = command[:script], command[script:]
    line = f'exec {shlex.join(before)} {option}="$LOCAL_RANK" "$@"'
    return ("sh", "-c", line, PurePath(before[-1]).name, *after)


def _processes(name: str, option: str, text: str, around: Surroundings) -> int:
    """The value of `--nproc_per_node`: a number, or a word for the devices of a node."""
    if text not in {"auto", "cpu", "gpu"}:
        return whole(name, option, text)
    counts = around.counts()
    if text == "gpu" and counts.gpus == 0:
        raise LauncherError(
            f"{name} --{option} gpu: no node of the cluster offers GPUs; give a number"
        )
    return counts.cpus if text == "cpu" or counts.gpus == 0 else counts.gpus

"""Commands before a launcher: `uv run torchrun`, `nice`, `bash -c "cd x && torchrun …"`. Pure.

A wrapper that changes the process it starts (its priority, its binding, its Python) is kept before
the command of each rank, as it would have been inherited. One that has no meaning here is left out,
with a word. One that would end ranks, or take their variables, is refused by name.

Limits: a shell's line is understood only where the launcher is its last, simple command. Whatever
is not understood is left as it is, with a word if it names a launcher.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from jobs.launchers.options import LauncherError

ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})
_SHELL_FLAGS = re.compile(r"-([eiluvx]*c)")
_SEPARATORS = re.compile(r"(?:&&|;|\n)\s*(?!.*(?:&&|;|\n))", re.DOTALL)
_SPECIAL = re.compile(r"[|&;<>()$`*?~#{}!\n\[\]]")
_DEEPEST = 8


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """The options and the effect of a wrapper."""

    values: frozenset[str] = frozenset()
    """Options with a value in the next word."""
    words: int = 0
    """Words of its own behind its options."""
    verb: str = ""
    """The word before its command: `run`."""
    has_python: bool = False
    """True if it brings an environment with another Python."""
    dropped: str = ""
    """Why it is left out; empty: it is kept."""
    refused: str = ""
    """The advice to give; empty: it is accepted."""


def _options(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UV = _options(
    "--with --with-editable --with-requirements --extra --no-extra --group --no-group --only-group"
    " --python -p --project --directory --package --env-file --index --index-url -i"
    " --default-index --extra-index-url --find-links -f --cache-dir --config-file"
    " --config-setting -C --refresh-package --upgrade-package -P --reinstall-package --color"
    " --link-mode --resolution --prerelease --exclude-newer --keyring-provider --index-strategy"
    " --no-binary-package --no-build-package --allow-insecure-host --no-install-package"
)
_CONDA = _Kind(_options("-n --name -p --prefix --cwd"), verb="run", has_python=True)
_KINDS: Mapping[str, _Kind] = {
    "nice": _Kind(_options("-n --adjustment")),
    "ionice": _Kind(_options("-c --class -n --classdata")),
    "numactl": _Kind(
        _options(
            "-i --interleave -p --preferred -P --preferred-many -m --membind -N --cpunodebind"
            " -C --physcpubind -w --weighted-interleave"
        )
    ),
    "taskset": _Kind(words=1),
    "stdbuf": _Kind(_options("-i --input -o --output -e --error")),
    "uv": _Kind(_UV, verb="run", has_python=True),
    "poetry": _Kind(_options("-C --directory -P --project"), verb="run", has_python=True),
    "pdm": _Kind(_options("-p --project -c --config"), verb="run", has_python=True),
    "pipenv": _Kind(_options("--python"), verb="run", has_python=True),
    "rye": _Kind(_options("--pyproject"), verb="run", has_python=True),
    "hatch": _Kind(_options("-e --env -p --project"), verb="run", has_python=True),
    "pixi": _Kind(_options("-e --environment --manifest-path"), verb="run", has_python=True),
    "conda": _CONDA,
    "mamba": _CONDA,
    "micromamba": _CONDA,
    "nohup": _Kind(dropped="a run does not end with the terminal that submits it"),
    "time": _Kind(
        _options("-f --format -o --output"), dropped="babysit keeps the times: `babysit show RUN`"
    ),
    "setsid": _Kind(dropped="babysit keeps ranks in groups, so that none outlives its run"),
    "exec": _Kind(dropped="each rank is a process of its own"),
    "command": _Kind(dropped="it is for shells"),
    "timeout": _Kind(
        _options("-k --kill-after -s --signal"),
        words=1,
        refused="it would end each attempt by itself; say `--set max_runtime=SECONDS`",
    ),
}
STARTERS: Mapping[str, str] = {
    "srun": "let babysit choose the nodes: leave srun out, with `--nodes N` and `--processes N`",
    "sbatch": "give the command in the batch file to babysit",
    "mpirun": "its ranks have no RANK; leave it out, with `--nodes N` and `--processes N`",
    "mpiexec": "its ranks have no RANK; leave it out, with `--nodes N` and `--processes N`",
    "horovodrun": "leave it out, with `--nodes N` and `--processes N`",
    "ft_launcher": "write `torchrun` in its place, without its --ft options",
    "dlrover-run": "write `torchrun` in its place, without its own options",
    "composer": "leave it out, with `--processes N`",
    "torchx": "give the script to babysit",
    "colossalai": "leave it out, with `--processes N`",
    "pdsh": "babysit starts the command on each node",
    "llamafactory-cli": "it starts torchrun where it finds several GPUs",
    "axolotl": "it starts accelerate; write `accelerate launch -m axolotl.cli.train FILE`",
    "tune": "it starts torchrun; write `torchrun --nproc_per_node N RECIPE.py --config FILE`",
}
"""Other programs that start ranks, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wrapped:
    """A command without what stands before it."""

    words: tuple[str, ...]
    """The command behind all wrappers."""
    prefix: tuple[str, ...] = ()
    """Words that are kept before the command of each rank."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Assignments before the command."""
    remarks: tuple[str, ...] = ()
    """A sentence for each wrapper that is left out, or does something else here."""
    refusals: tuple[str, ...] = ()
    """A sentence for each wrapper that no launcher may stand behind."""
    has_python: bool = False
    """True if the command gets its Python from a wrapper."""


def unwrap(command: Sequence[str]) -> Wrapped:
    """Take wrappers off a command, as far as they are understood."""
    found = Wrapped(tuple(command))
    for _ in range(_DEEPEST):
        step = _step(found.words)
        if step is None or not step.words:
            break
        found = Wrapped(
            step.words,
            (*found.prefix, *step.prefix),
            {**found.environment, **step.environment},
            (*found.remarks, *step.remarks),
            (*found.refusals, *step.refusals),
            found.has_python or step.has_python,
        )
    return found


def refuse(wrapped: Wrapped) -> None:
    """Refuse a launcher behind these wrappers, if one of them cannot be taken over.

    Raises:
        LauncherError: One cannot.
    """
    if wrapped.refusals:
        raise LauncherError(wrapped.refusals[0])


def _step(words: tuple[str, ...]) -> Wrapped | None:
    """The command without its first wrapper; None: it begins with none."""
    if not words:
        return None
    name = PurePath(words[0]).name
    if name == "env":
        return _env(words)
    if name in _SHELLS:
        return _shell(words)
    kind = _KINDS.get(name)
    return None if kind is None else _plain(name, kind, words)


def _plain(name: str, kind: _Kind, words: tuple[str, ...]) -> Wrapped | None:
    end = _behind_options(words, 1, kind.values)
    if kind.verb:
        if words[end : end + 1] != (kind.verb,):
            return None
        end = _behind_options(words, end + 1, kind.values)
    end += kind.words
    prefix, rest = words[:end], words[end:]
    if name == "uv" and prefix[-1] in {"-m", "--module"}:
        prefix, rest = prefix[:-1], ("python", "-m", *rest)
    if not rest:
        return None
    if kind.dropped:
        return Wrapped(rest, remarks=(f"{name} has no effect: {kind.dropped}",))
    if kind.refused:
        return Wrapped(rest, prefix, refusals=(f"{name}: {kind.refused}",))
    if kind is _CONDA and name != "micromamba":
        prefix, said = _with_live_output(prefix)
        return Wrapped(rest, prefix, remarks=said, has_python=True)
    return Wrapped(rest, prefix, has_python=kind.has_python)


def _with_live_output(prefix: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`conda run` shows output only at the end, unless it has an option for it."""
    if {"--no-capture-output", "--live-stream"} & set(prefix):
        return prefix, ()
    place = prefix.index("run") + 1
    said = "conda run gets --no-capture-output, so that the output of a rank is seen at once"
    return (*prefix[:place], "--no-capture-output", *prefix[place:]), (said,)


def _behind_options(words: Sequence[str], place: int, values: frozenset[str]) -> int:
    """The place of the first word that is not an option."""
    while place < len(words) and words[place].startswith("-") and len(words[place]) > 1:
        word = words[place]
        place += 1
        if word == "--" or word in {"-m", "--module"} - values:
            break
        place += word in values
    return place


def _env(words: tuple[str, ...]) -> Wrapped | None:
    """`env`: assignments become the environment; options stay before the command."""
    end = _behind_options(words, 1, _options("-u --unset -C --chdir -S --split-string"))
    options, rest = words[1:end], words[end:]
    assigned: dict[str, str] = {}
    while rest and ASSIGNMENT.fullmatch(rest[0]):
        name, _, value = rest[0].partition("=")
        assigned[name] = value
        rest = rest[1:]
    if {"-S", "--split-string"} & set(options) or not rest:
        return None
    if {"-i", "-", "--ignore-environment"} & set(options):
        why = "env -i: it would take RANK and the other variables of a rank; use `env -u NAME`"
        return Wrapped(rest, refusals=(why,))
    prefix = (words[0], *options) if options else ()
    return Wrapped(rest, prefix, assigned)


def _shell(words: tuple[str, ...]) -> Wrapped | None:
    """`bash -c LINE`, if the line ends with a simple command."""
    if len(words) != 3 or (flags := _SHELL_FLAGS.fullmatch(words[1])) is None:
        return None
    line = words[2].strip()
    cut = _SEPARATORS.search(line)
    before, last = (line[: cut.end()], line[cut.end() :]) if cut else ("", line)
    if _SPECIAL.search(last):
        return None
    try:
        simple = shlex.split(last)
    except ValueError:  # a separator in quotes
        return None
    assigned: dict[str, str] = {}
    while simple and ASSIGNMENT.fullmatch(simple[0]):
        name, _, value = simple.pop(0).partition("=")
        assigned[name] = value
    if not simple:
        return None
    if not before and not set(flags[1]) & {"l", "i"}:
        return Wrapped(tuple(simple), environment=assigned)
    said = "what stands before the launcher runs once for each rank" if before else ""
    prefix = (words[0], words[1], f'{before}exec "$@"', "rank")
    return Wrapped(tuple(simple), prefix, assigned, (said,) if said else ())

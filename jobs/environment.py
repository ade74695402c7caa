"""The environment of a submission: which variables of a shell reach a run, and from where.

As with `sbatch`, the environment of the shell that submits goes with the run where the run's
processes are this user's on this machine. Elsewhere only the variables that `env_from` names go:
the PATH or HOME of one machine means nothing on another one. Values are read at submission and kept
outside of the spec, since the spec is in the journal and in answers of the API.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from jobs.paths import expand
from jobs.spec import EnvironmentSource
from jobs.spec_types import Text, Variable
from jobs.yaml_file import Problem, Source, SpecError

MAX_BYTES = 512_000
"""Most bytes of names and values in all, half of the largest body that a server reads by default.
Linux gives a new program 2 MiB for arguments and environment (execve(2))."""
MAX_VALUE_BYTES = 128 * 1024 - 1
"""Most bytes of `NAME=value` (MAX_ARG_STRLEN of execve(2))."""
_SHELL_OWN = frozenset({"_", "PWD", "OLDPWD", "SHLVL"})
"""Every shell sets these anew, so `submit` does not list them."""
_DEVICES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "GPU_DEVICE_ORDINAL",
        "ONEAPI_DEVICE_SELECTOR",
        "ZE_AFFINITY_MASK",
    }
)
"""The cluster assigns devices to runs; the agent's own value holds."""
_DENIED = (
    *_DEVICES,
    # babysit's own, and the credentials of the control plane
    "BABYSIT_*",
    # who a rank is: babysit says so, and other launchers' words would disagree
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "ROLE_*",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_*",
    "SLURM_*",
    "SLURMD_*",
    "OMPI_*",
    "PMI_*",
    "PMIX_*",
    # the session that the submitter will leave
    "SSH_*",
    "TMUX",
    "TMUX_*",
    "STY",
    "WINDOW",
    "WINDOWID",
    "DISPLAY",
    "WAYLAND_*",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_*",
    "XDG_SEAT*",
    "XDG_VTNR",
    "DBUS_*",
    "DESKTOP_*",
    "SESSION_MANAGER",
    "GPG_TTY",
    "TERM_SESSION_ID",
    "VSCODE_*",
    # what a service manager gives one process
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MAINPID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)\s*=(.*)", re.DOTALL)
_QUOTED = {
    "'": re.compile(r"'([^']*)'\s*(?:#.*)?", re.DOTALL),
    '"': re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?', re.DOTALL),
}
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}


class Environment(BaseModel):
    """The variables that were submitted with a run. Never part of a message, a log or an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shell: dict[Variable, Text] | None = Field(default=None, repr=False)
    """The environment of the submitter's shell; None: it was not sent."""
    named: dict[Variable, Text] = Field(default_factory=dict, repr=False)
    """The variables of `env_from`."""

    @property
    def variables(self) -> dict[str, str]:
        """All of them; a named variable wins over the shell's."""
        return {**(self.shell or {}), **self.named}

    def checked(self) -> Environment:
        """The environment, if a process can be given it.

        Raises:
            ValueError: It is too large; the message has names and sizes, never values.
        """
        sizes = {
            name: len(name.encode()) + len(value.encode()) + 2
            for name, value in self.variables.items()
        }
        large = max(sizes, key=sizes.__getitem__, default="")
        if sizes and sizes[large] > MAX_VALUE_BYTES:
            raise ValueError(
                f"{large} has {sizes[large]:,} bytes; {MAX_VALUE_BYTES:,} are possible"
            )
        if (total := sum(sizes.values())) > MAX_BYTES:
            raise ValueError(f"the environment has {total:,} bytes; {MAX_BYTES:,} are possible")
        return self


def denied(name: str) -> bool:
    """True if a variable of a shell does not go with a run unless `env_from` names it in full."""
    return name in _SHELL_OWN or any(fnmatch.fnmatchcase(name, pattern) for pattern in _DENIED)


def assigned(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a cluster assigns devices: the agent's hold, never a shell's."""
    return {name: value for name, value in environment.items() if name in _DEVICES}


def divide(
    shell: Mapping[str, str], own: Iterable[str] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Divide the environment of a shell into what goes with a run, and what is dropped.

    Args:
        shell: The environment.
        own: Names of babysit's settings, which `submit` does not list.

    Returns:
        The variables that go, and the names of dropped ones that somebody may miss.
    """
    kept = {name: value for name, value in shell.items() if not denied(name) and _is_text(value)}
    silent = _SHELL_OWN.union(own)
    return kept, tuple(sorted(name for name in shell if name not in kept and name not in silent))


def _is_text(value: str) -> bool:
    """False for bytes that are not UTF-8: JSON cannot carry them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def this_machine() -> str:
    """Identifies this user on this machine with its file systems as they are seen here.

    Two processes with the same answer give paths and variables the same meaning.
    """
    parts = [
        Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        str(Path("/proc/self/ns/mnt").readlink()),
        str(os.getuid()),
    ]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


# --- env_from -----------------------------------------------------------------------------------


def read_sources(
    sources: Sequence[EnvironmentSource],
    base_directory: str | Path,
    shell: Mapping[str, str],
    where: Source,
) -> dict[str, str]:
    """The values that `env_from` of a spec names, read now; later entries win.

    Args:
        sources: The entries.
        base_directory: The directory of the spec file, for relative paths.
        shell: The environment of the shell that submits.
        where: Positions, for the problems.

    Raises:
        SpecError: A file cannot be read, or a variable is not set; no message shows a value.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    reads = [
        (number, read)
        for number, entry in enumerate(sources)
        for read in _reads(entry, base_directory, shell)
    ]
    for number, read in reads:
        try:
            found.update(read())
        except OSError as error:
            message = f"{error.filename}: {error.strerror}"
            problems.append(where.problem(("env_from", number), message))
        except ValueError as error:
            problems.append(where.problem(("env_from", number), str(error)))
    problems += [
        where.problem(("env_from",), f"{name} is babysit's own variable: leave it out")
        for name in found
        if name.startswith("BABYSIT_")
    ]
    if problems:
        raise SpecError(problems)
    return found


def _reads(
    entry: EnvironmentSource, base_directory: str | Path, shell: Mapping[str, str]
) -> Iterator[Callable[[], Mapping[str, str]]]:
    """One reading for each thing that an entry names: everything missing is reported at once."""
    if entry.file is not None:
        yield partial(_dotenv, entry.file, base_directory, shell)
    for pattern in entry.variables:
        yield partial(_chosen, pattern, shell)
    for name, reference in entry.secrets.items():
        yield partial(_secret, name, reference, base_directory, shell)


def _dotenv(file: str, base_directory: str | Path, shell: Mapping[str, str]) -> dict[str, str]:
    path = Path(base_directory, expand(file, shell))
    return parse_dotenv(_text(path), str(path))


def _secret(
    name: str, reference: str, base_directory: str | Path, shell: Mapping[str, str]
) -> dict[str, str]:
    kind, _, what = reference.partition(":")
    if kind == "env":
        return {name: _chosen(what, shell)[what]}
    text = _text(Path(base_directory, expand(what, shell)))
    return {name: text.removesuffix("\n").removesuffix("\r")}


def _chosen(pattern: str, shell: Mapping[str, str]) -> dict[str, str]:
    """The variables that a name or a pattern stands for. A pattern may stand for none."""
    if "*" in pattern:
        names = (name for name in shell if fnmatch.fnmatchcase(name, pattern) and not denied(name))
        return {name: shell[name] for name in names}
    if pattern not in shell:
        raise ValueError(f"{pattern} is not set in the environment of this shell")
    return {pattern: shell[pattern]}


def _text(path: Path) -> str:
    """The text of a small file."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes: a file of variables is small")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8 text") from None
    if "\0" in text:
        raise ValueError(f"{path} has a NUL character, which no process can be given")
    return text


def parse_dotenv(text: str, name: str = ".env") -> dict[str, str]:
    r"""The variables of a file of `NAME=value` lines.

    Blank lines and lines that begin with `#` are left out, and `export` before a name. A value may
    be in single quotes (as it is) or double quotes (with `\\n`, `\\t`, `\\"`, `\\\\` and
    `\\$`), also over several lines; else it ends before ` #`. No variable is expanded.

    Raises:
        ValueError: A line has another form; the message has its number, never its text.
    """
    found: dict[str, str] = {}
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (match := _LINE.fullmatch(line)) is None:
            raise ValueError(f"{name}:{number}: expected NAME=value")
        value = match[2].lstrip()
        if value[:1] not in _QUOTED:
            found[match[1]] = re.sub(r"(^|\s)#.*", "", value).rstrip()
            continue
        first = number
        while (whole := _QUOTED[value[0]].fullmatch(value)) is None:
            if number == len(lines):
                raise ValueError(f"{name}:{first}: the quotes are not closed, or text follows")
            value = f"{value}\n{lines[number]}"
            number += 1
        found[match[1]] = _unescaped(whole[1]) if value[0] == '"' else whole[1]
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), text)

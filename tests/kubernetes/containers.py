"""Containers without a container runtime: a local process in namespaces of its own.

A container has its own process table (its command is process 1, as in a real one), mounts, host
name and `/dev/shm`. Its root is the machine's, copied on write, so that the tests' interpreter and
packages are its "image", and what it writes goes with it. `/tmp` is empty. It is not contained: no
limit of CPU or memory, no user of its own, and the network is the machine's, where a Pod has an
address of 127.0.0.0/8.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes.processes import find_tool, spawn
from tests.kubernetes.servers import as_root

_OWN = {"dev", "proc", "sys", "tmp", "lost+found"}


@dataclass(frozen=True)
class Mount:
    """A directory or file of the node that a container sees at a path."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Command:
    """What a container runs."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    mounts: list[Mount] = field(default_factory=list)
    hostname: str = "localhost"


class Container:
    """One run of a container.

    Args:
        command: What it runs.
        root: An empty directory in memory, for what it writes; removed at its end.
        log: Its output is appended here.
    """

    def __init__(self, command: Command, root: Path, log: Path) -> None:
        self._root = root
        self.log = log
        self.killed_for = ""
        """Reason that its end is given, such as `OOMKilled`."""
        root.mkdir(parents=True)
        flags = ["--mount", "--uts", "--propagation", "private"]
        with log.open("ab") as output:
            self._process = spawn(
                [
                    find_tool("unshare"),
                    *flags,
                    *as_root(),
                    "/bin/sh",
                    "-ec",
                    _script(command, root),
                ],
                env=command.environment,
                cwd="/",
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        while not self.pid and self._process.poll() is None:
            time.sleep(0.01)  # its file system is being made

    @property
    def pid(self) -> int:
        """The command, as the machine sees it; 0: it is not there."""
        pid = self._child()
        try:
            # Programs that make the file system are children too, but see the machine's root.
            own = pid and Path(f"/proc/{pid}/root").stat().st_dev != Path("/").stat().st_dev
        except OSError:
            return 0
        return pid if own else 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command (process 1, which the kernel spares signals that it does
        not handle).
        """
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, reason: str = "") -> None:
        """SIGKILL to every process of it."""
        self.killed_for = self.killed_for or reason
        if pid := self._child():
            # The kernel kills the rest of its process table, and the shell outside waits for it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            self._process.kill()

    def _child(self) -> int:
        try:
            path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            return int((path.read_text().split() or ["0"])[0])
        except OSError:
            return 0

    def poll(self) -> int | None:
        """Exit code as a kubelet reports it (137: SIGKILL); None: it runs."""
        code = self._process.poll()
        return None if code is None else code if code >= 0 else 128 - code

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end; exit code, or None after so many seconds."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def remove(self) -> None:
        """Remove what it wrote. Its processes have ended."""
        shutil.rmtree(self._root, ignore_errors=True)

    def run(self, arguments: list[str], seconds: float) -> bool:
        """Run a command in the container, as exec probes and hooks do; whether it ended well in
        time.
        """
        if not (pid := self.pid):
            return False
        user = ["--user", "--preserve-credentials"] if as_root() else []
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        enter = [find_tool("nsenter"), "--target", str(pid), "--mount", "--pid", "--uts", "--root"]
        process = spawn(
            [*enter, *user, "--", *arguments],
            env=dict(os.fsdecode(pair).split("=", 1) for pair in environment if b"=" in pair),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        return process.wait() == 0


def _script(command: Command, root: Path) -> str:
    """Make the file system, then become the command."""
    names = (
        *(
            "mount",
            "mkdir",
            "chroot",
            "env",
            "ln",
            "touch",
            "test",
            "hostname",
            "unshare",
            "setpriv",
        ),
        "sh",
    )
    tools = {name: find_tool(name) for name in names}
    top = root / "root"
    lines = [f"mount -t tmpfs -o mode=755 root {_quote(root)}", f"mkdir -p {_quote(top)}"]
    for entry in sorted(Path("/").iterdir()):
        lines += _top_level(entry, root)
    lines += [
        f"mkdir -p {top}/dev {top}/proc {top}/sys {top}/tmp",
        f"mount --rbind /dev {top}/dev",
        f"mount --rbind /sys {top}/sys",
        f"mount -t tmpfs -o size=64m,mode=1777 shm {top}/dev/shm",
        f"mount -t tmpfs -o mode=1777 tmp {top}/tmp",
        f"hostname {_quote(command.hostname)}",
    ]
    for mount in command.mounts:
        lines += _bind(mount, top)
    arguments = " ".join(map(_quote, command.arguments))
    become = f"{_quote(top)} {tools['env']} -C {_quote(command.directory)} -- {arguments}"
    inside = f"{tools['mount']} -t proc proc {_quote(f'{top}/proc')}\n"
    inside += f"exec {tools['setpriv']} --pdeathsig KILL {tools['chroot']} {become}"
    # The first child of a shell in a new process table is its process 1. The shell outside stays:
    # its exit code is the command's, 128 + n for signal n. What it says about the signal is not the
    # container's output.
    outside = "exec 3>&2 2>/dev/null\n"
    outside += f"(exec {tools['sh']} -ec {_quote(inside)}) 2>&3 3>&-\nexit $?"
    last = f"exec {tools['unshare']} --pid {tools['sh']} -c {_quote(outside)}"
    return "\n".join([*(_with_paths(line, tools) for line in lines), last])


def _top_level(entry: Path, root: Path) -> list[str]:
    name, target = entry.name, root / "root" / entry.name
    if name in _OWN:
        return []
    if entry.is_symlink():
        return [f"ln -s {_quote(entry.readlink())} {_quote(target)}"]
    if not entry.is_dir():
        return []
    upper, work = root / "upper" / name, root / "work" / name
    options = f"lowerdir={entry},upperdir={upper},workdir={work}"
    if as_root():
        options += ",userxattr"
    overlay = f"mount -t overlay overlay -o {_quote(options)} {_quote(target)} 2>/dev/null"
    # Where the kernel refuses (something is mounted below, and this user may not look behind it):
    # as it is.
    bind = f"mount --rbind {_quote(entry)} {_quote(target)}"
    return [
        f"mkdir -p {_quote(upper)} {_quote(work)} {_quote(target)}",
        f"{overlay} || {bind}",
    ]


def _bind(mount: Mount, top: Path) -> list[str]:
    # The machine's links (/var/run) would lead out of the container.
    inner = Path(os.path.realpath(mount.target)).relative_to("/")
    target = _quote(top / inner)
    if mount.source.is_dir():
        lines = [f"mkdir -p {target}"]
    else:
        parent = _quote((top / inner).parent)
        lines = [f"mkdir -p {parent}", f"test -e {target} || touch {target}"]
    lines.append(f"mount --bind {_quote(mount.source)} {target}")
    if mount.read_only:
        lines.append(f"mount -o remount,bind,ro {target}")
    return lines


def _quote(text: object) -> str:
    return shlex.quote(str(text))


def _with_paths(line: str, tools: dict[str, str]) -> str:
    """Programs by absolute path: PATH is the container's own."""
    words = line.split(" ")
    starts = {0} | {at + 1 for at, word in enumerate(words) if word in {"||", "exec"}}
    return " ".join(tools.get(w, w) if at in starts else w for at, w in enumerate(words))

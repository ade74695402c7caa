"""The fork server: imports the modules that ranks will need, and forks ranks on request.

It starts by file path, so that no module of babysit enters the ranks' `sys.modules`: a user's own
`jobs.py` stays importable. Standard library only.

The forkserver of multiprocessing does not fit: it swallows import errors of its preload, ignores
process groups, and runs children inside `Process._bootstrap`, which skips parts of the
interpreter's shutdown and is visible to the user's code as `parent_process()`. Here a forked child
returns from :func:`serve` and becomes an ordinary main program.

Messages are JSON, one per packet of a Unix SOCK_SEQPACKET pair. `{"prepare": {command, forks,
workdir, preload, cgroup, stacks}}` comes first, and its answer is `{"ready": {seconds, errors,
threads}}`. Then `{"launch": {key, command, forks, workdir, env}}`, with the descriptor that the
rank writes its output to, gets `{"started": key, "pid": n}` or `{"refused": key, "error": text}`,
and later `{"exited": key, "code": n}` (negative: a signal).
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import time
import traceback
import types
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

PACKET_BYTES = 1 << 17
"""Largest message in bytes; well below the default socket buffer of 208 KiB."""
_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


def _beside(name: str) -> types.ModuleType:
    """A module of this directory, by its file, and not in `sys.modules`."""
    return _by_path(name, os.path.join(os.path.dirname(__file__), f"{name}.py"))  # noqa: PTH118, PTH120 - as below


def _by_path(name: str, path: str) -> types.ModuleType:
    """A module of a file, and not in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


if __name__ != "__main__" or TYPE_CHECKING:
    from jobs.agent import cgroup, orphans
else:
    cgroup, orphans = _beside("cgroup"), _beside("orphans")

_ORPHANS_MILLISECONDS = 5000
"""Time between looks for orphans that have ended and must be reaped."""


class Program(NamedTuple):
    """How to run a command."""

    kind: str
    """`script` or `module`: run in the forked interpreter; `exec`: replace it."""
    target: str
    """Path of the script, name of the module, or the executable."""
    argv: tuple[str, ...]
    """`sys.argv` of a script or module (without the module's name), or the whole command."""


def parse_command(command: list[str], *, forks: bool) -> Program:
    """Decide whether a command can run inside the fork or must be executed.

    `python script.py …` and `python -m module …`, also with `-u`, run in the fork. Other options
    need a fresh interpreter, and other programs are executed.

    Args:
        command: The program and its arguments.
        forks: True if the program is this very interpreter: the agent has looked it up.
    """
    words = command[1:] if forks else []
    while words and words[0] == "-u":
        words = words[1:]
    if len(words) > 1 and words[0] == "-m":
        return Program("module", words[1], tuple(words[2:]))
    if words and words[0].endswith(".py") and not words[0].startswith("-"):
        return Program("script", words[0], tuple(words))
    return Program("exec", command[0], tuple(command))


def import_path(program: Program, workdir: str) -> str | None:
    """The first entry of `sys.path` for this program; None if it is executed."""
    if program.kind == "script":
        return os.path.dirname(os.path.realpath(os.path.join(workdir, program.target)))  # noqa: PTH118, PTH120
    return workdir if program.kind == "module" else None


# --- the server ---------------------------------------------------------------------------------


class _Server:
    """Forks ranks and reports their exits. Single-threaded, because it forks."""

    def __init__(self, channel: socket.socket, group: str) -> None:
        self._channel = channel
        self._group = group
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._children: dict[int, tuple[str, int]] = {}
        """Pidfd → key and pid."""
        orphans.adopt()
        self._own = set(orphans.children())
        """Processes that the modules to preload have started."""

    def serve(self) -> dict[str, Any]:
        """Serve for ever; returns only in a forked child, with its request."""
        while True:
            ready = self._poll.poll(_ORPHANS_MILLISECONDS)
            if not ready:
                self._reap_orphans()
            for descriptor, _ in ready:
                if descriptor in self._children:
                    self._reap(descriptor)
                    continue
                message, output = receive_output(self._channel)
                if message is None:
                    self._leave()
                request: dict[str, Any] = message["launch"]
                if self._fork(request):
                    self._close()
                    request["output"] = output
                    return request
                os.close(output)

    def _fork(self, request: dict[str, Any]) -> bool:
        """Fork a rank. True in the child."""
        flush_output()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            send(self._channel, {"refused": request["key"], "error": f"fork: {error}"})
            return False
        if pid == 0:
            detach(parent)
            with contextlib.suppress(OSError):  # as where there is no group
                cgroup.enter(self._group)
            return True
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = (request["key"], pid)
        self._poll.register(descriptor, select.POLLIN)
        send(self._channel, {"started": request["key"], "pid": pid})
        return False

    def _reap(self, descriptor: int) -> None:
        """Kill the rest of a dead rank's group, then reap the rank.

        The order matters: until it is reaped, the dead rank reserves its pid, which is the group's
        id. With the last rank end the processes that have left the groups: they are in the ranks'
        control group if there is one, and their parents are dead, so they are this process's
        children, whatever their session and environment.
        """
        key, pid = self._children.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        kill_group(pid)
        _, status = os.waitpid(pid, 0)
        if not self._children:
            self._end_orphans()
        send(self._channel, {"exited": key, "code": os.waitstatus_to_exitcode(status)})

    def _end_orphans(self) -> None:
        if left := [*cgroup.end(self._group), *orphans.end_children(self._own)]:
            with contextlib.suppress(OSError):  # a full disk must not end this process
                sys.stderr.write(f"processes survive SIGKILL: {left}\n")

    def _reap_orphans(self) -> None:
        """Reap orphans that have ended by themselves; those that live are none of a rank's end."""
        ranks = {pid for _, pid in self._children.values()}
        for pid in orphans.children():
            if pid not in ranks and pid not in self._own:
                orphans.is_over(pid)

    def _close(self) -> None:
        """Close the server's descriptors in a child."""
        self._channel.close()
        for descriptor in self._children:
            os.close(descriptor)

    def _leave(self) -> NoReturn:
        """The agent has ended: kill all ranks, and what they have left behind, and exit."""
        for _, pid in self._children.values():
            kill_group(pid)
        self._end_orphans()
        os._exit(0)


def flush_output() -> None:
    """Write out what imports have printed; where the disk is full, ranks start all the same."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def kill_group(pid: int) -> None:
    """Send SIGKILL to a rank and its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # just forked, it may not have its own group yet
        os.kill(pid, signal.SIGKILL)


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one message; the end of the agent shows at the next receive."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.send(json.dumps(message).encode())


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message; None: the agent has ended."""
    try:
        data = channel.recv(PACKET_BYTES)
    except ConnectionResetError:
        return None
    if not data:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def receive_output(channel: socket.socket) -> tuple[dict[str, Any] | None, int]:
    """The next message and the descriptor that came with it; None: the agent has ended."""
    try:
        data, descriptors, *_ = socket.recv_fds(
            channel, PACKET_BYTES, 1, flags=socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return None, -1
    if not data:
        return None, -1
    message: dict[str, Any] = json.loads(data)
    return message, descriptors[0]


def preload(modules: list[str]) -> dict[str, str]:
    """Import the modules; returns the tracebacks of those that failed, by name."""
    errors = {}
    for name in modules:
        try:
            importlib.import_module("babysit.entry" if name == "babysit" else name)  # it is lazy
        except BaseException:  # noqa: BLE001 - no import may kill the fork server
            errors[name] = traceback.format_exc(limit=-3)[-2000:]
    return errors


# --- becoming a rank ----------------------------------------------------------------------------


def detach(parent: int) -> None:
    """In the child: start a session, die with the parent, and allow py-spy to attach."""
    os.setsid()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:  # the script starts as any other does
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl took effect
        os._exit(1)
    prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY)  # fails harmlessly where Yama is absent


def become(request: dict[str, Any], stacks: types.ModuleType | None = None) -> None:
    """In the child: run the rank's program. Returns or raises as that program does.

    `stacks` is :mod:`babysit.stack_signal`: the rank writes its stacks where nobody may trace it.
    """
    output = request["output"]
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.environ.update(request["env"])
    _reseed()
    program = parse_command(request["command"], forks=request["forks"])
    if program.kind != "exec" and stacks is not None:  # an exec would forget the handler
        with contextlib.suppress(Exception):  # no rank may die of it
            stacks.register(os.environ["BABYSIT_RANK_DIR"])
    try:
        os.chdir(request["workdir"])
        _run(program)
    except Exception as error:  # noqa: BLE001 - end as the interpreter would
        shown = _without_own_frames(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(shown), shown)
        sys.exit(1)


def _reseed() -> None:
    """Seed numpy's global generator: forks would share its state, fresh interpreters do not."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _run(program: Program) -> None:
    if program.kind == "exec":
        os.environ.setdefault("PYTHONUNBUFFERED", "1")  # as in forks: lines reach the log at once
        try:
            os.execvp(program.target, program.argv)  # noqa: S606 - the user's command, as given
        except OSError as error:
            sys.stderr.write(
                f"babysit: cannot start {program.target}: {_not_started(error, program)}\n"
            )
            sys.exit(127 if isinstance(error, FileNotFoundError) else 126)  # as shells do
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    if program.kind == "module":
        sys.argv = [program.target, *program.argv]
        runpy._run_module_as_main(program.target)  # type: ignore[attr-defined]  # noqa: SLF001 - what `-m` calls
        return
    sys.argv = list(program.argv)
    path = os.path.abspath(program.target)  # noqa: PTH100 - pathlib would cost an import
    main.__file__ = path
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec")
    exec(code, main.__dict__)  # noqa: S102 - runs the user's script


def _not_started(error: OSError, program: Program) -> str:
    """Why a program cannot be started, in words: the error of the system names no file."""
    found = shutil.which(program.target, mode=os.F_OK)
    if found is None:
        where = (
            "file" if "/" in program.target else f"program on PATH ({os.environ.get('PATH', '')})"
        )
        return f"no such {where}"
    if isinstance(error, PermissionError):
        return f"{found} is not executable: `chmod +x` it, or name its interpreter in the command"
    with contextlib.suppress(OSError), open(found, "rb") as file:  # noqa: PTH123 - as above
        first = file.readline(200).decode(errors="replace").strip()
        if first.startswith("#!"):
            return f"the interpreter in its first line, {first}, is not there"
    return f"{found} cannot be executed: {error.strerror}; name its interpreter in the command"


def _without_own_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    own = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and trace.tb_frame.f_code.co_filename in own:
        trace = trace.tb_next
    return trace


def main(descriptor: int) -> None:
    """Prepare, then serve on the inherited socket; in a child, run the rank."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    message = receive(channel)
    if message is None:
        return
    prepare = message["prepare"]
    started = time.monotonic()
    program = parse_command(prepare["command"], forks=prepare["forks"])
    path = import_path(program, prepare["workdir"])
    if path is not None:
        sys.path.insert(0, path)
    with contextlib.suppress(OSError):  # the rank fails in the same way and logs it
        os.chdir(prepare["workdir"])
    errors = preload(prepare["preload"])
    stacks = None
    with contextlib.suppress(Exception):  # ranks start all the same
        stacks = _by_path("stack_signal", prepare["stacks"])
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # A machine that stops sends it to all processes. The ranks, which die with this one, save
        # first; this one ends with its agent.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # the collector in forks does not touch, and so copy, these pages
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - pathlib would cost an import
    ready = {"seconds": time.monotonic() - started, "errors": errors, "threads": threads}
    send(channel, {"ready": ready})
    become(_Server(channel, prepare["cgroup"]).serve(), stacks)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""The standby interpreter: has imported what ranks will need, and forks them on request.

Started by file path, so that nothing of ours gets into the ranks' `sys.modules`: a user's own
`jobs.py` stays importable. Standard library only.

Why not multiprocessing's forkserver: it swallows import errors of its preload, knows nothing of
groups, and its children run inside `Process._bootstrap`, which skips parts of interpreter shutdown
and shows as `parent_process()` to the user's code. Here a forked child returns out of :func:`serve`
and becomes an ordinary main program.

Messages (JSON, one per packet of a Unix SOCK_SEQPACKET pair): `{"prepare": {command, workdir,
preload}}` first, answered by `{"ready": {seconds, errors, threads}}`; then `{"launch": {key,
command, workdir, env, log}}`, answered by `{"started": key, "pid": n}` or `{"refused": key,
"error": text}`, and later `{"exited": key, "code": n}` (negative: that signal).
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback
import types
from typing import Any, NamedTuple, NoReturn

PACKET_BYTES = 1 << 17
"""Largest message; well below the default socket buffer of 208 KiB."""
_PR_SET_PDEATHSIG = 1
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


class Program(NamedTuple):
    """How a command is run."""

    kind: str
    """`script` or `module`: inside the forked interpreter. `exec`: replaces it."""
    target: str
    """Path of the script, name of the module, or the executable."""
    argv: tuple[str, ...]
    """`sys.argv` of a script or module (without the module's own name), or the whole command."""


def parse_command(command: list[str], executable: str = sys.executable) -> Program:
    """Tell commands that the standby can run itself from those it must execute.

    `python script.py …` and `python -m module …` (also with `-u`) of this very interpreter are run
    in the fork; other options need an interpreter of their own, and other programs are what they
    are.
    """
    names = {"python", "python3", f"python3.{sys.version_info.minor}", executable}
    if command[0] not in names:
        return Program("exec", command[0], tuple(command))
    words = command[1:]
    while words and words[0] == "-u":
        words = words[1:]
    if len(words) > 1 and words[0] == "-m":
        return Program("module", words[1], tuple(words[2:]))
    if words and words[0].endswith(".py") and not words[0].startswith("-"):
        return Program("script", words[0], tuple(words))
    return Program("exec", executable, (executable, *command[1:]))


def import_path(program: Program, workdir: str) -> str | None:
    """What python would put first on `sys.path` for this program; None when it is executed."""
    if program.kind == "script":
        return os.path.dirname(os.path.realpath(os.path.join(workdir, program.target)))  # noqa: PTH118, PTH120
    return workdir if program.kind == "module" else None


# --- the server ---------------------------------------------------------------------------------


class _Server:
    """Forks ranks and reports their ends. Single-threaded, since it forks."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._children: dict[int, tuple[str, int]] = {}
        """pidfd: key and pid."""

    def serve(self) -> dict[str, Any]:
        """Serve for ever; returns only in a forked child, with its request."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                    continue
                message = receive(self._channel)
                if message is None:
                    self._leave()
                if self._fork(message["launch"]):
                    self._close()
                    request: dict[str, Any] = message["launch"]
                    return request

    def _fork(self, request: dict[str, Any]) -> bool:
        """Whether this is the child."""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            send(self._channel, {"refused": request["key"], "error": f"fork: {error}"})
            return False
        if pid == 0:
            detach(parent)
            return True
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = (request["key"], pid)
        self._poll.register(descriptor, select.POLLIN)
        send(self._channel, {"started": request["key"], "pid": pid})
        return False

    def _reap(self, descriptor: int) -> None:
        """Kill what the dead rank left in its group, while its pid is still its own; then reap."""
        key, pid = self._children.pop(descriptor)
        self._poll.unregister(descriptor)
        os.close(descriptor)
        kill_group(pid)
        _, status = os.waitpid(pid, 0)
        send(self._channel, {"exited": key, "code": os.waitstatus_to_exitcode(status)})

    def _close(self) -> None:
        """In a child: let go of what is the server's."""
        self._channel.close()
        for descriptor in self._children:
            os.close(descriptor)

    def _leave(self) -> NoReturn:
        """The agent is gone: so is everything it ran."""
        for _, pid in self._children.values():
            kill_group(pid)
        os._exit(0)


def kill_group(pid: int) -> None:
    """SIGKILL a rank and its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # forked just now: not yet a group of its own
        os.kill(pid, signal.SIGKILL)


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one message; an agent that is gone shows at the next receive."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        channel.send(json.dumps(message).encode())


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message; None when the agent is gone."""
    try:
        data = channel.recv(PACKET_BYTES)
    except ConnectionResetError:
        return None
    if not data:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def preload(modules: list[str]) -> dict[str, str]:
    """Import the modules; returns the tracebacks of those that failed."""
    errors = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001 - whatever a module does at import must not take the standby
            errors[name] = traceback.format_exc(limit=-3)[-2000:]
    return errors


# --- becoming a rank ----------------------------------------------------------------------------


def detach(parent: int) -> None:
    """In the child: a session of its own, death with the parent, open to py-spy."""
    os.setsid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # died before the line above
        os._exit(1)
    prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY)  # fails harmlessly where Yama is absent


def become(request: dict[str, Any]) -> None:
    """In the child: turn into the rank. Returns or raises as the user's program does."""
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.environ.update(request["env"])
    _reseed()
    try:
        os.chdir(request["workdir"])
        _run(parse_command(request["command"]))
    except Exception as error:  # noqa: BLE001 - as the interpreter itself would end
        shown = _without_our_frames(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(shown), shown)
        sys.exit(1)


def _reseed() -> None:
    """Forks share the state of numpy's global generator; a fresh interpreter would have its own."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _run(program: Program) -> None:
    if program.kind == "exec":
        os.environ.setdefault(
            "PYTHONUNBUFFERED", "1"
        )  # as the forked ones: lines reach the log at once
        os.execvp(program.target, program.argv)  # noqa: S606 - the user's command, as given
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
    exec(code, main.__dict__)  # noqa: S102 - the user's script is what we are for


def _without_our_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    ours = {__file__, runpy.__file__, "<frozen runpy>"}
    while trace is not None and trace.tb_frame.f_code.co_filename in ours:
        trace = trace.tb_next
    return trace


def main(descriptor: int) -> None:
    """Prepare, then serve on the inherited socket; in a child, become the rank."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    message = receive(channel)
    if message is None:
        return
    prepare = message["prepare"]
    started = time.monotonic()
    path = import_path(parse_command(prepare["command"]), prepare["workdir"])
    if path is not None:
        sys.path.insert(0, path)
    with contextlib.suppress(OSError):  # reported by the rank, in its log, when it tries the same
        os.chdir(prepare["workdir"])
    errors = preload(prepare["preload"])
    gc.collect()
    gc.freeze()  # forks do not touch (and so copy) what is alive now
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - pathlib would cost an import
    ready = {"seconds": time.monotonic() - started, "errors": errors, "threads": threads}
    send(channel, {"ready": ready})
    become(_Server(channel).serve())


if __name__ == "__main__":
    main(int(sys.argv[1]))

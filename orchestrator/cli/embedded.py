"""The embedded control plane: finds the server of this home, or starts one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import babysit
from jobs import unix_socket
from jobs.clock import Clock
from orchestrator import private_home
from orchestrator.cli.client import Api
from orchestrator.cli.errors import UnreachableError
from orchestrator.server.server_file import is_alive, read_record
from orchestrator.settings import Settings

_POLL_SECONDS = 0.05
_TAIL_LINES = 15
_SETTLE_SECONDS = 3.0


def find(settings: Settings, clock: Clock) -> Api | None:
    """The server of this home; None when none is running on this machine.

    No secret is needed: only processes of this user can enter the home, and have its socket. A
    token that is set is the caller's identity all the same.
    """
    if not settings.socket.exists() or private_home.fault(settings.home):
        return None
    token = settings.token.get_secret_value() if settings.token else None
    url = f"{unix_socket.HTTP_SCHEME}{settings.socket}"
    api = Api(url, token, clock, timeout=settings.request_seconds)
    if api.is_healthy():
        return api
    api.close()
    return None


def elsewhere(settings: Settings) -> str | None:
    """The machine whose server holds this home, which machines may share; None: no other one."""
    record = read_record(settings.server_file)
    if record is None or record.is_here:
        return None
    try:
        with (settings.home / "server.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return record.host
    return None


def ensure(settings: Settings, clock: Clock) -> Api:
    """The embedded server of this home, started when none is running.

    Raises:
        UnreachableError: The server did not start; the message has the end of its log.
    """
    try:
        if api := find(settings, clock):
            return api
        private_home.make_private(settings.home)
        with _starting(settings):
            if host := elsewhere(settings):
                raise UnreachableError(
                    f"the server of {settings.home} runs on {host}: run this command there, or set"
                    " BABYSIT_SERVER to a port of that server"
                )
            return find(settings, clock) or _start(settings, clock)
    except private_home.UnsafeHomeError as error:
        raise UnreachableError(str(error)) from error
    except OSError as error:
        raise UnreachableError(
            f"cannot use {settings.home}: {error.strerror}; set BABYSIT_HOME"
        ) from error


def server_command() -> list[str]:
    """The server's command; `-P` keeps the working directory out of what it imports."""
    return [sys.executable, "-P", "-m", "babysit.server"]


def server_environment(settings: Settings, **more: str) -> Mapping[str, str]:
    """The environment of a server of this home."""
    environment = {**os.environ, "BABYSIT_HOME": str(settings.home), **more}
    root = str(Path(babysit.__file__).parents[1])
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        # Run from a checkout: with -P the server would not find the package.
        current = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{current}" if current else root
    return environment


@contextlib.contextmanager
def _starting(settings: Settings) -> Iterator[None]:
    """Hold the lock under which a server is started: commands that wait for it find the server."""
    with open(settings.home / "start.lock", "w", opener=_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _start(settings: Settings, clock: Clock) -> Api:
    record = read_record(settings.server_file)
    process = None if record and is_alive(record) else _spawn(settings)
    deadline = clock.monotonic() + settings.start_seconds
    while clock.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise UnreachableError(
                f"the embedded control plane ended with exit code {process.returncode}; "
                f"{_log_tail(settings)}"
            )
        if api := find(settings, clock):
            if process is not None:
                process.returncode = 0  # The server outlives this command: do not wait for it.
            _settle(api, clock)
            return api
        asyncio.run(clock.sleep(_POLL_SECONDS))
    raise UnreachableError(
        f"the embedded control plane did not answer within {settings.start_seconds:.0f} s; "
        f"{_log_tail(settings)}"
    )


def _settle(api: Api, clock: Clock) -> None:
    """Give a new server a moment to lead and to know its nodes: answers would be empty."""
    deadline = clock.monotonic() + _SETTLE_SECONDS
    while not api.is_ready() and clock.monotonic() < deadline:
        asyncio.run(clock.sleep(_POLL_SECONDS))


def _spawn(settings: Settings) -> subprocess.Popen[bytes]:
    with open(settings.server_log, "ab", opener=_private) as log:
        return subprocess.Popen(  # noqa: S603 (our own module)
            [*server_command(), "--embedded"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=settings.home,
            env=_own_environment(settings),
            start_new_session=True,
        )


def _own_environment(settings: Settings) -> Mapping[str, str]:
    """That of an embedded server, without the caller's token: a token is the identity of a client.

    A server would take the token as its own first one, which has the role admin.
    """
    environment = dict(server_environment(settings))
    environment.pop("BABYSIT_TOKEN", None)
    return environment


def _log_tail(settings: Settings) -> str:
    try:
        lines = settings.server_log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    except FileNotFoundError:
        lines = []
    end = "".join(f"\n  {line}" for line in lines) or " nothing"
    return f"the end of {settings.server_log}:{end}"

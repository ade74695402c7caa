"""The sockets of a server: a Unix socket for this user's processes, and a port where it is wanted.

The problem: a port of this machine is open to each of its users, and a process that takes the port
of a server that has ended gets its clients' secrets. The design: clients and agents on this machine
use a Unix socket in the private home. The kernel says whose process is at the other end, so they
need no secret to be known, and no other user can stand in for the server.

An embedded server listens on a port only if `BABYSIT_PORT` names one; `babysit server` always does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from jobs import unix_socket
from orchestrator.errors import BabysitError
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)
_BACKLOG = 512
_EXHAUSTED = {errno.EMFILE, errno.ENFILE}


@dataclasses.dataclass(frozen=True, slots=True)
class Listeners:
    """The bound sockets of a server."""

    local: socket.socket
    path: Path
    """Of the local one."""
    port: socket.socket | None

    @property
    def address(self) -> str | None:
        """`host:port` at which this machine reaches the port; None: there is none."""
        if self.port is None:
            return None
        host, port = self.port.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


class _Sparing(socket.socket):
    """A listener that turns connections away when this process has no descriptor left for them.

    Otherwise the event loop would try again at once, and log each time. One descriptor is kept in
    reserve to take a connection with, and to close it: its peer learns at once.
    """

    _reserve: int = -1

    def accept(self) -> tuple[socket.socket, Any]:
        """See `socket.socket`. ConnectionAbortedError, which event loops expect: turned away."""
        if self._reserve < 0:
            self._reserve = os.open(os.devnull, os.O_RDONLY)
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
        os.close(self._reserve)
        self._reserve = -1
        with contextlib.suppress(OSError):
            super().accept()[0].close()
        _log.warning("turned a connection away: no descriptor is left; raise the limit (ulimit -n)")
        raise ConnectionAbortedError(errno.ECONNABORTED, "no descriptor is left")

    def close(self) -> None:
        """See `socket.socket`."""
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        super().close()


class _OwnersOnly(_Sparing):
    """A Unix listener that knows the processes of its own user alone, and those of root."""

    def accept(self) -> tuple[socket.socket, Any]:
        """See `socket.socket`. ConnectionAbortedError: another user was turned away."""
        connection, address = super().accept()
        if unix_socket.is_ours(connection):
            return connection, address
        _log.warning("refused a connection of another user", uid=unix_socket.peer_uid(connection))
        connection.close()
        raise ConnectionAbortedError(errno.ECONNABORTED, "a process of another user")


@contextlib.contextmanager
def listening(settings: Settings, *, embedded: bool) -> Iterator[Listeners]:
    """The sockets of a server, bound. Only one server of a home may do this at a time.

    Raises:
        BabysitError: A socket cannot be bound; the message says what to set.
    """
    wanted = settings.port or not embedded
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(_on_path(settings.socket))
        port = stack.enter_context(_on_port(settings)) if wanted else None
        yield Listeners(local, settings.socket, port)


@contextlib.contextmanager
def _on_path(path: Path) -> Iterator[socket.socket]:
    with _OwnersOnly(socket.AF_UNIX) as listener:
        try:
            path.unlink(missing_ok=True)  # of a server that was killed
            with unix_socket.address(path) as address:
                listener.bind(address)
            path.chmod(0o600)
        except OSError as error:
            raise BabysitError(
                f"cannot make the socket {path}: {error.strerror}; set BABYSIT_HOME to a directory"
                " on a local disk"
            ) from error
        listener.listen(_BACKLOG)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _on_port(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with _Sparing(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise BabysitError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror};"
                " set BABYSIT_HOST and BABYSIT_PORT"
            ) from error
        listener.listen(_BACKLOG)
        yield listener

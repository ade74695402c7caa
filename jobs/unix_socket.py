"""Unix sockets by paths of any length, with a peer that the kernel names.

The problem: the address of a Unix socket holds 107 bytes, and homes may lie deeper. The design: a
longer path is reached through a descriptor of its directory (`/proc/self/fd/7/server.sock`), so the
socket stays where it belongs and no second directory has to be guarded.

Limits: Linux only. An address through a descriptor is good within this process, while it is open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

AGENT_SCHEME = "ws+unix:"
"""Before the path of a socket, in the URL under which agents reach a server on their machine."""
HTTP_SCHEME = "unix:"
"""Before the path of a socket, in the URL under which clients reach it."""
MOST_BYTES = 107
"""Longest address, without its final NUL (`sun_path` in unix(7))."""
_CREDENTIALS = struct.Struct("3i")


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """An address of the socket at `path`, valid within the context.

    Raises:
        OSError: The directory cannot be opened.
    """
    if len(os.fsencode(path)) <= MOST_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a connected Unix socket, by the kernel's word."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(found)
    return int(uid)


def is_ours(connection: socket.socket) -> bool:
    """True if the other end is a process of this user, or of root, who may do everything anyway."""
    return peer_uid(connection) in {0, os.geteuid()}

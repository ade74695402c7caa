"""The home of a control plane is private: it holds the signing key, specs with their `env`, logs.

What is not checked: the directories above the home, and access control lists.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from orchestrator.errors import BabysitError

PRIVATE = 0o700
_OTHERS = 0o077
_users_umask = -1
_NETWORK = {
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.ceph",
    "fuse.glusterfs",
    "fuse.sshfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "panfs",
    "pvfs2",
    "smb3",
    "wekafs",
}
"""File systems that several hosts share; SQLite's log needs shared memory, which they do not."""


class UnsafeHomeError(BabysitError):
    """Other users can read or change the home, or another user owns it."""


def keep_files_private() -> None:
    """Have this process make files and directories that are its owner's alone.

    Call it once, at the start of a server. Agents get :func:`users_umask`: what ranks write outside
    the home is shared as its owner wants it.
    """
    global _users_umask  # noqa: PLW0603 (a umask belongs to the process)
    _users_umask = os.umask(_OTHERS)


def users_umask() -> int:
    """The umask this process was started with; -1, which `subprocess` ignores: unchanged."""
    return _users_umask


def fault(home: Path) -> str | None:
    """Why a home must not be used, with the command that mends it; None: it is private, or absent.

    Raises:
        OSError: The home cannot be looked at.
    """
    try:
        found = home.stat()
    except FileNotFoundError:
        return None
    if found.st_uid != os.geteuid():
        return (
            f"{home} belongs to user {found.st_uid}, and this is user {os.geteuid()}:"
            " set BABYSIT_HOME to a directory of your own"
        )
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode) and mode & _OTHERS:
        return (
            f"{home} is open to other users (mode {mode:04o}), and it holds keys and logs:"
            f" chmod 700 {home}"
        )
    return None


def make_private(home: Path) -> None:
    """Create the home, for its owner alone, unless it exists.

    Raises:
        UnsafeHomeError: It exists, and is not private.
        OSError: It cannot be made, or looked at.
    """
    home.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
    if found := fault(home):
        raise UnsafeHomeError(found)


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The kind of network file system that a directory is on; None: it is on none.

    Args:
        path: An existing directory.
        mounts: `/proc/self/mountinfo` (see proc(5)); None: that of this process.
    """
    if mounts is None:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
    real = path.resolve()
    found, depth = "", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if (point == real or point in real.parents) and len(point.parts) >= depth:
            found, depth = after.split()[0], len(point.parts)
    return found if found in _NETWORK else None

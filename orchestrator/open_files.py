"""The limit of open files: a server of a large fleet needs more than the usual 1,024.

Ranks keep the limit of the shell: programs that use select() do not expect more.
"""

from __future__ import annotations

import contextlib
import resource

_before: tuple[int, int] | None = None


def raise_limit() -> None:
    """Raise this process's soft limit to its hard limit."""
    global _before  # noqa: PLW0603 (a limit belongs to the process)
    _before = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, most = _before
    with contextlib.suppress(ValueError, OSError):  # some kernels refuse "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def restore_limit(pid: int) -> None:
    """Give a child the limit that this process had before :func:`raise_limit`."""
    if _before is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError, OSError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _before)

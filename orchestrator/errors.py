"""The errors of the control plane: a small typed tree.

Each says what, where and what to do next.
"""

from __future__ import annotations


class BabysitError(Exception):
    """Anything the control plane raises on purpose."""


class NotFoundError(BabysitError):
    """There is no such run, node, incident or checkpoint."""


class ConflictError(BabysitError):
    """Not possible in this state."""


class InvalidError(BabysitError):
    """The request itself is wrong."""


class PermissionDeniedError(BabysitError):
    """The token does not allow it."""


class TemporaryError(BabysitError):
    """Try again: nothing was changed."""


class DatabaseUnavailableError(TemporaryError):
    """The database did not answer; nothing was written."""


class NotLeaderError(TemporaryError):
    """This server is not the leader."""


class LeadershipLostError(BabysitError):
    """Another server leads now (a higher epoch): drop everything, write nothing."""


class InvariantError(BabysitError):
    """The database refused what would break an invariant: a bug; nothing was written."""


class InternalError(BabysitError):
    """The control plane failed over an event: a bug of ours, in the log; nothing was changed."""


class SchemaError(BabysitError):
    """The database's schema is missing or too old: run `babysit db upgrade`."""

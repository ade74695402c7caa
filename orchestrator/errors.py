"""The errors of the control plane: a small typed tree.

Whether a request can be retried is in the type (:class:`TemporaryError`). A message says what is
wrong, where, and what to do next. Facts that programs need are fields of the error, and of the
API's answer: nobody has to parse the message.
"""

from __future__ import annotations

from collections.abc import Sequence


class BabysitError(Exception):
    """Every error that the control plane raises on purpose."""


class NotFoundError(BabysitError):
    """No such run, node, queue, incident, checkpoint or token."""


class ConflictError(BabysitError):
    """The request is not possible in the present state; nothing was changed.

    Args:
        message: What, where, and what to do next.
        run: Id of the run that the request was about, if any.
        state: The state of that run.
        allowed: What would be possible instead: steps of checkpoints, names of runs.
    """

    def __init__(
        self,
        message: str,
        *,
        run: str | None = None,
        state: str | None = None,
        allowed: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.run, self.state, self.allowed = run, state, tuple(allowed)


class InvalidError(BabysitError):
    """The request itself is wrong.

    Args:
        message: What is wrong, and what was expected.
        field: Dotted name of the field of the run spec, such as `resources`, if it is one.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class TooLargeError(BabysitError):
    """A body is larger than the server takes."""


class PermissionDeniedError(BabysitError):
    """The role of the token does not allow the request."""


class TemporaryError(BabysitError):
    """The request may be retried: nothing was changed."""


class DatabaseUnavailableError(TemporaryError):
    """The database did not answer; nothing was written."""


class DatabaseFullError(DatabaseUnavailableError):
    """The database has no room left, on its disk or in its quota; nothing was written."""


class NotLeaderError(TemporaryError):
    """This server is not the leader."""


class LeadershipLostError(BabysitError):
    """Another server leads, with a higher epoch: the caller must drop its state and not write."""


class InvariantError(BabysitError):
    """The database rejected a write that breaks an invariant: a bug; nothing was written."""


class UnstorableError(InvariantError):
    """A value that the database cannot take: half a character, or a number beyond 64 bits."""


class InternalError(BabysitError):
    """The core raised while it handled an event: a bug, in the log; nothing was changed."""


class PassFailedError(BabysitError):
    """A scheduling pass failed over one run; the others can be scheduled without it.

    Attributes:
        run: Id of the run.
        error: What was raised over it.
    """

    def __init__(self, run: str, error: Exception) -> None:
        super().__init__(f"scheduling {run} failed: {error!r}")
        self.run, self.error = run, error


class SchemaError(BabysitError):
    """The database's schema is missing or too old: run `babysit db upgrade`."""

"""Exit codes, and the errors that carry one."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; scripts rely on them."""

    OK = 0
    FAILED = 1  # the run failed
    USAGE = 2  # usage, or an invalid spec
    NOT_FOUND = 3
    REFUSED = 4  # not in this state
    NOT_ALLOWED = 5
    UNREACHABLE = 6  # the server
    CANCELLED = 7  # the run was cancelled
    TIMED_OUT = 8  # a wait
    DEFECT = 70  # of babysit itself (EX_SOFTWARE of sysexits.h)


class CliError(Exception):
    """Ends the command: the message is printed on stderr, the code is the exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        self.message, self.code = message, code
        super().__init__(message)


class UnreachableError(CliError):
    """The control plane did not answer; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.UNREACHABLE)

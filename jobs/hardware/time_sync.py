"""The clock of the node: whether it follows a reference, and how far it may be off.

From adjtimex(2). What the kernel knows is what its NTP daemon told it; how far the clock is from
that of the control plane is measured by the node monitor with each report.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import NamedTuple, Protocol

from jobs.hardware.port import Readings, Seen

_ERROR_STATE = 5
"""TIME_ERROR: the clock is not synchronised."""
_UNSYNCHRONISED, _NANOSECONDS = 0x0040, 0x2000
"""STA_UNSYNC and STA_NANO."""


class _Timex(ctypes.Structure):
    """`struct timex` of Linux, as far as it is read."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


class ClockState(NamedTuple):
    """The kernel's knowledge of its clock."""

    synchronised: bool
    offset_seconds: float
    """From the reference, as the NTP daemon last said."""
    most_error_seconds: float


class ClockReader(Protocol):
    """Where the state of the clock comes from. Raises OSError: it cannot be read."""

    def __call__(self) -> ClockState:
        """The state now."""


def kernel_clock() -> ClockState:
    """The state of this machine's clock.

    Raises:
        OSError: The C library has no adjtimex, or refuses.
    """
    timex = _Timex()
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "adjtimex"):
        raise OSError("the C library has no adjtimex")
    state = library.adjtimex(ctypes.byref(timex))
    if state < 0:
        raise OSError(ctypes.get_errno(), "adjtimex is refused")
    unit = 1e-9 if timex.status & _NANOSECONDS else 1e-6
    return ClockState(
        synchronised=state != _ERROR_STATE and not timex.status & _UNSYNCHRONISED,
        offset_seconds=timex.offset * unit,
        most_error_seconds=timex.maxerror * 1e-6,
    )


class RecordedClock:
    """The state in a JSON file: `{"synchronised": true, "offset_seconds": 0, …}`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> ClockState:
        """See the protocol."""
        return ClockState(**json.loads(self._path.read_text()))


class TimeSync:
    """Reads the state of the clock."""

    name = "clock"

    def __init__(self, clock: ClockReader = kernel_clock) -> None:
        self._clock = clock

    def read(self, now: float) -> Seen:
        """See the port."""
        state = self._clock()
        found = Readings(self.name, now)
        found.add("", "synchronised", state.synchronised)
        found.add("", "offset_seconds", state.offset_seconds)
        found.add("", "most_error_seconds", state.most_error_seconds)
        return found.seen()

"""The port of hardware sources, and the words that they share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from monitors.hardware.types import LogLine, Reading

NAMES = (
    "kernel_log",
    "nvml",
    "dcgm",
    "amd",
    "infiniband",
    "network",
    "pci",
    "disk",
    "smart",
    "memory",
    "edac",
    "clock",
)
"""All sources. Metrics have one label for each of them, and none for others."""


class Seen(NamedTuple):
    """The result of one look of a source."""

    readings: tuple[Reading, ...] = ()
    lines: tuple[LogLine, ...] = ()
    blind: str = ""
    """Why the source cannot see what is there, and what to do about it; empty: it sees."""
    absent: str = ""
    """Why there is nothing to see: `no NVIDIA device`. Nobody has to do anything about it."""


class Source(Protocol):
    """One kind of hardware, or one log."""

    name: str
    """A name of :data:`NAMES`."""

    def read(self, now: float) -> Seen:
        """Look once. May block: the caller gives it a thread and a time limit.

        Args:
            now: Unix seconds on the node's clock.

        Raises:
            OSError: It could not be read; the caller takes this for blindness.
        """


class Readings:
    """Collects the readings of one look.

    Args:
        source: Name of the source.
        now: Unix seconds on the node's clock.
    """

    def __init__(self, source: str, now: float) -> None:
        self._source, self._now = source, now
        self._found: list[Reading] = []

    def add(self, device: str, name: str, value: float | None) -> None:
        """Add a reading; None is a number that this device does not have."""
        if value is not None:
            self._found.append(
                Reading(
                    source=self._source,
                    device=device,
                    name=name,
                    value=float(value),
                    time=self._now,
                )
            )

    def seen(self, *, blind: str = "") -> Seen:
        """All of them."""
        return Seen(readings=tuple(self._found), blind=blind)

    def __len__(self) -> int:
        return len(self._found)

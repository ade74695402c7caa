"""The output of a check program, and the time. Standard library only.

A check program is a short-lived process, so this module must import nothing that is slow to load.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

RATE, LATENCY = "link-rate", "link-latency"
"""The figures of the link to another node: Gbit/s of the slower way, and microseconds there and
back."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The input of a check program."""

    disk: str
    """A directory on the disk that is measured."""
    memory: str
    """A directory on tmpfs."""
    gpus: int = 0
    """GPUs that must be there."""
    thorough: bool = False
    """True: take seconds rather than tenths, for figures that vary less."""
    peer: str = ""
    """`host:port` of the other node of a pair; empty: this node listens."""
    address: str = "127.0.0.1"
    """Address of this node, on which it listens."""
    port: int = 0
    """Port to listen on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured thing, before anybody judges its rate."""

    check: str
    figure: float | None = None
    unit: str = ""
    device: str = ""
    problem: str = ""
    """The fault, in a sentence; empty: there is none."""
    skipped: str = ""
    """Why it was not measured; empty: it was."""


def task_of(text: str) -> Task:
    """Read a task from JSON.

    Raises:
        ValueError, TypeError: It is not one.
    """
    given: Mapping[str, Any] = json.loads(text)
    return Task(**given)


def printed(found: list[Measurement]) -> str:
    """One line of JSON with these measurements."""
    return json.dumps([dataclasses.asdict(each) for each in found])


class Stopwatch:
    """Seconds since it was made, never exactly 0."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return max(1e-9, time.perf_counter() - self._begin)

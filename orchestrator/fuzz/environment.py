"""The environment of one run of the fuzzer: time, randomness, and the parts that fail.

It imports nothing that acts. Servers, agents, training, users and faults are built upon it and hand
each other what they need, so that imports point one way.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterable

from orchestrator.core.messages.events import NodeInfo
from orchestrator.fuzz.cluster import SharedCluster
from orchestrator.fuzz.event_loop import ProcessClock, VirtualLoop
from orchestrator.fuzz.fault_rates import FaultRates
from orchestrator.fuzz.flaky_database import FlakyDatabase
from orchestrator.fuzz.log import LogFile
from orchestrator.fuzz.network import Network
from orchestrator.fuzz.storage import Storage


class Trace:
    """The history so far, line by line, for the engineer who has to understand a failure."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.lines: list[tuple[float, str]] = []
        """Virtual seconds, and what happened then."""
        self._loop = loop

    def add(self, what: str) -> None:
        """Add one line, at the virtual time of now."""
        self.lines.append((self._loop.time(), what))


class Environment:
    """Time, chance, database, network, cluster and storage of one run.

    Attributes:
        clock: The true wall clock, by which users act; each process has one of its own.
        rates: How often faults happen by themselves.
    """

    def __init__(self, seed: int, nodes: Iterable[NodeInfo], kinds: Collection[str]) -> None:
        self.seed = seed
        self.loop = VirtualLoop()  # type: ignore[abstract]  # without sockets and threads
        self.clock = ProcessClock(self.loop)
        self.trace = Trace(self.loop)
        # The purposes below go into the seeds: another word is another run for every seed.
        self.rates = FaultRates.drawn(self.random("rates"), kinds)
        self.database = FlakyDatabase(self.loop, self.random("database"), self.rates)
        self.network = Network(self.loop, self.random("network"), self.rates)
        self.cluster = SharedCluster(nodes, self.clock)
        self.storage = Storage()
        self.log = LogFile()
        self._ids = itertools.count(1)

    def random(self, purpose: str) -> random.Random:
        """Chance for one purpose, so that what happens elsewhere does not change it."""
        return random.Random(f"{self.seed} {purpose}")

    def new_id(self, prefix: str) -> str:
        """An id that was never given before in this run."""
        return f"{prefix}{next(self._ids):06d}"

"""The shared parts of the kinds of runs: lockstep over sockets, a pace, a loss, an end.

A rank costs a few megabytes and sleeps most of the time, so that many runs fit on a small machine.
The lockstep is a function named `all_reduce`: where a rank waits for its peers, its stack looks
like that of any data-parallel script.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import babysit


class Gang:
    """Ranks in lockstep: rank 0 hears all others, then answers them."""

    def __init__(self, rank: int, world_size: int) -> None:
        # A run that can only have one process has no address.
        address = (os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0")))
        self._first = rank == 0
        self._peers: list[socket.socket] = []
        if self._first and world_size > 1:
            with socket.create_server(address) as server:
                self._peers = [server.accept()[0] for _ in range(world_size - 1)]
        elif not self._first:
            self._peers = [self._connect(address)]

    @staticmethod
    def _connect(address: tuple[str, int]) -> socket.socket:
        while True:
            try:
                return socket.create_connection(address)
            except ConnectionRefusedError:
                time.sleep(0.1)

    def all_reduce(self, flag: int) -> int:
        """The largest flag (0 to 255) of all ranks."""
        if self._first:
            flag = max([flag, *(self._receive(peer) for peer in self._peers)])
            for peer in self._peers:
                peer.sendall(bytes([flag]))
            return flag
        self._peers[0].sendall(bytes([flag]))
        return self._receive(self._peers[0])

    @staticmethod
    def _receive(peer: socket.socket) -> int:
        data = peer.recv(1)
        if not data:
            raise ConnectionError("connection closed by peer")
        return data[0]


class Training:
    """One rank of a run, as the functions of :mod:`benchmarks.soak.kinds` see it.

    Attributes:
        run: What `babysit.init()` returned.
        chance: Random numbers that are the same on every rank.
        own: Random numbers of this rank.
    """

    def __init__(self, ends_at: float, seed: int, scratch: Path) -> None:
        self.run = babysit.init()
        self.rank = self.run.rank
        self.chance = random.Random(seed)
        self.own = random.Random(f"{seed} {self.rank}")
        self.scratch = scratch
        self._ends_at = ends_at
        self._gang = Gang(self.rank, self.run.world_size)

    def over(self) -> bool:
        """Wait for all ranks; true on all of them once the time of the run is used up."""
        return self._gang.all_reduce(int(time.time() >= self._ends_at)) > 0

    def loop(self, pace: float) -> Iterator[int]:
        """The script's own loop: steps of about `pace` seconds, in lockstep."""
        for step in itertools.count(1):
            time.sleep(pace * self.own.uniform(0.8, 1.2))
            yield step
            if self.over():
                return

    def steps(self, pace: float, loader: Iterable[Any] | None = None) -> Iterator[int]:
        """Steps through `run.steps()`, left by `break` at the end."""
        batches = itertools.count(1) if loader is None else loader
        for step, _ in self.run.steps(batches, total=10**9):
            time.sleep(pace * self.own.uniform(0.8, 1.2))
            yield step
            if self.over():
                break

    def loss(self, step: int, noise: float = 0.03) -> float:
        """A loss that falls as losses do."""
        return 2.0 + 4.0 * math.exp(-step / 400) + self.own.gauss(0.0, noise)


class Weights:
    """A state that is saved to a directory."""

    def __init__(self) -> None:
        self.value = 0

    def save(self, directory: Path) -> None:
        """Write it."""
        (directory / "weights.json").write_text(json.dumps(self.value))

    def load(self, directory: Path) -> None:
        """Read it."""
        self.value = json.loads((directory / "weights.json").read_text())

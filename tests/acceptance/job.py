"""A training script without torch: real ranks of a run, in lockstep, that start in milliseconds.

The "model" is one number, which every batch changes; the loss shows it, so that a lost update, a
batch left out or a wrong checkpoint changes all losses after it. What each rank did is appended to
`<scratch>/rank-<r>.jsonl`. The run ends after `--steps`, or when `<scratch>/finish` exists.

Faults (`--fault`, may be repeated): `import` (fails at import), `raise@N` (always), `oom@N` and
`nan@N` (rank 1, once, from that step on), `pause@N` (rank 1, once, until `<scratch>/go-on`
exists), `poison@A-B` (by batch: comes back), `explode@N` (never goes away).
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import babysit

if "import" in sys.argv:
    importlib.import_module("a_module_that_is_not_there")

FINISH, LEAVE = 1, 2


class Weights:
    """One number."""

    def __init__(self) -> None:
        self.value = 1

    def train(self, batch: int) -> float:
        """Learn a batch; the loss, which is that of all batches so far."""
        self.value = (self.value * 6364136223846793005 + 2 * batch + 1) % 2**64
        return 2.0 + self.value / 2**64 / 100

    def save(self, directory: Path) -> None:
        (directory / "weights.json").write_text(json.dumps({"value": self.value}))

    def load(self, directory: Path) -> None:
        self.value = json.loads((directory / "weights.json").read_text())["value"]


class Gang:
    """Lockstep over sockets: no rank begins a step before all have ended the one before."""

    def __init__(self, rank: int, world_size: int) -> None:
        # A run that can only have one process has no address.
        address = (os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0")))
        self._peers: list[socket.socket] = []
        if world_size > 1 and rank == 0:
            with socket.create_server(address) as server:
                self._peers = [server.accept()[0] for _ in range(world_size - 1)]
        elif rank > 0:
            self._peers = [self._connect(address)]
        self._first = rank == 0

    @staticmethod
    def _connect(address: tuple[str, int]) -> socket.socket:
        while True:  # rank 0 may be slower; the agent ends us if it never comes
            try:
                return socket.create_connection(address)
            except ConnectionRefusedError:
                time.sleep(0.01)

    def agree(self, flags: int) -> int:
        """What any rank says, to all of them."""
        if self._first:
            for peer in self._peers:
                flags |= self._receive(peer)
            for peer in self._peers:
                peer.sendall(bytes([flags]))
        else:
            self._peers[0].sendall(bytes([flags]))
            flags = self._receive(self._peers[0])
        return flags

    @staticmethod
    def _receive(peer: socket.socket) -> int:
        data = peer.recv(1)
        if not data:
            raise ConnectionError("connection closed by peer")
        return data[0]


class Witness:
    """What a rank did, on disk; and whether one of an older attempt is still alive beside it."""

    def __init__(self, scratch: Path, run: babysit.Run) -> None:
        self._attempt, self._rank = run.plan.attempt, run.rank
        self._file = os.open(
            scratch / f"rank-{run.rank}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT
        )
        locks = scratch / "locks"
        locks.mkdir(exist_ok=True)
        self._lock = (locks / f"{self._attempt}.{self._rank}").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for other in locks.iterdir():
            if int(other.name.partition(".")[0]) < self._attempt:
                self._look_at(other)

    def _look_at(self, older: Path) -> None:
        with older.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                self.write("overlap", other=older.name)

    def write(self, event: str, **fields: Any) -> None:
        line = {"event": event, "attempt": self._attempt, "rank": self._rank, **fields}
        os.write(self._file, (json.dumps(line) + "\n").encode())


class Faults:
    """What is to go wrong."""

    def __init__(self, scratch: Path, rank: int, words: list[str]) -> None:
        self._scratch, self._rank = scratch, rank
        self._faults: list[tuple[str, int, int]] = []
        self._lost = False
        for word in words:
            if match := re.fullmatch(r"(\w+)@(\d+)(?:-(\d+))?", word):
                self._faults.append((match[1], int(match[2]), int(match[3] or match[2])))

    def strike(self, step: int, batch: int, loss: float) -> float:
        """Fail, or spoil the loss, if now is the time."""
        for kind, first, last in self._faults:
            if kind == "raise" and step == first:
                raise RuntimeError(f"the batch of step {step} has the wrong shape")
            if kind == "pause" and step == first and self._once(kind):
                while not (self._scratch / "go-on").exists():
                    time.sleep(0.05)
            if kind == "oom" and step == first and self._once(kind):
                raise MemoryError(f"cannot hold step {step}")
            if kind == "nan" and step == first and self._once(kind):
                self._lost = True  # a step with a NaN leaves no later loss finite
            if (kind == "poison" and first <= batch <= last) or (
                kind == "explode" and step >= first
            ):
                loss += 10.0
        return float("nan") if self._lost else loss

    def _once(self, kind: str) -> bool:
        if self._rank != 1:
            return False
        try:
            (self._scratch / f"{kind}.done").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--pace", type=float, default=0.02, help="seconds a step takes")
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--metric", help="report a metric of this name too")
    parser.add_argument("--late", type=float, default=0.0, help="seconds to start in")
    options = parser.parse_args()

    time.sleep(options.late)
    run = babysit.init()
    witness = Witness(options.scratch, run)
    faults = Faults(options.scratch, run.rank, options.fault)
    weights = Weights()
    witness.write("start", step=run.restore(weights), pid=os.getpid())
    gang = Gang(run.rank, run.world_size)
    for step, batch in run.steps(range(1, 10**9), total=options.steps):
        time.sleep(options.pace)
        loss = faults.strike(step, batch, weights.train(batch))
        witness.write("step", step=step, batch=batch, loss=loss)
        named = {options.metric: 1 / step} if options.metric else {}
        run.report(loss=loss, grad_norm=1.0, tokens=1, metrics=named)
        run.checkpoint(weights)
        flags = FINISH * (options.scratch / "finish").exists() | LEAVE * run.should_stop
        flags = gang.agree(flags)
        if flags:
            run.checkpoint(weights, now=True)
            run.finish()
            break
    witness.write("end", step=run.step)


if __name__ == "__main__":
    main()

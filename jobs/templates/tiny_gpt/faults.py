"""Faults on purpose, to see the run recover. Nothing happens unless `BABYSIT_DRILL` is set.

    BABYSIT_DRILL="kill@30:1 stop@60:0 flip@90:0 poison@120-139 truncate@170:1"

`kill`, `stop`, `flip` and `truncate` strike rank R when step N begins (`fault@N:R`), each once: a
marker in `BABYSIT_DRILL_DIRECTORY` outlives the process. `poison@A-B` spoils the data of batches A
to B, and comes back after a rollback, because the data do.

`babysit monitors drill` strikes a run at moments of its own: a file `orders/FAULT-R` in that
directory strikes rank R at its next step, and the rank renames it to `orders/FAULT-R.done`. Orders
are `flip`, `nan`, `oom`, `raise`, `full`, `slow`, `stall` and `truncate`.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import babysit

_FAULT = re.compile(r"(kill|stop|flip|truncate)@(\d+):(\d+)|(poison)@(\d+)-(\d+)")
_EXPONENT_TOP = 1 << 30
"""Highest exponent bit of a float32: set in a small weight, it multiplies it by 2^128."""
FULL_STEPS = 25
"""Steps in which no file can be written after the order `full`."""

SLOW_STEPS, SLOW_SECONDS = 150, 0.25
"""Steps that are slow after the order `slow`, and the seconds by which each takes longer."""


class Drill:
    """The faults planned for this rank.

    Raises:
        ValueError: The specification is invalid.
    """

    def __init__(self, run: babysit.Run, specification: str, directory: Path) -> None:
        self._run = run
        self._directory = directory
        self._strikes: list[tuple[str, int]] = []
        self._poisoned: list[tuple[int, int]] = []
        self._full_until = self._slow_until = 0
        for word in specification.replace(",", " ").split():
            if (match := _FAULT.fullmatch(word)) is None:
                raise ValueError(
                    f"BABYSIT_DRILL: expected fault@STEP:RANK or poison@A-B, got {word!r}"
                )
            if match[4]:
                self._poisoned.append((int(match[5]), int(match[6])))
            elif int(match[3]) == run.rank:
                self._strikes.append((match[1], int(match[2])))

    @classmethod
    def from_environment(cls, run: babysit.Run) -> Drill:
        """The drill that the environment asks for; usually without faults."""
        directory = Path(os.environ.get("BABYSIT_DRILL_DIRECTORY", "drill"))
        return cls(run, os.environ.get("BABYSIT_DRILL", ""), directory)

    def strike(self, step: int, model: nn.Module) -> None:
        """Inject the faults of this step."""
        for fault, when in self._strikes:
            if when == step and self._first_time(f"{fault}-{step}-{self._run.rank}"):
                print(f"drill: {fault} at step {step}", flush=True)
                getattr(self, f"_{fault}")(model)
        if (self._directory / "raises").exists():
            self._raise(model)
        self._obey(step, model)

    def _obey(self, step: int, model: nn.Module) -> None:
        """Carry out the orders for this rank, and what is left of older ones."""
        for order in (self._directory / "orders").glob(f"*-{self._run.rank}"):
            fault = order.name.partition("-")[0]
            print(f"drill: {fault} at step {step}", flush=True)
            order.rename(order.with_suffix(".done"))
            order.with_suffix(".done").touch()  # the moment of the fault
            getattr(self, f"_{fault}")(model)
            if fault == "full":
                self._full_until = step + FULL_STEPS
            if fault == "slow":
                self._slow_until = step + SLOW_STEPS
        if step < self._slow_until:
            with self._run.phase("forward"):
                time.sleep(SLOW_SECONDS)
        if 0 < self._full_until <= step:
            self._full_until = 0
            self._limit_files(None)

    def spoil(self, batch: Tensor) -> Tensor:
        """Random bytes instead of the batch if it is a poisoned one."""
        number = self._run.batch
        if not any(first <= number <= last for first, last in self._poisoned):
            return batch
        generator = torch.Generator().manual_seed(number)
        return torch.randint(0, 256, batch.shape, generator=generator)

    def _first_time(self, name: str) -> bool:
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            (self._directory / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _kill(self, _model: nn.Module) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _stop(self, _model: nn.Module) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _flip(self, model: nn.Module) -> None:
        """Flip one exponent bit of one weight, as a failing memory chip would.

        One feature of the residual stream becomes huge, and every later normalisation shrinks the
        others to nothing. So the loss rises to that of a guess (5.5) and stays there: no gradient
        gets through.
        """
        weight = model.get_parameter("blocks.0.down.weight")
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        local.detach().view(-1)[:1].view(torch.int32).bitwise_xor_(_EXPONENT_TOP)

    def _truncate(self, model: nn.Module) -> None:
        """Halve the newest checkpoint on disk and all in memory, then die."""
        self._run.flush()
        save = self._run.plan.save
        mine = f"step-*/rank-{self._run.rank:05d}"
        shards = [*Path(save.memory_directory or os.devnull).glob(mine)]
        shards += sorted(Path(save.directory or os.devnull).glob(mine))[-1:]
        for shard in shards:
            for file in shard.glob("*.bin"):
                os.truncate(file, file.stat().st_size // 2)
        self._kill(model)

    def _nan(self, model: nn.Module) -> None:
        """Make one weight not a number."""
        weight = model.get_parameter("blocks.0.down.weight")
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        local.detach().view(-1)[:1].fill_(float("nan"))

    def _oom(self, _model: nn.Module) -> None:
        """Ask for more memory than there is."""
        torch.empty(1 << 60, dtype=torch.uint8)

    def _raise(self, _model: nn.Module) -> None:
        """Fail in the script's own code, in every attempt from now on."""
        (self._directory / "raises").touch()
        raise RuntimeError("drill: the batch has the wrong shape")

    def _full(self, _model: nn.Module) -> None:
        """Have every write to a file fail, as on a full disk."""
        self._limit_files(1)

    def _slow(self, _model: nn.Module) -> None:
        """Have each of the next forward passes take longer."""

    def _stall(self, _model: nn.Module) -> None:
        """Wait for data that never come."""
        time.sleep(3600.0)

    @staticmethod
    def _limit_files(most: int | None) -> None:
        """Limit files to some bytes; None: no more than they were limited to before."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if most is None else most, hard))

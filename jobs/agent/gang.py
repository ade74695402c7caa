"""The ranks of one attempt on this worker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import shutil
import signal
from pathlib import Path

from babysit import wire
from jobs.agent.evidence import oom_kills
from jobs.agent.fork_server import kill_group
from jobs.agent.rank_reader import RankFeed
from jobs.commands import RestoreCandidate, StartAttempt
from jobs.config import AgentConfig
from jobs.events import RankBeat, RankSamples


@dataclasses.dataclass(slots=True)
class RankProcess:
    """One rank and what is known of it."""

    rank: int
    local_rank: int
    log: Path
    feed: RankFeed
    pid: int = 0
    code: int | None = None
    """Exit code, once dead; negative: killed by that signal."""
    killed: bool = False
    """Whether the agent sent it SIGKILL."""

    @property
    def alive(self) -> bool:
        """Whether it was forked and has not been reaped."""
        return self.pid > 0 and self.code is None


class Gang:
    """Ranks that live and die together: their directories and processes."""

    def __init__(self, command: StartAttempt, config: AgentConfig, now: float) -> None:
        self.attempt = command.attempt
        self.world_size = command.world_size
        self.stopping = False
        """Set when the end was ordered: deaths are then no one's fault."""
        self.doomed = False
        """Set once the ranks were killed; those still to be forked are killed as they come."""
        self.dead = asyncio.Event()
        """Set when every rank has ended."""
        self._command = command
        self._config = config
        self._oom_kills = oom_kills()
        self.ranks = {
            rank: RankProcess(
                rank=rank,
                local_rank=local_rank,
                log=_log_file(config, command.attempt, rank),
                feed=RankFeed(rank, _rank_directory(config, rank), now),
            )
            for local_rank, rank in enumerate(command.ranks)
        }

    def prepare(self) -> None:
        """Make fresh rank directories with their plans, and the log directory.

        Raises:
            OSError: no room, or not writable.
        """
        for process in self.ranks.values():
            directory = _rank_directory(self._config, process.rank)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True, mode=0o700)
            plan = rank_plan(self._command, self._config, process.rank)
            (directory / wire.PLAN_FILE).write_text(plan.to_json() + "\n")
            process.log.parent.mkdir(parents=True, exist_ok=True)

    def environment(self, process: RankProcess) -> dict[str, str]:
        """What differs between ranks and between attempts; the names are torchrun's, and ours."""
        command = self._command
        values = {
            "RANK": process.rank,
            "LOCAL_RANK": process.local_rank,
            "WORLD_SIZE": command.world_size,
            "LOCAL_WORLD_SIZE": len(command.ranks),
            "GROUP_RANK": command.node_rank,
            "NODE_RANK": command.node_rank,
            "GROUP_WORLD_SIZE": command.nodes,
            "MASTER_ADDR": command.master_address,
            "MASTER_PORT": command.master_port,
            "BABYSIT_ATTEMPT": command.attempt,
            wire.ENV_RANK_DIR: _rank_directory(self._config, process.rank),
        }
        return {name: str(value) for name, value in values.items()}

    def kill(self) -> None:
        """SIGKILL every rank that lives, and its group."""
        self.doomed = True
        for process in self.ranks.values():
            if process.alive:
                process.killed = True
                kill_group(process.pid)

    def ask_to_leave(self) -> None:
        """Ask ranks to save and leave.

        Through the ring, and by SIGTERM where the rank handles it or has no ring to be asked
        through (SIGTERM would kill a rank that has a ring, and no handler, in the middle of its
        save).
        """
        for process in self.ranks.values():
            if process.alive and (not process.feed.ask_to_stop() or _handles_sigterm(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)

    @property
    def running(self) -> bool:
        """Whether all ranks were forked and none was killed."""
        return not self.doomed and all(process.pid for process in self.ranks.values())

    def started(self, rank: int, pid: int) -> None:
        """Record the start of a rank."""
        self.ranks[rank].pid = pid
        if self.doomed:
            self.kill()

    def ended(self, rank: int, code: int) -> RankProcess | None:
        """Record the end of a rank; None when it was known already."""
        process = self.ranks.get(rank)
        if process is None or process.code is not None:
            return None
        process.code = code
        if all(other.code is not None for other in self.ranks.values()):
            self.dead.set()
        return process

    def samples(self) -> list[RankSamples]:
        """New samples of all ranks."""
        drained = (process.feed.samples() for process in self.ranks.values())
        return [samples for samples in drained if samples is not None]

    def beats(self) -> tuple[RankBeat, ...]:
        """Signs of life of all ranks."""
        return tuple(p.feed.beat(alive=p.code is None) for p in self.ranks.values())

    @property
    def last_step(self) -> int:
        """Newest step any rank reported."""
        return max((process.feed.last_step for process in self.ranks.values()), default=0)

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel has killed for memory in our control group since the attempt began."""
        return oom_kills() > self._oom_kills

    def close(self) -> None:
        """Let go of the rings."""
        for process in self.ranks.values():
            process.feed.close()


def rank_plan(command: StartAttempt, config: AgentConfig, rank: int) -> wire.Plan:
    """One rank's plan: what the control plane decided, with this worker's memory directory."""
    checkpoint = config.spec.checkpoint
    directory = checkpoint.directory or ""
    return wire.Plan(
        run=config.run,
        attempt=command.attempt,
        rank=rank,
        world_size=command.world_size,
        restore=tuple(_candidate(candidate, config) for candidate in command.restore),
        skip_batches=command.skip_batches,
        save=wire.SavePolicy(
            directory=directory,
            every_steps=checkpoint.every_steps if directory else 0,
            memory_directory=str(memory_checkpoints(config)),
            memory_every_steps=checkpoint.memory_every_steps,
        ),
    )


def memory_checkpoints(config: AgentConfig) -> Path:
    """Root of the memory tier on this worker."""
    return config.memory_directory / "checkpoints"


def _candidate(candidate: RestoreCandidate, config: AgentConfig) -> wire.Candidate:
    path = candidate.path
    if candidate.tier == wire.Tier.MEMORY:
        path = str(wire.step_directory(memory_checkpoints(config), candidate.step))
    return wire.Candidate(
        id=candidate.id,
        step=candidate.step,
        tier=wire.Tier(candidate.tier),
        path=path,
        world_size=candidate.world_size,
        attempt=candidate.attempt,
        run=config.run,
    )


def _rank_directory(config: AgentConfig, rank: int) -> Path:
    return wire.rank_directory(config.memory_directory / "ranks", rank)


def _log_file(config: AgentConfig, attempt: int, rank: int) -> Path:
    return config.log_directory / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"


def _handles_sigterm(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM (its bit in SigCgt of /proc/<pid>/status)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

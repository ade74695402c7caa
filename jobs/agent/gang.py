"""The ranks of one attempt on this worker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import select
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from babysit import wire
from jobs.agent import inventory
from jobs.agent.build_locks import BuildLocks
from jobs.agent.evidence import oom_kills
from jobs.agent.fork_server import kill_group
from jobs.agent.log_metrics import LogMetrics
from jobs.agent.log_pump import LogPump
from jobs.agent.metric_files import LOOK_SECONDS, metric_files
from jobs.agent.rank_end import RankWords, other_version
from jobs.agent.rank_reader import RankReader
from jobs.agent.torchrun_contract import Seat, torchrun_variables
from jobs.clock import Clock
from jobs.commands import RestoreCandidate, StartAttempt
from jobs.config import AgentConfig
from jobs.events import RankBeat, RankFingerprint, RankSamples
from jobs.watch import Seen
from monitors.failures import Failure


@dataclasses.dataclass(slots=True)
class RankProcess:
    """One rank and its process."""

    rank: int
    local_rank: int
    log: Path
    reader: RankReader
    metrics: LogMetrics
    pid: int = 0
    code: int | None = None
    """Exit code once dead; negative: that signal killed it; None: not ended."""
    words: RankWords = dataclasses.field(default_factory=RankWords)
    pidfd: int = -1
    """Names the process as long as its pid may be reused; -1: none."""
    failure: Failure | None = None
    """Why the agent ended it, if that was its own decision."""
    excuse: Failure | None = None
    """Why an exit with code 0 may be no success: it perhaps got a SIGTERM beside its agent."""
    is_asked: bool = False
    """True once it was requested to stop: a second SIGTERM may end it in the middle of its save."""
    inode: int = 0
    """Of its rank directory."""
    killed: bool = False
    """True if the agent sent it SIGKILL."""

    @property
    def python_pid(self) -> int:
        """The process that called `babysit.init()`: a shell may have started it. Else `pid`."""
        return self.reader.pid or self.pid

    @property
    def prints_steps(self) -> bool:
        """True if its steps are read from its output: it has not joined, and is not expected to.

        One that died in the time to join may have been about to; one that ended well was not.
        """
        return not self.reader.pid and (self.code == 0 or not self.metrics.waits)

    @property
    def last_step(self) -> int:
        """Newest step that the rank reported, or printed if it reports nothing; 0: none."""
        return self.reader.last_step or (0 if self.reader.pid else self.metrics.seen.step)

    @property
    def alive(self) -> bool:
        """True if it was forked and has not been reaped."""
        return self.pid > 0 and self.code is None


class Gang:
    """Ranks that live and die together: their directories and processes."""

    def __init__(
        self,
        command: StartAttempt,
        config: AgentConfig,
        clock: Clock,
        workdir: Path | None = None,
    ) -> None:
        """Record the ranks; `workdir` is where they run, if it is not that of the spec."""
        self.attempt = command.attempt
        self.world_size = command.world_size
        self.stopping = False
        """True once the end was ordered: exits do not count as failures from then on."""
        self.doomed = False
        """True once the ranks were killed; ranks forked later are killed at once."""
        self.dead = asyncio.Event()
        """Set once every rank has ended."""
        self._command = command
        self._config = config
        self._oom_kills = oom_kills()
        self._locks = BuildLocks()
        self.ranks = {
            rank: RankProcess(
                rank=rank,
                local_rank=local_rank,
                log=_log_file(config, command.attempt, rank),
                reader=RankReader(rank, _rank_directory(config, rank), clock.now().timestamp()),
                metrics=self._metrics(rank, clock, workdir),
            )
            for local_rank, rank in enumerate(command.ranks)
        }

    def _metrics(self, rank: int, clock: Clock, workdir: Path | None) -> LogMetrics:
        spec = self._config.spec
        directory = workdir or Path(spec.workdir)
        files = metric_files(spec, directory, clock.now().timestamp())
        # Named files belong to the whole run, so the agent reads them for one rank.
        mine = files if files is not None and (rank == 0 or not files.is_sure) else None
        return LogMetrics(rank, spec, clock, mine)

    def look_around(self) -> None:
        """Before the ranks start: drop shards of other ranks, and note files of metrics. Blocks."""
        inventory.drop_others(memory_checkpoints(self._config), self.ranks)
        for process in self.ranks.values():
            process.metrics.note_before()

    async def look_at_files(self) -> None:
        """Read what is new in files of ranks that report nothing, and note locks of builds."""
        silent = [p.pid for p in self.ranks.values() if p.alive and not p.last_step]
        if silent:
            await asyncio.to_thread(self._locks.note, *silent)
        for process in self.ranks.values():
            if process.pid and process.prints_steps and process.metrics.reads_files:
                await asyncio.to_thread(process.metrics.look_at_files, process.pid)

    def prepare(self) -> None:
        """Create fresh rank directories with their plans, and the log directory.

        Raises:
            OSError: The disk is full or not writable.
        """
        for process in self.ranks.values():
            directory = _rank_directory(self._config, process.rank)
            shutil.rmtree(directory, ignore_errors=True)
            self._make(process)

    def _make(self, process: RankProcess) -> None:
        directory = _rank_directory(self._config, process.rank)
        self._config.memory_directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        directory.mkdir(parents=True, mode=0o700)
        plan = rank_plan(self._command, self._config, process.rank)
        (directory / wire.PLAN_FILE).write_text(plan.to_json() + "\n")
        (directory / wire.NOTES_FILE).touch(mode=0o600)
        process.reader.open_notes()  # before anybody can remove them
        process.inode = directory.stat().st_ino

    def vanished(self) -> list[Path]:
        """Rank directories that are gone, or are not those that were made here."""
        found = []
        for process in self.ranks.values():
            directory = _rank_directory(self._config, process.rank)
            try:
                there = directory.stat().st_ino == process.inode
            except OSError:
                there = False
            if not there:
                found.append(directory)
        return found

    def restore_directory(self, directory: Path) -> None:
        """Make a rank directory again that has vanished, with its plan.

        Raises:
            OSError: It cannot be made.
        """
        for process in self.ranks.values():
            if _rank_directory(self._config, process.rank) == directory:
                shutil.rmtree(directory, ignore_errors=True)
                self._make(process)

    def environment(self, process: RankProcess) -> dict[str, str]:
        """Variables that differ between ranks or attempts: torchrun's names, and babysit's."""
        directory = _rank_directory(self._config, process.rank)
        values: dict[str, object] = {
            "BABYSIT_ATTEMPT": self.attempt,
            wire.ENV_RANK_DIR: directory,
        }
        if self._config.spec.sets_ranks(self.world_size):
            seat = Seat(process.rank, process.local_rank, str(directory / wire.ERROR_FILE))
            values |= torchrun_variables(self._command, self._config, seat)
        return {name: str(value) for name, value in values.items()}

    def kill(self) -> None:
        """Send SIGKILL to every live rank and its group.

        A rank that is dead already is left to the fork server, which kills its group before it
        reaps it: after that, its pid may be another process's.
        """
        self.doomed = True
        for process in self.ranks.values():
            if process.alive and not _is_dead(process.pidfd):
                process.killed = True
                kill_group(process.pid)

    def end_misfits(self) -> None:
        """Kill ranks that use another version of babysit: nothing they report can be read."""
        for process in self.ranks.values():
            if process.reader.mismatch and process.alive and process.failure is None:
                process.failure = other_version(process.rank, process.reader.mismatch)
                if not _is_dead(process.pidfd):
                    kill_group(process.pid)

    def request_stop(self) -> None:
        """Request ranks to save and stop, each once.

        The request goes through the ring. A rank also gets SIGTERM if it handles that signal or has
        no ring; a rank with a ring but no handler would die of SIGTERM in the middle of its save.
        """
        for process in self.ranks.values():
            if not process.alive or process.is_asked:
                continue
            process.is_asked = True
            if not process.reader.request_stop() or handles_sigterm(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    if not _is_dead(process.pidfd):
                        os.kill(process.pid, signal.SIGTERM)

    @property
    def running(self) -> bool:
        """True if all ranks were forked and none was killed."""
        return not self.doomed and all(process.pid for process in self.ranks.values())

    def started(self, rank: int, pid: int) -> None:
        """Record the start of a rank."""
        process = self.ranks[rank]
        process.pid = pid
        with contextlib.suppress(OSError):  # it has been reaped already
            process.pidfd = os.pidfd_open(pid)
        if self.doomed:
            self.kill()

    def ended(self, rank: int, code: int) -> RankProcess | None:
        """Record the end of a rank; None if it was recorded before."""
        process = self.ranks.get(rank)
        if process is None or process.code is not None:
            return None
        process.code = code
        if process.pidfd >= 0:
            os.close(process.pidfd)
            process.pidfd = -1
        if all(other.code is not None for other in self.ranks.values()):
            self.dead.set()
        return process

    def samples(self, logs: LogPump) -> list[RankSamples]:
        """New samples of all ranks; of those that report nothing, what they have printed."""
        processes = self.ranks.values()
        drained = [process.reader.samples() for process in processes]
        drained += [p.metrics.read(logs.unread(p.log)) for p in processes if p.prints_steps]
        return [samples for samples in drained if samples is not None]

    def fingerprints(self) -> list[RankFingerprint]:
        """New fingerprints of all ranks."""
        return [each for rank in self.ranks.values() for each in rank.reader.fingerprints()]

    def beats(self) -> tuple[RankBeat, ...]:
        """Current progress of all ranks."""
        silent = [p.metrics.seen for p in self.ranks.values() if not p.reader.pid]
        newest = max(silent, key=lambda seen: seen.step, default=Seen())
        newest = dataclasses.replace(newest, time=max((s.time for s in silent), default=0.0))
        return tuple(
            p.metrics.beat(newest, alive=p.code is None)
            if newest.step and not p.reader.pid
            else p.reader.beat(alive=p.code is None)
            for p in self.ranks.values()
        )

    @property
    def last_step(self) -> int:
        """Newest step that any rank reported; 0: none."""
        return max((process.last_step for process in self.ranks.values()), default=0)

    @property
    def oom_killed(self) -> bool:
        """True if the kernel's OOM killer struck this control group during the attempt."""
        return oom_kills() > self._oom_kills

    def close(self, logs: LogPump) -> None:
        """Close the logs, unmap the rings, and delete locks of builds that died with the ranks."""
        self._locks.clear()
        for process in self.ranks.values():
            logs.close(process.log)
            process.reader.close()


async def follow_files(gang: Callable[[], Gang | None], clock: Clock) -> None:
    """Look at the files of the present gang now and then, for as long as the agent lives."""
    while True:
        await clock.sleep(LOOK_SECONDS)
        present = gang()
        if present is not None and not present.dead.is_set():
            await present.look_at_files()


def rank_plan(command: StartAttempt, config: AgentConfig, rank: int) -> wire.Plan:
    """The plan of one rank: the control plane's decision, with this worker's memory directory."""
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
    """Root directory of the memory tier on this worker."""
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


def _is_dead(pidfd: int) -> bool:
    """True if the process has ended, reaped or not; False if that is not known."""
    return pidfd >= 0 and bool(select.select([pidfd], [], [], 0)[0])


def handles_sigterm(pid: int) -> bool:
    """True if the process handles SIGTERM (its bit in SigCgt of /proc/<pid>/status)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

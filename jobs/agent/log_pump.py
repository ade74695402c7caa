"""Moves the output of ranks from their pipes to their logs.

The problem: a rank that writes to a file gets the errors of the disk, and one that writes into a
full pipe stands still. The design: one thread only reads the pipes, into memory; another one only
writes the files. While the disk is slow, at most `BACKLOG_BYTES` per rank wait; what comes beyond
is dropped and counted. A busy event loop delays neither. The end of each rank's output stays in
memory, so that its death can be judged without the disk.

Limits: while the whole agent is stopped nobody reads, and a rank waits once its pipe (1 MiB where
the kernel allows it) is full. If the agent ends, the ranks are killed by design (:mod:`.reaper`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import select
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from jobs.agent.line_folder import LineFolder
from jobs.agent.log_file import LogFile
from jobs.clock import Clock
from jobs.log_files import LogLimit

PIPE_BYTES = 1 << 20
BACKLOG_BYTES = 4 * 2**20
"""Output of one rank that waits for the disk at most."""
TAIL_BYTES = 256 * 1024
"""The end of a rank's output that is kept in memory."""
_CHUNK_BYTES = 65536
_STATE_MILLISECONDS = 200
"""How often unfinished lines are looked at."""
_FLUSH_SECONDS = 1.0
"""A verdict waits this long for the disk; then it is made without the last lines in the file."""
_TOO_SLOW = "the disk is too slow"


@dataclasses.dataclass(slots=True, eq=False)
class _Rank:
    descriptor: int
    file: LogFile
    folder: LineFolder = dataclasses.field(default_factory=LineFolder)
    tail: bytearray = dataclasses.field(default_factory=bytearray)
    unread: bytearray = dataclasses.field(default_factory=bytearray)
    """Output that nobody has looked at for steps yet; of too much, the newest is kept."""
    waiting: list[bytes] = dataclasses.field(default_factory=lambda: [b""])
    """Output for the writer; at first an empty piece, which creates the file."""
    waiting_bytes: int = 0
    dropped: int = 0
    """Lines that were dropped because too much waits for the disk."""
    writing: bool = False
    open: bool = True
    """False once the pipe is at its end."""

    def take(self, data: bytes) -> None:
        """Keep folded output for the file, and its end for the verdict."""
        self.tail += data
        if len(self.tail) > 2 * TAIL_BYTES:
            del self.tail[:-TAIL_BYTES]
        if self.waiting_bytes + len(data) > BACKLOG_BYTES:
            self.dropped += max(1, data.count(b"\n"))
        elif data:
            self.waiting.append(data)
            self.waiting_bytes += len(data)

    def hear(self, data: bytes) -> None:
        """Keep output as it came for those who look for steps: folding drops states of bars."""
        self.unread += data
        if len(self.unread) > 2 * TAIL_BYTES:
            del self.unread[:-TAIL_BYTES]

    def hand_over(self) -> tuple[bytes | None, int]:
        """Give what waits to the writer: the data if there is any, the number of dropped lines."""
        job = b"".join(self.waiting) if self.waiting else None, self.dropped
        self.waiting.clear()
        self.waiting_bytes = self.dropped = 0
        self.writing = True
        return job

    @property
    def idle(self) -> bool:
        """True if nothing waits for the disk."""
        return not self.waiting and not self.dropped and not self.writing


class LogPump:
    """The pipes and logs of the ranks of one agent."""

    def __init__(self, clock: Clock, limit: LogLimit) -> None:
        self._clock = clock
        self._limit = limit
        self._ranks: dict[Path, _Rank] = {}
        self._of_pipe: dict[int, _Rank] = {}
        self._closing: list[_Rank] = []
        """Ranks whose pipe is closed, and whose file is about to be."""
        self._lock = threading.Condition()
        self._poll = select.poll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._wake_read, select.POLLIN)
        self._over = False
        self._slow = False
        """True while the writer has not answered for `_FLUSH_SECONDS`: nobody waits for it then."""
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("log-reader", self._read), ("log-writer", self._write))
        ]
        for thread in self._threads:
            thread.start()

    # --- called by the event loop ---------------------------------------------------------------

    @contextlib.contextmanager
    def pipe(self, log: Path) -> Iterator[int]:
        """Make the pipe of a rank that writes to `log`, and give its write end.

        It is closed here at the end of the block: by then the rank must have its copy.

        Raises:
            OSError: No descriptor is left.
        """
        write = self._open(log)
        try:
            yield write
        finally:
            os.close(write)

    def _open(self, log: Path) -> int:
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        with contextlib.suppress(OSError):  # beyond the user's limit: 64 KiB will do
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        with self._lock:
            rank = _Rank(read, LogFile(log, self._limit))
            self._ranks[log] = self._of_pipe[read] = rank
            self._poll.register(read, select.POLLIN)
        self._wake()
        return write

    def drain(self, log: Path) -> None:
        """Read what a dead rank has written, and wait for the file, but not for a slow disk.

        Returns at once for a log that has no pipe. Children of the rank may hold the pipe open and
        write on: that is read later.
        """
        with self._lock:
            rank = self._ranks.get(log)
            if rank is None:
                return
            for _ in range(PIPE_BYTES // _CHUNK_BYTES + 1):
                if not self._take(rank):
                    break
            rank.take(rank.folder.rest(self._clock.monotonic()))
            self._lock.notify_all()
            if not self._slow:
                self._slow = not self._lock.wait_for(lambda: rank.idle, _FLUSH_SECONDS)

    def tail(self, log: Path) -> bytes:
        """The end of what a rank has written so far, also where it is not in the file."""
        with self._lock:
            rank = self._ranks.get(log)
            return bytes(rank.tail[-TAIL_BYTES:]) if rank is not None else b""

    def unread(self, log: Path) -> bytes:
        """Output of a rank since the last call, as it came; of too much, the newest part."""
        with self._lock:
            rank = self._ranks.get(log)
            if rank is None or not rank.unread:
                return b""
            found = bytes(rank.unread)
            rank.unread.clear()
            return found

    def close(self, log: Path) -> None:
        """Read the rest, and close the pipe and the file; writers get EPIPE from then on."""
        self.drain(log)
        with self._lock:
            rank = self._ranks.pop(log, None)
            if rank is not None:
                self._end(rank)
                os.close(rank.descriptor)
                self._closing.append(rank)
                self._lock.notify_all()
        self._wake()  # a poll in progress keeps the pipe open

    def failing(self) -> Mapping[Path, str]:
        """Logs whose last write failed, and why."""
        with self._lock:
            return {log: rank.file.why for log, rank in self._ranks.items() if rank.file.why}

    def retry(self) -> None:
        """Have the writer try again where the last write failed."""
        with self._lock:
            for rank in self._ranks.values():
                if rank.file.why and rank.idle:
                    rank.waiting.append(b"")
            self._lock.notify_all()

    def finish(self) -> None:
        """Close all logs and end the threads. Blocks up to some seconds if the disk is slow."""
        for log in list(self._ranks):
            self.close(log)
        with self._lock:
            self._over = True
            self._lock.notify_all()
        self._wake()
        for thread in self._threads:
            thread.join(_FLUSH_SECONDS)

    # --- the threads ----------------------------------------------------------------------------

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _read(self) -> None:
        pending = False
        while not self._over:
            ready = self._poll.poll(_STATE_MILLISECONDS if pending else None)
            with self._lock:
                pending = self._read_once([descriptor for descriptor, _ in ready])
                self._lock.notify_all()

    def _read_once(self, ready: list[int]) -> bool:
        """Read a chunk of each pipe that has some. True if unfinished lines are held back."""
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        for rank in [self._of_pipe[pipe] for pipe in ready if pipe in self._of_pipe]:
            self._take(rank)
        now = self._clock.monotonic()
        for rank in self._ranks.values():
            rank.take(rank.folder.due(now))
        return any(rank.folder.pending for rank in self._ranks.values())

    def _take(self, rank: _Rank) -> bool:
        """Read one chunk. False: there is none now, or the pipe is at its end."""
        if not rank.open:
            return False
        try:
            data = os.read(rank.descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._end(rank)
            return False
        rank.hear(data)
        rank.take(rank.folder.feed(data, self._clock.monotonic()))
        return True

    def _end(self, rank: _Rank) -> None:
        """The last writer has closed the pipe."""
        if rank.open:
            rank.open = False
            self._poll.unregister(rank.descriptor)
            del self._of_pipe[rank.descriptor]
            rank.take(rank.folder.rest(self._clock.monotonic()))

    def _write(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._over or self._work())
                batch = self._work()
                if not batch:
                    return
                jobs = [rank.hand_over() for rank in batch]
            for rank, (data, dropped) in zip(batch, jobs, strict=True):
                if data is not None:
                    rank.file.write(data)
                if dropped:
                    rank.file.lose(dropped, _TOO_SLOW)
                if rank in self._closing:
                    rank.file.close()
            with self._lock:
                self._slow = False
                for rank in batch:
                    rank.writing = False
                    if rank.idle and rank in self._closing:
                        self._closing.remove(rank)
                self._lock.notify_all()

    def _work(self) -> list[_Rank]:
        """Ranks with something to write or a file to close."""
        return [rank for rank in self._ranks.values() if not rank.idle] + self._closing

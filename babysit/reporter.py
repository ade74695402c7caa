"""Output of a rank: the ring and the notes. It never blocks training or raises into it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from babysit import fingerprint_ring
from babysit.ring import Record, RingWriter, wall_clock
from babysit.wire import NOTES_FILE, RING_FILE, Note, Phase

log = logging.getLogger("babysit")

QUIET = (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, struct.error)
"""Errors of reporting that are only logged: a failing disk, or a value that is not a number."""


class Reporter:
    """Writes samples and notes for the agent; without a rank directory it does nothing."""

    def __init__(self, directory: Path | None, rank: int) -> None:
        self._rank = rank
        self._notes = directory / NOTES_FILE if directory else None
        self._ring: RingWriter | None = None
        self._fingerprints: fingerprint_ring.FingerprintWriter | None = None
        self._directory = directory
        self._warned: set[str] = set()
        self._writing = threading.RLock()  # re-entrant, as a signal handler may save or report
        self._unsent = b""
        self._descriptor = -1
        self._file = (0, 0)
        """Device and inode of the notes, which are open as `_descriptor`."""
        os.register_at_fork(after_in_child=self._detach)
        if directory is not None:
            try:
                self._ring = RingWriter(directory / RING_FILE)
            except OSError as error:
                self.warn(
                    f"cannot create the ring in {directory}, so the agent gets no samples: {error}"
                )

    def _detach(self) -> None:
        """In a forked child (a loader worker, say), which is not the rank: say nothing for it."""
        self._ring = self._notes = self._directory = self._fingerprints = None

    def record(self, record: Record, phase: Phase) -> None:
        """Publish a step and the rank's progress."""
        if self._unsent:
            with contextlib.suppress(OSError), self._writing:
                self._send()
        if self._ring is not None:
            try:
                with self._writing:  # several threads may report: a record has one slot
                    self._ring.write(record)
                self._ring.progress(record.step, record.batch, record.time, phase)
            except QUIET as error:
                self.warn(f"cannot report step {record.step}: {error}")

    def fingerprint(self, **fields: Any) -> None:
        """Publish the digests of a step."""
        if self._directory is None:
            return
        try:
            if self._fingerprints is None:
                file = self._directory / fingerprint_ring.FILE
                self._fingerprints = fingerprint_ring.FingerprintWriter(file)
            line = {"rank": self._rank, "time": wall_clock(), **fields}
            with self._writing:
                self._fingerprints.write(json.dumps(line).encode())
        except QUIET as error:
            self.warn(f"cannot publish a fingerprint: {error}")

    def progress(self, step: int, batch: int, phase: Phase) -> None:
        """Publish the rank's progress."""
        if self._ring is not None:
            try:
                self._ring.progress(step, batch, wall_clock(), phase)
            except QUIET as error:
                self.warn(f"cannot publish progress: {error}")

    def parts(self, seconds: Sequence[float]) -> None:
        """Publish the rank's seconds by `Part`."""
        if self._ring is not None:
            try:
                self._ring.parts(seconds)
            except QUIET as error:
                self.warn(f"cannot publish the parts of a step: {error}")

    def note(self, kind: Note, **fields: Any) -> None:
        """Append one line to the notes in a single write, so that lines never mix.

        The training thread and the one that saves in the background may both write notes.
        """
        if self._notes is None:
            return
        try:
            line = {"kind": kind, "time": wall_clock(), "rank": self._rank, **fields}
            encoded = (json.dumps(line) + "\n").encode()
            with self._writing:
                self._unsent += encoded
                self._send()
        except QUIET as error:
            self.warn(f"cannot write the note {kind!r}: {error}")

    def _send(self) -> None:
        """Write the notes that are not written yet, such as those that a full tmpfs refused."""
        if self._notes is None or not self._unsent:
            return
        written = os.write(self._opened(self._notes), self._unsent)
        self._unsent = self._unsent[written:]

    def _opened(self, path: Path) -> int:
        """The open file of the notes. It stays open: somebody may clear /dev/shm meanwhile.

        It is opened again if the script has closed it, as daemons close all their files.
        """
        with contextlib.suppress(OSError):  # nothing is open under this number
            status = os.fstat(self._descriptor)
            if (status.st_dev, status.st_ino) == self._file:
                return self._descriptor
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        status = os.fstat(self._descriptor)
        self._file = status.st_dev, status.st_ino
        return self._descriptor

    def metric_names(self) -> list[str]:
        """The names that the ring has, by their place."""
        return [] if self._ring is None else self._ring.names()

    def name_metric(self, place: int, name: str) -> None:
        """Name a metric in the ring."""
        if self._ring is not None:
            self._ring.name(place, name)

    @property
    def stop_requested(self) -> bool:
        """True if the agent requested this rank to save and stop."""
        return self._ring is not None and self._ring.stop_requested

    def warn(self, message: str) -> None:
        """Log a message, once per text and at most 100 texts."""
        if message not in self._warned and len(self._warned) < 100:
            self._warned.add(message)
            log.warning("%s", message)

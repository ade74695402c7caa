"""Reads the output of one rank for its agent: the ring of samples, and the notes."""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import structlog
from pydantic import ValidationError

from babysit import fingerprint_ring, wire
from babysit.ring import Record, RingReader, RingVersionError
from jobs.events import RankBeat, RankFingerprint, RankSamples

_CODE = struct.Struct("@i")
_ERROR_BYTES = 1 << 20
_BATCH = 1024
"""Records per read; a tick of 50 ms has fewer unless the agent was suspended."""


def columns(
    rank: int, records: list[Record], lost: int = 0, names: Sequence[str] = ()
) -> RankSamples:
    """Convert records to columns. `names`: of the metrics, by their place."""
    values = dict(zip(Record._fields, map(list, zip(*records, strict=True)), strict=False))
    rows: list[tuple[float, ...]] = values.pop("metrics", [])
    metrics = {
        name: [row[place] if place < len(row) else math.nan for row in rows]
        for place, name in enumerate(names)
        if any(place < len(row) for row in rows)
    }
    if not any(values.get("expected_until", ())):
        values.pop("expected_until", None)
    return RankSamples(rank=rank, lost=lost, metrics=metrics, **values)


class RankReader:
    """Reads one rank directory, each byte once."""

    def __init__(self, rank: int, directory: Path, started: float) -> None:
        self._rank = rank
        self.directory = directory
        self._ring: RingReader | None = None
        self._fingerprints: fingerprint_ring.FingerprintReader | None = None
        self._notes: dict[tuple[int, int], BinaryIO] = {}
        """Open files of notes, by device and inode."""
        self._started = started
        self._log = structlog.get_logger(part="rank_reader", rank=rank)
        self._has_reported = False
        self._draws = False
        """True once a loop of `steps()` has begun."""
        self.mismatch = ""
        """Why the ring cannot be read, if another version of babysit wrote it."""
        self._moved = False
        """True once the rank has drawn a batch or reported a step."""
        self.last_step = 0
        """Newest step that the rank reported; 0: none."""
        self._first_step = 0
        """The first step that the rank reported or drew; 0: none."""

    def samples(self) -> RankSamples | None:
        """Samples since the last call; None: there are none."""
        ring = self._open()
        if ring is None:
            return None
        records, lost = ring.drain(_BATCH)
        while len(records) % _BATCH == 0 and records:
            more, more_lost = ring.drain(_BATCH)
            if not more:
                break
            records += more
            lost += more_lost
        if not records:
            return None
        self.last_step = records[-1].step
        if not self._has_reported:
            self._first_step = records[0].step
        self._has_reported = True
        self._moved = True
        with_metrics = any(record.metrics for record in records)
        return columns(self._rank, records, lost, ring.names() if with_metrics else ())

    def fingerprints(self) -> list[RankFingerprint]:
        """Fingerprints since the last call; lines that are not whole are left out."""
        if self._fingerprints is None:
            try:
                file = self.directory / fingerprint_ring.FILE
                self._fingerprints = fingerprint_ring.FingerprintReader(file)
            except (OSError, ValueError):  # the script takes none, or it is about to begin
                return []
        found = []
        for line in self._fingerprints.drain():
            with contextlib.suppress(ValidationError):
                found.append(RankFingerprint.model_validate_json(line))
        return [each.model_copy(update={"rank": self._rank}) for each in found]

    def notes(self) -> list[str]:
        """Complete lines written since the last call."""
        self.open_notes()
        lines: list[str] = []
        for file in self._notes.values():
            data = file.read()
            whole = data.rfind(b"\n") + 1
            file.seek(whole - len(data), os.SEEK_CUR)
            lines += data[:whole].decode(errors="replace").splitlines()
        self._draws = self._draws or any(wire.Note.LOOPING in line for line in lines)
        return lines

    def open_notes(self) -> None:
        """Open the notes, and keep them open: they are read to their end even if they are removed.

        A file that takes their place is read besides.
        """
        path = self.directory / wire.NOTES_FILE
        with contextlib.suppress(OSError):  # not written yet, or gone
            status = path.stat()
            key = status.st_dev, status.st_ino
            if key not in self._notes:
                self._notes[key] = path.open("rb")

    @property
    def exit_code(self) -> int | None:
        """The exit code (0 to 255) that the rank's process recorded; None: it recorded none."""
        try:
            data = (self.directory / wire.EXIT_FILE).read_bytes()
        except OSError:
            return None
        return _CODE.unpack(data)[0] & 0xFF if len(data) == _CODE.size else None

    @property
    def recorded_error(self) -> str:
        """The record that torch's `@record` wrote of the rank's exception; empty: it wrote none."""
        try:
            with (self.directory / wire.ERROR_FILE).open("rb") as file:
                return file.read(_ERROR_BYTES).decode(errors="replace")
        except OSError:
            return ""

    @property
    def pid(self) -> int:
        """The process that joined as this rank; 0: none has."""
        ring = self._open()
        return 0 if ring is None else ring.progress().pid

    def beat(self, *, alive: bool) -> RankBeat:
        """The current progress of the rank; `STARTING` and its start time before it has a ring."""
        ring = self._open()
        if ring is None:
            return RankBeat(
                rank=self._rank,
                step=0,
                phase=wire.Phase.STARTING,
                beat=self._started,
                alive=alive,
                moved=False,
            )
        now = ring.progress()
        self._moved = self._moved or now.phase is wire.Phase.LOADING
        if not self._first_step and now.step > 0:
            # A rank that draws from `steps()` and has restored nothing counts from 1.
            self._first_step = 1 if self._draws else now.step
        return RankBeat(
            rank=self._rank,
            step=now.step,
            phase=now.phase,
            beat=now.beat,
            alive=alive,
            moved=self._moved,
            first_step=self._first_step,
            parts=now.parts,
        )

    def request_stop(self) -> bool:
        """Request the rank to save and stop; False: it has no ring (yet)."""
        ring = self._open()
        if ring is not None:
            ring.request_stop()
        return ring is not None

    def close(self) -> None:
        """Close the notes, and unmap the ring."""
        for notes in self._notes.values():
            notes.close()
        self._notes.clear()
        if self._fingerprints is not None:
            self._fingerprints.close()
            self._fingerprints = None
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _open(self) -> RingReader | None:
        path = self.directory / wire.RING_FILE
        if self._ring is None and path.exists():
            try:
                self._ring = RingReader(path)
            except RingVersionError as error:
                if not self.mismatch:
                    self._log.error("ring of another version", error=str(error))
                self.mismatch = str(error)
            except (
                ValueError,
                OSError,
            ):  # not complete, or just gone: tried again at the next look
                pass
        return self._ring

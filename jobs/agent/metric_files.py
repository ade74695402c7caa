"""Follows the files in which a silent script keeps its metrics, for one rank and attempt.

The problem: a file says nothing of the attempt that wrote it. The design: files of a pattern are
listed before the ranks start, and what they hold then is never counted. Without a pattern, the only
files that are read are the rank's own: those that its processes have open for writing, and event
files at the usual places that have the number of such a process in their name. Of those only what
is dated later than the start counts, or was written after they were found.

Limits: a script that opens and closes its file for each line is seen by a pattern alone. What a
library holds back (TensorBoard: 120 s) is known late, and lost with a SIGKILL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import queue
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import structlog

from babysit.ring import Record
from babysit.wire import NOTES_FILE
from jobs.agent.open_files import written_by
from jobs.agent.process_facts import children_of
from jobs.spec import RunSpec
from jobs.watch import Seen
from jobs.watch.files import (
    DECODERS,
    PLACES,
    Decoder,
    Format,
    Names,
    Row,
    RowReader,
    format_of,
    rows_of_state,
)
from jobs.watch.files.names import is_of_validation

LOOK_SECONDS = 2.0
"""Time between looks, each of which costs a `stat` per file."""
_RARELY = 0.5
"""Time until the next search for new files, as a share of the age of the attempt: a search lists
directories, and a script mostly opens its files soon."""
_MOST_SECONDS = 20.0
"""The longest time between two searches."""
_NUMBERED = re.compile(r"events\.out\.tfevents\.\d+\..+\.(\d+)\.\d+")
"""Name of a file of `tensorboard`: time, host, number of the process, number of the file."""
_PIECE = 1 << 20
"""Bytes of one file per look: what is decoded in a fraction of a second."""
_MOST_FILES = 64
_LAST_SECONDS = 1.0
_LAST_LOOKS = 3
_MOST_STATE_BYTES = 64 << 20


@dataclasses.dataclass(slots=True)
class _Growing:
    """A file that is appended to."""

    decoder: Decoder
    old: int = 0
    """Bytes at its beginning that belong to the past."""
    place: int = 0
    inode: int = 0


class _Stamp(NamedTuple):
    """Tells the states of a file apart."""

    inode: int
    size: int
    changed: int


@dataclasses.dataclass(slots=True)
class _Written:
    """A file that is written anew as a whole."""

    stamp: _Stamp | None = None
    broken: bool = False
    """True once it could not be read, by a fault of ours."""


class MetricFiles:
    """The files of one rank.

    Args:
        patterns: Absolute; empty: the rank's own files are looked for.
        names: Those of the spec.
        from_zero: As in the spec.
        began: Unix seconds of the start of the attempt.
        directory: Where the rank runs.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        names: Names,
        began: float,
        *,
        from_zero: bool = False,
        directory: Path | None = None,
    ) -> None:
        self._patterns = tuple(patterns)
        self._directory = directory
        self._began = began
        self._rows = RowReader(names, began, from_zero=from_zero)
        self._files: dict[Path, _Growing | _Written] = {}
        self._before: dict[Path, _Stamp] = {}
        """Files that were there before."""
        self._old_entries: set[str] = set()
        """Entries of `trainer_state.json` files that were there before."""
        self._found: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._search_at = 0.0
        self.troubles: dict[Path, str] = {}
        """Files that are not read any more, and why."""
        self._log = structlog.get_logger(part="metric_files")

    @property
    def seen(self) -> Seen:
        """The newest step in the files."""
        return self._rows.seen

    @property
    def is_sure(self) -> bool:
        """True if the spec names the files."""
        return bool(self._patterns)

    def take(self) -> list[Record]:
        """Reports since the last call. Does not block."""
        return [self._found.get_nowait() for _ in range(self._found.qsize())]

    def note_before(self) -> None:
        """Remember what is there before the ranks start. Blocks."""
        for path in self._matching():
            try:
                self._before[path] = _stamp(path.stat())
                if format_of(path.name) is Format.TRAINER_STATE:
                    rows = rows_of_state(_whole(path))
                    self._old_entries |= {_entry(row) for row in rows if not row.counts}
            except (OSError, ValueError):
                continue

    def look(self, pid: int, now: float) -> None:
        """Read what is new. Blocks, and may be called from any thread.

        Args:
            pid: The rank's process; 0: it has none any more.
            now: Unix seconds.
        """
        with self._lock:
            if now >= self._search_at:
                self._search_at = now + min(_MOST_SECONDS, _RARELY * (now - self._began))
                with contextlib.suppress(OSError):  # a directory that cannot be read
                    self._search(pid)
            rows = [row for path in self._files for row in self._read(path)]
            for record in self._rows.feed(rows, now):
                self._found.put(record)

    def finish(self, now: float) -> None:
        """Read the rest: the rank has ended. Blocks for at most `_LAST_SECONDS`."""
        reader = threading.Thread(target=self._finish, args=(now,), daemon=True)
        reader.start()
        reader.join(_LAST_SECONDS)

    def _finish(self, now: float) -> None:
        for _ in range(_LAST_LOOKS):  # the last one finds nothing, which completes the last step
            self.look(0, now)

    # finding

    def _search(self, pid: int) -> None:
        found = dict.fromkeys(self._matching() if self._patterns else self._own(pid))
        if len(found.keys() | self._files.keys()) > _MOST_FILES:
            # A long attempt may write more, one after another: only the newest are followed.
            self._files = {path: file for path, file in self._files.items() if path in found}
        for path in found:
            if path in self._files or len(self._files) >= _MOST_FILES:
                continue
            kind = format_of(path.name)
            if kind is Format.TRAINER_STATE:
                self._files[path] = _Written()
            elif kind is not None:
                self._files[path] = self._followed(path, kind)

    def _followed(self, path: Path, kind: Format) -> _Growing:
        try:
            stat = path.stat()
        except OSError:
            return _Growing(DECODERS[kind]())
        before = self._before.get(path)
        is_same = before is not None and before.inode == stat.st_ino
        old = before.size if before is not None and is_same and before.size <= stat.st_size else 0
        if not self._patterns and kind is Format.JSON_LINES:
            old = stat.st_size  # its lines may have no dates
        place = old if kind is Format.JSON_LINES else 0
        return _Growing(DECODERS[kind](), old=old, place=place, inode=stat.st_ino)

    def _matching(self) -> Iterator[Path]:
        found = {path for pattern in self._patterns for path in _matches(pattern)}
        return iter(sorted(found, key=_changed_at)[-_MOST_FILES:])

    def _own(self, pid: int) -> Iterator[Path]:
        processes = (pid, *children_of(pid)) if pid else ()
        for process in processes:
            for path in written_by(process):
                kind = format_of(path.name, sure=True)
                own = path.name == NOTES_FILE  # of babysit
                if kind is not None and not own and not is_of_validation(str(path)):
                    yield path
        for place in PLACES[Format.TENSORBOARD] if self._directory and processes else ():
            for path in _matches(f"{self._directory}/{place}"):
                number = _NUMBERED.fullmatch(path.name)
                if number is not None and int(number[1]) in processes:
                    yield path

    # reading

    def _read(self, path: Path) -> list[Row]:
        file = self._files[path]
        try:
            rows = self._anew(path, file) if isinstance(file, _Written) else _more(path, file)
        except (OSError, ValueError):  # gone, or not whole yet
            return []
        except Exception:  # noqa: BLE001 (whatever a file holds, the agent goes on)
            self._log.exception("not read any more", file=str(path))
            self._files[path] = _Written(broken=True)
            return []
        if isinstance(file, _Growing) and file.decoder.trouble and path not in self.troubles:
            self.troubles[path] = file.decoder.trouble
            self._log.warning("not read any more", file=str(path), reason=file.decoder.trouble)
        if self._patterns:
            return rows
        return [row for row in rows if row.time is None or row.time >= self._began]

    def _anew(self, path: Path, file: _Written) -> list[Row]:
        stamp = _stamp(path.stat())
        if file.broken or stamp in {file.stamp, self._before.get(path)}:
            return []
        rows = [row for row in rows_of_state(_whole(path)) if _entry(row) not in self._old_entries]
        file.stamp = stamp
        return sorted(rows, key=lambda row: row.step or row.values.get("step", 0.0))


def _more(path: Path, file: _Growing) -> list[Row]:
    """Rows that were appended."""
    with _opened(path) as stream:
        stat = os.fstat(stream.fileno())
        if stat.st_ino != file.inode or stat.st_size < file.place:
            file.inode, file.place, file.old = stat.st_ino, 0, 0
            file.decoder = type(file.decoder)()
        stream.seek(file.place)
        data = stream.read(_PIECE)
    past = max(0, min(len(data), file.old - file.place))
    file.place += len(data)
    file.decoder.feed(data[:past])
    return file.decoder.feed(data[past:])


def _stamp(stat: os.stat_result) -> _Stamp:
    return _Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _whole(path: Path) -> bytes:
    with _opened(path) as stream:
        data = stream.read(_MOST_STATE_BYTES + 1)
    if len(data) > _MOST_STATE_BYTES:
        raise ValueError("too large")
    return data


def _opened(path: Path) -> BinaryIO:
    """Open a regular file: a pipe could block the agent, and lose data to it.

    Raises:
        OSError: It is something else, or cannot be read.
    """
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def _entry(row: Row) -> str:
    return json.dumps([row.step, *sorted(row.values.items())])


def _matches(pattern: str) -> Iterator[Path]:
    for path in Path("/").glob(os.path.normpath(pattern).lstrip("/")):
        if not is_of_validation(str(path)) and path.is_file():
            yield path


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def metric_files(spec: RunSpec, directory: Path, began: float) -> MetricFiles | None:
    """The files of a rank as its spec has them; None: none are read.

    Args:
        spec: Of the run.
        directory: Where the ranks run.
        began: Unix seconds of the start of the attempt.
    """
    watch = spec.watch
    if watch == "off":
        return None
    if watch == "auto":
        return MetricFiles((), Names(), began, directory=directory)
    if not (places := watch.places):
        return None
    patterns = [str(directory / place) for place in places]
    names = watch.names.as_names if watch.names is not None else Names()
    return MetricFiles(patterns, names, began, from_zero=watch.from_zero)

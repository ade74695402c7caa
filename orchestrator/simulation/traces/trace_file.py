"""Job traces and node lists, read from CSV.

A trace has a header and one line for each job: `job_id`, `submit_time_s`, `duration_s` and
`num_gpus`; `vc` (virtual cluster) where the nodes are divided, `priority` (low, normal, high,
critical) if wanted. Other columns are kept as they are. The names, times and node counts of
published traces are understood as well (:mod:`orchestrator.simulation.traces.columns`).

Clusters record more than training jobs: work without a GPU or with a share of one, jobs that had
not ended when the trace was cut, lines that a crash left behind. These rows are left out and
counted by the reason, or refused if the reader is strict.

A node list has `gpus_per_node` (`gpu_capacity_num` or `gpu` in Alibaba's inventories), with
`nodes` for how many of them and `vc` for whose they are. `8x4` means eight nodes of four GPUs.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from jobs.spec import Priority
from orchestrator.errors import InvalidError
from orchestrator.simulation.traces import columns

SHARED = ""
"""The name of the only pool if nodes are not divided into virtual clusters."""
MAX_NODES = 1_000_000
MAX_GPUS_PER_NODE = 1_024
MAX_GPUS = 1_000_000_000
MAX_SUBMIT_SECONDS = 100_000_000_000
"""3,000 years: Unix seconds fit, milliseconds by mistake do not."""
MAX_DURATION_SECONDS = 1_000_000_000
_GZIP = b"\x1f\x8b"
_COUNT_BY_GPUS = re.compile(r"(\d{1,9})x(\d{1,9})", re.ASCII)


class TraceError(InvalidError):
    """A trace or a node list is invalid: `FILE:LINE: column: expected …, got …`.

    Attributes:
        name: The file.
        line: Line number, 1 for the header; 0: the file as a whole.
        column: The name of the column; empty: the line as a whole.
        reason: Why a row may be left out, to be read after a number of rows; empty: the file is
            invalid.
    """

    def __init__(self, name: str, line: int, column: str, message: str, reason: str = "") -> None:
        self.name, self.line, self.column, self.reason = name, line, column, reason
        where = f"{name}:{line}" if line else name
        super().__init__(": ".join(part for part in (where, column, message) if part))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One line of a trace."""

    id: str
    submit_seconds: float
    """Seconds since the origin of the trace."""
    duration_seconds: float
    """Seconds that it runs, undisturbed."""
    gpus: int
    vc: str = SHARED
    priority: Priority = Priority.NORMAL
    line: int = 0
    """The line number in the file."""
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Columns without a meaning to babysit, unchanged."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that are left out for one reason."""

    reason: str
    """To be read after their number: `without GPUs`."""
    count: int
    first_line: int


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """Jobs in order of submission; jobs of one moment in the order of the file."""

    name: str
    jobs: tuple[Job, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Rows that were left out, by reason, the most frequent first."""


Pools = Mapping[str, tuple[int, ...]]
"""The GPUs of each node, by virtual cluster."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """One line of a file by its columns; creates the errors about itself."""

    name: str
    number: int
    cells: Mapping[str, str]

    def error(self, column: str, expected: str, reason: str = "") -> TraceError:
        got = self.cells.get(column, "")
        message = f"expected {expected}, got {got!r}"
        return TraceError(
            self.name, self.number, column, message, reason or f"with an odd {column}"
        )

    def seconds(self, column: str, most: int) -> float:
        """The time in a column, in seconds."""
        value = columns.seconds(self.cells[column])
        if not 0 <= value <= most:
            missing = columns.is_missing(self.cells[column]) or value < 0
            reason = "unfinished" if missing and column != self.submit else ""
            raise self.error(column, f"seconds, 0 to {most:,}", reason)
        return value

    @property
    def submit(self) -> str:
        """The column with the time of submission."""
        return columns.found(columns.SUBMIT, self.cells) or ""

    def duration(self) -> float:
        """Seconds from the start to the end."""
        given = columns.found(columns.DURATION, self.cells)
        if (state := columns.unfinished_state(self.cells)) is not None:
            raise self.error(state, "the state of a job that has ended", "unfinished")
        if given is not None:
            return self.seconds(given, MAX_DURATION_SECONDS)
        start, end = (columns.found(names, self.cells) or "" for names in columns.SPAN)
        lasted = self.seconds(end, MAX_SUBMIT_SECONDS) - self.seconds(start, MAX_SUBMIT_SECONDS)
        if not 0 <= lasted <= MAX_DURATION_SECONDS:
            raise self.error(end, f"an end at most {MAX_DURATION_SECONDS:,} s after the start")
        return lasted

    def gpus(self) -> int:
        """GPUs of all workers of the job."""
        column = columns.found(columns.GPUS, self.cells) or ""
        gpus = self.count(column, MAX_GPUS)
        milli = columns.found(columns.MILLI, self.cells)
        if milli is not None and gpus == 1 and columns.number(self.cells[milli]) < 1000:
            raise self.error(milli, "1000 for a whole GPU", _SHARE)
        if column == columns.GPUS_OF_A_WORKER and columns.WORKERS in self.cells:
            gpus *= self.count(columns.WORKERS, MAX_GPUS)
        return gpus

    def count(self, column: str, most: int) -> int:
        value = columns.number(self.cells[column])
        if not (1 <= value <= most and value.is_integer()):
            reason = "without GPUs" if value == 0 else _SHARE if 0 < value < most else ""
            raise self.error(column, f"a whole number, 1 to {most:,}", reason)
        return int(value)

    def priority(self) -> Priority:
        try:
            return Priority(self.cells.get("priority", "").strip() or Priority.NORMAL)
        except ValueError:
            raise self.error("priority", f"one of {', '.join(Priority)}") from None


_SHARE = "with a share of a GPU"


def read_trace(path: str | Path, *, strict: bool = False) -> Trace:
    """Read a trace.

    Args:
        path: The file.
        strict: Refuse rows that would be left out.

    Raises:
        TraceError: The file cannot be read or is invalid, no row of it is a job, or `strict` and a
            row would be left out.
    """
    name = str(path)
    jobs: list[Job] = []
    faults: list[TraceError] = []
    lines: dict[str, int] = {}
    for line in _lines(name, columns.NEEDED):
        try:
            if isinstance(line, TraceError):
                raise line
            jobs.append(_job(line, lines))
        except TraceError as fault:
            if strict or not fault.reason:
                raise
            faults.append(fault)
    left_out = _by_reason(faults)
    if not jobs:
        why = f" ({left_out_in_words(left_out)})" if left_out else ""
        raise TraceError(name, 1, "", f"expected jobs below the header, got none{why}")
    return Trace(name, tuple(sorted(jobs, key=lambda job: job.submit_seconds)), left_out)


def _job(line: _Line, lines: dict[str, int]) -> Job:
    """The job of a line; its id is noted in `lines`."""
    cells = line.cells
    column = columns.found(columns.ID, cells) or ""
    job_id = cells[column].strip()
    if not job_id or job_id in lines:
        other = f" (line {lines[job_id]} has it)" if job_id else ""
        reason = "with the id of another row" if job_id else "without an id"
        raise line.error(column, f"an id that no other job has{other}", reason)
    job = Job(
        id=job_id,
        submit_seconds=line.seconds(line.submit, MAX_SUBMIT_SECONDS),
        duration_seconds=line.duration(),
        gpus=line.gpus(),
        vc=cells.get("vc", SHARED),
        priority=line.priority(),
        line=line.number,
        extra={name: cell for name, cell in cells.items() if name not in columns.OWN},
    )
    lines[job_id] = line.number
    return job


def _by_reason(faults: Sequence[TraceError]) -> tuple[LeftOut, ...]:
    found: dict[str, LeftOut] = {}
    for fault in faults:
        before = found.get(fault.reason, LeftOut(fault.reason, 0, fault.line))
        found[fault.reason] = dataclasses.replace(before, count=before.count + 1)
    return tuple(sorted(found.values(), key=lambda one: (-one.count, one.first_line)))


def left_out_in_words(left_out: Sequence[LeftOut]) -> str:
    """The numbers of rows by reason: `2 without GPUs (the first in line 4), 1 unfinished (…)`."""
    return ", ".join(
        f"{one.count:,} {one.reason} (the first in line {one.first_line})" for one in left_out
    )


def within(trace: Trace, pools: Pools, *, strict: bool = False) -> Trace:
    """The trace without jobs of virtual clusters that have no nodes.

    Raises:
        TraceError: There is such a job and `strict`, or there is no other one.
    """
    if strict or SHARED in pools:
        return trace
    elsewhere = [job for job in trace.jobs if job.vc not in pools]
    if not elsewhere or len(elsewhere) == len(trace.jobs):
        return trace  # :func:`by_pool` refuses the second
    reason = "of a virtual cluster without nodes"
    first = min(job.line for job in elsewhere)
    left_out = (*trace.left_out, LeftOut(reason, len(elsewhere), first))
    kept = tuple(job for job in trace.jobs if job.vc in pools)
    return dataclasses.replace(trace, jobs=kept, left_out=left_out)


def read_nodes(text: str) -> Pools:
    """Read nodes from `COUNTxGPUS`, or from the file of this name.

    Raises:
        TraceError: The text is neither, or the file is invalid.
    """
    if match := _COUNT_BY_GPUS.fullmatch(text):
        count, gpus = map(int, match.groups())
        if not (1 <= count <= MAX_NODES and 1 <= gpus <= MAX_GPUS_PER_NODE):
            limits = f"1 to {MAX_NODES:,} nodes of 1 to {MAX_GPUS_PER_NODE:,} GPUs"
            raise TraceError(text, 0, "", f"expected {limits}")
        return {SHARED: (gpus,) * count}
    if not text or not Path(text).exists():
        raise TraceError(text or "--nodes", 0, "", "expected a file, or COUNTxGPUS such as 8x4")
    return _read_node_list(text)


def _read_node_list(name: str) -> Pools:
    pools: dict[str, list[int]] = {}
    total = 0
    for line in _lines(name, ()):
        if isinstance(line, TraceError):
            raise line
        column = columns.found(columns.GPUS_OF_A_NODE, line.cells)
        if column is None:
            raise TraceError(name, 1, "", "expected the column gpus_per_node")
        vc = line.cells.get("vc", SHARED)
        if "vc" in line.cells and not vc:
            raise line.error("vc", "the name of a virtual cluster")
        count = line.count("nodes", MAX_NODES) if "nodes" in line.cells else 1
        total += count
        if total > MAX_NODES:
            raise line.error("nodes", f"no more than {MAX_NODES:,} nodes in all")
        if column != "gpus_per_node" and columns.number(line.cells[column]) == 0:
            continue  # inventories list hosts without GPUs
        pools.setdefault(vc, []).extend([line.count(column, MAX_GPUS_PER_NODE)] * count)
    if not pools:
        raise TraceError(name, 1, "", "expected nodes below the header, got none")
    return {vc: tuple(gpus) for vc, gpus in pools.items()}


def by_pool(trace: Trace, pools: Pools) -> dict[str, Sequence[Job]]:
    """The jobs of each pool, in order of submission.

    Raises:
        TraceError: A job belongs to a virtual cluster that has no nodes.
    """
    if SHARED in pools:
        return {SHARED: trace.jobs}
    jobs: dict[str, list[Job]] = {vc: [] for vc in pools}
    for job in trace.jobs:
        if job.vc not in jobs:
            known = f"a virtual cluster of the node list ({', '.join(sorted(pools))})"
            raise TraceError(trace.name, job.line, "vc", f"expected {known}, got {job.vc!r}")
        jobs[job.vc].append(job)
    return {vc: tuple(found) for vc, found in jobs.items()}


def _lines(name: str, needed: columns.Needed) -> Iterator[_Line | TraceError]:
    """Yield the lines below the header, without blank ones; an error for one of another width.

    Raises:
        TraceError: The file is unreadable, not CSV, or without header.
    """
    try:
        with _text(name) as stream:
            yield from _rows(name, stream, needed)
    except FileNotFoundError as error:
        raise TraceError(name, 0, "", "no such file") from error
    except IsADirectoryError as error:
        raise TraceError(name, 0, "", "is a directory; name a CSV file in it") from error
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise TraceError(name, 0, "", f"cannot be read: {why}") from error
    except UnicodeDecodeError as error:
        raise TraceError(name, 0, "", "expected UTF-8 text") from error


def _text(name: str) -> TextIO:
    """Open a file as text; it may be compressed with gzip."""
    with Path(name).open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    if packed:
        return gzip.open(name, "rt", encoding="utf-8-sig", newline="")
    return Path(name).open(encoding="utf-8-sig", newline="")


def _rows(name: str, stream: Iterator[str], needed: columns.Needed) -> Iterator[_Line | TraceError]:
    reader = csv.reader(stream, strict=True)
    header: list[str] = []
    number = 1
    try:
        for row in reader:
            if not header:
                header = _header(name, row, needed)
            elif row and len(row) != len(header):
                message = f"expected {len(header)} columns, got {len(row)}"
                yield TraceError(name, number, "", message, "of another width")
            elif row:
                yield _Line(name, number, dict(zip(header, row, strict=True)))
            number = reader.line_num + 1
    except csv.Error as error:
        raise TraceError(name, number, "", f"expected CSV: {error}") from error
    if not header:
        raise TraceError(name, 1, "", "expected a header, got nothing")


def _header(name: str, row: Sequence[str], needed: columns.Needed) -> list[str]:
    header = [cell.strip() for cell in row]
    if missing := columns.missing(needed, header):
        names = ", ".join(column for column, _ in needed)
        message = f"expected the columns {names}; there is no {', '.join(missing)}"
        raise TraceError(name, 1, "", message)
    if twice := next((column for column in header if header.count(column) > 1), None):
        raise TraceError(name, 1, twice, "expected each column once, got it twice")
    return header

"""Job traces and node lists, read from CSV.

A trace has a header and one line for each job: `job_id`, `submit_time_s`, `duration_s` and
`num_gpus`; `vc` (virtual cluster) where the nodes are divided, `priority` (low, normal, high,
critical) if wanted. Other columns are kept as they are.

A node list has `gpus_per_node` (or `gpu_capacity_num`, as Alibaba's inventories call it), with
`nodes` for how many of them and `vc` for whose they are. `8x4` means eight nodes of four GPUs.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from jobs.spec import Priority
from orchestrator.errors import InvalidError

SHARED = ""
"""The name of the only pool if nodes are not divided into virtual clusters."""
MAX_NODES = 1_000_000
MAX_GPUS_PER_NODE = 1_024
MAX_GPUS = 1_000_000_000
MAX_SUBMIT_SECONDS = 100_000_000_000
"""3,000 years: Unix seconds fit, milliseconds by mistake do not."""
MAX_DURATION_SECONDS = 1_000_000_000
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_GZIP = b"\x1f\x8b"
_COUNT_BY_GPUS = re.compile(r"(\d{1,9})x(\d{1,9})", re.ASCII)


class TraceError(InvalidError):
    """A trace or a node list is invalid: `FILE:LINE: column: expected …, got …`.

    Attributes:
        name: The file.
        line: Line number, 1 for the header; 0: the file as a whole.
        column: The name of the column; empty: the line as a whole.
    """

    def __init__(self, name: str, line: int, column: str, message: str) -> None:
        self.name, self.line, self.column = name, line, column
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
class Trace:
    """Jobs in order of submission; jobs of one moment in the order of the file."""

    name: str
    jobs: tuple[Job, ...]


Pools = Mapping[str, tuple[int, ...]]
"""The GPUs of each node, by virtual cluster."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Line:
    """One line of a file by its columns; creates the errors about itself."""

    name: str
    number: int
    cells: Mapping[str, str]

    def error(self, column: str, expected: str) -> TraceError:
        got = self.cells.get(column, "")
        return TraceError(self.name, self.number, column, f"expected {expected}, got {got!r}")

    def seconds(self, column: str, most: int) -> float:
        value = _number(self.cells[column])
        if not 0 <= value <= most:
            raise self.error(column, f"seconds, 0 to {most:,}")
        return value

    def count(self, column: str, most: int) -> int:
        value = _number(self.cells[column])
        if not (1 <= value <= most and value.is_integer()):
            raise self.error(column, f"a whole number, 1 to {most:,}")
        return int(value)

    def priority(self) -> Priority:
        try:
            return Priority(self.cells.get("priority", "").strip() or Priority.NORMAL)
        except ValueError:
            raise self.error("priority", f"one of {', '.join(Priority)}") from None


def _number(text: str) -> float:
    """The number, or NaN for other text, such as `1_000`, `inf`, or digits of other scripts."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else math.nan


def read_trace(path: str | Path) -> Trace:
    """Read a trace.

    Raises:
        TraceError: The file cannot be read, or is invalid.
    """
    name = str(path)
    needed = ("job_id", "submit_time_s", "duration_s", "num_gpus")
    own = {*needed, "vc", "priority"}
    jobs: list[Job] = []
    lines: dict[str, int] = {}
    for line in _lines(name, needed):
        cells = line.cells
        job_id = cells["job_id"]
        if not job_id or job_id in lines:
            other = f" (line {lines[job_id]} has it)" if job_id else ""
            raise line.error("job_id", f"an id that no other job has{other}")
        lines[job_id] = line.number
        job = Job(
            id=job_id,
            submit_seconds=line.seconds("submit_time_s", MAX_SUBMIT_SECONDS),
            duration_seconds=line.seconds("duration_s", MAX_DURATION_SECONDS),
            gpus=line.count("num_gpus", MAX_GPUS),
            vc=cells.get("vc", SHARED),
            priority=line.priority(),
            line=line.number,
            extra={column: cell for column, cell in cells.items() if column not in own},
        )
        jobs.append(job)
    if not jobs:
        raise TraceError(name, 1, "", "expected jobs below the header, got none")
    return Trace(name, tuple(sorted(jobs, key=lambda job: job.submit_seconds)))


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
        column = "gpu_capacity_num" if "gpu_capacity_num" in line.cells else "gpus_per_node"
        if column not in line.cells:
            raise TraceError(name, 1, "", "expected the column gpus_per_node")
        vc = line.cells.get("vc", SHARED)
        if "vc" in line.cells and not vc:
            raise line.error("vc", "the name of a virtual cluster")
        count = line.count("nodes", MAX_NODES) if "nodes" in line.cells else 1
        total += count
        if total > MAX_NODES:
            raise line.error("nodes", f"no more than {MAX_NODES:,} nodes in all")
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


def _lines(name: str, needed: Sequence[str]) -> Iterator[_Line]:
    """Yield the lines below the header, without blank ones.

    Raises:
        TraceError: The file is unreadable, not CSV, without header, or a line has another width.
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


def _rows(name: str, stream: Iterator[str], needed: Sequence[str]) -> Iterator[_Line]:
    reader = csv.reader(stream, strict=True)
    header: list[str] = []
    number = 1
    try:
        for row in reader:
            if not header:
                header = _header(name, row, needed)
            elif row and len(row) != len(header):
                message = f"expected {len(header)} columns, got {len(row)}"
                raise TraceError(name, number, "", message)
            elif row:
                yield _Line(name, number, dict(zip(header, row, strict=True)))
            number = reader.line_num + 1
    except csv.Error as error:
        raise TraceError(name, number, "", f"expected CSV: {error}") from error
    if not header:
        raise TraceError(name, 1, "", "expected a header, got nothing")


def _header(name: str, row: Sequence[str], needed: Sequence[str]) -> list[str]:
    header = [cell.strip() for cell in row]
    if missing := [column for column in needed if column not in header]:
        message = f"expected the columns {', '.join(needed)}; there is no {', '.join(missing)}"
        raise TraceError(name, 1, "", message)
    if twice := next((column for column in header if header.count(column) > 1), None):
        raise TraceError(name, 1, twice, "expected each column once, got it twice")
    return header

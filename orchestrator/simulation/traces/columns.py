"""The columns of job traces as they are published, and how their cells are read.

Sources of the names: the schemas that come with Helios (S-Lab-System-Group/HeliosData), Acme
(InternLM/AcmeTrace), and the GPU traces of Alibaba (alibaba/clusterdata: cluster-trace-gpu-v2023,
cluster-trace-v2026-spot-gpu), and those of common simulators.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Container, Mapping, Sequence

Names = tuple[str, ...]
"""Names of one column, the first that a file has counts."""
Needed = Sequence[tuple[str, Sequence[Names]]]
"""Columns that a file must have: the name to ask for, and columns of which all must be there."""

ID: Names = ("job_id", "jobid", "job_name", "name")
SUBMIT: Names = ("submit_time_s", "submit_time", "submitted_time", "creation_time", "arrival_time")
DURATION: Names = ("duration_s", "duration", "run_time", "runtime")
GPUS_OF_A_WORKER = "gpu_request"
GPUS: Names = ("num_gpus", "gpu_num", "num_gpu", GPUS_OF_A_WORKER)
WORKERS = "worker_num"
MILLI: Names = ("gpu_milli",)
"""Thousandths of a GPU, of pods that share one."""
SPAN: tuple[Names, Names] = (("start_time", "scheduled_time"), ("end_time", "deletion_time"))
"""Start and end, where no duration is given."""
GPUS_OF_A_NODE: Names = ("gpu_capacity_num", "gpus_per_node", "gpu")
STATE: Names = ("status", "state")
NEEDED: Needed = (
    ("job_id", (ID,)),
    ("submit_time_s", (SUBMIT,)),
    ("duration_s", (DURATION,)),
    ("num_gpus", (GPUS,)),
)
OWN = frozenset({"job_id", "submit_time_s", "duration_s", "num_gpus", "vc", "priority"})
"""Columns whose cells are wholly in a job."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_MISSING = frozenset({"", "none", "null", "nan", "nat", "n/a", "na", "-", "unknown"})
_UNFINISHED = frozenset({"running", "pending", "queued", "waiting", "unfinished", "suspended"})


def found(names: Names, columns: Container[str]) -> str | None:
    """The name under which a file has a column; None: it has none."""
    return next((name for name in names if name in columns), None)


def missing(needed: Needed, header: Container[str]) -> list[str]:
    """The columns that a header lacks, by the names to ask for."""
    return [
        column
        for column, parts in needed
        if not all(found(names, header) for names in parts)
        and not (parts == (DURATION,) and all(found(names, header) for names in SPAN))
    ]


def number(text: str) -> float:
    """The number, or NaN for other text, such as `1_000`, `inf`, or digits of other scripts."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else math.nan


def seconds(text: str) -> float:
    """Seconds: a number, or the Unix seconds of a date with a time; NaN for other text.

    A time without a zone is in UTC.
    """
    text = text.strip()
    if not _DATE.fullmatch(text):
        return number(text)
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:  # the 31st of February
        return math.nan
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).timestamp()


def is_missing(text: str) -> bool:
    """True for a cell without a value."""
    return text.strip().lower() in _MISSING


def unfinished_state(cells: Mapping[str, str]) -> str | None:
    """The column that says that a job had not ended; None: none does."""
    column = found(STATE, cells)
    if column is not None and cells[column].strip().lower() in _UNFINISHED:
        return column
    return None

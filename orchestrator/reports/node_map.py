"""Which node held which ranks in which attempt. Pure."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

from orchestrator.core.text import counted
from orchestrator.reports.record import RunRecord

_ALIKE = 12
"""Nodes that were in every attempt and had no trouble are one row if there are more than this."""
MOST_ROWS = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A node in one attempt."""

    attempt: int
    ranks: str
    """`0-7`."""
    begin: float
    end: float
    """Share of the wall time, 0 to 1."""
    failed: bool
    """True if the attempt ended because of this node, or a rank on it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One node, or several that had the same history."""

    name: str
    stays: Sequence[Stay]
    state: str
    """State of the node now, with the reason; empty if it is not known."""
    troubled: bool

    @property
    def held(self) -> str:
        """`attempts 1-4: ranks 0-7; attempt 5: ranks 8-15`."""
        said = []
        for ranks, stays in itertools.groupby(self.stays, key=lambda stay: stay.ranks):
            numbers = [stay.attempt for stay in stays]
            many = len(numbers) > 1
            said.append(f"{'attempts' if many else 'attempt'} {ranges(numbers)}: {ranks}")
        return "; ".join(said)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeMap:
    """The nodes of a run."""

    rows: Sequence[NodeRow]
    left_out: int
    """Nodes without a row of their own."""


def node_map(record: RunRecord) -> NodeMap:
    """The nodes of a run; those with trouble first, then those that came or went."""
    stays: dict[str, list[Stay]] = defaultdict(list)
    blamed = {(each.attempt - 1, each.node) for each in record.run.restarts if each.node}
    for attempt in record.attempts:
        begin = _share(record, attempt.started_at)
        end = _share(record, attempt.ended_at or record.end)
        ranks = attempt.ranks or [[] for _ in attempt.nodes]
        for name, held in zip(attempt.nodes, ranks, strict=False):
            stays[name].append(
                Stay(
                    attempt=attempt.number,
                    ranks=_ranks(held),
                    begin=begin,
                    end=max(begin, end),
                    failed=(attempt.number, name) in blamed,
                )
            )
    rows = [_row(record, name, found) for name, found in stays.items()]
    whole = len(record.attempts)
    steady = [row for row in rows if not row.troubled and len(row.stays) == whole]
    if len(steady) > _ALIKE:
        rows = [row for row in rows if row not in steady]
    else:
        steady = []
    rows.sort(key=lambda row: (not row.troubled, row.stays[0].attempt))
    left_out = max(0, len(rows) - MOST_ROWS)
    return NodeMap(rows=[*rows[:MOST_ROWS], *_together(steady)], left_out=left_out)


def _row(record: RunRecord, name: str, stays: list[Stay]) -> NodeRow:
    node = record.nodes.get(name)
    state = "" if node is None else node.state
    if node is not None and node.reason:
        state = f"{node.state}: {node.reason}"
    healthy = node is None or node.state == "ready"
    troubled = not healthy or any(stay.failed for stay in stays)
    return NodeRow(name=name, stays=stays, state=state, troubled=troubled)


def _together(rows: Sequence[NodeRow]) -> list[NodeRow]:
    """One row for nodes with the same history."""
    if not rows:
        return []
    stays = [dataclasses.replace(stay, ranks="the other ranks") for stay in rows[0].stays]
    name = f"{counted(len(rows), 'other node')}: {rows[0].name} … {rows[-1].name}"
    return [NodeRow(name=name, stays=stays, state="", troubled=False)]


def _share(record: RunRecord, at: dt.datetime) -> float:
    since = (at - record.run.submitted_at).total_seconds()
    return min(1.0, max(0.0, since / record.wall_seconds)) if record.wall_seconds else 0.0


def _ranks(held: Sequence[int]) -> str:
    if not held:
        return "ranks not known"
    return f"{'ranks' if len(held) > 1 else 'rank'} {ranges(held)}"


def ranges(numbers: Iterable[int]) -> str:
    """`0-7, 16`: numbers in order, consecutive ones joined."""
    ordered = sorted(set(numbers))
    groups = itertools.groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])
    parts = []
    for _, pairs in groups:
        run = [number for _, number in pairs]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(parts)

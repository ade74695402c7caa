"""A database that is older than what agents run: no healthy training is stopped for it.

The real gateway, controllers and SQL store run in virtual time, as in the fuzzer; a backup is
restored, or a failover loses the last second, at the time that a test says.
"""

from __future__ import annotations

import dataclasses
import re

import pytest

from orchestrator.fuzz.plan import Choice, Fault, draw
from orchestrator.fuzz.simulation import Outcome, run_plan

FAULTS = frozenset({"backup_restored", "rank_killed", "node_lost"})


def played(seed: int, *faults: tuple[float, str]) -> Outcome:
    """One run of 40 steps among these faults, on the cluster of a seed."""
    plan = draw(seed)
    submission = dataclasses.replace(plan.submissions[0], at=0.5, steps=40, step_seconds=1.5)
    planned = tuple(Fault(number, at, kind) for number, (at, kind) in enumerate(faults, 1))
    plan = dataclasses.replace(plan, submissions=(submission,), faults=planned, calm_at=60.0)
    return run_plan(plan, Choice(kinds=FAULTS))


def ahead(trace: str) -> set[tuple[str, str]]:
    """The attempts that agents named, each with the one that the database knew."""
    return set(re.findall(r"ahead of the database \(worker=\S+, attempt=(\d+), known=(\d+)", trace))


@pytest.mark.parametrize(
    ("seed", "faults", "known", "attempts"),
    [
        (20, [(9.0, "backup_restored")], ("1", "1"), 1),
        (21, [(12.0, "backup_restored"), (13.0, "rank_killed")], ("2", "1"), 2),
        (32, [(12.0, "backup_restored"), (13.0, "rank_killed")], ("2", "1"), 2),
        (18, [(12.0, "backup_restored"), (13.0, "node_lost")], ("2", "1"), 2),
        (33, [(12.0, "backup_restored"), (13.0, "node_lost")], ("2", "1"), 2),
        (56, [(9.0, "backup_restored")], ("1", "0"), 1),
    ],
    ids=[
        "reports lost",
        "newer attempt",
        "failover in the attempt before",
        "newer attempt on agents unknown",
        "newer attempt on another agent",
        "before the first attempt",
    ],
)
def test_a_restored_database_stops_no_training(
    seed: int, faults: list[tuple[float, str]], known: tuple[str, str], attempts: int
) -> None:
    outcome = played(seed, *faults)
    trace = "\n".join(outcome.trace)
    assert not outcome.broken, trace
    assert known in ahead(trace), "the restore must be one that loses something"
    assert f"attempt {attempts} is whole on" in trace
    assert "succeeded" in trace
    assert f"attempt {attempts + 1} starts" not in trace
    restored = trace.index("the backup is restored")
    assert "rank_exited" not in trace[restored : trace.index("is whole on", restored)]

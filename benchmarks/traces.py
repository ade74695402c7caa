"""Replay public job traces: published figures to the digit, then the product's policies.

`python benchmarks/traces.py --data DIR` compares with every expected figure under the peer's own
rules (`support/peer_rules.py`), and exits with 1 if a digit differs. `--trace FILE --nodes
FILE|COUNTxGPUS` (both may be repeated) replays other traces under the product's policies, and under
the rules of the peer with that kind of trace. The last line is one JSON object: `{trace: {policy:
{avg_jct_seconds, avg_queue_seconds, p99_jct_seconds, wall_seconds}}}`.

A policy `muri:srtf` is the peer's under the peer's rules; `srtf` is the product's, with the same
cost of a preemption, so that the two compare.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.support import public_data  # noqa: E402 (the script runs without installation)
from benchmarks.support.harness import table  # noqa: E402
from benchmarks.support.peer_rules import (  # noqa: E402
    HeliosCosts,
    HeliosPreemptiveRules,
    HeliosQueueRules,
    MuriCosts,
    MuriRules,
    muri_trace,
)
from orchestrator.simulation.traces.policies import POLICIES, PolicyName, ProductRules  # noqa: E402
from orchestrator.simulation.traces.pool import Rules  # noqa: E402
from orchestrator.simulation.traces.production_policy import ProductionRules  # noqa: E402
from orchestrator.simulation.traces.replay import Outcome, Summary, replay, summarise  # noqa: E402
from orchestrator.simulation.traces.trace_file import (  # noqa: E402
    Pools,
    Trace,
    TraceError,
    read_nodes,
    read_trace,
)

MURI = ("avg_jct_s", "makespan_s", "p99_jct_s")
HELIOS = ("avg_jct_s", "avg_queue_s", "p99.9_queue_s", "preemptions")
HELIOS_EXPECTED = {
    "helios:fifo": ("11585.29", "104.61", "25236"),
    "helios:sjf": ("11543.43", "62.75", "16791"),
    "helios:srtf": ("11532.86", "51.06", "13056", "801"),
}
"""Figures of HeliosArtifact (bdaae109), run again on the Philly window."""


@dataclass(frozen=True)
class Case:
    """A trace on its nodes, with the expected figures: policy to column to figure, as printed."""

    name: str
    trace: Trace
    pools: Pools
    expected: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def is_muri(self) -> bool:
        """True if it has the columns that Muri's simulator needs."""
        return {"service_s", "event_overhead_s"} <= self.trace.jobs[0].extra.keys()

    @property
    def has_whole_seconds(self) -> bool:
        """True if HeliosArtifact, which ticks by the second, can run it."""
        times = ((job.submit_seconds, job.duration_seconds) for job in self.trace.jobs)
        return all(t.is_integer() and d.is_integer() and d > 0 for t, d in times)


@dataclass(frozen=True)
class Replayed:
    """The outcome of one policy."""

    policy: str
    outcome: Outcome
    summary: Summary
    wall_seconds: float

    def figure(self, column: str) -> float:
        """A figure as the peers define it.

        Raises:
            KeyError: The column is unknown.
        """
        times = [(work.ended or 0.0) - work.job.submit_seconds for work in self.outcome.works]
        return {
            "avg_jct_s": lambda: self.summary.avg_jct_seconds,
            "makespan_s": lambda: self.summary.makespan_seconds,
            "p99_jct_s": lambda: sorted(times)[int(0.99 * len(times))],
            "avg_queue_s": lambda: self.summary.avg_queue_seconds,
            "p99.9_queue_s": lambda: float(
                np.quantile([work.waited for work in self.outcome.works], 0.999)
            ),
            "preemptions": lambda: self.summary.preemptions,
        }[column]()

    def figures(self) -> dict[str, float]:
        """The figures for the last line, in seconds."""
        return {
            "avg_jct_seconds": round(self.summary.avg_jct_seconds, 3),
            "avg_queue_seconds": round(self.summary.avg_queue_seconds, 3),
            "p99_jct_seconds": round(self.summary.p99_jct_seconds, 3),
            "wall_seconds": round(self.wall_seconds, 3),
        }


def rules_for(case: Case) -> Iterator[tuple[str, Rules]]:
    """The rules of the peer with this kind of trace, then the product's."""
    costs: type[ProductRules] = ProductRules
    if case.is_muri:
        costs = MuriCosts
        for name in (PolicyName.SRTF, PolicyName.SRSF):
            yield f"muri:{name}", MuriRules(POLICIES[name])
    elif case.has_whole_seconds:
        costs = HeliosCosts
        for name in (PolicyName.FIFO, PolicyName.SJF):
            yield f"helios:{name}", HeliosQueueRules(POLICIES[name])
        yield "helios:srtf", HeliosPreemptiveRules(POLICIES[PolicyName.SRTF])
    for name, policy in POLICIES.items():
        yield name, costs(policy)
    yield PolicyName.BABYSIT, ProductionRules()


def bench(case: Case) -> list[Replayed]:
    trace = muri_trace(case.trace) if case.is_muri else case.trace
    found = []
    for policy, rules in rules_for(case):
        began = time.perf_counter()
        outcome = replay(trace, case.pools, rules)
        wall = time.perf_counter() - began
        found.append(Replayed(policy, outcome, summarise(outcome), wall))
    return found


def compare(case: Case, found: list[Replayed]) -> list[list[str]]:
    """Rows of expected and computed figures, each with the precision of the expected one."""
    rows = []
    for replayed in found:
        for column, expected in case.expected.get(replayed.policy, {}).items():
            decimals = len(expected.partition(".")[2])
            ours = f"{replayed.figure(column):.{decimals}f}"
            match = "yes" if ours == expected else "NO"
            rows.append([case.name, replayed.policy, column, expected, ours, match])
    return rows


def show(case: Case, found: list[Replayed]) -> None:
    titles = ("avg JCT", "p99 JCT", "avg queue", "makespan", "util.", "preempt.", "refused", "wall")
    rows = []
    for replayed in found:
        s = replayed.summary
        seconds = (s.avg_jct_seconds, s.p99_jct_seconds, s.avg_queue_seconds, s.makespan_seconds)
        rows.append(
            [
                replayed.policy,
                *(f"{value:,.1f}" for value in seconds),
                f"{s.utilisation_ratio:.2%}",
                f"{s.preemptions:,}",
                str(s.refused),
                f"{replayed.wall_seconds:.2f}",
            ]
        )
    gpus = sum(map(sum, case.pools.values()))
    print(f"\n{case.name}: {len(case.trace.jobs):,} jobs on {gpus:,} GPUs (seconds)")
    table(("policy", *titles), rows)


def known_cases(data: Path) -> Iterator[Case]:
    """The traces with expected figures; prints a message for missing ones."""
    muri = data / "expected_muri.csv"
    for number in ("1", "3"):
        path = data / f"muri_philly_trace{number}.csv"
        if is_there(path, muri):
            expected = muri_expected(muri, number)
            yield Case(path.stem, read_trace(path, strict=True), read_nodes("8x8"), expected)
    path, nodes = data / "philly_helios_window.csv", data / "philly_vc_nodes.csv"
    if is_there(path, nodes):
        expected = {
            policy: dict(zip(HELIOS, figures, strict=False))
            for policy, figures in HELIOS_EXPECTED.items()
        }
        yield Case(path.stem, read_trace(path, strict=True), read_nodes(str(nodes)), expected)


def is_there(*paths: Path) -> bool:
    problem = public_data.missing(*paths)
    if problem:
        print(f"not replayed: {problem}")
    return not problem


def muri_expected(path: Path, number: str) -> dict[str, dict[str, str]]:
    with path.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["trace"] == number]
    return {
        f"muri:{row['policy'].lower()}": {column: row[column] for column in MURI} for row in rows
    }


def given_cases(traces: list[Path], nodes: list[str]) -> Iterator[Case]:
    """The traces of the command line, each on its nodes (or all on the same).

    Raises:
        TraceError: A trace or node list is invalid.
    """
    for path, where in zip(traces, nodes * len(traces) if len(nodes) == 1 else nodes, strict=True):
        yield Case(path.stem, read_trace(path, strict=True), read_nodes(where))


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay public job traces.")
    parser.add_argument("--data", type=Path, default=public_data.default(), help=public_data.HELP)
    parser.add_argument("--trace", type=Path, action="append", default=[])
    parser.add_argument("--nodes", action="append", default=[], help="FILE|COUNTxGPUS")
    options = parser.parse_args()
    if len(options.nodes) != len(options.trace) and not (options.trace and len(options.nodes) == 1):
        parser.error("name --nodes once, or once for each --trace")
    data = options.data / "traces"
    cases = given_cases(options.trace, options.nodes) if options.trace else known_cases(data)
    figures: dict[str, Any] = {}
    compared: list[list[str]] = []
    try:
        for case in cases:
            found = bench(case)
            show(case, found)
            compared += compare(case, found)
            figures[case.name] = {replayed.policy: replayed.figures() for replayed in found}
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    if compared:
        print()
        table(("trace", "policy", "figure", "expected", "ours", "match"), compared)
    print(json.dumps(figures))
    return int(any(row[-1] != "yes" for row in compared))


if __name__ == "__main__":
    sys.exit(main())

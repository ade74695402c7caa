"""Scenarios on the command line: run them, print their reports, vary and compare them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.yaml_file import SpecError
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import (
    Column,
    Format,
    Row,
    duration,
    emit,
    number,
    put,
    say,
    table,
    text,
)
from orchestrator.simulation.scenario.loader import Written, load, parse_changes
from orchestrator.simulation.scenario.model import Scenario
from orchestrator.simulation.scenario.report import report
from orchestrator.simulation.scenario.world import World

_PERCENT = "{:.2%}"
AS_IT_IS = "as it is"

SUMMARY = [
    Column("SCENARIO", text("variant")),
    Column("ETTR", number("ettr", _PERCENT)),
    Column("EXPECTED", number("expected_ettr", _PERCENT)),
    Column("INTERRUPTIONS", number("interruptions", "{:,}")),
    Column("RESTARTS", number("restart_count", "{:,}")),
    Column("RECOVERY P50", duration("recovery_p50")),
    Column("RECOVERY P99", duration("recovery_p99"), wide=True),
    Column("QUEUE P99", duration("queue_p99")),
    Column("NODES BUSY", number("busy_nodes_share", "{:.1%}")),
    Column("RUNS", text("runs_text"), wide=True),
]
_LOSSES = [
    Column("LOST TO", text("cause")),
    Column("SHARE", number("share", _PERCENT)),
    Column("GPU DAYS", number("gpu_days", "{:,.1f}")),
    Column("AS", text("as_text"), wide=True),
]
_FAILURES = [
    Column("FAILURE", text("name")),
    Column("DOES", text("does")),
    Column("EXPECTED", number("expected", "{:,.1f}")),
    Column("HAPPENED", number("happened", "{:,}")),
    Column("DISTURBED A RUN", number("disturbed", "{:,}")),
]
_RESTARTS = [
    Column("RESTARTED FOR", text("class")),
    Column("CAUSE", text("cause")),
    Column("REMEDY", text("remedy")),
    Column("TIMES", number("count", "{:,}")),
]
_PHASES = [
    Column("RECOVERY", text("phase")),
    Column("MEAN", duration("mean")),
    Column("P50", duration("p50")),
    Column("P99", duration("p99")),
]
_RUNS = [
    Column("RUN", text("name")),
    Column("STATE", text("state")),
    Column("GPUS", number("gpus", "{:,}")),
    Column("ATTEMPTS", number("attempts", "{:,}")),
    Column("STEP", number("step", "{:,}")),
    Column("ETTR", number("ettr", _PERCENT)),
    Column("REASON", text("reason"), wide=True),
]
_MOST_RUNS = 12
"""Runs in the table; more only when it is wide."""


def read(name: str, seed: int | None) -> tuple[Written, dict[str, str]]:
    """A scenario and what the command line changes in it."""
    try:
        return load(name), ({} if seed is None else {"seed": str(seed)})
    except SpecError as error:
        raise CliError(str(error), ExitCode.USAGE) from error


def simulated(written: Written, changes: dict[str, str], label: str) -> dict[str, Any]:
    """The report of a scenario with `changes`; progress is shown on stderr if it is a terminal."""
    try:
        scenario = written.scenario(changes)
    except SpecError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    world = World(scenario)
    world.run(_progress(scenario, label))
    outcome = report(world)
    for refusal in outcome["refused"]:
        say(f"{label}: refused: {refusal}")
    for run in outcome["run_list"]:
        if run["first_wait_seconds"] is None:
            say(f"{label}: {run['name']} never got its nodes: {run['reason']}")
    return outcome


def _progress(scenario: Scenario, label: str) -> Callable[[float], None]:
    said, terminal = 0, sys.stderr.isatty()

    def progress(share: float) -> None:
        nonlocal said
        if terminal and int(share * 5) > said:
            said = int(share * 5)
            of = f"{scenario.days:g} days"
            say(f"{label}: {share:.0%} of {of}")

    return progress


def one(name: str, seed: int | None, form: Format, picture: Path | None) -> None:
    """Run a scenario and print its report."""
    written, changes = read(name, seed)
    draw = None if picture is None else _drawer(picture)
    outcome = simulated(written, changes, name)
    if draw is not None:
        draw(outcome)
    if form in {Format.TABLE, Format.WIDE}:
        _tables(outcome, wide=form is Format.WIDE)
    else:
        emit(outcome, [], form, name="scenario")


def _drawer(path: Path) -> Callable[[dict[str, Any]], None]:
    """Draws the picture; what is wrong with its path is said before the simulation."""
    from orchestrator.simulation import plot as picture

    formats = picture.formats()
    if path.suffix.removeprefix(".") not in formats:
        known = ", ".join(formats)
        raise CliError(f"--picture {path}: expected a name that ends in {known}", ExitCode.USAGE)

    def draw(outcome: dict[str, Any]) -> None:
        try:
            picture.draw(outcome, path)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            raise CliError(f"--picture {path}: {reason}", ExitCode.USAGE) from error
        say(f"Wrote {path}.")

    if path.is_dir():
        raise CliError(f"--picture {path}: is a directory; name a file in it", ExitCode.USAGE)
    return draw


def variants(name: str, what_ifs: Sequence[str], seed: int | None, form: Format) -> None:
    """Run a scenario as it is and once for each change, side by side."""
    written, changes = read(name, seed)
    rows = [_summary(AS_IT_IS, simulated(written, changes, name))]
    for what_if in what_ifs:
        try:
            varied = {**changes, **parse_changes(what_if)}
        except ValueError as error:
            raise CliError(f"--what-if: {error}", ExitCode.USAGE) from error
        rows.append(_summary(what_if, simulated(written, varied, what_if)))
    emit(rows, SUMMARY, form, name="variant")


def compare(names: Sequence[str], seed: int | None, form: Format) -> None:
    """Run scenarios, and print them side by side."""
    read_ = [(name, *read(name, seed)) for name in names]
    rows = [_summary(name, simulated(each, changes, name)) for name, each, changes in read_]
    emit(rows, SUMMARY, form, name="variant")


def _summary(variant: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """The report with its main figures at the top, for a row of a table."""
    return {
        "variant": variant,
        **outcome,
        "restart_count": sum(row["count"] for row in outcome["restarts"]),
        "recovery_p50": outcome["recovery"]["total"]["p50"],
        "recovery_p99": outcome["recovery"]["total"]["p99"],
        "queue_p99": outcome["queue"]["p99"],
        "busy_nodes_share": outcome["node_use"]["busy_nodes_share"],
        "runs_text": ", ".join(f"{count} {state}" for state, count in outcome["runs"].items()),
    }


def _tables(outcome: dict[str, Any], *, wide: bool) -> None:
    recovery = [{"phase": phase, **row} for phase, row in outcome["recovery"].items()]
    runs = outcome["run_list"] if wide else outcome["run_list"][:_MOST_RUNS]
    sections: list[tuple[Sequence[Row], Sequence[Column]]] = [
        ([_summary(outcome["scenario"], outcome)], SUMMARY),
        ([{**row, "as_text": _buckets(row)} for row in outcome["losses"]], _LOSSES),
        (outcome["failures"], _FAILURES),
        (outcome["restarts"], _RESTARTS),
        ([row for row in recovery if row["count"]], _PHASES),
        (runs, _RUNS),
    ]
    shown = [table(rows, columns, wide=wide) for rows, columns in sections if rows]
    put("\n\n".join(shown))
    for line in _sentences(outcome):
        say(line)


def _buckets(row: Row) -> str:
    return ", ".join(f"{bucket} {share:.2%}" for bucket, share in row["by_bucket"].items())


def _sentences(outcome: dict[str, Any]) -> list[str]:
    lines = []
    if outcome["freezes"]:
        begun = ", ".join(f"{each['begin_seconds'] / 3600:.1f} h" for each in outcome["freezes"])
        lines.append(f"The breaker froze automation after {begun}.")
    if outcome["lemons"]:
        found, there = outcome["lemons"]["found"], outcome["lemons"]["there"]
        others = outcome["lemons"]["others_suspected"]
        lines.append(
            f"{len(found)} of {len(there)} lemon nodes were found; {others} others were suspected."
        )
    if len(outcome["run_list"]) > _MOST_RUNS:
        lines.append("All runs: -o wide. The whole report: -o json.")
    return lines

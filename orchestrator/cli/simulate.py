"""`babysit simulate`: what would have happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import (
    Column,
    Format,
    FormatOption,
    duration,
    emit,
    number,
    say,
    text,
)
from orchestrator.simulation.policies import PREEMPTION_SECONDS, PolicyName
from orchestrator.simulation.production import rules_of
from orchestrator.simulation.replay import Outcome, replay, summarise
from orchestrator.simulation.traces import TraceError, read_nodes, read_trace

COLUMNS = [
    Column("POLICY", text("policy")),
    Column("JOBS", number("jobs", "{:,}")),
    Column("AVG JCT", duration("avg_jct_seconds")),
    Column("P99 JCT", duration("p99_jct_seconds")),
    Column("AVG QUEUE", duration("avg_queue_seconds")),
    Column("P99.9 QUEUE", duration("p999_queue_seconds"), wide=True),
    Column("MAKESPAN", duration("makespan_seconds")),
    Column("USE", number("utilisation_ratio", "{:.1%}")),
    Column("PREEMPTIONS", number("preemptions", "{:,}")),
    Column("REFUSED", text("refused"), wide=True),
]


def simulate(
    trace: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Jobs, in CSV: docs/simulation.md."),
    ],
    nodes: Annotated[
        str, typer.Option(metavar="FILE|COUNTxGPUS", help="Nodes, in CSV; or as in 8x4.")
    ],
    policy: Annotated[
        list[PolicyName] | None, typer.Option(help="May be repeated. All, when not given.")
    ] = None,
    preemption_seconds: Annotated[
        float, typer.Option(min=0, help="What a preemption or a move costs a job.")
    ] = PREEMPTION_SECONDS,
    form: FormatOption = Format.TABLE,
) -> None:
    """Replay a trace of jobs over nodes, under one policy or several. Starts nothing.

    Scenarios with failures are to follow; this is the replay of traces only.

    For example:

        babysit simulate --trace jobs.csv --nodes 8x8 --policy fifo --policy srsf
    """
    try:
        jobs, pools = read_trace(trace), read_nodes(nodes)
        outcomes = {
            name: replay(jobs, pools, rules_of(name, preemption_seconds))
            for name in policy or PolicyName
        }
    except TraceError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    _say_refused(jobs.name, next(iter(outcomes.values())))
    rows = [
        {"policy": str(name), **dataclasses.asdict(summarise(outcome))}
        for name, outcome in outcomes.items()
    ]
    emit(rows, COLUMNS, form, name="policy")


def _say_refused(name: str, outcome: Outcome) -> None:
    if refused := outcome.refused:
        first = refused[0]
        say(
            f"Left out {len(refused)} of the jobs, which are larger than all of their nodes: "
            f"first {first.id} with {first.gpus} GPUs ({name}:{first.line})."
        )

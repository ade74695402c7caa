"""`babysit simulate`: scenarios with failures, and traces of jobs, in virtual time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import scenarios
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
from orchestrator.errors import InvalidError
from orchestrator.simulation.traces.policies import PREEMPTION_SECONDS, PolicyName
from orchestrator.simulation.traces.production_policy import rules_of
from orchestrator.simulation.traces.replay import Outcome, replay, summarise
from orchestrator.simulation.traces.trace_file import (
    SHARED,
    Pools,
    Trace,
    left_out_in_words,
    read_nodes,
    read_trace,
    within,
)

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


TraceOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Jobs to replay, in CSV: docs/simulation.md.")
]
NodesOption = Annotated[
    str | None,
    typer.Option(metavar="FILE|COUNTxGPUS", help="For a trace: nodes, in CSV, or as in 8x4."),
]
PolicyOption = Annotated[
    list[PolicyName] | None, typer.Option(help="For a trace. May be repeated. Default: all.")
]
PreemptionOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1e9,
        help="For a trace: seconds a preemption or a move costs a job."
        f" Default: {PREEMPTION_SECONDS:g}.",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="For a trace: refuse rows that would be left out.")
]


def simulate(  # noqa: PLR0913, PLR0917 (one for each option)
    scenario: Annotated[
        str | None,
        typer.Argument(
            metavar="[SCENARIO]", help="A YAML file, or the name of a shipped scenario."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the seed of the scenario.")] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE[,…]", help="A variant to compare with. May be repeated."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two scenarios side by side."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the runs over time.")
    ] = None,
    trace: TraceOption = None,
    nodes: NodesOption = None,
    policy: PolicyOption = None,
    preemption_seconds: PreemptionOption = None,
    strict: StrictOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Simulate a scenario with failures, or replay a trace of jobs, in virtual time.

    Nothing is started. A scenario runs the production scheduler and recovery policy over a
    simulated cluster; the same seed gives the same result, to the byte. Shipped scenarios:
    crash_loop, fleet_1k_jobs, lemon_nodes, llama3_16k, switch_failure.

    For example:

        babysit simulate llama3_16k --picture llama.png
        babysit simulate my.yaml --what-if spares=4 --what-if checkpoint=10min
        babysit simulate --compare a.yaml b.yaml -o json
        babysit simulate --trace jobs.csv --nodes 8x8 --policy fifo --policy srsf
    """
    given = [scenario is not None, compare is not None, trace is not None]
    if sum(given) != 1:
        raise CliError("expected one of SCENARIO, --compare and --trace", ExitCode.USAGE)
    of_traces = {
        "--nodes": nodes,
        "--policy": policy,
        "--preemption-seconds": preemption_seconds,
        "--strict": strict or None,
    }
    of_scenarios = {"--seed": seed, "--what-if": what_if, "--picture": picture}
    if trace is not None:
        _refuse("--trace", of_scenarios)
        seconds = PREEMPTION_SECONDS if preemption_seconds is None else preemption_seconds
        jobs, pools = _read(trace, nodes, strict=strict)
        _replay(jobs, pools, policy or list(PolicyName), seconds, form)
        return
    _refuse("a scenario", of_traces)
    if compare is not None:
        _refuse("--compare", {"--what-if": what_if, "--picture": picture})
        scenarios.compare(compare, seed, form)
    elif scenario is not None and what_if:
        _refuse("--what-if", {"--picture": picture})
        scenarios.variants(scenario, what_if, seed, form)
    elif scenario is not None:
        scenarios.one(scenario, seed, form, picture)


def _refuse(beside: str, options: Mapping[str, object]) -> None:
    """Options that would be ignored."""
    for name, value in options.items():
        if value is not None and value != []:
            raise CliError(f"{name} has no effect with {beside}: leave it out", ExitCode.USAGE)


def _read(trace: Path, nodes: str | None, *, strict: bool) -> tuple[Trace, Pools]:
    """The jobs and the nodes; says which rows of the trace are left out."""
    if nodes is None:
        raise CliError("--trace needs --nodes, such as 8x4", ExitCode.USAGE)
    try:
        pools = read_nodes(nodes)
        jobs = within(read_trace(trace, strict=strict), pools, strict=strict)
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    if jobs.left_out:
        rows = len(jobs.jobs) + sum(one.count for one in jobs.left_out)
        words = left_out_in_words(jobs.left_out)
        say(f"Left out of {rows:,} rows of {jobs.name}: {words}. --strict refuses them.")
    return jobs, pools


def _replay(
    jobs: Trace, pools: Pools, policies: list[PolicyName], seconds: float, form: Format
) -> None:
    try:
        outcomes = {name: replay(jobs, pools, rules_of(name, seconds)) for name in policies}
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    _say_refused(jobs.name, pools, outcomes)
    rows = [
        {"policy": str(name), **dataclasses.asdict(summarise(outcome))}
        for name, outcome in outcomes.items()
    ]
    emit(rows, COLUMNS, form, name="policy")


def _say_refused(name: str, pools: Pools, outcomes: Mapping[PolicyName, Outcome]) -> None:
    """Which jobs could never run, by policy: some want equal workers."""
    by_lines: dict[tuple[int, ...], list[PolicyName]] = {}
    for policy, outcome in outcomes.items():
        by_lines.setdefault(tuple(job.line for job in outcome.refused), []).append(policy)
    for policies in by_lines.values():
        if jobs := outcomes[policies[0]].refused:
            large = sum(job.gpus > sum(pools.get(job.vc, pools.get(SHARED, ()))) for job in jobs)
            why = [f"{large} need more GPUs than their nodes have"] if large else []
            if large < len(jobs):
                why.append(f"{len(jobs) - large} do not divide evenly over their nodes")
            who = "" if len(policies) == len(outcomes) else f" under {', '.join(policies)}"
            first = f"{jobs[0].id} with {jobs[0].gpus} GPUs ({name}:{jobs[0].line})"
            say(
                f"Left out {len(jobs)} of the jobs{who}: {' and '.join(why)}; the first is {first}."
            )

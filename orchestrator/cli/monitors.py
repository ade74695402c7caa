"""`babysit monitors`: how good the detectors are, over the past (backtest) and live (drill)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.spec import Action
from orchestrator.cli.audit import moment
from orchestrator.cli.completion import complete_run
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import (
    Column,
    Format,
    FormatOption,
    Row,
    emit,
    number,
    put,
    say,
    table,
    text,
)
from orchestrator.cli.session import seconds_of, session

if TYPE_CHECKING:
    from orchestrator.core.views.models import IncidentView
    from orchestrator.judgement.backtest import RunResult

app = typer.Typer(no_args_is_help=True, help="Judge the monitors: backtests and drills.")


@app.command()
def backtest(
    ctx: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Default: all runs.", autocompletion=complete_run),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="30d|2026-11-01", help="Only runs submitted since, unless named."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Another value of a setting of the run spec, below monitors.loss_spike,"
            " monitors.hang or checkpoint. May be repeated.",
        ),
    ] = None,
    policy: Annotated[
        Action | None, typer.Option(help="Another action of all monitors that are replayed.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Run the monitors again over recorded runs, with other settings.

    Alarms are compared with verdicts (`babysit incidents judge`), with what happened next, and with
    what people did. What nobody can know is shown as unknown. Nothing is changed on the server.

    For example:

        babysit monitors backtest --set monitors.loss_spike.threshold=6
        babysit monitors backtest tiny-gpt --set monitors.hang.after=20s
        babysit monitors backtest --since 30d --policy ask -o json
    """
    from orchestrator.cli import recorded_runs
    from orchestrator.errors import InvalidError
    from orchestrator.judgement import backtest as judged
    from orchestrator.judgement.changed_settings import read

    here = session(ctx)
    try:
        wanted = read(settings or ())
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    ids = recorded_runs.runs(here, runs or [], moment(here, "--since", since))
    results: list[RunResult] = []
    incidents: list[IncidentView] = []
    for place, run in enumerate(ids, 1):
        recorded = recorded_runs.history(here, run)
        say(f"Replaying {recorded.run.name} ({place} of {len(ids)})")
        results.append(recorded_runs.backtest(here, recorded, wanted, policy))
        incidents += recorded.incidents
    answer = {
        "runs": [{"id": r.run, "name": r.name, "samples": r.samples} for r in results],
        "settings": wanted,
        "policy": policy,
        "monitors": judged.table(results),
        "differences": list(judged.differences(results)),
        "ettr": judged.ettr(results),
        "shadow": judged.shadow(incidents),
        "not_found_again": [
            {"run": r.run, "incident": e.incident, "onset_step": e.onset_step}
            for r in results
            for e in r.lost
        ],
        "limits": list(judged.NOT_REPLAYED.values()),
    }
    if form in {Format.TABLE, Format.WIDE}:
        _print(answer, wide=form is Format.WIDE)
    else:
        emit(answer, [], form)


@app.command()
def drill(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    spec: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SPEC]", help="A run of your own. Default: a small GPT on two nodes."
        ),
    ] = None,
    faults: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these faults. Default: all that can be provoked."),
    ] = None,
    every: Annotated[
        str, typer.Option(metavar="DURATION", help="Least time from one fault to the next.")
    ] = "0s",
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT=SECONDS", help="Another target of detection. May be repeated."),
    ] = None,
    recover_within: Annotated[
        str, typer.Option(metavar="DURATION", help="Target from the fault to the first new step.")
    ] = "192s",
    directory: Annotated[
        Path, typer.Option(help="Directory for the job, its control plane and its checkpoints.")
    ] = Path("drill-output"),
    yes: Annotated[
        bool, typer.Option("--yes", help="Inject faults into a run of SPEC without asking.")
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Inject faults into a real run, and score how each is found and recovered from.

    The run and its control plane are the drill's own, on virtual nodes of this machine; other runs
    are not touched, and nobody is paged. The exit code is 1 if a fault misses its target or the run
    does not recover. Without SPEC it needs torch; ten faults took 10 minutes on 2 busy cores.

    For example:

        babysit monitors drill
        babysit monitors drill --faults kill,hang,nan -o json
        babysit monitors drill run.yaml --yes --every 5m --target hang=30
    """
    from orchestrator.cli import drill_command

    asked = drill_command.Asked(spec, faults, target or [], directory.absolute(), yes=yes)
    drill_command.run(
        session(ctx),
        asked,
        every=seconds_of("--every", every),
        recover_within=seconds_of("--recover-within", recover_within),
        form=form,
    )


def _print(answer: dict[str, Any], *, wide: bool) -> None:
    if not answer["runs"]:
        say("There are no recorded runs in that time.")
        return
    changed = answer["settings"] or answer["policy"]
    rows = [row for row in answer["monitors"] if changed or row["settings"] == "recorded"]
    put(table(rows, _SCORES, wide=wide))
    _section("Alarms that differ", answer["differences"], _DIFFERENCES, wide=wide)
    _section("Recorded, not replayed", answer["shadow"], _SHADOW, wide=wide)
    put("\n" + _ettr(answer["ettr"]))
    for words in (*answer["ettr"]["terms"], *(f"unknown: {x}" for x in answer["ettr"]["unknown"])):
        put(f"  {words}")
    for lost in answer["not_found_again"]:
        say(f"Incident {lost['incident'][-8:]} is not found again with the run's own settings.")
    for limit in answer["limits"]:
        say(limit)


def _section(title: str, rows: list[Row], columns: list[Column], *, wide: bool) -> None:
    if rows:
        put(f"\n{title}\n{table(rows, columns, wide=wide)}")


def _ettr(found: dict[str, Any]) -> str:
    if found["recorded"] is None:
        return "ETTR: unknown (nothing was allocated)"
    productive, allocated = found["productive_seconds"], found["allocated_seconds"]
    recorded = (
        f"ETTR: {found['recorded']:.4f} as recorded"
        f" ({productive:.0f} s productive / {allocated:.0f} s allocated)"
    )
    if found["other"] is None:
        return recorded
    sign, word = ("-", "saved") if found["saved_seconds"] >= 0 else ("+", "lost")
    more = f", without {len(found['unknown'])} unknown effects" if found["unknown"] else ""
    return (
        f"{recorded}; {found['other']:.4f} with the other settings ({productive:.0f} /"
        f" ({allocated:.0f} {sign} {abs(found['saved_seconds']):.1f} s {word})){more}"
    )


def _figure(field: str, pattern: str) -> Any:
    def shown(row: Row) -> str:
        value = row[field]
        return "unknown" if value is None else pattern.format(value)

    return shown


def _truth(row: Row) -> str:
    return {True: "yes", False: "no", None: "unknown"}[row["true"]]


_SCORES = [
    Column("MONITOR", text("monitor")),
    Column("SETTINGS", text("settings")),
    Column("RIGHT", text("right")),
    Column("WRONG", text("wrong")),
    Column("MISSED", text("missed")),
    Column("UNKNOWN", text("unknown")),
    Column("PRECISION", _figure("precision", "{:.2f}")),
    Column("RECALL", _figure("recall", "{:.2f}")),
    Column("DELAY STEPS", _figure("delay_steps", "{:g}")),
    Column("DELAY", _figure("delay_seconds", "{:.1f} s")),
]
_DIFFERENCES = [
    Column("RUN", text("name")),
    Column("MONITOR", text("monitor")),
    Column("ATTEMPT", text("attempt")),
    Column("ONSET", text("onset_step")),
    Column("RECORDED", number("recorded_step", "{}")),
    Column("OTHER", number("other_step", "{}")),
    Column("REAL", _truth),
    Column("BASIS", text("basis"), shrinks=True),
    Column("REASON", text("reason"), wide=True),
]
_SHADOW = [
    Column("KIND", text("kind")),
    Column("MODE", text("mode")),
    Column("INCIDENTS", text("incidents")),
    Column("RIGHT", text("right")),
    Column("WRONG", text("wrong")),
    Column("UNJUDGED", text("unjudged")),
    Column("PRECISION", _figure("precision", "{:.2f}")),
]

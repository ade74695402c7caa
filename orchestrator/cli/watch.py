"""Commands that follow runs: watch and wait."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import follow
from orchestrator.cli.completion import complete_run
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import (
    Format,
    FormatOption,
    conclude,
    known_step,
    put,
    say,
    step_words,
)
from orchestrator.cli.paths import path
from orchestrator.cli.session import RunArgument, Session, seconds_of, session
from orchestrator.cli.show_run import page
from orchestrator.core.text import outcome, visible, words

if TYPE_CHECKING:
    from rich.table import Table


def watch(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Default: all runs.", autocompletion=complete_run),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="No screen: plain lines, as without a terminal.")
    ] = False,
) -> None:
    """Watch runs on a screen: curve, ranks, incidents, log. Leaving it (q) ends no run.

    Keys hold a run, acknowledge an incident and roll back; ? shows them. Without a terminal, or
    with --plain, a run is followed in plain lines to its end, and all runs are printed once. The
    exit code is 0, or that of the outcome of RUN if it is over.

    For example:

        babysit watch
        babysit watch tiny-gpt
        babysit watch tiny-gpt --plain
    """
    here = session(ctx)
    if not plain and _has_screen():
        _watch_screen(here, run)
        return
    if run is not None:
        last = follow.to_the_end(here, here.patient.get(path("runs", run)))
        put(page(last, here.clock.now()))
        raise typer.Exit(follow.OUTCOMES[last["state"]])
    from rich.console import Console

    Console().print(_board(here))


def _has_screen() -> bool:
    """True if keys can be read and a screen can be drawn."""
    dumb = os.environ.get("TERM", "dumb") in {"", "dumb"}
    return sys.stdin.isatty() and sys.stdout.isatty() and not dumb


def _watch_screen(here: Session, run: str | None) -> None:
    """Show the screen until the person leaves it.

    Raises:
        CliError: There is no such run, or the server does not answer.
        typer.Exit: The run that was named is over.
    """
    from orchestrator.cli.screen.app import Watch
    from orchestrator.cli.screen.feed import Feed

    if run is None:
        here.patient.get(path("runs"), limit=1)  # a wrong address is said here, not on a screen
    else:
        run = here.patient.get(path("runs", run))["id"]
    Watch(Feed(here), run).run()
    if run is not None:
        last = here.patient.get(path("runs", run))
        say(f"{last['name']} is {last['state']} at {step_words(last)}.")
        raise typer.Exit(follow.OUTCOMES.get(last["state"], ExitCode.OK))


def _board(here: Session) -> Table:
    from rich.table import Table
    from rich.text import Text

    board = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("name", "state", "step", "loss", "restarts", "ettr", "why"):
        board.add_column(title)
    for row in here.patient.get(path("runs"), limit=50):
        board.add_row(
            visible(row["name"]),
            row["state"],
            known_step(row),
            "-" if row["loss"] is None else f"{row['loss']:.4g}",
            str(row["restarts_count"]),
            "-" if row["ettr"] is None else f"{row['ettr']:.0%}",
            Text(visible(row["reason"]), overflow="ellipsis", no_wrap=True),
        )
    return board


def _goal(value: str) -> tuple[str, int]:
    """`succeeded`, `running` or `step=N`, as a word and a step."""
    word, _, step = value.partition("=")
    if (word in {"succeeded", "running"} and not step) or (word == "step" and step.isdigit()):
        return word, int(step or 0)
    raise typer.BadParameter(
        f"expected succeeded, running or step=N; got {value!r}", param_hint="--for"
    )


def _reached(detail: follow.Detail, word: str, step: int) -> bool:
    if word == "step":
        return bool(detail["step"] >= step)
    if word == "running":
        return detail["state"] in {"running", "succeeded"}
    return bool(detail["state"] == word)


def wait(
    ctx: typer.Context,
    run: RunArgument,
    goal: Annotated[
        str, typer.Option("--for", metavar="succeeded|running|step=N", help="What to wait for.")
    ] = "succeeded",
    timeout: Annotated[
        str | None, typer.Option(metavar="30m", help="Longest wait. Default: no limit.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Wait until a run has reached a state or a step.

    Exit code: 0 when it has, 1 if the run failed first, 7 if it was cancelled first, 4 if it
    succeeded without reaching the step, 8 when the time is up.

    For example:

        babysit wait tiny-gpt
        babysit wait tiny-gpt --for step=100 --timeout 10m
    """
    here = session(ctx)
    word, step = _goal(goal)
    limit = None if timeout is None else seconds_of("--timeout", timeout)
    begun = here.clock.monotonic()
    here.patient.get(path("runs", run))  # a run that does not exist is not waited for
    for detail in follow.details(here, run):
        if _reached(detail, word, step):
            verb = "" if detail["state"] in follow.OUTCOMES else "is "
            said = f"{detail['name']} {verb}{detail['state']} at {step_words(detail)}."
            conclude(detail, form, said=said)
            return
        if detail["state"] in follow.OUTCOMES:
            raise _missed(detail, word, step)
        if limit is not None and here.clock.monotonic() - begun >= limit:
            raise CliError(
                f"{detail['name']} is {detail['state']} at {step_words(detail)} after "
                f"{words(limit)}: {detail['reason']}",
                ExitCode.TIMED_OUT,
            )


def _missed(detail: follow.Detail, word: str, step: int) -> CliError:
    """The error for a run that ended before the goal; its code is that of the outcome."""
    goal = {"succeeded": "success", "running": "it ran"}.get(word, f"step {step}")
    how = outcome(detail["state"], detail["reason"])
    message = f"{detail['name']} ended before {goal}, at {step_words(detail)}: it {how}"
    code = follow.OUTCOMES[detail["state"]]
    return CliError(message, code if code is not ExitCode.OK else ExitCode.REFUSED)

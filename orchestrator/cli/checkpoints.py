"""`babysit checkpoints`: saved states of a run, and how far each can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.follow import POLL_SECONDS
from orchestrator.cli.output import Column, Format, FormatOption, emit, put, say, size, table, text
from orchestrator.cli.output import duration as duration_cell
from orchestrator.cli.paths import checkpoint_path, path
from orchestrator.cli.session import RunArgument, Session, seconds_of, session
from orchestrator.core.text import words

app = typer.Typer(
    no_args_is_help=True, help="Saved states of a run, and how far each can be trusted."
)
CheckpointArgument = Annotated[
    str,
    typer.Argument(metavar="CHECKPOINT", help="A step, or an id as shown by `ls -o wide`."),
]


def _trust(row: Mapping[str, Any]) -> str:
    """Trust, and what is held against a checkpoint beside it: `verified, doubted`."""
    marks = [mark for mark in ("doubted", "superseded", "deleting") if row.get(mark)]
    return ", ".join((str(row["trust"]), *marks))


COLUMNS = [
    Column("STEP", text("step")),
    Column("TIER", text("tier")),
    Column("TRUST", _trust),
    Column("ATTEMPT", text("attempt"), wide=True),
    Column("SHARDS", lambda row: f"{row['shards']}/{row['world_size']}"),
    Column("SIZE", size("bytes")),
    Column("AGE", duration_cell("age_seconds")),
    Column("READ FROM", text("medium"), wide=True),
    Column("PINNED", lambda row: "yes" if row["pinned"] else "-"),
    Column("ID", text("id"), wide=True),
    Column("PATH", text("path"), wide=True),
    Column("REASON", text("reason"), wide=True),
]
SHARDS = [
    Column("RANK", text("rank")),
    Column("FILES", text("files")),
    Column("SIZE", size("bytes")),
    Column("COPY", duration_cell("copy_seconds")),
    Column("WRITE", duration_cell("write_seconds")),
    Column("PATH", text("path")),
]


@app.command("ls")
def ls(ctx: typer.Context, run: RunArgument, form: FormatOption = Format.TABLE) -> None:
    """List a run's checkpoints, newest step first.

    For example:

        babysit checkpoints ls tiny-gpt -o wide
    """
    rows = session(ctx).api.get(path("runs", run, "checkpoints"))
    emit(rows, COLUMNS, form, empty=f"{run} has no checkpoint yet.")


@app.command()
def show(
    ctx: typer.Context,
    run: RunArgument,
    checkpoint: CheckpointArgument,
    form: FormatOption = Format.TABLE,
) -> None:
    """Show one checkpoint with its shards.

    For example:

        babysit checkpoints show tiny-gpt 60
    """
    found = session(ctx).api.get(checkpoint_path(run, checkpoint))
    if form in {Format.TABLE, Format.WIDE}:
        put(f"{table([found], COLUMNS, wide=True)}\n\n{table(found['shard_list'], SHARDS)}")
    else:
        emit(found, COLUMNS, form)


def _ask(
    ctx: typer.Context,
    run: str,
    checkpoint: str,
    verb: str,
    form: Format,
    *,
    silent: bool = False,
) -> dict[str, Any]:
    where = checkpoint_path(run, checkpoint)
    api = session(ctx).api
    after: dict[str, Any] = api.delete(where) if verb == "rm" else api.post(f"{where}/{verb}")
    if silent:
        return after
    if form is Format.TABLE:
        done = {
            "verify": f"is being read back, and is {after['trust']} now; --wait waits for it",
            "pin": "is pinned: retention does not delete it",
            "unpin": "is no longer pinned: retention may delete it",
            "rm": "is being deleted",
        }[verb]
        say(f"Checkpoint {after['id']} {done}.")
    else:
        emit(after, COLUMNS, form)
    return after


@app.command()
def verify(
    ctx: typer.Context,
    run: RunArgument,
    checkpoint: CheckpointArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result.")] = False,
    timeout: Annotated[
        str, typer.Option(metavar="30m", help="With --wait: longest wait; exit code 8 after it.")
    ] = "10m",
    form: FormatOption = Format.TABLE,
) -> None:
    """Read a checkpoint back and compare its hashes.

    The agents of the run do this, in the background; after the run has ended, the server does. With
    --wait, the command ends when the result is known: 0 if the checkpoint is sound, 1 if it is bad.

    For example:

        babysit checkpoints verify tiny-gpt 60
        babysit checkpoints verify tiny-gpt 60 --wait
    """
    seconds = seconds_of("--timeout", timeout)
    after = _ask(ctx, run, checkpoint, "verify", form, silent=wait)
    if wait:
        _report(_checked(session(ctx), after, seconds), form)


def _checked(here: Session, asked: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The checkpoint when its agents have answered.

    Raises:
        CliError: They did not in time.
    """
    where, begun = checkpoint_path(asked["run"], asked["id"]), here.clock.monotonic()
    now = asked
    while now["unchecked"] and now["trust"] != "bad" and now["reason"] == asked["reason"]:
        if here.clock.monotonic() - begun >= seconds:
            raise CliError(
                f"{now['unchecked']} agents have not read {now['id']} back after {words(seconds)}",
                ExitCode.TIMED_OUT,
            )
        here.wait(POLL_SECONDS)
        now = here.api.get(where)
    return now


def _report(checkpoint: dict[str, Any], form: Format) -> None:
    """Print the result of a verification; exit code 1 unless the checkpoint is sound."""
    sound = not checkpoint["unchecked"] and checkpoint["trust"] != "bad"
    if form is Format.TABLE:
        result = f"is sound ({checkpoint['trust']})" if sound else checkpoint["reason"]
        say(f"Checkpoint {checkpoint['id']}{' ' if sound else ': '}{result}")
    else:
        emit(checkpoint, COLUMNS, form)
    if not sound:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def pin(
    ctx: typer.Context,
    run: RunArgument,
    checkpoint: CheckpointArgument,
    form: FormatOption = Format.TABLE,
) -> None:
    """Exempt a checkpoint from retention: it is kept until it is unpinned.

    For example:

        babysit checkpoints pin tiny-gpt 60
    """
    _ask(ctx, run, checkpoint, "pin", form)


@app.command()
def unpin(
    ctx: typer.Context,
    run: RunArgument,
    checkpoint: CheckpointArgument,
    form: FormatOption = Format.TABLE,
) -> None:
    """End a pin: retention may delete the checkpoint again.

    For example:

        babysit checkpoints unpin tiny-gpt 60
    """
    _ask(ctx, run, checkpoint, "unpin", form)


@app.command()
def rm(
    ctx: typer.Context,
    run: RunArgument,
    checkpoint: CheckpointArgument,
    form: FormatOption = Format.TABLE,
) -> None:
    """Delete a checkpoint.

    Refused (4) for a checkpoint that is pinned or may be loading, and for the last one of a live
    run that can be trusted.

    For example:

        babysit checkpoints rm tiny-gpt 20
    """
    _ask(ctx, run, checkpoint, "rm", form)

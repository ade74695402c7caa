"""`babysit server`: the control plane itself."""

from __future__ import annotations

import os
import signal
from typing import Annotated, Any

import typer

from orchestrator.cli import embedded
from orchestrator.cli.errors import CliError, ExitCode, UnreachableError
from orchestrator.cli.output import (
    Format,
    FormatOption,
    conclude,
    emit,
    put,
    say,
)
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session, session
from orchestrator.cli.token import Role
from orchestrator.private_home import fault
from orchestrator.server.server_file import is_alive, read_record

server = typer.Typer()
_STOP_SECONDS = 30.0


@server.callback(invoke_without_command=True)
def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Where workers run: local, kubernetes, ray or simulated.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Ray cluster's head, with --cluster ray.")
    ] = None,
) -> None:
    """Run the control plane in the foreground until Ctrl-C. Runs go on without it.

    For example:

        babysit server
        BABYSIT_DATABASE_URL=postgresql://db/babysit babysit server --port 8080
        babysit server --cluster ray --address 10.0.0.1:6379
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = session(ctx).settings
    record = read_record(settings.server_file)
    if record is not None and is_alive(record):
        raise CliError(
            f"a server of {settings.home} is already running (pid {record.pid},"
            f" {record.port_url or record.url});"
            " stop it with `babysit server stop`, or set another BABYSIT_HOME",
            ExitCode.REFUSED,
        )
    if address is not None and (cluster or settings.cluster) != "ray":
        raise CliError("--address is that of a Ray cluster: add --cluster ray", ExitCode.USAGE)
    more = {
        "BABYSIT_HOST": host,
        "BABYSIT_PORT": None if port is None else str(port),
        "BABYSIT_CLUSTER": cluster,
        "BABYSIT_RAY_ADDRESS": address,
    }
    given = {key: value for key, value in more.items() if value is not None}
    command = embedded.server_command()
    os.execve(command[0], command, embedded.server_environment(settings, **given))  # noqa: S606


@server.command()
def status(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Show the server that this command line would use. Starts none.

    For example:

        babysit server status
    """
    here = session(ctx)
    if here.settings.server is None:
        _require_running(here)
    record = read_record(here.settings.server_file) if here.settings.server is None else None
    port = {"port_url": record.port_url or None} if record else {}
    info = {"url": here.api.url, **port, **here.api.get(path("info"))}
    if form in {Format.TABLE, Format.WIDE}:
        put(_page(info))
    else:
        emit(info, [], form, name="url")


def _require_running(here: Session) -> None:
    home = here.settings.home
    try:
        if api := embedded.find(here.settings, here.clock):
            api.close()
            return
        unsafe = fault(home)
    except OSError as error:
        message = f"cannot use {home}: {error.strerror}; set BABYSIT_HOME"
        raise UnreachableError(message) from error
    starts = f"no server of {home} is running; the next command that needs one starts it"
    raise UnreachableError(unsafe or starts)


def _page(info: dict[str, Any]) -> str:
    """The facts for people, one a line; the ids that only programs compare are left out."""
    shown = {key: value for key, value in info.items() if key != "environment_of"}
    most = max(map(len, shown)) + 2
    said = {None: "-", "": "ok"}  # an empty `database` or `lag`: nothing is wrong
    return "\n".join(f"{key + ':':<{most}}{said.get(v, v)}" for key, v in shown.items())


@server.command()
def stop(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Stop the embedded server of this home. Runs go on; the next command starts it again.

    For example:

        babysit server stop
    """
    here = session(ctx)
    record = read_record(here.settings.server_file)
    if host := embedded.elsewhere(here.settings):
        raise CliError(
            f"the server of {here.settings.home} runs on {host}: stop it there", ExitCode.REFUSED
        )
    if record is None or not is_alive(record):
        nothing = f"No server of {here.settings.home} is running."
        conclude({"stopped": False, "pid": None}, form, said=nothing, name="pid")
        return
    os.kill(record.pid, signal.SIGTERM)
    deadline = here.clock.monotonic() + _STOP_SECONDS
    while is_alive(record):
        if here.clock.monotonic() > deadline:
            raise CliError(
                f"pid {record.pid} did not stop within {_STOP_SECONDS:.0f} s; "
                f"see {here.settings.server_log}",
                ExitCode.REFUSED,
            )
        here.wait(0.05)
    conclude({"stopped": True, "pid": record.pid}, form, said="Stopped. Runs go on.", name="pid")


@server.command("sign-in")
def sign_in(
    ctx: typer.Context,
    role: Annotated[
        Role, typer.Option(help="What the browser may do: at most what you may.")
    ] = Role.VIEWER,
    form: FormatOption = Format.TABLE,
) -> None:
    """Print a link that signs a browser in, once, to look at the runs, or also to act.

    The server needs a port: run `babysit server`, or set BABYSIT_PORT for an embedded one.

    For example:

        babysit server sign-in
        babysit server sign-in --role operator
    """
    here = session(ctx)
    base = here.settings.server
    if base is None:
        here.api.get(path("info"))  # starts the server if none runs
        record = read_record(here.settings.server_file)
        base = record.port_url if record else ""
    if not base:
        raise CliError(
            "the server listens on no port, which a browser needs: `babysit server stop`, then"
            " set BABYSIT_PORT",
            ExitCode.REFUSED,
        )
    code = here.api.post(path("sign-in"), role=role.value)
    url = f"{base}{code['path']}"
    if form in {Format.TABLE, Format.WIDE}:
        say(f"The link works once, within {code['seconds']:.0f} s:")
        put(url)
    else:
        emit({"url": url, "seconds": code["seconds"]}, [], form, name="url")

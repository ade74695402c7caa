"""`babysit grafana`: dashboards as files, and in a Grafana."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.errors import CliError, ExitCode, UnreachableError
from orchestrator.cli.output import put, say
from orchestrator.cli.session import session
from orchestrator.errors import (
    BabysitError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
)

if TYPE_CHECKING:
    from orchestrator.dashboards.grafana import Grafana

app = typer.Typer(no_args_is_help=True, help="Dashboards for Grafana: fleet, run, nodes, queues.")


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="Directory; created if it is not there.")] = Path(
        "grafana"
    ),
) -> None:
    """Write the dashboards as JSON files, to import or to provision. Needs no server.

    For example:

        babysit grafana export --output ./grafana
    """
    from orchestrator.dashboards.board import text_of

    for body in _dashboards():
        file = output / f"{body['uid']}.json"
        try:
            output.mkdir(parents=True, exist_ok=True)
            file.write_text(text_of(body))
        except OSError as error:
            raise CliError(
                f"{file} cannot be written: {error.strerror}. Choose another --output.",
                ExitCode.USAGE,
            ) from error
        say(str(file))


@app.command()
def diff(ctx: typer.Context) -> None:
    """Print what `push` would change in Grafana; ends with 4 if that is anything.

    BABYSIT_GRAFANA_URL and BABYSIT_GRAFANA_TOKEN name the Grafana.

    For example:

        BABYSIT_GRAFANA_URL=https://grafana.example.org babysit grafana diff
    """
    bodies = _dashboards()
    with _grafana(ctx) as grafana:
        changes = [text for body in bodies if (text := grafana.diff(body))]
    for text in changes:
        put(text.rstrip("\n"))
    if changes:
        raise typer.Exit(int(ExitCode.REFUSED))
    say("Grafana has these dashboards already.")


@app.command()
def push(ctx: typer.Context) -> None:
    """Create or update the dashboards in the folder babysit of Grafana.

    BABYSIT_GRAFANA_TOKEN is a token of a service account with the role Editor. A push replaces
    the changes of people in these dashboards: look at `diff` first.

    For example:

        BABYSIT_GRAFANA_URL=https://grafana.example.org babysit grafana push
    """
    bodies = _dashboards()
    with _grafana(ctx) as grafana:
        for body in bodies:
            done = grafana.push(body)
            say(f"{done.uid}: {done.result} ({done.url})")


def _dashboards() -> list[dict[str, Any]]:
    try:
        from orchestrator.dashboards.board import render
        from orchestrator.dashboards.boards import BOARDS
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    return [render(board) for board in BOARDS]


def _not_installed(error: ModuleNotFoundError) -> CliError:
    return CliError(
        f"The dashboards need {error.name}, which is not installed: pip install 'babysit[grafana]'",
        ExitCode.USAGE,
    )


@contextmanager
def _grafana(ctx: typer.Context) -> Iterator[Grafana]:
    """The Grafana of the settings; its errors become exit codes."""
    settings = session(ctx).settings
    if not settings.grafana_url or settings.grafana_token is None:
        raise CliError(
            "Set BABYSIT_GRAFANA_URL to the address of Grafana, and BABYSIT_GRAFANA_TOKEN to a"
            " token of a service account with the role Editor.",
            ExitCode.USAGE,
        )
    try:
        from orchestrator.dashboards.grafana import Grafana
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    try:
        yield Grafana(settings.grafana_url, settings.grafana_token.get_secret_value())
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    except NotFoundError as error:
        raise CliError(str(error), ExitCode.NOT_FOUND) from error
    except ConflictError as error:
        raise CliError(str(error), ExitCode.REFUSED) from error
    except PermissionDeniedError as error:
        raise CliError(str(error), ExitCode.NOT_ALLOWED) from error
    except BabysitError as error:
        raise UnreachableError(str(error)) from error

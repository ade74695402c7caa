"""The command `babysit`: the root of the command line, and what is below it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from orchestrator.cli.commands import COMMANDS, LazyCommands
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.help import reflowed


class _Commands(TyperGroup):
    """The root command. Errors become a line on stderr and an exit code; help is reflowed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.help = reflowed(self.help or "")
        self.commands = LazyCommands()  # type: ignore[assignment]

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete names of commands without importing any."""
        commands = self.commands
        self.commands = {
            name: TyperCommand(name, help=entry.help) for name, entry in COMMANDS.items()
        }
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self.commands = commands

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split the line; a completion needs no values of the root's options."""
        kept = self.params, self.add_help_option
        if ctx.resilient_parsing and (not args or args[0] in COMMANDS):
            self.params, self.add_help_option = [], False
        try:
            return super().parse_args(ctx, args)
        finally:
            self.params, self.add_help_option = kept

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was typed; in a completion, without importing it where that will do."""
        if ctx.resilient_parsing:
            from orchestrator.cli.completion import RUN_COMES_NEXT, typed_an_option

            if tuple(args) in RUN_COMES_NEXT and not typed_an_option():
                return args[0], _RunNames(name=args[0], add_help_option=False), []
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
            _say(error.message)
            ctx.exit(int(error.code))
        except BrokenPipeError:
            # The reader of a pipe closed it (`babysit logs … | head`): not an error.
            sys.stdout = None
            ctx.exit(0)
        except (SystemExit, KeyboardInterrupt, typer.Abort, typer.Exit):
            raise
        except Exception as error:
            if _is_clicks_own(error):
                raise
            _confess(error)
            ctx.exit(int(ExitCode.DEFECT))


class _RunNames(TyperGroup):
    """Stands for a command of which a completion needs the names of runs alone.

    The options of a real command take longer to build than a person waits for a completion.
    """

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete the name of a run."""
        from orchestrator.cli.completion import complete_run

        self.commands = {
            name: TyperCommand(name, help=help_) for name, help_ in complete_run(incomplete)
        }
        return super().shell_complete(ctx, incomplete)


def _is_clicks_own(error: Exception) -> bool:
    """True for errors of usage, which click prints, with an exit code of its own."""
    return any(each.__name__ == "ClickException" for each in type(error).__mro__)


def _confess(error: Exception) -> None:
    """Say that a command failed over something it should have known."""
    import os
    import traceback

    try:
        sys.stdout.flush()
    except OSError:  # It is full, or gone: the interpreter would fail over it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if os.environ.get("BABYSIT_TRACEBACK"):
        traceback.print_exception(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        _say(f"This command failed: {error.strerror}{where}")
        return
    _say(
        f"This command failed: {said}. Unless the input is wrong, or the server is of another"
        " version, that is a defect of babysit: please report it, with what the command prints"
        " under BABYSIT_TRACEBACK=1."
    )


def _say(message: str) -> None:
    from orchestrator.core.text import visible

    typer.echo(visible(message), err=True)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Keeps large training runs alive: schedules, watches, restarts from the right checkpoint.",
    epilog="Exit codes: 0 ok, 1 the run failed, 2 usage or invalid spec, 3 not found, 4 refused in "
    "this state, 5 not allowed, 6 server unreachable, 7 the run was cancelled, 8 wait timed out, "
    "70 a defect of babysit.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from orchestrator.version import package_version

        typer.echo(package_version())
        raise typer.Exit


@app.callback()
def _main(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 (handled by its callback)
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    from orchestrator.cli.session import Session

    here: Session = ctx.obj or Session()
    ctx.obj = here
    ctx.call_on_close(here.close)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="babysit")


if __name__ == "__main__":
    main()

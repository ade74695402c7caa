"""Commands that take a command line of the user's own after `--`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from typer.core import TyperCommand

from orchestrator.cli.errors import CliError, ExitCode

_KEY = "babysit.command"
_SCRIPTS = (".py", ".sh")


class TakesCommand(TyperCommand):
    """A command whose words after `--` are not its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the words after the first `--` aside."""
        if "--" in args:
            place = args.index("--")
            args, ctx.meta[_KEY] = args[:place], tuple(args[place + 1 :])
        elif args and not ctx.resilient_parsing and _is_program(args[0]):
            raise CliError(
                f"{args[0]} is a program, not a spec: write -- before it, as in"
                f" `babysit {self.name} -- {' '.join(args[:3])} …`",
                ExitCode.USAGE,
            )
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage has a form without a spec."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


def trailing(ctx: Any) -> tuple[str, ...] | None:
    """The words after `--`; None: there was none."""
    found: tuple[str, ...] | None = ctx.meta.get(_KEY)
    return found


def _is_program(word: str) -> bool:
    from jobs.launchers import launcher_in
    from jobs.programs import names_python

    script = PurePath(word).suffix in _SCRIPTS
    return script or names_python(word) or bool(launcher_in([word, "launch"]))

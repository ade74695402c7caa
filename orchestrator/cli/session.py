"""The session of a command: settings, the clock, and the connection to the control plane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.clock import Clock, SystemClock
from orchestrator.cli.completion import complete_run
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.patience import PatientApi

if TYPE_CHECKING:
    from orchestrator.cli.client import Api
    from orchestrator.settings import Settings


class Session:
    """One invocation of the command line."""

    def __init__(self, settings: Settings | None = None, clock: Clock | None = None) -> None:
        self._settings = settings
        self.clock = clock or SystemClock()
        self._api: Api | None = None
        self._patient: PatientApi | None = None

    @property
    def settings(self) -> Settings:
        """The settings, read when first asked for.

        Raises:
            CliError: A variable has a wrong value.
        """
        if self._settings is None:
            self._settings = read_settings()
        return self._settings

    @property
    def api(self) -> Api:
        """The configured control plane, or the embedded one, which is started if none runs."""
        if self._api is None:
            self._api = self._connect()
        return self._api

    @property
    def patient(self) -> PatientApi:
        """The control plane as commands use it that follow: they ask again and again."""
        if self._patient is None:
            self._patient = PatientApi(self)
        return self._patient

    def reconnect(self) -> None:
        """Drop the connection; the next call looks again: a server may be on another port now."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._api is not None:
            self._api.close()
            self._api = None

    def wait(self, seconds: float) -> None:
        """Sleep."""
        asyncio.run(self.clock.sleep(seconds))

    def _connect(self) -> Api:
        from orchestrator.cli import embedded

        settings = self.settings
        if settings.server is None:
            return embedded.ensure(settings, self.clock)
        if settings.token is not None:
            return connect(self, settings.server, settings.token.get_secret_value())
        return connect(self, settings.server, self._sign_in(settings.server))

    def _sign_in(self, server: str) -> Callable[[], str] | None:
        """The tokens of `babysit login`; None: nobody has signed in."""
        if not (self.settings.home / "credentials.json").exists():
            return None
        from orchestrator.cli.identity import SignInFile

        file = SignInFile(self.settings.home, self.clock)
        return None if file.find(server) is None else lambda: file.token(server)


def connect(here: Session, server: str, token: str | Callable[[], str] | None) -> Api:
    """A connection to a server by its URL.

    Raises:
        CliError: The token would cross the network unencrypted.
    """
    from orchestrator.cli.client import Api
    from orchestrator.network_address import is_plain

    settings = here.settings
    if token and is_plain(server) and not settings.allow_http:
        raise CliError(
            f"{server}: the token would cross the network unencrypted."
            " Use https://, or, if the network encrypts, set BABYSIT_ALLOW_HTTP=1",
            ExitCode.USAGE,
        )
    return Api(server, token, here.clock, timeout=settings.request_seconds, ca=settings.ca)


def read_settings() -> Settings:
    """The settings of the environment.

    Raises:
        CliError: A variable has a wrong value.
    """
    from pydantic import ValidationError

    from orchestrator.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"BABYSIT_{'_'.join(map(str, item['loc'])).upper()}: "
            f"{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False)
        ]
        raise CliError("\n".join(lines), ExitCode.USAGE) from error


def session(ctx: typer.Context) -> Session:
    """The session of this invocation."""
    found = ctx.find_root().obj
    assert isinstance(found, Session)  # noqa: S101 (main's callback puts it there)
    return found


def seconds_of(option: str, text: str) -> float:
    """A duration given with an option, such as 10m, in seconds.

    Raises:
        CliError: The text is not a duration, or one of more than 100 years.
    """
    from jobs.spec_types import MOST_SECONDS, parse_seconds

    try:
        seconds = float(str(parse_seconds(text)))
    except ValueError as error:
        raise CliError(f"{option}: {error}, got {text!r}", ExitCode.USAGE) from error
    if seconds > MOST_SECONDS:
        raise CliError(f"{option}: expected at most 36525d, got {text!r}", ExitCode.USAGE)
    return seconds


RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A name (its newest run), an id, or at least 4 of its first or last characters.",
        autocompletion=complete_run,
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Reason, for the logbook.")]

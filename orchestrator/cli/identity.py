"""Sign-ins of the command line at an identity provider, and the file that keeps them.

`babysit login` gets tokens by the device flow (RFC 8628): the person signs in with any browser. The
file `credentials.json` of the home keeps them by server, readable by its owner alone. A token is
renewed a minute before it expires, by one command at a time, since a refresh token works once with
many providers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from jobs.clock import Clock
from orchestrator.cli.errors import CliError, ExitCode, UnreachableError
from orchestrator.network_address import is_loopback
from orchestrator.server.oidc.discovery import Metadata, address_of, read
from orchestrator.server.oidc.errors import ProviderError

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_EARLY_SECONDS = 60.0
_ANSWER_SECONDS = 15.0
_SLOWER_SECONDS = 5.0
"""Seconds that a provider's `slow_down` adds to the pause (RFC 8628, 3.5)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """A sign-in at a provider, as the file keeps it."""

    issuer: str
    client_id: str
    token_endpoint: str
    id_token: str
    refresh_token: str | None

    @property
    def expires_at(self) -> float:
        """End of the ID token, in Unix seconds; 0: it cannot be read. The server checks it."""
        try:
            part = self.id_token.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
            return float(claims["exp"])
        except (ValueError, LookupError, TypeError):
            return 0.0


class SignInFile:
    """The sign-ins of one home.

    Args:
        home: The home.
        clock: What time it is.
    """

    def __init__(self, home: Path, clock: Clock) -> None:
        self._path = home / "credentials.json"
        self._clock = clock

    def find(self, server: str) -> SignIn | None:
        """The sign-in for a server; None: there is none."""
        found = self._read().get(server)
        try:
            return None if found is None else SignIn(**found)
        except TypeError:
            return None

    def keep(self, server: str, sign_in: SignIn | None) -> None:
        """Store the sign-in for a server; None: remove it.

        Raises:
            CliError: The file cannot be written.
        """
        kept = {key: value for key, value in self._read().items() if key != server}
        if sign_in is not None:
            kept[server] = dataclasses.asdict(sign_in)
        partial = self._path.with_suffix(".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial.unlink(missing_ok=True)
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump(kept, file)
            partial.replace(self._path)
        except OSError as error:
            message = f"{self._path} cannot be written: {error.strerror or error}"
            raise CliError(message, ExitCode.REFUSED) from error

    def token(self, server: str) -> str:
        """A valid ID token for a server, renewed if it ends soon.

        Raises:
            CliError: The sign-in has ended.
            UnreachableError: It has to be renewed, and the provider does not answer.
        """
        found = self.find(server)
        if found is not None and not self._ends_soon(found):
            return found.id_token
        with self._alone():
            found = self.find(server)  # another command may have renewed it meanwhile
            if found is None:
                raise _ended(server, "it was removed")
            return self._renewed(server, found) if self._ends_soon(found) else found.id_token

    def _ends_soon(self, sign_in: SignIn) -> bool:
        return sign_in.expires_at - _EARLY_SECONDS <= self._clock.now().timestamp()

    def _renewed(self, server: str, old: SignIn) -> str:
        is_valid = old.expires_at > self._clock.now().timestamp()
        if old.refresh_token is None:
            if is_valid:
                return old.id_token
            raise _ended(server, "the provider gave no refresh token, see BABYSIT_OIDC_SCOPES")
        try:
            status, found = ask(
                "POST",
                old.token_endpoint,
                grant_type="refresh_token",
                refresh_token=old.refresh_token,
                client_id=old.client_id,
            )
        except UnreachableError:
            if is_valid:
                return old.id_token
            raise
        if status != httpx.codes.OK or not isinstance(found.get("id_token"), str):
            raise _ended(server, str(found.get("error", f"status {status}"))[:100])
        new = dataclasses.replace(
            old,
            id_token=found["id_token"],
            refresh_token=found.get("refresh_token") or old.refresh_token,
        )
        self.keep(server, new)
        return new.id_token

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CliError(
                f"{self._path} cannot be read ({error}): remove it, and run `babysit login`",
                ExitCode.REFUSED,
            ) from error
        return found if isinstance(found, dict) else {}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _ended(server: str, why: str) -> CliError:
    return CliError(
        f"the sign-in for {server} has ended ({why}): run `babysit login`", ExitCode.NOT_ALLOWED
    )


def ask(method: str, url: str, **form: str) -> tuple[int, dict[str, Any]]:
    """Ask a provider; returns the status and the JSON object of its answer.

    Raises:
        UnreachableError: It does not answer.
    """
    outside = not is_loopback(urlsplit(url).hostname or "")
    try:
        with httpx.Client(timeout=_ANSWER_SECONDS, trust_env=outside) as client:
            answer = client.request(method, url, data=form or None)
        body = answer.json()
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"the identity provider does not answer at {url}: {error}"
        ) from error
    except ValueError:
        body = None
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise UnreachableError(f"the identity provider answered {answer.status_code} at {url}")
    return answer.status_code, body if isinstance(body, dict) else {}


def metadata(issuer: str) -> Metadata:
    """The description of a provider.

    Raises:
        CliError: It is not that of the issuer.
        UnreachableError: The provider does not answer.
    """
    try:
        _, document = ask("GET", address_of(issuer))
        return read(document, issuer)
    except ProviderError as error:
        raise CliError(str(error), ExitCode.REFUSED) from error


def wait_for_tokens(
    provider: Metadata, client: str, device: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    """Wait until the person has signed in; the provider's tokens.

    Args:
        provider: Where to ask.
        client: Id of the client.
        device: The provider's answer to the device's request.
        clock: Waits.

    Raises:
        CliError: The person refused, or did nothing in time.
    """
    pause = max(1.0, _number(device.get("interval"), 5.0))
    until = clock.monotonic() + _number(device.get("expires_in"), 600.0)
    while clock.monotonic() < until:
        asyncio.run(clock.sleep(pause))
        status, found = ask(
            "POST",
            provider.token_endpoint,
            grant_type=DEVICE_GRANT,
            device_code=str(device["device_code"]),
            client_id=client,
        )
        if status == httpx.codes.OK and isinstance(found.get("id_token"), str):
            return found
        error = found.get("error", f"status {status}, and no ID token")
        if error == "slow_down":
            pause += _SLOWER_SECONDS
        elif error != "authorization_pending":
            raise CliError(f"the identity provider refused: {error}", ExitCode.NOT_ALLOWED)
    raise CliError("nobody has signed in within the time allowed", ExitCode.TIMED_OUT)


def _number(found: object, default: float) -> float:
    return float(found) if isinstance(found, int | float) else default

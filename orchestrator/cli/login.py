"""`babysit login`, `logout` and `whoami`: who the command line is to the server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import Format, FormatOption, conclude, emit, put, say
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session, connect, session

ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="Default: BABYSIT_SERVER.")
]


def login(
    ctx: typer.Context, server: ServerOption = None, form: FormatOption = Format.TABLE
) -> None:
    """Sign in at the identity provider of a server, with any browser.

    Later commands renew the sign-in by themselves. BABYSIT_TOKEN, where it is set, comes first.

    For example:

        babysit login --server https://babysit.example.org
    """
    from orchestrator.cli.identity import SignIn, SignInFile, ask, metadata, wait_for_tokens

    here = session(ctx)
    url = _url(here, server)
    with connect(here, url, None) as api:
        way = api.get(path("session")).get("device")
    if way is None:
        raise CliError(f"{url} has no single sign-on: set BABYSIT_TOKEN", ExitCode.REFUSED)
    provider = metadata(way["issuer"])
    if not provider.device_endpoint:
        raise CliError(
            f"{way['issuer']} has no device flow (RFC 8628): set BABYSIT_TOKEN", ExitCode.REFUSED
        )
    client = way["client_id"]
    status, device = ask("POST", provider.device_endpoint, client_id=client, scope=way["scope"])
    if not {"device_code", "user_code", "verification_uri"} <= device.keys():
        why = device.get("error", f"status {status}")
        raise CliError(f"the identity provider refused: {why}", ExitCode.NOT_ALLOWED)
    say(f"Open {device.get('verification_uri_complete') or device['verification_uri']}")
    say(f"and enter or compare the code {device['user_code']}")
    found = wait_for_tokens(provider, client, device, here.clock)
    sign_in = SignIn(
        issuer=way["issuer"],
        client_id=client,
        token_endpoint=provider.token_endpoint,
        id_token=found["id_token"],
        refresh_token=found.get("refresh_token"),
    )
    with connect(here, url, sign_in.id_token) as api:
        seen = api.get(path("info"))  # refused without a role
    SignInFile(here.settings.home, here.clock).keep(url, sign_in)
    who = {"server": url, "name": seen["caller"], "role": seen["role"]}
    said = f"Signed in to {url} as {who['name']} ({who['role']})."
    if here.settings.token is not None:
        said += " BABYSIT_TOKEN is set and comes first: unset it."
    conclude(who, form, said=said, name="name")


def logout(
    ctx: typer.Context, server: ServerOption = None, form: FormatOption = Format.TABLE
) -> None:
    """End the sign-in for a server, here and at the identity provider.

    For example:

        babysit logout
    """
    from orchestrator.cli.identity import SignInFile

    here = session(ctx)
    url = _url(here, server)
    file = SignInFile(here.settings.home, here.clock)
    found = file.find(url)
    if found is None:
        conclude(
            {"server": url, "ended": False}, form, said=f"Not signed in to {url}.", name="server"
        )
        return
    file.keep(url, None)
    said = f"Signed out of {url}."
    if found.refresh_token is not None and (trouble := _revoke(found)):
        said += f" The provider may not know: {trouble}."
    conclude({"server": url, "ended": True}, form, said=said, name="server")


def _revoke(sign_in: Any) -> str:
    """Revoke the refresh token at its provider (RFC 7009); why not, or an empty text."""
    from orchestrator.cli.identity import ask, metadata

    try:
        endpoint = metadata(sign_in.issuer).revocation_endpoint
        if not endpoint:
            return "it revokes no tokens"
        ask("POST", endpoint, token=sign_in.refresh_token, client_id=sign_in.client_id)
    except CliError as error:
        return error.message.rstrip(".")
    return ""


def whoami(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Show who you are to the server, and what you may do.

    For example:

        babysit whoami
    """
    api = session(ctx).api
    seen = api.get(path("session"))
    if not seen["signed_in"]:
        api.get(path("info"))  # says why the token is refused
    facts = {
        "server": api.url,
        **{key: seen[key] for key in ("name", "role", "via", "expires_at", "projects", "queues")},
    }
    if form in {Format.TABLE, Format.WIDE}:
        shown = {**facts, "projects": ", ".join(facts["projects"]) or "all"}
        shown["queues"] = ", ".join(facts["queues"]) or "all"
        put("\n".join(f"{key + ':':<12}{value or '-'}" for key, value in shown.items()))
    else:
        emit(facts, [], form, name="name")


def _url(here: Session, server: str | None) -> str:
    """The server to sign in to.

    Raises:
        CliError: None is named, or its address is wrong.
    """
    if server is None:
        if here.settings.server is None:
            raise CliError(
                "no server is named: give --server, or set BABYSIT_SERVER. A server of this machine"
                " and user needs no sign-in",
                ExitCode.USAGE,
            )
        return here.settings.server
    try:
        from orchestrator.settings import server_url

        return server_url(server)
    except ValueError as error:
        raise CliError(f"--server {server}: {error}", ExitCode.USAGE) from error

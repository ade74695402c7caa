"""Sign-in for a browser: with a token, or with a link for somebody who has one."""

from __future__ import annotations

import datetime as dt
import html
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field, SecretStr

from orchestrator.database.credentials import Role, Token
from orchestrator.server.audit import notes
from orchestrator.server.context import (
    CALLER,
    Context,
    HasContext,
    UnauthenticatedError,
    Viewer,
)
from orchestrator.server.guard import session_of
from orchestrator.server.same_site import give_cookie, take_cookie
from orchestrator.server.sign_in import CODE_SECONDS, Opened

api = APIRouter(tags=["session"])
page = APIRouter(tags=["health"])
_ONWARD = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={path}"><title>babysit</title>
<p>Signed in. <a href="{path}">Continue</a></p></html>"""
"""A page of this site leads on: after a redirect from another site, browsers would not send the
cookie."""


class Link(BaseModel):
    """Whom a link signs in."""

    role: Role = Field(default="viewer", description="At most that of the caller.")


class SignInCode(BaseModel):
    """A code that signs a browser in once."""

    path: str = Field(description="Of the server's port: `/sign-in?code=…`.")
    seconds: float = Field(description="How long the code is good.")


class SignInMethod(BaseModel):
    """A way to sign in."""

    kind: Literal["token", "oidc"]
    label: str = Field(description="For a button.")
    path: str = Field(description="Where it begins: a POST for `token`, a page for `oidc`.")


class Device(BaseModel):
    """Facts for `babysit login`, which asks the identity provider itself (RFC 8628)."""

    issuer: str
    client_id: str
    scope: str


class SessionView(BaseModel):
    """The caller, or the ways to sign in."""

    signed_in: bool
    name: str | None = None
    role: Role | None = None
    via: Literal["token", "local", "session", "link", "oidc"] | None = Field(
        default=None, description="`link`: a session of `babysit server sign-in`."
    )
    expires_at: dt.datetime | None = Field(default=None, description="null: not by itself.")
    projects: list[str] = Field(default=[], description="Empty: all projects.")
    queues: list[str] = Field(default=[], description="Empty: all queues.")
    methods: list[SignInMethod] = Field(description="Ways to sign in.")
    device: Device | None = Field(
        default=None, description="How the command line signs in; null: with a token only."
    )


class Credentials(BaseModel):
    """A token for a session."""

    token: SecretStr = Field(min_length=1, max_length=4096)


def _view(caller: Token | None, here: Context) -> SessionView:
    single = here.single_sign_on
    methods = [SignInMethod(kind="token", label="Token", path="/api/v1/session")]
    if single is not None and single.has_page:
        label = here.settings.oidc_label
        methods.append(SignInMethod(kind="oidc", label=label, path="/sign-in/oidc"))
    device = None
    if single is not None:
        device = Device(
            issuer=here.settings.oidc_issuer,
            client_id=here.settings.device_client,
            scope=here.settings.oidc_scopes,
        )
    if caller is None:
        return SessionView(signed_in=False, methods=methods, device=device)
    return SessionView(
        signed_in=True,
        name=caller.name,
        role=caller.role,
        via=caller.via,
        expires_at=caller.expires_at,
        projects=list(caller.scope.projects),
        queues=list(caller.scope.queues),
        methods=methods,
        device=device,
    )


@api.get("/session")
async def session(request: Request, here: HasContext, answer: Response) -> SessionView:
    """Tell the caller's name, role and end, and the ways to sign in. Needs no token."""
    answer.headers["Cache-Control"] = "no-store"
    return _view(request.scope[CALLER], here)


@api.post("/session", status_code=201)
async def open_session(
    body: Credentials, request: Request, here: HasContext, answer: Response
) -> SessionView:
    """Sign a browser in with a token: the answer sets a cookie that carries the token's rights.

    Requests that change something need the header `X-Babysit-Request: 1` beside the cookie.
    """
    address = request.client.host if request.client else ""
    here.sign_ins.refuse_too_many(address)
    try:
        caller = await here.authenticate(body.token.get_secret_value())
    except UnauthenticatedError:
        here.sign_ins.note_failure(address)
        raise
    await end_session_of(request, here)
    opened = await here.sign_ins.by_token(caller)
    give(answer, opened, here, request)
    entered = await here.caller_of(opened.secret)
    request.scope[CALLER] = entered  # for the audit log
    return _view(entered, here)


@api.delete("/session", status_code=204)
async def end_session(request: Request, here: HasContext, answer: Response) -> None:
    """Sign the browser out: its session ends here, too."""
    await end_session_of(request, here)
    take_cookie(answer, here.settings)


async def end_session_of(request: Request, here: Context) -> None:
    """End the session that a browser has had so far, if any."""
    if before := session_of(request.scope, here.settings):
        await here.sign_ins.end(before)


def give(answer: Response, opened: Opened, here: Context, request: Request) -> None:
    """Add the cookie of a new session to an answer."""
    seconds = (opened.expires_at - here.clock.now()).total_seconds()
    give_cookie(answer, opened, here.settings, seconds, scheme=request.url.scheme)


@api.post("/sign-in", status_code=201)
async def make_code(here: HasContext, caller: Viewer, body: Link | None = None) -> SignInCode:
    """Make a code for a browser. Its session may look, or what the role given here allows."""
    role = (body or Link()).role
    code = await here.sign_ins.code(caller, role)
    notes().change("link", {}, {"name": caller.name, "role": role})
    return SignInCode(path=f"/sign-in?code={code}", seconds=CODE_SECONDS)


@page.get("/sign-in", response_class=HTMLResponse)
async def sign_in(
    request: Request, here: HasContext, code: Annotated[str, Query(max_length=100)]
) -> Response:
    """Open the session of a code, which is spent."""
    opened = await here.sign_ins.by_code(code)
    if opened is None:
        raise UnauthenticatedError(
            "the link was used already, or is too old: `babysit server sign-in` gives another"
        )
    await end_session_of(request, here)
    answer = onward(here.home_page)
    give(answer, opened, here, request)
    request.scope[CALLER] = await here.caller_of(opened.secret)  # for the audit log
    return answer


def onward(path: str) -> HTMLResponse:
    """A page that leads on to a path of this site."""
    return HTMLResponse(_ONWARD.format(path=html.escape(path)))

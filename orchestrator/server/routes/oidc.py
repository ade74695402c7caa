"""The page's way to the identity provider and back."""

from __future__ import annotations

import html
import secrets
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from orchestrator.errors import NotFoundError
from orchestrator.server.audit import notes
from orchestrator.server.context import CALLER, Context, HasContext
from orchestrator.server.guard import cookie_of
from orchestrator.server.oidc.browser_flow import BEGUN_SECONDS, CALLBACK, local_path
from orchestrator.server.oidc.errors import ProviderError, RefusedSignInError
from orchestrator.server.oidc.port import SingleSignOn
from orchestrator.server.routes.browser import end_session_of, give, onward
from orchestrator.server.same_site import is_https, keep_to_yourself

page = APIRouter(tags=["health"])
_COOKIE = "babysit_sign_in"


def _name(here: Context) -> str:
    return f"__Host-{_COOKIE}" if is_https(here.settings) else _COOKIE


def _single_sign_on(here: Context) -> SingleSignOn:
    if here.single_sign_on is None:
        raise NotFoundError("this server has no single sign-on: sign in with a token")
    return here.single_sign_on


@page.get("/sign-in/oidc", response_class=RedirectResponse)
async def begin(here: HasContext, return_to: Annotated[str, Query(alias="next")] = "/") -> Response:
    """Lead to the identity provider, and from there back to a path of this site."""
    cookie = secrets.token_urlsafe(32)
    answer = RedirectResponse(await _single_sign_on(here).begin(cookie), status_code=303)
    answer.set_cookie(
        _name(here),
        f"{cookie}.{local_path(return_to).encode().hex()}",
        max_age=int(BEGUN_SECONDS),
        httponly=True,
        samesite="lax",  # the way back begins at another site
        secure=is_https(here.settings),
    )
    keep_to_yourself(answer)
    return answer


@page.get(CALLBACK, response_class=HTMLResponse)
async def finish(request: Request, here: HasContext) -> Response:
    """Open a session for whom the identity provider sends back, and lead on."""
    address = request.client.host if request.client else ""
    here.sign_ins.refuse_too_many(address)
    cookie, _, path = (cookie_of(request.scope, _name(here)) or "").partition(".")
    try:
        opened = await _single_sign_on(here).finish(dict(request.query_params), cookie)
    except (RefusedSignInError, ProviderError) as error:
        here.sign_ins.note_failure(address)
        notes().detail = str(error)
        answer: Response = HTMLResponse(_refusal(str(error)), status_code=403)
    else:
        await end_session_of(request, here)
        answer = onward(_path(path))
        give(answer, opened, here, request)
        request.scope[CALLER] = await here.caller_of(opened.secret)  # for the audit log
    keep_to_yourself(answer)
    answer.delete_cookie(_name(here), secure=is_https(here.settings), httponly=True)
    return answer


def _path(hexed: str) -> str:
    try:
        return local_path(bytes.fromhex(hexed).decode())
    except ValueError:
        return "/"


def _refusal(message: str) -> str:
    words = html.escape(message)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>babysit</title>'
        f'<p>{words}.</p><p><a href="/sign-in/oidc">Sign in</a></p></html>'
    )

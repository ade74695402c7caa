"""Checks that a request with a session's cookie comes from babysit's own page.

The problem: a browser adds cookies to requests that any site makes it send. The design: a request
that changes something needs a header that no other site may set, and must come from this origin by
what browsers say of it; the cookie itself is `SameSite=Strict`.

Limits: a script that runs in the page itself can do what the person can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response

from orchestrator.errors import PermissionDeniedError
from orchestrator.server.sign_in import Opened
from orchestrator.settings import Settings

HEADER = "X-Babysit-Request"
"""Needed, with the value 1, beside a session's cookie in a request that changes something."""
_COOKIE = "babysit_session"


def is_https(settings: Settings) -> bool:
    """True if browsers reach the server over HTTPS, its own or that of a proxy."""
    return bool(settings.tls_certificate) or settings.public_url.startswith("https://")


def cookie_name(settings: Settings) -> str:
    """The name of the cookie; with HTTPS, one that browsers accept from this host alone."""
    return f"__Host-{_COOKIE}" if is_https(settings) else _COOKIE


def give_cookie(
    answer: Response, opened: Opened, settings: Settings, seconds: float, *, scheme: str
) -> None:
    """Add the cookie of a session that lasts `seconds` to an answer, which nobody may keep.

    A browser that came by HTTPS (the scheme, which a proxy may tell) never sends it without.
    """
    answer.set_cookie(
        cookie_name(settings),
        opened.secret,
        max_age=int(seconds),
        httponly=True,
        samesite="strict",
        secure=is_https(settings) or scheme == "https",
    )
    keep_to_yourself(answer)


def keep_to_yourself(answer: Response) -> None:
    """Have an answer kept by no cache, named to no other site, and shown in no frame."""
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["Referrer-Policy"] = "no-referrer"
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"


def take_cookie(answer: Response, settings: Settings) -> None:
    """Have the browser forget the cookie."""
    name, secure = cookie_name(settings), is_https(settings)
    answer.delete_cookie(name, httponly=True, samesite="strict", secure=secure)


def refuse_other_site(scope: Mapping[str, Any], settings: Settings) -> None:
    """Check that babysit's own page made the browser send a request.

    Raises:
        PermissionDeniedError: Another site may have.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if headers.get(HEADER.lower().encode()) != "1":
        raise PermissionDeniedError(f"a browser's session needs the header {HEADER}: 1")
    if origin is None and site is None:
        raise PermissionDeniedError(
            "a browser's session needs the header Origin or Sec-Fetch-Site; scripts use a token"
        )
    if site not in {None, "same-origin"} or not _is_ours(origin, headers.get(b"host"), settings):
        raise PermissionDeniedError(
            "the request comes from another site. Behind a proxy that changes the header Host, set"
            " BABYSIT_PUBLIC_URL to the address that browsers use"
        )


def _is_ours(origin: str | None, host: str | None, settings: Settings) -> bool:
    """True if an origin, where one is named, is this server's."""
    if origin is None:
        return True
    try:
        parts, public = urlsplit(origin), urlsplit(settings.public_url)
    except ValueError:
        return False
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        return False
    return parts.netloc == host or parts[:2] == public[:2]

"""The web page: its files, with headers that keep scripts and data of others out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from orchestrator.errors import NotFoundError
from orchestrator.server.page import page_file

router = APIRouter(include_in_schema=False)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No script and no style but those of this server, none inside HTML, and no text read as HTML."""
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # browsers ask whether their copy is still good
    "Vary": "Accept-Encoding",
}


@router.get("/")
@router.get("/docs")
@router.get("/runs/{reference}")
@router.get("/incidents/{incident}")
@router.get("/page/{name}")
async def page(request: Request) -> Response:
    """A file of the page; 304 where the browser has it already."""
    found = page_file(request.url.path)
    if found is None:
        raise NotFoundError(f"the page has no file {request.url.path}")
    headers = {**_HEADERS, "ETag": found.etag}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    body = found.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        body = found.packed
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type=found.kind, headers=headers)

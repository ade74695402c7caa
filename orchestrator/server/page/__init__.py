"""The files of the web page: HTML, CSS and modules of JavaScript, as they are sent.

There is no build step and no file from elsewhere. The files hold no data: the scripts ask the API
for it, as the person who is signed in.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import re
from functools import cache
from importlib import resources

_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PATHS = (
    (re.compile(r"/"), "fleet.html"),
    (re.compile(r"/runs/[^/]+"), "run.html"),
    (re.compile(r"/incidents/[^/]+"), "run.html"),
    (re.compile(r"/docs"), "docs.html"),
)
_FILE = re.compile(r"/page/([a-z_]+\.(?:css|js|svg))")


@dataclasses.dataclass(frozen=True, slots=True)
class PageFile:
    """A file, ready to be sent.

    Attributes:
        kind: Its content type.
        body: Its bytes.
        packed: The same, compressed by gzip.
        etag: Changes with the bytes.
    """

    kind: str
    body: bytes
    packed: bytes
    etag: str


def is_page(path: str) -> bool:
    """True for paths of the page: they need no token."""
    return _name(path) is not None


def page_file(path: str) -> PageFile | None:
    """The file behind a path of the page; None: there is none."""
    name = _name(path)
    return None if name is None else _read(name)


def _name(path: str) -> str | None:
    for pattern, name in _PATHS:
        if pattern.fullmatch(path):
            return name
    found = _FILE.fullmatch(path)
    return None if found is None else found[1]


@cache
def _read(name: str) -> PageFile | None:
    file = resources.files(__package__) / name
    if not file.is_file():
        return None
    body = file.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:20]
    packed = gzip.compress(body, mtime=0)
    return PageFile(_KINDS[name.rpartition(".")[2]], body, packed, f'"{digest}"')

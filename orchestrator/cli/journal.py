"""Reads the journal a page at a time, from its end backwards or onwards from the last row read."""

from __future__ import annotations

import datetime as dt
from typing import Any, Protocol

_PAGE = 1000
_END = 2**53
"""Beyond every position."""

Rows = list[dict[str, Any]]


class Api(Protocol):
    """The control plane, to be read from."""

    def get(self, where: str, **params: Any) -> Any:
        """GET."""


class Journal:
    """The journal of one run, or of all.

    Args:
        api: The control plane.
        where: The path of the journal.
        kind: `event` or `instruction`; None: both.
        since: Only rows of this time or later; None: all.
    """

    def __init__(
        self, api: Api, where: str, kind: str | None = None, since: dt.datetime | None = None
    ) -> None:
        self._api, self._where, self._kind, self._since = api, where, kind, since
        self._last = 0

    def newest(self, most: int | None) -> Rows:
        """The newest rows, oldest first: at most `most` of them, all when None."""
        pages: list[Rows] = []
        before, left = _END, most
        while left is None or left > 0:
            wanted = _PAGE if left is None else min(_PAGE, left)
            page = self._page(before=before, limit=wanted)
            fresh = [row for row in page if not self._is_older(row)]
            pages.append(fresh)
            if not page or len(fresh) < wanted:
                break
            before = page[0]["position"]
            left = None if left is None else left - len(fresh)
        rows = [row for page in reversed(pages) for row in page]
        if rows:
            self._last = rows[-1]["position"]
        return rows

    def more(self) -> Rows:
        """Rows written after those that were read, oldest first."""
        rows: Rows = []
        while True:
            page = self._page(after=self._last, limit=_PAGE)
            rows += page
            if not page:
                return rows
            self._last = page[-1]["position"]

    def _page(self, **params: Any) -> Rows:
        page: Rows = self._api.get(self._where, kind=self._kind, **params)
        return page

    def _is_older(self, row: dict[str, Any]) -> bool:
        return self._since is not None and dt.datetime.fromisoformat(row["at"]) < self._since

"""A collection of objects, kept up to date by a watch: one list at the start, none per event.

The problem: a watch ends often (the server closes it, a network breaks, a version is compacted),
and an event that is lost in between is lost for good.

The design: each watch continues at the version of the last event, or of a bookmark. Where the
server has forgotten that version (410), the collection is listed again and compared, so that a
change whose event was lost is reported like any other. While the server is away the cache
keeps what it had, and says that it is not up to date.

Limits: what happened to an object between two states that are both seen is not seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from jobs.clock import Clock
from orchestrator.clusters.kubernetes.client import Api, ApiError
from orchestrator.clusters.kubernetes.merge import Json

_log = structlog.get_logger(__name__)
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before a connection is tried again; the last for ever. Short: the end of a Pod that is
seen late is a restart that begins late."""
PAGE = 500
"""Objects of one answer to a list."""

Key = tuple[str, str]
"""Namespace and name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """Objects that are listed and watched."""

    path: str
    selector: str = ""
    """Labels."""
    fields: str = ""
    """Fields."""
    keep: Callable[[Json], Any] = dict
    """Takes the part of an object that is kept: whole Pods of others would take 100 MB."""


class Cache:
    """The objects of one collection.

    Attributes:
        objects: By namespace and name.
        synced: Set while the objects are up to date, as far as the server has told.
        listed: Set once the collection has been listed.
        answered: Set once it has been listed, or the server has said that it must not be (403).
    """

    def __init__(
        self,
        api: Api,
        clock: Clock,
        collection: Collection,
        changed: Callable[[Any | None, Any | None], None],
    ) -> None:
        self._api, self._clock, self._collection = api, clock, collection
        self._changed = changed
        self.objects: dict[Key, Any] = {}
        self.synced, self.listed = asyncio.Event(), asyncio.Event()
        self.answered = asyncio.Event()
        self.failure: ApiError | None = None
        """Why the collection is not up to date; None: it is, or nothing has failed yet."""
        self._version = ""
        self._versions: dict[Key, str] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, after: asyncio.Event | None = None) -> None:
        """Begin to follow the collection, once `after` is set; the second call has no effect."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow(after))

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def put(self, given: Mapping[str, Any]) -> None:
        """Take over an object, unless a newer state of it is known.

        What a request returns may be ahead of the events of the watch.
        """
        key = _key(given)
        if _number(given) > int(self._versions.get(key) or 0):
            self._store(key, dict(given))

    async def _follow(self, after: asyncio.Event | None) -> None:
        if after is not None:
            await after.wait()
        tries = 0
        while True:
            try:
                if not self._version:
                    await self._list()
                self._up_to_date()
                tries = 0
                await self._watch()
            except ApiError as error:
                if error.status == 410:
                    self._version = ""
                    continue
                self.failure = error
                self.synced.clear()
                if error.status == 403:
                    self.answered.set()
                pause = max(PAUSES[min(tries, len(PAUSES) - 1)], error.retry_after)
                tries += 1
                _log.warning("watch fails, will reconnect", error=str(error), seconds=pause)
                await self._clock.sleep(pause)
            except Exception as error:  # noqa: BLE001 - a loop that ended would blind us for good
                self.failure = ApiError(f"Kubernetes: {error!r}", status=0)
                self.synced.clear()
                self._version = ""  # what the event would have changed is found by a list
                _log.exception("watch fails by a defect, will list again; please report this")
                await self._clock.sleep(PAUSES[-1])

    def _up_to_date(self) -> None:
        self.failure = None
        self.synced.set()
        self.listed.set()
        self.answered.set()

    async def _list(self) -> None:
        found: dict[Key, Json] = {}
        query: dict[str, str | int] = {**self._query(), "limit": PAGE}
        while True:
            page = await self._api.request("GET", self._collection.path, query=query)
            found |= {_key(each): each for each in page.get("items") or ()}
            version = page["metadata"]["resourceVersion"]
            if not (more := page["metadata"].get("continue")):
                break
            query["continue"] = more
        self._version = str(version)
        for key in [key for key in self.objects if key not in found]:
            self._drop(key)
        for key, each in found.items():
            if str(each["metadata"].get("resourceVersion")) != self._versions.get(key):
                self._store(key, each)

    async def _watch(self) -> None:
        events = self._api.watch(self._collection.path, self._version, self._query())
        async with contextlib.aclosing(events):
            async for event in events:
                self._up_to_date()
                given = event["object"]
                if event["type"] == "DELETED":
                    self._drop(_key(given))
                elif event["type"] in {"ADDED", "MODIFIED"}:
                    self.put(given)
                self._version = str(given["metadata"]["resourceVersion"])

    def _query(self) -> dict[str, str | int]:
        query: dict[str, str | int] = {}
        if self._collection.selector:
            query["labelSelector"] = self._collection.selector
        if self._collection.fields:
            query["fieldSelector"] = self._collection.fields
        return query

    def _store(self, key: Key, given: Json) -> None:
        before = self.objects.get(key)
        self._versions[key] = str(given["metadata"].get("resourceVersion", ""))
        self.objects[key] = after = self._collection.keep(given)
        self._changed(before, after)

    def _drop(self, key: Key) -> None:
        self._versions.pop(key, None)
        before = self.objects.pop(key, None)
        if before is not None:
            self._changed(before, None)


def _key(given: Mapping[str, Any]) -> Key:
    return given["metadata"].get("namespace", ""), given["metadata"]["name"]


def _number(given: Mapping[str, Any]) -> int:
    """Versions are opaque by the API's contract, and numbers in every server there is."""
    version = str(given["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdigit() else 0

"""Requests for single objects, and what the answers mean for those who ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from jobs.clock import Clock
from orchestrator.clusters.kubernetes.client import Api, ApiError
from orchestrator.clusters.kubernetes.merge import Json
from orchestrator.clusters.kubernetes.names import object_name

_log = structlog.get_logger(__name__)
LAUNCH_PATIENCE = 120.0
"""Seconds for which a launch waits for an API server that is away, or for a quota: a run that is
being restarted meanwhile must not be charged with it. Less than the time in which an agent has to
join."""
RETRY_PAUSE = 5.0
"""Seconds between two tries of what nobody waits for, such as the release of a Pod."""
_REFUSALS = (
    "violates PodSecurity",  # a namespace's level
    "PodSecurityPolicy",
    "denied the request",  # a webhook
    "no PriorityClass with name",
    " usage per ",  # a LimitRange
    "failed quota",  # it wants a request of a resource that the Pod does not make
)
_QUOTAS = ("exceeded quota", "status unknown for quota")
"""Words of admission for what the owner of the cluster does not allow, however often it is tried.
Another 403 may pass: a quota becomes free, a Role is mended."""


class Requests:
    """Requests for single objects."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api, self._clock = api, clock

    async def get(self, path: str, identity: str) -> Json | None:
        """The object of a run or worker; None: there is none.

        Raises:
            ApiError: Nobody can tell.
        """
        try:
            return await self._api.request("GET", f"{path}/{object_name(identity)}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def if_there(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Json | None:
        """Change or delete an object; None: there is none.

        Raises:
            ApiError: It may be as it was.
        """
        try:
            return await self._api.request(method, path, body)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    async def create(
        self, path: str, wanted: Json, waits: Callable[[str], bool] = lambda _: False
    ) -> Json | None:
        """Create an object; None if there is one of its name.

        Args:
            path: The collection.
            wanted: The object.
            waits: Called with the words of a quota that is used up; True: try again, for
                `LAUNCH_PATIENCE` seconds in all.

        Raises:
            ApiError: It may be created later, and may have been created all the same.
            ValueError: The server finds it invalid, or the cluster's owner does not allow it.
        """
        until = self._clock.monotonic() + LAUNCH_PATIENCE
        while True:
            try:
                return await self._api.request("POST", path, wanted, patience=LAUNCH_PATIENCE)
            except ApiError as error:
                words = str(error)
                if error.reason == "AlreadyExists":
                    return None
                if error.status in {400, 422} or any(each in words for each in _REFUSALS):
                    raise ValueError(words) from error
                late = self._clock.monotonic() + RETRY_PAUSE > until
                if late or not any(each in words for each in _QUOTAS) or not waits(words):
                    raise
            await self._clock.sleep(RETRY_PAUSE)

    async def insist(self, ask: Callable[[], Awaitable[None]], about: str) -> None:
        """Try until the API server has answered."""
        while True:
            try:
                await ask()
            except ApiError as error:
                _log.warning("request failed, will retry", about=about, error=str(error))
                await self._clock.sleep(RETRY_PAUSE)
            else:
                return

"""A dead man's handle: an outside watcher hears from babysit while it lives, and pages if not.

babysit cannot say that it is dead. A watcher such as healthchecks.io, Dead Man's Snitch or a push
monitor of Uptime Kuma expects a request now and then, and notifies people when none comes.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx
import structlog

from jobs.clock import Clock

_log = structlog.get_logger(__name__)
_SECONDS = 10.0


async def hold(url: str, every: float, clock: Clock, alive: Callable[[], bool]) -> None:
    """Request a URL every `every` seconds while babysit is alive, until cancelled.

    Args:
        url: Of the watcher.
        every: Seconds between two requests.
        clock: The time.
        alive: True if this server leads and can store decisions. While False, nothing is sent.
    """
    async with httpx.AsyncClient(timeout=_SECONDS) as client:
        while True:
            if alive():
                try:
                    (await client.get(url)).raise_for_status()
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    # The URL is a secret of the watcher's: an error may have it in its text.
                    _log.warning("the watcher was not reached", error=type(error).__name__)
            await clock.sleep(every)

"""The label by which a Service finds the server that leads.

The problem: several servers share a database, and one leads. A Service over all of them would send
clients to servers that must refuse them. Readiness cannot tell the servers apart: a Deployment with
a Pod that is never ready cannot be rolled out, and a disruption budget would let no node drain.

The design: every server compares once a second whether it leads with the label of its own Pod. A
server that begins to lead also removes the label from the other Pods of its release, since a frozen
server cannot do that itself.

Limits: while the API of Kubernetes is away the labels stay as they are. A client that reaches
another server is refused with `not_leader`, and asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from jobs.clock import Clock
from orchestrator.errors import BabysitError

LEADER = "babysit/leader"
"""Label of the Pod whose server leads; its value is `true`."""
LOOK_SECONDS = 1.0
REPEAT_SECONDS = 30.0
"""The label of the Pod that leads is set again after this time: somebody may have removed it."""
_log = structlog.get_logger(__name__)


class LabelError(BabysitError):
    """The API of Kubernetes did not answer, or refused."""


class Pods(Protocol):
    """The Pods of this server's release, as the label needs them."""

    async def labelled(self) -> Sequence[str]:
        """Names of the Pods with the label.

        Raises:
            LabelError: Nobody can tell.
        """

    async def label(self, name: str, *, leads: bool) -> None:
        """Set or remove the label of a Pod; a Pod that is gone needs none.

        Raises:
            LabelError: The label may be as it was.
        """

    async def close(self) -> None:
        """Release what the requests needed."""


async def keep(own: str, pods: Pods, leads: Callable[[], bool], clock: Clock) -> None:
    """Keep the label of the Pod `own` to `leads`, until cancelled; closes `pods` at the end."""
    done: bool | None = None
    failed = ""
    repeat_at = 0.0
    try:
        while True:
            wanted = leads()
            if wanted != done or (wanted and clock.monotonic() >= repeat_at):
                try:
                    await _apply(own, pods, leads=wanted)
                except LabelError as error:
                    if str(error) != failed:
                        _log.warning("labelling failed, will retry", pod=own, error=str(error))
                    done, failed = None, str(error)
                else:
                    done, failed, repeat_at = wanted, "", clock.monotonic() + REPEAT_SECONDS
            await clock.sleep(LOOK_SECONDS)
    finally:
        await pods.close()


async def _apply(own: str, pods: Pods, *, leads: bool) -> None:
    await pods.label(own, leads=leads)
    if leads:
        for name in await pods.labelled():
            if name != own:
                await pods.label(name, leads=False)

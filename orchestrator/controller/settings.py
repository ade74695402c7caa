"""Settings of one controller: how it seeks the lead, and when it doubts an agent."""

from __future__ import annotations

import dataclasses

from orchestrator.core.model.checking import CheckPolicy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """Settings of one controller. All times are seconds.

    The defaults suit one server on a local network; `orchestrator.settings` maps the user's
    settings to them.
    """

    holder: str
    """Name of this controller in the lease; unique among all that share a database."""
    address: str = ""
    """URL at which agents reach this controller: others send them here while it leads."""
    lease_seconds: float = 10.0
    """Life of a lease without a renewal: another controller takes over after this time at most."""
    seek_seconds: float = 0.5
    """Interval at which a controller that does not lead tries to take the lease."""
    alone: bool = False
    """True: something else (a file lock) proves that no other controller lives, so the lease of
    a predecessor is taken at once. Two controllers with `alone` depose each other in turns."""
    checks: CheckPolicy | None = None
    """When nodes are checked, and what follows; None: as the leader before had it."""
    worker_lost_seconds: float = 15.0
    """Silence of an agent after which it counts as lost contact, and the cluster is asked."""

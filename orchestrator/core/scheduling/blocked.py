"""The runs of one pass that wait for nodes: which of them get a reservation, and until when.

The nodes that a run could use form its pool: with one kind of nodes all runs share one. The first
run of each pool gets a reservation, and keeps it from pass to pass, also when runs of other pools,
of higher priority or of other projects come ahead of it.

Limits: there are at most `MAX_RESERVATIONS`, in the order of the queue, and one for its first run.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from functools import cached_property

import numpy as np

from orchestrator.core.scheduling.backfill import UNKNOWN_SECONDS, Forecast
from orchestrator.core.scheduling.departures import Departures
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources, Pool
from orchestrator.core.scheduling.node_table import Mask
from orchestrator.core.scheduling.types import Claim, Demand, Snapshot

MAX_RESERVATIONS = 16
"""Bounds the cost of a pass where every node and every run differ a little."""
HOLD_SECONDS = 3600.0
"""Seconds for which a waiting run keeps nodes that it holds idle; as long as a node that is away is
expected back (:data:`orchestrator.core.model.state.AWAY_SECONDS`)."""
_TICK = dt.timedelta(seconds=1)
"""The precision of timers, well above rounding."""
LEND_SECONDS = 600.0
"""Seconds after which runs that end in time may have nodes that a waiting run holds idle. An
estimate of ours: most reboots are over by then, and the memory checkpoints there are lost."""


class Blocked:
    """Runs that wait for nodes in this pass, in order.

    Args:
        free: Free resources now.
        departures: The expected ends of all runs.
        eligible: Nodes that the runs may use.
        snapshot: The input of the pass.
        now: The moment of the pass.
    """

    def __init__(
        self,
        free: FreeResources,
        departures: Departures,
        eligible: Eligible,
        snapshot: Snapshot,
        now: dt.datetime,
    ) -> None:
        self._grace = dt.timedelta(seconds=snapshot.grace_seconds)
        claims = sum(demand.reserved for demand in snapshot.demands)
        self._table, self._eligible, self._now = free.table, eligible, now
        self._forecast = Forecast(free, departures, eligible, now)
        times = (at for each in snapshot.holdings for at in (each.safe_until, each.overdue_at))
        self._changes_at = min(
            (at.timestamp() for at in times if at and at > now), default=math.inf
        )
        """Unix time at which the next run may be preempted again, or is overdue to leave."""
        self._pools: set[Pool] = set()
        """Kinds of nodes that a run with a reservation could use."""
        self._new = MAX_RESERVATIONS - claims
        self._wanted: set[Pool] = set()
        self._lent: dict[str, float] = {}
        """Run that waits → Unix time until which it lends the nodes that it holds."""

    def wanted(self) -> Mask:
        """Nodes that a waiting run could use; growth leaves them alone."""
        kinds = np.zeros(len(self._table.kinds), dtype=np.bool_)
        for pool in self._wanted:
            kinds |= np.array(pool, dtype=np.bool_)
        mask: Mask = kinds[self._table.kind_of]
        return mask

    def gets_reservation(self, demand: Demand, pool: Pool) -> bool:
        """True if the run has a claim, or is the first that waits for just these nodes."""
        gets = self._may_reserve(demand, pool)
        self._new -= gets and not demand.reserved
        return gets

    def _may_reserve(self, demand: Demand, pool: Pool) -> bool:
        if demand.reserved:
            return True
        return (not self._pools or self._new > 0) and pool not in self._pools

    def starts_within(self, demand: Demand, pool: Pool) -> float:
        """Seconds until ends that are known let the run start, if it may reserve; else infinite."""
        if not self._may_reserve(demand, pool):
            return math.inf  # others could take what it waits for
        return self._forecast.starts_at(demand) - self._now.timestamp()

    def want(self, pool: Pool) -> None:
        """Note that a run waits for nodes of these kinds."""
        self._wanted.add(pool)

    def reserve(self, demand: Demand, pool: Pool) -> Claim:
        """Reserve nodes for the run, and return its claim."""
        self._pools.add(pool)
        claim = self._forecast.reserve(demand)
        if demand.keeps and self._waited(demand) >= LEND_SECONDS:
            starts = self._now.timestamp() + UNKNOWN_SECONDS
            self._lent[demand.run] = starts if claim.until is None else claim.until.timestamp()
        return self.continued(demand, claim)

    def reserve_for_preemption(self, demand: Demand, claim: Claim) -> Claim:
        """Reserve nodes that others leave for the run, and return its claim."""
        self._forecast.reserve_for_preemption(demand, claim)
        return self.continued(demand, claim)

    def continued(self, demand: Demand, claim: Claim) -> Claim:
        """The claim with the times of the claim that it continues."""
        old = demand.claim
        same = old is not None and old.preempting == claim.preempting
        if same and claim.preempting:
            same = old is not None and set(old.nodes) == set(claim.nodes)
        since = old.since if old is not None and same and old.since is not None else self._now
        promised = None if old is None else old.promised
        return dataclasses.replace(claim, since=since, promised=promised or claim.until)

    def lenders(self, demand: Demand) -> set[str]:
        """Waiting runs that lend the nodes they hold to this run, as it ends in time."""
        if not self._lent or math.isinf(ends := self._eligible.ends_at(demand)):
            return set()
        return {run for run, until in self._lent.items() if ends <= until and run != demand.run}

    def holds_too_long(self, demand: Demand) -> bool:
        """True if the run has held nodes idle for so long that others may have them."""
        return bool(demand.keeps) and self._waited(demand) >= HOLD_SECONDS

    def _waited(self, demand: Demand) -> float:
        """Seconds for which it has waited while it held nodes."""
        if demand.waits_since is not None:
            return (self._now - demand.waits_since).total_seconds()
        claim = demand.claim
        since = claim.since if claim is not None else None
        return 0.0 if since is None else (self._now - since).total_seconds()

    def is_late(self, claim: Claim) -> bool:
        """True if the runs preempted for a claim have taken longer than their grace."""
        return self._now - (claim.since or self._now) > self._grace

    def late_at(self, claim: Claim, demand: Demand) -> dt.datetime:
        """When to look again at a run for which others are preempted, and at those behind it."""
        late = (claim.since or self._now) + self._grace + _TICK
        late = late if late > self._now else self._now + self._grace
        return min(late, self.recheck_at(demand) or late)

    def recheck_at(self, demand: Demand) -> dt.datetime | None:
        """When time alone may change what the run, or those behind it, may have; None: never."""
        if not demand.keeps:
            return self._looks_again
        waited = self._waited(demand)
        times = [limit - waited for limit in (LEND_SECONDS, HOLD_SECONDS) if limit > waited]
        return self._soonest(*times)

    @cached_property
    def _looks_again(self) -> dt.datetime | None:
        """When time alone may change what any run may have; None: never."""
        return self._soonest()

    def _soonest(self, *times: float) -> dt.datetime | None:
        later = [at - self._now.timestamp() for at in (self._table.away_until, self._changes_at)]
        ahead = [*times, *(seconds for seconds in later if 0 < seconds < math.inf)]
        return self._now + dt.timedelta(seconds=min(ahead) + 0.001) if ahead else None

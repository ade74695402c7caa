"""One scheduling pass: places gangs on free nodes in order, each completely or not at all.

Every demand, in the order of :func:`.fair_share.in_order`, is placed or gets a reason why it waits.
The first one that does not fit gets a reservation (:mod:`.backfill`); runs behind it may use only
resources that do not delay it. If runs of lower priority, or runs of queues that have borrowed
quota, hold the needed nodes, the pass preempts the cheapest sufficient set of them
(:mod:`.preemption`) and reserves the nodes for the run that needs them.

Pure and deterministic: equal snapshots and times give equal plans. A pass only proposes; nodes of
preempted runs become free after their agents have saved and stopped, and a later pass places the
waiting run.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import numpy as np

from orchestrator.core.scheduling import migration, preemption
from orchestrator.core.scheduling.backfill import Forecast
from orchestrator.core.scheduling.elastic import grow
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.fair_share import Shares, age, in_order
from orchestrator.core.scheduling.free_resources import (
    FreeResources,
    could_fit,
    count_nodes,
    shape_of,
)
from orchestrator.core.scheduling.node_choice import choose_nodes
from orchestrator.core.scheduling.node_table import Mask
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.quota_line import QuotaLine
from orchestrator.core.scheduling.rejection_cache import Key, Rejection, RejectionCache
from orchestrator.core.scheduling.types import (
    Claim,
    Demand,
    Holding,
    Pending,
    Plan,
    Snapshot,
    Wait,
    accounted_gpus,
)
from orchestrator.core.scheduling.upper_bounds import Ceilings, continues_on_nodes
from orchestrator.core.scheduling.victim_problem import Situation
from orchestrator.core.scheduling.victims import Victims

MAX_PREEMPTORS = 4
"""Runs per pass that may preempt others; further ones follow in the next passes."""


def plan(snapshot: Snapshot, now: dt.datetime) -> Plan:
    """Place every demand that fits, in order, and give the others a reason to wait.

    Args:
        snapshot: Nodes, holdings, demands, quotas and use at one moment.
        now: The moment of the snapshot, UTC.
    """
    return Pass(snapshot, now).run()


class Pass:
    """One pass over one snapshot; an instance is used once."""

    def __init__(self, snapshot: Snapshot, now: dt.datetime) -> None:
        self._snapshot, self._now = snapshot, now
        self._free = FreeResources(snapshot.table)
        self._quotas = Quotas(snapshot.quotas)
        self._eligible = Eligible(snapshot.table, now, snapshot.spares)
        self._reservations = self._eligible.reservations
        self._ceilings = Ceilings(snapshot.table, self._quotas, self._eligible)
        weights = {
            (quota.name, project): weight
            for quota in snapshot.quotas
            for project, weight in quota.weights.items()
        }
        self._shares = Shares(snapshot.usage, snapshot.holdings, weights)
        self._free.place_workers((node, h.need) for h in snapshot.holdings for node in h.nodes)
        for holding in snapshot.holdings:
            self._quotas.charge(holding.queue, holding.gpus)
        self._victims = Victims(snapshot.table, snapshot.holdings, self._quotas, now)
        self._holdings = list(snapshot.holdings)
        """Nodes that every run holds, including runs placed in this pass."""
        self._idle_holders = {d.run for d in snapshot.demands if d.keeps and d.nodes > 0}
        """Runs whose nodes stay idle until more arrive: candidates for runs ahead of them."""
        self._first_blocked: Demand | None = None
        self._quota_line = QuotaLine(self._quotas, self._holdings, now)
        self._preemptors = 0
        self._preempted_for: dict[str, str] = {}
        """Preempted run → the run that gets its nodes."""
        self._leaving = [holding for holding in snapshot.holdings if holding.leaving]
        self._rejections = RejectionCache()
        self._queue_length = 0
        """Number of waiting runs that can start some day."""
        self._plan = Plan()

    def run(self) -> Plan:
        """Execute the pass. Growth happens only if no run waits for nodes."""
        rest, preemptors = [], []
        for demand in self._snapshot.demands:
            if demand.claim is not None and demand.claim.preempting:
                self._reservations.reserve(demand.run, demand.claim)
                preemptors.append(demand)
            else:
                rest.append(demand)
        # All of them are reserved before any is placed: none may take the nodes freed for another.
        preemptors.sort(key=age)
        rest.extend([demand for demand in preemptors if not self._place_preemptor(demand)])
        for demand in in_order(rest, self._shares):
            self._schedule(demand)
        # Growth has the lowest rank: it must not take nodes that a waiting run may get.
        if self._first_blocked is None:
            self._plan.growth.update(
                grow(
                    self._free,
                    self._eligible,
                    self._quotas,
                    self._shares,
                    [h for h in self._holdings if not self._quota_line.closed(h.queue)],
                )
            )
        return self._plan

    # one demand: from the cheapest answer to the most expensive

    def _place_preemptor(self, demand: Demand) -> bool:
        """Place a run that others were preempted for, before every other demand.

        Returns:
            False if its nodes are no longer available; the run then queues like the others.
        """
        claim = demand.claim
        if claim is None or self._ceilings.exceeded_by(demand):
            self._reservations.release(demand.run)
            return False
        self._reservations.release(demand.run)
        # Only the claimed nodes: elsewhere the run would overtake runs ahead of it in the order.
        only = np.zeros(len(self._free.table), dtype=np.bool_)
        only[self._free.table.places(claim.nodes)] = True
        if self._within_quota(demand):
            allowed = self._eligible.allowed(self._free, demand) & only
            # Without regard to the spare pool: the claim had left it whole, and to let the run wait
            # because a node has changed since would have stopped other runs for nothing.
            places = choose_nodes(self._free, demand, allowed)
            if places is not None:
                self._commit_placement(demand, self._free.table.named(places))
                return True
        gone = [holding for holding in self._snapshot.holdings if holding.leaving]
        leaving = [h.run for h in gone if not set(claim.nodes).isdisjoint(h.nodes)]
        if not leaving and not self._within_quota(demand) and self._within_quota(demand, gone):
            # These runs were preempted for their quota, on whichever nodes.
            leaving = [h.run for h in gone if self._quotas.limited(h.queue)]
        could = could_fit(self._free.table, demand.need) & only
        if not leaving or count_nodes(could) < demand.nodes:
            return False
        self._await_preemption(demand, claim, leaving)
        return True

    def _schedule(self, demand: Demand) -> None:
        self._idle_holders.discard(demand.run)
        if demand.run in self._preempted_for:  # its demand changes once it has left its nodes
            self._wait(demand, Pending.RESERVED, behind=self._preempted_for[demand.run])
        elif demand.nodes == 0:
            self._move(demand)
        elif detail := self._ceilings.exceeded_by(demand):
            self._wait(demand, Pending.TOO_LARGE, detail=detail)
            self._release_held_nodes(demand)
        elif rejection := self._rejections.rejected(self._kind(demand), demand):
            self._wait(demand, rejection.why, rejection.fitting, behind=rejection.behind)
        elif behind := self._quota_line.behind(demand):
            self._wait(demand, Pending.BEHIND, behind=behind)
            self._release_held_nodes(demand)
        else:
            self._try(demand)

    def _try(self, demand: Demand) -> None:
        why, fitting = Pending.QUOTA, 0
        if self._within_quota(demand):
            placed, why, fitting = self._place(demand)
            if placed:
                return
        if self._preempt_for(demand):
            return
        # A lack of quota concerns the queue and its cohort; a lack of nodes concerns every queue.
        if why is Pending.QUOTA:
            self._quota_line.wait(demand)
            self._wait(demand, why, detail=self._quota_detail(demand))
            self._release_held_nodes(demand)
        else:
            self._block(demand, why, fitting)

    def _within_quota(self, demand: Demand, gone: Iterable[Holding] = ()) -> bool:
        """True if its queue may use that many GPUs more, now or after `gone` has left."""
        for holding in gone:
            self._quotas.charge(holding.queue, -holding.gpus)
        status = self._quotas.status(demand.queue, demand.gpus)
        for holding in gone:
            self._quotas.charge(holding.queue, holding.gpus)
        return continues_on_nodes(demand) or status in {QuotaStatus.WITHIN, QuotaStatus.BORROWING}

    def _release_held_nodes(self, demand: Demand) -> None:
        """Offer the nodes that a blocked run holds idle to the runs behind it.

        Otherwise two runs that each hold half of what they need would wait for each other.
        """
        if demand.keeps:
            self._idle_holders.add(demand.run)
            self._rejections.forget()  # preemption has a new candidate

    def _place(self, demand: Demand) -> tuple[bool, Pending, int]:
        """Try to place the demand without preemption.

        Returns:
            Whether it is placed; if not, the reason, and the number of allowed nodes.
        """
        key = self._key(demand)
        if tried := self._rejections.failed(key, demand):
            return False, tried.why, tried.fitting
        # Try to move first, which chooses the missing nodes and the replacements together.
        if demand.unwanted and self._move(demand):
            return True, Pending.NO_CAPACITY, 0
        fits = self._eligible.fitting(self._free, demand)
        allowed = fits & ~self._reservations.beyond(self._eligible.ends_at(demand))
        places = self._eligible.choose_nodes(self._free, demand, allowed)
        if places is not None:
            self._commit_placement(demand, self._free.table.named(places))
            return True, Pending.NO_CAPACITY, 0
        if self._move(demand):
            return True, Pending.NO_CAPACITY, 0
        why = self._why_not(demand, fits, allowed)
        rejection = Rejection(demand.nodes, why, count_nodes(allowed))
        self._rejections.note_failed(key, demand, rejection)
        return False, rejection.why, rejection.fitting

    def _move(self, demand: Demand) -> bool:
        """Place the demand by migration: away from avoided nodes, or as a whole. True: moved."""
        move = migration.off_avoided_nodes(self._free, self._eligible, demand)
        if move is None:
            move = migration.whole_gang(self._free, self._eligible, demand)
        if move is None:
            return False
        self._plan.leaves[demand.run] = move.leaves
        # Quota is free at once, nodes are not: their agents still have to stop.
        self._quotas.charge(demand.queue, -len(move.leaves) * accounted_gpus(demand.need))
        self._commit_placement(demand, move.to)
        return True

    def _commit_placement(self, demand: Demand, nodes: tuple[str, ...]) -> None:
        self._free.take(self._free.table.places(nodes), demand.need)
        self._quotas.charge(demand.queue, len(nodes) * accounted_gpus(demand.need))
        self._shares.charge(demand)
        self._plan.placements[demand.run] = nodes
        self._holdings.append(_holding(demand, nodes, self._now))

    def _key(self, demand: Demand) -> Key:
        """Cache key of placement: a rejection holds for its key with as many nodes or more."""
        return (shape_of(demand.need), demand.pack, *self._eligible.cache_key(demand))

    def _kind(self, demand: Demand) -> Key:
        """Cache key of placement and preemption together."""
        group = self._victims.group(demand.queue)
        return (*self._key(demand), group, demand.priority, demand.may_preempt)

    # reasons to wait

    def _why_not(self, demand: Demand, fits: Mask, allowed: Mask) -> Pending:
        if count_nodes(fits) < demand.nodes:
            ignoring_maintenance = self._free.fits(demand.need)
            ignoring_maintenance[self._free.table.places(demand.keeps)] = False
            enough = count_nodes(ignoring_maintenance) >= demand.nodes
            return Pending.MAINTENANCE if enough else Pending.NO_CAPACITY
        if count_nodes(allowed) < demand.nodes:
            return Pending.RESERVED
        if self._eligible.usable_count(self._free, demand, allowed) < demand.nodes:
            return Pending.SPARES
        return Pending.TOPOLOGY

    def _quota_detail(self, demand: Demand) -> str:
        quota = self._quotas.of(demand.queue)
        used = self._quotas.used(demand.queue)
        return f"queue {demand.queue} uses {used} of {quota.gpus} GPUs; it wants {demand.gpus} more"

    def _wait(self, demand: Demand, why: Pending, fitting: int = 0, **facts: Any) -> None:
        self._plan.waits[demand.run] = Wait(
            run=demand.run,
            why=why,
            place=self._queue_length + 1,
            missing=demand.nodes,
            fitting=fitting,
            **facts,
        )
        self._queue_length += why is not Pending.TOO_LARGE  # it never gets its turn

    # reservations

    def _block(self, demand: Demand, why: Pending, fitting: int) -> None:
        """Record that the run waits for nodes; the first blocked run gets a reservation."""
        if self._first_blocked is not None:
            behind = self._first_blocked.run if why is Pending.RESERVED else None
            rejection = Rejection(demand.nodes, why, fitting, behind)
            self._rejections.note_rejected(self._kind(demand), demand, rejection)
            self._wait(demand, why, fitting, behind=behind)
            return
        # EASY backfill: one reservation is enough for progress, and more would idle more nodes.
        self._first_blocked = demand
        forecast = Forecast(self._free, self._holdings, self._eligible, self._now)
        claim = forecast.claim(demand)
        self._claim(demand, claim)
        self._wait(demand, why, fitting=fitting, starts_at=claim.until)

    def _claim(self, demand: Demand, claim: Claim) -> None:
        self._plan.claims[demand.run] = claim
        self._reservations.reserve(demand.run, claim)
        self._rejections.forget()

    # preemption

    def _await_preemption(self, demand: Demand, claim: Claim, leaving: Iterable[str]) -> None:
        self._claim(demand, claim)
        self._quotas.charge(demand.queue, demand.gpus)  # reserve the quota like the nodes
        self._wait(demand, Pending.PREEMPTING, detail=", ".join(sorted(set(leaving))))

    def _preempt_for(self, demand: Demand) -> bool:
        """Preempt the cheapest sufficient candidates for the demand; False: there are none."""
        kind = self._kind(demand)
        # The limit bounds the cost of a pass; the search below is its most expensive part.
        if self._preemptors == MAX_PREEMPTORS or self._rejections.futile(kind, demand):
            return False
        if not self._select_victims(demand):
            self._rejections.note_futile(kind, demand)
            return False
        self._preemptors += 1
        return True

    def _select_victims(self, demand: Demand) -> bool:
        """Select victims, reserve their nodes for the demand, and record the evictions."""
        leaving = self._leaving
        situation = Situation(
            free=self._free,
            leaving=leaving,
            quotas=self._quotas,
            eligible=self._eligible,
            victims=self._victims,
        )
        selection = preemption.select(situation, demand, self._idle_holders)
        if selection is None:
            return False
        nodes = self._free.table.named(selection.places)
        gone = preemption.evictions(demand, self._victims, selection)
        self._victims.take(selection.units)
        for eviction in gone:
            self._preempted_for.setdefault(eviction.run, demand.run)
        self._plan.evictions[:] = preemption.merged([*self._plan.evictions, *gone])
        before = [h.run for h in leaving if not set(nodes).isdisjoint(h.nodes)]
        claim = Claim(nodes=nodes, preempting=True)
        self._await_preemption(demand, claim, [*before, *(each.run for each in gone)])
        return True


def _holding(demand: Demand, nodes: tuple[str, ...], now: dt.datetime) -> Holding:
    """The holding of a demand once it is placed."""
    within = demand.ends_within
    return Holding(
        run=demand.run,
        need=demand.need,
        nodes=(*demand.keeps, *nodes),
        queue=demand.queue,
        project=demand.project,
        priority=demand.priority,
        ends_at=None if within is None else now + dt.timedelta(seconds=within),
        ends_within=within,
        wants=demand.more,
        pack=demand.pack,
        avoid=demand.avoid,
    )

"""One scheduling pass: places gangs on free nodes in order, each completely or not at all.

Every demand, in the order of :func:`.fair_share.in_order`, is placed or gets a reason why it waits.
The first one of each pool of nodes that does not fit gets a reservation (:mod:`.blocked`); runs
behind it may use only resources that do not delay it. If runs of lower priority, or runs of queues
that have borrowed quota, hold the needed nodes, the pass preempts the cheapest sufficient set of
them (:mod:`.preemption`) and reserves the nodes for the run that needs them.

Pure and deterministic: equal snapshots and times give equal plans. A pass only proposes; nodes of
preempted runs become free after their agents have saved and stopped, and a later pass places the
waiting run.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from orchestrator.core.scheduling import preemption, shortage
from orchestrator.core.scheduling.blocked import Blocked
from orchestrator.core.scheduling.demand_kinds import Kind, Kinds
from orchestrator.core.scheduling.departures import Departures
from orchestrator.core.scheduling.elastic import grow
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.fair_share import Shares, age, in_order, weights
from orchestrator.core.scheduling.free_resources import (
    FreeResources,
    could_fit,
    count_nodes,
)
from orchestrator.core.scheduling.gang_placement import Books, GangPlacement, owed
from orchestrator.core.scheduling.holding_table import HoldingTable
from orchestrator.core.scheduling.node_choice import choose_nodes
from orchestrator.core.scheduling.quota import Quotas
from orchestrator.core.scheduling.quota_line import QuotaLine
from orchestrator.core.scheduling.rejection_cache import Key, Rejection, RejectionCache
from orchestrator.core.scheduling.types import (
    Claim,
    Demand,
    Pending,
    Plan,
    Snapshot,
    Wait,
)
from orchestrator.core.scheduling.upper_bounds import Ceilings, within_quota
from orchestrator.core.scheduling.victim_problem import Situation
from orchestrator.core.scheduling.victims import Victims

HOPELESS = preemption.NoSelection.HOPELESS
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
        self._reservations.actual = self._free
        self._ceilings = Ceilings(snapshot.table, self._quotas, self._eligible)
        held = HoldingTable(snapshot.table, snapshot.holdings)
        self._shares = Shares(snapshot.usage, held.gpus_by_project(), weights(snapshot.quotas))
        self._free.place_workers(held)
        for queue, gpus in held.gpus_by_queue().items():
            self._quotas.charge(queue, gpus)
        self._victims = Victims(held, self._quotas, now)
        self._holdings = list(snapshot.holdings)  # and of runs that are placed in this pass
        departures = Departures(held, self._holdings, now)
        self._blocked = Blocked(self._free, departures, self._eligible, snapshot, now)
        self._idle_holders = {d.run for d in snapshot.demands if d.keeps and d.nodes > 0}
        """Runs whose nodes stay idle until more arrive: candidates for runs ahead of them."""
        self._quota_line = QuotaLine(self._quotas, self._holdings, now)
        self._late: dict[str, list[str]] = {}
        """Run whose preempted runs take longer than their grace → these runs."""
        self._preemptors = 0
        self._preempted_for: dict[str, str] = {}
        """Preempted run → the run that gets its nodes."""
        self._situation = Situation(
            free=self._free,
            leaving=[holding for holding in snapshot.holdings if holding.leaving],
            quotas=self._quotas,
            eligible=self._eligible,
            victims=self._victims,
        )
        self._kinds = Kinds(snapshot.table, self._ceilings, self._victims)
        self._rejections = RejectionCache()
        self._plan = Plan()
        self._placing = GangPlacement(
            Books(
                now=now,
                free=self._free,
                quotas=self._quotas,
                shares=self._shares,
                eligible=self._eligible,
                holdings=self._holdings,
                owed=owed(snapshot.holdings),
                rejections=self._rejections,
                plan=self._plan,
            )
        )
        self._queue_length = 0
        """Number of waiting runs that can start some day."""

    def run(self) -> Plan:
        """Execute the pass. Growth gets nodes that no waiting run could use."""
        rest, preemptors = [], []
        for demand in self._snapshot.demands:
            if demand.claim is not None and demand.claim.preempting:
                self._blocked.reserve_for_preemption(demand, demand.claim)
                preemptors.append(demand)
            else:
                rest.append(demand)
        # All of them are reserved before any is placed: none may take the nodes freed for another.
        preemptors.sort(key=age)
        rest.extend([demand for demand in preemptors if not self._place_preemptor(demand)])
        for demand in in_order(rest, self._shares, self._now):
            self._schedule(demand)
        # Growth has the lowest rank: it must not take nodes that a waiting run may get.
        stays = preemption.spared(self._holdings, self._plan.evictions)
        growing = [h for h in stays if h.wants > 0 and not self._quota_line.closed(h.queue)]
        parts = self._free, self._eligible, self._quotas, self._shares, growing
        self._plan.growth.update(grow(*parts, self._blocked.wanted()))
        return self._plan

    # one demand: from the cheapest answer to the most expensive

    def _place_preemptor(self, demand: Demand) -> bool:
        """Place a run that others were preempted for, before every other demand.

        Returns:
            False if its nodes are no longer available, or take too long to become so; the run then
            queues like the others.
        """
        claim = demand.claim
        if claim is None or self._ceilings.exceeded_by(demand):
            self._drop_reservation(demand)
            return False
        self._reservations.release(demand.run)
        # Only the claimed nodes: elsewhere the run would overtake runs ahead of it in the order.
        only = np.zeros(len(self._free.table), dtype=np.bool_)
        only[self._free.table.places(claim.nodes)] = True
        if within_quota(self._quotas, demand):
            allowed = self._eligible.allowed(self._free, demand) & only
            # Without regard to the spare pool: the claim had left it whole, and to let the run wait
            # because a node has changed since would have stopped other runs for nothing.
            places = choose_nodes(self._free, demand, allowed)
            if places is not None:
                self._placing.commit(demand, self._free.table.named(places))
                return True
        gone = [holding for holding in self._snapshot.holdings if holding.leaving]
        leaving = [h.run for h in gone if not set(claim.nodes).isdisjoint(h.nodes)]
        if (
            not leaving
            and not within_quota(self._quotas, demand)
            and within_quota(self._quotas, demand, gone)
        ):
            # These runs were preempted for their quota, on whichever nodes.
            leaving = [h.run for h in gone if self._quotas.limited(h.queue)]
        could = could_fit(self._free.table, demand.need) & only
        if not leaving or count_nodes(could) < demand.nodes:
            self._drop_reservation(demand)
            return False
        if self._blocked.is_late(claim):
            self._blocked.reserve_for_preemption(demand, claim)
            self._late[demand.run] = leaving
            return False
        self._await_preemption(demand, claim, leaving)
        return True

    def _drop_reservation(self, demand: Demand) -> None:
        self._reservations.release(demand.run)
        self._plan.unfinished.add(demand.run)  # runs before it have respected the reservation

    def _schedule(self, demand: Demand) -> None:
        if demand.keeps:
            self._idle_holders.discard(demand.run)
        if by := self._preempted_for.get(demand.run):  # its demand changes once it has left
            self._wait(demand, Pending.RESERVED, behind=by)
            return
        if demand.nodes == 0:
            self._placing.move(demand)
            return
        kind = self._kinds.of(demand)
        key = kind.number, self._eligible.cache_key(demand)
        if (demand.keeps or demand.nodes > kind.most) and (
            detail := self._ceilings.exceeded_by(demand)
        ):
            self._wait(demand, Pending.TOO_LARGE, detail=detail)
            self._release_held_nodes(demand)
        elif rejection := self._rejections.rejected(key, demand):
            self._want(kind)
            self._wait(demand, rejection.why, rejection.fitting, behind=rejection.behind)
        elif behind := self._quota_line.behind(demand):
            self._wait(demand, Pending.BEHIND, behind=behind)
            self._release_held_nodes(demand)
        elif (short := self._rejections.barren(demand, kind, key)) is not None:
            if short:
                self._plan.unfinished.add(demand.run)
            self._wait(demand, Pending.NO_CAPACITY, recheck_at=self._blocked.recheck_at(demand))
        else:
            self._try(demand, kind, key)

    def _try(self, demand: Demand, kind: Kind, key: Key) -> None:
        rejection = None
        late = self._late.get(demand.run)
        if late:
            self._reservations.release(demand.run)
            key = kind.number, self._eligible.cache_key(demand)
        if not kind.limited or within_quota(self._quotas, demand):
            rejection = self._placing.place(demand, (kind.placement, key[1]))
            if rejection is None:
                return
        if late and demand.claim is not None:
            # Nodes are free nowhere else yet; perhaps they are about to be, without more victims.
            gentle = dataclasses.replace(demand, may_preempt=False)
            if not self._select_victims(gentle, kind, frozenset(), late):
                self._await_preemption(demand, demand.claim, late)
            return
        if self._preempt_for(demand, kind, key):
            return
        # A lack of quota concerns the queue and its cohort; a lack of nodes concerns every queue.
        if rejection is None:
            self._quota_line.wait(demand)
            self._wait(demand, Pending.QUOTA, detail=shortage.quota_detail(self._quotas, demand))
            self._release_held_nodes(demand)
        else:
            self._block(demand, kind, key, rejection)

    def _release_held_nodes(self, demand: Demand) -> None:
        """Offer the nodes that a blocked run holds idle to the runs behind it.

        Otherwise two runs that each hold half of what they need would wait for each other.
        """
        if demand.keeps:
            self._idle_holders.add(demand.run)
            self._rejections.forget()  # preemption has a new candidate

    def _want(self, kind: Kind) -> None:
        if not kind.wanted:
            kind.wanted = True
            self._blocked.want(kind.pool)

    # reasons to wait

    def _wait(self, demand: Demand, why: Pending, fitting: int = 0, **facts: Any) -> None:
        place, run, nodes = self._queue_length + 1, demand.run, demand.nodes
        self._plan.waits[run] = Wait(run, why, place, nodes, fitting, **facts)
        self._queue_length += why is not Pending.TOO_LARGE  # it never gets its turn

    # reservations

    def _block(self, demand: Demand, kind: Kind, key: Key, rejection: Rejection) -> None:
        """Record that the run waits for nodes; the first of each pool gets a reservation."""
        self._want(kind)
        if demand.keeps and self._blocked.holds_too_long(demand):
            self._release_held_nodes(demand)
        starts_at = None
        if self._blocked.gets_reservation(demand, kind.pool):
            # EASY backfill: one reservation for each pool is enough for progress, and more would
            # idle more nodes.
            claim = self._blocked.reserve(demand, kind.pool)
            self._plan.claims[demand.run] = claim
            self._rejections.forget()
            starts_at = claim.until
        else:
            # Found for runs of other rights, it may be of fewer nodes: such a run of this kind may
            # still preempt.
            if rejection.nodes != demand.nodes:
                rejection = rejection._replace(nodes=demand.nodes)
            self._rejections.note_rejected(key, demand, rejection)
            if not kind.limited and self._free.full_for(demand.need):
                short = self._preemptors == MAX_PREEMPTORS
                self._rejections.note_barren((kind.family, key[1]), demand, short=short)
            if demand.keeps:  # it reserves nothing, and remembers since when it holds nodes idle
                self._plan.claims[demand.run] = self._blocked.continued(demand, Claim(nodes=()))
        self._wait(
            demand,
            rejection.why,
            rejection.fitting,
            behind=rejection.behind,
            starts_at=starts_at,
            recheck_at=self._blocked.recheck_at(demand),
        )

    # preemption

    def _await_preemption(self, demand: Demand, claim: Claim, leaving: Iterable[str]) -> None:
        self._want(self._kinds.of(demand))
        claim = self._blocked.reserve_for_preemption(demand, claim)
        self._plan.claims[demand.run] = claim
        self._rejections.forget()
        self._placing.charge(demand, demand.nodes)  # reserve the quota like the nodes
        self._wait(
            demand,
            Pending.PREEMPTING,
            detail=", ".join(sorted(set(leaving))),
            recheck_at=self._blocked.late_at(claim, demand),
        )

    def _preempt_for(self, demand: Demand, kind: Kind, key: Key) -> bool:
        """Preempt the cheapest sufficient candidates for the demand; False: there are none."""
        # The limit bounds the cost of a pass; the search below is its most expensive part.
        if self._rejections.futile(key, demand):
            return False
        if self._preemptors == MAX_PREEMPTORS:
            self._plan.unfinished.add(demand.run)
            return False
        if self._rejections.hopeless((kind.family, key[1]), demand):
            return False
        lenders = self._blocked.lenders(demand)
        waiting = self._idle_holders | lenders if lenders else self._idle_holders
        if not self._select_victims(demand, kind, waiting):
            self._rejections.note_futile(key, demand)
            return False
        self._preemptors += 1
        return True

    def _select_victims(
        self, demand: Demand, kind: Kind, waiting: AbstractSet[str], late: Sequence[str] = ()
    ) -> bool:
        """Select victims, reserve their nodes for the demand, and record the evictions."""
        situation = self._situation
        if late:
            others = [holding for holding in situation.leaving if holding.run not in late]
            situation = dataclasses.replace(situation, leaving=others)
        selection = preemption.select(situation, demand, waiting)
        if isinstance(selection, preemption.NoSelection):
            if selection is HOPELESS and not late:
                family = kind.family, self._eligible.cache_key(demand)
                self._rejections.note_hopeless(
                    family, demand, lambda d: preemption.select(situation, d, waiting) is HOPELESS
                )
            return False
        nodes = self._free.table.named(selection.places)
        gone = preemption.evictions(demand, self._victims, selection)
        if within_quota(self._quotas, demand) and preemption.waiting_is_cheaper(
            demand,
            gone,
            self._blocked.starts_within(demand, kind.pool),
            self._snapshot.grace_seconds,
        ):
            return False
        self._victims.take(selection.units)
        self._preempted_for = {e.run: demand.run for e in gone} | self._preempted_for
        self._plan.evictions[:] = preemption.merged([*self._plan.evictions, *gone])
        before = [h.run for h in situation.leaving if not set(nodes).isdisjoint(h.nodes)]
        leaving_for_it = [*before, *(each.run for each in gone)]
        self._await_preemption(demand, Claim(nodes=nodes, preempting=True), leaving_for_it)
        return True

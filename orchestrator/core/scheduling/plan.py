"""One scheduling pass: gangs onto free nodes, in order, all or nothing. Pure.

Each demand, in the order of :func:`.share.in_order`, is placed, or told why it waits. The first
that does not fit gets a reservation; those behind it may use what does not delay it. Where runs of
lower priority (or of queues that borrow) stand in the way, the cheapest that make room are asked to
save and leave, and the nodes are kept for whom they leave.
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
from orchestrator.core.scheduling.free_resources import FreeResources, could_fit, shape_of
from orchestrator.core.scheduling.node_choice import spot
from orchestrator.core.scheduling.node_table import Mask
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
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
from orchestrator.core.scheduling.upper_bounds import Ceilings, goes_on

MOST_PREEMPTORS = 4
"""Runs for which others are asked to leave in one pass: the next ones come with the next pass."""


def plan(snapshot: Snapshot, now: dt.datetime) -> Plan:
    """Place what can be placed, in order; say of the rest why it waits."""
    return Pass(snapshot, now).run()


class Pass:
    """One pass over a snapshot."""

    def __init__(self, snapshot: Snapshot, now: dt.datetime) -> None:
        self._snapshot, self._now = snapshot, now
        self._board = FreeResources(snapshot.rooms)
        self._quotas = Quotas(snapshot.quotas)
        self._eligible = Eligible(snapshot.rooms, now, snapshot.spares)
        self._kept = self._eligible.kept
        self._ceilings = Ceilings(snapshot.rooms, self._quotas, self._eligible)
        weights = {
            (quota.name, project): weight
            for quota in snapshot.quotas
            for project, weight in quota.weights.items()
        }
        self._shares = Shares(snapshot.usage, snapshot.holdings, weights)
        self._board.seat((node, h.need) for h in snapshot.holdings for node in h.nodes)
        for holding in snapshot.holdings:
            self._quotas.charge(holding.queue, holding.gpus)
        self._holders = preemption.PreemptionCandidates(snapshot.holdings, self._quotas)
        self._holdings = list(snapshot.holdings)
        """What all have, also who was placed in this pass."""
        self._idling = {d.run for d in snapshot.demands if d.keeps and d.nodes > 0}
        """Who has nodes, and cannot use them before whoever is looked at now is placed."""
        self._head: Demand | None = None
        self._closed: dict[str, str] = {}
        """Queue → the run that waits for its quota: nobody of the queue overtakes it."""
        self._preemptors = 0
        self._gave: dict[str, str] = {}
        """Run that was asked to leave → for whom."""
        self._known = RejectionCache()
        self._in_line = 0
        """How many wait for something that can come."""
        self._plan = Plan()

    def run(self) -> Plan:
        """The pass."""
        rest, expected = [], []
        for demand in self._snapshot.demands:
            if demand.claim is not None and demand.claim.preempting:
                self._kept.keep(demand.run, demand.claim)
                expected.append(demand)
            else:
                rest.append(demand)
        expected.sort(key=age)
        rest.extend([demand for demand in expected if not self._expected(demand)])
        for demand in in_order(rest, self._shares):
            self._schedule(demand)
        if self._head is None:
            self._plan.growth.update(
                grow(self._board, self._eligible, self._quotas, self._shares, self._holdings)
            )
        return self._plan

    # one demand

    def _expected(self, demand: Demand) -> bool:
        """Others have left for it, or are leaving: it gets its nodes before anybody else.

        False: its nodes are not to be had any more. It waits like the others.
        """
        claim = demand.claim
        if claim is None or self._ceilings.exceeded_by(demand):
            self._kept.release(demand.run)
            return False
        self._kept.release(demand.run)
        only = np.zeros(len(self._board.rooms), dtype=np.bool_)
        only[self._board.rooms.places(claim.nodes)] = True
        if self._within_quota(demand):
            places = spot(self._board, demand, self._eligible.allowed(self._board, demand) & only)
            if places is not None:
                self._commit_placement(demand, self._board.rooms.named(places))
                return True
        gone = [holding for holding in self._snapshot.holdings if holding.leaving]
        leaving = [h.run for h in gone if not set(claim.nodes).isdisjoint(h.nodes)]
        if not leaving and not self._within_quota(demand) and self._within_quota(demand, gone):
            leaving = [h.run for h in gone if self._quotas.limited(h.queue)]  # left for the quota
        could = could_fit(self._board.rooms, demand.need) & only
        if not leaving or int(could.sum()) < demand.nodes:
            return False
        self._await_leavers(demand, claim, leaving)
        return True

    def _schedule(self, demand: Demand) -> None:
        self._idling.discard(demand.run)
        if demand.run in self._gave:  # what it wants is counted anew once its nodes are left
            self._wait(demand, Pending.RESERVED, behind=self._gave[demand.run])
        elif demand.nodes == 0:
            self._move(demand)
        elif detail := self._ceilings.exceeded_by(demand):
            self._wait(demand, Pending.TOO_LARGE, detail=detail)
            self._release_held_nodes(demand)
        elif told := self._known.told(self._kind(demand), demand):
            self._wait(demand, told.why, told.fitting, behind=told.behind)
        elif demand.queue in self._closed:
            self._wait(demand, Pending.BEHIND, behind=self._closed[demand.queue])
            self._release_held_nodes(demand)
        else:
            self._try(demand)

    def _try(self, demand: Demand) -> None:
        why, fitting = Pending.QUOTA, 0
        if self._within_quota(demand):
            placed, why, fitting = self._place(demand)
            if placed:
                return
        if self._make_room(demand):
            return
        if why is Pending.QUOTA:
            self._closed[demand.queue] = demand.run
            self._wait(demand, why, detail=self._quota_in_words(demand))
            self._release_held_nodes(demand)
        else:
            self._block(demand, why, fitting)

    def _within_quota(self, demand: Demand, gone: Iterable[Holding] = ()) -> bool:
        """Whether its queue may have so much more, now or once some have gone."""
        for holding in gone:
            self._quotas.charge(holding.queue, -holding.gpus)
        standing = self._quotas.standing(demand.queue, demand.gpus)
        for holding in gone:
            self._quotas.charge(holding.queue, holding.gpus)
        return goes_on(demand) or standing in {QuotaStatus.WITHIN, QuotaStatus.BORROWING}

    def _release_held_nodes(self, demand: Demand) -> None:
        """What it holds is of no use to it now: whoever comes behind it may have that."""
        if demand.keeps:
            self._idling.add(demand.run)
            self._known.forget()

    def _place(self, demand: Demand) -> tuple[bool, Pending, int]:
        """Whether it is placed; if not, why, and how many nodes fit."""
        key = self._key(demand)
        if tried := self._known.failed(key, demand):
            return False, tried.why, tried.fitting
        if demand.unwanted and self._move(demand):
            return True, Pending.NO_CAPACITY, 0
        fits = self._eligible.fitting(self._board, demand)
        allowed = fits & ~self._kept.beyond(self._eligible.ends(demand))
        places = self._eligible.spot(self._board, demand, allowed)
        if places is not None:
            self._commit_placement(demand, self._board.rooms.named(places))
            return True, Pending.NO_CAPACITY, 0
        if self._move(demand):
            return True, Pending.NO_CAPACITY, 0
        told = Rejection(demand.nodes, self._why_not(demand, fits, allowed), int(allowed.sum()))
        self._known.note_failed(key, demand, told)
        return False, told.why, told.fitting

    def _move(self, demand: Demand) -> bool:
        """Whether it gets nodes elsewhere for some that it has, or for all."""
        move = migration.away(self._board, self._eligible, demand)
        if move is None:
            move = migration.as_a_whole(self._board, self._eligible, demand)
        if move is None:
            return False
        self._plan.leaves[demand.run] = move.leaves
        self._quotas.charge(demand.queue, -len(move.leaves) * accounted_gpus(demand.need))
        self._commit_placement(demand, move.to)
        return True

    def _commit_placement(self, demand: Demand, nodes: tuple[str, ...]) -> None:
        self._board.take(self._board.rooms.places(nodes), demand.need)
        self._quotas.charge(demand.queue, len(nodes) * accounted_gpus(demand.need))
        self._shares.charge(demand)
        self._plan.placements[demand.run] = nodes
        self._holdings.append(_holding(demand, nodes, self._now))

    def _key(self, demand: Demand) -> Key:
        """Demands with one key are told the same, if they want as many nodes or more."""
        return (shape_of(demand.need), demand.pack, *self._eligible.like(demand))

    def _kind(self, demand: Demand) -> Key:
        """The same, for who may have others leave too."""
        group = self._holders.group(demand.queue)
        return (*self._key(demand), group, demand.priority, demand.may_preempt)

    # why not

    def _why_not(self, demand: Demand, fits: Mask, allowed: Mask) -> Pending:
        if int(fits.sum()) < demand.nodes:
            some_time = self._board.fits(demand.need)
            some_time[self._board.rooms.places(demand.keeps)] = False
            return Pending.MAINTENANCE if some_time.sum() >= demand.nodes else Pending.NO_CAPACITY
        if int(allowed.sum()) < demand.nodes:
            return Pending.RESERVED
        if self._eligible.most(self._board, demand, allowed) < demand.nodes:
            return Pending.SPARES
        return Pending.TOPOLOGY

    def _quota_in_words(self, demand: Demand) -> str:
        quota = self._quotas.of(demand.queue)
        used = self._quotas.used(demand.queue)
        return f"queue {demand.queue} uses {used} of {quota.gpus} GPUs; it wants {demand.gpus} more"

    def _wait(self, demand: Demand, why: Pending, fitting: int = 0, **facts: Any) -> None:
        self._plan.waits[demand.run] = Wait(
            run=demand.run,
            why=why,
            place=self._in_line + 1,
            missing=demand.nodes,
            fitting=fitting,
            **facts,
        )
        self._in_line += why is not Pending.TOO_LARGE

    # who waits

    def _block(self, demand: Demand, why: Pending, fitting: int) -> None:
        """It waits for nodes: the first to do so gets a reservation."""
        if self._head is not None:
            behind = self._head.run if why is Pending.RESERVED else None
            told = Rejection(demand.nodes, why, fitting, behind)
            self._known.note_told(self._kind(demand), demand, told)
            self._wait(demand, why, fitting, behind=behind)
            return
        self._head = demand
        forecast = Forecast(self._board, self._holdings, self._eligible, self._now)
        claim = forecast.claim(demand)
        self._claim(demand, claim)
        self._wait(demand, why, fitting=fitting, starts_at=claim.until)

    def _claim(self, demand: Demand, claim: Claim) -> None:
        self._plan.claims[demand.run] = claim
        self._kept.keep(demand.run, claim)
        self._known.forget()

    # who leaves

    def _await_leavers(self, demand: Demand, claim: Claim, leaving: Iterable[str]) -> None:
        self._claim(demand, claim)
        self._quotas.charge(demand.queue, demand.gpus)  # kept for it, as its nodes are
        self._wait(demand, Pending.PREEMPTING, detail=", ".join(sorted(set(leaving))))

    def _make_room(self, demand: Demand) -> bool:
        """Ask the cheapest that make room to save and leave; whether there are such."""
        kind = self._kind(demand)
        if self._preemptors == MOST_PREEMPTORS or self._known.futile(kind, demand):
            return False
        if not self._leave_for(demand):
            self._known.note_futile(kind, demand)
            return False
        self._preemptors += 1
        return True

    def _leave_for(self, demand: Demand) -> bool:
        board, eligible = self._board.copy(), self._eligible
        leaving = [h for h in self._snapshot.holdings if h.leaving]
        free = int(eligible.may_have(board, demand).sum()) + sum(len(h.nodes) for h in leaving)
        if free + self._holders.at_most(demand, self._idling) < demand.nodes:
            return False
        options = self._holders.candidates(demand, self._idling)
        trial = preemption.Trial(board, self._quotas, eligible, demand, leaving, options)
        chosen = preemption.select(trial) if options else None
        if chosen is None:
            return False
        then = trial.board(chosen)
        places = eligible.spot(then, demand, eligible.may_have(then, demand))
        if places is None:
            return False
        nodes = self._board.rooms.named(places)
        gone = preemption.evictions(demand, [options[i] for i in chosen])
        for eviction in gone:
            self._holders.leave(eviction.run)
            self._gave[eviction.run] = demand.run
        self._plan.evictions.extend(gone)
        before = [h.run for h in leaving if not set(nodes).isdisjoint(h.nodes)]
        claim = Claim(nodes=nodes, preempting=True)
        self._await_leavers(demand, claim, [*before, *(each.run for each in gone)])
        return True


def _holding(demand: Demand, nodes: tuple[str, ...], now: dt.datetime) -> Holding:
    """What a demand has once it is placed."""
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

"""One scheduling pass: gangs onto free nodes, in order, all or nothing. Pure.

Each demand, in the order of :func:`.share.in_order`, is placed, or told why it waits. The first
that does not fit gets a reservation; those behind it may use what does not delay it. Where runs of
lower priority (or of queues that borrow) stand in the way, the cheapest that make room are asked to
save and leave, and the nodes are kept for whom they leave.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable
from typing import Any

import numpy as np

from orchestrator.core.scheduling import preempting, topology
from orchestrator.core.scheduling.board import Board, shape_of
from orchestrator.core.scheduling.ceilings import Ceilings
from orchestrator.core.scheduling.quota import Quotas, Standing
from orchestrator.core.scheduling.reserving import Reservations
from orchestrator.core.scheduling.rooms import Indices, Mask
from orchestrator.core.scheduling.share import Shares, in_order
from orchestrator.core.scheduling.spots import spot
from orchestrator.core.scheduling.terms import (
    Claim,
    Demand,
    Holding,
    Pending,
    Plan,
    Snapshot,
    Wait,
    accounted_gpus,
)

MAINTENANCE_LEAD_SECONDS = 3600.0
"""A run whose end is not known starts on no node whose maintenance begins sooner than this."""
MOST_PREEMPTORS = 4
"""Runs for which others are asked to leave in one pass: the next ones come with the next pass."""
Key = tuple[object, ...]


def plan(snapshot: Snapshot, now: dt.datetime) -> Plan:
    """Place what can be placed, in order; say of the rest why it waits."""
    return Pass(snapshot, now).run()


class Pass:
    """One pass over a snapshot."""

    def __init__(self, snapshot: Snapshot, now: dt.datetime) -> None:
        self._snapshot, self._now = snapshot, now
        self._board = Board(snapshot.rooms)
        self._quotas = Quotas(snapshot.quotas)
        self._ceilings = Ceilings(snapshot.rooms, self._quotas)
        self._windows = bool(np.isfinite(snapshot.rooms.window).any())
        """Whether maintenance is planned anywhere."""
        weights = {
            (quota.name, project): weight
            for quota in snapshot.quotas
            for project, weight in quota.weights.items()
        }
        self._shares = Shares(snapshot.usage, snapshot.holdings, weights)
        self._board.seat((node, h.need) for h in snapshot.holdings for node in h.nodes)
        for holding in snapshot.holdings:
            self._quotas.charge(holding.queue, holding.gpus)
        self._waiting = {demand.run for demand in snapshot.demands}
        """Not looked at yet: behind whoever is looked at now."""
        self._kept = Reservations(snapshot.rooms, now)
        self._closed: dict[str, str] = {}
        """Queue → the run that waits for its quota: nobody of the queue overtakes it."""
        self._head: Demand | None = None
        self._failed: dict[Key, tuple[int, Pending, int]] = {}
        """What was tried in vain: nodes, why, and how many fitted. Room only shrinks in a pass."""
        self._futile: dict[Key, int] = {}
        """For which nobody leaves: nodes."""
        self._cheapest: list[Holding] | None = None
        self._preemptors = 0
        self._told: dict[Key, tuple[int, Pending, int, str | None]] = {}
        """What others were told after all was tried: nodes, why, fitting, behind whom."""
        self._holdings = list(snapshot.holdings)
        """What all have, also who was placed in this pass."""
        self._in_line = 0
        """How many wait for something that can come."""
        self._plan = Plan()

    def run(self) -> Plan:
        """The pass."""
        for demand in self._snapshot.demands:
            if demand.claim is not None and demand.claim.preempting:
                self._kept.keep(demand.run, demand.claim)
        for demand in in_order(self._snapshot.demands, self._shares):
            self._waiting.discard(demand.run)
            self._take_up(demand)
        if self._head is None:
            self._grow()
        return self._plan

    # one demand

    def _take_up(self, demand: Demand) -> None:
        self._kept.release(demand.run)
        if detail := self._ceilings.exceeded_by(demand):
            self._wait(demand, Pending.TOO_LARGE, detail=detail)
            return
        if self._tell_the_same(demand):
            return
        if demand.queue in self._closed:
            self._wait(demand, Pending.BEHIND, behind=self._closed[demand.queue])
            return
        standing = self._quotas.standing(demand.queue, demand.gpus)
        if standing in {Standing.WITHIN, Standing.BORROWING}:
            why, fitting = self._place(demand)
            if why is None:
                return
        else:
            why, fitting = Pending.QUOTA, 0
        if self._still_leaving(demand) or self._make_room(demand):
            return
        if why is Pending.QUOTA:
            self._closed[demand.queue] = demand.run
            self._wait(demand, why, detail=self._quota_in_words(demand))
        else:
            self._hold_up(demand, why, fitting)

    def _tell_the_same(self, demand: Demand) -> bool:
        """Another one like it has just been tried in vain, with as many nodes or fewer."""
        told = self._told.get(self._kind(demand))
        if told is None or demand.nodes < told[0] or demand.keeps or demand.avoid or demand.claim:
            return False
        self._wait(demand, told[1], told[2], behind=told[3])
        return True

    def _kind(self, demand: Demand) -> Key:
        return (*self._key(demand), demand.queue, demand.priority, demand.may_preempt)

    def _place(self, demand: Demand) -> tuple[Pending | None, int]:
        """Why it is not placed, and how many nodes fit; None: it is placed."""
        key = self._key(demand)
        tried = self._failed.get(key)
        if tried is not None and not demand.avoid and not demand.keeps and demand.nodes >= tried[0]:
            return tried[1], tried[2]
        fits = self._board.fits(demand.need) & self._in_time(demand)
        fits[self._board.rooms.places(demand.keeps)] = False
        allowed = fits & ~self._kept.beyond(self._ends(demand))
        places = spot(self._board, demand, allowed)
        if places is not None and not self._leaves_spares(demand, places):
            why: Pending = Pending.SPARES
        elif places is not None:
            self._settle(demand, places)
            return None, 0
        else:
            why = self._why_not(demand, fits, allowed)
            if demand.keeps and demand.pack != "any" and self._move(demand):
                return None, 0
        fitting = int(allowed.sum())
        self._failed[key] = (demand.nodes, why, fitting)
        return why, fitting

    def _move(self, demand: Demand) -> bool:
        """No node near the ones it has: the gang moves, if there is room for all of it."""
        trial = self._board.copy()
        kept = trial.rooms.places(demand.keeps)
        trial.give(kept, demand.need)
        allowed = (
            trial.fits(demand.need) & self._in_time(demand) & ~self._kept.beyond(self._ends(demand))
        )
        allowed[trial.rooms.places(demand.avoid)] = False
        order = trial.tightest_first()
        places = topology.choose(trial.rooms, allowed, demand.gang, demand.pack, order)
        if places is None:
            return False
        chosen = set(trial.rooms.named(places))
        left = tuple(node for node in demand.keeps if node not in chosen)
        self._plan.leaves[demand.run] = left
        self._board.give(trial.rooms.places(left), demand.need)
        self._settle(demand, trial.rooms.places(chosen - set(demand.keeps)))
        return True

    def _settle(self, demand: Demand, places: Indices) -> None:
        self._board.take(places, demand.need)
        self._quotas.charge(demand.queue, len(places) * accounted_gpus(demand.need))
        self._shares.charge(demand)
        self._plan.placements[demand.run] = nodes = self._board.rooms.named(places)
        self._holdings.append(_holding(demand, nodes, self._now))

    # what may be used

    def _in_time(self, demand: Demand) -> Mask:
        """Nodes that are not maintained before the run has ended."""
        lead = MAINTENANCE_LEAD_SECONDS if demand.ends_within is None else demand.ends_within
        mask: Mask = self._board.rooms.window >= self._now.timestamp() + lead
        return mask

    def _ends(self, demand: Demand) -> float:
        return np.inf if demand.ends_within is None else self._now.timestamp() + demand.ends_within

    def _leaves_spares(self, demand: Demand, places: Indices) -> bool:
        """Newcomers leave the pool of spares alone."""
        if demand.recovers or self._snapshot.spares == 0:
            return True
        idle = self._board.idle()
        taken = int(idle[places].sum())
        return taken == 0 or int(idle.sum()) - taken >= self._snapshot.spares

    def _key(self, demand: Demand) -> Key:
        """Demands with one key are told the same, if they want as many nodes or more."""
        ends = self._ends(demand)
        open_to_it = self._kept.open_until(ends)
        windows = demand.ends_within if self._windows else None
        return (shape_of(demand.need), demand.pack, demand.recovers, open_to_it, windows)

    # why not

    def _why_not(self, demand: Demand, fits: Mask, allowed: Mask) -> Pending:
        if int(fits.sum()) < demand.nodes:
            return Pending.NO_CAPACITY
        return Pending.RESERVED if int(allowed.sum()) < demand.nodes else Pending.TOPOLOGY

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

    def _hold_up(self, demand: Demand, why: Pending, fitting: int) -> None:
        """It waits for nodes: the first to do so gets a reservation."""
        if self._head is not None:
            behind = self._head.run if why is Pending.RESERVED else None
            self._told[self._kind(demand)] = (demand.nodes, why, fitting, behind)
            self._wait(demand, why, fitting, behind=behind)
            return
        self._head = demand
        claim = self._kept.best(self._board, demand, self._holdings)
        self._plan.claims[demand.run] = claim
        self._kept.keep(demand.run, claim)
        self._failed.clear()  # what is kept has changed
        self._told.clear()
        self._wait(demand, why, fitting=fitting, starts_at=claim.until)

    # who leaves

    def _still_leaving(self, demand: Demand) -> bool:
        """Others were asked to leave already, and have not all done so."""
        claim = demand.claim
        if claim is None or not claim.preempting or not self._kept.whole(demand, claim):
            return False
        leaving = [h for h in self._snapshot.holdings if h.leaving]
        if not any(set(h.nodes) & set(claim.nodes) for h in leaving):
            return False
        self._kept.keep(demand.run, claim)
        self._plan.claims[demand.run] = claim
        self._wait(demand, Pending.PREEMPTING, detail=_names(h.run for h in leaving))
        return True

    def _make_room(self, demand: Demand) -> bool:
        """Ask the cheapest that make room to save and leave; whether there are such."""
        kind = (demand.queue, demand.priority, demand.may_preempt)
        key: Key = (shape_of(demand.need), demand.pack, *kind)
        known = self._futile.get(key)
        if self._preemptors == MOST_PREEMPTORS or (known is not None and demand.nodes >= known):
            return False
        asked = {eviction.run for eviction in self._plan.evictions}
        if self._cheapest is None:
            self._cheapest = preempting.cheapest_first(self._snapshot.holdings)
        stay = [holding for holding in self._cheapest if holding.run not in asked]
        options = preempting.candidates(demand, stay, self._quotas, self._waiting)
        trial = preempting.Trial(
            self._board, self._quotas, demand, lambda board: self._fits_on(board, demand), options
        )
        chosen = preempting.select(trial, len(options))
        if chosen is None:
            self._futile[key] = demand.nodes
            return False
        self._preemptors += 1
        self._evict(demand, chosen, trial.board)
        return True

    def _fits_on(self, board: Board, demand: Demand) -> bool:
        usable = self._usable_on(board, demand)
        return topology.largest_domain(board.rooms, usable, demand.pack) >= demand.nodes

    def _usable_on(self, board: Board, demand: Demand) -> Mask:
        mask = (
            board.fits(demand.need) & self._in_time(demand) & ~self._kept.beyond(self._ends(demand))
        )
        mask[board.rooms.places((*demand.keeps, *demand.avoid))] = False
        kept = board.rooms.places(demand.keeps)
        if len(kept) and demand.pack != "any":
            mask &= topology.within(board.rooms, kept, demand.pack)
        return mask

    def _evict(self, demand: Demand, chosen: list[preempting.Candidate], board: Board) -> None:
        usable = self._usable_on(board, demand)
        order = board.tightest_first()
        places = topology.choose(board.rooms, usable, demand.nodes, demand.pack, order)
        if places is None:  # pragma: no cover  (select has made sure)
            return
        gone = preempting.evictions(demand, chosen)
        claim = Claim(nodes=board.rooms.named(places), preempting=True)
        self._plan.evictions.extend(gone)
        self._plan.claims[demand.run] = claim
        self._kept.keep(demand.run, claim)
        self._failed.clear()
        self._told.clear()
        self._wait(demand, Pending.PREEMPTING, detail=_names(each.run for each in gone))

    # growth

    def _grow(self) -> None:
        """Nobody waits for nodes: standbys come up, and elastic runs grow."""
        for holding in self._holdings:
            if holding.wants <= 0:
                continue
            demand = _growth(holding)
            allowed = self._board.fits(holding.need) & self._in_time(demand)
            allowed &= ~self._kept.beyond(self._ends(demand))
            allowed[self._board.rooms.places(holding.nodes)] = False
            most = min(holding.wants, int(allowed.sum()), self._within_quota(holding))
            for count in range(most, 0, -1):
                part = dataclasses.replace(demand, nodes=count)
                places = spot(self._board, part, allowed)
                if places is not None and self._leaves_spares(part, places):
                    self._board.take(places, holding.need)
                    self._quotas.charge(holding.queue, part.gpus)
                    self._plan.growth[holding.run] = self._board.rooms.named(places)
                    break

    def _within_quota(self, holding: Holding) -> int:
        """Nodes it may have more without borrowing."""
        quota = self._quotas.of(holding.queue)
        if quota.gpus is None:
            return holding.wants
        left = max(0, quota.gpus - self._quotas.used(holding.queue))
        return left // accounted_gpus(holding.need)


def _growth(holding: Holding) -> Demand:
    """More nodes for a run that has some, as a demand."""
    return Demand(
        run=holding.run,
        name=holding.run,
        need=holding.need,
        nodes=holding.wants,
        queue=holding.queue,
        project=holding.project,
        priority=holding.priority,
        submitted_at=dt.datetime.min.replace(tzinfo=dt.UTC),
        pack=holding.pack,
        keeps=holding.nodes,
        avoid=holding.avoid,
    )


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
        wants=demand.more,
        pack=demand.pack,
        avoid=demand.avoid,
    )


def _names(runs: Iterable[str]) -> str:
    return ", ".join(sorted(set(runs)))

"""Who leaves for whom: the cheapest runs that make room, and nobody for nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from jobs.spec import Resources
from orchestrator.core.scheduling.board import Board
from orchestrator.core.scheduling.quota import Quotas, Standing
from orchestrator.core.scheduling.rooms import Indices
from orchestrator.core.scheduling.terms import (
    PRIORITY_RANK,
    Demand,
    Eviction,
    Holding,
    accounted_gpus,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something a run could be asked to give back."""

    holding: Holding
    nodes: tuple[str, ...]
    why: str

    @property
    def gpus(self) -> int:
        """GPUs it would free."""
        return len(self.nodes) * accounted_gpus(self.holding.need)


def cheapest_first(holdings: Iterable[Holding]) -> list[Holding]:
    """The lowest priority first, then the fewest GPU seconds lost."""
    return sorted(
        (holding for holding in holdings if holding.nodes and not holding.leaving),
        key=lambda h: (-PRIORITY_RANK[h.priority], h.lost_gpu_seconds, h.run),
    )


def candidates(
    demand: Demand, holdings: Sequence[Holding], quotas: Quotas, waiting: AbstractSet[str]
) -> list[Candidate]:
    """What may be taken for a demand, in the order of the holdings.

    Args:
        demand: Who needs room.
        holdings: What runs have, the cheapest first.
        quotas: What their queues may use.
        waiting: Runs behind it in the order that hold nodes and wait for more themselves.
    """
    found: list[Candidate] = []
    own = quotas.standing(demand.queue, demand.gpus)
    lenders = quotas.borrowers(demand.queue) if _within(own) else set()
    for holding in holdings:
        if holding.run == demand.run:
            continue
        if holding.run in waiting:
            found.append(Candidate(holding=holding, nodes=holding.nodes, why="order"))
        elif holding.movable and (why := _why(demand, holding, quotas, lenders)):
            found.extend(_parts(holding, why))
    return found


def _within(standing: Standing) -> bool:
    return standing in {Standing.WITHIN, Standing.RECLAIMING}


def _why(demand: Demand, holding: Holding, quotas: Quotas, lenders: set[str]) -> str:
    if not demand.may_preempt:
        return ""
    if holding.queue in lenders:
        return "reclaim"
    shared = holding.queue == demand.queue or not (
        quotas.limited(holding.queue) or quotas.limited(demand.queue)
    )
    lower = PRIORITY_RANK[holding.priority] > PRIORITY_RANK[demand.priority]
    return "priority" if shared and lower else ""


def _parts(holding: Holding, why: str) -> Iterator[Candidate]:
    """To shrink comes before to stop."""
    if holding.surplus:
        yield Candidate(holding=holding, nodes=holding.surplus, why=why)
        rest = tuple(node for node in holding.nodes if node not in holding.surplus)
        yield Candidate(holding=holding, nodes=rest, why=why)
    else:
        yield Candidate(holding=holding, nodes=holding.nodes, why=why)


class Trial:
    """A board and quotas on which candidates leave and come back, to see what suffices.

    Args:
        board: What is free now.
        quotas: What queues use now; as it was when the trial is over.
        demand: Who needs room.
        fits: Whether the demand's nodes are to be had on a board.
        options: Who may leave, in the order to try.
    """

    def __init__(
        self,
        board: Board,
        quotas: Quotas,
        demand: Demand,
        fits: Callable[[Board], bool],
        options: Sequence[Candidate],
    ) -> None:
        self._now, self._quotas, self._demand, self._fits = board, quotas, demand, fits
        self._options = options
        self._places = [board.rooms.places(option.nodes) for option in options]
        self._starts = np.cumsum([0, *(len(places) for places in self._places)])
        self._columns = Columns(self._places, [option.holding.need for option in options])
        self.board = board

    def suffices(self, count: int) -> bool:
        """Whether it is enough that the first so many leave. On the board they have left then."""
        self.board = self._now.copy()
        self._columns.leave(self.board, int(self._starts[count]))
        self._charge(range(count), -1)
        enough = self._enough()
        self._charge(range(count), 1)
        return enough

    def spared(self, count: int) -> list[Candidate]:
        """Those of the first so many that must leave: the dearest that need not are spared."""
        self.suffices(count)
        leave = dict.fromkeys(range(count))
        self._charge(leave, -1)
        for i in reversed(range(count)):
            need = self._options[i].holding.need
            self.board.take(self._places[i], need)
            self._charge((i,), 1)
            if self._enough():
                del leave[i]
            else:
                self.board.give(self._places[i], need)
                self._charge((i,), -1)
        self._charge(leave, 1)
        return [self._options[i] for i in leave]

    def _charge(self, numbers: Iterable[int], sign: int) -> None:
        for i in numbers:
            option = self._options[i]
            self._quotas.charge(option.holding.queue, sign * option.gpus)

    def _enough(self) -> bool:
        """Whether the demand fits now."""
        standing = self._quotas.standing(self._demand.queue, self._demand.gpus)
        return standing in {Standing.WITHIN, Standing.BORROWING} and self._fits(self.board)


class Columns:
    """What leaves with each option, worker by worker, so that many leave in one go."""

    def __init__(self, places: Sequence[Indices], needs: Sequence[Resources]) -> None:
        counts = [len(each) for each in places]
        self._places = np.concatenate([np.empty(0, dtype=np.intp), *places])
        self._gpus = np.repeat([need.gpus_per_node for need in needs], counts).astype(np.int64)
        self._cpus = np.repeat([need.cpus_per_node for need in needs], counts)
        self._memory = np.repeat([need.memory_per_node for need in needs], counts)

    def leave(self, board: Board, workers: int) -> None:
        """The first so many workers leave a board."""
        places = self._places[:workers]
        np.add.at(board.gpus, places, self._gpus[:workers])
        np.add.at(board.cpus, places, self._cpus[:workers])
        np.add.at(board.memory, places, self._memory[:workers])
        np.add.at(board.tenants, places, -1)


def select(trial: Trial, count: int) -> list[Candidate] | None:
    """The fewest of the cheapest `count` options that suffice; None: all together do not.

    The shortest prefix is found by bisection, since whoever leaves only adds room. Then the dearest
    of it that turn out not to be needed are spared. On the trial's board, the others have left.
    """
    if count == 0 or not trial.suffices(count):
        return None
    low, high = 1, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.suffices(middle) else (middle + 1, high)
    return trial.spared(low)


def evictions(demand: Demand, chosen: Sequence[Candidate]) -> list[Eviction]:
    """One for each run. Who gives more than its surplus gives all."""
    asked: dict[str, list[Candidate]] = {}
    for candidate in chosen:
        asked.setdefault(candidate.holding.run, []).append(candidate)
    found = []
    for run, parts in asked.items():
        holding = parts[0].holding
        shrinks = all(part.nodes == holding.surplus for part in parts)
        found.append(
            Eviction(
                run=run,
                nodes=holding.surplus if shrinks else holding.nodes,
                by=demand.run,
                why=parts[0].why,
                lost_gpu_seconds=holding.lost_gpu_seconds,
            )
        )
    return found

"""When all ranks stop: at the same call, without a collective in each one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from babysit import collective
from babysit.stop_agreement import MOST_CALLS, StopAgreement

CALLS = 60


class Ranks:
    """Ranks in threads of their own, each with a pace; one is asked to stop at some call."""

    def __init__(
        self, paces: Sequence[float], asked: tuple[int, int] | None, patch: pytest.MonkeyPatch
    ) -> None:
        self.paces, self.asked = paces, asked
        self.meetings: list[int] = []
        """Calls at which the ranks met; each adds its own."""
        self._met = threading.Barrier(len(paces), timeout=30)
        self._here = threading.local()
        self._told: dict[int, tuple[int, ...]] = {}
        patch.setattr(collective, "process_group", object)
        patch.setattr(collective, "minimum", self._minimum)

    def _minimum(self, *values: int) -> tuple[int, ...]:
        self._told[self._here.rank] = values
        self._met.wait()  # breaks, and the test with it, where a rank does not come
        least = tuple(min(each) for each in zip(*self._told.values(), strict=True))
        self.meetings.append(self._here.call)
        self._met.wait()
        return least

    def stopped(self) -> list[int]:
        """The call at which each rank stopped; 0: it did not."""
        with ThreadPoolExecutor(len(self.paces)) as pool:
            return list(pool.map(self._run, range(len(self.paces))))

    def _run(self, rank: int) -> int:
        here = self._here
        here.rank = rank

        def requested() -> bool:
            return self.asked is not None and self.asked[0] == rank and here.call >= self.asked[1]

        agreement = StopAgreement(
            requested, alone=False, clock=lambda: here.call * self.paces[rank]
        )
        for here.call in range(1, CALLS + 1):
            if agreement.ask():
                return int(here.call)
        return 0


@pytest.mark.parametrize(
    ("paces", "at"),
    [
        # Fast steps: rarely.
        ([0.001, 0.001, 0.001], [1, 2, 12, 22, 32, 42, 52]),
        # By the slowest rank: every third call takes it 0.9 s.
        ([0.001, 0.3], [1, 2, *range(5, 60, 3)]),
        # Slow steps: in each one, since the request may be pressing.
        ([0.001, 2.0], list(range(1, 61))),
    ],
)
def test_ranks_meet_about_once_a_second(
    paces: list[float], at: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(paces, None, monkeypatch)
    assert ranks.stopped() == [0] * len(paces)
    assert sorted(set(ranks.meetings)) == at
    assert len(ranks.meetings) == len(at) * len(paces), "each time, all of them"


@pytest.mark.parametrize("call", [1, 2, 3, 17, 49])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_all_stop_at_the_same_call(rank: int, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever rank is asked, and whenever: its request waits for a few calls at most."""
    stopped = Ranks([0.001, 0.002, 0.0], (rank, call), monkeypatch).stopped()
    assert len(set(stopped)) == 1
    assert call <= stopped[0] <= call + MOST_CALLS


def test_a_script_that_goes_on_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collective, "process_group", object)
    monkeypatch.setattr(collective, "minimum", lambda *values: values)
    agreement = StopAgreement(lambda: True, alone=False, clock=lambda: 0.0)
    assert [agreement.ask() for _ in range(4)] == [True] * 4


@pytest.mark.parametrize("alone", [True, False])
def test_without_others_the_answer_comes_at_once(alone: bool) -> None:
    """One rank, or ranks that have no process group, and so cannot meet."""
    asked = iter([False, True, False, True])
    agreement = StopAgreement(lambda: next(asked), alone=alone)
    assert [agreement.ask() for _ in range(4)] == [False, True, False, True]

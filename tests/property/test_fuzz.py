"""The fuzzer repeats a seed exactly, finds nothing in a few seeds, and finds what is broken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import pytest

from jobs.events import Event
from orchestrator.controller.dispatcher import OutboxDispatcher
from orchestrator.controller.live_state import LiveState
from orchestrator.core import machine
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.checkpoints import deletion
from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.state import State
from orchestrator.core.policy import checkpoint_choice, remedies
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import Demand
from orchestrator.core.turn import Turn
from orchestrator.database import commit
from orchestrator.fuzz import __main__ as fuzz_command
from orchestrator.fuzz.__main__ import main
from orchestrator.fuzz.plan import FAULT_KINDS, Choice, Fault, parse_kinds
from orchestrator.fuzz.shrink import command
from orchestrator.fuzz.simulation import run_seed

SEEDS = range(1000, 1012)
ANYWHERE = (1, 6, 149)
"""Seeds that are run in several processes. In 149, a server steps down amid much that waits: while
sets of tasks had the order of their addresses, its journal was one of five."""
IN_A_PROCESS = f"import sys; from orchestrator.fuzz.plan import Choice; \
from orchestrator.fuzz.simulation import run_seed; \
print(*(run_seed(seed, Choice()).journal for seed in {ANYWHERE}[::int(sys.argv[1])]))"


@pytest.mark.parametrize("seed", SEEDS)
def test_no_invariant_is_broken(seed: int) -> None:
    outcome = run_seed(seed, Choice())
    assert not outcome.broken, "\n".join([*outcome.trace[-60:], command(seed, Choice())])
    assert outcome.turns > 5


def test_without_faults_every_run_succeeds() -> None:
    outcome = run_seed(2, Choice(kinds=frozenset()))
    assert not outcome.broken
    assert outcome.faults == ()


def test_a_seed_gives_the_same_run_twice() -> None:
    first, again = (run_seed(6, Choice()) for _ in range(2))
    assert first == again
    assert first.journal != run_seed(7, Choice()).journal


def test_a_seed_is_the_same_in_every_process() -> None:
    """Whatever Python hashes with, wherever things lie in memory, whatever ran before."""

    def journals(hash_seed: int) -> list[str]:
        step = 1 if hash_seed % 2 else -1  # backwards: so that other things lie where
        done = subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS, str(step)],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            capture_output=True,
            check=True,
            text=True,
        )
        return done.stdout.split()[::step]

    here = [run_seed(seed, Choice()).journal for seed in ANYWHERE]
    assert [journals(hash_seed) for hash_seed in range(3)] == [here] * 3


# A fuzzer that cannot fail is worth nothing: defects put in on purpose, and the seeds to find each


def of_any_attempt(turn: Turn, event: Event) -> Event | None:
    """Events of an older attempt count."""
    attempt = turn.state.attempts.get(getattr(event, "run", None) or "")
    if attempt is not None and hasattr(event, "attempt"):
        event = event.model_copy(update={"attempt": attempt.number})
    return _FENCE_OFF(turn, event)


async def at_any_epoch(*_: object) -> None:
    """A deposed leader may write."""


def forgets_reports(_self: LiveState, _worker: str) -> int:
    """Reports are taken as often as they come."""
    return 0


_CARRY, _EMPTY_SEATS = OutboxDispatcher.dispatch, attempt_lifecycle.empty_seats
_FENCE_OFF = machine._fence_off


def done_before_carrying(self: OutboxDispatcher, instructions: Iterable[Instruction]) -> None:
    """The outbox is ticked off first."""
    kept = list(instructions)
    for each in kept:
        self._done(each.id)
    _CARRY(self, kept)


def dead_when_one_seat_is(turn: Turn, run: str, workers: Iterable[str]) -> bool:
    """The next attempt does not wait for every node."""
    _EMPTY_SEATS(turn, run, workers)
    return True


def trusts_all(checkpoints: Iterable[Checkpoint], **_: Any) -> list[Checkpoint]:
    """Half-written and bad checkpoints are offered as well."""
    return sorted((c for c in checkpoints if not c.deleted_at), key=lambda c: -c.step)


def deletes_all(checkpoints: Iterable[Checkpoint], *_: Any, **__: Any) -> list[Checkpoint]:
    """Retention keeps nothing."""
    return [c for c in checkpoints if not c.deleted_at and c.trust in {"verified", "good"}]


async def asks_nobody(*_: object) -> None:
    """What waits for an agent is not sent when it is back."""


def never_spent(_run: object, _cause: object) -> float:
    """Budgets have no end."""
    return float("inf")


def within(_self: Quotas, _queue: str, _gpus: int) -> QuotaStatus:
    """Every queue is within its quota."""
    return QuotaStatus.WITHIN


def charges_nothing(_self: Quotas, _queue: str, _gpus: int) -> None:
    """What queues use is not counted."""


def at_any_time(self: Eligible, board: FreeResources, demand: Demand) -> Any:
    """Maintenance does not matter."""
    mask = board.fits(demand.need)
    mask[board.table.places(demand.keeps)] = False
    return mask


def leaves_none(_self: Eligible, _demand: object) -> bool:
    """Newcomers take the spares too."""
    return True


def never_due(_self: State, _now: object) -> list[str]:
    """No maintenance begins or ends."""
    return []


def believes_deletions(_event: object) -> bool:
    """A deletion that failed counts as done."""
    return False


DEFECTS: list[tuple[object, str, Callable[..., Any], range]] = [
    (machine, "_fence_off", of_any_attempt, range(90)),
    (commit, "check_epoch", at_any_epoch, range(40)),
    (LiveState, "last_sequence", forgets_reports, range(5)),
    (OutboxDispatcher, "dispatch", done_before_carrying, range(5)),
    (attempt_lifecycle, "empty_seats", dead_when_one_seat_is, range(30)),
    (checkpoint_choice, "trusted", trusts_all, range(15)),
    (checkpoint_choice, "select_for_deletion", deletes_all, range(30)),
    (deletion, "has_failed", believes_deletions, range(12)),
    (remedies, "budget_of", never_spent, range(30)),
    (OutboxDispatcher, "_send_all", asks_nobody, range(70, 110)),
    (Quotas, "status", within, range(60)),
    (Quotas, "charge", charges_nothing, range(60)),
    (Eligible, "fitting", at_any_time, range(30)),
    (Eligible, "_may_use_spares", leaves_none, range(160, 280)),  # in one of 35
    (State, "due_maintenance", never_due, range(10)),
]


@pytest.mark.parametrize(
    ("place", "name", "defect", "seeds"), DEFECTS, ids=[d[2].__name__ for d in DEFECTS]
)
def test_a_defect_is_found(
    place: object, name: str, defect: Callable[..., Any], seeds: range
) -> None:
    with mock.patch.object(place, name, defect):
        found = next((s for s in seeds if run_seed(s, Choice()).broken), None)
    assert found is not None, f"{defect.__doc__} Not noticed in seeds {seeds}"


# what it prints


def test_a_failure_is_made_small_and_can_be_shown_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with mock.patch.object(LiveState, "last_sequence", forgets_reports):
        assert main(["0:5", "--shrink", "20", "--lines", "5"]) == 1
        said = capsys.readouterr().out
        again = re.search(r"Again: python -m orchestrator\.fuzz (.*)", said)
        assert again is not None, said
        broken = re.search(r"Broken: (.*)", said)
        assert main([*again[1].split(), "--shrink", "0"]) == 1
        assert broken is not None
        assert broken[1] in capsys.readouterr().out
    assert main(again[1].split()) == 0, "without the defect, the same run breaks nothing"


def test_it_says_how_far_and_how_fast_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(fuzz_command, "_SEEDS_A_LINE", 1):
        assert main(["3:5"]) == 0
    told = capsys.readouterr()
    assert re.search(r"2 in [0-9.]+ s, [0-9.]+ seeds per second", told.out)
    assert [line.split(",")[0] for line in told.err.splitlines()] == [
        "1 of 2 seeds",
        "2 of 2 seeds",
    ]


@pytest.mark.parametrize("arguments", [["5:5"], ["0:1", "--faults", "earthquake"]])
def test_what_it_cannot_do_is_said(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    said = capsys.readouterr().err
    assert "expected FIRST:LAST" in said or "there are lost" in said


def test_a_choice_says_what_to_type() -> None:
    assert command(7, Choice()) == "python -m orchestrator.fuzz 7"
    faults = parse_kinds(["lost", "hang"])
    assert command(7, Choice(faults, frozenset({3, 1}))).endswith("--faults lost,hang --only 1,3")
    assert not Choice(faults).admits(Fault(1, 0.0, "operator"))
    assert set(faults) < set(FAULT_KINDS)

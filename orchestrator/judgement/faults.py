"""The faults of a drill as data: how each is found, how it ends, and how quickly it must be.

The classes and reference speeds are those of the published systems (their numbers are the rows of
that table): a speed given there is the target. Where the table says "s", the target is 10 s; where
it says nothing, the target is ours and stands as "-" in the column of references.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from monitors.failures import FailureClass
from monitors.types import FindingKind
from orchestrator.core.model.vocabulary import SaveTrouble

Means = Literal["outside", "inside"]
"""The origin of a strike: a signal from outside, or an order to the script. Only the built-in job
takes orders."""
Ending = Literal["recovers", "goes on", "stops"]
"""The right end: a new attempt trains on, the same attempt trains on, or the run fails with the
reason."""
RECOVERY_SECONDS = 192.0
"""Target from the fault to the first new step. Budget per failure at which 2,048 nodes still reach
97 % of effective training time: 3.2 min, with 6.5 failures per 1,000 node-days."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a drill."""

    name: str
    row: int
    """Row of the table of failure classes."""
    what: str
    """The injection, in words."""
    means: Means
    found_as: frozenset[str]
    """Failure classes of a restart, or kinds of an incident, that count as found."""
    ending: Ending = "recovers"
    target: float
    """Most seconds (or steps, with `in_steps`) from the fault until it is found."""
    reference: str
    """Best published figure for the class; `-`: none."""
    in_steps: bool = False
    saves: int = 0
    """Good checkpoints in the directory that the run must have before: one may be destroyed."""
    action: str
    """The answer of babysit, in words."""


def _fault(name: str, row: int, what: str, *found_as: str, **fields: object) -> Fault:
    return Fault(name=name, row=row, what=what, found_as=frozenset(found_as), **fields)  # type: ignore[arg-type]


FAULTS: dict[str, Fault] = {
    each.name: each
    for each in (
        _fault(
            *("kill", 7, "SIGKILL of a rank", FailureClass.SIGNAL),
            means="outside",
            target=10.0,
            reference="-",
            action="retry from memory",
        ),
        _fault(
            *("hang", 9, "SIGSTOP of a rank", FailureClass.HANG),
            means="outside",
            target=60.0,
            reference="60 to 90 s (NVRx)",
            action="look at the ranks, kill, retry",
        ),
        _fault(
            *("agent", 7, "SIGKILL of an agent", FailureClass.WORKER_LOST),
            means="outside",
            target=10.0,
            reference="2 s (kernel fault)",
            action="new agent, retry",
        ),
        _fault(
            *("node", 7, "a virtual node vanishes", FailureClass.WORKER_LOST),
            means="outside",
            target=10.0,
            reference="2 s (kernel fault)",
            action="retry on another node",
        ),
        _fault(
            *("preempt", 23, "SIGTERM of an agent: a notice", FailureClass.PREEMPTION),
            means="outside",
            target=10.0,
            reference="s",
            action="save, leave, resume",
        ),
        _fault(
            *("oom", 14, "an allocation of an exabyte", FailureClass.HOST_OOM),
            means="inside",
            target=10.0,
            reference="s",
            action="retry with the evidence",
        ),
        _fault(
            *("nan", 18, "a weight becomes NaN", FindingKind.NON_FINITE),
            means="inside",
            target=2.0,
            reference="1 step",
            in_steps=True,
            action="roll back",
        ),
        _fault(
            *("spike", 20, "a bit of a weight flips", FindingKind.LOSS_SPIKE),
            means="inside",
            target=30.0,
            reference="tens of steps",
            in_steps=True,
            action="roll back",
        ),
        _fault(
            *("corrupt", 17, "newest checkpoints cut in half, and a kill", FailureClass.SIGNAL),
            means="inside",
            saves=2,
            target=10.0,
            reference="at save",
            action="fall back to an older one",
        ),
        _fault(
            *("full", 16, "no file can be written", *SaveTrouble),
            means="inside",
            ending="goes on",
            target=60.0,
            reference="-",
            action="train on, save again",
        ),
        _fault(
            *("slow", 11, "the forward pass of a rank takes longer", FindingKind.STRAGGLER),
            means="inside",
            ending="goes on",
            target=60.0,
            reference="minutes",
            action="name the rank, swap where it pays",
        ),
        _fault(
            *("stall", 15, "a batch never comes", FindingKind.SLOW, FailureClass.HANG),
            means="inside",
            target=60.0,
            reference="-",
            action="look, restart at the limit",
        ),
        _fault(
            *("raise", 25, "an exception of the script", FailureClass.USER_CODE),
            means="inside",
            ending="stops",
            target=10.0,
            reference="s",
            action="confirm once, stop",
        ),
    )
}
"""The faults, in the order in which a drill provokes them."""

NOT_PROVOKED: dict[str, str] = {
    "1-4, 8, 12 GPU, ECC, NVLink, driver, throttling": "no GPU may be broken for a drill; recorded"
    " logs of each code are judged in the tests",
    "5, 6 InfiniBand, switch": "needs a fabric; recorded counters are judged in the tests",
    "10 time-out of NCCL": "needs GPUs; the collectives of this job are those of gloo",
    "13 GPU out of memory": "needs a GPU; see `oom` for the host's",
    "19 spike that recovers": "nothing is to be done about it: it is recorded only",
    "21 silent corruption": "`spike` flips a bit that shows in the loss; one that does not show"
    " needs `run.fingerprint` in the script",
    "22 NaN right after a load": "needs a checkpoint that is wrong and whole",
    "24 no first step": "takes the limit for starts, 10 min",
    "26 crash loop": "`raise` stops after one confirmation, before there is a loop",
    "27 many nodes at once": "needs more nodes than this machine can play",
    "28 watcher dead": "the drill would lose its own eyes; `tests/acceptance` kills the server",
}
"""Classes that a drill does not provoke, and why."""

IN_PROCESS_ONLY = "the script must take orders, which only the built-in job does"

"""The verdict on what a node measured: by itself where it is wrong, by the fleet where it is slow.

Pure. A wrong checksum, a missing GPU or a full tmpfs is the node's own word, whatever others
measure. A rate is judged against the newest figures of like nodes: the same check on the same
device, on machines with as many GPUs and as many cores.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from jobs.checks.results import CLOCK, CheckResult, Verdict
from monitors.hardware.limits import FleetLimits
from orchestrator.core.model.checking import Checked
from orchestrator.core.model.entities import Node
from orchestrator.core.model.states import NodeState

RATES = frozenset(
    {"matmul", "memory", "disk-write", "disk-read", "gpu-matmul", "gpu-memory", "pcie", "nvlink"}
)
"""Checks whose figure is best large. Others are judged by the node itself alone."""
CLOCK_MARGIN = 1.0
"""Seconds of a node's clock from the median of the fleet that may have other causes: heartbeats
arrive late on a busy server. NTP keeps clocks within milliseconds."""
_LIMITS = FleetLimits()


def judge(
    node: Node, results: Iterable[CheckResult], nodes: Iterable[Node]
) -> tuple[CheckResult, ...]:
    """The results with the limits of the fleet, and their verdict by these."""
    like = [other for other in nodes if other.machine != node.machine and is_like(other, node)]
    return tuple(_judged(result, like) for result in results)


def is_like(other: Node, node: Node) -> bool:
    """True if the figures of these two nodes can be compared."""
    same = (other.gpus, other.cpus) == (node.gpus, node.cpus)
    return same and other.state is not NodeState.GONE


def _judged(result: CheckResult, like: list[Node]) -> CheckResult:
    if result.figure is None or result.verdict is not Verdict.PASSED:
        return result
    others = figures(result, like)
    if result.check in RATES:
        limit = _LIMITS.lower(others)
        beyond = limit is not None and result.figure < limit
    elif result.check == CLOCK:
        limit = _LIMITS.upper(others, CLOCK_MARGIN)
        beyond = limit is not None and result.figure > limit
    else:
        return result
    if not beyond:
        return result.model_copy(update={"limit": limit})
    why = (
        f"{result.figure:.4g} {result.unit}; the limit by {len(others)} like nodes is"
        f" {limit:.4g} {result.unit}"
    )
    return result.model_copy(update={"limit": limit, "verdict": Verdict.FAILED, "reason": why})


def figures(result: CheckResult, like: Iterable[Node]) -> list[float]:
    """The newest figures of the same thing on these nodes, one for each machine."""
    found: dict[str, float] = {}
    for node in like:
        for checked in node.measured.results:
            other = checked.result
            same = (other.check, other.unit, other.device) == (
                result.check,
                result.unit,
                result.device,
            )
            if same and other.figure is not None:
                found[node.machine] = other.figure
    return [*found.values()]


def merged(
    before: Iterable[Checked], results: Iterable[CheckResult], now: dt.datetime
) -> tuple[Checked, ...]:
    """The newest result of each check, by name."""
    newest = {each.result.check: each for each in before}
    newest |= {result.check: Checked(at=now, result=result) for result in results}
    return tuple(newest[name] for name in sorted(newest))


def failures(results: Iterable[CheckResult]) -> list[CheckResult]:
    """The failures among results."""
    return [result for result in results if result.verdict is Verdict.FAILED]


def only_slow(failed: Iterable[CheckResult]) -> bool:
    """True if nothing is wrong but rates beyond the limits of the fleet."""
    return all(result.limit is not None for result in failed)


def sentence(failed: Iterable[CheckResult]) -> str:
    """The failures in a clause: `disk-write: … ; matmul: …`."""
    return "; ".join(f"{result.check}: {result.reason}" for result in failed)
